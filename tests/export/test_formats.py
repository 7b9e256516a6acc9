"""A format is one entry of a table; the rest is the same for all."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests.export.conftest import prune_at_random
from tf_tickets.__main__ import main
from tf_tickets.export import source as sources
from tf_tickets.selection import named_weights

FORMATS = tt.export.FORMATS


def wide():
    model = keras.Sequential(
        [keras.Input((80,)), keras.layers.Dense(600, name="layer")],
        name="wide",
    )
    return prune_at_random(model, 0.05)


def arrays(source, target, *, double=False):
    """A format of one file; a function is enough."""
    with target.open("wb") as file:
        np.savez_compressed(
            file, **{k: v * (1 + double) for k, v in source.values.items()}
        )


class Folder:
    """A format of a directory, which can be run."""

    def __call__(self, source, target):
        target.mkdir()
        for i, value in enumerate(source.values.values()):
            np.save(target / f"{i}.npy", value)
        row = {"method": "by hand", "reason": "nobody knows how"}
        return tt.export.Written(
            rows={next(iter(source.values)): row}, notes=["made by hand"]
        )

    def load(self, path):
        kernel, bias = (np.load(path / f"{i}.npy") for i in range(2))
        return lambda x: x @ kernel + bias


@pytest.fixture
def strangers(monkeypatch):
    monkeypatch.setitem(FORMATS, "arrays", arrays)
    monkeypatch.setitem(FORMATS, "folder", Folder())


def test_a_function_is_a_format(strangers, tmp_path):
    model = wide()
    path = tmp_path / "new" / "m.npz"
    made = tt.export.write(model, path, format="arrays", double=True)
    assert [p.name for p in tmp_path.rglob("*")] == ["new", "m.npz"]
    assert made.format == "arrays" and made.disk_bytes == path.stat().st_size
    assert made.rows[0].density == pytest.approx(0.05, rel=0.2)
    kernel = model.layers[0].kernel.numpy()
    with np.load(made) as file:
        np.testing.assert_array_equal(file["wide/layer/kernel"], 2 * kernel)
    assert "arrays" in str(made)
    # It holds no manifest, so the path alone says nothing.
    assert tt.export.report(made, model) == made
    with pytest.raises(ValueError, match="not a whole export"):
        tt.export.report(path, model)


def test_a_format_that_can_be_run_is_measured(strangers, tmp_path, capsys):
    model = wide()
    path = tmp_path / "m"
    made = tt.export.write(model, path, format="folder")
    assert made.notes == ["made by hand"]
    report = tt.export.report(path, model, batch_sizes=(1, 4), runs=5)
    assert set(report.latencies) == {1, 4}
    assert max(report.differences.values()) < 1e-5
    assert report.dense_disk_bytes > 0
    assert main(["inspect", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "wide/layer/kernel" in printed and "nobody knows how" in printed


def test_masks_are_enforced_for_every_format(strangers, tmp_path):
    model = wide()
    weights = model.get_weights()
    tt.prune(model, 0.9).apply(model)
    model.set_weights([np.ones_like(w) for w in weights])
    made = tt.export.write(model, tmp_path / "m", format="arrays")
    assert made.rows[0].density == pytest.approx(0.1, abs=1e-4)


@pytest.mark.parametrize("format", [None, 3, "zip", ["dense"], "DENSE"])
def test_an_unknown_format_lists_those_in_the_table(
    format, strangers, tmp_path
):
    with pytest.raises(ValueError, match="one of.*'litert', 'arrays', 'fol"):
        tt.export.write(wide(), tmp_path / "m", format=format)
    with pytest.raises(ValueError, match=r"one of \['dense', .*'auto'\]"):
        tt.export.saved_model(wide(), tmp_path / "m", format=format)
    assert not list(tmp_path.iterdir())


def test_what_saved_model_knows_follows_from_the_table(monkeypatch, tmp_path):
    class Mine(type(FORMATS["packed"])):
        pass

    monkeypatch.setitem(FORMATS, "mine", Mine(packs=True))
    model = wide()
    made = tt.export.saved_model(model, tmp_path / "m", format="mine")
    assert tt.export.load_sparse(made).metadata["export"] == "mine"
    x = tf.random.normal((2, 80))
    loaded = tf.saved_model.load(made)
    np.testing.assert_allclose(loaded.serve(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("writer", "error"),
    [
        (lambda source, target: None, "wrote nothing|did not"),
        (lambda source, target: 1 / 0, "division"),
        (lambda source, target: target.mkdir() or 1 / 0, "division"),
        (lambda source, target, option: None, "option"),
    ],
)
def test_a_writer_that_fails_leaves_nothing(
    writer, error, monkeypatch, tmp_path
):
    monkeypatch.setitem(FORMATS, "bad", writer)
    with pytest.raises(Exception, match=error):
        tt.export.write(wide(), tmp_path / "new" / "m", format="bad")
    assert not list(tmp_path.iterdir())


def callers(function, name):
    """Modules that called the function ``name`` while ``function`` ran."""
    found = []

    def profile(frame, event, _):
        if event == "call" and frame.f_code.co_name == name:
            found.append(frame.f_back.f_globals["__name__"])

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("format", ["dense", "packed", "auto"])
def test_an_export_asks_for_the_weights_once(
    format, all_sparse, tmp_path, monkeypatch
):
    model = wide()
    read = []
    view_of = sources.view_of
    monkeypatch.setattr(
        sources, "view_of", lambda v: read.append(v.path) or view_of(v)
    )
    asked = callers(
        lambda: tt.export.saved_model(model, tmp_path / "m", format=format),
        named_weights.__name__,
    )
    # The others: masks that are enforced, and the count of operations.
    exports = [name for name in asked if ".export" in name]
    assert exports == ["tf_tickets.export.source"]
    assert len(asked) <= 3
    assert read == [v.path for v in model.weights]
