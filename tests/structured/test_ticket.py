"""A ticket of channels masks what its keys name."""

import keras
import numpy as np
from keras import layers

from tf_tickets.selection import named_weights
from tf_tickets.structured import ChannelTicket
from tf_tickets.structured.ticket import channel_axis


class TransposeDense(layers.Dense):
    """Transposed by name only."""


def test_the_axis_of_channels_is_that_of_the_layers_class():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            layers.Conv2DTranspose(4, 3, name="up"),
            layers.DepthwiseConv2D(3, name="each"),
            layers.Conv2D(5, 3, name="conv"),
            TransposeDense(4, name="mine"),
            layers.BatchNormalization(name="norm"),
        ]
    )
    axes = {
        layer.name: channel_axis(model, layer.kernel)
        for layer in model.layers
        if hasattr(layer, "kernel")
    }
    assert axes == {"up": 2, "each": 2, "conv": 3, "mine": 1}
    assert channel_axis(model, model.get_layer("norm").gamma) == 0


def test_a_ticket_holds_the_filters_of_a_transposed_convolution_at_zero():
    model = keras.Sequential(
        [keras.Input((6, 6, 3)), layers.Conv2DTranspose(4, 3, name="up")]
    )
    up = model.get_layer("up")
    up.bias.assign(np.ones(4))
    mask = np.array([1, 0, 1, 0], bool)
    ChannelTicket({up.kernel.path: mask}).apply(model, weights="keep")
    kernel = named_weights(model)[up.kernel.path].numpy()
    np.testing.assert_array_equal((kernel != 0).any((0, 1, 3)), mask)
    np.testing.assert_array_equal(up.bias.numpy() != 0, mask)
    images = np.random.default_rng(0).normal(size=(2, 6, 6, 3))
    made = np.asarray(model(images))
    np.testing.assert_array_equal((made != 0).any((0, 1, 2)), mask)
