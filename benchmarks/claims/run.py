"""Do what is not done yet, in this process or in others."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from absl import logging

from benchmarks.claims import units
from benchmarks.claims.units import Row, Rows, Unit

Plan = Callable[[Rows], Iterable[Unit]]


def run(plan: Plan, path: str, *, workers: int, show: bool = True) -> bool:
    """Do the units of a plan that the file has not.

    The plan is asked again after each unit: what comes after a search depends
    on what it found.

    Args:
        plan: Of what was found makes the units, the most urgent first.
        path: The file; each unit is a line when it is done.
        workers: How many processes; 0 works here.
        show: Whether to show how far it is.

    Returns:
        Whether all units are done.
    """
    rows = Rows.read(path)
    failed: set[Unit] = set()
    busy: dict[concurrent.futures.Future[Any], Unit] = {}
    with contextlib.ExitStack() as stack:
        pool = _Here() if not workers else stack.enter_context(_pool(workers))
        while True:
            asked = list(dict.fromkeys(plan(rows)))
            left = [unit for unit in asked if unit not in rows]
            free = [
                unit
                for unit in left
                if unit not in failed and unit not in busy.values()
            ]
            for unit in free[: max(1, workers) - len(busy)]:
                busy[pool.submit(work, unit)] = unit
            if not busy:
                return not left
            done, _ = concurrent.futures.wait(
                busy, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                unit = busy.pop(future)
                error = future.exception()
                if error is not None:
                    failed.add(unit)
                    logging.error("%s: %r", unit, error)
                    continue
                found, seconds = future.result()
                rows.add(unit, found)
                units.append(path, units.line(unit, found, seconds))
                if show:
                    _tell(len(asked) - len(left) + 1, len(asked), unit, seconds)


def work(unit: Unit) -> tuple[list[Row], float]:
    """What a unit finds, and the seconds it takes."""
    from benchmarks.claims import methods

    begun = time.monotonic()
    with warnings.catch_warnings():
        # Masks that empty a layer are what some claims are about.
        warnings.simplefilter("ignore")
        found = methods.measure(unit)
    return found, time.monotonic() - begun


def _tell(done: int, total: int, unit: Unit, seconds: float) -> None:
    where = ", ".join(f"{density:g}" for density in unit.densities)
    sys.stderr.write(
        f"[{time.strftime('%H:%M:%S')}] {done}/{total} {unit.task} "
        f"{unit.label} at {where}, {unit.split} {unit.seed}: {seconds:.0f} s\n"
    )
    sys.stderr.flush()


class _Here:
    """An executor that does it at once."""

    def submit(
        self, function: Callable[..., Any], *arguments: Any
    ) -> concurrent.futures.Future[Any]:
        """Do it."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


def _pool(workers: int) -> concurrent.futures.ProcessPoolExecutor:
    return concurrent.futures.ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_alone,
        initargs=(os.getpid(),),
    )


def _alone(parent: int) -> None:
    """A worker has one thread to compute with, and ends with its parent."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
