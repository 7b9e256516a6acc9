"""Which of several files is best where, as far as that was measured."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from tf_tickets import checks
from tf_tickets.export.clusters import sparse_inference
from tf_tickets.export.report import Report

_MACHINES = {
    "server x86": ("x86_64", "amd64", "i386", "i686"),
    "ARM": ("aarch64", "arm64", "armv7l", "armv8l"),
}
PLACES = (*_MACHINES, "browser")

_HOW = {
    "server x86": "run tt.export.litert on such a machine",
    "ARM": "run tt.export.litert there, or LiteRT's benchmark_model",
    "browser": "python -m benchmarks.web --files=... times them in WebAssembly",
}


@dataclasses.dataclass(frozen=True)
class Best:
    """The best file for a place.

    Attributes:
        path: The file; `None` where nothing was measured.
        why: What was measured, or how to.
    """

    path: Path | None
    why: str

    def __str__(self) -> str:
        return f"{self.path or 'not measured'}: {self.why}"


def best_files(
    reports: Sequence[Report],
    *,
    measured: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Best]:
    """Name the fastest of several LiteRT files of a network for each place.

    Nothing is claimed that was not measured: `litert` measures on the machine
    it runs on, which is an x86 server or an ARM one; a browser is another
    matter, and so is a telephone. For these, ``measured`` says what was found
    there.

    Args:
        reports: Of files that `litert` wrote and measured, one of them stored
            densely.
        measured: ``{place: {path: seconds}}`` for places measured elsewhere.

    Returns:
        ``{"server x86" | "ARM" | "browser": best}``.

    Raises:
        ValueError: If there are no files, one was not measured, or a place or
            a path is not known.

    Example:

    >>> import tf_tickets as tt
    >>> made = tt.export.Report(
    ...     "sparse.tflite", "litert", [], 0, latencies={1: {
    ...         "dense": tt.timing.Latency(2e-3, 2e-3, 2e-3, 9),
    ...         "export": tt.timing.Latency(1e-3, 1e-3, 1e-3, 9)}})
    >>> found = tt.export.best_files(
    ...     [made], measured={"browser": {"sparse.tflite": 0.5e-3}})
    >>> print(found["browser"])
    sparse.tflite: 0.50 ms of 1 file measured there
    """
    paths = [Path(report) for report in reports]
    if not paths or not all(report.latencies for report in reports):
        raise ValueError(
            "`reports` must be those of files that `tt.export.litert` wrote "
            f"and measured. Received: {[str(path) for path in paths]}"
        )
    given: dict[str, Mapping[str, float]] = dict(measured or {})
    for place, times in given.items():
        checks.choice("measured", place, PLACES)
        for path in times:
            checks.choice("measured", path, [str(one) for one in paths])
    here = platform.machine().lower()
    for place, machines in _MACHINES.items():
        if here in machines and place not in given:
            given[place] = _here(reports)
    return {
        place: _best(place, given.get(place, {}), paths) for place in PLACES
    }


def _here(reports: Sequence[Report]) -> dict[str, float]:
    """Seconds an example, each file's dense baseline counted as one and all.

    Every report holds the dense file's time in the same minutes as its own:
    what slowed one slowed the other.
    """
    found, baselines = {}, []
    for report in reports:
        batch, times = next(iter(report.latencies.items()))
        found[str(Path(report))] = (
            times["export"].median / times["dense"].median
        )
        baselines.append(times["dense"].median / batch)
    unit = sorted(baselines)[len(baselines) // 2]
    return {path: ratio * unit for path, ratio in found.items()}


def _best(place: str, times: Mapping[str, float], paths: list[Path]) -> Best:
    if times:
        path = min(times, key=lambda key: times[key])
        files = f"{len(times)} file{'s' if len(times) > 1 else ''}"
        return Best(
            Path(path), f"{1e3 * times[path]:.2f} ms of {files} measured there"
        )
    why = f"to measure, {_HOW[place]}"
    if place != "server x86":
        sparse = [path.name for path in paths if _is_sparse(path)]
        names = ", ".join(sparse) or "none of the files"
        why = f"XNNPACK computes {names} sparsely there; {why}"
    return Best(None, why)


def _is_sparse(path: Path) -> bool:
    return path.is_file() and sparse_inference(path).sparse
