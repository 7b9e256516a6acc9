"""Runs of many experiments: one after the other, in processes, or on Ray."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tf_tickets.zoo.experiments.experiment import RESULT, Experiment

Directory = str | os.PathLike[str]


def grid(
    methods: Sequence[str],
    densities: Sequence[float],
    seeds: Sequence[int],
    **options: Any,
) -> list[Experiment]:
    """Every method at every density with every seed.

    Args:
        methods: Names in `METHODS`; `"dense"` runs once a seed.
        densities: Shares of the prunable weights to keep.
        seeds: Whole numbers.
        **options: Of all of them, as in `Experiment`.

    Example:

    >>> from tf_tickets.zoo import experiments
    >>> len(experiments.grid(["imp", "random", "dense"], [0.1, 0.05], [0, 1]))
    10
    """
    made = [
        Experiment(
            method=method,
            density=1.0 if method == "dense" else density,
            seed=seed,
            **options,
        )
        for seed, method, density in itertools.product(
            seeds, methods, densities
        )
    ]
    return list(dict.fromkeys(made))


def run(
    experiments: Iterable[Experiment],
    directory: Directory,
    *,
    workers: int = 0,
    retries: int = 2,
    data_dir: Directory | None = None,
) -> list[dict[str, Any]]:
    """Do what is not done yet.

    Args:
        experiments: Which.
        directory: Each gets one of its own in it.
        workers: How many processes at a time; each experiment has a process
            to itself. 0 runs them here, one after the other.
        retries: How often an experiment is started again whose process was
            killed. One that ends with an error is not.
        data_dir: Where the data set is prepared.

    Returns:
        The results, in the order of ``experiments``.

    Raises:
        ValueError: On bad arguments.
        RuntimeError: If some have failed, after all others are done; it says
            which, and why.

    Example:

    >>> from tf_tickets.zoo import experiments
    >>> experiments.run([], "runs")
    []
    """
    units = _units(experiments, directory)
    _check("workers", workers)
    _check("retries", retries)
    if not workers:
        return [one.run(path, data_dir=data_dir) for one, path in units]
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        futures = [
            pool.submit(_in_process, one, path, retries, data_dir)
            for one, path in units
        ]
        return _gathered(units, [_outcome(future.result) for future in futures])


def run_on_ray(
    experiments: Iterable[Experiment],
    directory: Directory,
    *,
    cpus: float = 1,
    retries: int = 2,
    data_dir: Directory | None = None,
) -> list[dict[str, Any]]:
    """`run`, with the experiments handed to Ray.

    Uses the cluster that `ray.init` was called for, or else this machine. Ray
    starts an experiment again whose worker has died, elsewhere if need be; it
    goes on where it was, because the directory says so.

    Args:
        experiments: Which.
        directory: As in `run`; the same place on all machines.
        cpus: What one experiment takes.
        retries: As in `run`.
        data_dir: Where the data set is prepared.

    Returns:
        The results, in the order of ``experiments``.

    Raises:
        ImportError: If Ray is not installed.
        ValueError: On bad arguments.
        RuntimeError: As in `run`.

    Example:

    >>> from tf_tickets.zoo import experiments
    >>> experiments.run_on_ray([], "runs")
    []
    """
    units = _units(experiments, directory)
    _check("retries", retries)
    if not units:
        return []
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "Ray is not installed: pip install 'tf_tickets[ray]'"
        ) from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)

    # A process for each, as TensorFlow does not give memory back.
    @ray.remote(num_cpus=cpus, max_retries=retries, max_calls=1)
    def unit(one: Experiment, path: str) -> dict[str, Any]:
        return one.run(path, data_dir=data_dir)

    references = [unit.remote(one, str(path)) for one, path in units]
    return _gathered(
        units, [_outcome(lambda r=r: ray.get(r)) for r in references]
    )


def results(directory: Directory) -> list[dict[str, Any]]:
    """All results in a directory, sorted by the names of the experiments.

    Raises:
        FileNotFoundError: If there is no such directory.

    Example:

    >>> import tempfile
    >>> from tf_tickets.zoo import experiments
    >>> experiments.results(tempfile.mkdtemp())
    []
    """
    if not Path(directory).is_dir():
        raise FileNotFoundError(f"There is no directory {str(directory)!r}.")
    return [
        json.loads(path.read_text())
        for path in sorted(Path(directory).glob(f"*/{RESULT}"))
    ]


def _units(
    experiments: Iterable[Experiment], directory: Directory
) -> list[tuple[Experiment, Path]]:
    chosen = list(experiments)
    strange = [one for one in chosen if not isinstance(one, Experiment)]
    if strange or len(set(chosen)) < len(chosen):
        raise ValueError(
            "`experiments` must be different experiments. "
            f"Received: {strange or 'one twice'}"
        )
    return [(one, Path(directory).resolve() / one.name) for one in chosen]


def _check(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(
            f"`{name}` must be a whole number of at least 0. "
            f"Received: {name}={value!r}"
        )


def _in_process(
    one: Experiment, path: Path, retries: int, data_dir: Directory | None
) -> dict[str, Any]:
    found = one.result(path)
    for _ in range(retries + 1 if found is None else 0):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "tf_tickets.zoo.experiments.unit",
                json.dumps(dataclasses.asdict(one)),
                str(path),
                *([] if data_dir is None else [str(data_dir)]),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        found = one.result(path)
        if found is not None:
            return found
        if done.returncode >= 0:  # below 0: killed by a signal
            raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
    if found is None:
        raise RuntimeError(f"its process was killed {retries + 1} times")
    return found


def _outcome(result: Any) -> Any:
    try:
        return result()
    except Exception as error:
        return error


def _gathered(
    units: Sequence[tuple[Experiment, Path]], outcomes: Sequence[Any]
) -> list[dict[str, Any]]:
    failed = [
        f"{one.name}: {outcome}"
        for (one, _), outcome in zip(units, outcomes, strict=True)
        if isinstance(outcome, Exception)
    ]
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(units)} experiments have failed:\n  "
            + "\n  ".join(failed)
        )
    return list(outcomes)
