"""Prune little by little while the model trains."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from tf_tickets import checks
from tf_tickets.callbacks.base import (
    Directory,
    DrawingCallback,
    Logs,
    StepCounter,
)
from tf_tickets.pruning import criteria, scopes
from tf_tickets.pruning.prune import describe, sparsity_of
from tf_tickets.pruning.schedules import Polynomial, Schedule, sparsity_at
from tf_tickets.selection import Filters
from tf_tickets.ticket import Ticket


class GradualPruning(DrawingCallback):
    """Raise the sparsity by a schedule during one training run.

    Masks are drawn every ``every`` steps from the weights of that moment;
    pruned weights stay pruned. Steps count on from the optimizer's iteration
    when `fit` begins, so that a second `fit` goes on where the first ended.

    Args:
        schedule: A callable ``step -> sparsity``, such as
            `tf_tickets.pruning.Polynomial`, or a ``PruningSchedule`` of the
            TensorFlow Model Optimization toolkit.
        target_sparsity: Instead of ``schedule``: a cubic climb to this
            sparsity between ``begin_step`` and ``end_step``.
        begin_step: First step of that climb; 0 by default.
        end_step: Last step of that climb.
        every: How many steps lie from one drawing to the next; 100 by default.
            A schedule that says itself when to prune is asked at every step
            instead.
        criterion: As in `tf_tickets.prune`; `"magnitude"` by default.
        scope: As in `tf_tickets.prune`, but not a mapping; `"global"` by
            default.
        data: What the criterion scores on, for criteria that need it, as in
            `tf_tickets.prune`. It is read at each drawing.
        filters: As in `tf_tickets.prunable_weights`; by default all prunable
            weights.
        directory: Where to keep the run; by default nowhere. Every epoch is
            saved there; the same call after a kill goes on after the last
            whole epoch. List the callback after
            `keras.callbacks.BackupAndRestore` then.
        seed: For criteria that draw at random; 0 by default.

    Attributes:
        ticket: After `fit`: the masks, and the trained weights as start
            weights.

    Raises:
        ValueError: On bad arguments; when training begins, if the model has
            nothing prunable, weights that are not finite, or is sparser than
            the schedule's target, or if the criterion needs ``data``.

    Reference:
        Zhu and Gupta, "To prune, or not to prune", 2017.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(10)])
    >>> model.compile("sgd", "mse")
    >>> pruning = GradualPruning(target_sparsity=0.8, end_step=8, every=2)
    >>> _ = model.fit(
    ...     np.ones((8, 10)), np.ones((8, 10)), batch_size=1, verbose=0,
    ...     callbacks=[pruning],
    ... )
    >>> pruning.ticket.sparsity
    0.8
    """

    def __init__(
        self,
        schedule: Schedule | None = None,
        *,
        target_sparsity: float | None = None,
        begin_step: int = 0,
        end_step: int | None = None,
        every: int = 100,
        criterion: str | criteria.Criterion = "magnitude",
        scope: scopes.Scope = "global",
        data: Any = None,
        filters: Filters = None,
        directory: Directory | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(criterion, scope, data, filters, seed)
        if (schedule is None) == (target_sparsity is None):
            raise ValueError(
                "Give a `schedule`, or `target_sparsity` and `end_step`. "
                f"Received: schedule={schedule!r}, "
                f"target_sparsity={target_sparsity!r}"
            )
        if schedule is None:
            if end_step is None or target_sparsity is None:
                raise ValueError(
                    "`target_sparsity` needs the `end_step` at which it is "
                    f"reached. Received: end_step={end_step!r}"
                )
            schedule = Polynomial(
                target_sparsity, end_step=end_step, begin_step=begin_step
            )
        if not callable(schedule):
            raise ValueError(
                "`schedule` must be a callable step -> sparsity. "
                f"Received: schedule={schedule!r}"
            )
        if isinstance(scope, Mapping):
            raise ValueError(
                "A mapping fixes each tensor's sparsity and leaves nothing to "
                f"a schedule. Received: scope={scope!r}"
            )
        self.schedule = schedule
        self.every = checks.whole("every", every)
        self.ticket: Ticket | None = None
        # A toolkit schedule answers (should_prune, sparsity): it has a
        # rhythm of its own.
        self._own_rhythm = isinstance(schedule(begin_step), tuple)
        self._steps = StepCounter()
        self._sparsity = 0.0
        self._keep_in(directory, self._provenance())

    def begin(self) -> None:
        self.ticket = None
        self._resume()
        self._sparsity = sparsity_of(self._check())
        # A model may train with optimizers of its own and have none here.
        optimizer = getattr(self.model, "optimizer", None)
        done = 0 if optimizer is None else int(optimizer.iterations.numpy())
        self._steps = StepCounter(done)
        target = getattr(self.schedule, "target_sparsity", 1.0)
        if target < self._sparsity:
            raise ValueError(
                "The model is sparser than the schedule's target. Received: "
                f"target_sparsity={target}, sparsity {self._sparsity:.6f} now"
            )
        # Even where nothing is to be pruned yet, this meets every error
        # before training and lets the first step be traced with its masks.
        asked = self._asked([self._steps.step])
        self._raise_to(max(self._sparsity, asked or 0.0))

    def epoch_begin(self, epoch: int) -> None:
        self._steps.new_epoch()

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        asked = self._asked(self._steps.advance(batch))
        if asked is not None and asked > self._sparsity:
            with self._undone_on_error():
                self._raise_to(asked)

    def epoch_end(self, epoch: int, logs: Logs) -> None:
        self._save(epoch + 1)

    def end(self) -> None:
        self.ticket = Ticket.from_model(self.model, metadata=self._provenance())
        end = getattr(self.schedule, "end_step", -1)
        if self._steps.step < end:
            warnings.warn(
                f"Training ended at step {self._steps.step}, before the "
                f"schedule's end at step {end}: the sparsity is "
                f"{self.ticket.sparsity:.4f}.",
                stacklevel=3,  # Keras, which called
            )

    def _provenance(self) -> dict[str, Any]:
        return {
            "source": "GradualPruning",
            "schedule": _described(self.schedule),
            "every": self.every,
            **describe(None, self.criterion, self.scope, self.seed),
        }

    def _asked(self, steps: Iterable[int]) -> float | None:
        """The last sparsity that the schedule asks for in ``steps``."""
        asked = None
        for step in steps:
            if self._own_rhythm or step % self.every == 0:
                answer = sparsity_at(self.schedule, step)
                asked = asked if answer is None else answer
        return asked

    def _raise_to(self, sparsity: float) -> None:
        self._draw(sparsity, self.scope, self.seed)
        self._sparsity = sparsity


def _described(schedule: Schedule) -> str:
    # The address in a default repr would make every process another run.
    return re.sub(r" at 0x[0-9a-f]+", "", repr(schedule))
