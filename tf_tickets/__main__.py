"""``python -m tf_tickets inspect PATH``: what a ticket or an export holds."""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tf_tickets import export
from tf_tickets.selection import named_weights, values_of
from tf_tickets.ticket import Ticket


def describe(path: Path) -> tuple[str, dict[str, Any]]:
    """A text and JSON values about a ticket, a model or an export.

    Args:
        path: A ticket, a Keras model (``.keras``), or an export of any format
            that holds its manifest: a directory or a LiteRT file.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If it is none of these, or damaged.
    """
    if not path.exists():
        raise FileNotFoundError(f"There is nothing at {str(path)!r}.")
    if path.suffix == ".keras":
        model = keras.models.load_model(path, compile=False)
        return _arrays(model.name, values_of(named_weights(model)), {})
    if path.is_dir() or zipfile.is_zipfile(path):
        report = export.report(path)  # what is damaged raises
        try:
            verified = str(export.verify(path))
        except ValueError as error:
            verified = f"not verified: {error}"
        fields = {**report.to_json(), "verified": verified}
        return f"{report.table()}\n{verified}", fields
    ticket = Ticket.load(path)
    return _arrays(repr(ticket), ticket.masks, ticket.metadata)


def _arrays(
    title: str, arrays: Any, metadata: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {
        key: {
            "shape": list(array.shape),
            "parameters": int(array.size),
            "kept": int(np.count_nonzero(array)),
        }
        for key, array in arrays.items()
    }
    size = sum(row["parameters"] for row in rows.values())
    kept = sum(row["kept"] for row in rows.values())
    width = max(map(len, rows), default=0)
    lines = [title]
    lines += [
        f"  {key:<{width}}  {'x'.join(map(str, row['shape'])):>16}  density "
        f"{row['kept'] / max(row['parameters'], 1):.4f}"
        for key, row in rows.items()
    ]
    lines.append(f"{kept:,} of {size:,}, density {kept / max(size, 1):.4f}")
    lines += [f"  {key}: {value}" for key, value in metadata.items()]
    return "\n".join(lines), {
        "weights": rows,
        "parameters": size,
        "kept": kept,
        "metadata": metadata,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tf_tickets")
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser(
        "inspect", help="say what a ticket, a model or an export holds"
    )
    inspect.add_argument("path", type=Path)
    inspect.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(arguments)
    try:
        text, fields = describe(options.path)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    shown = json.dumps(fields, indent=2, default=str) if options.json else text
    sys.stdout.write(shown + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
