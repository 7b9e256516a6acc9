"""The report counts what is there; load_sparse and unpack undo the export."""

import dataclasses
import gzip
import importlib.util
import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests import gallery
from tests.export.conftest import MODELS, close, prune_at_random
from tf_tickets.__main__ import main
from tf_tickets.export import Report
from tf_tickets.timing import Latency

SHAPE = (300, 500)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input(SHAPE[:1]),
            keras.layers.Dense(SHAPE[1], activation="relu", name="wide"),
            keras.layers.Dense(10, name="head"),
        ],
        name="reported",
    )
    return prune_at_random(model, 0.05)


@pytest.fixture(scope="module")
def packed(model, tmp_path_factory):
    where = tmp_path_factory.mktemp("report") / "m"
    return tt.export.saved_model(model, where, format="packed").path


@pytest.fixture(scope="module")
def report(packed, model):
    return tt.export.report(packed, model, batch_sizes=(1, 4), runs=5)


def test_a_report_counts_bytes_like_the_files(report, packed, model):
    kernel = model.layers[0].kernel.numpy()
    row = report.rows[0]
    kept = np.count_nonzero(kernel)
    assert row.key == "reported/wide/kernel" and row.shape == SHAPE
    assert row.density == kept / kernel.size
    assert row.dense_bytes == 4 * kernel.size
    assert row.gzip_bytes == len(gzip.compress(kernel.tobytes(), 6))
    assert 4 * kept < row.floor_bytes < row.packed_bytes < 1.1 * row.floor_bytes
    assert row.flops == 2 * kernel.size and row.method == "dense"
    files = sum(f.stat().st_size for f in packed.rglob("*") if f.is_file())
    assert report.disk_bytes == files
    assert files < report.dense_disk_bytes < 4 * kernel.size + 200_000
    assert report.total("parameters") == model.count_params()
    assert report.differences == {1: 0.0, 4: 0.0}


def test_a_report_is_a_table_json_and_a_plot(report, tmp_path):
    table = str(report)
    assert "reported/wide/kernel" in table and "300x500" in table
    assert "batch 4" in table and "on disk" in table
    fields = json.loads(json.dumps(report.to_json()))
    assert fields["total"]["parameters"] == report.total("parameters")
    assert set(fields["latencies"]["4"]) == {"dense", "export"}
    pytest.importorskip("matplotlib")
    report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("dense", "export", "gain"),
    [
        (Latency(2.0, 1.9, 2.1, 9), Latency(1.0, 0.9, 1.1, 9), "2.00x faster"),
        (Latency(1.0, 0.9, 1.1, 9), Latency(1.0, 0.9, 1.1, 9), "no gain"),
        (Latency(1.2, 1.0, 1.4, 9), Latency(1.0, 0.9, 1.1, 9), "no gain"),
        (
            Latency(1.0, 0.9, 1.1, 9),
            Latency(2.0, 1.9, 2.1, 9),
            "no gain: 2.00x not faster",
        ),
    ],
)
def test_nothing_is_called_a_gain_that_is_none(dense, export, gain):
    latencies = {8: {"dense": dense, "export": export}}
    found = Report(
        Path("p"), "auto", [], 100, dense_disk_bytes=100, latencies=latencies
    )
    assert found.gains() == {"size": "no gain", "batch 8": gain}


@pytest.mark.parametrize("format", ["dense", "packed", "sparse"])
def test_load_sparse_is_the_ticket_of_the_model(
    format, model, all_sparse, tmp_path
):
    path = tt.export.saved_model(model, tmp_path / "m", format=format)
    ticket = tt.export.load_sparse(path)
    expected = tt.Ticket.from_model(model)
    assert ticket.hamming_distance(expected) == 0
    for key, value in expected.weights.items():
        np.testing.assert_array_equal(ticket.weights[key], value)
    again = tt.export.unpack(path)
    # A model that is built from a description has other paths.
    for variable, value in zip(
        again.weights, expected.weights.values(), strict=True
    ):
        np.testing.assert_array_equal(variable, value)
    x = tf.random.normal((3, *SHAPE[:1]))
    np.testing.assert_array_equal(again(x), model(x))


def test_unpack_of_nested_and_subclassed_models(tmp_path):
    model = prune_at_random(MODELS["pairs"](), 0.1)
    path = tt.export.saved_model(model, tmp_path / "pairs")
    x = {k: tf.random.normal((2, 80)) for k in "ab"}
    close(tt.export.unpack(path)(x), model(x))
    model = prune_at_random(MODELS["subclassed"](), 0.1)
    path = tt.export.saved_model(model, tmp_path / "subclassed")
    x = tf.random.normal((2, 80))
    close(tt.export.unpack(path)(x), model(x))
    # A class that does not say how it is made.
    model = prune_at_random(gallery.around(hidden=600), 0.1)
    path = tt.export.saved_model(model, tmp_path / "around")
    with pytest.raises(ValueError, match="give `model`"):
        tt.export.unpack(path)
    other = gallery.around(hidden=600)
    tt.export.unpack(path, other)
    x = tf.random.normal((2, 8))
    close(other(x), model(x))
    with pytest.raises(ValueError, match="do not fit"):
        tt.export.unpack(path, MODELS["pairs"]())


@pytest.mark.parametrize("format", ["packed", "litert"])
def test_an_exports_report_is_in_the_export(format, model, tmp_path):
    if format == "litert":
        pytest.importorskip("ai_edge_litert")
    made = tt.export.write(model, tmp_path / "m", format=format)
    assert os.fspath(made) == str(tmp_path / "m") and not made.latencies
    assert made / "saved_model.pb" == tmp_path / "m" / "saved_model.pb"
    found = tt.export.report(tmp_path / "m")
    assert [dataclasses.replace(r, gzip_bytes=None) for r in found.rows] == [
        *made.rows
    ]
    assert dataclasses.replace(found, rows=made.rows) == made
    measured = tt.export.report(made, model, batch_sizes=(1,), runs=5)
    assert measured.rows == found.rows and measured.differences[1] < 1e-5
    assert measured.dense_disk_bytes > measured.disk_bytes
    assert set(measured.latencies[1]) == {"dense", "export"}


def test_inspect_reads_tickets_models_and_exports(
    packed, model, tmp_path, capsys
):
    tt.Ticket.from_model(model).save(tmp_path / "ticket")
    model.save(tmp_path / "model.keras")
    paths = [packed, tmp_path / "ticket", tmp_path / "model.keras"]
    if importlib.util.find_spec("ai_edge_litert"):
        paths.append(tmp_path / "model.tflite")
        tt.export.write(model, paths[-1], format="litert")
    for path in paths:
        assert main(["inspect", str(path)]) == 0
        assert "wide/kernel" in capsys.readouterr().out
        assert main(["inspect", "--json", str(path)]) == 0
        json.loads(capsys.readouterr().out)
    (tmp_path / "foreign").write_text("foreign")
    for path in (tmp_path, tmp_path / "foreign", tmp_path / "nowhere"):
        assert main(["inspect", str(path)]) == 1
        assert str(path) in capsys.readouterr().err
