"""What all callbacks of this package share.

`TicketCallback` is the base of every callback. It undoes what a broken-off
`fit` left behind, keeps masks, and refuses data without a batch. A
`ResumableCallback` can also keep its run in a directory and go on after a kill.
A `DrawingCallback` draws masks from the weights while they are trained.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tf_tickets import checks, data, masking, progress
from tf_tickets.callbacks.directory import Directory, RunDirectory, hold
from tf_tickets.callbacks.gradients import StepSums, let_see
from tf_tickets.distribute import differing, is_chief
from tf_tickets.loss.batches import batches
from tf_tickets.pruning import criteria, patterns, scopes
from tf_tickets.pruning.prune import (
    check_finite,
    current_masks,
    describe,
    draw_masks,
)
from tf_tickets.selection import Filters, check_keras, named_weights
from tf_tickets.ticket import Ticket

Logs = dict[str, Any]


class TicketCallback(keras.callbacks.Callback):
    """A callback that puts back what it changes while a model trains.

    Keras calls `on_train_begin`, `on_epoch_begin`, `on_epoch_end` and
    `on_train_end`, which are written here, once. A subclass says what it does
    itself in `begin`, `epoch_begin`, `log`, `epoch_end` and `end`. What it
    changes for the time of a training it registers in ``_undo``, a
    `contextlib.ExitStack` that is closed when training ends or one of these
    methods raises. Keras tells nobody that a `fit` was interrupted; then the
    stack is closed with the last trace of that `fit`, or when the next training
    begins: of this callback, or of the same weights with any of this package.
    (A traceback is such a trace. Notebooks keep the last one.)

    A subclass that counts steps overrides `on_train_batch_end` itself. The base
    does not: Keras waits for every step when a callback in the list has one.
    """

    # Whether, before `epoch_end` and `end`, the zeros of masks are put right
    # and an epoch without data is refused: for callbacks that decide by what
    # the model has become.
    keeps_masks = False

    def __init__(self) -> None:
        super().__init__()
        self._undo = contextlib.ExitStack()
        self._has_logged = False
        # The other callbacks of the list, and those of them that come later.
        self._beside: list[keras.callbacks.Callback] = []
        self._behind: list[keras.callbacks.Callback] = []

    def set_model(self, model: keras.Model) -> None:
        check_keras(model)  # tf_keras fails before it calls anything else
        super().set_model(model)

    def begin(self) -> None:
        """Training begins: meet every error here, before time is spent."""

    def epoch_begin(self, epoch: int) -> None:
        """The epoch of this index begins."""

    def log(self, epoch: int, logs: Logs) -> None:
        """The epoch has ended, and no callback has changed the model yet.

        Args:
            epoch: As for `epoch_end`.
            logs: Its metrics. What is added here is seen by all callbacks,
                wherever they stand in the list, and by the history of `fit`.
        """

    def epoch_end(self, epoch: int, logs: Logs) -> None:
        """The epoch of this index, and its validation, has ended.

        Args:
            epoch: Counted as Keras does, from 0.
            logs: Its metrics. What is added here is seen by the callbacks that
                stand later in the list and by the history of `fit`.
        """

    def end(self) -> None:
        """Training has ended; nothing is undone yet."""

    def settle(self) -> None:
        """All callbacks have ended, and masks are right: what is there now is
        what the user gets. Only called in a `fit`, after `end`."""

    def on_train_begin(self, logs: Logs | None = None) -> None:
        fit = _list_of(self)
        # What ended early must not be undone later, when the same things have
        # been changed again.
        _close_ended(self.model, fit, begins_anew=self._undo in _open)
        self._undo.close()
        # One for each training: the end of an old one must not end this.
        self._undo = contextlib.ExitStack()
        if fit is not None:
            # Only `fit` holds its list. After an interrupt the list goes when
            # nobody looks at the traceback any more.
            weakref.finalize(fit, self._undo.close).atexit = False
            _open[self._undo] = weakref.ref(fit), weakref.ref(self.model)
            self._undo.callback(_forget, weakref.ref(self._undo))
        with self._undone_on_error():
            self._join(fit)
            if self.keeps_masks:
                masking.warn_of_written(self.model)
            self.begin()

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        with self._undone_on_error():
            self.epoch_begin(epoch)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if not self._has_logged:
            self.log_first(epoch, logs)
        self._has_logged = False
        with self._undone_on_error():
            if self.keeps_masks:
                # Inside a step the mask is a constraint; other callbacks may
                # have written weights past it.
                masking.project(self.model)
            self.epoch_end(epoch, {} if logs is None else logs)

    def on_train_end(self, logs: Logs | None = None) -> None:
        with self._undo:
            if self.keeps_masks:
                masking.project(self.model)
            self.end()

    def log_first(self, epoch: int, logs: Logs | None) -> None:
        """Look at the epoch before any callback of the list does.

        Args:
            epoch: As for `epoch_end`.
            logs: Its metrics.
        """
        with self._undone_on_error():
            if self.keeps_masks:
                _check_trained(epoch, logs)
            self.log(epoch, {} if logs is None else logs)
        self._has_logged = True

    def _join(self, fit: keras.callbacks.CallbackList | None) -> None:
        """Find the callbacks beside this one, and stand around them all.

        What is logged must be seen by whoever stands earlier in the list, and
        masks must be put right after whoever stands later has written weights.
        So one callback goes before all others and one behind them, until
        training ends.
        """
        self._has_logged = False
        self._beside = []
        self._behind = []
        if fit is None or not any(c is self for c in fit.callbacks):
            return  # by hand, or inside a callback of the list
        # The list that Keras goes through at this moment stays as it is.
        inner = [c for c in fit.callbacks if not isinstance(c, _EDGES)]
        self._beside = [c for c in inner if c is not self]
        self._behind = inner[inner.index(self) + 1 :]
        edges: list[keras.callbacks.Callback] = [_First(inner), _Last(inner)]
        for edge in edges:
            edge.set_params(self.params)
            edge.set_model(self.model)
        fit.callbacks = [edges[0], *inner, edges[1]]
        # What is to be undone must not keep the list, and its `fit`, alive.
        self._undo.callback(_stand_alone, weakref.ref(fit), inner)

    @contextlib.contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._undo.close()
            raise


class _First(keras.callbacks.Callback):
    """Stands before all others: what is logged here, everybody sees."""

    def __init__(self, others: Sequence[keras.callbacks.Callback]) -> None:
        super().__init__()
        self.others = [c for c in others if isinstance(c, TicketCallback)]

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        # Those first that refuse an epoch without data: the others add to what
        # tells them.
        for other in sorted(self.others, key=lambda c: not c.keeps_masks):
            other.log_first(epoch, logs)


class _Last(keras.callbacks.Callback):
    """Stands behind all others: no weight is written after the masks."""

    def __init__(self, others: Sequence[keras.callbacks.Callback]) -> None:
        super().__init__()
        self.others = [c for c in others if isinstance(c, TicketCallback)]
        self.keeps_masks = any(c.keeps_masks for c in self.others)

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self.keeps_masks:
            masking.project(self.model)
        for other in self.others:
            other.settle()


_EDGES = (_First, _Last)


def _stand_alone(
    found: Callable[[], keras.callbacks.CallbackList | None],
    inner: list[keras.callbacks.Callback],
) -> None:
    alive = found()
    if alive is not None:
        alive.callbacks = inner


# What trainings that have begun and not ended will undo, the oldest first, each
# with the list of its `fit` and its model.
_open: weakref.WeakKeyDictionary[
    contextlib.ExitStack,
    tuple[weakref.ref[keras.callbacks.CallbackList], weakref.ref[keras.Model]],
] = weakref.WeakKeyDictionary()


def _forget(undo: weakref.ref[contextlib.ExitStack]) -> None:
    closed = undo()
    if closed is not None:
        _open.pop(closed, None)


def _close_ended(
    model: keras.Model,
    fit: keras.callbacks.CallbackList | None,
    begins_anew: bool,
) -> None:
    """Undo what trainings of the same weights have left that ended early.

    Args:
        model: What is trained now.
        fit: The list of the training that begins, or `None`.
        begins_anew: Whether ``fit`` has been in a training before, which
            ended early: a person may give one list to `fit` twice.
    """
    shared: set[int] | None = None
    for undo, (its_fit, its_model) in reversed(list(_open.items())):
        other, trained = its_fit(), its_model()
        if other is None or trained is None:
            continue  # it is being closed
        if trained is not model:
            if shared is None:
                shared = {id(v) for v in model.variables}
            if shared.isdisjoint(id(v) for v in trained.variables):
                continue
        if begins_anew if other is fit else not _is_running(other):
            undo.close()


def _is_running(fit: keras.callbacks.CallbackList) -> bool:
    """Whether a frame of this call holds the list: `fit` and loops do."""
    frame = inspect.currentframe()
    try:
        while frame is not None and (frame := frame.f_back) is not None:
            if frame.f_globals is globals():
                continue  # those that ask
            held = frame.f_locals
            if any(value is fit for value in held.values()) or any(
                value is fit
                for value in getattr(held.get("self"), "__dict__", {}).values()
            ):
                return True
        return False
    finally:
        del frame  # a frame that is held holds all that called it


def _list_of(
    callback: keras.callbacks.Callback,
) -> keras.callbacks.CallbackList | None:
    """The list that is calling ``callback``, or `None`.

    Keras tells a callback nothing of those beside it. The list is a public
    class, and while it calls it stands among the frames of the call. A callback
    inside another one is not in the list, but ends with its training, too.
    """
    frame = inspect.currentframe()
    model = callback.model
    around = None
    try:
        # Not this frame itself: its locals, once read, would hold it.
        while frame is not None and (frame := frame.f_back) is not None:
            owner = frame.f_locals.get("self")
            if not isinstance(owner, keras.callbacks.CallbackList):
                continue
            if any(c is callback for c in owner.callbacks):
                return owner
            if around is None and any(
                c.model is model for c in owner.callbacks
            ):
                around = owner
        return around
    finally:
        del frame  # a frame that is held holds all that called it


class ResumableCallback(TicketCallback):
    """A callback whose run goes on after a kill, from a directory of its own.

    A subclass calls `_keep_in` when it is made, `_resume` when training begins
    and `_save` whenever the state is one to go on from.
    """

    keeps_masks = True

    # Whether it goes on by itself where `keras.callbacks.BackupAndRestore` has
    # brought the model back.
    follows_backups = False

    def __init__(self) -> None:
        super().__init__()
        self._run: RunDirectory | None = None
        self._scores: dict[str, np.ndarray] | None = None
        self._start: int | None = None
        self._said_finished = False

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        if self._start is not None:
            with self._undone_on_error():
                self._check_start(epoch)
        if self._run is not None:
            data.set_epoch(epoch)
        super().on_epoch_begin(epoch, logs)

    def _keep_in(
        self, directory: Directory | None, identity: Mapping[str, Any]
    ) -> None:
        """Say where the run is kept.

        Args:
            directory: The directory; `None` keeps nothing.
            identity: JSON values that say which run this is. A directory that
                holds another one is refused.
        """
        self._run = (
            None if directory is None else RunDirectory(directory, identity)
        )

    def _resume(self) -> dict[str, Any]:
        """Put the masks and the state of the last save into the model.

        Nothing happens without a directory. Else it is held from here to the
        end of training, and the `fit` that begins goes on where it was saved.

        Returns:
            What `_save` was given to remember; empty for a new run.

        Raises:
            ValueError: If the directory is in use, holds a run with other
                arguments, a damaged file, or the run of another model; if
                there is none and `keras.callbacks.BackupAndRestore` stands
                beside.
            OSError: If the directory cannot be made or written to.
        """
        self._start = None
        self._scores = None
        self._said_finished = False
        if self._run is None:
            self._check_backups()
            return {}
        if is_chief(self.model.distribute_strategy):
            self._undo.callback(hold(self._run.path).release)
        found = self._run.load()
        epoch = 0 if found is None else found[1]["epoch"]
        if differing(self.model.distribute_strategy, f"{epoch}".encode()):
            raise ValueError(
                "The hosts would go on at different epochs: give them one "
                "directory that they share, or a copy of the chief's each. "
                f"Received here: directory={str(self._run.path)!r}, which goes "
                f"on at epoch {epoch}"
            )
        if found is None:
            return {}
        state, record = found
        if record["masks"] is not None:
            # Layer numbers may be others in this process. The state has every
            # weight, so it aligns them better than the masks would.
            keys = state.match(self.model)
            kept = Ticket.load(self._run.path / record["masks"])
            masking.enforce(
                self.model, {keys[k]: m for k, m in kept.masks.items()}
            )
            if kept.scores is not None:
                self._scores = {keys[k]: s for k, s in kept.scores.items()}
        state.restore(self.model)
        self._start_at(record["epoch"])
        return record["remembered"]

    def _check_backups(self) -> None:
        """Meet a backup that would bring back less than is needed."""
        if not self.follows_backups and any(
            isinstance(c, keras.callbacks.BackupAndRestore)
            for c in self._beside
        ):
            name = type(self).__name__
            raise ValueError(
                "BackupAndRestore brings back the model after a kill, and "
                f"nothing of what {name} has drawn and counted: give "
                f"`directory` to {name}, too, or instead. Received: "
                "directory=None, with BackupAndRestore in the list"
            )

    def _start_at(self, epoch: int) -> None:
        """Let the `fit` that begins start at ``epoch``.

        Keras has no public way to say so from a callback. This is what its own
        `BackupAndRestore` does. Here it is taken back as soon as Keras has read
        it, so that a later `fit` starts at its own first epoch.
        """
        self._start = epoch
        data.set_epoch(epoch)
        self.model._initial_epoch = epoch
        self._undo.callback(setattr, self.model, "_initial_epoch", None)
        if epoch >= self.params.get("epochs", math.inf):
            self._say_finished()

    def _say_finished(self) -> None:
        """Warn, once, that the model of this `fit` gets an old state."""
        if self._run is None or self._said_finished:
            return
        self._said_finished = True
        checks.warn(
            f"The run in directory={str(self._run.path)!r} is finished: the "
            "model gets the state that it ended with, whatever it held, and is "
            "trained for no more than the epochs asked for beyond. For a new "
            "run choose another `directory`, or delete this one."
        )

    def _check_start(self, epoch: int) -> None:
        start, self._start = self._start, None
        asked, self.model._initial_epoch = self.model._initial_epoch, None
        if epoch == start or self._run is None:
            return
        where = (
            f"Received: a start at epoch {epoch}, where "
            f"{str(self._run.path)!r} goes on at {start}"
        )
        if asked == start:
            # Keras takes a start at epoch 0 for none.
            raise ValueError(
                "The run in `directory` began at another epoch: call fit with "
                f"initial_epoch={start}. {where}"
            )
        raise ValueError(
            "Another callback has restored this training, too: list it "
            f"before the one with `directory`. {where}"
        )

    def _save(
        self,
        epoch: int,
        remembered: Mapping[str, Any] | None = None,
        files: Mapping[str, Any] | None = None,
    ) -> None:
        """Record the present state in the directory, if there is one.

        Args:
            epoch: Index of the epoch to go on with.
            remembered: JSON values that the callback needs to go on.
            files: ``{name: ticket or snapshot}``, or whatever has a ``save``,
                that belong to the state.
        """
        if self._run is None:
            return
        scores = self._scores_to_keep()  # hosts add these up together
        if is_chief(self.model.distribute_strategy):
            with _unswapped(self._beside):
                self._run.save(
                    self.model,
                    epoch,
                    remembered or {},
                    files or {},
                    scores,
                )

    def _scores_to_keep(self) -> Mapping[str, np.ndarray] | None:
        """What to save beside the masks; `_scores` has it when resumed."""
        return None


@contextlib.contextmanager
def _unswapped(callbacks: Sequence[keras.callbacks.Callback]) -> Iterator[None]:
    """Inside, a model has the weights that are trained, not their averages.

    `SwapEMAWeights` keeps the averages in the model between two epochs. It
    alone knows, and a new one, in the process that goes on, does not.
    """
    swapped = [
        c
        for c in callbacks
        if isinstance(c, keras.callbacks.SwapEMAWeights)
        and getattr(c, "_ema_weights_in_model", False)
    ]
    for callback in swapped:
        callback.on_test_end()
    yield
    for callback in reversed(swapped):
        callback.on_test_begin()


class DrawingCallback(ResumableCallback):
    """A callback that draws masks from the weights while they are trained.

    Args:
        criterion: As in `tf_tickets.prune`.
        scope: As in `tf_tickets.prune`.
        data: What the criterion scores on, for criteria that need it.
        filters: As in `tf_tickets.prunable_weights`.
        seed: For criteria that draw at random.
        pattern: As in `tf_tickets.prune`.
    """

    def __init__(
        self,
        criterion: str | criteria.Criterion,
        scope: scopes.Scope,
        data: Any,
        filters: Filters,
        seed: int,
        pattern: patterns.Pattern | None = None,
    ) -> None:
        super().__init__()
        criteria.get(criterion)
        scopes.check_scope(scope)
        patterns.get(pattern)
        self.criterion = criterion
        self.scope = scope
        self.pattern = pattern
        self.data = data
        self.filters = filters
        self.seed = checks.whole("seed", seed, least=0)
        self._sums: StepSums | None = None
        if criteria.each_step(criterion) is not None:
            # The sums of its steps are in the directory alone.
            self.follows_backups = False

    def _add_up(self, count: int = 0) -> None:
        """Let the steps add up what the criterion scores, if it scores them.

        Args:
            count: How many had been when the run was saved that goes on.
        """
        each_step = criteria.each_step(self.criterion)
        if each_step is None:
            return
        weights = named_weights(self.model)
        paths = current_masks(self.model, self.filters)
        self._sums = StepSums(
            self.model, {path: weights[path] for path in paths}, each_step
        )
        self._sums.restart(self._scores, count)
        name = describe(None, self.criterion, self.scope, 0)["criterion"]
        let_see(self.model, self._sums.see, self._undo, f"criterion={name!r}")
        self._undo.callback(setattr, self, "_sums", None)

    def _scores_to_keep(self) -> Mapping[str, np.ndarray] | None:
        return None if self._sums is None else self._sums.values()

    def _scored_by(self) -> str | criteria.Criterion:
        """The criterion, with what the steps have added up to."""
        if self._sums is None:
            return self.criterion
        return functools.partial(
            criteria.get(self.criterion), sums=self._sums.values()
        )

    def _check(self) -> dict[str, np.ndarray]:
        """The masks of the moment, if the next ones can be drawn from here.

        Raises:
            ValueError: If nothing is prunable, a weight is not finite, or the
                criterion needs data and there is none that it could read.
        """
        self._check_beside()
        check_finite(self.model, self.filters)
        if criteria.needs_data(self.criterion):
            name = describe(None, self.criterion, self.scope, 0)["criterion"]
            next(
                batches(
                    self.data,
                    needed_by=f"criterion={name!r}",
                    limit=1,
                    labels=False,
                )
            )
        return current_masks(self.model, self.filters)

    def _layout(self, masks: dict[str, np.ndarray]) -> patterns.Layout | None:
        """The pattern on the weights of the model, or `None`."""
        return patterns.layout_on(self.model, self.pattern, masks)

    def _check_beside(self) -> None:
        """Meet callbacks that would draw masks on the same model."""
        others = [c for c in self._beside if isinstance(c, ResumableCallback)]
        if others:
            raise ValueError(
                "Each of these callbacks draws masks of its own: give them a "
                "`fit` each, one after the other. Received: "
                f"{[type(c).__name__ for c in (self, *others)]}"
            )

    def _draw(
        self,
        sparsity: float | None,
        scope: scopes.Scope,
        seed: int,
    ) -> dict[str, np.ndarray]:
        """Draw masks from the weights of the moment and enforce them."""
        before = (
            {}
            if self._sums is None
            else current_masks(self.model, self.filters)
        )
        with progress.shown(progress.of_fit(self.params)):
            # The scores look at weights, which could not be freed when the
            # masks change them.
            masks = draw_masks(
                self.model,
                sparsity,
                criterion=self._scored_by(),
                scope=scope,
                pattern=self.pattern,
                data=self.data,
                filters=self.filters,
                seed=seed,
            )[0]
        if self._sums is not None and any(
            (before[path] & ~mask).any() for path, mask in masks.items()
        ):
            if not self._sums.count:
                raise ValueError(
                    "The criterion scores training steps, and no step of the "
                    "model's own optimizer has been seen since the last "
                    "drawing: begin to prune later, or let train_step call "
                    "self.optimizer.apply(gradients, variables). "
                    "Received: a drawing after 0 steps"
                )
            self._sums.restart()
        return dict(masking.enforce(self.model, masks))


class StepCounter:
    """Training steps since a start, from the batch indices Keras reports.

    Keras reports the last batch of a call, and with ``steps_per_execution``
    one call holds several steps.

    Attributes:
        step: Steps taken so far.
    """

    def __init__(self, start: int = 0) -> None:
        self.step = start
        self._last_batch = -1

    def new_epoch(self) -> None:
        """Batch indices start again at 0."""
        self._last_batch = -1

    def advance(self, batch: int) -> range:
        """The steps that the call which ended at ``batch`` completed."""
        done = range(self.step + 1, self.step + 1 + batch - self._last_batch)
        self.step = done.stop - 1
        self._last_batch = batch
        return done


def _check_trained(epoch: int, logs: Mapping[str, Any] | None) -> None:
    # Keras only warns, and every decision that follows would be taken on a
    # model that has not been trained.
    if logs is not None and all(name.startswith("val_") for name in logs):
        raise ValueError(
            "The data had no batch for this epoch: is it empty, or does it "
            f"run out? Received: nothing in epoch {epoch}"
        )
