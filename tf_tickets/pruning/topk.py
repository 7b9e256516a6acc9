"""Exact selection: which scores survive, to the weight, whatever the ties."""

from __future__ import annotations

from collections.abc import Mapping

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


def select(
    scores: Mapping[str, np.ndarray],
    pools: list[Pool],
    active: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Masks that keep each pool's count of best scores.

    Args:
        scores: ``{path: real array}``.
        pools: Groups of paths, how many weights each keeps, and how many at
            least of every path.
        active: ``{path: mask}`` of the weights that may be kept at all.

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
    masks: dict[str, np.ndarray] = {}
    for pool in pools:
        ranked, allowed = [], []
        for path in pool.paths:
            score = np.asarray(scores[path])
            if score.shape != active[path].shape:
                raise ValueError(
                    f"The scores of {path} must have its shape "
                    f"{active[path].shape}. Received: shape {score.shape}"
                )
            if score.dtype.kind not in "fiu":
                score = score.astype(np.float32)  # bfloat16
            if np.isnan(score).any():
                raise ValueError(
                    f"Scores must not be NaN. Received: NaN in {path}"
                )
            ranked.append(score.ravel())
            allowed.append(active[path].ravel())
        kept = _best(_joined(ranked), _joined(allowed), pool.keep)
        ends = np.cumsum([r.size for r in ranked])[:-1]
        parts = np.split(kept, ends)
        if any(
            np.count_nonzero(part) < _least(pool, a)
            for part, a in zip(parts, allowed, strict=True)
        ):
            # The best of every tensor first, then the best of the others.
            sure = _joined(
                [
                    _best(r, a, _least(pool, a))
                    for r, a in zip(ranked, allowed, strict=True)
                ]
            )
            rest = pool.keep - int(np.count_nonzero(sure))
            if rest < 0:
                raise ValueError(
                    f"{pool.keep} weights are too few to keep at least "
                    f"{pool.least} in each of {len(pool.paths)} tensors. "
                    f"Received: at_least({pool.least})"
                )
            others = _joined(allowed) & ~sure
            kept = sure | _best(_joined(ranked), others, rest)
            parts = np.split(kept, ends)
        for path, part in zip(pool.paths, parts, strict=True):
            masks[path] = part.reshape(np.shape(scores[path]))
    return {path: masks[path] for path in scores}


def _least(pool: Pool, allowed: np.ndarray) -> int:
    return min(pool.least, int(np.count_nonzero(allowed)))


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _best(scores: np.ndarray, allowed: np.ndarray, keep: int) -> np.ndarray:
    """Mask of the ``keep`` largest of those scores that are ``allowed``."""
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
