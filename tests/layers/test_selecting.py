"""The layer that takes channels: against NumPy, and by its configuration."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_tickets.layers import SelectChannels


@pytest.mark.parametrize("axis", [-1, 1, 2])
def test_channels_are_taken_in_the_order_given(axis):
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 6)).astype("float32")
    indices = [3, 0, 2]
    layer = SelectChannels(indices, axis=axis)
    found = layer(x)
    np.testing.assert_array_equal(found, np.take(x, indices, axis))
    assert layer.compute_output_shape(x.shape) == tuple(found.shape)


def test_the_gradient_goes_where_it_was_taken_from():
    x = tf.constant([[1.0, 2.0, 3.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = SelectChannels([2, 0, 2])(x) * [[1.0, 10.0, 100.0]]
    gradient = tape.gradient(y, x)
    np.testing.assert_array_equal(gradient, [[10.0, 0.0, 101.0]])


def test_it_is_its_configuration():
    layer = SelectChannels(np.array([1, 2]), axis=1, name="some")
    again = SelectChannels.from_config(layer.get_config())
    assert (again.indices, again.axis, again.name) == ((1, 2), 1, "some")
    assert not layer.weights


@pytest.mark.parametrize(
    ("indices", "options"),
    [
        ([], {}),
        ("12", {}),
        (3, {}),
        ([[1, 2]], {}),
        ([0.5], {}),
        ([-1], {}),
        ([0], {"axis": 0}),
    ],
)
def test_what_is_no_position_is_refused(indices, options):
    with pytest.raises(ValueError, match="Received"):
        SelectChannels(indices, **options)


def test_a_channel_that_is_not_there_is_refused_when_it_is_called():
    with pytest.raises(ValueError, match="takes channel 4, and its input has"):
        SelectChannels([0, 4])(keras.Input((4,)))
