r"""A thousand tiny experiments on Ray, with workers and driver killed.

    python -m benchmarks.units
    python -m benchmarks.units --kills=0 --driver_kills=0

A cluster of Ray is started on this machine; a process, the driver, hands it
experiments that hardly take time of their own: a network of 36 weights is
made, nothing trains, and 20 ms are slept. The rest is what the runner and Ray
take. At random moments workers are killed (SIGKILL), and the driver is; the
driver is started again with the same call until it ends.

In the end every experiment must have its result, from the process that began it
last, and none may have begun again after its result was there, or while
another process was at it. Needs Ray (``pip install 'tf_tickets[ray]'``).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
# Nothing of this machine is reported to anyone.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import keras
import numpy as np
import tensorflow as tf
from absl import app

from benchmarks import script
from tf_tickets.zoo import datasets, experiments, recipes

# Seconds that each takes of its own, so that kills meet it.
SLEEP = 0.02

FLAGS = script.define(
    __name__,
    units=(1000, "How many experiments."),
    workers=(2, "How many at a time."),
    per_process=(50, "How many a process does before another follows."),
    kills=(20, "Of workers, each while it is at an experiment.", 0),
    driver_kills=(3, "Of the process that hands them out.", 0),
    seed=(0, "Of the moments.", 0),
    drive=("", "(Used by the script itself: be the driver, in this place.)"),
)


def network(*, input_shape: tuple[int, ...], classes: int) -> keras.Model:
    """Eight inputs, four classes."""
    layer = keras.layers.Dense(classes, name="head")
    return keras.Sequential([keras.Input(input_shape), layer])


def noise(settings: Any) -> datasets.Dataset:
    """Sixteen examples."""
    rng = np.random.default_rng(settings.seed)
    x = rng.normal(size=(16, 8)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, rng.integers(0, 4, 16)))
    batches = data.batch(16)
    return datasets.Dataset(
        name="noise",
        train=batches,
        validation=batches,
        test=batches,
        input_shape=(8,),
        classes=4,
        batch_size=16,
        train_size=16,
        validation_size=16,
        test_size=16,
    )


def recipe(model: Any, dataset: Any) -> recipes.PruningRecipe:
    """One epoch, which nobody trains."""
    return recipes.PruningRecipe(
        model="network",
        dataset="noise",
        epochs=1,
        batch_size=16,
        initial_learning_rate=0.1,
        prune_fraction=0.5,
        rewind_step=0,
    )


def nothing(trial: experiments.Trial) -> dict[str, Any]:
    """Says who begins and who ends, and that is all."""
    log(trial.directory, "begins")
    time.sleep(SLEEP)
    log(trial.directory, "ends")
    return {"process": os.getpid()}


def log(directory: Path, what: str) -> None:
    """A line of one write: it is there whole or not at all."""
    line = f"{what} {os.getpid()} {time.time():.6f}\n".encode()
    file = os.open(
        directory / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644
    )
    os.write(file, line)
    os.close(file)


def all_units() -> list[experiments.Experiment]:
    """The experiments: one for each seed."""
    return experiments.grid(
        [experiments.Named("nothing", nothing)],
        [0.5],
        list(range(20 if FLAGS.smoke else FLAGS.units)),
        model=experiments.Named("network", network),
        dataset=experiments.Named("noise", noise),
        recipe=experiments.Named("recipe", recipe),
    )


def drive(directory: Path) -> None:
    """The driver: all of them, on the cluster that is there."""
    import ray

    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    experiments.run_on_ray(
        all_units(),
        directory,
        per_process=FLAGS.per_process,
        retries=FLAGS.kills + 2,
        verbose=0,
    )


def at_work(directory: Path) -> list[int]:
    """Processes of Ray that hold an experiment now."""
    found = []
    for path in directory.glob("*/lock"):
        if (path.parent / "result.json").exists():
            continue
        try:
            pid = int(path.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_text()
        except (OSError, ValueError):
            continue
        if command.startswith("ray::"):
            found.append(pid)
    return found


def work_off(directory: Path) -> dict[str, Any]:
    """Start drivers until one ends; kill workers and drivers on the way."""
    moments = random.Random(FLAGS.seed)
    kills, driver_kills = FLAGS.kills, FLAGS.driver_kills
    count = len(all_units())
    done = 0
    # Kills are spread over the work: each has a number of results to wait for.
    due = sorted(moments.sample(range(count), kills))
    driver_due = sorted(moments.sample(range(count), driver_kills))
    command = [sys.executable, "-m", "benchmarks.units", *sys.argv[1:]]
    command.append(f"--drive={directory}")
    said = (directory / "said").open("w")
    begun = time.monotonic()
    first = None
    while True:
        driver = subprocess.Popen(command, stdout=said, stderr=said)
        while driver.poll() is None:
            time.sleep(0.02)
            done = sum(1 for _ in directory.glob("*/result.json"))
            if done and first is None:
                first = time.monotonic()
            if due and done >= due[0]:
                victims = at_work(directory)
                if victims:
                    os.kill(moments.choice(victims), signal.SIGKILL)
                    due.pop(0)
            if driver_due and done >= driver_due[0]:
                driver.kill()
                driver_due.pop(0)
        if driver.returncode == 0:
            break
        if driver.returncode != -signal.SIGKILL:
            sys.exit(Path(said.name).read_text()[-2000:])
    end = time.monotonic()
    return {
        "units": count,
        "kills": kills - len(due),
        "driver kills": driver_kills - len(driver_due),
        "seconds": end - begun,
        "since the first": end - (first or begun),
    }


def faults(directory: Path) -> tuple[int, list[str]]:
    """``(how many have begun more than once, what is wrong)``."""
    again, wrong = 0, []
    for unit in all_units():
        place = directory / unit.name
        found = unit.result(place)
        if found is None:
            wrong.append(f"{unit.name} is lost")
            continue
        lines = [
            (what, int(pid), float(when))
            for what, pid, when in map(
                str.split, (place / "log").read_text().splitlines()
            )
        ]
        begun = [line for line in lines if line[0] == "begins"]
        again += len(begun) > 1
        whole = (place / "result.json").stat().st_mtime
        if begun[-1][1] != found["process"] or begun[-1][2] > whole + 1e-3:
            wrong.append(f"{unit.name} has run twice: {lines}")
        # Whoever was broken off says nothing after the next has begun.
        pids = [pid for _, pid, _ in lines]
        if any(pids[i] in pids[i + 2 :] for i in range(0, len(pids) - 2)):
            wrong.append(f"{unit.name} was in two hands: {lines}")
    return again, wrong


def main(argv: list[str]) -> None:
    del argv
    if FLAGS.drive:
        drive(Path(FLAGS.drive))
        return
    try:
        import ray
    except ImportError:
        print("Skipped: Ray is not installed.")
        return
    ray_command = Path(sys.executable).parent / "ray"
    head = subprocess.Popen(
        [
            str(ray_command),
            "start",
            "--head",
            "--block",
            f"--num-cpus={FLAGS.workers}",
            "--include-dashboard=false",
            "--disable-usage-stats",
            f"--object-store-memory={100 * 2**20}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            row = work_off(Path(folder))
            again, wrong = faults(Path(folder))
    finally:
        head.terminate()  # it ends what it has started
        head.wait()
    # From the first result on: Ray's own start is the same for any number.
    seconds = row["since the first"]
    print(
        "| units | workers | a process | workers killed | driver killed "
        "| begun again | lost or run twice | seconds | units a second "
        "| overhead for each |"
    )
    print("|---:" * 10 + "|")
    print(
        f"| {row['units']} | {FLAGS.workers} | {FLAGS.per_process} "
        f"| {row['kills']} | {row['driver kills']} | {again} | {len(wrong)} "
        f"| {row['seconds']:.0f} | {row['units'] / row['seconds']:.1f} "
        f"| {(seconds * FLAGS.workers / row['units'] - SLEEP) * 1e3:.0f} ms |"
    )
    machine = {**script.describe_machine(), "ray": ray.__version__}
    for name, value in machine.items():
        print(f"{name}: {value}")
    if FLAGS.output is not None:
        Path(FLAGS.output).write_text(
            json.dumps({**row, "again": again, "wrong": wrong}, indent=2)
        )
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    app.run(main)
