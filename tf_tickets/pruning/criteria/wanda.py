"""Wanda: weights by what they multiply."""

from __future__ import annotations

from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import checks, masking, progress
from tf_tickets.loss.batches import batches as read
from tf_tickets.loss.objective import call, substituted
from tf_tickets.masks import Arrays
from tf_tickets.network.inputs import (
    Site,
    has_value,
    sites_of,
    unreadable,
    watched,
)
from tf_tickets.pruning.patterns import matrices_of
from tf_tickets.selection import named_weights, values_of

_NEEDED_BY = "criterion='wanda'"


def wanda(
    model: keras.Model,
    masks: Arrays,
    *,
    data: Any = None,
    seed: int = 0,
    ranked: Literal["output", "none"] = "output",
    batch_size: int = 32,
    batches: int | None = None,
) -> dict[str, np.ndarray]:
    r"""Score $|w_{ij}| \cdot \lVert x_i \rVert_2$: weights times inputs.

    For trained networks that are not trained again. No weight changes, no
    gradient is taken: the norms are those of what enters each layer over all
    of ``data``, in the model under its masks of the moment. (The publication
    takes the inputs of a layer after the layers before it were pruned; with
    `tf_tickets.prune` and ``iterations=`` they are taken anew as weights go.)

    As published, weights are compared with those of the same output only.
    The score is a rank there: which part of its output's weights are smaller.
    So every output of every layer loses the same part, whether the scope is
    `"global"` or `"layer"`. Options are set with ``functools.partial``.

    Args:
        model: A built model, only read. It need not be compiled.
        masks: ``{path: boolean array}``.
        data: See `tf_tickets.loss.batches.batches`; labels are not needed.
            The publication uses 128 sequences.
        seed: Unused.
        ranked: `"output"`, the default: the score is the rank among the
            weights of the same output. `"none"`: the product itself, for
            patterns of blocks, whose groups have several outputs, or to
            compare over a whole layer.
        batch_size: Samples in a batch where arrays are cut into batches; 32
            by default.
        batches: Read at most this many batches; `None` for all.

    Returns:
        ``{path: scores}``.

    Raises:
        ValueError: If there is no data, it cannot be seen what enters a
            layer, or the scores are not finite.

    Reference:
        Sun et al., "A Simple and Effective Pruning Approach for Large
        Language Models", ICLR 2024, equation 1.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> _ = model.layers[0].kernel.assign([[3.0], [1.0]])
    >>> x = np.array([[0.0, 3.0], [1.0, 4.0]])
    >>> ticket = tt.prune(model, 0.5, criterion="wanda", data=x)
    >>> next(iter(ticket.masks.values())).tolist()
    [[False], [True]]
    """
    del seed
    checks.choice("ranked", ranked, ("output", "none"))
    checks.mapping("masks", masks)
    masks = dict(masks or {})
    sites = sites_of(model, masks, _NEEDED_BY)
    source = read(
        data,
        needed_by=_NEEDED_BY,
        batch_size=batch_size,
        limit=batches,
        labels=False,
    )
    squares = _sums_of_squares(model, masks, sites, source, batches)
    weights = values_of({path: site.kernel for path, site in sites.items()})
    layout = matrices_of(model, sites)
    scores = {}
    for path in sites:
        sizes = np.abs(weights[path].astype(np.float32))
        matrix = layout.matrix(path, sizes)
        norms = np.sqrt(squares[path]).T.astype(np.float32)
        each = matrix.shape[1] // max(norms.shape[1], 1)
        products = matrix * np.repeat(norms, each, axis=1)
        checks.finite(
            "The scores of 'wanda'", {path: products}, "does the data hold NaN?"
        )
        if ranked == "output":
            kept = layout.matrix(path, masks[path])
            products = _ranks(np.where(kept, products, -1.0))
        scores[path] = layout.tensor(path, products, sizes.shape)
    return scores


wanda.needs_data = True  # type: ignore[attr-defined]


def _sums_of_squares(
    model: keras.Model,
    masks: Arrays,
    sites: dict[str, Site],
    source: Any,
    count: int | None,
) -> dict[str, np.ndarray]:
    """``{path: sum over the data}`` of what enters each row, in each group."""
    at: dict[int, list[Site]] = {}
    for site in sites.values():
        at.setdefault(id(site.layer), []).append(site)
    sums: dict[str, np.ndarray] = {}
    unseen = {path: "its layer was never called" for path in sites}

    def see(layer: keras.layers.Layer, x: Any) -> None:
        for site in at[id(layer)]:
            if not has_value(x):
                unseen[site.path] = "its layer is called inside a loop"
                continue
            try:
                rows = site.rows(x)
            except ValueError as error:
                raise unreadable(_NEEDED_BY, {site.path: str(error)}) from error
            found = tf.reduce_sum(rows * rows, 0).numpy().astype(np.float64)
            sums[site.path] = sums.get(site.path, 0.0) + found
            unseen.pop(site.path, None)

    variables = named_weights(model)
    values = {
        path: masking.masked(
            tf.convert_to_tensor(variables[path]), tf.constant(mask)
        )
        for path, mask in masks.items()
    }
    with (
        watched((site.layer for site in sites.values()), see),
        progress.bar("Inputs of the layers", count, unit="batch") as step,
    ):
        for batch in source:
            with substituted(variables, values):
                call(model, batch.x, training=False)
            if unseen:
                raise unreadable(_NEEDED_BY, unseen)
            step()
    return sums


def _ranks(products: np.ndarray) -> np.ndarray:
    """Which part of its column is smaller than each number.

    Of outputs with one rank the larger number comes first, by less than a
    rank: that decides where a count does not divide by the outputs.
    """
    count = max(products.shape[0], 1)
    order = np.argsort(-products, axis=0, kind="stable")
    ranks = np.empty(products.shape, np.float32)
    places = np.arange(products.shape[0], dtype=np.float32)[::-1, None]
    np.put_along_axis(ranks, order, places, axis=0)
    largest = products.max(initial=0.0) or 1.0
    return (ranks + np.maximum(products, 0) / (2 * largest)) / count
