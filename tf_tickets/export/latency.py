"""Latencies that can be compared: interleaved runs, medians, spread."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# Runs that differ by less than this cannot be told apart on a shared machine.
NOISE = 0.05


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
    def of(cls, seconds: list[float]) -> Latency:
        """Summarize measured runs."""
        low, median, high = np.percentile(seconds, (25, 50, 75))
        return cls(float(median), float(low), float(high), len(seconds))

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dataclasses.asdict(self)


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    *,
    runs: int = 30,
    seconds: float = 1.0,
    warmup: int = 2,
) -> dict[str, Latency]:
    """Time functions in turns, so that a busy moment falls on all of them.

    Args:
        functions: ``{name: function}``; each must wait for its result.
        runs: At most this many runs of each.
        seconds: Stop after this much time in all, but not before five runs.
        warmup: Runs of each that do not count.

    Returns:
        ``{name: latency}``.
    """
    for _ in range(warmup):
        for function in functions.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    began = time.perf_counter()
    for done in range(runs):
        if done >= 5 and time.perf_counter() - began > seconds:
            break
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: Latency.of(values) for name, values in times.items()}


def gain(ratio: float, word: str) -> str:
    """A ratio in words: ``"no gain"`` if it may be noise.

    Example:

    >>> gain(2.0, "faster"), gain(1.01, "faster")
    ('2.00x faster', 'no gain')
    """
    if ratio > 1 + NOISE:
        return f"{ratio:.2f}x {word}"
    if ratio < 1 / (1 + NOISE):
        return f"no gain: {1 / ratio:.2f}x not {word}"
    return "no gain"
