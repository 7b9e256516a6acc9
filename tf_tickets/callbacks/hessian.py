"""The Hessian's top eigenvalue, epoch by epoch."""

from __future__ import annotations

from typing import Any, Literal

import keras

from tf_tickets.analysis.hessian import power_iteration, validate
from tf_tickets.loss.over_data import LossOverData


class HessianEigenvalue(keras.callbacks.Callback):
    """Add ``hessian_top_eigenvalue`` to the logs of every epoch.

    The model goes on as if this were not there: nothing is assigned, and the
    products are traced once for the whole training.

    Args:
        data: On which the loss is taken; see
            `tf_tickets.loss.batches.batches`. A batch or two will do.
        every: Epochs from one eigenvalue to the next; those between log the
            last value.
        **options: Those of `tf_tickets.analysis.hessian_top_eigenvalue`, but
            for ``ticket``: the masks enforced on the model count.

    Raises:
        ValueError: If an option is out of its range; when training begins,
            if the data does not fit.

    Reference:
        Jaiswal et al., "Spending Your Winning Lottery Better After Drawing
        It", 2021, figures 2 and A12.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> data = np.ones((4, 2)), np.ones((4, 1))
    >>> history = model.fit(
    ...     *data, verbose=0, callbacks=[HessianEigenvalue(data)])
    >>> round(history.history["hessian_top_eigenvalue"][0], 2)
    6.0
    """

    def __init__(
        self,
        data: Any,
        *,
        every: int = 1,
        which: Literal["magnitude", "algebraic"] = "magnitude",
        iterations: int = 100,
        tolerance: float = 1e-3,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        validate(iterations=iterations, tolerance=tolerance, which=which)
        if isinstance(every, bool) or every < 1:
            raise ValueError(
                "`every` must be a whole number of at least 1. "
                f"Received: every={every!r}"
            )
        self.data = data
        self.every = every
        self.search: dict[str, Any] = {
            "which": which,
            "iterations": iterations,
            "tolerance": tolerance,
            "seed": seed,
        }
        self.options = options
        self.values: list[float] = []
        self._function: LossOverData | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.values = []
        self._function = LossOverData(
            self.model,
            self.data,
            needed_by="HessianEigenvalue",
            **self.options,
        )

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if self._function is None:
            return
        if epoch % self.every == 0 or not self.values:
            top = power_iteration(self._function, **self.search)
            self.values.append(top.value)
        if logs is not None:
            logs["hessian_top_eigenvalue"] = self.values[-1]
