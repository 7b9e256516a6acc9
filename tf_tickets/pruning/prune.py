"""From a model to a ticket: scores, budget, exact selection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from tf_tickets import checks, masking, progress
from tf_tickets.masks import Arrays, Each, given
from tf_tickets.pruning import criteria, patterns, scopes
from tf_tickets.pruning.topk import select, single_weights
from tf_tickets.selection import (
    Filters,
    named_weights,
    prunable_weights,
    values_of,
    view_of,
)
from tf_tickets.ticket import Ticket


def prune(
    model: keras.Model,
    sparsity: float | None = None,
    *,
    criterion: str | criteria.Criterion = "magnitude",
    scope: scopes.Scope = "global",
    pattern: patterns.Pattern | None = None,
    data: Any = None,
    filters: Filters = None,
    iterations: int | None = None,
    seed: int = 0,
    weights: bool = True,
    verbose: progress.Verbosity = "auto",
) -> Ticket:
    """Draw a ticket from the weights that ``model`` has now.

    The model is only read: `Ticket.apply` puts the ticket in force. Weights
    under a mask that is enforced already stay pruned.

    Args:
        model: A built Keras model.
        sparsity: Fraction of the prunable weights that the masks zero, in
            [0, 1); exact to the weight. `None` if ``scope`` is a mapping, or
            for a pattern N:M.
        criterion: How weights are scored, `"magnitude"` by default: a name in
            `tf_tickets.pruning.CRITERIA` or a callable (see
            `tf_tickets.pruning.criteria`).
        scope: How the budget is spread. `"global"`, the default, ranks all
            weights together; `"layer"` gives every tensor the same sparsity;
            `"erk"` keeps small tensors denser; `"smart_ratio"` keeps early
            layers denser (`tf_tickets.pruning.SCOPES` has more names). A
            mapping ``{pattern: sparsity}`` gives the sparsity of each tensor;
            a callable ``(shapes, density) -> {path: density}`` decides.
            `tf_tickets.pruning.at_least` leaves no tensor without weights.
        pattern: Which weights are kept or pruned together. `None`, the
            default: every weight for itself. `"2:4"`, or any `"N:M"`, keeps N
            of every M consecutive inputs of an output, and says the sparsity
            itself. ``(4, 1)``, or any other block of inputs × outputs,
            `"rows"`, `"columns"` and a callable ``(rows, columns) -> group
            numbers`` are kept or pruned whole, as many as the sparsity
            allows. See `tf_tickets.pruning.patterns`.
        data: What the criterion scores on, for criteria that need it; see
            `tf_tickets.loss.batches.batches`.
        filters: Which weights may be pruned; see
            `tf_tickets.prunable_weights`. `None` for every kernel.
        iterations: The number of drawings on the way to the target, each
            scored under the masks of the one before, with densities that
            fall by equal factors. `None` leaves it to the criterion: 100 for
            `"synflow"`, 1 for the others.
        seed: For criteria that draw at random; 0 by default.
        weights: Whether the ticket holds the model's present weights, to
            start from, and its scores; `True` by default. Without them it is
            masks alone, one byte a weight in memory: what a model takes that
            fills the machine. ``ticket.apply(model, weights="keep")`` puts it
            in force; whatever needs start weights says so.
        verbose: `"auto"`, the default, shows a bar of the drawings, or of the
            batches that are read, once they have taken a second; 1 at once;
            2 one line at the end; 0 nothing.

    Returns:
        A ticket whose start weights are the model's present weights, with the
        scores of the last drawing. (Magnitudes take no memory: they are
        computed from the start weights when somebody asks.)

    A mask that leaves a tensor without any weight is warned of: what comes
    after that layer is constant.

    Raises:
        ValueError: On a sparsity out of range or below the present one, an
            unknown criterion, scope or pattern, a filter that matches
            nothing, a pattern that contradicts the sparsity or the scope or
            prunes nothing of a weight, weights that are NaN or infinite.

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
    seed = checks.whole("seed", seed, least=0)
    checks.choice("weights", weights, (True, False))
    sparsity = patterns.sparsity_for(pattern, sparsity, scope)
    scores: Arrays | None
    with progress.shown(verbose):
        masks, scores = draw_masks(
            model,
            sparsity,
            criterion=criterion,
            scope=scope,
            pattern=pattern,
            data=data,
            filters=filters,
            iterations=iterations,
            seed=seed,
        )
    start = given(values_of(named_weights(model))) if weights else None
    if start is None:
        scores = None
    elif isinstance(scores, Each):
        # As they were, and not those of what the model becomes.
        scores = Each(scores.score, {path: start[path] for path in scores})
    elif criteria.is_known(criterion):
        scores = given(scores)
    return Ticket(
        given(masks),
        start,
        {
            "source": "prune",
            **describe(sparsity, criterion, scope, seed, pattern),
        },
        scores=scores,
    )


def draw_masks(
    model: keras.Model,
    sparsity: float | None,
    *,
    criterion: str | criteria.Criterion,
    scope: scopes.Scope,
    pattern: patterns.Pattern | None = None,
    data: Any = None,
    filters: Filters = None,
    iterations: int | None = None,
    seed: int = 0,
) -> tuple[dict[str, np.ndarray], Arrays]:
    """``(masks, scores)`` of `prune`, without the ticket around them.

    The scores may look at the weights of the model, and change as it trains.
    """
    asked = iterations
    iterations = (
        criteria.drawings(criterion)
        if asked is None
        else checks.whole("iterations", asked)
    )
    check_finite(model, filters)
    masks = current_masks(model, filters)
    if asked and asked > sum(mask.size for mask in masks.values()):
        raise ValueError(
            "There are more `iterations` than weights to prune. "
            f"Received: iterations={iterations}"
        )
    layout = patterns.layout_on(model, pattern, masks)
    # The budget is checked before the first, maybe costly, scoring.
    targets = [
        scopes.at_progress(scope, sparsity, sparsity_of(masks), i / iterations)
        for i in range(1, iterations + 1)
    ]
    budget(*targets[-1], masks, layout)
    score = criteria.scorer(
        criterion, model, data=data, seed=seed, again=iterations > 1
    )
    before = masks
    name = describe(None, criterion, scope, seed)["criterion"]
    with progress.bar(
        f"Drawing masks by {name}", iterations, unit="drawing"
    ) as step:
        for target in targets:
            scores = _scores_of(score, masks, name)
            masks = select(
                scores,
                budget(*target, masks, layout),
                masks,
                single_weights if layout is None else layout.units,
                share=layout is not None and not isinstance(scope, Mapping),
            )
            step()
    warn_of_collapse(masks, before)
    return masks, scores


def _scores_of(
    score: Callable[[Arrays], Arrays], masks: Arrays, name: object
) -> Arrays:
    """What a criterion says, if it speaks of every weight and of no other."""
    found = score(masks)
    if not isinstance(found, Mapping) or found.keys() != masks.keys():
        found = found if isinstance(found, Mapping) else {}
        parts = {
            "without scores": [path for path in masks if path not in found],
            "unknown": [path for path in found if path not in masks],
        }
        listed = [
            f"{what}: {', '.join(map(str, paths[:8]))}"
            + (", ..." if len(paths) > 8 else "")
            for what, paths in parts.items()
            if paths
        ]
        raise ValueError(
            "A criterion must return {path: scores} for every path of the "
            "masks that it is given, and for no other; to leave weights "
            "alone, use `filters`. Received: "
            f"criterion={name!r} with {'; '.join(listed)}"
        )
    return found if isinstance(found, Each) else dict(found)


def check_criterion(
    model: keras.Model,
    criterion: str | criteria.Criterion,
    masks: Arrays,
    *,
    data: Any = None,
    seed: int = 0,
) -> None:
    """Try a criterion of the user's own, before a training relies on it.

    Args:
        model: A built Keras model.
        criterion: As in `prune`; those of `criteria.CRITERIA` are not tried.
        masks: ``{path: boolean array}``.
        data: What to score on.
        seed: Of random draws.

    Raises:
        ValueError: If it does not score every path, and no other.
    """
    if not criteria.is_known(criterion):
        score = criteria.scorer(criterion, model, data=data, seed=seed)
        name = describe(None, criterion, "global", seed)["criterion"]
        _scores_of(score, masks, name)


def warn_of_collapse(
    masks: Mapping[str, np.ndarray],
    before: Mapping[str, np.ndarray] | None = None,
) -> list[str]:
    """Warn of tensors that masks leave without any weight.

    Args:
        masks: ``{path: boolean array}``.
        before: The masks that these follow: what they had emptied is not
            told again.

    Returns:
        The paths of the tensors that were warned of.
    """
    empty = [
        path
        for path, mask in masks.items()
        if mask.size
        and not mask.any()
        and (before is None or path not in before or before[path].any())
    ]
    if empty:
        checks.warn(
            "No weight is kept in "
            + (
                "any tensor"
                if not any(mask.any() for mask in masks.values())
                else f"{len(empty)} of {len(masks)} tensors"
            )
            + ": what comes after such a layer is constant. Prune less, take "
            "scope=tf_tickets.pruning.at_least(1), another scope or "
            f"criterion='lamp'. Received: {', '.join(empty[:8])}"
            + (", ..." if len(empty) > 8 else "")
        )
    return empty


def budget(
    sparsity: float | None,
    scope: scopes.Scope,
    masks: Mapping[str, np.ndarray],
    layout: patterns.Layout | None = None,
) -> list[scopes.Pool]:
    """What is kept of each tensor or of all, if it can be drawn from here.

    Args:
        sparsity: As in `prune`.
        scope: As in `prune`.
        masks: Those of the moment.
        layout: The pattern on the model, or `None`.

    Raises:
        ValueError: As `tf_tickets.pruning.scopes.pools`.
    """
    if layout is not None:
        return layout.pools(scope, sparsity, masks)
    return scopes.pools(
        scope,
        {path: m.shape for path, m in masks.items()},
        sparsity,
        {path: int(np.count_nonzero(m)) for path, m in masks.items()},
    )


def current_masks(
    model: keras.Model, filters: Filters = None
) -> dict[str, np.ndarray]:
    """The mask of every prunable weight; all true where none is enforced.

    What is all true can only be read.
    """
    attached = masking.attached_masks(model)
    weights = prunable_weights(model, filters)
    shapes = {
        path: tuple(variable.shape)
        for path, variable in weights.items()
        if path not in attached
    }
    sizes = [int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()]
    # One for all, which nobody can write: a second set of masks would be felt.
    ones = np.ones(max(sizes, default=0), bool)
    ones.flags.writeable = False
    dense = {
        path: ones[:size].reshape(shape)
        for (path, shape), size in zip(shapes.items(), sizes, strict=True)
    }
    return {
        path: attached[path] if path in attached else dense[path]
        for path in weights
    }


def sparsity_of(masks: Mapping[str, np.ndarray]) -> float:
    """Fraction of all positions that ``masks`` prune."""
    size = sum(m.size for m in masks.values())
    kept = sum(int(np.count_nonzero(m)) for m in masks.values())
    return (size - kept) / size if size else 0.0


def excess(
    masks: Mapping[str, np.ndarray],
    sparsity: float,
    layout: patterns.Layout | None = None,
) -> int:
    """How many weights more ``masks`` keep than a sparsity allows.

    Whether masks are as sparse as asked is a question of counts: 38 of 192
    weights are what a sparsity of 0.8 keeps, and more than 0.8 as a fraction.

    Args:
        masks: ``{path: boolean array}``.
        sparsity: In [0, 1).
        layout: The pattern on the model, or `None`: one that keeps more
            whatever is asked is as sparse as it can be.

    Returns:
        0 where they are exactly as sparse as asked; less where sparser.

    Example:

    >>> masks = {"kernel": np.arange(192) < 38}
    >>> excess(masks, 0.8), excess(masks, 0.9)
    (0, 19)
    """
    size = sum(m.size for m in masks.values())
    kept = sum(int(np.count_nonzero(m)) for m in masks.values())
    wanted = scopes.kept_count(sparsity, size)
    return kept - (
        wanted if layout is None else max(wanted, layout.floor(masks))
    )


def check_finite(model: keras.Model, filters: Filters = None) -> None:
    """Raise if a prunable weight is NaN or infinite, naming the tensors.

    Raises:
        ValueError: As said.
    """
    weights = prunable_weights(model, filters)
    checks.finite(
        "Weights that are ranked",
        {path: view_of(variable) for path, variable in weights.items()},
        "has training diverged?",
    )


def describe(
    sparsity: float | None,
    criterion: str | criteria.Criterion,
    scope: scopes.Scope,
    seed: int,
    pattern: patterns.Pattern | None = None,
) -> dict[str, object]:
    """The choices behind a ticket as JSON values."""
    own = {} if pattern is None else {"pattern": patterns.name_of(pattern)}
    return {
        **own,
        "requested_sparsity": None if sparsity is None else float(sparsity),
        "criterion": _name(criterion),
        "scope": dict(scope) if isinstance(scope, Mapping) else _name(scope),
        "seed": seed,
    }


def _name(choice: object) -> str:
    if isinstance(choice, scopes.AtLeast):
        return f"at_least({choice.weights}, {_name(choice.scope)!r})"
    return checks.word_for(choice)
