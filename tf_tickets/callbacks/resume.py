"""Training that goes on after a kill, from a directory of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from tf_tickets.callbacks import lock
from tf_tickets.distribute import is_chief
from tf_tickets.masking import attached_masks
from tf_tickets.snapshot import Snapshot
from tf_tickets.ticket import Ticket


class RunDirectory:
    """The state of one run, each file whole or absent.

    ``progress.npz`` is what counts: it holds the full training state, how many
    epochs are done and what the callback must remember, and is replaced in one
    step. Whatever else belongs to a state is written before it, under a name
    of its own. So a kill at any moment leaves the last whole state.

    Args:
        path: The directory; made when something is saved.
        identity: JSON values that say which run this is.

    Raises:
        ValueError: If ``path`` is a file.
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

    def hold(self, model: keras.Model) -> None:
        """Keep other processes out until `end`, before anything is read.

        Raises:
            ValueError: If another process is training here.
            OSError: If the directory cannot be made or written to.
        """
        if is_chief(model.distribute_strategy):
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(self.path)

    def load(self) -> tuple[Snapshot, dict[str, Any]] | None:
        """``(state, record)`` of the last save; `None` if there is none.

        Raises:
            ValueError: If the directory holds a run with other arguments, or
                a file of it is damaged.
        """
        file = self.path / "progress.npz"
        if not file.exists():
            return None
        state, record = Snapshot.load(file)
        found = record.get("identity")
        if found != self.identity:
            there = found if isinstance(found, dict) else {}
            differ = {
                key: (there.get(key), self.identity.get(key))
                for key in sorted({*there, *self.identity})
                if there.get(key) != self.identity.get(key)
            }
            raise ValueError(
                f"{str(self.path)!r} holds a run with other arguments. Choose "
                f"another directory. Received (there, here): {differ}"
            )
        return state, record

    def save(
        self,
        model: keras.Model,
        record: Mapping[str, Any],
        files: Mapping[str, Any] | None = None,
    ) -> None:
        """Record the present state of ``model``; only the chief writes.

        Args:
            model: The model in training.
            record: JSON values, ``epoch`` among them: how many are done.
            files: ``{name: ticket or snapshot}``, or whatever has a ``save``,
                that belong to the state.
        """
        if not is_chief(model.distribute_strategy):
            return
        self.path.mkdir(parents=True, exist_ok=True)
        for name, value in (files or {}).items():
            value.save(self.path / name)
        Snapshot.take(model).save(
            self.path / "progress.npz", {**record, "identity": self.identity}
        )

    def begin(self, model: keras.Model, state: Snapshot, epoch: int) -> None:
        """Let the `fit` that begins go on from ``state`` at ``epoch``.

        Keras has no public way to say so from a callback. This is what its
        own `BackupAndRestore` does; `end` takes it back, so that a later `fit`
        starts at its own first epoch.
        """
        state.restore(model)
        model._initial_epoch = epoch

    def check(self, epoch: int, expected: int) -> None:
        """Raise if another callback has moved the start of training."""
        if epoch != expected:
            raise ValueError(
                "Another callback has restored this training, too: list it "
                "before the one with `directory`. Received: a start at epoch "
                f"{epoch}, where {str(self.path)!r} goes on at {expected}"
            )

    def end(self, model: keras.Model) -> None:
        """Take back what `begin` and `hold` did."""
        model._initial_epoch = None
        lock.release(self.path)


class EpochRun:
    """A run of one training, saved after every epoch.

    Args:
        path: The directory.
        identity: JSON values that say which run this is.
    """

    def __init__(
        self, path: str | os.PathLike[str], identity: Mapping[str, Any]
    ) -> None:
        self.directory = RunDirectory(path, identity)
        self._start: int | None = None

    def resume(self, model: keras.Model) -> dict[str, Any]:
        """Put masks and state of the last whole epoch into ``model``.

        Returns:
            What `save_epoch` was given to remember; empty for a new run.
        """
        self._start = None
        self.directory.hold(model)
        found = self.directory.load()
        if found is None:
            return {}
        state, record = found
        if record["masks"] is not None:
            masks = Ticket.load(self.directory.path / record["masks"])
            masks.apply(model, weights="keep")
        self._start = record["epoch"]
        self.directory.begin(model, state, record["epoch"])
        return record["remembered"]

    def skip(self, model: keras.Model, epochs: int) -> None:
        """After `resume`, of a run that needs no more of its ``epochs``."""
        model._initial_epoch = epochs

    def check_start(self, epoch: int) -> None:
        """At the first epoch: raise if `fit` does not go on from here."""
        if self._start is not None:
            self.directory.check(epoch, self._start)
            self._start = None

    def save_epoch(
        self,
        model: keras.Model,
        epoch: int,
        remembered: Mapping[str, Any] | None = None,
        files: Mapping[str, Any] | None = None,
    ) -> None:
        """Record the end of epoch index ``epoch`` and forget the one before.

        Args:
            model: The model in training; masks that are enforced are saved
                with it.
            epoch: As Keras counts, from 0.
            remembered: JSON values that the callback needs to go on.
            files: As in `RunDirectory.save`.
        """
        if not is_chief(model.distribute_strategy):
            return
        masks = attached_masks(model)
        name = f"masks_{epoch + 1:05d}.npz" if masks else None
        self.directory.save(
            model,
            {
                "epoch": epoch + 1,
                "masks": name,
                "remembered": dict(remembered or {}),
            },
            {**(files or {}), **({name: Ticket(masks)} if name else {})},
        )
        for old in self.directory.path.glob("masks_*.npz"):
            if old.name != name:
                old.unlink(missing_ok=True)

    def end(self, model: keras.Model) -> None:
        """When `fit` ends."""
        self.directory.end(model)
