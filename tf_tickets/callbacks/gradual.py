"""Prune little by little while the model trains."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from tf_tickets import checks, masking
from tf_tickets.callbacks.base import (
    DrawingCallback,
    Logs,
    StepCounter,
)
from tf_tickets.callbacks.directory import Directory
from tf_tickets.callbacks.rounds import warn_of_comparing
from tf_tickets.pruning import criteria, patterns, scopes
from tf_tickets.pruning.prune import current_masks, describe, excess
from tf_tickets.pruning.schedules import (
    Polynomial,
    Schedule,
    climb_of,
    sparsity_at,
)
from tf_tickets.selection import Filters
from tf_tickets.ticket import Ticket

CountFrom = Literal["fit", "optimizer"]
_FROM = ("fit", "optimizer")
# By default: so many drawings on the way, and never further apart than this,
# which is what the TensorFlow Model Optimization toolkit does.
_DRAWINGS = 20
_APART = 100


class GradualPruning(DrawingCallback):
    """Raise the sparsity by a schedule during one training run.

    Masks are drawn every ``every`` steps from the weights of that moment, the
    first time at the schedule's first step and the last time at its last one,
    whatever lies between. Pruned weights stay pruned unless they may
    ``regrow``.

    Steps count from where this `fit` begins, so that a trained model is pruned
    as gently as a new one. A training that goes on after a kill, from
    ``directory`` or `keras.callbacks.BackupAndRestore`, goes on with its count.

    Args:
        schedule: A callable ``step -> sparsity``, such as
            `tf_tickets.pruning.Polynomial`, or a ``PruningSchedule`` of the
            TensorFlow Model Optimization toolkit.
        target_sparsity: Instead of ``schedule``: a cubic climb to this
            sparsity between ``begin_step`` and ``end_step``.
        begin_step: First step of that climb; 0 by default.
        end_step: Last step of that climb.
        every: How many steps lie from one drawing to the next, counted from
            the schedule's first step. By default a twentieth of the climb, or
            of the training where the schedule has no end; 100 at most. A
            schedule that says itself when to prune is asked at every step
            instead.
        count_from: `"fit"`, the default, counts steps from where this `fit`
            begins; `"optimizer"` counts on from the optimizer's iteration, so
            that a second `fit` goes on where the first ended. On a trained
            model that can mean to begin at the end.
        criterion: As in `tf_tickets.prune`; `"magnitude"` by default.
        scope: As in `tf_tickets.prune`, but not a mapping; `"global"` by
            default.
        pattern: As in `tf_tickets.prune`; `None` by default. N:M says the
            target sparsity itself. On the way the columns' groups of M lose
            one weight after the other, those with the lowest scores first.
        data: What the criterion scores on, for criteria that need it, as in
            `tf_tickets.prune`. It is read at each drawing.
        filters: As in `tf_tickets.prunable_weights`; by default all prunable
            weights.
        regrow: Whether a pruned weight can come back. `False`, the default:
            it stays pruned. `True`, as in the TensorFlow Model Optimization
            toolkit: in the step before a drawing the pruned weights move, too,
            from zero, and the masks are drawn among all. A schedule without an
            end is then drawn by to the end of training.
        directory: Where to keep the run; by default nowhere. Every epoch is
            saved there; the same call after a kill goes on after the last
            whole epoch. List the callback after
            `keras.callbacks.BackupAndRestore` then.
        seed: For criteria that draw at random; 0 by default.

    Attributes:
        ticket: After `fit`: the masks, and the trained weights as start
            weights.

    Warns:
        UserWarning: When training begins, if it is too short for the schedule,
            and when it has ended, if the sparsity was not reached.

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
        every: int | None = None,
        count_from: CountFrom = "fit",
        criterion: str | criteria.Criterion = "magnitude",
        scope: scopes.Scope = "global",
        pattern: patterns.Pattern | None = None,
        data: Any = None,
        filters: Filters = None,
        regrow: bool = False,
        directory: Directory | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(criterion, scope, data, filters, seed, pattern)
        if schedule is None:
            target_sparsity = patterns.sparsity_for(
                pattern, target_sparsity, scope
            )
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
        checks.choice("count_from", count_from, _FROM)
        checks.choice("regrow", regrow, (True, False))
        if regrow and criteria.each_step(criterion) is not None:
            raise ValueError(
                "A pruned weight does not move, so that a criterion of "
                "training steps cannot bring it back: take regrow=False. "
                f"Received: regrow=True, criterion={criterion!r}"
            )
        self.schedule = schedule
        self.every = None if every is None else checks.whole("every", every)
        self.count_from = count_from
        self.regrow = regrow
        self.ticket: Ticket | None = None
        # A toolkit schedule answers (should_prune, sparsity): it has a
        # rhythm of its own.
        self._own_rhythm = isinstance(schedule(begin_step), tuple)
        self._climb = climb_of(schedule)
        patterns.sparsity_for(pattern, self._climb.target, scope)
        self._every = _APART
        self._steps = StepCounter()
        self._counted_to: int | None = None
        self._begun = False
        self._kept = self._size = 0
        # The masks that are lifted for the step before a drawing.
        self._lifted: dict[str, np.ndarray] | None = None
        self._keep_in(
            directory, {**self._provenance(), "count_from": count_from}
        )

    follows_backups = True

    def begin(self) -> None:
        self.ticket = None
        self._begun = False
        self._lifted = None
        self._undo.callback(self._put_back)
        if self.regrow and getattr(self.model, "steps_per_execution", 1) > 1:
            raise ValueError(
                "Pruned weights may move in one step before a drawing, and in "
                "no other: compile the model with steps_per_execution=1. "
                f"Received: {self.model.steps_per_execution}"
            )
        remembered = self._resume()
        self._counted_to = remembered.get("step")
        masks = self._check()
        self._add_up(remembered.get("added_up", 0))
        self._size = sum(mask.size for mask in masks.values())
        self._kept = sum(int(np.count_nonzero(m)) for m in masks.values())
        target = self._climb.target
        layout = self._layout(masks)
        slack = 0 if layout is None else layout.slack(masks)
        if target is not None and excess(masks, target, layout) < -slack:
            raise ValueError(
                "The model is sparser than the schedule's target. Received: "
                f"target_sparsity={target}, sparsity {self._sparsity:.6f} now"
            )
        # Even where nothing is to be pruned yet, this meets every error
        # before training and lets the first step be traced with its masks.
        self._draw(self._sparsity, self.scope, self.seed)

    def epoch_begin(self, epoch: int) -> None:
        self._steps.new_epoch()
        if not self._begun:
            # Only now is it known with which epoch this training begins.
            self._begun = True
            self._begin_at(epoch)

    def on_train_batch_begin(
        self, batch: int, logs: Logs | None = None
    ) -> None:
        following = self._steps.step + 1
        if self.regrow and self._asked(range(following, following + 1)):
            with self._undone_on_error():
                self._lift()

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        asked = self._asked(self._steps.advance(batch))
        if asked is not None:
            with self._undone_on_error():
                self._raise_to(asked)

    def epoch_end(self, epoch: int, logs: Logs) -> None:
        remembered = {"step": self._steps.step}
        if self._sums is not None:
            remembered["added_up"] = self._sums.count
        self._save(epoch + 1, remembered)

    def end(self) -> None:
        self.ticket = Ticket.from_model(self.model, metadata=self._provenance())
        wanted = self._climb.target
        if wanted is None:
            wanted = sparsity_at(self.schedule, self._steps.step)
        masks = current_masks(self.model, self.filters)
        layout = self._layout(masks)
        if wanted is not None and excess(masks, wanted, layout) > 0:
            warnings.warn(
                f"Training ended at step {self._steps.step} of the schedule, "
                f"and its last drawing was before it reached {wanted:g}: the "
                f"sparsity is {self._sparsity:.4f}.",
                stacklevel=3,  # Keras, which called
            )

    def settle(self) -> None:
        # Others may have restored weights when training ended.
        if self.ticket is not None:
            self.ticket = Ticket.from_model(
                self.model, metadata=self._provenance()
            )

    @property
    def _sparsity(self) -> float:
        return 1 - self._kept / self._size

    def _begin_at(self, epoch: int) -> None:
        """The first epoch of this training begins, at some step."""
        start = self._first_step(epoch)
        self._steps = StepCounter(start)
        steps = self.params.get("steps")
        last = None
        if steps is not None:
            last = start + steps * (self.params["epochs"] - epoch)
        length = self._climb.length or last or _APART * _DRAWINGS
        self._every = self.every or min(_APART, max(1, length // _DRAWINGS))
        end = self._climb.end
        if last is not None and last < end:
            warnings.warn(
                f"This fit ends at step {last} of the schedule, which goes on "
                f"to step {end}: the sparsity will not be reached. Train for "
                "more epochs, or let it end earlier.",
                stacklevel=5,  # Keras, which called
            )
        says_when = self._climb.length or self._climb.target is not None
        settled = None
        if steps and says_when:
            settled = max(0, epoch + math.ceil((end - start) / steps) - 1)
        warn_of_comparing(self, self._beside, self._behind, settled)
        asked = self._asked(range(start, start + 1))
        if start and asked is None and not self._own_rhythm:
            # What goes on has its last drawing behind it.
            asked = sparsity_at(self.schedule, self._drawn_before(start))
        if asked is not None:
            self._raise_to(asked)

    def _first_step(self, epoch: int) -> int:
        if self._counted_to is not None:
            return self._counted_to
        # What BackupAndRestore has brought back began earlier than this fit.
        restored = epoch and epoch == getattr(
            self.model, "_initial_epoch", None
        )
        if self.count_from == "fit" and not restored:
            return 0
        steps = self.params.get("steps")
        if self.count_from == "fit" and steps is not None:
            return epoch * int(steps)
        # A model may train with optimizers of its own and have none here.
        optimizer = getattr(self.model, "optimizer", None)
        return 0 if optimizer is None else int(optimizer.iterations.numpy())

    def _provenance(self) -> dict[str, Any]:
        own = {"regrow": True} if self.regrow else {}
        return {
            **own,
            "source": "GradualPruning",
            "schedule": _described(self.schedule),
            "every": self.every,
            **describe(
                None, self.criterion, self.scope, self.seed, self.pattern
            ),
        }

    def _asked(self, steps: Iterable[int]) -> float | None:
        """The last sparsity that the schedule asks for in ``steps``."""
        asked = None
        for step in steps:
            if self._own_rhythm or self._is_drawn_at(step):
                answer = sparsity_at(self.schedule, step)
                asked = asked if answer is None else answer
        return asked

    def _is_drawn_at(self, step: int) -> bool:
        if self.regrow and self._climb.length and step > self._climb.end:
            return False  # from here on the masks stand still
        return step >= self._climb.begin and (
            step == self._climb.end or step == self._drawn_before(step)
        )

    def _drawn_before(self, step: int) -> int:
        """The last step up to ``step`` with a drawing by the rhythm."""
        begin, end = self._climb.begin, self._climb.end
        if begin < end <= step:
            begin = end
        return max(step - (step - begin) % self._every, begin)

    def _raise_to(self, sparsity: float) -> None:
        kept = scopes.kept_count(sparsity, self._size)
        if kept < self._kept:
            self._kept = kept
        elif self._lifted is None:
            return
        else:
            sparsity = self._sparsity
        self._draw(sparsity, self.scope, self.seed)
        self._lifted = None

    def _lift(self) -> None:
        """Let all weights move until the next drawing, or the end."""
        self._lifted = current_masks(self.model, self.filters)
        masking.enforce(
            self.model,
            {path: np.ones_like(mask) for path, mask in self._lifted.items()},
        )

    def _put_back(self) -> None:
        if self._lifted is not None:
            masking.enforce(self.model, self._lifted)
            self._lifted = None


def _described(schedule: Schedule) -> str:
    # The address in a default repr would make every process another run.
    return re.sub(r" at 0x[0-9a-f]+", "", repr(schedule))
