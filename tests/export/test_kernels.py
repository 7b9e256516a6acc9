"""Every sparse method computes what the layer itself computes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.export.conftest import close
from tf_tickets.export.choosing import _prepared
from tf_tickets.export.kernels import methods_for, outputs_of
from tf_tickets.network.weighted import contracted_axes

CONVOLUTIONS = [
    dict(kernel_size=3, padding="same"),
    dict(kernel_size=3, padding="valid"),
    dict(kernel_size=(2, 5), padding="same"),
    dict(kernel_size=(4, 1), padding="valid"),
    dict(kernel_size=3, padding="same", strides=2),
    dict(kernel_size=(3, 2), padding="valid", strides=(1, 3)),
    dict(kernel_size=3, padding="same", dilation_rate=2),
    dict(kernel_size=1),
    dict(kernel_size=1, strides=(2, 3)),
]


def sparse(layer, shape, density=0.1, gone=False):
    """The layer, built, with few weights; some channels gone."""
    rng = np.random.default_rng(0)
    layer.build((None, *shape))
    kernel = rng.normal(size=layer.kernel.shape)
    kernel *= rng.random(kernel.shape) < density
    if gone:
        kernel[..., 1::3, :] = 0
        kernel[..., ::2] = 0
    layer.kernel.assign(kernel)
    if layer.bias is not None:
        layer.bias.assign(rng.normal(size=layer.bias.shape))
    return layer


def check(layer, shape, expected):
    kernel = layer.kernel.numpy()
    methods = methods_for(layer, kernel)
    # A channel may be gone by chance.
    assert set(expected) <= set(methods) <= {*expected, "gather"}
    for batch in (1, 3, 40):
        rng = np.random.default_rng(batch)
        x = tf.constant(rng.normal(size=(batch, *shape)), tf.float32)
        for method in methods.values():
            call = outputs_of(layer, method, _prepared(method, kernel))
            free = tf.TensorSpec((None, *shape), tf.float32)
            served = tf.function(call, input_signature=[free], autograph=False)
            close(served(x).numpy(), layer(x).numpy())
            assert served.get_concrete_function().output_shapes.as_list() == [
                None,
                *layer.compute_output_shape((None, *shape))[1:],
            ]


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_convolutions_equal_the_layer(options):
    layer = keras.layers.Conv2D(6, activation="relu", **options)
    expected = {"patches"}
    if options["kernel_size"] == 1:
        expected = {"csr"}
    elif set(layer.strides) == set(layer.dilation_rate) == {1}:
        expected = {"patches", "shifts"}
    check(sparse(layer, (9, 7, 5)), (9, 7, 5), expected)


def test_a_window_place_that_no_filter_reads():
    layer = sparse(keras.layers.Conv2D(6, 3), (8, 8, 5))
    kernel = layer.kernel.numpy()
    kernel[0] = kernel[2, 2] = 0
    layer.kernel.assign(kernel)
    check(layer, (8, 8, 5), {"patches", "shifts"})


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (keras.layers.Dense(30, activation="tanh"), (20,), {"csr"}),
        (keras.layers.Dense(30, use_bias=False), (4, 20), {"csr"}),
        (keras.layers.Conv1D(30, 1, strides=2), (8, 20), {"csr"}),
        (
            keras.layers.EinsumDense("abc,cd->abd", (4, 30), bias_axes="d"),
            (4, 20),
            {"csr"},
        ),
        (
            keras.layers.EinsumDense("abc,cde->abde", (4, 5, 6)),
            (4, 20),
            {"csr"},
        ),
        (keras.layers.EinsumDense("abcd,cde->abe", (4, 9)), (4, 5, 6), {"csr"}),
    ],
    ids=["dense", "sequence", "conv1d", "einsum", "heads", "merge"],
)
def test_matrix_products_equal_the_layer(layer, shape, expected):
    check(sparse(layer, shape), shape, expected)


@pytest.mark.parametrize(
    ("layer", "shape", "others"),
    [
        (keras.layers.Dense(30), (20,), {"csr"}),
        (
            keras.layers.Conv2D(6, 3, padding="same"),
            (6, 6, 5),
            {"patches", "shifts"},
        ),
        (keras.layers.Conv1D(6, 3, padding="same"), (9, 5), set()),
        (keras.layers.Conv2D(6, 1, strides=2), (6, 6, 5), {"csr"}),
    ],
    ids=["dense", "conv2d", "conv1d", "conv1x1"],
)
def test_gathering_equals_the_layer_where_channels_are_gone(
    layer, shape, others
):
    check(sparse(layer, shape, 0.5, gone=True), shape, {"gather", *others})


@pytest.mark.parametrize(
    "equation",
    ["abc,dc->abd", "abc,cd->adb", "ab,bc->a", "abc,bcd->abd", "ab,ab->ab"],
)
def test_einsums_that_are_no_matrix_product_stay_dense(equation):
    assert contracted_axes(equation, 2 if equation[-5] != "d" else 3) is None


def test_layers_that_compute_something_else_stay_dense():
    class Doubled(keras.layers.Dense):
        def call(self, inputs, training=None):
            return 2 * super().call(inputs)

    others = [
        Doubled(30),
        keras.layers.Dense(30, dtype="mixed_bfloat16"),
        keras.layers.Dense(30, lora_rank=2),
        keras.layers.Conv2D(8, 3, groups=2),
        keras.layers.Conv1D(8, 3, padding="causal"),
        keras.layers.Conv2D(8, 3, data_format="channels_first"),
    ]
    for layer in others:
        shape = (8,) * (1 + len(getattr(layer, "kernel_size", ())))
        layer.build((None, *shape))
        kernel = np.ones(layer.kernel.shape)
        kernel[..., :3] = 0
        assert methods_for(layer, kernel) == {}
    layer = keras.layers.Dense(30)
    layer.build((None, 20))
    assert methods_for(layer, np.zeros((20, 30))) == {}
