"""What an export says about itself, for `report`, `inspect` and `unpack`."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1

# TensorFlow leaves this directory of a SavedModel to its users.
_PLACE = Path("assets.extra") / "tf_tickets.json.gz"


def write(directory: Path, fields: dict[str, Any]) -> None:
    """Add the manifest to a SavedModel."""
    target = directory / _PLACE
    target.parent.mkdir(exist_ok=True)
    described = {
        "format": "tf_tickets.export",
        "format_version": FORMAT_VERSION,
        **fields,
    }
    target.write_bytes(gzip.compress(json.dumps(described).encode(), mtime=0))


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of an exported model.

    Raises:
        FileNotFoundError: If there is no such directory.
        ValueError: If it is not an export of this library, or damaged.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no exported model {str(path)!r}.")
    try:
        fields = json.loads(gzip.decompress((path / _PLACE).read_bytes()))
        if fields["format"] != "tf_tickets.export":
            raise ValueError(f"it says it holds {fields['format']!r}")
        if fields["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"it has format version {fields['format_version']!r}; this "
                f"release reads version {FORMAT_VERSION}"
            )
    except PermissionError:
        raise
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} is not a whole export of tf_tickets: {error}"
        ) from error
    return fields


def directory_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes of all files below ``path``; of the file itself if it is one."""
    path = Path(path)
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
