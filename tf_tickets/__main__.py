"""``python -m tf_tickets``: look at, compare, prune and export without code."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tf_tickets import archive, export, tables
from tf_tickets.masks import Masks, keys_between
from tf_tickets.pruning import criteria, prune, scopes
from tf_tickets.selection import named_weights, values_of
from tf_tickets.structured import ChannelTicket
from tf_tickets.ticket import Ticket

Shown = tuple[str, dict[str, Any]]


def describe(path: Path) -> Shown:
    """A text and JSON values about a ticket, a model or an export.

    Args:
        path: A ticket, a Keras model (``.keras``), or an export of any format
            that holds its manifest: a directory or a LiteRT file.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If it is none of these, or damaged.
    """
    _check_there(path)
    if path.suffix == ".keras":
        model = _load(path)
        return _arrays(model.name, values_of(named_weights(model)), {})
    if path.is_dir() or zipfile.is_zipfile(path):
        report = export.report(path)  # what is damaged raises
        try:
            verified = str(export.verify(path))
        except ValueError as error:
            verified = f"not verified: {error}"
        fields = {**report.to_json(), "verified": verified}
        return f"{report.table()}\n{verified}", fields
    ticket = _ticket(path)
    return _arrays(repr(ticket), ticket.masks, ticket.metadata)


def compare(one: Path, other: Path) -> Shown:
    """How far two tickets, or the zeros of two models, lie apart.

    Args:
        one: A ticket or a Keras model (``.keras``).
        other: One of the same architecture; layers may have other numbers.

    Raises:
        FileNotFoundError: If there is nothing at a path.
        ValueError: If it is no ticket or model, or they cover different
            weights.
    """
    first, second = _ticket(one), _ticket(other)
    distance = first.hamming_distance(second)  # of two kinds raises
    keys = keys_between(first, second, first.covers)
    rows: dict[str, dict[str, Any]] = {}
    for key, mine in first.masks.items():
        theirs = second.masks[keys[key]]
        rows[key] = {
            "shape": list(mine.shape),
            "one": int(mine.sum()),
            "other": int(theirs.sum()),
            "both": int((mine & theirs).sum()),
            "distance": float((mine != theirs).mean()) if mine.size else 0.0,
        }
    heads = ("mask", "shape", "one keeps", "other keeps", "both", "distance")
    total = {
        name: sum(row[name] for row in rows.values())
        for name in ("one", "other", "both")
    }
    lines = [
        heads,
        *(
            (key, _shape(row["shape"]), *_compared(row))
            for key, row in rows.items()
        ),
        ("all together", "", *_compared({**total, "distance": distance})),
    ]
    text = tables.text(lines)
    return text, {"masks": rows, **total, "distance": distance}


def _compared(row: Mapping[str, Any]) -> tuple[str, ...]:
    counts = (f"{row[name]:,}" for name in ("one", "other", "both"))
    return (*counts, f"{row['distance']:.4f}")


def _prune(options: argparse.Namespace) -> Shown:
    if options.output.suffix != ".keras":
        raise ValueError(
            "Keras reads models from files that end in .keras. Received: "
            f"--output={str(options.output)!r}"
        )
    model = _load(options.model)
    if criteria.needs_data(options.criterion):
        raise ValueError(
            "This criterion scores on data, which a command line does not "
            "have: call tf_tickets.prune. Received: "
            f"--criterion={options.criterion}"
        )
    ticket = prune(
        model,
        options.sparsity,
        criterion=options.criterion,
        scope=options.scope,
        pattern=options.pattern,
        filters=options.filter or None,
        seed=options.seed,
        verbose=0,
    )
    ticket.apply(model)
    if options.ticket is not None:
        ticket.save(options.ticket)
    with archive.replacing(options.output) as target:
        # Keras goes by the ending.
        named = target.with_name("model.keras")
        model.save(named)
        named.replace(target)
    text, fields = _arrays(repr(ticket), ticket.masks, ticket.metadata)
    return text, {**fields, "path": str(options.output)}


def _export(options: argparse.Namespace) -> Shown:
    model = _load(options.model)
    made = export.write(model, options.output, format=options.format, verbose=0)
    if options.measure:
        made = export.report(made, model, verbose=0)
    return made.table(), made.to_json()


def _load(path: Path) -> keras.Model:
    _check_there(path)
    try:
        return keras.models.load_model(path, compile=False)
    except TypeError as error:
        # How Keras says that it does not know a class.
        raise ValueError(
            f"{str(path)!r} holds what Keras does not know. If it is a class "
            f"of yours, name its module with --import. Received: {error}"
        ) from error


def _ticket(path: Path) -> Masks:
    """A ticket of either kind, or the zeros of a model as one."""
    _check_there(path)
    if path.suffix == ".keras":
        return Ticket.from_model(_load(path))
    try:
        return Ticket.load(path)
    except ValueError as error:
        try:
            return ChannelTicket.load(path)
        except ValueError:
            raise error from None


def _check_there(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"There is nothing at {str(path)!r}.")


def _arrays(
    title: str, arrays: Mapping[str, Any], metadata: dict[str, Any]
) -> Shown:
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
    lines = [
        ("", "shape", "kept", "density"),
        *(
            (
                key,
                _shape(row["shape"]),
                f"{row['kept']:,}",
                f"{row['kept'] / max(row['parameters'], 1):.4f}",
            )
            for key, row in rows.items()
        ),
        ("in all", f"{size:,}", f"{kept:,}", f"{kept / max(size, 1):.4f}"),
    ]
    said = [f"  {key}: {value}" for key, value in metadata.items()]
    return "\n".join([title, tables.text(lines), *said]), {
        "weights": rows,
        "parameters": size,
        "kept": kept,
        "metadata": metadata,
    }


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tf_tickets",
        description="Look at, compare, prune and export sparse Keras models.",
        epilog="A command with --help says more. What needs data or training "
        "is done in Python.",
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND"
    )

    def command(name: str, says: str, example: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=says,
            description=f"{says[0].upper()}{says[1:]}.",
            epilog=f"Example: python -m tf_tickets {name} {example}",
        )
        made.add_argument("--json", action="store_true", help="answer in JSON")
        made.add_argument(
            "--import",
            dest="modules",
            action="append",
            default=[],
            metavar="MODULE",
            help="import this module first, which registers layers of yours",
        )
        return made

    inspect = command(
        "inspect", "say what a ticket, a model or an export holds", "served"
    )
    inspect.add_argument("path", type=Path)

    pair = command(
        "compare",
        "say how far two tickets, or the zeros of two models, lie apart",
        "one.safetensors other.safetensors",
    )
    pair.add_argument("one", type=Path, help="a ticket or a .keras file")
    pair.add_argument("other", type=Path, help="one of the same architecture")

    cut = command(
        "prune",
        "zero the lowest weights of a saved model",
        "model.keras --sparsity=0.9 -o pruned.keras",
    )
    cut.add_argument("model", type=Path, help="a .keras file")
    cut.add_argument(
        "--sparsity", type=float, help="fraction to zero; 2:4 says it itself"
    )
    cut.add_argument(
        "--criterion",
        default="magnitude",
        help="magnitude, or another one that needs no data",
    )
    cut.add_argument(
        "--scope",
        default="global",
        help=f"how the budget is spread: global, {', '.join(scopes.SCOPES)}",
    )
    cut.add_argument("--pattern", help="such as 2:4, rows or columns")
    cut.add_argument(
        "--filter",
        action="append",
        help="part of a weight's path; several may be given",
    )
    cut.add_argument("--seed", type=int, default=0, help="of random draws")
    cut.add_argument("--ticket", type=Path, help="where to save the ticket")
    cut.add_argument(
        "-o", "--output", type=Path, required=True, help="a .keras file"
    )

    ship = command(
        "export",
        "write a saved model as it is served",
        "pruned.keras --format=packed -o served",
    )
    ship.add_argument("model", type=Path, help="a .keras file")
    ship.add_argument("--format", default="auto", choices=list(export.FORMATS))
    ship.add_argument(
        "--measure",
        action="store_true",
        help="measure bytes and milliseconds against a dense export, too",
    )
    ship.add_argument("-o", "--output", type=Path, required=True)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        for module in options.modules:
            importlib.import_module(module)
        text, fields = {
            "inspect": lambda: describe(options.path),
            "compare": lambda: compare(options.one, options.other),
            "prune": lambda: _prune(options),
            "export": lambda: _export(options),
        }[options.command]()
    except (OSError, ValueError, ImportError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    shown = json.dumps(fields, indent=2, default=str) if options.json else text
    sys.stdout.write(shown + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
