"""Start values: seeds of their own, shapes with the right fans."""

import inspect

import keras
import numpy as np
import pytest
from keras import layers

from tests.conftest import mlp
from tf_tickets import initialization
from tf_tickets.selection import named_weights


def test_equal_seeds_draw_equal_values_and_the_initializer_stays():
    initializer = keras.initializers.HeNormal(seed=3)
    one, again, other = (
        initialization.draw(initializer, (40, 5), seed)
        for seed in ((1, 2), (1, 2), (1, 3))
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).mean() > 0.99
    assert initializer.seed == 3
    # What has no seed draws as it is; any callable will do.
    assert not initialization.draw(keras.initializers.Zeros(), (3,), (0,)).any()
    ones = initialization.draw(
        lambda shape, dtype: np.ones(shape, dtype),
        (2, 2),
        (0,),
        dtype="float16",
    )
    assert ones.dtype == np.float16 and ones.all()


def test_fans_come_from_the_shape_that_stands_in():
    wide = initialization.draw(
        keras.initializers.HeNormal(), (3, 3, 400, 1), (0,), fans=(9, 1, 400)
    )
    assert wide.shape == (3, 3, 400, 1)
    assert wide.std() == pytest.approx(np.sqrt(2 / 9), rel=0.05)
    plain = initialization.draw(
        keras.initializers.HeNormal(), (3, 3, 400, 1), (0,)
    )
    assert plain.std() == pytest.approx(np.sqrt(2 / 3600), rel=0.05)


def test_every_weight_of_a_model_is_drawn_with_its_own_seed():
    model = keras.Sequential(
        [keras.Input((6,)), *(keras.layers.Dense(6) for _ in range(2))]
    )
    drawn, unknown = initialization.redraw(model, seed=4)
    assert list(drawn) == list(named_weights(model)) and not unknown
    first, _, second, _ = drawn.values()
    assert (first != second).all()
    np.testing.assert_array_equal(
        initialization.redraw(model, seed=4)[0][list(drawn)[0]], first
    )


def test_a_forget_gate_starts_open():
    model = keras.Sequential([keras.Input((4, 2)), keras.layers.LSTM(3)])
    drawn, _ = initialization.redraw(model, seed=0)
    [bias] = [v for k, v in drawn.items() if k.endswith("bias")]
    assert bias.tolist() == [0] * 3 + [1] * 3 + [0] * 6
    assert not initialization.redraw(mlp(), seed=0)[1]


# How each layer of Keras is made that has an initializer, and what it takes.
IMAGE, SERIES, VIDEO = (4, 4, 2), (4, 2), (4, 4, 4, 2)
KINDS = {
    "BatchNormalization": ({}, SERIES),
    "Conv1D": ({"filters": 3, "kernel_size": 2}, SERIES),
    "Conv1DTranspose": ({"filters": 3, "kernel_size": 2}, SERIES),
    "Conv2D": ({"filters": 3, "kernel_size": 2}, IMAGE),
    "Conv2DTranspose": ({"filters": 3, "kernel_size": 2}, IMAGE),
    "Conv3D": ({"filters": 3, "kernel_size": 2}, VIDEO),
    "Conv3DTranspose": ({"filters": 3, "kernel_size": 2}, VIDEO),
    "ConvLSTM1D": ({"filters": 3, "kernel_size": 2}, (3, *SERIES)),
    "ConvLSTM2D": ({"filters": 3, "kernel_size": 2}, (3, *IMAGE)),
    "ConvLSTM3D": ({"filters": 3, "kernel_size": 2}, (3, *VIDEO)),
    "Dense": ({"units": 3}, SERIES),
    "DepthwiseConv1D": ({"kernel_size": 2}, SERIES),
    "DepthwiseConv2D": ({"kernel_size": 2}, IMAGE),
    "EinsumDense": (
        {"equation": "abc,cd->abd", "output_shape": (4, 3), "bias_axes": "d"},
        SERIES,
    ),
    "Embedding": ({"input_dim": 5, "output_dim": 3}, (4,)),
    "GRU": ({"units": 3}, SERIES),
    "GRUCell": ({"units": 3}, SERIES),
    "GroupNormalization": ({"groups": 2}, IMAGE),
    "GroupQueryAttention": (
        {"head_dim": 2, "num_query_heads": 2, "num_key_value_heads": 1},
        SERIES,
    ),
    "LSTM": ({"units": 3}, SERIES),
    "LSTMCell": ({"units": 3}, SERIES),
    "LayerNormalization": ({}, SERIES),
    "MultiHeadAttention": ({"num_heads": 2, "key_dim": 2}, SERIES),
    "PReLU": ({}, SERIES),
    "ReversibleEmbedding": ({"input_dim": 5, "output_dim": 3}, (4,)),
    "SeparableConv1D": ({"filters": 3, "kernel_size": 2}, SERIES),
    "SeparableConv2D": ({"filters": 3, "kernel_size": 2}, IMAGE),
    "SimpleRNN": ({"units": 3}, SERIES),
    "SimpleRNNCell": ({"units": 3}, SERIES),
}


def initializers_of(kind):
    parameters = inspect.signature(kind.__init__).parameters
    return [name for name in parameters if name.endswith("initializer")]


def test_no_kind_of_layer_with_an_initializer_is_left_out():
    kinds = {
        kind
        for kind in vars(layers).values()
        if inspect.isclass(kind)
        and issubclass(kind, layers.Layer)
        and initializers_of(kind)
    }
    assert kinds == {getattr(layers, name) for name in KINDS}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_layer_is_drawn_as_keras_draws_it(name):
    """Each of its initializers draws from tens of its own; so Keras tells."""
    kind, (options, shape) = getattr(layers, name), KINDS[name]
    own = {
        parameter: keras.initializers.RandomUniform(10 * i, 10 * i + 9, seed=1)
        for i, parameter in enumerate(initializers_of(kind), 1)
    }
    layer, x = kind(**options, **own), keras.Input(shape)
    if name.endswith("Cell"):
        layer = layers.RNN(layer)
    inputs = (x, x) if name.endswith("Attention") else (x,)
    model = keras.Model(x, layer(*inputs))
    drawn, unknown = initialization.redraw(model, seed=3)
    built = named_weights(model)
    assert not unknown and drawn.keys() == built.keys()
    for key, variable in built.items():
        old = variable.numpy()
        np.testing.assert_array_equal(old // 10, drawn[key] // 10, key)
        assert old.max() < 10 or (old != drawn[key]).any(), key
