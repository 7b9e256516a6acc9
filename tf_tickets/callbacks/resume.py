"""A run of several rounds in a directory, resumable after a kill."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tf_tickets.snapshot import Snapshot
from tf_tickets.ticket import Ticket


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands after its last finished round.

    Attributes:
        rounds_done: Finished rounds.
        initial_sparsity: Sparsity before the first round.
        history: One row a round.
        state: The full training state, after pruning and rewinding.
        rewind_point: The snapshot that rounds rewind to, if they do.
    """

    rounds_done: int
    initial_sparsity: float
    history: list[dict[str, Any]]
    state: Snapshot
    rewind_point: Snapshot | None


class RunDirectory:
    """Tickets and progress of one run, each file whole or absent.

    ``ticket_01.npz``, ``ticket_02.npz``, ... hold the tickets;
    ``rewind_point.npz`` the state to rewind to; ``progress.npz``, written
    last, is what counts a round as finished. A kill at any moment loses at
    most the round it fell into.

    Args:
        path: The directory; made when the first round ends.
        identity: JSON values that say which run this is.
    """

    def __init__(
        self, path: str | os.PathLike[str], identity: Mapping[str, Any]
    ) -> None:
        self.path = Path(path)
        self.identity = dict(identity)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(
                "`directory` must be a directory or not exist yet. "
                f"Received: directory={str(path)!r}"
            )

    def load(self) -> tuple[list[Ticket], Progress | None]:
        """The finished rounds; ``([], None)`` if there is none.

        Raises:
            ValueError: If the directory holds a run with other arguments, or
                one of its files is damaged.
        """
        if not (self.path / "progress.npz").exists():
            return [], None
        state, metadata = Snapshot.load(self.path / "progress.npz")
        found: Any = metadata["identity"]
        if found != self.identity:
            keys = sorted(set(found) | set(self.identity))
            differ = {
                k: (found.get(k), self.identity.get(k))
                for k in keys
                if found.get(k) != self.identity.get(k)
            }
            raise ValueError(
                f"{str(self.path)!r} holds a run with other arguments (there, "
                f"here): {differ}. Choose another directory."
            )
        rounds: Any = metadata["rounds_done"]
        initial: Any = metadata["initial_sparsity"]
        history: Any = metadata["history"]
        point = self.path / "rewind_point.npz"
        return [Ticket.load(self._ticket(r)) for r in range(rounds)], Progress(
            rounds,
            initial,
            history,
            state,
            Snapshot.load(point)[0] if point.exists() else None,
        )

    def save(self, ticket: Ticket, progress: Progress) -> None:
        """Record a finished round; the rewind point only once."""
        self.path.mkdir(parents=True, exist_ok=True)
        point = self.path / "rewind_point.npz"
        if progress.rewind_point is not None and progress.rounds_done == 1:
            progress.rewind_point.save(point)
        ticket.save(self._ticket(progress.rounds_done - 1))
        progress.state.save(
            self.path / "progress.npz",
            {
                "identity": self.identity,
                "rounds_done": progress.rounds_done,
                "initial_sparsity": progress.initial_sparsity,
                "history": progress.history,
            },
        )

    def _ticket(self, index: int) -> Path:
        return self.path / f"ticket_{index + 1:02d}.npz"
