"""Runs of many experiments: one after the other, in processes, or on Ray."""

from __future__ import annotations

import concurrent.futures
import functools
import importlib.util
import itertools
import json
import os
import pickle
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import keras

from tf_tickets import checks
from tf_tickets.callbacks.directory import HeldElsewhereError
from tf_tickets.zoo.experiments.experiment import (
    RESULT,
    TABLES,
    Choice,
    Directory,
    Experiment,
    Named,
    main_script,
)
from tf_tickets.zoo.experiments.summary import plot, write_csv


def grid(
    methods: Sequence[Choice],
    densities: Sequence[float],
    seeds: Sequence[int],
    **options: Any,
) -> list[Experiment]:
    """Every method at every density with every seed.

    Args:
        methods: As in `Experiment`; `"dense"` runs once a seed.
        densities: Shares of the prunable weights to keep.
        seeds: Whole numbers.
        **options: Of all of them, as in `Experiment`.

    Returns:
        The experiments, seed by seed.

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
    verbose: int = 1,
) -> list[dict[str, Any]]:
    """Do what is not done yet.

    What an experiment finds depends on nothing but itself: not on which others
    run, before it or beside it. All methods of one seed start from the same
    weights and see the same batches.

    `results.csv` in the directory has all results that are there, those of
    earlier calls too: it is written after each of them or, where they are so
    many that this would take more than a twentieth of the time, after some. In
    the end `accuracy.png` shows them, if matplotlib is installed.

    Two calls may work in one directory, on one machine or on several that
    share it. Where an experiment is in another's hands, a worker waits for its
    result (and takes over if it was killed).

    Args:
        experiments: Those that shall be done, all different.
        directory: Each gets one of its own in it.
        workers: How many processes at a time; each experiment has a process
            to itself. 0 runs them here, one after the other; the first error
            then ends the run.
        retries: How often an experiment is started again whose process was
            killed. One that ends with an error is not.
        data_dir: Where the data set is prepared.
        verbose: 1, the default, shows a progress bar, 2 a line at the end, 0
            nothing.

    Returns:
        The results, in the order of ``experiments``.

    Raises:
        ValueError: On bad arguments; with workers, also if a function of an
            experiment cannot be handed to another process, as a lambda
            cannot.
        RuntimeError: If some have failed, after all others are done; it says
            which, and why.

    Example:

    >>> from tf_tickets.zoo import experiments
    >>> experiments.run([], "runs")
    []
    """
    units = _units(experiments, directory)
    workers = checks.whole("workers", workers, least=0)
    retries = checks.whole("retries", retries, least=0)
    progress = _Progress(units, Path(directory), verbose)
    if not workers:
        found = []
        for one, path in units:
            found.append(one.run(path, data_dir=data_dir))
            progress.done(found[-1])
        progress.end()
        return found
    parcels = [_parcel(one, path, data_dir) for one, path in units]
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        futures = [
            pool.submit(_in_process, one, path, parcel, retries)
            for (one, path), parcel in zip(units, parcels, strict=True)
        ]
        for future in concurrent.futures.as_completed(futures):
            progress.done(_outcome(future.result))
        progress.end()
        return _gathered(units, [_outcome(future.result) for future in futures])


def run_on_ray(
    experiments: Iterable[Experiment],
    directory: Directory,
    *,
    cpus: float = 1,
    per_process: int = 1,
    retries: int = 2,
    data_dir: Directory | None = None,
    verbose: int = 1,
) -> list[dict[str, Any]]:
    """`run`, with the experiments handed to Ray.

    Uses the cluster that `ray.init` was called for, or else this machine. Ray
    starts an experiment again whose worker has died, elsewhere if need be; it
    goes on where it was, because the directory says so. If the process that
    called this dies, call it again: what is done is not handed out again.

    Args:
        experiments: As in `run`.
        directory: As in `run`; the same place on all machines, on a file
            system with locks.
        cpus: What one experiment takes.
        per_process: How many experiments a process does, one after the other,
            before another takes its place. 1, the default, gives each a
            process to itself, which begins with the import of TensorFlow.
            More is for experiments that take seconds: TensorFlow does not give
            memory back.
        retries: As in `run`.
        data_dir: Where the data set is prepared.
        verbose: As in `run`.

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
    per_process = checks.whole("per_process", per_process)
    retries = checks.whole("retries", retries, least=0)
    progress = _Progress(units, Path(directory), verbose)
    outcomes: list[Any] = []
    for one, path in units:
        outcomes.append(one.result(path))
        if outcomes[-1] is not None:
            progress.done(outcomes[-1])
    left = [i for i, outcome in enumerate(outcomes) if outcome is None]
    if not left:
        progress.end()
        return outcomes
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "Ray is not installed: pip install 'tf_tickets[ray]'"
        ) from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)

    @ray.remote(num_cpus=cpus, max_retries=retries, max_calls=per_process)
    def unit(one: Experiment, path: Path, added: Any) -> dict[str, Any]:
        _add(added)
        return _patiently(one, path, data_dir)

    places = {
        unit.remote(units[i][0], units[i][1], _functions(units[i][0])): i
        for i in left
    }
    waiting = list(places)
    while waiting:
        ready, waiting = ray.wait(waiting)
        for reference in ready:
            outcome = _outcome(functools.partial(ray.get, reference))
            outcomes[places[reference]] = outcome
            progress.done(outcome)
    progress.end()
    return _gathered(units, outcomes)


class _Progress:
    """The bar, and the files that stand beside the experiments."""

    def __init__(
        self,
        units: Sequence[tuple[Experiment, Path]],
        directory: Path,
        verbose: int,
    ) -> None:
        checks.choice("verbose", verbose, (0, 1, 2))
        self.directory = directory
        self.count = self.failed = 0
        # When to write the table next: it has a row for all that is there.
        self.due = 0.0
        self.bar = None
        if units and verbose:
            self.bar = keras.utils.Progbar(
                len(units),
                verbose=verbose,
                unit_name="experiment",
                stateful_metrics=["test_accuracy", "failed"],
            )

    def done(self, outcome: Any) -> None:
        """One more is done, or has failed."""
        self.count += 1
        shown = []
        if isinstance(outcome, Exception):
            self.failed += 1
        else:
            if time.monotonic() >= self.due:
                self.write()
            accuracy = outcome.get("test_accuracy")
            if isinstance(accuracy, int | float):
                shown.append(("test_accuracy", accuracy))
        if self.failed:
            shown.append(("failed", self.failed))
        if self.bar is not None:
            self.bar.update(self.count, shown)

    def write(self) -> None:
        """The table of all results that are there."""
        begun = time.monotonic()
        write_csv(results(self.directory), self.directory / "results.csv")
        now = time.monotonic()
        self.due = now + 20 * (now - begun)

    def end(self) -> None:
        """All are done."""
        if self.count > self.failed:
            self.write()
        if not self.count or importlib.util.find_spec("matplotlib") is None:
            return
        found = results(self.directory)
        if any(isinstance(r.get("test_accuracy"), float) for r in found):
            plot(found, self.directory / "accuracy.png")


def results(directory: Directory) -> list[dict[str, Any]]:
    """All results in a directory, sorted by the names of the experiments.

    Args:
        directory: That of `run`.

    Returns:
        What `run` returned, and has returned before.

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
    if _in_child:
        raise RuntimeError(
            "A process that does an experiment has imported the script that "
            "starts them, for a function that it defines. Let the script "
            "start them under `if __name__ == '__main__':`."
        )
    chosen = list(experiments)
    strange = [one for one in chosen if not isinstance(one, Experiment)]
    names = [one.name for one in chosen if not strange]
    if strange or len(set(names)) < len(names):
        raise ValueError(
            "`experiments` must be different experiments. "
            f"Received: {strange or 'one twice'}"
        )
    return [(one, Path(directory).resolve() / one.name) for one in chosen]


def _functions(one: Experiment) -> dict[tuple[str, str], Any]:
    """What the names of an experiment stand for in this process.

    Somebody may have added to the tables here, and nowhere else.
    """
    found = {}
    for option, table in TABLES.items():
        value = getattr(one, option)
        if isinstance(value, Named):
            found[option, value.name] = value.function
        elif value in table:
            found[option, value] = table[value]
    return found


def _add(functions: dict[tuple[str, str], Any]) -> None:
    for (option, name), function in functions.items():
        TABLES[option].setdefault(name, function)


# Whether this process was started to do one experiment.
_in_child = False

_CHILD = "from tf_tickets.zoo.experiments import runner; runner._child()"


def _parcel(one: Experiment, path: Path, data_dir: Directory | None) -> bytes:
    """All that a process has to know to do an experiment."""
    functions = _functions(one)
    for (option, _), function in functions.items():
        try:
            packed = pickle.dumps(function)
        except Exception as error:
            raise ValueError(
                f"`{option}` cannot be handed to another process: define it "
                "at the top of a module, or take workers=0. "
                f"Received: {option}={function!r}"
            ) from error
        if b"__main__" in packed and main_script() is None:
            raise ValueError(
                f"`{option}` is defined in a session, where another process "
                "does not find it: define it in a module, or take workers=0. "
                f"Received: {option}={function!r}"
            )
    work = pickle.dumps((one, path, data_dir, functions))
    return pickle.dumps((main_script() if b"__main__" in work else None, work))


def _child() -> None:
    """Do the experiment whose parcel comes in."""
    global _in_child
    _in_child = True
    main, work = pickle.load(sys.stdin.buffer)
    if main is not None:
        # As multiprocessing does it: the script under another name, so that
        # what it does only as the main one is not done again.
        how, where = main
        script = getattr(runpy, how)(where, run_name="__mp_main__")
        sys.modules["__main__"].__dict__.update(script)
    one, path, data_dir, functions = pickle.loads(work)
    _add(functions)
    _patiently(one, path, data_dir)


def _patiently(
    one: Experiment, path: Path, data_dir: Directory | None
) -> dict[str, Any]:
    """Do an experiment, or wait for who is at it.

    That may be a worker whose caller was killed, or another call's.
    """
    while True:
        try:
            return one.run(path, data_dir=data_dir)
        except HeldElsewhereError as error:
            if error.path != path:  # a directory of the method's own
                raise
        time.sleep(0.5)


def _in_process(
    one: Experiment, path: Path, parcel: bytes, retries: int
) -> dict[str, Any]:
    found = one.result(path)
    # It must find the modules that are found here.
    places = os.pathsep.join(place or os.getcwd() for place in sys.path)
    for _ in range(retries + 1 if found is None else 0):
        done = subprocess.run(
            [sys.executable, "-c", _CHILD],
            input=parcel,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": places},
            check=False,
        )
        found = one.result(path)
        if found is not None:
            return found
        if done.returncode >= 0:  # below 0: killed by a signal
            said = done.stderr.decode(errors="replace").strip()
            raise RuntimeError(said.rpartition("\n")[2])
    if found is None:
        raise RuntimeError(f"its process was killed {retries + 1} times")
    return found


def _outcome(result: Callable[[], Any]) -> Any:
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
