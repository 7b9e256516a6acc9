"""What is read from a LiteRT file is what the model holds."""

import itertools

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests.export.conftest import prune_at_random

pytest.importorskip("ai_edge_litert")

from tf_tickets.export.flatbuffer import (
    File,
    same_padding,
    with_explicit_padding,
)


def converted(model, path):
    tt.export.write(model, path, format="litert")
    return path.read_bytes()


def outputs_of(content, x):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


@pytest.mark.parametrize("block", [1, 4])
def test_zeros_of_the_file_are_those_of_the_model(block, tmp_path):
    rng = np.random.default_rng(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 8)),
            keras.layers.Conv2D(24, 1),
            keras.layers.Flatten(),
            keras.layers.Dense(32),
        ]
    )
    convolution, dense = model.layers[0].kernel, model.layers[2].kernel
    convolution.assign(
        convolution.numpy() * (rng.random(convolution.shape) < 0.2)
    )
    rows = rng.random((dense.shape[0] // block, 32)) < 0.1
    dense.assign(dense.numpy() * np.repeat(rows, block, axis=0))
    file = File.of(converted(model, tmp_path / "m.tflite"))
    read = {
        one.kind: file.constants[one.inputs[1]]
        for one in file.operations
        if one.kind in ("CONV_2D", "FULLY_CONNECTED")
    }
    kept = read["CONV_2D"].kept[:, 0, 0].T
    np.testing.assert_array_equal(kept, convolution.numpy()[0, 0] != 0)
    kept = read["FULLY_CONNECTED"].kept.T
    np.testing.assert_array_equal(kept, dense.numpy() != 0)
    assert all(one.sparse for one in read.values())
    # Blocks of four are what LiteRT computes with as they are stored.
    assert read["FULLY_CONNECTED"].densified == (block == 1)


@pytest.mark.parametrize("window", [3, 5])
def test_a_padding_that_the_converter_folded_comes_back(window, tmp_path):
    model = keras.Sequential(
        [
            keras.Input((9, 11, 4)),
            keras.layers.DepthwiseConv2D(window, strides=2, padding="same"),
        ]
    )
    before = (tmp_path / "m.tflite").with_suffix(".raw")
    content = converted(model, before)
    from tf_tickets.export.litert import converted as raw
    from tf_tickets.export.source import Source, sample

    source = Source.of(model)
    plain = raw(source, [sample(source.endpoints["serve"][1], 1)])
    kinds = [one.kind for one in File.of(plain).operations]
    assert kinds == ["DEPTHWISE_CONV_2D"]
    again = with_explicit_padding(plain)
    file = File.of(again)
    assert [one.kind for one in file.operations] == ["PAD", *kinds]
    # What `litert` writes has it, and it is there once only.
    assert with_explicit_padding(again) is again
    assert len(File.of(content).operations) == 2
    x = np.random.default_rng(0).normal(size=(1, 9, 11, 4)).astype("float32")
    np.testing.assert_allclose(
        outputs_of(again, x), outputs_of(plain, x), atol=1e-6
    )


def test_an_even_size_is_left_alone(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, strides=2, padding="same"),
        ]
    )
    content = converted(model, tmp_path / "m.tflite")
    assert with_explicit_padding(content) is content


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding_is_that_of_keras(stride):
    rng = np.random.default_rng(0)
    for size, window in itertools.product((4, 5, 9, 10), (1, 2, 3, 5)):
        kernel = rng.normal(size=(window, window, 1, 1))
        x = rng.normal(size=(1, size, size, 1))
        sides = same_padding(size, window, stride)
        padded = np.pad(x, [(0, 0), sides, sides, (0, 0)])
        np.testing.assert_allclose(
            keras.ops.conv(padded, kernel, stride, "valid"),
            keras.ops.conv(x, kernel, stride, "same"),
            atol=1e-6,
        )


def test_no_litert_file_is_one_clear_error(tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="says so in its first bytes"):
        tt.export.sparse_inference(path)


def test_a_file_from_elsewhere_is_read(tmp_path):
    model = keras.Sequential(
        [keras.Input((4, 4, 2)), keras.layers.Conv2D(8, 1, name="point")]
    )
    prune_at_random(model, 0.5)
    content = converted(model, tmp_path / "m.tflite")
    found = tt.export.sparse_inference(tmp_path / "m.tflite")
    (cluster,) = found.clusters
    assert len(cluster.convolutions) == 1 and not cluster.sparse
    assert File.of(content).shapes[0] == (1, 4, 4, 2)
