"""One update of a mask: the smallest are dropped, as many others grow."""

from __future__ import annotations

import numpy as np

from tf_tickets.pruning import patterns
from tf_tickets.pruning.topk import keep_largest


def exchanged(
    mask: np.ndarray,
    sizes: np.ndarray,
    growth: np.ndarray,
    fraction: float,
) -> np.ndarray:
    """One update of a tensor's mask: drop the smallest, grow as many.

    Args:
        mask: What is kept now.
        sizes: Of the weights that are kept now, in the order of their index;
            the smallest are dropped.
        growth: At least 0, of the mask's shape: what ranks all that is not
            kept after that. A dropped weight that is back at once was never
            gone.
        fraction: Of the kept weights to exchange; rounded to a whole count.

    Returns:
        A mask that keeps as many.

    Example:

    >>> mask = np.array([True, True, False, False])
    >>> sizes, slope = np.array([0.1, 2.0]), np.array([0.0, 0.0, 5.0, 7.0])
    >>> exchanged(mask, sizes, slope, 0.5)
    array([False,  True, False,  True])
    """
    count = int(np.count_nonzero(mask))
    moved = round(fraction * count)
    if not moved or count == mask.size:
        return mask
    stay = mask.copy()
    stay[mask] = keep_largest(sizes, count - moved)
    # What stays comes behind all that may grow, of which there is enough.
    ranked = np.where(stay, np.full((), -1, growth.dtype), growth)
    return stay | keep_largest(ranked.ravel(), moved).reshape(mask.shape)


def exchanged_in(
    layout: patterns.Layout,
    path: str,
    mask: np.ndarray,
    sizes: np.ndarray,
    growth: np.ndarray,
    fraction: float,
) -> np.ndarray:
    """`exchanged`, and the mask has its pattern as before.

    Whole groups are dropped by the mean of their sizes and grow by the mean of
    ``growth``. Of N:M, the smallest weights of the tensor are dropped, and
    where they were, their group of M grows as many.

    Args:
        layout: The pattern on the weights.
        path: Of the weight.
        mask: What is kept now, in whole groups or N of each M.
        sizes: Of all weights, in the mask's shape.
        growth: At least 0, of the mask's shape.
        fraction: Of the kept groups, or weights, to exchange.

    Returns:
        A mask that keeps as many.
    """
    pattern = layout.pattern
    if isinstance(pattern, patterns.NofM):
        kept, size, grow = (
            layout.matrix(path, array) for array in (mask, sizes, growth)
        )
        count = int(np.count_nonzero(kept))
        stay = kept.copy()
        stay[kept] = keep_largest(size[kept], count - round(fraction * count))
        missing = patterns.counts_in_groups(kept & ~stay, pattern.of)
        fresh = stay | patterns.best_of_each(grow, ~stay, pattern, missing)
        return layout.tensor(path, fresh, mask.shape)
    now = layout.units(path, sizes, mask)
    every = layout.units(path, growth, np.ones_like(mask))
    held = now.sizes > 0
    return every.spread(
        exchanged(held, now.scores[held], every.scores, fraction)
    )
