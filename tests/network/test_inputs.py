"""What enters a kernel, times the kernel, is what its layer makes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_tickets as tt
from tests import gallery
from tests.conftest import only_read
from tf_tickets.network import kinds
from tf_tickets.network.inputs import sites_of, watched

LINE, IMAGE, BLOCK = (9, 4), (7, 6, 4), (4, 5, 4, 2)
SAMPLES = {
    "dense": (layers.Dense(3), (4,)),
    "dense on images": (layers.Dense(3), IMAGE),
    "einsum, heads": (layers.EinsumDense("abc,cde->abde", (9, 2, 3)), LINE),
    "einsum, dots": (layers.EinsumDense("...c,cd->...d", 3), IMAGE),
    "einsum, two summed": (layers.EinsumDense("abc,bcd->ad", 5), LINE),
    "einsum, one without kernel": (layers.EinsumDense("abc,cd->ad", 5), LINE),
    "einsum, of each": (layers.EinsumDense("abc,bcd->abd", (9, 3)), LINE),
    "conv 1": (layers.Conv1D(6, 3, dilation_rate=2), LINE),
    "conv causal": (layers.Conv1D(6, 3, padding="causal"), LINE),
    "conv 2": (layers.Conv2D(6, (3, 2), strides=2, padding="same"), IMAGE),
    "conv grouped": (layers.Conv2D(6, 3, groups=2), IMAGE),
    "conv 3": (layers.Conv3D(3, 2, padding="same"), BLOCK),
    "transposed 1": (layers.Conv1DTranspose(3, 3, strides=2), LINE),
    "transposed 2": (
        layers.Conv2DTranspose(3, 3, strides=2, padding="same"),
        IMAGE,
    ),
    "transposed, padded": (
        layers.Conv2DTranspose(3, 3, strides=2, output_padding=1),
        IMAGE,
    ),
    "depthwise 1": (layers.DepthwiseConv1D(3, depth_multiplier=2), LINE),
    "depthwise 2": (
        layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2),
        IMAGE,
    ),
}


def product(path, site, x):
    """Rows × matrix, group by group, in plain NumPy."""
    rows = site.rows(x).numpy()
    kernel = site.kernel.numpy()
    layout = tt.pruning.patterns.Layout(
        None, {path: kinds.output_axes(site.layer, site.kernel)}
    )
    matrix = layout.matrix(path, kernel)
    parts = np.split(matrix, rows.shape[1], axis=1)
    made = [rows[:, g] @ part for g, part in enumerate(parts)]
    return np.concatenate(made, axis=1)


@pytest.mark.parametrize("name", SAMPLES)
def test_rows_times_the_matrix_are_the_outputs(name):
    layer, shape = SAMPLES[name]
    model = keras.Sequential([keras.Input(shape), layer])
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    [(path, site)] = sites_of(
        model, tt.prunable_weights(model), "a test"
    ).items()
    made = product(path, site, x)
    expected = np.asarray(layer(x) - (0 if layer.bias is None else layer.bias))
    np.testing.assert_allclose(
        made, expected.reshape(-1, made.shape[1]), atol=1e-5
    )


def test_channels_may_come_first():
    last = layers.Conv2D(5, 3, strides=2)
    first = layers.Conv2D(5, 3, strides=2, data_format="channels_first")
    x = np.random.default_rng(0).normal(size=(2, *IMAGE)).astype("float32")
    last.build(x.shape)
    turned = x.transpose(0, 3, 1, 2)
    first.build(turned.shape)
    for layer in (last, first):
        assert layer.kernel.shape == (3, 3, 4, 5)
    np.testing.assert_array_equal(
        kinds.kind_of(last).rows(last, last.kernel, x),
        kinds.kind_of(first).rows(first, first.kernel, turned),
    )


def test_both_kernels_of_a_separable_convolution():
    layer = layers.SeparableConv2D(
        5, 3, depth_multiplier=2, padding="same", use_bias=False
    )
    model = keras.Sequential([keras.Input(IMAGE), layer])
    x = np.random.default_rng(0).normal(size=(2, *IMAGE)).astype("float32")
    first, second = sites_of(
        model, tt.prunable_weights(model), "a test"
    ).items()
    between = product(*first, x)
    np.testing.assert_allclose(
        second[1].rows(x).numpy()[:, 0], between, atol=1e-5
    )
    np.testing.assert_allclose(
        product(*second, x), np.asarray(layer(x)).reshape(-1, 5), atol=1e-5
    )


class Named(layers.Dense):
    """Another name, the same call."""


class Doubling(layers.Dense):
    def call(self, x):
        return super().call(2 * x)


class Standardized(layers.Conv2D):
    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel / keras.ops.sum(kernel))


def test_a_subclass_is_known_as_long_as_it_calls_what_its_base_does():
    model = keras.Sequential([keras.Input((4,)), Named(3)])
    assert len(sites_of(model, tt.prunable_weights(model), "a test")) == 1
    model = keras.Sequential([keras.Input((4,)), Doubling(3)])
    with pytest.raises(ValueError, match=r"A test needs .*a Doubling multi"):
        sites_of(model, tt.prunable_weights(model), "A test")
    model = keras.Sequential([keras.Input(IMAGE), Standardized(3, 3)])
    with pytest.raises(ValueError, match="convolves in a way of its own"):
        tt.prune(model, 0.5, criterion="wanda", data=np.ones((1, *IMAGE)))


@pytest.mark.parametrize(
    ("equation", "shape", "reason"),
    [
        ("abc,cd->abd", (9, 6), None),
        ("abc,dcb->abd", (9, 3), "among those that the kernel makes"),
    ],
)
def test_an_equation_is_covered_or_refused(equation, shape, reason):
    layer = layers.EinsumDense(equation, shape)
    model = keras.Sequential([keras.Input(LINE), layer])
    data = np.ones((1, *LINE), "float32")
    if reason is None:
        assert tt.pruning.reconstruct(model, 0.5, data=data).kept == 12
    else:
        with pytest.raises(ValueError, match=reason):
            tt.pruning.reconstruct(model, 0.5, data=data)


def test_a_layer_of_ones_own_says_what_it_multiplies(monkeypatch):
    model = gallery.custom()
    x = gallery.inputs(model)
    with pytest.raises(ValueError, match=r"mixing: no rule .* Projection"):
        tt.prune(model, 0.5, criterion="wanda", filters="mixing", data=x)
    monkeypatch.setattr(kinds, "_KINDS", dict(kinds.registered()))
    kinds.register(
        gallery.Projection,
        rows=lambda layer, kernel, x: tf.reshape(x, (-1, 1, kernel.shape[0])),
    )
    ticket = tt.pruning.reconstruct(model, 0.5, filters="mixing", data=x)
    assert ticket.kept == 192


def test_calls_are_seen_wherever_a_layer_hides():
    model = gallery.subclassed_attention()
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
    seen = []
    every = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, layers.Dense | layers.EinsumDense)
    ]
    before = model(x).numpy()
    with (
        only_read(model),
        watched(
            [*every, *every], lambda layer, x: seen.append((layer.name, x))
        ),
    ):
        np.testing.assert_array_equal(model(x), before)
    names = [name for name, _ in seen]
    assert names == [
        "stem", "block0", "block1", "block0", "query", "key", "value",
        "attention_output", "head",
    ]  # fmt: skip
    np.testing.assert_array_equal(seen[0][1], x)
