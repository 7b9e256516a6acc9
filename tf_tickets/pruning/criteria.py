"""Criteria: a score for every weight; the lowest are pruned first.

Every criterion has the same signature,
``criterion(model, masks, *, data, seed) -> {path: scores}``: ``masks`` is
``{path: boolean array}`` of the weights to score with what is kept of them so
far, ``data`` what the caller gave, and the scores of a weight have its shape.
The model is only read. Weights that ``masks`` has pruned stay pruned whatever
their score.

What else a criterion may say, by attributes of the function:

- ``needs_data = True``: without ``data`` it cannot score.
- ``iterations = n``: it must be scored anew as weights go (SynFlow), in so
  many drawings.
- ``prepare(model, *, data, seed) -> (masks -> scores)``: how to share work
  among those drawings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from tf_tickets.selection import named_weights, values_of

Arrays = Mapping[str, np.ndarray]
Criterion = Callable[..., Arrays]


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


CRITERIA: dict[str, Criterion] = {"magnitude": magnitude, "random": random}


def get(criterion: str | Criterion) -> Criterion:
    """The criterion of that name; a callable is returned as it is.

    Raises:
        ValueError: If there is no criterion of that name.
    """
    if callable(criterion):
        return criterion
    if criterion in CRITERIA:
        return CRITERIA[criterion]
    raise ValueError(
        f"`criterion` must be one of {sorted(CRITERIA)} or a callable. "
        f"Received: criterion={criterion!r}"
    )


def needs_data(criterion: str | Criterion) -> bool:
    """Whether a criterion cannot score without ``data`` from its caller.

    Args:
        criterion: A name or a callable.

    Returns:
        `True` for criteria that say so, unless ``functools.partial`` has set
        their data.

    Example:

    >>> import functools
    >>> from tf_tickets.pruning import snip
    >>> needs_data("snip"), needs_data(functools.partial(snip, data=(1, 2)))
    (True, False)
    """
    score = get(criterion)
    return bool(
        getattr(getattr(score, "func", score), "needs_data", False)
        and getattr(score, "keywords", {}).get("data") is None
    )
