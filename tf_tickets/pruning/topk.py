"""Exact selection: which scores survive, to the weight, whatever the ties."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tf_tickets.checks import PIECE
from tf_tickets.masks import Arrays, Each
from tf_tickets.pruning.scopes import Pool

# Below this many scores a plain partition is as fast as sampling first.
_SMALL = 1 << 18
_SAMPLE = 1 << 17


def keep_largest(scores: np.ndarray, keep: int) -> np.ndarray:
    """Mask of the ``keep`` largest scores; of equal ones, the first.

    A sample brackets the threshold, so that only the few scores inside the
    bracket are partitioned (Floyd and Rivest, "Expected time bounds for
    selection", CACM 1975), and the rest is compared piece by piece, as long
    as it is in the processor's cache. Sampling decides only the speed, never
    the result.

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
    return _largest([_Ranked("", scores, None)], keep)[0]


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
    scores: Arrays,
    pools: list[Pool],
    active: Arrays,
    units: Callable[[str, np.ndarray, np.ndarray], Units] = single_weights,
    *,
    share: bool = False,
) -> dict[str, np.ndarray]:
    """Masks that keep each pool's count of best scores.

    Weights for themselves are ranked where they lie: beside the masks there
    is never more than a piece of one tensor.

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
    if units is single_weights:
        single: dict[str, np.ndarray] = {}
        for pool in pools:
            single |= _best_weights(pool, scores, active)
        return {path: single[path] for path in scores}
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
    score = _real(np.asarray(score))
    _check_shape(path, score.shape, active)
    _check_nan(path, score)
    return score


def _check_shape(path: str, shape: tuple[int, ...], active: Arrays) -> None:
    if shape != active[path].shape:
        raise ValueError(
            f"The scores of {path} must have its shape "
            f"{active[path].shape}. Received: shape {shape}"
        )


def _real(scores: np.ndarray) -> np.ndarray:
    if scores.dtype.kind not in "fiu":
        return scores.astype(np.float32)  # bfloat16
    return scores


def _check_nan(path: str, scores: np.ndarray) -> None:
    if scores.dtype.kind == "f" and np.isnan(scores).any():
        raise ValueError(f"Scores must not be NaN. Received: NaN in {path}")


class _Ranked:
    """The scores of one tensor, of which some may be kept.

    Args:
        path: Of the tensor, for the error; empty for no check.
        values: Its scores, or what they are computed from.
        allowed: Which may be kept; `None` for all.
        score: From values to scores, element by element; `None` if they are.
    """

    def __init__(
        self,
        path: str,
        values: np.ndarray,
        allowed: np.ndarray | None,
        score: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.path = path
        self.shape, self.size = values.shape, values.size
        self._values, self._flat = values, values.reshape(-1)
        self._score = score
        self.count = self.size
        self.allowed = None
        if allowed is not None:
            self.count = int(np.count_nonzero(allowed))
            if self.count < self.size:
                self.allowed = allowed.reshape(-1)
        self.dtype = self.at(slice(0, 0)).dtype

    def at(self, where: slice | np.ndarray) -> np.ndarray:
        """Scores of a part, the tensor being flat."""
        part = self._flat[where]
        return _real(part if self._score is None else self._score(part))

    def pieces(
        self, dtype: np.dtype, starts: Sequence[int] | None = None
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """``(where, scores)`` of parts that fit the cache, in order."""
        for start in range(0, self.size, PIECE) if starts is None else starts:
            where = slice(start, min(start + PIECE, self.size))
            part = self.at(where)
            if self.path:
                _check_nan(self.path, part)
            yield where, part.astype(dtype, copy=False)

    def may(self, where: slice, mask: np.ndarray) -> np.ndarray:
        """The mask of a part without what may not be kept, in place."""
        if self.allowed is not None:
            mask &= self.allowed[where]
        return mask

    def without(self, sure: np.ndarray) -> _Ranked:
        """The same where what is surely kept is not ranked."""
        rest = ~sure
        if self.allowed is not None:
            rest &= self.allowed.reshape(self.shape)
        return _Ranked(self.path, self._values, rest, self._score)


def _best_weights(
    pool: Pool, scores: Arrays, active: Arrays
) -> dict[str, np.ndarray]:
    """``{path: mask}`` of a pool whose weights are ranked each for itself."""
    held: Arrays = scores
    score = None
    if isinstance(scores, Each):
        held, score = scores.weights, scores.score
    parts = []
    for path in pool.paths:
        values = np.asarray(held[path])
        _check_shape(path, values.shape, active)
        parts.append(_Ranked(path, values, active[path], score))
    kept = _largest(parts, pool.keep)
    floors = [min(pool.least, part.count) for part in parts]
    if any(
        int(np.count_nonzero(mask)) < floor
        for mask, floor in zip(kept, floors, strict=True)
    ):
        # The best of every tensor first, then the best of the others.
        kept = [
            _largest([part], floor)[0]
            for part, floor in zip(parts, floors, strict=True)
        ]
        _check_floor(pool, rest := pool.keep - sum(floors))
        others = [p.without(k) for p, k in zip(parts, kept, strict=True)]
        for mask, more in zip(kept, _largest(others, rest), strict=True):
            mask |= more
    return dict(zip(pool.paths, kept, strict=True))


def _check_floor(pool: Pool, rest: int) -> None:
    if rest < 0:
        raise ValueError(
            f"{pool.keep} weights are too few to keep at least "
            f"{pool.least} in each of {len(pool.paths)} tensors. "
            f"Received: at_least({pool.least})"
        )


def _largest(parts: Sequence[_Ranked], keep: int) -> list[np.ndarray]:
    """Masks of the ``keep`` largest scores of several tensors together.

    Of equal ones the first is kept, in the order of the tensors and, within
    one, of the indices.
    """
    dtype = np.result_type(*(part.dtype for part in parts))
    size = sum(part.size for part in parts)
    if size <= _SMALL:
        return _gathered(parts, keep, dtype)
    count = sum(part.count for part in parts)
    if 0 < keep < count:
        masks = _between(parts, keep, *_bracket(parts, keep, dtype))
        return _gathered(parts, keep, dtype) if masks is None else masks
    for part in parts:
        if part.path:
            for _ in part.pieces(dtype):
                pass  # looks for NaN
    if keep not in (0, count):
        raise _impossible(keep, count)
    return [
        np.full(part.shape, keep > 0)
        if part.allowed is None or not keep
        else np.array(part.allowed.reshape(part.shape))
        for part in parts
    ]


def _between(
    parts: Sequence[_Ranked], keep: int, low: Any, high: Any
) -> list[np.ndarray] | None:
    """The masks, if the threshold lies in [``low``, ``high``]."""
    masks: list[np.ndarray] = []
    above = 0
    inside: list[list[np.ndarray]] = []
    values: list[np.ndarray] = []
    # Where scores lie that are one of the edges, and how many there are.
    edges: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    tied = {True: 0, False: 0}
    for number, part in enumerate(parts):
        masks.append(np.empty(part.shape, bool))
        mask = masks[-1].reshape(-1)
        places: list[np.ndarray] = [np.empty(0, np.int64)]
        for where, scores in part.pieces(low.dtype):
            kept = part.may(where, np.greater(scores, high, out=mask[where]))
            above += int(np.count_nonzero(kept))
            if above > keep:
                return None
            found = part.may(where, scores >= low)
            found ^= kept
            some = np.flatnonzero(found)
            if not some.size:
                continue
            near = scores[some]
            for is_high in (True, False) if low < high else (True,):
                equal = near == (high if is_high else low)
                more = int(np.count_nonzero(equal))
                if more:
                    tied[is_high] += more
                    edges[is_high].append((number, where.start))
            between = (near > low) & (near < high)
            values.append(near[between])
            places.append(some[between] + where.start)
        inside.append(places)
    missing = keep - above

    def take_first(count: int, is_high: bool) -> None:
        """Keep the first of those that are at an edge."""
        for number, start in edges[is_high]:
            part = parts[number]
            for where, scores in part.pieces(low.dtype, [start]):
                equal = scores == (high if is_high else low)
                found = np.flatnonzero(part.may(where, equal))[:count]
                masks[number].reshape(-1)[found + where.start] = True
                count -= found.size
            if not count:
                return

    take_first(min(missing, tied[True]), True)
    missing -= min(missing, tied[True])
    if not missing:
        return masks
    among: np.ndarray = np.concatenate(values or [np.empty(0, low.dtype)])
    del values
    if missing > among.size + tied[False]:
        return None
    [best] = _largest([_Ranked("", among, None)], min(missing, among.size))
    start = 0
    for whole, places in zip(masks, inside, strict=True):
        every = np.concatenate(places)
        stop = start + every.size
        whole.reshape(-1)[every[best[start:stop]]] = True
        start = stop
    if missing > among.size:
        take_first(missing - among.size, False)
    return masks


def _gathered(
    parts: Sequence[_Ranked], keep: int, dtype: np.dtype
) -> list[np.ndarray]:
    """As `_largest`, of few scores, or where the sample was misled."""
    pieces = [s for part in parts for _, s in part.pieces(dtype)]
    scores: np.ndarray = np.concatenate(pieces or [np.empty(0, dtype)])
    count = sum(part.count for part in parts)
    if not 0 <= keep <= count:
        raise _impossible(keep, count)
    if count < scores.size:
        allowed = np.concatenate(
            [
                np.ones(part.size, bool)
                if part.allowed is None
                else part.allowed
                for part in parts
            ]
        )
        kept = np.zeros(scores.size, bool)
        kept[allowed] = _partition(scores[allowed], keep)
    else:
        kept = _partition(scores, keep)
    ends = np.cumsum([part.size for part in parts])[:-1]
    return [
        np.array(mask.reshape(part.shape))
        for part, mask in zip(parts, np.split(kept, ends), strict=True)
    ]


def _impossible(keep: int, count: int) -> ValueError:
    return ValueError(f"`keep` must lie in [0, {count}]. Received: keep={keep}")


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
        _check_floor(pool, rest)
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
    return _largest([_Ranked("", scores, allowed)], keep)[0]


def _bracket(
    parts: Sequence[_Ranked], keep: int, dtype: np.dtype
) -> tuple[Any, Any]:
    """Two values between which the ``keep``-th largest score lies, surely
    enough (five standard deviations of its rank in the sample)."""
    info = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    least, most = (
        (-np.inf, np.inf) if dtype.kind == "f" else (info.min, info.max)
    )
    size = sum(part.size for part in parts)
    rng, end, found = np.random.default_rng(0), 0, []
    for part in parts:
        # Every tensor has its share, and all shares add up.
        begin, end = end, end + part.size
        share = end * _SAMPLE // size - begin * _SAMPLE // size
        where = rng.integers(0, max(part.size, 1), share)
        scores = part.at(where).astype(dtype)
        if part.allowed is not None:
            scores[~part.allowed[where]] = least
        found.append(scores)
    sample = np.sort(np.concatenate(found))
    fraction = 1 - keep / size
    rank = fraction * _SAMPLE
    slack = 5 * np.sqrt(_SAMPLE * fraction * (1 - fraction)) + 5
    low, high = int(rank - slack), int(rank + slack)
    return (
        dtype.type(least) if low < 0 else sample[low],
        dtype.type(most) if high >= _SAMPLE else sample[high],
    )


def _partition(scores: np.ndarray, keep: int) -> np.ndarray:
    if keep == 0:
        return np.zeros(scores.size, bool)
    threshold = np.partition(scores, scores.size - keep)[scores.size - keep]
    kept: np.ndarray = scores > threshold
    ties = np.flatnonzero(scores == threshold)
    kept[ties[: keep - np.count_nonzero(kept)]] = True
    return kept
