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
from tf_tickets.callbacks.resume import Progress, RunDirectory
from tf_tickets.callbacks.rewind import Rewind
from tf_tickets.pruning import criteria, scopes
from tf_tickets.pruning.oneshot import (
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
            the same call after a kill goes on with the round it was in.
        seed: For criteria that draw at random.

    Attributes:
        epochs: How many epochs to ask `fit` for. In a resumed run, how many
            are left.
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
        self._progress: Progress | None = None
        self._first_round = self._rounds_done = 0
        self._first_epoch: int | None = None
        self._epoch_logs: list[dict[str, Any]] = []
        self._at_rewind_point = False
        self._load()

    @property
    def ticket(self) -> Ticket | None:
        """The last ticket drawn, or `None`."""
        return self.tickets[-1] if self.tickets else None

    @property
    def epochs(self) -> int:
        """How many epochs to ask `fit` for."""
        return self.plan.epochs_from(self._first_round)

    def schedule_epoch(self, epoch: int) -> int:
        """The epoch of the training schedule at epoch ``epoch`` of `fit`.

        Learning rates that are set by epoch, not by the optimizer's
        iteration, do not rewind by themselves. Wrap them::

            LearningRateScheduler(lambda e, lr: f(imp.schedule_epoch(e)))
        """
        return self.plan.schedule_epoch(
            self._first_round, epoch - (self._first_epoch or 0)
        )

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._load()
        self._point.set_model(self.model)
        self._point.on_train_begin()
        finite_weights(self.model, self.filters)
        # The masks of the first round: the first step is traced with them.
        masks = current_masks(self.model, self.filters)
        self._check_reachable(masks)
        if self._progress is None:
            self._initial_sparsity = sparsity_of(masks)
            masking.enforce(self.model, masks)
        else:
            self._initial_sparsity = self._progress.initial_sparsity
            self._point.snapshot = self._progress.rewind_point
            self.tickets[-1].apply(self.model, weights="keep")
            self._progress.state.restore(self.model)

    def on_epoch_begin(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if self._first_epoch is None:
            self._first_epoch = epoch
            available = self.params["epochs"] - epoch
            if available < self.epochs:
                raise ValueError(
                    f"These rounds need fit(epochs={self.epochs + epoch}): "
                    "pass `epochs=imp.epochs`. Received: "
                    f"epochs={self.params['epochs']}"
                )
            self._round_start = time.perf_counter()
        if not self._rounds_done:
            self._point.on_epoch_begin(epoch - self._first_epoch)

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if not self._rounds_done:
            self._point.on_train_batch_end(batch)

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        super().on_epoch_end(epoch, logs)
        self._at_rewind_point = False
        if self._rounds_done == self.plan.rounds:
            return  # epochs beyond the last round train the last ticket
        self._epoch_logs.append(dict(logs or {}))
        if len(self._epoch_logs) == self.plan.epochs_of(self._rounds_done):
            self._end_round()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_end(logs)
        if self._rounds_done < self.plan.rounds:
            warnings.warn(
                f"Training ended in round {self._rounds_done + 1} of "
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
        done = self._rounds_done + 1
        trained_sparsity = sparsity_of(current_masks(self.model, self.filters))
        trained_weights = values_of(named_weights(self.model))
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
        start = self._point.snapshot if self.rewind == "weights" else None
        ticket = Ticket(
            masks,
            start.weights_of(self.model) if start else trained_weights,
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
        self._rounds_done = done
        self._at_rewind_point = True
        self._epoch_logs = []
        if self._directory is not None:
            self._directory.save(
                ticket,
                Progress(
                    done,
                    self._initial_sparsity,
                    self.history,
                    Snapshot.take(self.model),
                    self._point.snapshot if self.rewind else None,
                ),
            )
        self._round_start = time.perf_counter()

    def _load(self) -> None:
        """Start anew, or where the directory's run stands."""
        self.tickets, self._progress = (
            ([], None) if self._directory is None else self._directory.load()
        )
        done = self._progress.rounds_done if self._progress else 0
        self.history = list(self._progress.history) if self._progress else []
        self._first_round = self._rounds_done = done
        self._first_epoch = None
        self._epoch_logs = []
        self._at_rewind_point = False

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
