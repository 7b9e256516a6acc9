"""Which scores survive: an exact count, whatever the ties."""

from __future__ import annotations

import numpy as np

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
