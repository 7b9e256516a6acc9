"""A network small enough for its whole Hessian, and points for it."""

import keras
import numpy as np
import pytest

from tests.conftest import compiled


def tiny():
    return compiled(
        keras.Sequential(
            [
                keras.Input((3,)),
                keras.layers.Dense(4, activation="tanh", name="one"),
                keras.layers.Dense(3, name="two"),
            ],
            name="tiny",
        )
    )


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    return rng.normal(size=(20, 3)).astype("float32"), rng.integers(0, 3, 20)
