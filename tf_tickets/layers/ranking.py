"""The k largest of many scores inside a compiled step, without sorting.

Non-negative floats are ordered as their bit patterns are, so a threshold is
found on 31-bit integers: count the scores at or above a guess, narrow, repeat,
until exactly k are. Guesses are interpolated in the counts and aimed a little
to the far side of k, so that the bracket closes from both ends; where that does
not help (long tails), the next guess halves the bit patterns. Among many
scores the first two guesses come from the same search in a sample. So a handful
of passes over the scores, each a comparison and a sum, stand in place of a
sort. Shapes are static and it compiles under XLA; the counts may be tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

Pools = Sequence[Sequence[int]]

# Fewer scores than this are not worth a sample.
_MANY = 1 << 18
# Odd, and no divisor of usual widths: a sample must not take one column.
_STRIDE = 61
# Of the rows in which flags are counted; at most 255.
_WIDTH = 128


def largest(
    scores: Sequence[tf.Tensor], keep: tf.Tensor, pools: Pools
) -> list[tf.Tensor]:
    """Masks of the scores that are largest in absolute value.

    Args:
        scores: Float32 tensors of static shape.
        keep: Integer vector: how many scores each pool keeps.
        pools: For each pool, the positions in ``scores`` of the tensors that
            compete in it; every tensor is in one pool.

    Returns:
        A boolean tensor for each tensor of ``scores``. Exactly as many are
        true as were asked for; of equal scores the first are, in the order of
        the tensors and, within a tensor, of the indices.

    Example:

    >>> s = tf.constant([3.0, -5.0, 1.0, 3.0])
    >>> largest([s], tf.constant([2]), [[0]])[0].numpy().tolist()
    [True, True, False, False]
    """
    keep = tf.cast(keep, tf.int32)
    bits = [
        tf.bitcast(tf.abs(tf.reshape(s, [-1])), tf.int32)
        for s in map(tf.stop_gradient, scores)
    ]
    pool_of = {i: p for p, pool in enumerate(pools) for i in pool}
    many = sum(b.shape[0] for b in bits) >= _MANY
    hints = _hints(bits, keep, pools) if many else ()
    threshold, count, above = _search(bits, keep, pools, hints)

    def without_ties() -> list[tf.Tensor]:
        return [b >= threshold[pool_of[i]] for i, b in enumerate(bits)]

    def with_ties() -> list[tf.Tensor]:
        ends = _first_ties(bits, threshold, keep - above, pools)
        return [
            (b > threshold[pool_of[i]])
            | ((b == threshold[pool_of[i]]) & (tf.range(b.shape[0]) < ends[i]))
            for i, b in enumerate(bits)
        ]

    masks = tf.cond(tf.reduce_any(count > keep), with_ties, without_ties)
    return [tf.reshape(m, s.shape) for m, s in zip(masks, scores, strict=True)]


def _hints(
    bits: Sequence[tf.Tensor], keep: tf.Tensor, pools: Pools
) -> tuple[tf.Tensor, tf.Tensor]:
    """Two thresholds of each pool between which, almost surely, its own lies:
    four standard deviations of its rank in a sample away."""
    sample = [b[::_STRIDE] for b in bits]
    taken = _sizes(sample, pools)
    share = tf.cast(keep, tf.float32) / tf.cast(_sizes(bits, pools), tf.float32)
    rank = share * tf.cast(taken, tf.float32)
    slack = 4 * tf.sqrt(rank * (1 - share)) + 1
    ranks = [
        tf.clip_by_value(tf.cast(r, tf.int32), 0, taken)
        for r in (rank + slack, rank - slack)
    ]
    threshold, _, _ = _search(sample, tf.concat(ranks, 0), [*pools, *pools])
    low, high = tf.split(threshold, 2)
    return low, high


def _sizes(bits: Sequence[tf.Tensor], pools: Pools) -> tf.Tensor:
    return tf.constant(
        [sum(bits[i].shape[0] for i in pool) for pool in pools], tf.int32
    )


def _search(
    bits: Sequence[tf.Tensor],
    keep: tf.Tensor,
    pools: Pools,
    hints: Sequence[tf.Tensor] = (),
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """``(t, #(bits ≥ t), #(bits > t))`` of each pool, with the largest t that
    has at least ``keep`` at or above it, or any t with exactly so many.
    ``hints`` are the first guesses."""

    def counts(t: tf.Tensor) -> tf.Tensor:
        return tf.stack(
            [
                tf.add_n([_count(bits[i] >= t[p]) for i in pool])
                for p, pool in enumerate(pools)
            ]
        )

    low = tf.zeros([len(pools)], tf.int32)
    high = 1 + tf.stack(
        [
            tf.reduce_max([tf.reduce_max(bits[i]) for i in pool])
            for pool in pools
        ]
    )
    # Nothing to keep: no score is as large as `high`.
    low = tf.where(keep == 0, high, low)
    at_low = tf.where(keep == 0, 0, _sizes(bits, pools))

    def searching(
        low: tf.Tensor, at_low: tf.Tensor, high: tf.Tensor
    ) -> tf.Tensor:
        return (at_low > keep) & (high - low > 1)

    def body(
        low: tf.Tensor,
        at_low: tf.Tensor,
        high: tf.Tensor,
        at_high: tf.Tensor,
        slow: tf.Tensor,
        turn: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        guess = _guess(low, at_low, high, at_high, keep)
        guess = tf.where(slow, low + (high - low) // 2, guess)
        for i, hint in enumerate(hints):
            guess = tf.where(turn == i, hint, guess)
        guess = tf.clip_by_value(guess, low + 1, tf.maximum(high - 1, low + 1))
        count = counts(guess)
        active = searching(low, at_low, high)
        up = active & (count >= keep)
        down = active & (count < keep)
        before = at_low - at_high
        low, at_low = tf.where(up, guess, low), tf.where(up, count, at_low)
        high = tf.where(down, guess, high)
        at_high = tf.where(down, count, at_high)
        slow = ~slow & (4 * (at_low - at_high) > before)
        return low, at_low, high, at_high, slow, turn + 1

    low, at_low, _, at_high, _, _ = tf.while_loop(
        lambda low, at_low, high, *_: tf.reduce_any(
            searching(low, at_low, high)
        ),
        body,
        (
            low,
            at_low,
            high,
            tf.zeros_like(low),
            tf.zeros([len(pools)], tf.bool),
            tf.constant(0),
        ),
    )
    return low, at_low, at_high


def _guess(
    low: tf.Tensor,
    at_low: tf.Tensor,
    high: tf.Tensor,
    at_high: tf.Tensor,
    keep: tf.Tensor,
) -> tf.Tensor:
    """Where, by linear interpolation, the count should be near ``keep``."""
    width = tf.cast(at_low - at_high, tf.float32)
    over = tf.cast(at_low - keep, tf.float32)
    under = tf.cast(keep - at_high, tf.float32)
    # Between two counts the rank of a value is uncertain by about the root of
    # their difference. Overshooting by that much moves the farther end.
    slack = tf.where(width > 16, tf.sqrt(width), 0.0)
    goal = tf.where(
        over >= under,
        over - tf.minimum(slack, over / 2),
        over + tf.minimum(slack, under / 2),
    )
    left, right = tf.bitcast(low, tf.float32), tf.bitcast(high, tf.float32)
    value = left + (right - left) * goal / tf.maximum(width, 1)
    return tf.bitcast(value, tf.int32)


def _first_ties(
    bits: Sequence[tf.Tensor],
    threshold: tf.Tensor,
    wanted: tf.Tensor,
    pools: Pools,
) -> list[tf.Tensor]:
    """For each tensor, before which index a score equal to the threshold is
    kept, so that each pool keeps its first ``wanted`` of them."""
    ends: list[Any] = [None] * len(bits)
    for p, pool in enumerate(pools):
        left = wanted[p]
        for i in pool:
            ties = _rows(bits[i] == threshold[p])
            ends[i], found = _end_of(ties, left)
            left = tf.maximum(left - found, 0)
    return ends


def _end_of(flags: tf.Tensor, wanted: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """``(index behind the flag number ``wanted``, number of flags)``.

    First the row, then the place in it: two passes and no search.
    """
    sums = tf.cumsum(tf.reduce_sum(tf.cast(flags, tf.int32), 1))
    row = tf.reduce_sum(tf.cast(sums < wanted, tf.int32))
    row = tf.minimum(row, flags.shape[0] - 1)
    inside = tf.cast(tf.gather(flags, row), tf.int32)
    before = tf.gather(sums, row) - tf.reduce_sum(inside)
    place = tf.reduce_sum(
        tf.cast(tf.cumsum(inside) < wanted - before, tf.int32)
    )
    end = tf.where(wanted > 0, row * flags.shape[1] + place + 1, 0)
    return end, sums[-1]


def _count(condition: tf.Tensor) -> tf.Tensor:
    # Bytes move a quarter of what integers do, and so short a row of them
    # cannot overflow.
    short = tf.reduce_sum(tf.cast(_rows(condition), tf.uint8), 1)
    return tf.reduce_sum(tf.cast(short, tf.int32))


def _rows(flags: tf.Tensor) -> tf.Tensor:
    """A vector as rows of `_WIDTH`, filled up with `False`."""
    rest = -flags.shape[0] % _WIDTH
    if rest:
        flags = tf.pad(flags, [[0, rest]])
    return tf.reshape(flags, [-1, _WIDTH])
