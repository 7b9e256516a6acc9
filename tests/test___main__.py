"""The command line, as a person calls it."""

import importlib
import json
import sys

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests.gallery import mlp
from tf_tickets.__main__ import main


@pytest.fixture
def saved(tmp_path):
    model = mlp()
    model.save(tmp_path / "model.keras")
    return model, tmp_path / "model.keras"


def said(capsys, *arguments):
    assert main([*map(str, arguments)]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_a_saved_model_is_pruned_as_the_library_prunes_it(saved, capsys):
    model, path = saved
    out, ticket = path.with_name("pruned.keras"), path.with_name("ticket")
    text = said(
        capsys, "prune", path, "--sparsity=0.75", "--scope=erk",
        f"--ticket={ticket}", "-o", out,
    )  # fmt: skip
    assert "sparsity 0.7500" in text
    expected = tt.prune(model, 0.75, scope="erk")
    expected.apply(model)
    found = keras.models.load_model(out, compile=False)
    for one, other in zip(
        model.get_weights(), found.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert expected.hamming_distance(tt.Ticket.load(ticket)) == 0
    fields = json.loads(
        said(capsys, "prune", "--json", path, "--pattern=2:4", "-o", out)
    )
    assert fields["kept"] * 2 == fields["parameters"]


def test_tickets_and_models_are_compared(saved, capsys):
    model, path = saved
    one, other = (tt.prune(model, s) for s in (0.5, 0.75))
    one.save(path.with_name("one"))
    other.apply(model)
    model.save(path.with_name("other.keras"))
    pair = path.with_name("one"), path.with_name("other.keras")
    found = json.loads(said(capsys, "compare", "--json", *pair))
    differing = sum(
        int((one.masks[key] != mask).sum()) for key, mask in other.masks.items()
    )
    assert found["distance"] == differing / one.size
    assert found["both"] == found["other"] == other.kept  # nested
    assert [row["one"] for row in found["masks"].values()] == [
        int(mask.sum()) for mask in one.masks.values()
    ]
    text = said(capsys, "compare", *pair)
    assert f"{one.kept:,}" in text.splitlines()[-1]


def test_channel_tickets_are_compared_with_their_like(saved, tmp_path, capsys):
    model, _ = saved
    for name, mask in (("one", [1, 0, 1, 0]), ("other", [1, 1, 1, 0])):
        tt.structured.ChannelTicket({"bn/gamma": mask}).save(tmp_path / name)
    text = said(capsys, "compare", tmp_path / "one", tmp_path / "other")
    assert text.splitlines()[-1].endswith("0.2500")
    tt.prune(model, 0.5).save(tmp_path / "weights")
    assert main(["compare", *(str(tmp_path / n) for n in ("one", "weights"))])
    assert "ChannelTicket" in capsys.readouterr().err


def test_a_model_is_exported(saved, capsys):
    model, path = saved
    tt.prune(model, 0.9).apply(model)
    model.save(path)
    out = path.with_name("served")
    fields = json.loads(
        said(
            capsys, "export", "--json", path, "--format=packed", "-o", out,
            "--measure",
        )
    )  # fmt: skip
    assert fields["format"] == "packed" and "1" in fields["latencies"]
    weights = tt.export.load_sparse(out)
    assert weights and said(capsys, "inspect", out)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["prune", "MODEL", "--sparsity=0.5", "-o", "OUT.h5"], ".keras"),
        (["prune", "MODEL", "--sparsity=2", "-o", "OUT.keras"], "sparsity"),
        (["prune", "MODEL", "--sparsity=0.5", "--criterion=snip", "-o",
          "OUT.keras"], "data"),
        (["prune", "NOWHERE.keras", "--sparsity=0.5", "-o", "OUT.keras"],
         "NOWHERE"),
        (["compare", "MODEL", "NOWHERE"], "NOWHERE"),
        (["inspect", "MODEL", "--import=no_such_module"], "no_such_module"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(
    arguments, says, saved, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    arguments = ["model.keras" if a == "MODEL" else a for a in arguments]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not list(tmp_path.glob("OUT*"))


def test_layers_of_ones_own_are_imported_first(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "import keras\n"
        "@keras.saving.register_keras_serializable('mine')\n"
        "class Mine(keras.layers.Dense):\n"
        "    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    known = keras.saving.get_custom_objects()
    layer = importlib.import_module("mine").Mine(8)
    keras.Sequential([keras.Input((4,)), layer]).save("m.keras")

    def as_in_another_process():
        known.pop("mine>Mine", None)
        sys.modules.pop("mine", None)

    as_in_another_process()
    command = ["prune", "m.keras", "--sparsity=0.5", "-o", "out.keras"]
    assert main(command) == 1
    assert "--import" in capsys.readouterr().err
    assert main([*command, "--import=mine"]) == 0
    as_in_another_process()


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for command in ("inspect", "compare", "prune", "export"):
        assert f"\n    {command} " in text
