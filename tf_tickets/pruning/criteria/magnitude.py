"""Magnitude, and the control that every criterion has to beat: chance."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tf_tickets.masks import Arrays
from tf_tickets.selection import named_weights, values_of


def magnitude(
    model: keras.Model, masks: Arrays, *, data: Any = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Score $|w|$: the smallest weights go first. Needs no data.

    Reference:
        Han et al., "Learning both Weights and Connections for Efficient
        Neural Networks", NeurIPS 2015.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> _ = model.layers[0].kernel.assign([[-2.0], [1.0]])
    >>> path = model.layers[0].kernel.path
    >>> magnitude(model, {path: np.ones((2, 1), bool)})[path].tolist()
    [[2.0], [1.0]]
    """
    del data, seed
    weights = named_weights(model)
    values = values_of({path: weights[path] for path in masks})
    return {path: np.abs(value) for path, value in values.items()}


def random(
    model: keras.Model, masks: Arrays, *, data: Any = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Uniform scores: pruned weights are drawn at random. Needs no data.

    The control that every other criterion has to beat.
    """
    del model, data
    return {
        path: np.random.default_rng((seed, i)).random(mask.shape, np.float32)
        for i, (path, mask) in enumerate(masks.items())
    }
