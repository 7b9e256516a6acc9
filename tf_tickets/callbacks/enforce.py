"""Keep the zeros of a ticket at zero, at every hook that could lose them."""

from __future__ import annotations

from typing import Literal

from tf_tickets import checks, masking
from tf_tickets.callbacks.base import Logs, TicketCallback
from tf_tickets.ticket import Ticket


class EnforceTicket(TicketCallback):
    """Apply a ticket when training begins, and hold its zeros to the end.

    After `Ticket.apply` a plain ``model.fit`` keeps the zeros of every step.
    This callback also repairs weights that other callbacks load during
    training, when it stands after them in the list, and, wherever it stands,
    those that they restore when training ends. In the list of ``evaluate`` or
    ``predict`` it puts the zeros back before the first batch.

    Args:
        ticket: The ticket to apply when training begins. The default, `None`,
            keeps the masks that the model has.
        weights: `"keep"`, the default, masks the weights that the model has;
            `"start"` assigns the ticket's start weights first.

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

    keeps_masks = True

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
        checks.choice("weights", weights, ("keep", "start"))
        self.ticket = ticket
        self.weights = weights

    def begin(self) -> None:
        if self.ticket is not None:
            self.ticket.apply(self.model, weights=self.weights)
        elif not masking.attached_masks(self.model):
            raise ValueError(
                "There is no mask to enforce: give EnforceTicket a ticket, or "
                "call ticket.apply(model) before fit. Received: ticket=None"
            )
        else:
            masking.project(self.model)

    def on_test_begin(self, logs: Logs | None = None) -> None:
        masking.project(self.model)

    def on_predict_begin(self, logs: Logs | None = None) -> None:
        masking.project(self.model)
