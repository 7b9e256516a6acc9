"""Times of things side by side, on a machine that is never quiet.

Sides are run in turn, round after round, and compared within each round: what
slows the whole machine for a while slows both sides of a ratio. The table
gives the median ratio, an interval that holds the true median 95 times in
100, and the quartiles, which show how noisy the machine was. The ratio of the
process's CPU times, over all its threads, stands beside it: it does not count
the time that other processes took.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tf_tickets.timing import Times, interleaved

__all__ = ["Row", "Times", "compare", "interleaved", "table"]


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
        cpu_ratio: Median over the rounds of the ratio of CPU times.
        rounds: How many rounds were timed.
    """

    case: str
    name: str
    seconds: float
    baseline: str
    ratio: float
    interval: tuple[float, float]
    quartiles: tuple[float, float]
    cpu_ratio: float
    rounds: int


def compare(
    times: Mapping[str, Times],
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
    side, base = times[name], times[baseline]
    ratios = np.sort(side.wall / base.wall)
    # Ranks between which the median lies, by the binomial distribution.
    reach = 0.98 * np.sqrt(ratios.size)
    low = max(int(np.floor(ratios.size / 2 - reach)), 0)
    high = min(int(np.ceil(ratios.size / 2 + reach)), ratios.size - 1)
    first, median, third = np.percentile(ratios, [25, 50, 75])
    return Row(
        case,
        label or name,
        float(np.median(side.wall)),
        baseline,
        float(median),
        (float(ratios[low]), float(ratios[high])),
        (float(first), float(third)),
        float(np.median(side.cpu / base.cpu)),
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
        f"| case | what | {unit} | against | ratio | 95 % | quartiles "
        "| CPU ratio | n |",
        "|---|---|---:|---|---:|---|---|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.case} | {row.name} | {row.seconds / per_unit:.2f} "
            f"| {row.baseline} | {row.ratio:.3f} "
            f"| {row.interval[0]:.3f}–{row.interval[1]:.3f} "
            f"| {row.quartiles[0]:.3f}–{row.quartiles[1]:.3f} "
            f"| {row.cpu_ratio:.3f} | {row.rounds} |"
        )
    return "\n".join(lines)
