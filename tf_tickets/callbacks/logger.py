"""Show how sparse the model is while it trains."""

from __future__ import annotations

import numpy as np

from tf_tickets.callbacks.base import Logs, TicketCallback
from tf_tickets.selection import Filters, prunable_weights, view_of


class SparsityLogger(TicketCallback):
    """Add the measured sparsity to the logs of every epoch.

    It counts the zeros that are there, whatever masks say, when an epoch ends
    and before any callback prunes. The History that `fit` returns, the progress
    bar, `keras.callbacks.TensorBoard` and `CSVLogger` show it, wherever they
    stand in the list.

    Args:
        per_layer: Whether to log one number for each weight, too, as
            ``"sparsity/<path>"``; by default only the total.
        filters: Which weights are counted, as in
            `tf_tickets.prunable_weights`; by default all prunable ones.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> model.compile("sgd", "mse")
    >>> history = model.fit(
    ...     np.ones((8, 4)), np.ones((8, 2)), verbose=0,
    ...     callbacks=[SparsityLogger()],
    ... )
    >>> history.history["sparsity"]
    [0.0]
    """

    def __init__(
        self, *, per_layer: bool = False, filters: Filters = None
    ) -> None:
        super().__init__()
        self.per_layer = per_layer
        self.filters = filters

    def begin(self) -> None:
        prunable_weights(self.model, self.filters)  # fail before training

    def log(self, epoch: int, logs: Logs) -> None:
        zeros = total = 0
        for path, variable in prunable_weights(
            self.model, self.filters
        ).items():
            value = view_of(variable)
            empty = value.size - int(np.count_nonzero(value))
            zeros, total = zeros + empty, total + value.size
            if self.per_layer:
                logs[f"sparsity/{path}"] = empty / max(value.size, 1)
        logs["sparsity"] = zeros / total
