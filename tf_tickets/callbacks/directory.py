"""The directory of one run: its state, whole or absent, and its lock."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock
import keras
import numpy as np

from tf_tickets import archive, masking
from tf_tickets.snapshot import Snapshot
from tf_tickets.ticket import Ticket

Directory = str | os.PathLike[str]


class RunDirectory:
    """The state of one run, each file whole or absent.

    ``progress.safetensors`` is what counts: it holds the full training state,
    the epoch to go on with and what the callback must remember, and is replaced
    in one step. Whatever else belongs to a state is written before it, under a
    name of its own. So a kill at any moment leaves the last whole state.

    Args:
        path: The directory; made when it is first held or saved to.
        identity: JSON values that say which run this is.

    Raises:
        ValueError: If ``path`` is a file.
    """

    def __init__(self, path: Directory, identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.identity = dict(identity)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(
                "`directory` must be a directory or not exist yet. "
                f"Received: directory={str(path)!r}"
            )

    def load(self) -> tuple[Snapshot, dict[str, Any]] | None:
        """``(state, record)`` of the last save; `None` if there is none.

        The record has ``epoch`` and ``remembered`` as `save` got them, and
        ``masks``, the name of the file that holds them, or `None`.

        Raises:
            ValueError: If the directory holds a run with other arguments, or
                a file of it is damaged.
        """
        file = self.path / "progress.safetensors"
        if not file.exists():
            return None
        state, record = Snapshot.load(file)
        found = record.get("identity")
        there = found if isinstance(found, dict) else {}
        differ = {
            key: (there.get(key), self.identity.get(key))
            for key in sorted({*there, *self.identity})
            if there.get(key) != self.identity.get(key)
        }
        if differ or not there:
            raise ValueError(
                f"{str(self.path)!r} holds a run with other arguments. Choose "
                f"another directory. Received (there, here): {differ}"
            )
        return state, record

    def save(
        self,
        model: keras.Model,
        epoch: int,
        remembered: Mapping[str, Any],
        files: Mapping[str, Any],
        scores: Mapping[str, Any] | None = None,
    ) -> None:
        """Record the present state of ``model`` and the masks on it.

        Args:
            model: The model in training.
            epoch: Index of the epoch to go on with.
            remembered: JSON values.
            files: ``{name: whatever has a save}`` that belong to the state.
            scores: ``{path: array}`` to keep beside the masks, or `None`.
        """
        masks = masking.attached_masks(model)
        name = f"masks_{epoch:05d}.safetensors" if masks else None
        if name is not None:
            beside = None
            if scores is not None:  # of these masks, and maybe of fewer
                none = {path: np.zeros(m.shape) for path, m in masks.items()}
                beside = {path: scores.get(path, none[path]) for path in none}
            files = {**files, name: Ticket(masks, scores=beside)}
        self.path.mkdir(parents=True, exist_ok=True)
        for file, value in files.items():
            value.save(self.path / file)
        Snapshot.take(model).save(
            self.path / "progress.safetensors",
            {
                "epoch": epoch,
                "masks": name,
                "remembered": dict(remembered),
                "identity": self.identity,
            },
        )
        for old in self.path.glob("masks_*.safetensors"):
            if old.name != name:
                old.unlink(missing_ok=True)


class HeldElsewhereError(ValueError):
    """Another process or thread holds a directory.

    Args:
        path: The directory.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(
            "Another process or thread is training in this directory. Wait "
            "for it, or choose another one. "
            f"Received: directory={str(path)!r}"
        )
        self.path = path

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return type(self), (self.path,)


def hold(directory: Directory) -> filelock.BaseFileLock:
    """Keep other processes, and other threads, out of a run's directory.

    The kernel lets go of it when the process ends, however it ends. The file
    ``lock`` stays and means nothing by itself; it tells people the number of
    the process that held it last. The thread that holds a directory may take it
    again, as a `fit` does that follows an interrupted one. On a file system
    without locks nothing is held.

    Args:
        directory: Made if need be.

    Returns:
        The lock; its ``release`` lets others in. Who drops it releases it.

    Raises:
        HeldElsewhereError: If another process or thread holds the directory.
        OSError: If it cannot be made or written to.

    Example:

    >>> lock = hold("run")
    >>> lock.release()
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory.resolve() / "lock"
    mine = threading.get_ident(), path
    if mine in _held:
        _held[mine].release(force=True)
    # A new one: who held it before must not release this when it ends.
    lock = filelock.FileLock(path, fallback_to_soft=False)
    _held[mine] = lock
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        raise HeldElsewhereError(directory) from error
    except OSError as error:
        if error.errno not in archive.NO_LOCKS:
            raise
        return lock
    Path(lock.lock_file).write_text(f"{os.getpid()}\n")
    return lock


# What each thread holds.
_held: weakref.WeakValueDictionary[tuple[int, Path], filelock.BaseFileLock] = (
    weakref.WeakValueDictionary()
)
