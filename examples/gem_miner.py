r"""Mine a rare gem: a ticket found before any weight is trained.

    python examples/gem_miner.py              # digits, some minutes
    python examples/gem_miner.py --seeds=5    # means and spreads
    python examples/gem_miner.py --density=0.1,0.03,0.0144 --workers=2
    python examples/gem_miner.py \
        --dataset=cifar10 --model=resnet20 --density=0.0144  # the paper's run
    python examples/gem_miner.py --pretrained=dense.keras    # in its weights

Gem-Miner trains scores over frozen random weights. The mask it finds already
computes something, and finetuning makes it good. Beside it, at the same
density and with the same finetuning: iterative magnitude pruning, Edge-Popup,
Smart-Ratio, SNIP and SynFlow, and whatever else `--method` names. Each trains
by its own recipe, and finds what it finds alone. Then the sanity checks: a gem
must lose accuracy when its mask is shuffled, its weights are drawn again or
its scores inverted, after the search or within it.

Every run is a directory, so that the same command after a kill goes on. The
output directory gets `results.csv`, `accuracy.png`, `before.png`, `sanity.png`
and the gem of the last seed, `gem.safetensors`.
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import harness
import keras
from absl import flags

import tf_tickets as tt
from tf_tickets.zoo import experiments, recipes
from tf_tickets.zoo.experiments import Experiment, Task

FLAGS = flags.FLAGS
METHODS = ("gem_miner", "imp", "edge_popup", "smart_ratio", "snip", "synflow")
INVERTED = "gem_miner_inverted"
harness.define_flags("gem")
flags.DEFINE_list("density", ["0.0144"], "Kept fractions of the weights.")
flags.DEFINE_multi_enum(
    "method", METHODS, list(experiments.METHODS), "What to compare."
)
flags.DEFINE_integer("epochs", None, "Epochs of mining; default: recipe's.")
flags.DEFINE_float("learning_rate", None, "Of scores; default: the recipe's.")
flags.DEFINE_float("score_penalty", None, "λ; default: the recipe's.")
flags.DEFINE_integer("every", None, "T; default: the recipe's.")
flags.DEFINE_integer(
    "finetune_epochs", None, "And those of a round of IMP; default: recipe's."
)
flags.DEFINE_integer("imp_rounds", None, "Default: 30 %% or 20 %% a round.")
flags.DEFINE_string(
    "pretrained", None, "A saved Keras model, in whose weights to search."
)
flags.DEFINE_integer("seeds", 1, "How many seeds, from 0.")
flags.DEFINE_integer("workers", 0, "Processes at a time; 0: in this one.", 0)
flags.DEFINE_bool("sanity", True, "Run the sanity checks of the gem.")


def main(output: Path) -> None:
    units = chosen()
    print(
        f"{network()} on {FLAGS.dataset}, densities "
        f"{', '.join(FLAGS.density)}, {FLAGS.seeds} seed(s): {len(units)} runs"
    )
    found = experiments.run(
        units, output, workers=FLAGS.workers, data_dir=FLAGS.data_dir
    )
    experiments.plot(found, output / "before.png", "before_accuracy")
    print_table(found)
    gems = [unit for unit in units if unit.method == "gem_miner"]
    if gems:
        place = output / gems[-1].name / "ticket.safetensors"
        shutil.copy(place, output / "gem.safetensors")
    if gems and FLAGS.sanity:
        check(gems[-1], output)
    print(f"\n  {output}: results.csv, plots, gem.safetensors")


def network() -> str:
    """The name of the network."""
    return FLAGS.model or {
        "digits": "digits_cnn",
        "mnist1d": "resnet1d",
    }.get(FLAGS.dataset, "resnet20")


def chosen() -> list[Experiment]:
    """What to run, seed by seed."""
    methods = list(FLAGS.method)
    if FLAGS.sanity and "gem_miner" in methods:
        methods.append(INVERTED)
    made = [
        one
        for method in methods
        for one in experiments.grid(
            [method],
            [float(density) for density in FLAGS.density],
            range(FLAGS.seeds),
            dataset=FLAGS.dataset,
            epochs=FLAGS.finetune_epochs,
            rounds=FLAGS.imp_rounds,
            options=options(method),
            **model(),
        )
    ]
    return sorted(made, key=lambda one: one.seed)


def options(method: str) -> dict[str, Any]:
    """The flags that a method looks at."""
    given: dict[str, Any] = {
        name: getattr(FLAGS, name)
        for name in ("epochs", "learning_rate", "score_penalty", "every")
    }
    if FLAGS.pretrained:
        given["weights"] = "keep"
    if not method.startswith(("gem_miner", "edge_popup")):
        return {}
    return {name: value for name, value in given.items() if value is not None}


def model() -> dict[str, Any]:
    """The network, and the recipe of its finetuning."""
    if not FLAGS.pretrained:
        return {"model": network(), "recipe": "finetune"}
    path = str(Path(FLAGS.pretrained).resolve())
    return {
        "model": experiments.Named(
            f"pretrained {path}", functools.partial(load, path=path)
        ),
        "recipe": experiments.Named(
            f"finetune {network()} on {FLAGS.dataset}",
            functools.partial(finetune, network(), FLAGS.dataset),
        ),
    }


def load(*, input_shape: Any, classes: int, path: str) -> keras.Model:
    """The saved network, with a new last layer for other classes."""
    found = keras.models.load_model(path, compile=False)
    if found.output_shape[-1] == classes:
        return found
    head = keras.layers.Dense(classes, name=f"classifier_of_{classes}")
    return keras.Model(found.inputs, head(found.layers[-2].output))


def finetune(
    name: str, dataset: str, model: Any, dataset_of_run: Any, density: float
) -> recipes.Recipe:
    """The recipe for the network's kind, with what the saved one has."""
    found = recipes.finetune(name, dataset, density)
    return found.adjusted(affine=True, bias=True, weight_decay=0.0)


def print_table(found: list[dict[str, Any]]) -> None:
    """One row a method: test accuracy before and after finetuning."""
    before, after, epochs = (
        {
            (row["method"], row["density"]): row
            for row in experiments.summarize(found, name)
        }
        for name in ("before_accuracy", "test_accuracy", "search_epochs")
    )
    print(
        f"\n  {'method':<24}{'density':>9}{'before':>16}{'after':>16}"
        f"{'search epochs':>15}"
    )
    for key in after:
        cells = [
            f"{rows[key]['mean']:.4f} ±{rows[key]['std']:.4f}"
            if key in rows
            else ""
            for rows in (before, after)
        ]
        searched = f"{epochs[key]['mean']:.1f}" if key in epochs else ""
        print(
            f"  {key[0]:<24}{key[1]:>9.4f}{cells[0]:>16}{cells[1]:>16}"
            f"{searched:>15}"
        )


def check(unit: Experiment, output: Path) -> None:
    """The sanity checks of the last gem, after the search."""
    gem = tt.Ticket.load(output / "gem.safetensors")
    task = Task.prepare(
        unit.how_to_train().adjusted(epochs=FLAGS.finetune_epochs),
        model=unit.chosen("model"),
        dataset=FLAGS.dataset,
        data_dir=FLAGS.data_dir,
        seed=unit.seed,
    )

    def train(model: keras.Model) -> float:
        task.restart()
        task.fit(task.recipe.epochs, validate=False)
        return task.test()["test_accuracy"]

    print("\nSanity checks of the gem: training it and its controls ...")
    report = tt.analysis.sanity_checks(
        gem, task.model, train=train, seeds=range(FLAGS.seeds)
    )
    print(report)
    print(f"  Scores inverted within the search: {INVERTED} in the table.")
    report.plot(output / "sanity.png")


if __name__ == "__main__":
    harness.run(main, "gem")
