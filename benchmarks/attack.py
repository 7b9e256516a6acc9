r"""Models, tickets, callbacks, interrupts and resumes in thousands of orders.

    python -m benchmarks.attack --sequences=2000 --progress=attack.jsonl

The state machine is that of `tests/stress/machine.py`, of which `make test`
runs a few sequences. Each part of the run has a seed of its own and becomes a
line of the progress file; the same command goes on where it was. A sequence
that fails is printed as the program that shows the fault.
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_integer("sequences", 2000, "How many sequences.", 1)
flags.DEFINE_integer("steps", 6, "Steps of each, at most.", 1)
flags.DEFINE_integer("part", 25, "Sequences for each seed.", 1)
flags.DEFINE_integer("workers", 2, "Processes.", 1)
flags.DEFINE_integer("seed", 0, "Seed of the first part.")
flags.DEFINE_string("progress", None, "JSON lines, one for each part.")


def main(argv: list[str]) -> None:
    seeds = range(FLAGS.seed, FLAGS.seed + -(-FLAGS.sequences // FLAGS.part))
    progress = None if FLAGS.progress is None else Path(FLAGS.progress)
    rows: list[dict[str, Any]] = []
    if progress is not None and progress.exists():
        rows = [json.loads(line) for line in progress.read_text().splitlines()]
    done = {row["seed"] for row in rows}
    left = [(s, FLAGS.part, FLAGS.steps) for s in seeds if s not in done]
    context = multiprocessing.get_context("spawn")
    # TensorFlow keeps what was traced, and a full worker becomes slow.
    with context.Pool(FLAGS.workers, prepare, maxtasksperchild=4) as pool:
        for row in pool.imap_unordered(attack, left):
            rows.append(row)
            if progress is not None:
                with progress.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            if row["fault"]:
                print(row["fault"])
            print(summary(rows), flush=True)
    if any(row["fault"] for row in rows):
        raise SystemExit("There are faults.")


def summary(rows: list[dict[str, Any]]) -> str:
    """All parts so far in one line."""
    total = {
        key: sum(row[key] for row in rows)
        for key in ("sequences", "fits", "resumed", "seconds")
    }
    faults = sum(bool(row["fault"]) for row in rows)
    return (
        f"{total['sequences']} sequences, {total['fits']} trainings, "
        f"{total['resumed']} broken runs that ended as unbroken ones, "
        f"{faults} parts with a fault, {total['seconds']:.0f} s"
    )


def prepare() -> None:
    """A worker begins."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    from tests.stress.machine import Attack

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    warnings.simplefilter("ignore")
    if os.path.isdir("/dev/shm"):
        Attack.root = "/dev/shm"
    gc.collect()
    # What is imported is not looked through when models are looked for.
    gc.freeze()


def attack(part: tuple[int, int, int]) -> dict[str, Any]:
    """Run the sequences of one seed."""
    from hypothesis import HealthCheck, Phase, seed, settings
    from hypothesis.stateful import run_state_machine_as_test

    from tests.stress.machine import Attack

    number, sequences, steps = part
    before = Attack.sequences, Attack.fits, Attack.resumed
    begun, fault = time.monotonic(), ""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            run_state_machine_as_test(
                seed(number)(type("Attack", (Attack,), {})),
                settings=settings(
                    max_examples=sequences,
                    stateful_step_count=steps,
                    deadline=None,
                    database=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                ),
            )
    except BaseException as error:
        # The notes of the error are the program that shows it.
        fault = "".join(traceback.format_exception(error, limit=-4))
    after = Attack.sequences, Attack.fits, Attack.resumed
    ran, fits, resumed = (b - a for a, b in zip(before, after, strict=True))
    return {
        "seed": number,
        "sequences": ran,
        "fits": fits,
        "resumed": resumed,
        "seconds": time.monotonic() - begun,
        "fault": fault,
    }


if __name__ == "__main__":
    app.run(main)
