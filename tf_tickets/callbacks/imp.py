"""Iterative magnitude pruning: train, prune, rewind, in one `fit`."""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tf_tickets import masking
from tf_tickets.callbacks.enforce import MaskKeeper
from tf_tickets.callbacks.plan import RoundPlan
from tf_tickets.callbacks.resume import RunDirectory
from tf_tickets.callbacks.rewind import Rewind
from tf_tickets.pruning import criteria, scopes
from tf_tickets.pruning.prune import (
    current_masks,
    describe,
    draw_masks,
    finite_weights,
    sparsity_of,
)
from tf_tickets.selection import Filters, named_weights, values_of
from tf_tickets.snapshot import Snapshot
from tf_tickets.ticket import Ticket


class IterativeMagnitudePruning(MaskKeeper):
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
        rounds: How many times to train, prune and rewind.
        epochs_per_round: Epochs of a full training run, as in the first
            round. Later rounds start at the rewind point and run the epochs
            that are left of it; with ``rewind_step``, all of them again.
        prune_fraction: Instead of ``target_sparsity``: the fraction of the
            *remaining* weights that each round prunes.
        rewind: `"weights"` restores the full training state of the rewind
            point under the new mask; `"learning_rate"` keeps weights and
            optimizer slots and restores the schedule's position; `None` keeps
            everything (fine-tuning).
        rewind_epoch: The rewind point: index of the epoch of the first round
            before which it lies; 0 is initialisation.
        rewind_step: Instead of ``rewind_epoch``: training steps before it.
        criterion: As in `tf_tickets.prune`.
        scope: As in `tf_tickets.prune`. With a mapping, the target
            sparsities are its values, and ``target_sparsity`` stays `None`.
        filters: As in `tf_tickets.prunable_weights`.
        directory: Where to keep the run. Every finished round is saved there;
            the same call after a kill goes on with the round it was in. List
            the callback after `keras.callbacks.BackupAndRestore` then.
        seed: For criteria that draw at random.

    Attributes:
        epochs: How many epochs to ask `fit` for. A resumed run skips those
            that are done.
        ticket: The last ticket drawn, or `None`.
        tickets: One ticket a round.
        history: One row a round: ``round``, ``trained_sparsity`` (of the
            network that was trained), ``sparsity`` (of the ticket drawn from
            it), the metrics at the end of the round, the best of each as
            ``best_<metric>``, and ``seconds``.

    Raises:
        ValueError: On bad arguments. When training begins: if `fit` has too
            few epochs, nothing is prunable, a weight is not finite, the
            target is below the present sparsity, or ``directory`` holds
            another run. After a round: if its weights are not finite.

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
        filters: Filters = None,
        directory: str | os.PathLike[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        criteria.get(criterion)
        if rewind not in ("weights", "learning_rate", None):
            raise ValueError(
                "`rewind` must be 'weights', 'learning_rate' or None. "
                f"Received: rewind={rewind!r}"
            )
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
        self.criterion = criterion
        self.filters = filters
        self.seed = seed
        self._point = Rewind(
            epoch=rewind_epoch,
            step=rewind_step,
            kind=rewind or "weights",
            at_train_end=False,
        )
        self._directory = (
            None
            if directory is None
            else RunDirectory(directory, self._identity())
        )
        self.tickets: list[Ticket] = []
        self.history: list[dict[str, Any]] = []
        self._first_epoch = 0
        self._begun = False
        self._epoch_logs: list[dict[str, Any]] = []
        self._at_rewind_point = False
        self._initial_sparsity = 0.0
        self._state: Snapshot | None = None
        self._load()

    @property
    def ticket(self) -> Ticket | None:
        """The last ticket drawn, or `None`."""
        return self.tickets[-1] if self.tickets else None

    @property
    def epochs(self) -> int:
        """How many epochs to ask `fit` for."""
        return self.plan.epochs_before(self.plan.rounds)

    def schedule_epoch(self, epoch: int) -> int:
        """The epoch of the training schedule at epoch ``epoch`` of `fit`.

        Learning rates that are set by epoch, not by the optimizer's
        iteration, do not rewind by themselves. Wrap them::

            LearningRateScheduler(lambda e, lr: f(imp.schedule_epoch(e)))
        """
        return self.plan.schedule_epoch(epoch - self._first_epoch)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._point.set_model(self.model)
        self._point.on_train_begin()
        if self._directory is not None:
            self._directory.hold(self.model)
        self._load()
        self._begun = False
        finite_weights(self.model, self.filters)
        # The masks of the first round: the first step is traced with them.
        masks = current_masks(self.model, self.filters)
        self._check_reachable(masks)
        masking.enforce(self.model, masks)
        if self._state is None:
            self._initial_sparsity = sparsity_of(masks)
            self._save({})
        elif self._directory is not None:
            if self.ticket is not None:
                self.ticket.apply(self.model, weights="keep")
            self._directory.begin(self.model, self._state, self._epochs_done())
        self._round_start = time.perf_counter()

    def on_epoch_begin(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if not self._begun:
            self._begun = True
            self._check_start(epoch)
        if self.rewind is not None and not self.tickets:
            self._point.on_epoch_begin(epoch - self._first_epoch)

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if self.rewind is not None and not self.tickets:
            self._point.on_train_batch_end(batch)

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        super().on_epoch_end(epoch, logs)
        self._at_rewind_point = False
        if len(self.tickets) == self.plan.rounds:
            return  # epochs beyond the last round train the last ticket
        self._epoch_logs.append(dict(logs or {}))
        if len(self._epoch_logs) == self.plan.epochs_of(len(self.tickets)):
            self._end_round()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_end(logs)
        if self._directory is not None:
            self._directory.end(self.model)
        if len(self.tickets) < self.plan.rounds:
            warnings.warn(
                f"Training ended in round {len(self.tickets) + 1} of "
                f"{self.plan.rounds}: the last ticket is not drawn.",
                stacklevel=2,
            )
        elif self._at_rewind_point and self.rewind == "weights":
            # An optimizer with use_ema=True has just written its averages
            # over the rewound weights.
            self._point.rewind()

    def _end_round(self) -> None:
        if self.rewind is not None and self._point.snapshot is None:
            raise ValueError(
                "The first round ended before the rewind point. Received: "
                f"rewind_step={self.rewind_step}"
            )
        done = len(self.tickets) + 1
        trained_sparsity = sparsity_of(current_masks(self.model, self.filters))
        weights = self._start_weights() or values_of(named_weights(self.model))
        sparsity, scope = self.plan.demand(done, self._initial_sparsity)
        masks, _ = draw_masks(
            self.model,
            sparsity,
            criterion=self.criterion,
            scope=scope,
            filters=self.filters,
            seed=self.seed + done - 1,
        )
        masking.enforce(self.model, masks)
        if self.rewind is not None:
            self._point.rewind()
        ticket = Ticket(
            masks,
            weights,
            {
                "source": "IterativeMagnitudePruning",
                "round": done,
                **self._identity(),
            },
        )
        self.tickets.append(ticket)
        self.history.append(
            {
                "round": done,
                "trained_sparsity": trained_sparsity,
                "sparsity": ticket.sparsity,
                **summarize(self._epoch_logs),
                "seconds": time.perf_counter() - self._round_start,
            }
        )
        self._at_rewind_point = True
        self._epoch_logs = []
        files: dict[str, Ticket | Snapshot] = {_file(done): ticket}
        if done == 1 and self._point.snapshot is not None:
            files["rewind_point.npz"] = self._point.snapshot
        self._save(files)
        self._round_start = time.perf_counter()

    def _load(self) -> None:
        """Start anew, or where the directory's run stands."""
        self._first_epoch = 0
        self._epoch_logs = []
        self._at_rewind_point = False
        self.tickets, self.history, self._state = [], [], None
        found = None if self._directory is None else self._directory.load()
        if found is None or self._directory is None:
            return
        self._state, record = found
        self.history = record["history"]
        self._initial_sparsity = record["initial_sparsity"]
        folder = self._directory.path
        for row in self.history:
            ticket = Ticket.load(folder / _file(row["round"]))
            weights = self._start_weights() or ticket.weights
            self.tickets.append(Ticket(ticket.masks, weights, ticket.metadata))
        if self.rewind is not None and self.tickets:
            self._point.snapshot, _ = Snapshot.load(folder / "rewind_point.npz")

    def _start_weights(self) -> Mapping[str, np.ndarray] | None:
        """The weights that every round goes back to, held once for all."""
        if self.rewind != "weights":
            return None
        if self.tickets:
            return self.tickets[0].weights
        point = self._point.snapshot
        return point.weights_of(self.model) if point else None

    def _save(self, files: dict[str, Ticket | Snapshot]) -> None:
        if self._directory is not None:
            record = {
                "initial_sparsity": self._initial_sparsity,
                "history": self.history,
            }
            self._directory.save(self.model, record, files)

    def _epochs_done(self) -> int:
        return self.plan.epochs_before(len(self.tickets))

    def _check_start(self, epoch: int) -> None:
        """Meet a `fit` that is too short or begins elsewhere."""
        if self._directory is not None:
            self._directory.check(epoch, self._epochs_done())
        self._first_epoch = epoch - self._epochs_done()
        needed = self._first_epoch + self.epochs
        if self.params["epochs"] < needed:
            raise ValueError(
                f"These rounds need fit(epochs={needed}): pass "
                "`epochs=imp.epochs`. Received: "
                f"epochs={self.params['epochs']}"
            )

    def _check_reachable(self, masks: dict[str, np.ndarray]) -> None:
        """Meet an impossible target before training, not after a round."""
        sparsity, scope = self.plan.demand(self.plan.rounds, sparsity_of(masks))
        scopes.pools(
            scope,
            {path: mask.shape for path, mask in masks.items()},
            sparsity,
            {path: int(np.count_nonzero(m)) for path, m in masks.items()},
        )
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
                plan.target_sparsity, self.criterion, plan.scope, self.seed
            ),
            "prune_fraction": plan.prune_fraction,
            "rounds": plan.rounds,
            "epochs_per_round": plan.epochs_per_round,
            "rewind": self.rewind,
            "rewind_epoch": plan.skipped_epochs,
            "rewind_step": self.rewind_step,
        }


def summarize(epochs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Each metric of a round: its last value, and its best as ``best_...``.

    Accuracies and their like are best when high, all else (losses, errors)
    when low.
    """
    row: dict[str, float] = {}
    for name in epochs[-1]:
        values = [float(logs[name]) for logs in epochs if name in logs]
        pick = max if _HIGHER.search(name) else min
        row[name] = values[-1]
        row[f"best_{name}"] = pick(values)
    return row


_HIGHER = re.compile(r"acc|auc|precision|recall|f1|f_?beta|iou|r2|cosine")


def _file(number: int) -> str:
    return f"ticket_{number:02d}.npz"
