"""The examples run from a shell and leave what they promise.

Each is the real script on the real digits, with few epochs: what it finds
means nothing here, but every column must be there and every share a share.
"""

import csv
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

RUNS = {
    "imp_cifar": (
        ["--rounds=2", "--target_sparsity=0.8", "--epochs=2"],
        ["accuracy.png", "saved_model"],
    ),
    "gem_miner": (
        [
            "--epochs=3",
            "--finetune_epochs=1",
            "--density=0.2",
            "--method=gem_miner",
        ],
        ["accuracy.png", "before.png", "sanity.png", "gem.safetensors"],
    ),
    "early_bird": (
        [
            "--epochs=6",
            "--epsilon=1.0",
            "--sparsities=0.5",
            "--other_epochs=1",
            "--timing_rounds=2",
        ],
        [],
    ),
    "spend_ticket": (
        [
            "--epochs=2",
            "--sparsities=0.5",
            "--prune_fraction=0.5",
            "--rescale_iterations=2",
            "--kinds=ticket",
            "--ways=vanilla",
            "--ways=AT+KD",
            "--early_epoch=1",
            "--points=3",
        ],
        [
            "summary.csv",
            "accuracy.png",
            "contours_early.png",
            "contours_late.png",
            "eigenvalues.png",
            "input_landscape_vanilla.png",
        ],
    ),
    "prune_transformer": (
        [
            "--smoke",
            "--sparsities=0.6",
            "--method=wanda",
            "--method=reconstruct",
            "--method=rigl",
        ],
        ["results.csv", "errors.csv", "bits.png"],
    ),
    "heads": (
        [
            "--epochs=1",
            "--finetune_epochs=2",
            "--seeds=0",
            "--depth=1",
            "--ways=taylor",
            "--timing_rounds=2",
        ],
        ["results.csv", "taylor.keras"],
    ),
    "export_and_serve": (
        [
            "--units=64",
            "--rounds=1",
            "--epochs_per_round=1",
            "--sparsity=0.8",
            "--seconds=0.1",
        ],
        [],
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_an_example_runs(name, tmp_path, example):
    arguments, files = RUNS[name]
    output = tmp_path / "out"
    example(name, *arguments, f"--output_dir={output}")
    for file in files:
        assert (output / file).exists(), file
    for path in output.glob("*.csv"):
        with path.open() as lines:
            rows = list(csv.DictReader(lines))
        assert rows, path
        for row in rows:
            for column, value in row.items():
                if column in ("accuracy", "before", "after", "density"):
                    assert 0 <= float(value) <= 1, (path, column)


def test_the_example_for_keras_io_is_in_its_format_and_runs(
    tmp_path, monkeypatch, capsys
):
    text = (ROOT / "examples/keras_io_winning_tickets.py").read_text()
    head = text.split('"""')[1]
    for field in ("Title", "Author", "Date created", "Last modified",
                  "Description", "Accelerator"):  # fmt: skip
        assert f"\n{field}: " in head
    quick = tmp_path / "quick.py"
    quick.write_text(re.sub(r"(epochs\w*)=\d+", r"\1=1", text))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(quick), run_name="__main__")
    said = capsys.readouterr().out
    assert "sparsity 0.9500" in said and "kB shipped" in said


_RECIPES = """
import importlib, sys, types
sys.path.insert(0, "examples")
from absl import flags
from tf_tickets.zoo import recipes

def at(name, *arguments):
    for flag in list(flags.FLAGS):
        delattr(flags.FLAGS, flag)
    example = importlib.import_module(name)
    flags.FLAGS(["x", *arguments])
    return example

example = at(
    "gem_miner", "--dataset=cifar10", "--model=vgg16", "--density=0.014",
    "--method=imp", "--method=gem_miner", "--learning_rate=0.5")
for unit in example.chosen():
    how = unit.how_to_train()
    options = unit.identity.get("options", {})
    print(unit.method, unit.model, how.model, how.initial_learning_rate,
          how.affine, options.get("learning_rate"))
model = example.keras.Sequential([
    example.keras.Input((4,)), example.keras.layers.Dense(3),
    example.keras.layers.Dense(2)])
model.save(sys.argv[1])
flags.FLAGS(["x", f"--pretrained={sys.argv[1]}", "--dataset=digits",
             "--model=digits_cnn", "--method=gem_miner", "--nosanity"])
[unit, *_] = [u for u in example.chosen() if u.method == "gem_miner"]
print(unit.identity["options"]["weights"], unit.how_to_train().affine)
made = unit.chosen("model")(input_shape=(4,), classes=5)
same = (made.layers[1].kernel == model.layers[0].kernel).numpy().all()
print(made.output_shape, bool(same))

own = recipes.iterative_pruning("vgg16", "cifar10")
example = at("imp_cifar", "--dataset=cifar10", "--model=vgg16")
found = example.recipe()
example.tt.callbacks.IterativeMagnitudePruning = dict
asked = example.pruning(types.SimpleNamespace(recipe=found), None)
print(found == own, found.initial_learning_rate,
      asked["rewind_step"] == own.rewind_step > 0,
      asked["epochs_per_round"] == own.epochs)
own = recipes.early_bird("preresnet101", "cifar100")
found = at(
    "early_bird", "--dataset=cifar100", "--model=preresnet101").recipe()
print(found == own, found.callback().slimming)
own = recipes.spending("resnet18", "cifar100")
found = at("spend_ticket", "--dataset=cifar100", "--model=resnet18").recipe()
print(found == own, found.label_smoothing)
"""


@pytest.fixture(scope="module")
def said_of_recipes(tmp_path_factory):
    """What a process of its own prints, beside the examples."""
    saved = tmp_path_factory.mktemp("recipes") / "dense.keras"
    done = subprocess.run(
        [sys.executable, "-c", _RECIPES, str(saved)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_the_miner_takes_the_recipes_of_the_network(said_of_recipes):
    # Table 15: VGG-16 is finetuned at 0.05; the flag is of the scores.
    assert said_of_recipes[:5] == [
        "imp vgg16 vgg16 0.05 False None",
        "gem_miner vgg16 vgg16 0.05 False 0.5",
        "gem_miner_inverted vgg16 vgg16 0.05 False 0.5",
        "keep True",
        "(None, 5) True",
    ]


def test_examples_take_the_recipes_of_their_networks(said_of_recipes):
    # Pruned at the rate of training, not at that of finetuning.
    assert said_of_recipes[5:] == [
        "True 0.1 True True",
        "True 0.0001",
        "True 0.1",
    ]
