"""The rounds of iterative pruning: their plan, callbacks and history."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tf_tickets import checks
from tf_tickets.callbacks.base import Logs, ResumableCallback
from tf_tickets.pruning import scopes

Callbacks = Sequence[keras.callbacks.Callback]
RoundCallbacks = Callbacks | Callable[[int], Callbacks]


@dataclasses.dataclass(frozen=True)
class RoundPlan:
    """The arithmetic of iterative pruning.

    Args:
        rounds: How many rounds.
        epochs_per_round: Epochs of the first round.
        skipped_epochs: Epochs before the rewind point, which later rounds do
            not run again.
        target_sparsity: Sparsity after the last round, or `None`.
        prune_fraction: Fraction of what remains that a round prunes, or
            `None`.
        scope: As in `tf_tickets.prune`; a mapping holds the targets itself.
    """

    rounds: int
    epochs_per_round: int
    skipped_epochs: int = 0
    target_sparsity: float | None = None
    prune_fraction: float | None = None
    scope: scopes.Scope = "global"

    def __post_init__(self) -> None:
        for name, field, least in (
            ("rounds", "rounds", 1),
            ("epochs_per_round", "epochs_per_round", 1),
            ("rewind_epoch", "skipped_epochs", 0),
        ):
            value = checks.whole(name, getattr(self, field), least=least)
            object.__setattr__(self, field, value)
        if self.skipped_epochs >= self.epochs_per_round:
            raise ValueError(
                "The rewind point must lie inside a round. Received: "
                f"rewind_epoch={self.skipped_epochs}, "
                f"epochs_per_round={self.epochs_per_round}"
            )
        given = [
            self.target_sparsity is not None,
            self.prune_fraction is not None,
            isinstance(self.scope, Mapping),
        ]
        if sum(given) != 1:
            raise ValueError(
                "Give one of `target_sparsity`, `prune_fraction` and a mapping "
                "of sparsities as `scope`. Received: "
                f"target_sparsity={self.target_sparsity!r}, "
                f"prune_fraction={self.prune_fraction!r}, scope={self.scope!r}"
            )
        for name in ("target_sparsity", "prune_fraction"):
            value = getattr(self, name)
            if value is not None:
                checks.number(name, value, "(0, 1)")

    def epochs_of(self, index: int) -> int:
        """Epochs of round ``index``, from 0."""
        return self.epochs_per_round - (self.skipped_epochs if index else 0)

    def epochs_before(self, index: int) -> int:
        """Epochs of all rounds before round ``index``."""
        return sum(self.epochs_of(i) for i in range(index))

    def schedule_epoch(self, epoch: int, done: Sequence[int] = ()) -> int:
        """Epoch of the training schedule after ``epoch`` epochs in all.

        Args:
            epoch: Epochs since the first round began.
            done: How many epochs the first rounds took, where they may have
                ended early.
        """
        planned = (
            self.epochs_of(index) for index in range(len(done), self.rounds)
        )
        index = 0
        for length in (*done, *planned):
            if epoch < length:
                break
            epoch -= length
            index += 1
        return epoch + (self.skipped_epochs if index else 0)

    def demand(
        self, done: int, initial_sparsity: float
    ) -> tuple[float | None, scopes.Scope]:
        """``(sparsity, scope)`` to prune to at the end of round ``done``.

        With R rounds from density $d_0$ to $d_R$, the density after round r is
        $d_0 (d_R / d_0)^{r/R}$: every round prunes the same fraction of what
        is left.

        Args:
            done: Rounds trained, from 1.
            initial_sparsity: Sparsity before the first round.
        """
        if self.prune_fraction is not None:
            kept = (1 - self.prune_fraction) ** done
            return 1 - (1 - initial_sparsity) * kept, self.scope
        return scopes.at_progress(
            self.scope,
            self.target_sparsity,
            initial_sparsity,
            done / self.rounds,
        )


class Round:
    """What the callbacks of a round are told: a whole training of their own.

    Keras's callbacks know nothing of rounds: they count the epochs of `fit`,
    keep the best of all rounds and stop the run. Here each round calls their
    ``on_train_begin`` and ``on_train_end``, epochs are those of the training
    schedule, and ``model.stop_training``, set by one of them, is `stopped`,
    which ends the round.

    Args:
        callbacks: A list, or a function from the number of the round, from 1,
            to a list.

    Attributes:
        stopped: Whether one of them has asked to stop this round.

    Raises:
        ValueError: If this is not a list of callbacks, or one of them cannot
            live in a round. For a function, when the round begins.
    """

    def __init__(self, callbacks: RoundCallbacks | None) -> None:
        self.given = callbacks
        self.stopped = False
        self._is_open = False
        # Whether each round makes its own: then none has a past.
        self._fresh = callable(callbacks)
        self._callbacks: list[keras.callbacks.Callback] = []
        self._appends: dict[int, bool] = {}
        self._past: list[int | None] = []
        if not self._fresh:
            self._callbacks = _checked([] if callbacks is None else callbacks)

    @property
    def is_open(self) -> bool:
        """Whether a round has begun and not ended."""
        return self._is_open

    def reset(self) -> None:
        """Forget a round that was broken off."""
        self._is_open = self.stopped = False

    def begin(
        self, number: int, model: keras.Model, params: Mapping[str, Any]
    ) -> None:
        """The round of this number begins.

        Args:
            number: From 1.
            model: What is trained.
            params: As Keras gives them to callbacks, ``epochs`` being those of
                the schedule.
        """
        if callable(self.given):
            self._callbacks = _checked(self.given(number))
        self._is_open, self.stopped = True, False
        self._model = model
        # A round that was broken off has left rows.
        for logger, length in zip(
            _loggers(self._callbacks), self._past, strict=False
        ):
            _shorten(logger, length)
        self._past = []
        for index, callback in enumerate(self._callbacks):
            if isinstance(callback, keras.callbacks.CSVLogger):
                # One file holds all rounds: only the first may empty it.
                append = self._appends.setdefault(index, callback.append)
                callback.append = append or (number > 1 and not self._fresh)
            callback.set_params(dict(params))
            callback.set_model(model)
        self.call("on_train_begin", None)

    def call(self, hook: str, *args: Any) -> None:
        """Call a hook of each, in order; note whether one of them stops."""
        if not self._is_open:
            return
        before = self._model.stop_training
        for callback in self._callbacks:
            getattr(callback, hook)(*args)
        self.stopped |= bool(self._model.stop_training) and not before

    def end(self, logs: Logs) -> None:
        """The round has ended: ``on_train_end``, as at the end of a `fit`."""
        averaged = any(
            isinstance(callback, keras.callbacks.SwapEMAWeights)
            and callback.swap_on_epoch
            for callback in self._callbacks
        )
        optimizer = getattr(self._model, "optimizer", None)
        if not averaged and isinstance(optimizer, keras.optimizers.Optimizer):
            # As `fit` does before it tells anybody: it writes the averages of
            # an optimizer with use_ema=True into the model.
            optimizer.finalize_variable_values(self._model.trainable_weights)
        self.call("on_train_end", logs)
        self._is_open = False

    def unswap(self) -> None:
        """Let `SwapEMAWeights` put back the weights that are trained.

        It keeps the averages in the model between two epochs and swaps them
        when the next one begins, which must not happen after a rewind.
        """
        for callback in self._callbacks:
            if isinstance(callback, keras.callbacks.SwapEMAWeights):
                callback.on_test_end()

    def remembered(self) -> list[float | None]:
        """The best values of checkpoints, which outlive a round."""
        if self._fresh:
            return []
        best = (getattr(c, "best", None) for c in _checkpoints(self._callbacks))
        return [None if value is None else float(value) for value in best]

    def logged(self) -> list[int | None]:
        """How long the files of `CSVLogger` are, where they outlive a round."""
        if self._fresh:
            return []
        return [_length(c) for c in _loggers(self._callbacks)]

    def recall(
        self,
        remembered: Sequence[float | None],
        logged: Sequence[int | None] = (),
    ) -> None:
        """Go on with what another process has left.

        Args:
            remembered: What `remembered` returned there.
            logged: What `logged` returned there.
        """
        if self._fresh:
            return
        self._past = list(logged)
        for callback, best in zip(
            _checkpoints(self._callbacks), remembered, strict=False
        ):
            if best is not None:
                callback.best = best


# Beside iterative pruning these give wrong results: what they keep, compare or
# count does not stop at the end of a round.
OF_A_ROUND = (
    keras.callbacks.EarlyStopping,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.LearningRateScheduler,
    keras.callbacks.ReduceLROnPlateau,
    keras.callbacks.SwapEMAWeights,
)


def _checkpoints(callbacks: Callbacks) -> list[keras.callbacks.Callback]:
    return [
        c for c in callbacks if isinstance(c, keras.callbacks.ModelCheckpoint)
    ]


def _loggers(callbacks: Callbacks) -> list[keras.callbacks.Callback]:
    return [c for c in callbacks if isinstance(c, keras.callbacks.CSVLogger)]


def _length(logger: keras.callbacks.Callback) -> int | None:
    """Bytes of a logger's file; `None` if it is not in a local file system."""
    file = Path(logger.filename)
    if file.is_file():
        return file.stat().st_size
    return 0 if file.parent.is_dir() else None


def _shorten(logger: keras.callbacks.Callback, length: int | None) -> None:
    found = _length(logger)
    if length is not None and found is not None and found > length:
        os.truncate(logger.filename, length)


def warn_of_comparing(
    owner: keras.callbacks.Callback,
    beside: Callbacks,
    behind: Callbacks,
    settled: int | None,
    acts_between: bool = False,
) -> None:
    """Warn of callbacks that compare networks of different sparsity.

    Args:
        owner: Who makes the model sparser in the course of one training.
        beside: The other callbacks of the list.
        behind: Those of them that come later.
        settled: The first epoch whose score is that of the last sparsity;
            `None` if nobody knows.
        acts_between: Whether ``owner`` changes masks when an epoch has ended:
            who saves the model after it saves another one than was scored.
    """
    name = type(owner).__name__
    comparing = [
        type(c).__name__
        for c in beside
        if settled != 0
        and (
            (
                isinstance(c, keras.callbacks.EarlyStopping)
                and (c.start_from_epoch < settled if settled else True)
            )
            or (
                isinstance(c, keras.callbacks.ModelCheckpoint)
                and c.save_best_only
            )
        )
    ]
    if comparing:
        when = "its end" if settled is None else f"epoch {settled}"
        checks.warn(
            f"{', '.join(comparing)} beside {name} compares epochs of "
            "different sparsity, and the best is often one before the last. "
            f"Give EarlyStopping start_from_epoch={settled or '...'}, and "
            "ModelCheckpoint to another `fit`, which trains on with the masks. "
            f"Received: a schedule that reaches its sparsity at {when}"
        )
    after = [
        type(c).__name__
        for c in behind
        if isinstance(
            c, keras.callbacks.EarlyStopping | keras.callbacks.ModelCheckpoint
        )
    ]
    if acts_between and after:
        checks.warn(
            f"{name} makes the model sparser when an epoch has ended, so what "
            "stands behind it saves another network than was scored: list it "
            f"last. Received: {', '.join(after)} behind it"
        )


def _checked(callbacks: Any) -> list[keras.callbacks.Callback]:
    if not isinstance(callbacks, Sequence) or not all(
        isinstance(c, keras.callbacks.Callback) for c in callbacks
    ):
        raise ValueError(
            "`round_callbacks` must be a list of Keras callbacks, or a "
            "function from the number of a round to such a list. "
            f"Received: {callbacks!r}"
        )
    for callback in callbacks:
        if isinstance(
            callback, (ResumableCallback, keras.callbacks.BackupAndRestore)
        ):
            raise ValueError(
                "This callback keeps a run of its own and cannot live inside a "
                "round. To go on after a kill, give `directory`. "
                f"Received: {type(callback).__name__} in round_callbacks"
            )
    return list(callbacks)


def history_row(
    epochs: Sequence[Mapping[str, Any]], model: keras.Model | None = None
) -> dict[str, Any]:
    """Several epochs as one row: each metric's last and best value.

    Args:
        epochs: The logs of each epoch, at least one.
        model: The compiled model that was trained. Keras knows of its metrics
            whether they are best when high.

    Returns:
        ``{metric: last value, "best_" + metric: best value}`` of JSON values.
        Where Keras knows no direction, accuracies and their like are best when
        high, all else (losses, errors) when low. What is no single number has
        no best, and what is no number, array or string is left out.

    Example:

    >>> history_row([{"loss": 0.5}, {"loss": 0.25}, {"loss": 0.75}])
    {'loss': 0.75, 'best_loss': 0.25}
    """
    row: dict[str, Any] = {}
    for name, value in epochs[-1].items():
        last = _as_json(value)
        if last is not None:
            row[name] = last
        values = [_as_json(logs.get(name)) for logs in epochs]
        numbers = [v for v in values if isinstance(v, float)]
        if isinstance(last, float):
            row[f"best_{name}"] = _best(name, numbers, model)
    return row


def _as_json(value: Any) -> float | str | list[Any] | None:
    if value is None or isinstance(value, str):
        return value
    try:
        array = np.asarray(keras.ops.convert_to_numpy(value), "float64")
    except (TypeError, ValueError):
        return None
    number: float | list[Any] = array.tolist()
    return number


def _best(
    name: str, values: Sequence[float], model: keras.Model | None
) -> float:
    values = [v for v in values if not math.isnan(v)] or values
    if model is not None:
        # The public one of Keras's callbacks that know the direction.
        judge = keras.callbacks.EarlyStopping(name, patience=len(values) + 1)
        judge.set_model(model)
        judge.on_train_begin()
        try:
            for epoch, value in enumerate(values):
                judge.on_epoch_end(epoch, {name: value})
        except ValueError:
            pass  # it knows none for this metric
        else:
            return float(judge.best)
    known = f"{name} {_class_of(name, model)}"
    return (max if _HIGHER.search(known) else min)(values)


def _class_of(name: str, model: keras.Model | None) -> str:
    """The class of a compiled metric, which may go by any name."""
    for group in getattr(model, "metrics", ()):
        for metric in getattr(group, "metrics", ()):
            if metric.name == name.removeprefix("val_"):
                return type(metric).__name__
    return ""


_HIGHER = re.compile(
    r"acc|auc|precision|recall|f1|f_?beta|iou|r2|cosine|true_?(posi|nega)tives",
    re.IGNORECASE,
)
