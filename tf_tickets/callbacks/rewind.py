"""Remember a point of training and go back to it."""

from __future__ import annotations

from typing import Literal

from tf_tickets import checks
from tf_tickets.callbacks.base import Logs, StepCounter, TicketCallback
from tf_tickets.snapshot import Snapshot

RewindKind = Literal["weights", "learning_rate"]


class Rewind(TicketCallback):
    """Take a snapshot at an epoch or step; restore it when training ends.

    The snapshot is the full training state: weights, normalization
    statistics, optimizer slots, iteration, learning rate and random seeds.

    Args:
        epoch: Index of the epoch before which the snapshot is taken. The
            default, 0, is before training.
        step: Instead of ``epoch``: after how many training steps the snapshot
            is taken.
        kind: `"weights"`, the default, restores everything;
            `"learning_rate"` restores only the iteration and the learning
            rate, so that a schedule replays over the trained weights and their
            momentum.
        at_train_end: Whether to go back when `fit` ends, which is the default.
            With `False`, call `rewind` yourself.

    Attributes:
        snapshot: The `tf_tickets.Snapshot`, or `None` before the point.

    Raises:
        ValueError: On arguments out of range, or when training begins with a
            ``step`` that no call of the compiled step ends on.

    Reference:
        Frankle et al., "Linear Mode Connectivity and the Lottery Ticket
        Hypothesis", ICML 2020 (weights); Renda et al., "Comparing Rewinding
        and Fine-tuning in Neural Network Pruning", ICLR 2020 (learning rate).

    Example:

    >>> import numpy as np, tf_tickets as tt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> model.compile("sgd", "mse")
    >>> rewind = Rewind(epoch=1, at_train_end=False)
    >>> x, y = np.ones((8, 4)), np.ones((8, 2))
    >>> _ = model.fit(x, y, epochs=3, verbose=0, callbacks=[rewind])
    >>> ticket = tt.prune(model, sparsity=0.5)  # from the trained weights
    >>> rewind.rewind()
    >>> int(model.optimizer.iterations.numpy())
    1
    >>> ticket.apply(model, weights="keep")  # mask ⊙ the weights of epoch 1
    """

    def __init__(
        self,
        *,
        epoch: int = 0,
        step: int | None = None,
        kind: RewindKind = "weights",
        at_train_end: bool = True,
    ) -> None:
        super().__init__()
        checks.whole("epoch", epoch, least=0)
        if step is not None:
            checks.whole("step", step, least=0)
            if epoch:
                raise ValueError(
                    "Give `epoch` or `step`, not both. "
                    f"Received: epoch={epoch}, step={step}"
                )
        checks.choice("kind", kind, ("weights", "learning_rate"))
        self.epoch = epoch
        self.step = step
        self.kind = kind
        self.at_train_end = at_train_end
        self.snapshot: Snapshot | None = None
        self._steps = StepCounter()

    def rewind(self) -> None:
        """Put the model back to the point; masks in force stay in force.

        Raises:
            RuntimeError: If training has not reached the point.
        """
        if self.snapshot is None:
            point = (
                f"epoch {self.epoch}"
                if self.step is None
                else f"step {self.step}"
            )
            raise RuntimeError(
                f"Training has not reached the rewind point, {point}."
            )
        if self.kind == "weights":
            self.snapshot.restore(self.model)
        else:
            self.snapshot.restore_schedule(self.model)

    def begin(self) -> None:
        self.snapshot = None
        self._steps = StepCounter()
        if self.step is None:
            return
        per_call = self.model.steps_per_execution
        if self.step % per_call:
            raise ValueError(
                "A rewind step must be a multiple of steps_per_execution. "
                f"Received: step={self.step}, "
                f"steps_per_execution={per_call}"
            )
        if self.step == 0:
            self.snapshot = Snapshot.take(self.model)

    def epoch_begin(self, epoch: int) -> None:
        self._steps.new_epoch()
        if self.step is None and epoch == self.epoch:
            self.snapshot = Snapshot.take(self.model)

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        if self.step is None or self.snapshot is not None:
            return
        # An epoch may end inside a call of several steps; the next multiple
        # that is reached is then the nearest state there is.
        self._steps.advance(batch)
        if self._steps.step >= self.step:
            self.snapshot = Snapshot.take(self.model)

    def end(self) -> None:
        if self.at_train_end:
            self.rewind()
