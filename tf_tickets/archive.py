"""One way to put arrays and their description in a file, whole or not at all.

A file is an uncompressed ``.npz``: a JSON manifest and numbered arrays. It is
written beside its destination and renamed, so that a reader never meets half
of one; it holds no pickles. What is read is not trusted: a file can neither
make `read` run code nor take more memory than the file is long.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import ml_dtypes
import numpy as np

FORMAT_VERSION = 1
_KINDS = "biufc"


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
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"There is no directory {str(path.parent)!r} to write to. "
            f"Received: path={str(path)!r}"
        )
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
    with replacing(path) as file:
        np.savez(file, allow_pickle=False, **members)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that stands at ``path`` when the block ends well."""
    descriptor, temporary = tempfile.mkstemp(
        prefix=f".{path.name}.", suffix=".tmp", dir=path.parent
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
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
    if path.is_dir():
        raise IsADirectoryError(
            f"A {kind} is a file. Received: the directory {str(path)!r}"
        )
    try:
        if not path.is_file():
            raise ValueError("it is no regular file")
        with path.open("rb") as file, zipfile.ZipFile(file) as bundle:
            members = _members(bundle, os.fstat(file.fileno()).st_size)
            described = json.loads(
                _array(bundle, members["manifest.npy"]).tobytes()
            )
            entries = _entries(described, kind)
            if len(entries) != len(members) - 1:
                raise ValueError(
                    f"it has {len(members) - 1} arrays and describes "
                    f"{len(entries)}"
                )
            arrays = {
                entry["name"]: _from_plain(
                    _array(bundle, members[f"array_{i}.npy"]), entry
                )
                for i, entry in enumerate(entries)
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
        RecursionError,  # JSON nested too deeply
        SyntaxError,  # a damaged array header
        MemoryError,
        OverflowError,
    ) as error:
        if isinstance(error, PermissionError):
            raise
        # zipfile quotes whatever it finds in place of a name.
        what = str(error)[:200] or "it ends too early"
        raise ValueError(
            f"{str(path)!r} is not a whole tf_tickets {kind} file: {what}"
        ) from error


def _members(bundle: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The members by name, none of which can be longer than the file."""
    found = bundle.infolist()
    expected = {"manifest.npy", *(f"array_{i}.npy" for i in range(len(found)))}
    strange = [m.filename for m in found if m.filename not in expected]
    members = {m.filename: m for m in found}
    if strange or "manifest.npy" not in members:
        raise ValueError(
            f"it has a member {strange[0]!r}"
            if strange
            else "it has no tf_tickets manifest"
        )
    if len(members) != len(found):
        raise ValueError("it has two members of one name")
    for member in found:
        if member.compress_type != zipfile.ZIP_STORED or (
            member.compress_size != member.file_size
        ):
            raise ValueError(f"its member {member.filename!r} is compressed")
    if sum(member.file_size for member in found) > size:
        raise ValueError("its members are longer than the file")
    return members


def _array(bundle: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array, of exactly the bytes that its member has."""
    with bundle.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{member.filename!r} has format {version}")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        # Before the dtype is used: one of objects means pickles.
        if dtype.kind not in _KINDS:
            raise ValueError(f"{member.filename!r} holds {dtype}")
        # Reads to the end, where the checksum is compared.
        data = file.read()
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"{member.filename!r} has {len(data)} bytes for {dtype} of shape "
            f"{shape}"
        )
    order: Literal["F", "C"] = "F" if fortran else "C"
    return np.frombuffer(data, dtype).reshape(shape, order=order).copy()


def _entries(described: Any, kind: str) -> list[dict[str, Any]]:
    """The description of each array; raises on another kind of file."""
    if not isinstance(described, dict):
        raise ValueError("its manifest is no JSON object")
    found = described.get("format")
    if found != f"tf_tickets.{kind}":
        raise ValueError(f"it says it holds {found!r}")
    version = described.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise ValueError(
            f"it has format version {version!r}; this release reads version "
            f"{FORMAT_VERSION}"
        )
    if not isinstance(described.get("manifest"), dict):
        raise ValueError("its manifest describes nothing")
    entries = described.get("arrays")
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("dtype"), str)
        and is_shape(entry.get("shape"))
        for entry in entries
    ):
        raise ValueError("its list of arrays is damaged")
    if len({entry["name"] for entry in entries}) != len(entries):
        raise ValueError("it names two arrays alike")
    return entries


def is_shape(value: Any) -> bool:
    """Whether a JSON value is a list of whole numbers, none negative."""
    return isinstance(value, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value
    )


def _as_plain(array: np.ndarray) -> np.ndarray:
    # NumPy writes the types of ml_dtypes (bfloat16, ...) as raw void bytes;
    # unsigned integers of the same width survive.
    if str(array.dtype) in _extra_types():
        return array.view(f"u{array.dtype.itemsize}")
    if array.dtype.kind not in _KINDS:
        raise TypeError(
            f"Numbers and booleans are stored. Received: {array.dtype}"
        )
    return array


def _from_plain(array: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    if list(array.shape) != entry["shape"]:
        raise ValueError(
            f"{entry['name']} has shape {array.shape}, not {entry['shape']}"
        )
    if str(array.dtype) == entry["dtype"]:
        return array
    extra = _extra_types().get(entry["dtype"])
    if extra is None or array.dtype != np.dtype(f"u{extra.itemsize}"):
        raise ValueError(
            f"{entry['name']} is of {array.dtype}, not {entry['dtype']}"
        )
    return array.view(extra)


def _extra_types() -> dict[str, np.dtype]:
    """The types that TensorFlow adds to NumPy's."""
    kinds = ("bfloat", "float", "int", "uint")
    names = [n for n in dir(ml_dtypes) if n.startswith(kinds)]
    return {n: np.dtype(getattr(ml_dtypes, n)) for n in names}


def _plain_number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"Not a JSON value: {value!r}")
