"""One way to put arrays and their description in a file, whole or not at all.

A file is an uncompressed ``.npz``: a JSON manifest and numbered arrays. It is
written beside its destination and renamed, so that a reader never meets half
of one; it holds no pickles.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FORMAT_VERSION = 1


def write(
    path: str | os.PathLike[str],
    kind: str,
    manifest: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Write ``arrays`` and ``manifest`` to ``path`` in one step.

    Args:
        path: The file. An old one is replaced only once the new one is whole.
        kind: What the file holds: ``"ticket"``, ``"snapshot"``, ...
        manifest: JSON values.
        arrays: ``{name: array}``; bfloat16 and the float8 types included.

    Raises:
        OSError: If the file cannot be written; nothing is left behind.
    """
    path = Path(path)
    names = list(arrays)
    described = {
        "format": f"tf_tickets.{kind}",
        "format_version": FORMAT_VERSION,
        "manifest": manifest,
        "arrays": [
            {
                "name": name,
                "dtype": str(arrays[name].dtype),
                "shape": list(arrays[name].shape),
            }
            for name in names
        ],
    }
    members = {
        f"array_{i}": _as_plain(arrays[name]) for i, name in enumerate(names)
    }
    members["manifest"] = np.frombuffer(
        json.dumps(described, default=_plain_number).encode(), np.uint8
    )
    descriptor, temporary = tempfile.mkstemp(
        prefix=f".{path.name}.", suffix=".tmp", dir=path.parent
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, allow_pickle=False, **members)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; a saved file follows the umask.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(
    path: str | os.PathLike[str], kind: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read what `write` wrote.

    Args:
        path: The file.
        kind: What the file must hold.

    Returns:
        ``(manifest, {name: array})``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, damaged or not of this kind; the
            message names the file and what is wrong with it.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no {kind} file {str(path)!r}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            if "manifest" not in getattr(file, "files", ()):
                raise ValueError("it has no tf_tickets manifest")
            described = json.loads(file["manifest"].tobytes())
            _check_described(described, kind)
            arrays = {
                entry["name"]: _from_plain(file[f"array_{i}"], entry)
                for i, entry in enumerate(described["arrays"])
            }
        return described["manifest"], arrays
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
        NotImplementedError,
        OSError,
        ValueError,  # also JSON and Unicode errors
        RuntimeError,  # an encrypted member
        SyntaxError,  # a damaged array header
        MemoryError,
        OverflowError,
    ) as error:
        if isinstance(error, PermissionError | IsADirectoryError):
            raise
        raise ValueError(
            f"{str(path)!r} is not a whole tf_tickets {kind} file: {error}"
        ) from error


def _check_described(described: Any, kind: str) -> None:
    found = described["format"]
    if found != f"tf_tickets.{kind}":
        raise ValueError(f"it says it holds {found!r}")
    version = described["format_version"]
    if version != FORMAT_VERSION:
        raise ValueError(
            f"it has format version {version!r}; this release reads version "
            f"{FORMAT_VERSION}"
        )


def _as_plain(array: np.ndarray) -> np.ndarray:
    # NumPy writes the types of ml_dtypes (bfloat16, ...) as raw void bytes;
    # unsigned integers of the same width survive.
    if array.dtype.kind == "V":
        return array.view(f"u{array.dtype.itemsize}")
    if array.dtype.hasobject:
        raise TypeError(f"Arrays of objects are not stored: {array.dtype}")
    return array


def _from_plain(array: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    if list(array.shape) != entry["shape"]:
        raise ValueError(
            f"{entry['name']} has shape {array.shape}, not {entry['shape']}"
        )
    if str(array.dtype) != entry["dtype"]:
        import ml_dtypes

        array = array.view(getattr(ml_dtypes, entry["dtype"]))
    return array


def _plain_number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"Not a JSON value: {value!r}")
