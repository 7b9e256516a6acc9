"""The Hessian's top eigenvalue, epoch by epoch."""

from __future__ import annotations

from typing import Any, Literal

from tf_tickets import checks
from tf_tickets.analysis.hessian import power_iteration, validate
from tf_tickets.callbacks.base import Logs, TicketCallback
from tf_tickets.loss.over_data import LossOverData


class HessianEigenvalue(TicketCallback):
    """Add ``hessian_top_eigenvalue`` to the logs of every epoch.

    The model goes on as if this were not there: nothing is assigned, and the
    products are traced once for the whole training.

    Args:
        data: On which the loss is taken; see
            `tf_tickets.loss.batches.batches`. A batch or two will do.
        every: How many epochs lie from one computation to the next; 1, the
            default, computes it after each. The epochs between log the value
            of the last time.
        which: As in `tf_tickets.analysis.hessian_top_eigenvalue`, like all
            that follow.
        iterations: At most so many products of the Hessian.
        tolerance: Stop when an estimate changes by less than this share.
        seed: Of the start vector.
        **options: ``loss``, ``training``, ``only``, ``batch_size``,
            ``batches``, ``jit_compile``. There is no ``ticket``: the masks that
            are enforced on the model count.

    Attributes:
        values: The eigenvalues, one for each time it was computed.

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
        self.data = data
        self.every = checks.whole("every", every)
        self.search: dict[str, Any] = {
            "which": which,
            "iterations": iterations,
            "tolerance": tolerance,
            "seed": seed,
        }
        self.options = options
        self.values: list[float] = []
        self._function: LossOverData | None = None

    def begin(self) -> None:
        self.values = []
        self._function = LossOverData(
            self.model,
            self.data,
            needed_by="HessianEigenvalue",
            **self.options,
        )

    def log(self, epoch: int, logs: Logs) -> None:
        if self._function is None:
            return
        if epoch % self.every == 0 or not self.values:
            top = power_iteration(self._function, **self.search)
            self.values.append(top.value)
        logs["hessian_top_eigenvalue"] = self.values[-1]
