"""One way to put arrays and their description in a file, whole or not at all.

A file is a safetensors file: a short header, then the arrays as they lie in
memory, so that one can be read without the others. The header describes every
array and holds its checksum, which the format itself does not have. What is
read is not trusted: a file can neither make `reading` run code nor take more
memory than the file is long.

`replacing` is how anything is written here, a file or a folder: beside its
destination first, and renamed, so that a reader never meets half of it. What
stands there already is replaced, as Keras does, unless ``overwrite=False``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

FORMAT_VERSION = 1

Parts = Mapping[str, Mapping[str, np.ndarray] | None]

# The types that safetensors and NumPy share; others are stored as bytes, and
# booleans as bits.
_SHARED = (
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"),
    *("uint64", "float16", "float32", "float64", "bfloat16", "complex64"),
)
_KINDS = ("bfloat", "float", "int", "uint")
_TYPES = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        *(*_SHARED, "bool", "complex128"),
        *(name for name in dir(ml_dtypes) if name.startswith(_KINDS)),
    )
}


def write(
    path: str | os.PathLike[str],
    kind: str,
    metadata: Mapping[str, Any],
    parts: Parts,
    *,
    overwrite: bool = True,
) -> None:
    """Write arrays and their description to ``path`` in one step.

    Args:
        path: The file. An old one is replaced only once the new one is whole.
        kind: What the file holds: ``"ticket"``, ``"snapshot"``, ...
        metadata: JSON values.
        parts: ``{part: {key: array}}``: booleans, which take one bit each, and
            numbers, bfloat16 and the float8 types included. `None` for a part
            that there is not.
        overwrite: As in `replacing`.

    Raises:
        FileExistsError: If ``path`` exists and ``overwrite`` is false.
        OSError: If the file cannot be written; nothing is left behind.
        TypeError: If an array holds something else.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"There is no directory {str(path.parent)!r} to write to. "
            f"Received: path={str(path)!r}"
        )
    described: dict[str, Any] = {}
    stored: dict[str, np.ndarray] = {}
    for part, arrays in parts.items():
        described[part] = None if arrays is None else {}
        for key, array in (arrays or {}).items():
            name = f"{part}:{key}"
            stored[name] = _as_stored(array)
            described[part][key] = {
                "dtype": array.dtype.name,
                "shape": list(array.shape),
                "crc32": zlib.crc32(_bytes_of(stored[name]).data),
            }
    content = json.dumps(
        {"metadata": metadata, "parts": described}, default=_plain_number
    )
    header = {
        "format": f"tf_tickets.{kind}",
        "format_version": str(FORMAT_VERSION),
        "content": content,
        "crc32": str(zlib.crc32(content.encode())),
    }
    with replacing(path, overwrite=overwrite) as temporary:
        try:
            save_file(stored, temporary, header)
        except SafetensorError as error:
            raise OSError(
                f"{str(path)!r} could not be written: {error}"
            ) from error


@contextlib.contextmanager
def reading(
    path: str | os.PathLike[str], kind: str
) -> Iterator[tuple[dict[str, Any], Parts]]:
    """Open what `write` wrote, as ``(metadata, parts)``.

    An array is read, and compared with its checksum, when it is taken from
    its part; what does not fit together in the block is the file's fault too.

    Args:
        path: The file.
        kind: What the file must hold.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, damaged or not of this kind; the
            message names the file and what is wrong with it.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no {kind} file {str(path)!r}.")
    if path.is_dir():
        raise IsADirectoryError(
            f"A {kind} is a file. Received: the directory {str(path)!r}"
        )
    try:
        if not path.is_file():
            raise ValueError("it is no regular file")
        # Not mapped into memory: a mapped file that somebody cuts short
        # kills the process that reads it.
        with safe_open(path, "numpy", backend="pread") as file:
            content = _content(file.metadata() or {}, kind)
            parts = {
                part: None if entries is None else _Part(file, part, entries)
                for part, entries in content["parts"].items()
            }
            names = {
                f"{part}:{key}"
                for part, arrays in parts.items()
                for key in arrays or ()
            }
            if names != set(file.keys()):
                strange = sorted(names ^ set(file.keys()))
                raise ValueError(f"it describes other arrays: {strange[:3]}")
            yield content["metadata"], parts
    except PermissionError:
        raise
    except (
        SafetensorError,
        AttributeError,
        EOFError,
        KeyError,
        MemoryError,
        OSError,
        OverflowError,
        RecursionError,  # JSON nested too deeply
        TypeError,
        ValueError,  # also JSON and Unicode errors
    ) as error:
        # They quote whatever they find.
        what = str(error)[:200] or "it ends too early"
        raise ValueError(
            f"{str(path)!r} is not a whole tf_tickets {kind} file: {what}"
        ) from error


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike[str], *, overwrite: bool = True
) -> Iterator[Path]:
    """A place to write what stands at ``path`` when the block ends well.

    Until then nothing changes there, whatever fails or is killed. A kill
    leaves at most a hidden folder beside it, which the next writer to ``path``
    removes. A file takes the place of a file in one step. A folder takes that
    of a folder in two; if a kill comes between them, the next writer puts the
    old folder back first.

    Args:
        path: Of a file or a folder. A symbolic link stays one, and what it
            points at is replaced. Parents are made if they are missing.
        overwrite: Whether to replace what is there, which is the default; its
            mode is kept.

    Raises:
        FileExistsError: If something is there and ``overwrite`` is false, or
            it is a folder and what was written is a file, or the other way
            round.

    Example:

    >>> import os, tempfile
    >>> where = tempfile.mkdtemp()
    >>> with replacing(f"{where}/notes") as temporary:
    ...     _ = temporary.write_text("all of it")
    ...     os.listdir(where) == ["notes"]
    False
    >>> os.listdir(where)
    ['notes']
    """
    given, path = Path(path), Path(os.path.realpath(path))
    there = next(parent for parent in path.parents if parent.exists())
    # The name of what is written may be as long as names can be.
    prefix = f".{path.name[:20]}.{zlib.crc32(os.fsencode(path.name)):08x}."
    _clear_up(there, prefix, path)
    _refuse_to_overwrite(given, overwrite)
    workspace, release = _workspace(there, prefix)
    try:
        made = workspace / "made"
        yield made
        for file in [made, *made.rglob("*")]:
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        path.parent.mkdir(parents=True, exist_ok=True)
        _refuse_to_overwrite(given, overwrite)
        if path.exists():
            if path.is_dir() != made.is_dir():
                kinds = ("file", "folder")
                raise FileExistsError(
                    f"{str(given)!r} is a {kinds[path.is_dir()]}, and a "
                    f"{kinds[made.is_dir()]} does not take its place."
                )
            made.chmod(stat.S_IMODE(path.stat().st_mode))
        elif made.is_file():
            # Some writers make private files; a new one follows the umask.
            mode = workspace / "mode"
            mode.touch()
            made.chmod(mode.stat().st_mode)
        if path.is_dir():
            os.replace(path, workspace / _OLD)
        os.replace(made, path)
    finally:
        _put_back(workspace, path)
        release()
        shutil.rmtree(workspace, ignore_errors=True)


# What a workspace holds: a lock as long as its writer lives, and for a moment
# the folder whose place is taken.
_LOCK, _OLD = "lock", "old"

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
"""How file systems say that they have no locks."""


def _refuse_to_overwrite(path: Path, overwrite: bool) -> None:
    if not overwrite and (path.exists() or path.is_symlink()):
        raise FileExistsError(
            f"{str(path)!r} exists: choose a path that does not, or replace "
            "it with overwrite=True. Received: overwrite=False"
        )


def _workspace(there: Path, prefix: str) -> tuple[Path, Callable[[], None]]:
    """A folder of this writer's own, and what lets others remove it."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=prefix, dir=there))
        lock = filelock.FileLock(made / _LOCK, fallback_to_soft=False)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            continue  # another writer was quicker to take it for left over
        except OSError as error:
            if error.errno in NO_LOCKS:
                return made, lambda: None
            shutil.rmtree(made, ignore_errors=True)
            raise
        return made, lock.release


def _clear_up(there: Path, prefix: str, path: Path) -> None:
    """Remove what killed writers to ``path`` have left behind."""
    try:
        found = [one for one in there.iterdir() if one.name.startswith(prefix)]
    except OSError:
        return  # a folder may be writable and not readable
    for workspace in found:
        lock = filelock.FileLock(workspace / _LOCK, fallback_to_soft=False)
        # Whoever is at work holds the lock. Where there are no locks, nobody
        # can tell, and everything stays.
        with contextlib.suppress(filelock.Timeout, OSError):
            lock.acquire(blocking=False)
            _put_back(workspace, path)
            lock.release()
            shutil.rmtree(workspace, ignore_errors=True)


def _put_back(workspace: Path, path: Path) -> None:
    """The folder that was to be replaced, where no other took its place."""
    old = workspace / _OLD
    if old.exists() and not path.exists():
        os.replace(old, path)


class _Part(Mapping[str, np.ndarray]):
    """Arrays of an open file, each read when it is asked for."""

    def __init__(self, file: Any, part: str, entries: dict[str, Any]) -> None:
        self._file = file
        self._part = part
        self._entries = entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, key: str) -> np.ndarray:
        entry = self._entries[key]
        dtype, shape = _TYPES.get(entry["dtype"]), entry["shape"]
        if dtype is None or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"{key} is of {entry['dtype']} and shape {shape}")
        # Not NumPy's product, which wraps around: the shape is from a file.
        size = math.prod(shape)
        is_bits = dtype.kind == "b"
        data = _bytes_of(self._file.get_tensor(f"{self._part}:{key}"))
        if data.size != (-(-size // 8) if is_bits else size * dtype.itemsize):
            raise ValueError(
                f"{key} has {data.size} bytes for {dtype} of shape {shape}"
            )
        if zlib.crc32(data.data) != entry["crc32"]:
            raise ValueError(f"{key} is damaged")
        array = np.unpackbits(data, count=size) if is_bits else data
        return _read_only(array.view(dtype).reshape(shape))


def _read_only(array: np.ndarray) -> np.ndarray:
    """An array that nobody can write, nor what it is a view of.

    Whoever holds it need not make a copy.
    """
    one: Any = array
    while isinstance(one, np.ndarray):
        one.flags.writeable = False
        one = one.base
    return array


def _content(header: Mapping[str, str], kind: str) -> dict[str, Any]:
    """What the header says; raises on another kind of file."""
    if header.get("format") != f"tf_tickets.{kind}":
        raise ValueError(f"it says it holds {header.get('format')!r}")
    if header.get("format_version") != str(FORMAT_VERSION):
        raise ValueError(
            f"it has format version {header.get('format_version')!r}; this "
            f"release reads version {FORMAT_VERSION}"
        )
    if str(zlib.crc32(header["content"].encode())) != header["crc32"]:
        raise ValueError("its description is damaged")
    content = json.loads(header["content"])
    if not isinstance(content["metadata"], dict):
        raise ValueError("its metadata is no JSON object")
    return content


def _as_stored(array: np.ndarray) -> np.ndarray:
    name = array.dtype.name
    if name not in _TYPES:
        raise TypeError(
            f"Numbers and booleans are stored. Received: {array.dtype}"
        )
    if name == "bool":
        return np.packbits(array)
    native = np.asarray(array, array.dtype.newbyteorder("="), order="C")
    return native if name in _SHARED else _bytes_of(native)


def _bytes_of(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def _plain_number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"Not a JSON value: {value!r}")
