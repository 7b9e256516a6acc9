"""What a kernel makes of a channel that is the same everywhere."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.conftest import outputs
from tf_tickets.network.channels import follow
from tf_tickets.network.constants import propagate
from tf_tickets.network.graph import trace
from tf_tickets.structured import remove_dead_channels, shrink

LINE, IMAGE = (7, 2), (7, 7, 2)


pytestmark = pytest.mark.usefixtures("float64")


def behind(layer, shape, bias=0.7):
    """A model whose channel 1, 0.7 everywhere, alone makes channel 0."""
    keras.utils.set_random_seed(0)
    image = keras.Input(shape)
    maker = layers.Dense(4, name="maker")
    y = layer(maker(image))
    model = keras.Model(image, y)
    maker.kernel.assign(maker.kernel * np.array([1.0, 0.0, 1.0, 1.0]))
    maker.bias.assign([0.3, bias, -0.4, 0.2])
    kernel = layer.weights[-2] if layer.use_bias else layer.weights[-1]
    value = kernel.numpy()
    transposed = "transpose" in layer.name
    ins, outs = (-1, -2) if transposed else (-2, -1)
    moved = np.moveaxis(value, (ins, outs), (-2, -1))
    if moved.shape[-2] == 4 and "depthwise" not in layer.name:
        moved[..., [0, 2, 3], 0] = 0
    kernel.assign(value)
    return model, np.random.default_rng(0).normal(size=(3, *shape))


@pytest.mark.parametrize(
    ("layer", "shape", "uniform"),
    [
        (lambda: layers.Conv2D(3, 3), IMAGE, True),
        (lambda: layers.Conv2D(3, 3, padding="same"), IMAGE, False),
        (lambda: layers.Conv2D(3, 1, padding="same"), IMAGE, True),
        (lambda: layers.Conv2D(3, 3, strides=2), IMAGE, True),
        (lambda: layers.Conv1D(3, 2, padding="causal"), LINE, False),
        (lambda: layers.Conv1D(3, 2, dilation_rate=2), LINE, True),
        (lambda: layers.Conv2DTranspose(3, 3), IMAGE, False),
        (lambda: layers.Conv2DTranspose(3, 2, strides=2), IMAGE, False),
        (lambda: layers.Conv2DTranspose(3, 1, strides=2), IMAGE, False),
        (lambda: layers.Conv1DTranspose(3, 1, padding="same"), LINE, True),
        (lambda: layers.Conv2D(3, 3, activation="tanh"), IMAGE, True),
    ],
)
def test_a_constant_is_one_where_no_border_shows(layer, shape, uniform):
    model, x = behind(layer(), shape)
    channels = follow(trace(model))
    [stated] = [propagate(channels)[t] for t in channels.graph.outputs]
    made = np.asarray(model(x)).reshape(-1, stated.size)
    spread = np.ptp(made, axis=0)
    assert spread[1:].min() > 1e-3 and np.isnan(stated[1:]).all()
    assert (spread[0] < 1e-12) == uniform == (not np.isnan(stated[0]))
    if uniform:
        np.testing.assert_allclose(made[:, 0], stated[0], atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "shape", "uniform"),
    [
        (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), IMAGE, True),
        (lambda: layers.DepthwiseConv2D(3, padding="same"), IMAGE, False),
        (lambda: layers.DepthwiseConv1D(1, padding="same"), LINE, True),
        (lambda: layers.Conv2D(8, 3, groups=4), IMAGE, True),
        (lambda: layers.Conv1D(4, 3, groups=4, padding="same"), LINE, False),
    ],
)
def test_each_channel_on_its_own(layer, shape, uniform):
    model, x = behind(layer(), shape)
    channels = follow(trace(model))
    [stated] = [propagate(channels)[t] for t in channels.graph.outputs]
    made = np.asarray(model(x)).reshape(-1, stated.size)
    constant = np.arange(stated.size) * 4 // stated.size == 1
    assert ((np.ptp(made, axis=0) < 1e-12) == (constant & uniform)).all()
    np.testing.assert_array_equal(~np.isnan(stated), constant & uniform)
    expected = np.broadcast_to(stated, made.shape)
    np.testing.assert_allclose(
        made[:, constant & uniform],
        expected[:, constant & uniform],
        atol=1e-12,
    )


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("bias", [0.0, 0.7])
def test_a_separable_convolution_passes_constants_through_its_first_kernel(
    padding, bias
):
    image = keras.Input(IMAGE)
    maker = layers.Dense(4, name="maker")
    one = layers.SeparableConv2D(5, 3, depth_multiplier=2, padding=padding)
    y = layers.GlobalAveragePooling2D()(layers.ReLU()(one(maker(image))))
    model = keras.Model(image, layers.Dense(3)(y))
    maker.kernel.assign(maker.kernel * np.array([1.0, 0.0, 1.0, 1.0]))
    maker.bias.assign([0.3, bias, -0.4, 0.2])
    x = np.random.default_rng(0).normal(size=(3, *IMAGE))
    small = remove_dead_channels(model)
    np.testing.assert_allclose(outputs(small, x), outputs(model, x), atol=1e-9)
    goes = padding == "valid" or bias == 0
    assert small.get_layer("maker").units == (3 if goes else 4)


def test_channels_of_groups_go_together():
    """Channels 1 and 3 stand at the same place of two groups."""
    model = keras.Sequential(
        [
            keras.Input(IMAGE),
            layers.Dense(4, name="maker"),
            layers.Conv2D(6, 3, groups=2, name="grouped"),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    maker = model.get_layer("maker")
    x = np.random.default_rng(0).normal(size=(3, *IMAGE))
    _, report = shrink(
        model, {maker.kernel.path: [1, 0, 1, 1]}, return_report=True
    )
    assert report.removed == 0 and "shares them" in report.stops[0].reason
    small = shrink(model, {maker.kernel.path: [1, 0, 1, 0]})
    assert small.get_layer("maker").units == 2
    maker.kernel.assign(maker.kernel * np.array([1.0, 0.0, 1.0, 0.0]))
    np.testing.assert_allclose(outputs(small, x), outputs(model, x), atol=1e-9)


def test_a_group_of_several_channels_is_one_normalization():
    model, x = behind(layers.Conv2D(4, 3, use_bias=False), IMAGE)
    y = layers.GroupNormalization(2)(model.output)
    y = layers.Dense(2)(layers.Flatten()(y))
    model = keras.Model(model.input, y)
    small, report = remove_dead_channels(model, return_report=True)
    np.testing.assert_allclose(outputs(small, x), outputs(model, x), atol=1e-9)
    assert report.removed == 1  # the maker's


@pytest.mark.skipif(
    not hasattr(layers, "RMSNormalization"), reason="a newer Keras has it"
)
def test_a_scale_that_keras_lays_along_other_axes_stops_its_channels():
    """It normalizes axis 1 and multiplies axis 3, if their sizes agree."""
    model, _ = behind(layers.Conv2D(5, 3), IMAGE)
    y = layers.RMSNormalization(axis=1)(model.output)
    y = layers.Dense(2)(layers.Flatten()(y))
    model = keras.Model(model.input, y)
    path = next(v.path for v in model.weights if "conv2d" in v.path)
    _, report = shrink(model, {path: np.arange(5) != 1}, return_report=True)
    assert report.removed == 0
    assert "axes before the last" in report.stops[0].reason
