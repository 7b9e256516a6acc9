"""Heads, widths and blocks that go in several small cuts of one training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_tickets import checks, masking
from tf_tickets.callbacks.base import Logs, ResumableCallback
from tf_tickets.callbacks.directory import Directory
from tf_tickets.distribute import agreed
from tf_tickets.structured.groups import (
    Criterion,
    GroupTicket,
    WeightGroups,
    draw_groups,
)


class GroupPruning(ResumableCallback):
    """Prunes groups of weights a few at a time while the model trains.

    Each cut ranks what is left anew and holds what goes at zero; the model
    keeps its size until `tf_tickets.structured.shrink` takes out what
    `ticket` prunes. Masks that the model has stay.

    Args:
        target_sparsity: As ``sparsity`` of
            `tf_tickets.structured.draw_groups`, after the last cut.
        cuts: How many cuts, of equal size.
        every: Epochs between two cuts.
        begin: Epochs before the first cut.
        groups: As in `draw_groups`.
        criterion: As in `draw_groups`.
        scope: As in `draw_groups`.
        data: As in `draw_groups`.
        seed: As in `draw_groups`.
        directory: Where to keep the run; by default nowhere. Every epoch is
            saved there; the same call after a kill goes on after the last
            whole epoch. List the callback after
            `keras.callbacks.BackupAndRestore` then.

    Attributes:
        ticket: The last one drawn, or `None`.
        tickets: ``{epochs trained before: ticket}``.

    Raises:
        ValueError: On bad arguments; when training begins, if the model has
            no such groups, or no epoch is left after the last cut.

    Example:

    >>> import keras, numpy as np, tf_tickets as tt
    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu"),
    ...     keras.layers.Dense(1),
    ... ])
    >>> model.compile("adam", "mse")
    >>> pruning = GroupPruning(0.5, cuts=2, groups=["widths"])
    >>> _ = model.fit(np.ones((8, 4)), np.ones((8, 1)), epochs=3, verbose=0,
    ...               callbacks=[pruning])
    >>> [ticket.kept for ticket in pruning.tickets.values()]
    [6, 4]
    >>> tt.structured.shrink(model, pruning.ticket).layers[0].units
    4
    """

    def __init__(
        self,
        target_sparsity: float | Mapping[str, float],
        *,
        cuts: int = 4,
        every: int = 1,
        begin: int = 1,
        groups: Sequence[str] = ("heads", "widths"),
        criterion: str | Criterion = "magnitude",
        scope: str = "layer",
        data: Any = None,
        seed: int = 0,
        directory: Directory | None = None,
    ) -> None:
        super().__init__()
        if isinstance(target_sparsity, Mapping):
            self.target_sparsity = {
                str(kind): checks.sparsity(value, "target_sparsity")
                for kind, value in target_sparsity.items()
            }
        else:
            value = checks.sparsity(target_sparsity, "target_sparsity")
            named = [groups] if isinstance(groups, str) else list(groups)
            self.target_sparsity = dict.fromkeys(named, value)
        self.cuts = checks.whole("cuts", cuts)
        self.every = checks.whole("every", every)
        self.start = checks.whole("begin", begin)
        self.criterion = criterion
        self.scope = scope
        self.data = data
        self.seed = seed
        self.ticket: GroupTicket | None = None
        self.tickets: dict[int, GroupTicket] = {}
        self._keep_in(
            directory,
            {
                "source": "GroupPruning",
                "target_sparsity": self.target_sparsity,
                "cuts": self.cuts,
                "every": self.every,
                "begin": self.start,
                "criterion": checks.word_for(criterion),
                "scope": scope,
                "seed": seed,
            },
        )

    def begin(self) -> None:
        self.ticket = None
        self.tickets = {}
        last = self.start + (self.cuts - 1) * self.every
        epochs = self.params.get("epochs") or last + 1
        if epochs <= last:
            raise ValueError(
                "No epoch is left after the last cut: train longer, or cut "
                f"earlier. Received: epochs={epochs}, the last cut after "
                f"{last}"
            )
        self._groups = WeightGroups(self.model)
        first = self._draw(1)  # every error, before time is spent
        # Drawn before: what a run goes on from is not touched by a draw.
        remembered = self._resume()
        if self._run is not None:
            for done in remembered.get("cut_after", ()):
                file = self._run.path / _file(done)
                self.ticket = self.tickets[done] = GroupTicket.load(file)
        # Of a run that goes on, these prune what its cuts have pruned.
        self._held = masking.attached_masks(self.model)
        # A mask that is there from the start costs no new trace later.
        kept = {k: np.ones_like(m) for k, m in first.masks.items()}
        self._hold(GroupTicket(kept))

    def epoch_end(self, epoch: int, logs: Logs) -> None:
        done, rest = divmod(epoch + 1 - self.start, self.every)
        files = {}
        if not rest and 0 <= done < self.cuts:
            ticket = self._draw(done + 1)
            self.ticket = self.tickets[epoch + 1] = ticket
            files[_file(epoch + 1)] = ticket
            self._hold(ticket)
        self._save(epoch + 1, {"cut_after": [*self.tickets]}, files)

    def _hold(self, ticket: GroupTicket) -> None:
        """Hold what is pruned at zero, beside what was held before."""
        masks = ticket.masks_of(self._groups)
        masking.enforce(
            self.model,
            {k: m & self._held.get(k, True) for k, m in masks.items()},
        )

    def _draw(self, cut: int) -> GroupTicket:
        drawn = draw_groups(
            self.model,
            {k: v * cut / self.cuts for k, v in self.target_sparsity.items()},
            criterion=self.criterion,
            scope=self.scope,
            data=self.data,
            seed=self.seed,
            gone=self.ticket,
            found=self._groups,
        )
        return GroupTicket(
            agreed(self.model.distribute_strategy, drawn.masks),
            drawn.weights,
            drawn.metadata,
            scores=drawn.scores,
        )


def _file(epochs: int) -> str:
    return f"groups_{epochs:05d}.safetensors"
