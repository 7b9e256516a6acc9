"""Exact selection: which scores survive, to the weight, whatever the ties."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from tf_tickets.pruning.scopes import Pool

# Below this many scores a plain partition is as fast as sampling first.
_SMALL = 1 << 18
_SAMPLE = 1 << 17


def keep_largest(scores: np.ndarray, keep: int) -> np.ndarray:
    """Mask of the ``keep`` largest scores; of equal ones, the first.

    A sample brackets the threshold, so that only the few scores inside the
    bracket are partitioned (Floyd and Rivest, "Expected time bounds for
    selection", CACM 1975): a third of the time of ``np.partition`` on 25
    million scores. Sampling decides only the speed, never the result.

    Args:
        scores: One-dimensional, real, without NaN.
        keep: How many to keep, in [0, ``scores.size``].

    Returns:
        Boolean array of ``scores.size`` with exactly ``keep`` true.

    Raises:
        ValueError: If ``scores`` is no such array or ``keep`` out of range.

    Example:

    >>> keep_largest(np.array([3.0, 1.0, 3.0, 3.0]), 2)
    array([ True, False,  True, False])
    """
    if not isinstance(scores, np.ndarray) or scores.ndim != 1:
        raise ValueError(
            "`scores` must be a one-dimensional array. "
            f"Received: scores={scores!r}"[:500]
        )
    if not 0 <= keep <= scores.size:
        raise ValueError(
            f"`keep` must lie in [0, {scores.size}]. Received: keep={keep}"
        )
    if keep in (0, scores.size):
        return np.full(scores.size, keep > 0)
    if scores.size > _SMALL:
        low, high = _bracket(scores, keep)
        kept = scores > high
        surplus = int(np.count_nonzero(kept))
        inside = scores >= low
        crowd = int(np.count_nonzero(inside))
        if surplus <= keep <= crowd:
            if crowd - surplus > scores.size // 8:
                # A block of ties at an end of the bracket, such as the -inf of
                # what is pruned already: partitioning it would be slow.
                for edge in (low, high):
                    found = _tied(scores, keep, edge)
                    if found is not None:
                        return found
                inside = scores > low
            inside ^= kept
            candidates = np.flatnonzero(inside)
            kept[candidates] = _partition(scores[candidates], keep - surplus)
            return kept
    return _partition(scores, keep)


class Units(NamedTuple):
    """What is kept or pruned as one, of one tensor.

    Attributes:
        scores: One for each unit.
        sizes: How many weights that may be kept each unit has; where each is
            one weight, whether it may be kept.
        spread: ``(mask of the units) -> mask of the tensor``.
        turns: Of units that are one weight each: those of an earlier turn
            are all kept before any of a later one; turns are counted from 0
            without gaps. `None` if scores alone decide.
    """

    scores: np.ndarray
    sizes: np.ndarray
    spread: Callable[[np.ndarray], np.ndarray]
    turns: np.ndarray | None = None


def single_weights(path: str, scores: np.ndarray, active: np.ndarray) -> Units:
    """Every weight for itself."""
    del path
    return Units(
        scores.ravel(), active.ravel(), lambda kept: kept.reshape(scores.shape)
    )


def select(
    scores: Mapping[str, np.ndarray],
    pools: list[Pool],
    active: Mapping[str, np.ndarray],
    units: Callable[[str, np.ndarray, np.ndarray], Units] = single_weights,
    *,
    share: bool = False,
) -> dict[str, np.ndarray]:
    """Masks that keep each pool's count of best scores.

    Args:
        scores: ``{path: real array}``.
        pools: Groups of paths, how many weights each keeps, and how many at
            least of every path.
        active: ``{path: mask}`` of the weights that may be kept at all.
        units: ``(path, scores, active) -> Units``: what is kept or pruned as
            one; every weight for itself by default. Units of several weights
            fill a budget, best first, until the next is too large for it.
        share: Whether what the units of one pool cannot fill may go to the
            next unit of another, at most one each.

    Returns:
        ``{path: boolean array}``; of equal scores the first in the order of
        the paths and, within a tensor, of the indices is kept.

    Raises:
        ValueError: If a score is NaN, or scores do not fit the weights.
    """
    paths = {path for pool in pools for path in pool.paths}
    if set(scores) != paths:
        raise ValueError(
            "There must be scores for every weight that is ranked and for no "
            f"other. Received: {sorted(set(scores) ^ paths)} missing or unknown"
        )
    filled = [
        _filled(
            pool,
            [
                units(path, _checked(path, scores[path], active), active[path])
                for path in pool.paths
            ],
        )
        for pool in pools
    ]
    if share:
        _share(filled)
    masks: dict[str, np.ndarray] = {}
    for one in filled:
        ends = np.cumsum([part.scores.size for part in one.parts])[:-1]
        kept = np.split(one.kept, ends)
        for path, part, mask in zip(
            one.pool.paths, one.parts, kept, strict=True
        ):
            masks[path] = part.spread(mask)
    return {path: masks[path] for path in scores}


def _checked(
    path: str, score: np.ndarray, active: Mapping[str, np.ndarray]
) -> np.ndarray:
    score = np.asarray(score)
    if score.shape != active[path].shape:
        raise ValueError(
            f"The scores of {path} must have its shape "
            f"{active[path].shape}. Received: shape {score.shape}"
        )
    if score.dtype.kind not in "fiu":
        score = score.astype(np.float32)  # bfloat16
    if np.isnan(score).any():
        raise ValueError(f"Scores must not be NaN. Received: NaN in {path}")
    return score


class _Filled(NamedTuple):
    """A pool, its units, and which of them it keeps."""

    pool: Pool
    parts: list[Units]
    scores: np.ndarray
    sizes: np.ndarray
    kept: np.ndarray


def _filled(pool: Pool, parts: list[Units]) -> _Filled:
    scores = _joined([part.scores for part in parts])
    sizes = _joined([part.sizes for part in parts])
    turns = None
    if all(part.turns is not None for part in parts):
        turns = _joined([p.turns for p in parts if p.turns is not None])
    if sizes.dtype != bool and np.isnan(scores).any():
        raise ValueError(
            "Scores of both infinities have no mean. Received: such in "
            f"{', '.join(pool.paths[:5])}"
        )
    kept = _best_in_turn(scores, sizes, turns, pool.keep)
    ends = np.cumsum([part.scores.size for part in parts])[:-1]
    if pool.least and any(
        _weight(part.sizes, mask) < _least(pool, part.sizes)
        for part, mask in zip(parts, np.split(kept, ends), strict=True)
    ):
        # The best of every tensor first, then the best of the others.
        sure = _joined(
            [_enough(p.scores, p.sizes, _least(pool, p.sizes)) for p in parts]
        )
        rest = pool.keep - _weight(sizes, sure)
        if rest < 0:
            raise ValueError(
                f"{pool.keep} weights are too few to keep at least "
                f"{pool.least} in each of {len(pool.paths)} tensors. "
                f"Received: at_least({pool.least})"
            )
        others = np.where(sure, np.zeros((), sizes.dtype), sizes)
        kept = sure | _best_in_turn(scores, others, turns, rest)
    return _Filled(pool, parts, scores, sizes, kept)


def _share(filled: list[_Filled]) -> None:
    """Give what large units have left over to those that miss most."""
    spare = [one.pool.keep - _weight(one.sizes, one.kept) for one in filled]
    rest = sum(spare)
    for i in sorted(range(len(filled)), key=lambda i: -spare[i]):
        if not spare[i]:
            return
        one = filled[i]
        free = np.flatnonzero((one.sizes > 0) & ~one.kept)
        if free.size:
            following = free[np.argmax(one.scores[free])]
            if one.sizes[following] <= rest:
                one.kept[following] = True
                rest -= int(one.sizes[following])


def _weight(sizes: np.ndarray, kept: np.ndarray) -> int:
    """How many weights the kept units hold."""
    if sizes.dtype == bool:
        return int(np.count_nonzero(kept))
    return int(np.sum(sizes, where=kept, dtype=np.int64))


def _least(pool: Pool, sizes: np.ndarray) -> int:
    return min(pool.least, int(sizes.sum(dtype=np.int64)))


def _best_in_turn(
    scores: np.ndarray, sizes: np.ndarray, turns: np.ndarray | None, keep: int
) -> np.ndarray:
    if turns is None:
        return _best(scores, sizes, keep)
    turn, kept = 0, np.zeros(scores.size, bool)
    while keep:
        following = sizes & (turns == turn)
        count = int(np.count_nonzero(following))
        if not 0 < count <= keep:
            return kept | _best(scores, following, keep if count else 0)
        kept |= following
        keep -= count
        turn += 1
    return kept


def _enough(scores: np.ndarray, sizes: np.ndarray, least: int) -> np.ndarray:
    """Mask of the fewest best units that hold ``least`` weights."""
    if sizes.dtype == bool:
        return _best(scores, sizes, least)
    kept = np.zeros(scores.size, bool)
    order, total = _totals(scores, sizes)
    kept[order[: int(np.searchsorted(total, least, "left")) + 1]] = least > 0
    return kept


def _totals(
    scores: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Units that may be kept, best first, and how many weights they add up
    to."""
    free = np.flatnonzero(sizes)
    order = free[np.argsort(-scores[free], kind="stable")]
    return order, np.cumsum(sizes[order])


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _best(scores: np.ndarray, sizes: np.ndarray, keep: int) -> np.ndarray:
    """Mask of the largest scores whose units hold ``keep`` weights at most.

    Units of size 0 are not kept.
    """
    allowed = sizes if sizes.dtype == bool else sizes > 0
    if sizes.dtype != bool:
        largest = int(sizes.max(initial=0))
        if (sizes[allowed] != largest).any():
            kept = np.zeros(scores.size, bool)
            order, total = _totals(scores, sizes)
            kept[order[: int(np.searchsorted(total, keep, "right"))]] = True
            return kept
        keep = min(keep // max(largest, 1), int(np.count_nonzero(allowed)))
    if allowed.all():
        return keep_largest(scores, keep)
    if scores.dtype.kind == "f":
        kept = keep_largest(np.where(allowed, scores, -np.inf), keep)
        if not (kept & ~allowed).any():
            return kept
    # A score of -inf that is allowed comes before one that is not; and whole
    # numbers have no infinity. This way takes twice the time.
    kept = np.zeros(scores.size, bool)
    kept[allowed] = keep_largest(scores[allowed], keep)
    return kept


def _tied(
    scores: np.ndarray, keep: int, edge: np.floating
) -> np.ndarray | None:
    """The mask, if ``edge`` is the threshold."""
    kept: np.ndarray = scores > edge
    missing = keep - int(np.count_nonzero(kept))
    if missing < 0:
        return None
    ties = np.flatnonzero(scores == edge)
    if missing > ties.size:
        return None
    kept[ties[:missing]] = True
    return kept


def _bracket(scores: np.ndarray, keep: int) -> tuple[np.floating, np.floating]:
    """Two values between which the ``keep``-th largest score lies, surely
    enough (five standard deviations of its rank in the sample)."""
    picks = np.random.default_rng(0).integers(0, scores.size, _SAMPLE)
    sample = np.sort(scores[picks])
    fraction = 1 - keep / scores.size
    rank = fraction * _SAMPLE
    slack = 5 * np.sqrt(_SAMPLE * fraction * (1 - fraction)) + 5
    low = sample[max(int(rank - slack), 0)]
    high = sample[min(int(rank + slack), _SAMPLE - 1)]
    return low, high


def _partition(scores: np.ndarray, keep: int) -> np.ndarray:
    if keep == 0:
        return np.zeros(scores.size, bool)
    threshold = np.partition(scores, scores.size - keep)[scores.size - keep]
    kept: np.ndarray = scores > threshold
    ties = np.flatnonzero(scores == threshold)
    kept[ties[: keep - np.count_nonzero(kept)]] = True
    return kept
