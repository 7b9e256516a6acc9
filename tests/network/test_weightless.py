"""The arguments of an operation are part of what is known about it."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.conftest import outputs
from tf_tickets.structured import remove_dead_channels, shrink

pytestmark = pytest.mark.usefixtures("float64")


def behind(use, shape=(6, 6, 2), units=4):
    """A model whose channel 1 is 0.7 everywhere where ``use`` meets it."""
    keras.utils.set_random_seed(0)
    image = keras.Input(shape)
    maker = layers.Dense(units, name="maker")
    y = use(maker(image))
    if len(y.shape) > 2:
        y = layers.Flatten()(y)
    model = keras.Model(image, layers.Dense(3)(y))
    maker.kernel.assign(maker.kernel * (np.arange(units) != 1))
    maker.bias.assign(np.where(np.arange(units) == 1, 0.7, -0.4))
    return model, np.random.default_rng(0).normal(size=(5, *shape))


def removed(model, x):
    """How many channels of the maker go; no output may change."""
    expected = outputs(model, x)
    small = remove_dead_channels(model)
    np.testing.assert_allclose(outputs(small, x), expected, atol=1e-9)
    maker = model.get_layer("maker")
    return maker.units - small.get_layer("maker").units


@pytest.mark.parametrize(
    "reduce",
    [
        lambda y: ops.max(y, axis=(1, 2), initial=0.9),
        lambda y: ops.max(y, axis=1, initial=0.1, keepdims=True),
        lambda y: ops.min(y, axis=(1, 2), initial=-0.5),
        lambda y: ops.min(y, axis=-2, initial=0.9),
        lambda y: ops.mean(y, axis=[1]),
        lambda y: ops.max(y, axis=2),
    ],
)
def test_a_reduction_moves_constants(reduce):
    assert removed(*behind(reduce)) == 1


@pytest.mark.filterwarnings("ignore:Layer 'flatten")
@pytest.mark.parametrize(
    "use",
    [
        lambda y: ops.max(y, axis=-1),
        lambda y: ops.max(y, axis=(1, 2, 3), keepdims=True),
        lambda y: ops.clip(y, np.zeros(4), np.arange(1.0, 5.0)),
        lambda y: y * np.arange(1.0, 5.0),
        lambda y: ops.add(y, x2=np.arange(4.0)),
        lambda y: ops.concatenate([y, np.ones((5, 6, 6, 2))], axis=-1),
        lambda y: layers.Softmax()(y),
        lambda y: layers.Activation("softmax")(y),
        lambda y: layers.BatchNormalization(axis=1)(y),
        lambda y: layers.LayerNormalization(axis=[1, 3])(y),
        lambda y: layers.Rescaling(np.arange(4.0))(y),
        lambda y: layers.Softmax(axis=1)(y, mask=layers.Dense(4)(y)),
        lambda y: layers.ZeroPadding1D(1, data_format="channels_first")(
            layers.Reshape((36, 4))(y)
        ),
    ],
)
def test_channels_stay_where_an_argument_may_tell_them_apart(use):
    model, x = behind(use)
    assert removed(model, x) == 0
    path = model.get_layer("maker").kernel.path
    _, report = shrink(model, {path: [1, 0, 1, 1]}, return_report=True)
    assert report.removed == 0 and report.stops


def test_an_activation_that_weighs_channels_together_is_not_elementwise():
    mixes = layers.Dense(4, activation=layers.UnitNormalization())
    model, x = behind(mixes)
    mixes.kernel.assign(mixes.kernel * [1.0, 1.0, 0.0, 1.0])
    mixes.bias.assign([0.1, 0.2, 0.3, 0.4])
    assert removed(model, x) == 1  # what it reads folds into its bias
    _, report = shrink(
        model, {mixes.kernel.path: [1, 1, 0, 1]}, return_report=True
    )
    assert "not elementwise" in report.stops[0].reason


def test_a_softmax_along_positions_depends_on_how_many_there_are():
    """Of one position alone it would be one."""

    def along_positions(y):
        y = layers.Permute((1, 3, 2))(y)
        y = layers.Activation("softmax")(y)
        return layers.Permute((1, 3, 2))(y)

    assert removed(*behind(along_positions)) == 0


def test_a_layer_that_weighs_its_channels_together_says_so():
    """Zeros may be shrunk away; no constant is taken for dead."""
    model, x = behind(lambda y: layers.UnitNormalization()(y))
    assert removed(model, x) == 0
    maker = model.get_layer("maker")
    maker.bias.assign([0.1, 0.0, 0.2, 0.3])
    small = shrink(model, {maker.kernel.path: [1, 0, 1, 1]})
    assert small.get_layer("maker").units == 3
    np.testing.assert_allclose(outputs(small, x), outputs(model, x), atol=1e-9)


def test_scales_along_other_axes_are_told_from_those_of_channels():
    """Six positions and six channels: sizes alone say nothing."""

    def crossed(y):
        y = layers.Permute((1, 3, 2))(y)
        reads = layers.Dense(6, use_bias=False)
        y = reads(y)
        # Only position 1 is read: the constant of channel 1 is not it.
        reads.kernel.assign(np.eye(6)[[1] * 6] * np.eye(6)[:, [1]])
        return layers.Permute((1, 3, 2))(y)

    model, x = behind(crossed, units=6)
    assert removed(model, x) == 0
    assert removed(*behind(layers.BatchNormalization(axis=1), units=6)) == 0


def test_padding_of_a_sequence_that_has_its_channels_first():
    def padded(y):
        y = layers.Permute((2, 1))(y)
        y = layers.ZeroPadding1D(2, data_format="channels_first")(y)
        return layers.Permute((2, 1))(y)

    model, x = behind(padded, (6, 2))
    assert removed(model, x) == 0  # a border of zeros around a constant
    model.get_layer("maker").bias.assign([0.1, 0.0, 0.2, 0.3])
    assert removed(model, x) == 1


def test_channels_that_come_first_are_flattened_as_the_last():
    """So Keras does it: the layer turns them around before it flattens."""

    def flattened(y):
        y = layers.Permute((3, 1, 2))(y)
        return layers.Flatten(data_format="channels_first")(y)

    model, x = behind(flattened, shape=(2, 3, 2))
    path = model.get_layer("maker").kernel.path
    small = shrink(model, {path: [1, 1, 0, 1]})
    maker = model.get_layer("maker")
    maker.kernel.assign(maker.kernel * [1.0, 1.0, 0.0, 1.0])
    maker.bias.assign(maker.bias * [1.0, 1.0, 0.0, 1.0])
    np.testing.assert_allclose(outputs(small, x), outputs(model, x), atol=1e-9)
    assert removed(model, x) == 2
