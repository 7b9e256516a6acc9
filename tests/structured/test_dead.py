"""Dead channels go and no output changes."""

import keras
import numpy as np
import pytest
from keras import layers

import tf_tickets as tt
from tests import gallery
from tests.conftest import outputs, settle
from tf_tickets.selection import named_weights
from tf_tickets.structured import remove_dead_channels
from tf_tickets.zoo import models


def kill(model, fraction, seed=0):
    """Zero whole filters and whole rows of readers, and most weights."""
    rng = np.random.default_rng(seed)
    for key, weight in named_weights(model).items():
        if "kernel" not in key or len(weight.shape) < 2:
            continue
        value = weight.numpy()
        value *= rng.random(value.shape) < 0.8
        first = value[..., :2, :2].copy()  # something stays alive
        value[..., rng.random(value.shape[-1]) < fraction] = 0
        value[..., rng.random(value.shape[-2]) < fraction / 2, :] = 0
        value[..., :2, :2] = first
        weight.assign(value)


def assert_same_outputs(model, x, tolerance=1e-5):
    expected = outputs(model, x)
    small, report = remove_dead_channels(model, return_report=True)
    assert np.abs(expected).max() > 1e-3
    assert expected.std(axis=0).max() > 1e-9
    np.testing.assert_allclose(outputs(small, x), expected, atol=tolerance)
    np.testing.assert_array_equal(outputs(model, x), expected)  # untouched
    return small, report


@pytest.mark.parametrize("name", gallery.names("channels"))
def test_no_output_changes(name, float64):
    removed = 0
    for seed in range(2):
        model = gallery.GALLERY[name]()
        x = settle(model, seed)
        kill(model, 0.3, seed)
        small, report = assert_same_outputs(model, x, 1e-9)
        removed += report.removed
        shrank = small.count_params() < model.count_params()
        assert shrank == (report.removed > 0)
    assert removed > 0


@pytest.mark.parametrize("seed", range(6))
def test_no_output_of_a_random_graph_changes(seed, float64):
    model = gallery.random_graph(seed)
    x = settle(model, seed)
    kill(model, 0.25, seed)
    assert_same_outputs(model, x, 1e-9)


def test_a_very_sparse_ticket_loses_its_dead_channels():
    model = models.resnet20()
    x = settle(model)
    tt.prune(model, sparsity=0.99).apply(model)
    small, report = assert_same_outputs(model, x)
    assert report.removed > 0
    # The masks were cut with the kernels, and hold.
    assert tt.Ticket.from_model(small).kept > 0


def chain(*between, padding="valid", **options):
    image = keras.Input((8, 8, 2))
    x = layers.Conv2D(4, 3, name="one", **options)(image)
    for layer in between:
        x = layer(x)
    x = layers.Conv2D(3, 3, padding=padding, name="two", use_bias=False)(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    return keras.Model(image, layers.Dense(2, name="head")(x))


def silence(layer, channel):
    kernel = layer.kernel.numpy()
    kernel[..., channel] = 0
    layer.kernel.assign(kernel)


def test_a_silent_filter_is_a_constant_that_moves_into_the_next_bias():
    model = chain(layers.BatchNormalization(), layers.ReLU())
    x = settle(model)
    silence(model.get_layer("one"), 1)
    norm = model.layers[2]
    norm.beta.assign([0.3, 0.7, 0.2, 0.1])
    norm.moving_mean.assign(norm.moving_mean * [1, 0, 1, 1])
    model.get_layer("one").bias.assign([0.1, 0.0, 0.1, 0.2])
    small, report = assert_same_outputs(model, x)
    assert report.removed == 1 and small.get_layer("one").filters == 3
    # By hand: the channel is ReLU(0.7) at every position.
    kernel = model.get_layer("two").kernel.numpy()[:, :, 1]
    np.testing.assert_allclose(
        small.get_layer("two").bias, 0.7 * kernel.sum((0, 1)), rtol=1e-5
    )


def test_a_constant_before_zero_padding_stays_and_is_reported():
    model = chain(padding="same")
    x = settle(model)
    silence(model.get_layer("one"), 1)
    model.get_layer("one").bias.assign([0.1, 0.5, 0.1, 0.2])
    small, report = assert_same_outputs(model, x)
    assert small.get_layer("one").filters == 4
    [stop] = report.stops
    assert stop.layers == ("one",) and stop.channels == 1
    assert "two, which pads with zeros" in stop.reason


def test_a_zero_before_zero_padding_goes():
    model = chain(layers.ReLU(), padding="same")
    x = settle(model)
    silence(model.get_layer("one"), 1)
    model.get_layer("one").bias.assign([0.1, -0.5, 0.1, 0.2])
    small, _ = assert_same_outputs(model, x)
    assert small.get_layer("one").filters == 3
    assert small.get_layer("two").bias is None


def test_what_nobody_reads_goes_with_all_that_made_it():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, activation="tanh", name="one"),
            layers.Dense(5, activation="tanh", name="two"),
            layers.Dense(2, name="head"),
        ]
    )
    x = settle(model)
    head, two = model.get_layer("head"), model.get_layer("two")
    head.kernel.assign(head.kernel * [[0.0], [1.0], [1.0], [1.0], [1.0]])
    # Two channels are read by nothing but the one that nobody reads.
    kernel = two.kernel.numpy()
    kernel[:2, 1:] = 0
    two.kernel.assign(kernel)
    small, report = assert_same_outputs(model, x)
    assert small.get_layer("two").units == 4
    assert small.get_layer("one").units == 4
    assert report.removed == 3


def test_a_layer_keeps_a_channel_even_if_all_are_dead():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, activation="sigmoid", name="one"),
            layers.Dense(2, name="head"),
        ]
    )
    x = np.random.default_rng(0).normal(size=(3, 4))
    one = model.get_layer("one")
    one.kernel.assign(one.kernel * 0)
    one.bias.assign(np.arange(6) / 6)
    expected = outputs(model, x)
    with pytest.warns(UserWarning, match="each keeps one"):
        small = remove_dead_channels(model)
    np.testing.assert_allclose(outputs(small, x), expected, atol=1e-6)
    assert small.get_layer("one").units == 1


def test_a_shared_layer_folds_only_what_all_its_calls_agree_on(float64):
    image = keras.Input((6,))
    first = layers.Dense(4, name="first")
    second = layers.Dense(4, name="second")
    shared = layers.Dense(3, name="shared")
    y = layers.Add()([shared(first(image)), shared(second(image))])
    model = keras.Model(image, layers.Dense(2)(y))
    x = settle(model)
    for layer, values in ((first, [0.5, 0.2]), (second, [0.5, 0.9])):
        for channel in (0, 1):
            silence(layer, channel)
        bias = layer.bias.numpy()
        bias[:2] = values
        layer.bias.assign(bias)
    small, report = assert_same_outputs(model, x, 1e-9)
    assert small.get_layer("first").units == 3  # one of the two constants
    assert report.removed == 1


def test_channels_of_an_output_stay_whoever_reads_them():
    image = keras.Input((6,))
    inside = layers.Dense(4, activation="relu", name="inside")(image)
    head = layers.Dense(2, name="head")
    model = keras.Model(image, {"head": head(inside), "inside": inside})
    x = settle(model)
    head.kernel.assign(head.kernel * [[0.0], [1.0], [1.0], [1.0]])
    silence(model.get_layer("inside"), 1)
    small, report = assert_same_outputs(model, x)
    assert report.removed == 0 and small.get_layer("inside").units == 4


def test_nothing_to_remove_is_no_error():
    model = chain()
    x = settle(model)
    small, report = assert_same_outputs(model, x)
    assert report.removed == report.asked == 0
    assert small.count_params() == model.count_params()
