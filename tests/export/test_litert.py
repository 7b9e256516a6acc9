"""LiteRT files hold the zeros as zeros and compute what the model computes."""

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests import gallery
from tests.export.conftest import MODELS, prune_at_random
from tf_tickets.export.litert import sparse_inference_policy
from tf_tickets.export.source import Source

pytest.importorskip("ai_edge_litert")


def mobile(size=33, stem="same", pool=True):
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
    ("model", "density", "reason"),
    [
        (lambda: mobile(), 0.2, ""),
        (lambda: mobile(stem="valid", size=32), 0.2, ""),
        (lambda: mobile(size=32), 0.2, "even number of pixels"),
        (lambda: mobile(), 0.5, "it takes two thirds"),
        (lambda: mobile(pool=False), 0.2, "no global average pooling"),
        (
            lambda: keras.Sequential(
                [keras.Input((8, 8, 4)), keras.layers.Conv2D(8, 1)]
            ),
            0.2,
            "first convolution is not 3x3",
        ),
    ],
)
def test_the_policy_says_why_a_layer_is_not_computed_sparsely(
    model, density, reason
):
    model = prune_at_random(model(), density)
    rows = sparse_inference_policy(Source.of(model))
    kernels = [key for key in rows if key.endswith("kernel")]
    points = [k for k in kernels if "point" in k or len(kernels) == 1]
    assert points
    for key in points:
        assert rows[key]["method"] == ("dense" if reason else "XNNPACK")
        assert reason in rows[key]["reason"]
    stem = [row["reason"] for key, row in rows.items() if "stem" in key]
    assert all("neither a dense layer nor a 1x1" in text for text in stem)


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
