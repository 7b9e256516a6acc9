"""Times of things side by side, on a machine that is never quiet."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

_FEWEST = 5  # rounds, however long they take


class Times(NamedTuple):
    """Seconds of one side, by round.

    Attributes:
        wall: On the clock.
        cpu: Of the process, over all its threads: it does not count the time
            that other processes took.
    """

    wall: np.ndarray
    cpu: np.ndarray


@dataclasses.dataclass(frozen=True)
class Latency:
    """Seconds a call takes.

    Attributes:
        median: Of all runs.
        low: First quartile.
        high: Third quartile.
        runs: How many there were.
    """

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, times: Times) -> Latency:
        """Summarize measured runs."""
        low, median, high = np.percentile(times.wall, (25, 50, 75))
        return cls(float(median), float(low), float(high), times.wall.size)


def interleaved(
    sides: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    seconds: float | None = None,
    warmup: int = 2,
) -> dict[str, Times]:
    """Seconds of every side in every round.

    Sides run in turn, so that what slows the whole machine for a while slows
    all of them. Garbage is collected before, and not in between.

    Args:
        sides: ``{name: what to time}``; each must wait for its result. The
            order rotates from round to round, so that no side always runs on
            the caches of the same other.
        rounds: How often each side is timed, at most.
        seconds: Stop after so much time in all, but not before five rounds;
            `None`, the default, runs all rounds.
        warmup: Rounds before these that are not timed: tracing, compiling.

    Returns:
        ``{name: times}``.

    Example:

    >>> times = interleaved({"sum": lambda: sum(range(9))}, rounds=3)
    >>> times["sum"].wall.shape
    (3,)
    """
    order = list(sides)
    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    began = time.perf_counter()
    try:
        for index in range(-warmup, rounds):
            if index == 0:
                began = time.perf_counter()
            spent = time.perf_counter() - began
            if index >= _FEWEST and seconds is not None and spent > seconds:
                break
            turn = index % len(order)
            for name in order[turn:] + order[:turn]:
                start, cpu_start = time.perf_counter(), time.process_time()
                sides[name]()
                stop, cpu_stop = time.perf_counter(), time.process_time()
                if index >= 0:
                    wall[name].append(stop - start)
                    cpu[name].append(cpu_stop - cpu_start)
    finally:
        if collecting:
            gc.enable()
    return {
        name: Times(np.array(wall[name]), np.array(cpu[name])) for name in order
    }
