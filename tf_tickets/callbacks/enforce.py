"""Keep the zeros of a ticket at zero, at every hook that could lose them."""

from __future__ import annotations

from typing import Any, Literal

import keras

from tf_tickets import masking
from tf_tickets.ticket import Ticket


class MaskKeeper(keras.callbacks.Callback):
    """What every callback that trains under a mask does.

    Inside a step the mask is a constraint; here it is put right after other
    callbacks have written weights past it.
    """

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        masking.project(self.model)
        if logs is not None and not logs:
            # Keras only warns, and every decision that follows would be
            # taken on a model that has not been trained.
            raise ValueError(
                "The data had no batch for this epoch: is it empty, or does "
                f"it run out? Received: nothing in epoch {epoch}"
            )

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        masking.project(self.model)


class EnforceTicket(MaskKeeper):
    """Apply a ticket when training begins, and hold its zeros to the end.

    After `Ticket.apply` a plain ``model.fit`` keeps the zeros of every step.
    This callback also repairs weights that other callbacks load during
    training, when it stands after them in the list.

    Args:
        ticket: Applied when training begins; `None` keeps the masks that the
            model has.
        weights: `"keep"` masks the model's weights, `"start"` also assigns
            the ticket's start weights.

    Raises:
        ValueError: When training begins, if the ticket does not fit or there
            is no mask to enforce.

    Example:

    >>> import numpy as np, tf_tickets as tt
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)])
    >>> model.compile("adam", "mse")
    >>> ticket = tt.prune(model, sparsity=0.75)
    >>> _ = model.fit(
    ...     np.ones((4, 8)), np.ones((4, 8)), verbose=0,
    ...     callbacks=[EnforceTicket(ticket)],
    ... )
    >>> int((model.layers[0].kernel.numpy() != 0).sum())
    16
    """

    def __init__(
        self,
        ticket: Ticket | None = None,
        *,
        weights: Literal["keep", "start"] = "keep",
    ) -> None:
        super().__init__()
        if ticket is not None and not isinstance(ticket, Ticket):
            raise ValueError(
                "`ticket` must be a tf_tickets.Ticket (Ticket.load reads one "
                f"from a file) or None. Received: ticket={ticket!r}"
            )
        if weights not in ("keep", "start"):
            raise ValueError(
                "`weights` must be 'keep' or 'start'. "
                f"Received: weights={weights!r}"
            )
        self.ticket = ticket
        self.weights = weights

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self.ticket is not None:
            self.ticket.apply(self.model, weights=self.weights)
        elif not masking.attached_masks(self.model):
            raise ValueError(
                "There is no mask to enforce: give EnforceTicket a ticket, or "
                "call ticket.apply(model) before fit. Received: ticket=None"
            )
        else:
            masking.project(self.model)
