"""From a model to a ticket: scores, budget, exact selection."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tf_tickets import masking
from tf_tickets.pruning import criteria, scopes
from tf_tickets.pruning.topk import keep_largest
from tf_tickets.selection import (
    Filters,
    named_weights,
    prunable_weights,
    values_of,
)
from tf_tickets.ticket import Ticket


def prune(
    model: keras.Model,
    sparsity: float | None = None,
    *,
    criterion: str | criteria.Criterion = "magnitude",
    scope: scopes.Scope = "global",
    data: Any = None,
    filters: Filters = None,
    iterations: int | None = None,
    seed: int = 0,
) -> Ticket:
    """Draw a ticket from the weights that ``model`` has now.

    The model is only read: `Ticket.apply` puts the ticket in force. Weights
    under a mask that is enforced already stay pruned.

    Args:
        model: A built Keras model.
        sparsity: Fraction of the prunable weights that the masks zero, in
            [0, 1); exact to the weight. `None` if ``scope`` is a mapping.
        criterion: A name in `tf_tickets.pruning.CRITERIA` or a callable (see
            `tf_tickets.pruning.criteria`).
        scope: `"global"` ranks all weights together; `"layer"` gives every
            tensor the same sparsity; `"erk"` keeps small tensors denser;
            `"smart_ratio"` keeps early layers denser (more names are in
            `tf_tickets.pruning.SCOPES`);
            ``{pattern: sparsity}`` says it for each; a callable
            ``(shapes, density) -> {path: density}`` decides.
        data: What the criterion scores on, for criteria that need it.
        filters: Which weights; see `tf_tickets.prunable_weights`.
        iterations: In how many drawings to get there, each scored under the
            masks of the one before, with densities that fall by equal
            factors; `None` leaves it to the criterion, mostly 1.
        seed: For criteria that draw at random.

    Returns:
        A ticket whose start weights are the model's present weights, with the
        scores of the last drawing.

    Raises:
        ValueError: On a sparsity out of range or below the present one, an
            unknown criterion or scope, a filter or pattern that matches
            nothing, weights that are NaN or infinite.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((8,)),
    ...     keras.layers.Dense(16, name="hidden"),
    ...     keras.layers.Dense(4, name="head"),
    ... ])
    >>> ticket = prune(model, sparsity=0.75, scope="layer")
    >>> list(ticket.densities().values())
    [0.25, 0.25]
    """
    masks, scores = draw_masks(
        model,
        sparsity,
        criterion=criterion,
        scope=scope,
        data=data,
        filters=filters,
        iterations=iterations,
        seed=seed,
    )
    return Ticket(
        masks,
        values_of(named_weights(model)),
        {"source": "prune", **describe(sparsity, criterion, scope, seed)},
        scores=scores,
    )


def draw_masks(
    model: keras.Model,
    sparsity: float | None,
    *,
    criterion: str | criteria.Criterion,
    scope: scopes.Scope,
    data: Any = None,
    filters: Filters = None,
    iterations: int | None = None,
    seed: int = 0,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """``(masks, scores)`` of `prune`, without the ticket around them."""
    score = criteria.get(criterion)
    # A criterion with options set is a functools.partial of itself.
    whole = getattr(score, "func", score)
    asked = iterations
    if iterations is None:
        iterations = getattr(whole, "iterations", 1)
    if isinstance(iterations, bool) or iterations < 1:
        raise ValueError(
            "`iterations` must be a whole number of at least 1. "
            f"Received: iterations={iterations!r}"
        )
    finite_weights(model, filters)
    masks = current_masks(model, filters)
    if asked and asked > sum(mask.size for mask in masks.values()):
        raise ValueError(
            "There are more `iterations` than weights to prune. "
            f"Received: iterations={iterations}"
        )
    # The budget is checked before the first, maybe costly, scoring.
    targets = [
        scopes.at_progress(scope, sparsity, sparsity_of(masks), i / iterations)
        for i in range(1, iterations + 1)
    ]
    _pools(targets[-1], masks)
    prepare = getattr(whole, "prepare", None) if iterations > 1 else None
    options = {**getattr(score, "keywords", {}), "seed": seed}
    if data is not None or "data" not in options:
        options["data"] = data  # else a partial has set it
    score_of = (
        functools.partial(score, model, **options)
        if prepare is None
        else prepare(model, **options)
    )
    for target in targets:
        scores = dict(score_of(masks))
        masks = select(scores, _pools(target, masks), masks)
    return masks, scores


def _pools(
    target: tuple[float | None, scopes.Scope], masks: Mapping[str, np.ndarray]
) -> list[scopes.Pool]:
    sparsity, scope = target
    return scopes.pools(
        scope,
        {path: m.shape for path, m in masks.items()},
        sparsity,
        {path: int(np.count_nonzero(m)) for path, m in masks.items()},
    )


def current_masks(
    model: keras.Model, filters: Filters = None
) -> dict[str, np.ndarray]:
    """The mask of every prunable weight; all true where none is enforced."""
    attached = masking.attached_masks(model)
    return {
        path: attached[path]
        if path in attached
        else np.ones(tuple(variable.shape), bool)
        for path, variable in prunable_weights(model, filters).items()
    }


def sparsity_of(masks: Mapping[str, np.ndarray]) -> float:
    """Fraction of all positions that ``masks`` prune."""
    size = sum(m.size for m in masks.values())
    kept = sum(int(np.count_nonzero(m)) for m in masks.values())
    return (size - kept) / size


def select(
    scores: Mapping[str, np.ndarray],
    pools: list[scopes.Pool],
    active: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Masks that keep each pool's count of best scores.

    Args:
        scores: ``{path: real array}``.
        pools: Groups of paths and how many weights each keeps.
        active: ``{path: mask}`` of the weights that may be kept at all.

    Returns:
        ``{path: boolean array}``; of equal scores the first in the order of
        the paths and, within a tensor, of the indices is kept.

    Raises:
        ValueError: If a score is NaN.
    """
    masks: dict[str, np.ndarray] = {}
    for pool in pools:
        ranked = []
        for path in pool.paths:
            score = np.asarray(scores[path])
            if score.shape != active[path].shape:
                raise ValueError(
                    f"The scores of {path} must have its shape "
                    f"{active[path].shape}. Received: shape {score.shape}"
                )
            if score.dtype.kind not in "fiu":
                score = score.astype(np.float32)  # bfloat16
            if not active[path].all():
                score = np.where(active[path], score, -np.inf)
            if np.isnan(score).any():
                raise ValueError(f"The scores of {path} hold NaN.")
            ranked.append(score.ravel())
        flat = ranked[0] if len(ranked) == 1 else np.concatenate(ranked)
        kept = keep_largest(flat, pool.keep)
        ends = np.cumsum([r.size for r in ranked])[:-1]
        for path, part in zip(pool.paths, np.split(kept, ends), strict=True):
            masks[path] = part.reshape(np.shape(scores[path]))
    return {path: masks[path] for path in scores}


def finite_weights(
    model: keras.Model, filters: Filters = None
) -> dict[str, np.ndarray]:
    """The values of the prunable weights.

    Raises:
        ValueError: If one is NaN or infinite, naming the tensors.
    """
    weights = values_of(prunable_weights(model, filters))
    broken = [
        path
        for path, w in weights.items()
        if not np.isfinite(w.astype(np.float32, copy=False)).all()
    ]
    if broken:
        raise ValueError(
            "Weights must be finite to be ranked; has training diverged? "
            f"Received: NaN or infinity in {len(broken)} tensors: "
            f"{', '.join(broken[:5])}"
        )
    return weights


def describe(
    sparsity: float | None,
    criterion: str | criteria.Criterion,
    scope: scopes.Scope,
    seed: int,
) -> dict[str, object]:
    """The choices behind a ticket as JSON values."""
    return {
        "requested_sparsity": None if sparsity is None else float(sparsity),
        "criterion": _name(criterion),
        "scope": dict(scope) if isinstance(scope, Mapping) else _name(scope),
        "seed": seed,
    }


def _name(choice: object) -> str:
    choice = getattr(choice, "func", choice)
    return (
        choice
        if isinstance(choice, str)
        else str(getattr(choice, "__qualname__", type(choice).__name__))
    )
