"""What every benchmark has: flags, a table, a file or a page for the rows."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks.timing import Row, table

# Flags that several scripts have.
NETWORK = (("resnet20", "mlp"), "What to train; may be given twice.")
JIT_COMPILE = (("false", "true"), "Settings to time; may be given twice.")

MARKS = ("<!-- tables: begin -->", "<!-- tables: end -->")


def define(module: str, **options: tuple[Any, ...]) -> flags.FlagValues:
    """Defines the flags of a script, `--smoke` and `--output` among them.

    Args:
        module: Its ``__name__``. Flags of a script that is imported, by a
            test, must not meet those of others.
        **options: ``flag=(default, help)``. What the default is decides what
            can be given: some of a tuple's words, any list, a whole number of
            at least 1 (or of a third value), a share below 1, yes or no, or a
            text.

    Returns:
        The values of the flags.
    """
    values = flags.FLAGS if module == "__main__" else flags.FlagValues()
    known: dict[str, tuple[Any, ...]] = {
        "smoke": (
            False,
            "Tiny sizes and few rounds: shows that it runs, measures nothing.",
        ),
        "output": (None, "JSON file for the rows."),
    }
    for name, (default, text, *least) in (known | options).items():
        if isinstance(default, tuple):
            flags.DEFINE_multi_enum(
                name, [*default], [*default], text, flag_values=values
            )
        elif isinstance(default, list):
            flags.DEFINE_list(name, default, text, flag_values=values)
        elif isinstance(default, bool):
            flags.DEFINE_bool(name, default, text, flag_values=values)
        elif isinstance(default, int):
            flags.DEFINE_integer(
                name, default, text, *(least or [1]), flag_values=values
            )
        elif isinstance(default, float):
            flags.DEFINE_float(
                name, default, text, 0.0, 0.999, flag_values=values
            )
        else:
            flags.DEFINE_string(name, default, text, flag_values=values)
        if module == "__main__":
            # So that `--help` shows it as one of the script's own.
            values.register_key_flag_for_module(sys.argv[0], values[name])
    return values


def need(module: str, extra: str) -> None:
    """End a script that lacks a package, before it has measured anything.

    Args:
        module: What it imports.
        extra: Of this package, which brings it.
    """
    if importlib.util.find_spec(module) is None:
        raise SystemExit(
            f"This needs {module}: pip install 'tf_tickets[{extra}]'"
        )


def report(
    benchmark: str,
    rows: Sequence[Row],
    *,
    output: str | None,
    notes: Mapping[str, Any],
    unit: str = "ms",
    per_unit: float = 1e-3,
) -> None:
    """Print the table, and write everything to ``output`` if it is given.

    Args:
        benchmark: Its name.
        rows: What was measured.
        output: JSON file, or `None`.
        notes: What else was set or measured; printed below the table.
        unit: Of the times in the table.
        per_unit: Seconds in one such unit.
    """
    machine = describe_machine()
    print(table(rows, unit=unit, per_unit=per_unit))
    print()
    for name, value in {**machine, **notes}.items():
        print(f"{name}: {value}")
    if output is not None:
        pathlib.Path(output).write_text(
            json.dumps(
                {
                    "benchmark": benchmark,
                    "machine": machine,
                    "notes": dict(notes),
                    "rows": [dataclasses.asdict(row) for row in rows],
                },
                indent=2,
            )
            + "\n"
        )


def describe_machine() -> dict[str, Any]:
    """What the times depend on, without the machine's name."""
    return {
        "cpu_cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def replace_tables(page: str, text: str) -> None:
    """Put ``text`` between the two marks of a page."""
    path = pathlib.Path(page)
    before, rest = path.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    path.write_text(f"{before}{MARKS[0]}\n\n{text}\n{MARKS[1]}{after}")
