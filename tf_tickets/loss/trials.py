"""Train a model with one ticket after another, and leave it as it was."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import keras
import numpy as np

from tf_tickets import masking
from tf_tickets.snapshot import Snapshot
from tf_tickets.ticket import Ticket

Train = Callable[[keras.Model], float]


@contextlib.contextmanager
def trials(
    model: keras.Model,
) -> Iterator[Callable[[Ticket, Train, int], float]]:
    """Inside, ``run(ticket, train, seed)`` applies, trains and measures.

    Every trial starts from the state that the model has now: optimizer, seeds
    and statistics included, with the ticket's start weights. Masks change by
    assignment, so that all trials share one trace of the training step. On
    the way out, weights, masks, optimizer and seeds are as before; if
    ``train`` compiled the model, it stays compiled so.
    """
    start = Snapshot.take(model)
    before = masking.attached_masks(model)
    optimizer = getattr(model, "optimizer", None)

    def rewind() -> None:
        same = getattr(model, "optimizer", None) is optimizer
        state = start if same else dataclasses.replace(start, optimizer={})
        state.restore(model)

    def run(ticket: Ticket, train: Train, seed: int) -> float:
        rewind()
        keras.utils.set_random_seed(seed)
        ticket.apply(model)
        result = train(model)
        try:
            value = float(result)
        except (TypeError, ValueError):
            value = np.nan
        if not np.isfinite(value):
            raise ValueError(
                "`train` must return a finite number, the higher the better, "
                f"such as an accuracy. Received: {result!r}"
            )
        return value

    try:
        yield run
    finally:
        if set(masking.attached_masks(model)) != set(before):
            masking.release(model)
        if before:
            masking.enforce(model, before)
        rewind()
