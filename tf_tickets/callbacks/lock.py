"""One process at a time in a run's directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

# By process, because a child of fork has its parent's files and not its locks.
# A lock belongs to the process: whoever in it comes second takes it over, as a
# `fit` does that is called again after one that ended with an exception.
_HELD: dict[tuple[int, Path], IO[str]] = {}


def acquire(directory: Path) -> None:
    """Hold ``directory``, which exists, for this process.

    The kernel lets go of it when the process ends, however it ends; the file
    ``lock``, with the number of the process, stays and means nothing by itself.

    Raises:
        ValueError: If another process holds it.
        OSError: If nothing can be written there.
    """
    key = (os.getpid(), directory.resolve())
    if fcntl is None or key in _HELD:
        return
    file = (directory / "lock").open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise ValueError(
            "Another process is training in this directory. Wait for it, or "
            f"choose another one. Received: directory={str(directory)!r}"
        ) from error
    except OSError:
        # A file system without locks: as on Windows.
        file.close()
        return
    # For people who wonder who holds it.
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    _HELD[key] = file


def release(directory: Path) -> None:
    """Let go of ``directory``; nothing happens if it is not held."""
    file = _HELD.pop((os.getpid(), directory.resolve()), None)
    if file is not None:
        file.close()
