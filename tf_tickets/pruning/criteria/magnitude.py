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


magnitude.of_weight = np.abs  # type: ignore[attr-defined]


def lamp(
    model: keras.Model, masks: Arrays, *, data: Any = None, seed: int = 0
) -> dict[str, np.ndarray]:
    r"""Layer-adaptive magnitude. Needs no data.

    The score of a weight is $w_u^2 / \sum_{v \ge u} w_v^2$ over the kept
    weights of its tensor that are as large or larger. Ranked together, the
    scores spread the budget by themselves. The largest of every tensor has the
    score 1, so that no layer is emptied while as many weights are kept as
    there are tensors.

    Reference:
        Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning",
        ICLR 2021, equation 3. Of equal weights the first counts as larger.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> _ = model.layers[0].kernel.assign([[-2.0], [1.0]])
    >>> path = model.layers[0].kernel.path
    >>> lamp(model, {path: np.ones((2, 1), bool)})[path].tolist()
    [[1.0], [0.2]]
    """
    unknown = [path for path in masks if path not in named_weights(model)]
    if unknown:
        raise ValueError(
            f"`masks` must name weights of the model. Received: {unknown}"
        )
    sizes = magnitude(model, masks, data=data, seed=seed)
    return {path: _lamp(size, masks[path]) for path, size in sizes.items()}


def _lamp(size: np.ndarray, mask: np.ndarray) -> np.ndarray:
    scores = np.zeros(mask.shape)
    kept = size[mask].astype(np.float64)
    if kept.size:
        order = np.argsort(-kept, kind="stable")
        # Scores do not change with the unit; squares of tiny ones vanish.
        squares = (kept[order] / (kept[order[0]] or 1.0)) ** 2
        sums = np.cumsum(squares)
        ranked = np.empty(kept.size)
        ranked[order] = squares / (sums if sums[0] else 1.0)
        ranked[order[0]] = 1.0  # of a tensor of zeros, too
        scores[mask] = ranked
    return scores


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
