"""Whether an export still is what was written: a SHA-256 of every file.

TensorFlow checks the tensors of a checkpoint when it reads them and nothing
else: a flipped bit in `saved_model.pb` can give other numbers without a word,
and a LiteRT file is not checked at all.

A folder holds a list of digests of all its files, in the form that
``sha256sum --check`` reads, with a last line for the list itself. A file ends
in the digest of everything before. Both move and are renamed with the export.
A digest tells damage, not tampering: who can change a file can change it, too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

# TensorFlow leaves this folder of a SavedModel to its users.
PLACE = Path("assets.extra") / "tf_tickets.sha256"

_MARK = b"SHA-256 of all before: "
_DIGITS = 64


@dataclasses.dataclass(frozen=True)
class Verified:
    """What was found whole.

    Attributes:
        path: The export.
        digests: ``{file: SHA-256}`` of the files that were compared.
        others: Files of the folder that came later, which no digest covers.
    """

    path: Path
    digests: Mapping[str, str]
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        files = (
            "1 file"
            if len(self.digests) == 1
            else (f"{len(self.digests)} files")
        )
        text = f"verified: {files} as written, by SHA-256"
        if self.others:
            text += f"; not covered: {', '.join(self.others)}"
        return text


def seal(target: Path, takes_zip: bool) -> None:
    """Put the digests into an export that is complete otherwise.

    Args:
        target: A folder; or a file, which gets its digest only if it takes a
            zip archive at its end and has one.
        takes_zip: See `Written`.
    """
    if target.is_dir():
        lines = [
            f"{_digest(target / name)}  {name}\n" for name in _names(target)
        ]
        text = os.fsencode("".join(lines))
        (target / PLACE).parent.mkdir(exist_ok=True)
        (target / PLACE).write_bytes(
            text + f"# {hashlib.sha256(text).hexdigest()}\n".encode()
        )
    elif takes_zip:
        with zipfile.ZipFile(target, "a") as bundle:
            bundle.comment = _MARK + b"0" * _DIGITS
        with target.open("r+b") as file:
            file.seek(-_DIGITS, os.SEEK_END)
            file.write(_digest(target, -_DIGITS).encode())


def verify(path: str | os.PathLike[str]) -> Verified:
    """Compare an export, of any format, with the digests that it carries.

    Every byte of every file that was written is covered, that of the digests
    too. Files that were put into the folder later, such as requests to warm
    up TensorFlow Serving with, are not, and are named. A file of a format that
    takes no zip archive at its end carries none.

    Args:
        path: The export, or the `Report` that writing it returned.

    Returns:
        What was compared; its text says so in a line.

    Raises:
        FileNotFoundError: If there is nothing at ``path``.
        ValueError: If a file is damaged or missing, which is named, or the
            export has no digests.

    Example:

    >>> import tf_tickets as tt
    >>> import pathlib, tempfile
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(8)])
    >>> made = tt.export.saved_model(model, tempfile.mkdtemp() + "/model")
    >>> print(tt.export.verify(made))
    verified: 5 files as written, by SHA-256
    >>> with (made / "saved_model.pb").open("r+b") as file:
    ...     _ = file.write(b"?")
    >>> tt.export.verify(made)
    Traceback (most recent call last):
    ...
    ValueError: ...model' is not a whole export of tf_tickets: saved_model.pb...
    """
    found = compare(path)
    if found is None:
        raise ValueError(
            f"{str(Path(path))!r} has no digests to compare it with: it is no "
            "export of tf_tickets, or has lost "
            f"{PLACE.name if Path(path).is_dir() else 'its end'}."
        )
    return found


def compare(path: str | os.PathLike[str]) -> Verified | None:
    """As `verify`; `None` if there are no digests.

    Raises:
        FileNotFoundError: If there is nothing at ``path``.
        ValueError: If a file is damaged or missing.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no exported model {str(path)!r}.")
    if path.is_dir():
        return _compare_folder(path)
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2 * (len(_MARK) + _DIGITS)))
        _, mark, found = file.read().rpartition(_MARK)
    if not mark:
        return None
    digest = _digest(path, -_DIGITS)
    if found != digest.encode():
        raise _damaged(path, "its digest is another")
    return Verified(path, {path.name: digest})


def _compare_folder(path: Path) -> Verified | None:
    if not (path / PLACE).exists():
        return None
    data = (path / PLACE).read_bytes()
    text, found, last = data.rpartition(b"# ")
    if not found or last != f"{hashlib.sha256(text).hexdigest()}\n".encode():
        raise _damaged(path, f"{PLACE} is damaged")
    lines = (
        line.partition("  ") for line in os.fsdecode(text).split("\n")[:-1]
    )
    digests = {name: digest for digest, _, name in lines}
    names = set(_names(path))
    wrong = [f"{name} is missing" for name in digests if name not in names]
    wrong += [
        f"{name} is damaged"
        for name, digest in digests.items()
        if name in names and _digest(path / name) != digest
    ]
    if wrong:
        raise _damaged(path, ", ".join(wrong))
    return Verified(path, digests, tuple(sorted(names - {*digests})))


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{str(path)!r} is not a whole export of tf_tickets: {what}. Export "
        "it again."
    )


def _names(folder: Path) -> list[str]:
    """Of all files below ``folder``, but for the list of digests itself."""
    names = (
        file.relative_to(folder) for file in folder.rglob("*") if file.is_file()
    )
    return sorted(name.as_posix() for name in names if name != PLACE)


def _digest(file: Path, end: int = 0) -> str:
    """Of a file, or of all that comes before ``end``."""
    digest, left = hashlib.sha256(), file.stat().st_size + end
    with file.open("rb") as opened:
        while left > 0 and (block := opened.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()
