"""LiteRT files hold the zeros as zeros and compute what the model computes."""

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests import gallery
from tests.export.conftest import MODELS, prune_at_random

pytest.importorskip("ai_edge_litert")


def mobile(size=32, stem="valid", pool=True):
    layers = keras.layers
    x = inputs = keras.Input((size, size, 3))
    if stem == "valid":
        x = layers.ZeroPadding2D(1)(x)
    x = layers.Conv2D(16, 3, strides=2, padding=stem, name="stem")(x)
    for i in range(2):
        x = layers.ReLU(6.0)(layers.DepthwiseConv2D(3, padding="same")(x))
        x = layers.ReLU(6.0)(layers.Conv2D(64, 1, name=f"point{i}")(x))
    x = layers.GlobalAveragePooling2D()(x) if pool else layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(10, name="head")(x), name="mobile")


def test_a_sparse_file_is_smaller_and_equal(tmp_path):
    model = mobile()
    ticket = tt.prune(model, 0.9, filters=tt.export.prunable_for_xnnpack)
    assert [key.split("/")[0] for key in ticket.masks] == ["point0", "point1"]
    ticket.apply(model)
    path = tmp_path / "m.tflite"
    found = tt.export.litert(model, path)
    assert found.disk_bytes == path.stat().st_size < found.dense_disk_bytes
    assert found.sparse_tensors == 2 and found.differences[1] < 1e-5
    assert {r.key for r in found.rows if r.method == "XNNPACK"} == {
        *ticket.masks
    }
    assert "smaller" in found.gains()["size"] and "point0" in str(found)
    again = tt.export.litert(model, tmp_path / "d.tflite", sparse=False)
    # Its manifest gives no reasons, which take some bytes.
    assert again.disk_bytes <= found.dense_disk_bytes + 100
    assert not again.sparse_tensors
    with pytest.raises(FileExistsError):
        tt.export.litert(model, path, overwrite=False)


def test_several_inputs_and_outputs(tmp_path):
    model = prune_at_random(MODELS["pairs"](), 0.1)
    found = tt.export.litert(model, tmp_path / "m.tflite", batch_size=3)
    assert found.sparse_tensors >= 1 and found.differences[3] < 1e-5


@pytest.mark.parametrize(
    ("make", "density", "reason"),
    [
        (mobile, 0.2, ""),
        # The converter makes `same` of a symmetric padding on an odd size.
        (lambda: mobile(size=33), 0.2, ""),
        (lambda: mobile(size=33, stem="same"), 0.2, ""),
        (lambda: mobile(stem="same"), 0.2, "pads as `same` does"),
        (mobile, 0.5, "it takes more than two thirds"),
        (lambda: mobile(pool=False), 0.2, "RESHAPE 'flatten"),
    ],
)
def test_the_report_says_why_a_layer_is_not_computed_sparsely(
    make, density, reason, tmp_path
):
    model = prune_at_random(make(), density)
    made = tt.export.write(model, tmp_path / "m.tflite", format="litert")
    rows = {row.key: row for row in made.rows if row.key.endswith("kernel")}
    points = [row for key, row in rows.items() if "point" in key]
    assert len(points) == 2
    for row in points:
        assert row.method == ("dense" if reason else "XNNPACK"), row
        assert reason in row.reason
    stem = next(row for key, row in rows.items() if "stem" in key)
    assert "neither a dense layer nor a 1x1" in stem.reason
    verdict = tt.export.sparse_inference(made)
    assert verdict.sparse == (not reason)
    assert f"XNNPACK: {verdict.clusters[0]}" in made.notes


def test_float16_is_half_of_the_file_and_just_as_sparse(tmp_path):
    model = prune_at_random(mobile(), 0.2)
    whole = tt.export.write(model, tmp_path / "m.tflite", format="litert")
    half = tt.export.write(
        model, tmp_path / "h.tflite", format="litert", values="float16"
    )
    assert half.disk_bytes < whole.disk_bytes - 1000
    assert tt.export.sparse_inference(half).sparse
    assert {r.key for r in half.rows if r.method == "XNNPACK"} == {
        r.key for r in whole.rows if r.method == "XNNPACK"
    }


def test_int8_keeps_the_zeros_and_wants_data(tmp_path):
    from tf_tickets.export.flatbuffer import File

    model = prune_at_random(mobile(), 0.2)
    x = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype("float32")
    path = tmp_path / "m.tflite"
    made = tt.export.write(model, path, format="litert", values="int8", data=x)
    kept = [
        one.kept[:, 0, 0]
        for one in File.of(path.read_bytes()).constants.values()
        if one.type == "INT8" and one.shape[1:3] == (1, 1)
    ]
    points = [model.get_layer(f"point{i}").kernel.numpy() for i in range(2)]
    for point in points:
        # A small weight may become the integer zero; no zero becomes another.
        assert any(
            one.T.shape == point.shape[2:] and not one.T[point[0, 0] == 0].any()
            for one in kept
        )
    assert not tt.export.sparse_inference(path).sparse
    assert any("outputs differ" in note for note in made.notes)
    with pytest.raises(ValueError, match="int8 needs `data`"):
        tt.export.litert(model, path, values="int8")
    with pytest.raises(ValueError, match="`data` must be examples"):
        tt.export.litert(model, path, values="int8", data=x[:, :30])
    with pytest.raises(ValueError, match="`values` must be"):
        tt.export.litert(model, path, values="int4")


@pytest.mark.parametrize(
    ("density", "block", "expected"),
    [(0.02, 1, True), (0.1, 1, False), (0.1, 4, True), (0.4, 4, True)],
)
def test_the_policy_agrees_with_the_converter_on_dense_layers(
    density, block, expected, tmp_path
):
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((200,)), keras.layers.Dense(128)])
    kernel = model.layers[0].kernel
    mask = np.repeat(rng.random((200 // block, 128)) < density, block, 0)
    kernel.assign(np.where(mask, kernel.numpy(), 0))
    found = tt.export.litert(model, tmp_path / "m.tflite")
    assert found.sparse_tensors == 1 and found.differences[1] < 1e-5
    assert (found.rows[0].method == "LiteRT") == expected
    # A kernel that is made dense before use has an operation for that.
    assert (b"DENSIFY" in _operations(tmp_path / "m.tflite")) != expected


def test_a_file_that_computes_something_else_is_not_written(tmp_path):
    # The interpreter gets sparse kernels of 202 inputs wrong.
    model = keras.Sequential([keras.Input((202,)), keras.layers.Dense(128)])
    prune_at_random(model, 0.02)
    found = tt.export.litert(model, tmp_path / "m.tflite")
    assert found.differences[1] < 1e-5
    if not found.sparse_tensors:
        assert "stored densely" in str(found)
        assert found.gains()["size"] == "no gain"


def _operations(path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    # No public name lists the operations of a file.
    names = [one["op_name"] for one in interpreter._get_ops_details()]
    return " ".join(names).encode()


def test_bad_options_are_one_error(tmp_path):
    model = mobile()
    with pytest.raises(ValueError, match="`batch_size` must be"):
        tt.export.litert(model, tmp_path / "m", batch_size=0)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="has one function"):
        tt.export.write(
            model, tmp_path / "m", format="litert", endpoints={"same": model}
        )
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_one_clear_error(tmp_path):
    model = prune_at_random(mobile(), 0.2)
    made = tt.export.write(model, tmp_path / "m.tflite", format="litert")
    whole = made.path.read_bytes()
    for bad in (whole[:-30], whole[: len(whole) // 2], b"", b"TFL3" * 100):
        made.path.write_bytes(bad)
        with pytest.raises(ValueError, match="m.tflite.*not a whole export"):
            tt.export.report(tmp_path / "m.tflite")


@pytest.mark.parametrize("make", [gallery.int8, gallery.int8_partly])
def test_a_model_in_int8_is_refused_in_one_sentence(make, tmp_path):
    with pytest.raises(ValueError, match=r"from before .model.quantize."):
        tt.export.litert(make(), tmp_path / "m.tflite")
    assert not any(tmp_path.iterdir())
