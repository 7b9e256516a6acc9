"""The algebra against the layers themselves."""

import keras
import numpy as np
import pytest

from tf_tickets.network.folding import (
    fold_normalization,
    fold_normalization_before,
)


def randomize(*layers):
    rng = np.random.default_rng(0)
    for layer in layers:
        for variable in layer.variables:
            variable.assign(rng.uniform(0.5, 2.0, variable.shape))
    return rng


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(
    "layer, shape, axes",
    [
        (lambda: keras.layers.Dense(4), (5,), (-1,)),
        (lambda: keras.layers.Conv2D(4, 3), (8, 8, 2), (-1,)),
        (
            lambda: keras.layers.DepthwiseConv2D(3, depth_multiplier=2),
            (8, 8, 2),
            (-2, -1),
        ),
        (lambda: keras.layers.Conv2DTranspose(4, 3), (8, 8, 2), (-2,)),
    ],
)
def test_a_folded_normalization_is_the_layer_and_it(
    layer, shape, axes, scale, center
):
    first = layer()
    norm = keras.layers.BatchNormalization(scale=scale, center=center)
    model = keras.Sequential([keras.Input(shape), first, norm])
    rng = randomize(first, norm)
    x = rng.normal(size=(3, *shape)).astype("float32")
    expected = model(x).numpy()
    kernel, bias = fold_normalization(
        first.kernel.numpy(), first.bias.numpy(), norm, axes
    )
    first.kernel.assign(kernel)
    first.bias.assign(bias)
    np.testing.assert_allclose(first(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layer, shape, axes",
    [
        (lambda: keras.layers.Dense(4), (5,), (-2, -1)),
        (lambda: keras.layers.Conv2D(4, 3), (8, 8, 2), (-2, -1)),
        (lambda: keras.layers.Conv2D(6, 3, groups=2), (8, 8, 4), (-2, -1)),
        (
            lambda: keras.layers.DepthwiseConv2D(3, depth_multiplier=2),
            (8, 8, 2),
            (-2, -2),
        ),
        (lambda: keras.layers.Conv2DTranspose(4, 1), (8, 8, 2), (-1, -2)),
    ],
)
def test_a_layer_takes_over_the_normalization_before_it(layer, shape, axes):
    norm, last = keras.layers.BatchNormalization(), layer()
    model = keras.Sequential([keras.Input(shape), norm, last])
    rng = randomize(norm, last)
    x = rng.normal(size=(3, *shape)).astype("float32")
    expected = model(x).numpy()
    kernel, bias = fold_normalization_before(
        last.kernel.numpy(),
        last.bias.numpy(),
        norm,
        axes,
        getattr(last, "groups", 1),
    )
    last.kernel.assign(kernel)
    last.bias.assign(bias)
    np.testing.assert_allclose(last(x), expected, rtol=1e-5, atol=1e-5)
