"""Times of things side by side, on a machine that is never quiet.

Sides are run in turn, round after round, and compared within each round: what
slows the whole machine for a while slows both sides of a ratio. The table
gives the median ratio, an interval that holds the true median 95 times in
100, and the quartiles, which show how noisy the machine was.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags

Times = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Row:
    """One side against another.

    Attributes:
        case: What was set up, such as the network.
        name: The side.
        seconds: Its median time.
        baseline: The side it is compared with.
        ratio: Median over the rounds of its time over the baseline's.
        interval: 95 % confidence interval of that median.
        quartiles: First and third quartile of the ratio.
        rounds: How many rounds were timed.
    """

    case: str
    name: str
    seconds: float
    baseline: str
    ratio: float
    interval: tuple[float, float]
    quartiles: tuple[float, float]
    rounds: int


def interleaved(
    sides: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 2
) -> dict[str, np.ndarray]:
    """Seconds of every side in every round.

    Args:
        sides: ``{name: what to time}``. The order rotates from round to
            round, so that no side always runs on the caches of the same other.
        rounds: How often each side is timed.
        warmup: Rounds before these that are not timed: tracing, compiling.

    Returns:
        ``{name: array of seconds}``.
    """
    order = list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for index in range(-warmup, rounds):
            turn = index % len(order)
            for name in order[turn:] + order[:turn]:
                start = time.perf_counter()
                sides[name]()
                stop = time.perf_counter()
                if index >= 0:
                    seconds[name].append(stop - start)
    finally:
        if collecting:
            gc.enable()
    return {name: np.array(values) for name, values in seconds.items()}


def compare(
    times: Times,
    name: str,
    baseline: str,
    *,
    case: str,
    label: str | None = None,
) -> Row:
    """The row of side ``name`` against side ``baseline``.

    Args:
        times: From `interleaved`.
        name: A side.
        baseline: Another one, or the same.
        case: Of the row.
        label: What the row calls the side; its name if `None`.
    """
    ratios = np.sort(times[name] / times[baseline])
    # Ranks between which the median lies, by the binomial distribution.
    reach = 0.98 * np.sqrt(ratios.size)
    low = max(int(np.floor(ratios.size / 2 - reach)), 0)
    high = min(int(np.ceil(ratios.size / 2 + reach)), ratios.size - 1)
    first, median, third = np.percentile(ratios, [25, 50, 75])
    return Row(
        case,
        label or name,
        float(np.median(times[name])),
        baseline,
        float(median),
        (float(ratios[low]), float(ratios[high])),
        (float(first), float(third)),
        int(ratios.size),
    )


def table(rows: Sequence[Row], *, unit: str, per_unit: float) -> str:
    """The rows in Markdown.

    Args:
        rows: What to show.
        unit: Heading of the column of times.
        per_unit: Seconds in one such unit.
    """
    lines = [
        f"| case | what | {unit} | against | ratio | 95 % | quartiles | n |",
        "|---|---|---:|---|---:|---|---|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.case} | {row.name} | {row.seconds / per_unit:.2f} "
            f"| {row.baseline} | {row.ratio:.3f} "
            f"| {row.interval[0]:.3f}–{row.interval[1]:.3f} "
            f"| {row.quartiles[0]:.3f}–{row.quartiles[1]:.3f} "
            f"| {row.rounds} |"
        )
    return "\n".join(lines)


def define_flags(values: flags.FlagValues) -> None:
    """The flags that every benchmark has."""
    flags.DEFINE_bool(
        "smoke",
        False,
        "Tiny sizes and few rounds: shows that it runs, measures nothing.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "output", None, "JSON file for the rows.", flag_values=values
    )


def report(
    benchmark: str,
    rows: Sequence[Row],
    *,
    unit: str,
    per_unit: float,
    output: str | None,
    notes: Mapping[str, Any],
) -> None:
    """Print the table, and write everything to ``output`` if it is given.

    Args:
        benchmark: Its name.
        rows: What was measured.
        unit: Of the times in the table.
        per_unit: Seconds in one such unit.
        output: JSON file, or `None`.
        notes: What else was set or measured; printed below the table.
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
