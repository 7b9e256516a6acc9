"""Start values: seeds of their own, shapes with the right fans."""

import keras
import numpy as np
import pytest

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
