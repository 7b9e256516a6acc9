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
- ``of_weight(array) -> array``: the score of a weight is a function of its
  value alone, and this is it, element by element. Such scores are computed
  where they are needed, piece by piece, and take no memory.
- ``each_step(weight, gradient) -> tensor``: it scores training itself. The
  callbacks that draw masks add this up in every step since the last drawing,
  inside the step, and call the criterion with ``sums={path: array}``.
- ``prepare(model, *, data, seed) -> (masks -> scores)``: how to share work
  among those drawings.

A criterion is used by its name in `CRITERIA` or as a callable, with options
set by ``functools.partial`` if need be. What a partial sets stays set.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tf_tickets.masks import Arrays, Each
from tf_tickets.pruning.criteria.grasp import grasp
from tf_tickets.pruning.criteria.magnitude import lamp, magnitude, random
from tf_tickets.pruning.criteria.movement import movement
from tf_tickets.pruning.criteria.prospr import prospr
from tf_tickets.pruning.criteria.snip import snip
from tf_tickets.pruning.criteria.synflow import synflow
from tf_tickets.pruning.criteria.wanda import wanda
from tf_tickets.selection import named_weights, view_of

Criterion = Callable[..., Arrays]

CRITERIA: dict[str, Criterion] = {
    "magnitude": magnitude,
    "lamp": lamp,
    "random": random,
    "snip": snip,
    "grasp": grasp,
    "synflow": synflow,
    "prospr": prospr,
    "wanda": wanda,
    "movement": movement,
}
"""``{name: criterion}``, yours too: what `tf_tickets.prune` takes.

A criterion is called as ``criterion(model, masks, data=data, seed=seed)``; it
only reads the model and returns ``{path: scores}``, the lowest of which go. An
attribute ``needs_data`` says that it cannot score without ``data``,
``iterations`` that it must score anew as weights go.
"""

_OURS = tuple(CRITERIA.values())


def get(criterion: str | Criterion) -> Criterion:
    """The criterion of that name; a callable is returned as it is.

    Raises:
        ValueError: If there is no criterion of that name.
    """
    if callable(criterion):
        return criterion
    if isinstance(criterion, str) and criterion in CRITERIA:
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

    >>> needs_data("snip"), needs_data(functools.partial(snip, data=(1, 2)))
    (True, False)
    """
    score = get(criterion)
    return bool(
        getattr(_unbound(score), "needs_data", False)
        and _options_of(score).get("data") is None
    )


def is_known(criterion: str | Criterion) -> bool:
    """Whether a criterion is one of this package, with options or without."""
    return _unbound(get(criterion)) in _OURS


def each_step(criterion: str | Criterion) -> Callable[..., Any] | None:
    """What a criterion that scores training adds up in every step.

    Example:

    >>> each_step("magnitude") is None, each_step("movement") is None
    (True, False)
    """
    found: Callable[..., Any] | None = getattr(
        _unbound(get(criterion)), "each_step", None
    )
    return found


def of_weight(
    criterion: str | Criterion,
) -> Callable[[np.ndarray], np.ndarray] | None:
    """The score as a function of a weight's value, if it is nothing else.

    Example:

    >>> of_weight("magnitude") is np.abs, of_weight("snip") is None
    (True, True)
    """
    score = get(criterion)
    found: Callable[[np.ndarray], np.ndarray] | None = getattr(
        score, "of_weight", None
    )
    return found


def drawings(criterion: str | Criterion) -> int:
    """In how many drawings a criterion wants to reach its target."""
    return int(getattr(_unbound(get(criterion)), "iterations", 1))


def scorer(
    criterion: str | Criterion,
    model: keras.Model,
    *,
    data: Any = None,
    seed: int = 0,
    again: bool = False,
) -> Callable[[Arrays], Arrays]:
    """``masks -> scores`` of one model.

    Args:
        criterion: A name or a callable.
        model: A built model.
        data: What to score on, unless a partial has set it.
        seed: Of random draws, unless a partial has set it.
        again: Whether more than one mask will be scored, so that preparing
            for it pays.

    Returns:
        A function whose scores are to be used before the model is trained on:
        they may look at its weights.
    """
    score = get(criterion)
    options = {"data": data, "seed": seed, **_options_of(score)}
    alone = of_weight(criterion)
    if alone is not None:
        weights = named_weights(model)

        def each(masks: Arrays) -> Each:
            return Each(alone, {path: view_of(weights[path]) for path in masks})

        return each
    prepare = getattr(_unbound(score), "prepare", None) if again else None
    if prepare is None:
        return functools.partial(score, model, **options)
    return prepare(model, **options)


def _unbound(score: Criterion) -> Criterion:
    return getattr(score, "func", score)


def _options_of(score: Criterion) -> dict[str, Any]:
    return dict(getattr(score, "keywords", {}))
