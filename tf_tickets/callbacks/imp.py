"""Iterative magnitude pruning: train, prune, rewind, in one `fit`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np

from tf_tickets import checks, figures, masking, progress
from tf_tickets.callbacks.base import DrawingCallback, Logs
from tf_tickets.callbacks.directory import Directory
from tf_tickets.callbacks.enforce import EnforceTicket
from tf_tickets.callbacks.rewind import Rewind
from tf_tickets.callbacks.rounds import (
    OF_A_ROUND,
    Round,
    RoundCallbacks,
    RoundPlan,
    history_row,
)
from tf_tickets.masks import given, hold_as_bits
from tf_tickets.pruning import criteria, patterns, scopes
from tf_tickets.pruning.prune import (
    budget,
    check_criterion,
    current_masks,
    describe,
    sparsity_of,
)
from tf_tickets.selection import Filters, match_keys, named_weights, values_of
from tf_tickets.snapshot import Snapshot
from tf_tickets.ticket import Ticket


class IterativeMagnitudePruning(DrawingCallback):
    """Draw a winning ticket while the model trains.

    A round trains, prunes the weights with the lowest scores and rewinds; all
    rounds run in one `fit` and share one trace of the training step. When
    `fit` has run `epochs` epochs, the model holds the last ticket at its
    rewind point, its zeros enforced and its optimizer rewound: call `fit`
    again, or ask for more epochs at once, to train it.

    Densities fall by an equal factor each round. With ``rounds=1`` this is
    one-shot pruning.

    Args:
        target_sparsity: Sparsity of the last ticket, in (0, 1).
        rounds: How many times to train, prune and rewind; 1 by default.
        epochs_per_round: Epochs of a full training run, as in the first
            round. Later rounds start at the rewind point and run the epochs
            that are left of it; with ``rewind_step``, all of them again.
        prune_fraction: Instead of ``target_sparsity``: the fraction of the
            *remaining* weights that each round prunes.
        rewind: `"weights"`, the default, restores the full training state of
            the rewind point under the new mask; `"learning_rate"` keeps weights
            and optimizer slots and restores the schedule's position; `None`
            keeps everything (fine-tuning).
        rewind_epoch: The rewind point: index of the epoch of the first round
            before which it lies. The default, 0, is initialization.
        rewind_step: Instead of ``rewind_epoch``: after how many training steps
            of the first round it lies.
        criterion: As in `tf_tickets.prune`; `"magnitude"` by default.
        scope: As in `tf_tickets.prune`; `"global"` by default. With a mapping,
            the target sparsities are its values, and ``target_sparsity`` stays
            `None`.
        pattern: As in `tf_tickets.prune`; `None` by default. N:M says the
            target sparsity itself, and tightens from round to round.
        data: What the criterion scores on, for criteria that need it, as in
            `tf_tickets.prune`. It is read at the end of each round.
        filters: As in `tf_tickets.prunable_weights`; by default all prunable
            weights.
        directory: Where to keep the run; by default nowhere. Every finished
            round is saved there; the same call after a kill goes on with the
            round it was in. List the callback after
            `keras.callbacks.BackupAndRestore` then.
        round_callbacks: Callbacks of Keras that live inside a round, as in a
            `fit` of its own: each round calls their ``on_train_begin`` and,
            before it prunes, their ``on_train_end``; epochs are those of the
            training schedule; ``model.stop_training``, set by one of them,
            ends the round, and the next one begins with the next epoch of
            `fit`. A list, or a function from the number of the round, from 1,
            to a list. Epochs beyond the last round are one more training with
            them, of the last ticket.
        seed: For criteria that draw at random; 0 by default.

    Attributes:
        epochs: How many epochs to ask `fit` for: an upper bound where rounds
            end early. A resumed run skips those that are done.
        ticket: The last ticket drawn, or `None`.
        tickets: One ticket for each round.
        found_at: For each ticket, after how many epochs it was drawn.
        history: One row for each round: ``round``, ``trained_sparsity`` (of the
            network that was trained), ``sparsity`` (of the ticket drawn from
            it), the metrics at the end of the round, the best of each as
            ``best_<metric>``, ``epochs`` and ``seconds``. Metrics that are no
            single number have no best.

    The logs of every epoch get ``round`` and ``sparsity``, that of the network
    which was trained, for the progress bar, `History` and all other callbacks.
    Unless `fit` is silent, a line tells where each round begins, and one at the
    end what was drawn.

    Raises:
        ValueError: On bad arguments. When training begins: if `fit` has too
            few epochs, nothing is prunable, a weight is not finite, the
            criterion needs ``data``, the target is below the present sparsity,
            ``directory`` holds another run, or another callback of the list
            draws masks, too. After a round: if its weights are not finite.

    Reference:
        Frankle and Carbin, "The Lottery Ticket Hypothesis", ICLR 2019;
        rewinding: Frankle et al., "Linear Mode Connectivity and the Lottery
        Ticket Hypothesis", ICML 2020; learning-rate rewinding: Renda et al.,
        ICLR 2020.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((8,)),
    ...     keras.layers.Dense(32, activation="relu"),
    ...     keras.layers.Dense(2),
    ... ])
    >>> model.compile("adam", "mse")
    >>> imp = IterativeMagnitudePruning(
    ...     target_sparsity=0.9, rounds=3, epochs_per_round=2)
    >>> _ = model.fit(
    ...     np.ones((16, 8)), np.ones((16, 2)), epochs=imp.epochs, verbose=0,
    ...     callbacks=[imp])
    >>> imp.ticket.sparsity
    0.9
    >>> [round(row["sparsity"], 3) for row in imp.history]
    [0.534, 0.784, 0.9]
    """

    def __init__(
        self,
        *,
        target_sparsity: float | None = None,
        rounds: int = 1,
        epochs_per_round: int,
        prune_fraction: float | None = None,
        rewind: Literal["weights", "learning_rate"] | None = "weights",
        rewind_epoch: int = 0,
        rewind_step: int | None = None,
        criterion: str | criteria.Criterion = "magnitude",
        scope: scopes.Scope = "global",
        pattern: patterns.Pattern | None = None,
        data: Any = None,
        filters: Filters = None,
        directory: Directory | None = None,
        round_callbacks: RoundCallbacks | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(criterion, scope, data, filters, seed, pattern)
        if prune_fraction is None:
            target_sparsity = patterns.sparsity_for(
                pattern, target_sparsity, scope
            )
        elif isinstance(patterns.get(pattern), patterns.NofM):
            raise ValueError(
                "The pattern N:M says the target sparsity: leave out "
                f"`prune_fraction`. Received: pattern={pattern!r}, "
                f"prune_fraction={prune_fraction!r}"
            )
        checks.choice("rewind", rewind, ("weights", "learning_rate", None))
        if rewind_step is not None:
            rewind_step = checks.whole("rewind_step", rewind_step, least=0)
        if rewind is None and (rewind_epoch or rewind_step):
            raise ValueError(
                "A rewind point needs a rewind. Received: rewind=None, "
                f"rewind_epoch={rewind_epoch}, rewind_step={rewind_step}"
            )
        self.plan = RoundPlan(
            rounds,
            epochs_per_round,
            rewind_epoch,
            target_sparsity,
            prune_fraction,
            scope,
        )
        self.rewind = rewind
        self.rewind_step = rewind_step
        self._round = Round(round_callbacks)
        if round_callbacks:
            # Only then: Keras waits for every step of validation where a
            # callback of the list has this.
            setattr(self, "on_test_batch_end", self._on_test_batch_end)  # noqa: B010
        self._point = Rewind(
            epoch=rewind_epoch,
            step=rewind_step,
            kind=rewind or "weights",
            at_train_end=False,
        )
        self._reset()
        self._keep_in(directory, self._identity())
        found = None if self._run is None else self._run.load()
        if found is not None:
            # What is drawn already can be looked at before training.
            self._recall(found[1]["remembered"])

    def _reset(self) -> None:
        self.tickets: list[Ticket] = []
        self.history: list[dict[str, Any]] = []
        self._initial_sparsity = 0.0
        self._first_epoch: int | None = None
        self._resumed = False
        self._extra = 0
        self._last_logs: Logs = {}
        self._trained_sparsity = 0.0
        self._epoch_logs: list[Logs] = []
        self._asked_schedule = False
        self._looked_beside = False
        self._at_rewind_point = False

    @property
    def ticket(self) -> Ticket | None:
        """The last ticket drawn, or `None`."""
        return self.tickets[-1] if self.tickets else None

    @property
    def found_at(self) -> list[int]:
        """For each ticket, after how many epochs it was drawn."""
        return np.cumsum(self._lengths, dtype=int).tolist()

    @property
    def _lengths(self) -> list[int]:
        """Epochs of the rounds that are done."""
        return [
            row.get("epochs", self.plan.epochs_of(index))
            for index, row in enumerate(self.history)
        ]

    @property
    def _position(self) -> int:
        """The epoch of the training schedule."""
        skipped = self.plan.skipped_epochs if self.tickets else 0
        return skipped + len(self._epoch_logs)

    @property
    def epochs(self) -> int:
        """How many epochs to ask `fit` for, an upper bound."""
        return self.plan.epochs_before(self.plan.rounds)

    def plot(
        self,
        path: Directory | None = None,
        *,
        metric: str | None = None,
        axes: Any = None,
    ) -> Any:
        """Draw `history`: a metric over the sparsity, round by round.

        A dashed line is the dense network, if the first round trained one.
        Where a round was better than at its end, its best is drawn, too.

        Args:
            path: An image file to write, or `None`.
            metric: A name in the rows of `history`; by default an accuracy or
                its like, that of validation before that of training.
            axes: Matplotlib axes to draw on; a new figure if `None`.

        Returns:
            The axes. Horizontal positions are densities of the networks that
            were trained; their labels are sparsities.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If no round is done, or none has the metric.
        """
        rows = self.history
        if not rows:
            raise ValueError(
                "There is nothing to plot before a round is done. Received: "
                "history=[]"
            )
        known = [key for key in rows[0] if _is_plotted(key, rows)]
        if metric is None:
            # Not a loss, if there is something else; of validation, if there.
            metric = min(
                known, key=lambda k: ("loss" in k, not k.startswith("val_"))
            )
        checks.choice("metric", metric, known)
        trained = [1 - row["trained_sparsity"] for row in rows]
        last, best = (
            dict(zip(trained, [row[key] for row in rows], strict=True))
            for key in (metric, f"best_{metric}")
        )
        runs = {"end of the round": last}
        if best != last:
            runs["best of the round"] = best
        return figures.over_sparsity(
            runs, metric, path, dense=last.get(1.0), axes=axes
        )

    def schedule_epoch(self, epoch: int) -> int:
        """The epoch of the training schedule at epoch ``epoch`` of `fit`.

        For callbacks beside this one that set something by epoch; those of
        ``round_callbacks`` need none of it::

            LearningRateScheduler(lambda e, lr: f(imp.schedule_epoch(e)))

        Args:
            epoch: As Keras counts.
        """
        self._asked_schedule = True
        return self.plan.schedule_epoch(
            epoch - (self._first_epoch or 0), self._lengths
        )

    def begin(self) -> None:
        self._reset()
        self._round.reset()
        self._check_epochs(0)
        self._check_order()
        remembered = self._resume()
        # After the state is restored: point 0 is where the run began.
        self._point.set_model(self.model)
        self._point.on_train_begin()
        self._undo.callback(self._point.on_train_end)
        masks = self._check()
        self._add_up()
        check_criterion(
            self.model,
            self._scored_by(),
            masks,
            data=self.data,
            seed=self.seed,
        )
        self._resumed = bool(remembered)
        self._trained_sparsity = sparsity_of(masks)
        if remembered:
            self._recall(remembered, align=True)
            self._round.recall(
                remembered.get("best", []), remembered.get("logged", [])
            )
            self._skip_finished()
        else:
            self._initial_sparsity = self._trained_sparsity
        self._check_reachable(masks)
        # Also where they keep everything: the first step is traced with them.
        masking.enforce(self.model, masks)
        self._round_start = time.perf_counter()

    def epoch_begin(self, epoch: int) -> None:
        if self._first_epoch is None:
            self._first_epoch = epoch - sum(self._lengths)
            self._check_epochs(self._first_epoch)
            self._extra = self._epochs_beyond(self._first_epoch)
            if not self._resumed:
                self._remember(epoch, {})
        self._round.unswap()
        if self.rewind is not None and not self.tickets:
            self._point.on_epoch_begin(epoch - self._first_epoch)
        if not self._round.is_open:
            last = (
                self.plan.epochs_per_round
                if len(self.tickets) < self.plan.rounds
                else self.plan.skipped_epochs + self._extra
            )
            self._round.begin(
                len(self.tickets) + 1,
                self.model,
                {**self.params, "epochs": last},
            )
            self._show_round()
        self._round.call("on_epoch_begin", self._position)

    def on_train_batch_begin(
        self, batch: int, logs: Logs | None = None
    ) -> None:
        if not self._looked_beside:
            self._look_beside()
        self._round.call("on_train_batch_begin", batch, logs)

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        if self.rewind is not None and not self.tickets:
            self._point.on_train_batch_end(batch)
        self._round.call("on_train_batch_end", batch, logs)

    def on_test_begin(self, logs: Logs | None = None) -> None:
        self._round.call("on_test_begin", logs)

    def on_test_end(self, logs: Logs | None = None) -> None:
        self._round.call("on_test_end", logs)

    def on_test_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        self._round.call("on_test_batch_begin", batch, logs)

    def _on_test_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._round.call("on_test_batch_end", batch, logs)

    def log(self, epoch: int, logs: Logs) -> None:
        logs["round"] = len(self.tickets) + 1
        # A SparsityLogger may have measured it already.
        logs.setdefault("sparsity", self._trained_sparsity)

    def epoch_end(self, epoch: int, logs: Logs) -> None:
        self._at_rewind_point = False
        self._round.call("on_epoch_end", self._position, logs)
        self._last_logs = logs
        self._epoch_logs.append(dict(logs))
        done = len(self._epoch_logs)
        if len(self.tickets) == self.plan.rounds:
            # Epochs beyond the last round train the last ticket. Rounds that
            # ended early do not make them more.
            if done >= self._extra:
                self.model.stop_training = True
            return
        if self._round.stopped:
            self.model.stop_training = False
        if self._round.stopped or done == self.plan.epochs_of(
            len(self.tickets)
        ):
            self._end_round(epoch)

    def end(self) -> None:
        if self._round.is_open:
            self._round.end(self._last_logs)
            masking.project(self.model)
        if len(self.tickets) < self.plan.rounds:
            warnings.warn(
                f"Training ended in round {len(self.tickets) + 1} of "
                f"{self.plan.rounds}: the last ticket is not drawn.",
                stacklevel=3,  # Keras, which called
            )
            return
        if self._at_rewind_point and self.rewind == "weights":
            # An optimizer with use_ema=True has just written its averages
            # over the rewound weights.
            self._point.rewind()
        if progress.of_fit(self.params):
            progress.say(f"Drawn: {self.ticket!r}")

    def _show_round(self) -> None:
        """A line above the epochs of a round, where `fit` shows those."""
        if progress.of_fit(self.params):
            number = len(self.tickets) + 1
            progress.say(
                f"Round {number}/{self.plan.rounds}"
                if number <= self.plan.rounds
                else "The last ticket"
            )

    def _end_round(self, epoch: int) -> None:
        if self.rewind is not None and self._point.snapshot is None:
            raise ValueError(
                "The first round ended before the rewind point. Received: "
                f"rewind_epoch={self.plan.skipped_epochs}, "
                f"rewind_step={self.rewind_step}"
            )
        done = len(self.tickets) + 1
        self._round.end(self._last_logs)
        masking.project(self.model)  # weights may have been restored
        trained_sparsity = sparsity_of(current_masks(self.model, self.filters))
        weights = self._start_weights() or given(
            values_of(named_weights(self.model))
        )
        sparsity, scope = self.plan.demand(done, self._initial_sparsity)
        if self.tickets:
            hold_as_bits(self.tickets[-1])
        masks = self._draw(sparsity, scope, self.seed + done - 1)
        self._round.unswap()
        if self.rewind is not None:
            self._point.rewind()
        masking.project(self.model)
        ticket = Ticket(
            given(masks),
            weights,
            {
                "source": "IterativeMagnitudePruning",
                "round": done,
                **self._identity(),
            },
        )
        self.tickets.append(ticket)
        row = {
            "round": done,
            "trained_sparsity": trained_sparsity,
            "sparsity": ticket.sparsity,
        }
        logged = history_row(self._epoch_logs, self.model)
        self.history.append(
            {
                **row,
                **{k: v for k, v in logged.items() if k not in row},
                "epochs": len(self._epoch_logs),
                "seconds": time.perf_counter() - self._round_start,
            }
        )
        self._trained_sparsity = ticket.sparsity
        self._at_rewind_point = True
        self._epoch_logs = []
        files: dict[str, Ticket | Snapshot] = {_file(done): ticket}
        if done == 1 and self._point.snapshot is not None:
            files["rewind_point.safetensors"] = self._point.snapshot
        self._remember(epoch + 1, files)
        self._round_start = time.perf_counter()
        if done == self.plan.rounds and not self._extra:
            # Rounds that ended early leave epochs that nobody has asked for.
            self.model.stop_training = True

    def _epochs_beyond(self, first: int) -> int:
        """How many epochs `fit` is asked for beyond those of the rounds."""
        needed = first + self.epochs
        given: int = self.params.get("epochs", needed)
        return given - needed

    def _skip_finished(self) -> None:
        """A run whose rounds are all done trains only what is asked beyond."""
        if len(self.tickets) < self.plan.rounds or self._start is None:
            return
        # As after the last round.
        self._at_rewind_point = True
        self._say_finished()
        if self._epochs_beyond(self._start - sum(self._lengths)) <= 0:
            self._start_at(max(self._start, self.params.get("epochs", 0)))

    def _check_order(self) -> None:
        """Meet a ticket that would be applied over the masks drawn here."""
        if any(
            isinstance(c, EnforceTicket) and c.ticket is not None
            for c in self._behind
        ):
            raise ValueError(
                "A ticket that is applied when training begins must be there "
                "before its masks are pruned further: list EnforceTicket "
                "before IterativeMagnitudePruning. Received: EnforceTicket "
                "behind it"
            )

    def _look_beside(self) -> None:
        """Warn of Keras's callbacks that should be told of rounds."""
        self._looked_beside = True
        found = [
            type(c).__name__
            for c in self._beside
            if isinstance(c, OF_A_ROUND)
            and not (
                # It asks what epoch of the schedule this is.
                isinstance(c, keras.callbacks.LearningRateScheduler)
                and self._asked_schedule
            )
        ]
        if found:
            warnings.warn(
                f"{', '.join(found)} beside IterativeMagnitudePruning knows "
                "nothing of rounds: it compares, counts, stops and restores "
                "across them. Give it to IterativeMagnitudePruning as "
                "`round_callbacks`, and each round is a training of its own.",
                stacklevel=3,  # Keras, which called
            )

    def _remember(
        self, epoch: int, files: dict[str, Ticket | Snapshot]
    ) -> None:
        remembered = {
            "initial_sparsity": self._initial_sparsity,
            "history": self.history,
            "best": self._round.remembered(),
            "logged": self._round.logged(),
        }
        self._save(epoch, remembered, files)

    def _recall(self, remembered: dict[str, Any], align: bool = False) -> None:
        """Read what the directory holds.

        Args:
            remembered: What `_remember` saved.
            align: Give the tickets the paths that the model has now: its
                layers may have other numbers in this process.
        """
        if self._run is None:
            return
        self.tickets = []
        self.history = remembered["history"]
        self._initial_sparsity = remembered["initial_sparsity"]
        for row in self.history:
            ticket = Ticket.load(self._run.path / _file(row["round"]))
            if align:
                ticket = _aligned(ticket, named_weights(self.model))
            if self.tickets and self.rewind == "weights":
                # All rounds go back to the same ones: hold them once. Their
                # paths are those of the process that drew the ticket.
                first = (self.tickets[0].weights or {}).values()
                weights = dict(zip(ticket.weights or {}, first, strict=True))
                ticket = Ticket(ticket.masks, weights, ticket.metadata)
            self.tickets.append(ticket)
        for ticket in self.tickets[:-1]:
            hold_as_bits(ticket)
        if self.rewind is not None and self.tickets:
            file = self._run.path / "rewind_point.safetensors"
            self._point.snapshot, _ = Snapshot.load(file)

    def _start_weights(self) -> Mapping[str, np.ndarray] | None:
        """The weights that every round goes back to, held once for all."""
        if self.rewind != "weights":
            return None
        if self.tickets:
            return self.tickets[0].weights
        point = self._point.snapshot
        return point.weights_of(self.model) if point else None

    def _check_epochs(self, first: int) -> None:
        """Meet a `fit` that is too short for the rounds."""
        needed = first + self.epochs
        given = self.params.get("epochs", needed)
        if given < needed:
            raise ValueError(
                f"These rounds need fit(epochs={needed}): pass "
                f"`epochs=imp.epochs`. Received: epochs={given}"
            )

    def _check_reachable(self, masks: dict[str, np.ndarray]) -> None:
        """Meet an impossible target before training, not after a round."""
        sparsity, scope = self.plan.demand(
            self.plan.rounds, self._initial_sparsity
        )
        budget(sparsity, scope, masks, self._layout(masks))
        steps = self.params.get("steps")
        last = None if steps is None else steps * self.plan.epochs_per_round
        if self.rewind_step and last is not None and self.rewind_step > last:
            raise ValueError(
                "The rewind point lies beyond the first round, which has "
                f"{last} steps. Received: rewind_step={self.rewind_step}"
            )

    def _identity(self) -> dict[str, Any]:
        plan = self.plan
        return {
            **describe(
                plan.target_sparsity,
                self.criterion,
                plan.scope,
                self.seed,
                self.pattern,
            ),
            "prune_fraction": plan.prune_fraction,
            "rounds": plan.rounds,
            "epochs_per_round": plan.epochs_per_round,
            "rewind": self.rewind,
            "rewind_epoch": plan.skipped_epochs,
            "rewind_step": self.rewind_step,
            "filters": _text(self.filters),
        }


def _is_plotted(key: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether this is a metric, and a number in every round."""
    return key not in ("round", "sparsity") and all(
        isinstance(row.get(key), float) and f"best_{key}" in row for row in rows
    )


def _text(filters: Filters) -> Any:
    """Filters as JSON values."""
    if filters is None or isinstance(filters, str):
        return filters
    if callable(filters):
        return checks.word_for(filters)
    return [_text(one) for one in filters]


def _file(number: int) -> str:
    return f"ticket_{number:02d}.safetensors"


def _aligned(ticket: Ticket, named: Mapping[str, Any]) -> Ticket:
    """The ticket under the paths of ``named``, all weights of a model."""
    weights = ticket.weights or {}
    keys = match_keys({k: w.shape for k, w in weights.items()}, named)
    return Ticket(
        {keys[k]: m for k, m in ticket.masks.items()},
        {keys[k]: w for k, w in weights.items()},
        ticket.metadata,
    )
