"""How many epochs each round runs and how much it prunes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tf_tickets import checks
from tf_tickets.pruning.scopes import (
    Scope,
    at_progress,
    check_scope,
)


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
    scope: Scope = "global"

    def __post_init__(self) -> None:
        checks.whole("rounds", self.rounds, least=1)
        checks.whole("epochs_per_round", self.epochs_per_round, least=1)
        checks.whole("rewind_epoch", self.skipped_epochs, least=0)
        if self.skipped_epochs >= self.epochs_per_round:
            raise ValueError(
                "The rewind point must lie inside a round. Received: "
                f"rewind_epoch={self.skipped_epochs}, "
                f"epochs_per_round={self.epochs_per_round}"
            )
        check_scope(self.scope)
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
                checks.sparsity(value, name)
                if value == 0:
                    raise ValueError(
                        f"`{name}` must be above 0. Received: {name}={value}"
                    )

    def epochs_of(self, index: int) -> int:
        """Epochs of round ``index``, from 0."""
        return self.epochs_per_round - (self.skipped_epochs if index else 0)

    def epochs_before(self, index: int) -> int:
        """Epochs of all rounds before round ``index``."""
        return sum(self.epochs_of(i) for i in range(index))

    def schedule_epoch(self, epoch: int) -> int:
        """Epoch of the training schedule after ``epoch`` epochs in all."""
        index = 0
        while index < self.rounds and epoch >= self.epochs_of(index):
            epoch -= self.epochs_of(index)
            index += 1
        return epoch + (self.skipped_epochs if index else 0)

    def demand(
        self, done: int, initial_sparsity: float
    ) -> tuple[float | None, Scope]:
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
        return at_progress(
            self.scope,
            self.target_sparsity,
            initial_sparsity,
            done / self.rounds,
        )
