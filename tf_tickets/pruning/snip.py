"""SNIP: how much the loss would feel the loss of each connection."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tf_tickets.loss.batches import batches as read
from tf_tickets.loss.derivatives import (
    compiled,
    finite,
    gradient,
    mean_over,
)
from tf_tickets.loss.objective import Loss, Objective, computing_in
from tf_tickets.pruning.criteria import Arrays


def snip(
    model: keras.Model,
    masks: Arrays,
    *,
    data: Any = None,
    seed: int = 0,
    loss: Loss | None = None,
    training: bool = False,
    batch_size: int = 256,
    batches: int | None = None,
    jit_compile: bool = False,
) -> dict[str, np.ndarray]:
    r"""Score $|w \odot \partial L / \partial w|$: connection sensitivity.

    The gradient is the mean over all samples of ``data``, taken before the
    absolute value, so that how the samples are cut into batches changes
    nothing. (The publication divides by the sum of the scores, which no
    ranking sees.) Options are set with ``functools.partial``.

    Args:
        model: A built and compiled model, only read.
        masks: ``{path: boolean array}``; the loss is that of the masked model.
        data: See `tf_tickets.loss.batches.batches`. The publication uses one
            batch, of 100 samples for CIFAR-10.
        seed: Unused.
        loss: Instead of the compiled loss.
        training: `False` scores with the moving statistics of normalisation
            and without dropout, as published; `True` as in training.
        batch_size: Of the batches that arrays are cut into.
        batches: Read at most so many batches.
        jit_compile: Compile the gradient with XLA: worth its time on an
            accelerator and many batches.

    Returns:
        ``{path: scores}``.

    Raises:
        ValueError: If there is no loss, no data or no labels, or the scores
            are not finite.

    Reference:
        Lee et al., "SNIP: Single-shot Network Pruning based on Connection
        Sensitivity", ICLR 2019, equations 4 to 6.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> _ = model.layers[0].kernel.assign([[3.0], [1.0]])
    >>> model.compile(loss="mse")
    >>> data = np.array([[0.0, 1.0]]), np.array([[0.0]])
    >>> ticket = tt.prune(model, 0.5, criterion="snip", data=data)
    >>> next(iter(ticket.scores.values())).tolist()
    [[0.0], [2.0]]
    """
    del seed
    objective = Objective(
        model, needed_by="criterion='snip'", loss=loss, training=training
    )
    keys = list(masks)
    values = objective.values(masks)
    step = compiled(gradient, jit_compile)
    with computing_in(model):
        slopes = mean_over(
            (batch.size, step(objective, values, keys, batch))
            for batch in read(
                data,
                needed_by="criterion='snip'",
                batch_size=batch_size,
                limit=batches,
                labels=objective.needs_labels,
            )
        )
    return finite(
        {
            key: np.abs((values[key] * slope).numpy())
            for key, slope in zip(keys, slopes, strict=True)
        },
        "snip",
    )


snip.needs_data = True  # type: ignore[attr-defined]
