r"""Kill training at random moments; nothing that comes out may notice.

    python -m benchmarks.kills
    python -m benchmarks.kills --method=gradual --kills=10

Every method trains once without a break. Then it trains again in processes
that are killed (SIGKILL) at random moments and started again with the same
arguments, until one ends. Both must end with the same masks, weights and
optimizer, bit for bit. In every process the layers have other numbers; of two
sizes one keeps a count that rounds up and one that rounds down; half of the
runs stand behind `keras.callbacks.BackupAndRestore`, with two checkpoints. It
cannot read its very first one if that was only half written, nor one whose
number of the epoch was: then its folder is removed, as a person would do.

With ``--hosts=2`` a run is two processes under `MultiWorkerMirroredStrategy`.
One of them is killed; what waits for it is ended, as a cluster does it, and
both begin again. (Keras's backup is of one process, and stays out of it.)
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tf_tickets as tt

_METHODS = ["imp", "gradual", "freezing", "early_bird"]
# Hidden units. Of 20 times as many weights 7 % and 12 % are kept: 23.8 and 40.8
# of the first, which rounds up, 32.2 and 55.2 of the second, which rounds down.
_UNITS = ["17", "23"]

# The parent never runs an operation: then a fork of it is a whole process, and
# TensorFlow is imported once for all.
_PROCESSES = multiprocessing.get_context("fork")


def main(argv: list[str]) -> None:
    moments = random.Random(FLAGS.seed)
    print(
        "| method | hosts | units | BackupAndRestore | kills | attempts "
        "| same end |"
    )
    print("|---|---:|---:|---|---:|---:|---|")
    total, failed = 0, []
    for method in FLAGS.method:
        for units in map(int, FLAGS.units):
            for backup in (False, True) if FLAGS.hosts == 1 else (False,):
                kills, attempts, wrong = survive(
                    Line(method, FLAGS.hosts, units, backup),
                    FLAGS.kills,
                    moments,
                )
                total += kills
                if wrong:
                    failed.append(f"{method}, {units}, {backup}: {wrong}")
                print(
                    f"| {method} | {FLAGS.hosts} | {units} "
                    f"| {'yes' if backup else 'no'} "
                    f"| {kills} | {attempts} | {wrong or 'yes'} |",
                    flush=True,
                )
    print(f"\n{total} kills while training")
    if failed:
        raise SystemExit("\n".join(failed))


class Line(NamedTuple):
    """What one line of the table is of."""

    method: str
    hosts: int
    units: int
    backup: bool


def survive(
    line: Line, kills: int, moments: random.Random
) -> tuple[int, int, str]:
    """``(kills that hit training, attempts, what went wrong)``."""
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        for path in (whole, killed):
            path.mkdir()
        code, seconds = attempt(0, line, whole)
        if code:
            return 0, 0, "the unbroken run failed"
        hits = attempts = 0
        # A kill near the end can leave nothing to kill: then begin again.
        while hits < kills and attempts < 4 * kills:
            attempts += 1
            delay = moments.uniform(0, 2.5 * seconds / kills)
            code, _ = attempt(
                attempts, line, killed, delay, moments.randrange(line.hosts)
            )
            hits += code == -signal.SIGKILL
            if code not in (0, -signal.SIGKILL):
                if not _begin_backup_anew(killed):
                    return hits, attempts, f"attempt {attempts} failed"
            if code == 0:
                wrong = difference(whole, killed)
                if wrong:
                    return hits, attempts, wrong
                for file in sorted(killed.rglob("*"), reverse=True):
                    file.rmdir() if file.is_dir() else file.unlink()
        code, _ = attempt(attempts + 1, line, killed)
        if code and _begin_backup_anew(killed):
            code, _ = attempt(attempts + 2, line, killed)
        if code:
            return hits, attempts, "the last run failed"
        return hits, attempts, difference(whole, killed)


def _begin_backup_anew(killed: Path) -> bool:
    """Remove Keras's checkpoint where Keras cannot read it, as a person would.

    That is its very first one, of which there is no older one, or one whose
    file with the number of the epoch was only half written: Keras takes its
    older one for a damaged file of weights alone.
    """
    backup = killed / "backup"
    if not backup.exists():
        return False
    first = not any("bkp" in path.name for path in backup.iterdir())
    if not first:
        try:
            json.loads((backup / "training_metadata.json").read_text())
        except (OSError, ValueError):
            pass
        else:
            return False
    shutil.rmtree(backup)
    return True


def difference(one: Path, other: Path) -> str:
    """What two runs ended with that is not the same, in a few words."""
    differ = []
    for file in sorted(one.glob("end*.npz")):
        first, second = np.load(file), np.load(other / file.name)
        if first.files != second.files:
            return "other variables"
        differ += [
            f"{file.stem}/{name}"
            for name in first.files
            if not np.array_equal(first[name], second[name])
        ]
    return f"{differ} differ" if differ else ""


def attempt(
    number: int,
    line: Line,
    directory: Path,
    delay: float | None = None,
    victim: int = 0,
) -> tuple[int, float]:
    """Train in new processes; kill one ``delay`` seconds after its first step.

    Returns:
        Its exit code, or of all the first that is not 0, and the seconds since
        the first step.
    """
    stepping = _PROCESSES.Event()
    ports = free_ports(line.hosts)
    children = [
        _PROCESSES.Process(
            target=train,
            args=(number, line, directory, stepping.set, host, ports),
        )
        for host in range(line.hosts)
    ]
    for child in children:
        child.start()
    while not stepping.wait(0.01) and all(c.is_alive() for c in children):
        pass
    start = time.monotonic()
    hit = children[victim]
    hit.join(delay)
    if hit.is_alive() and hit.pid is not None:
        os.kill(hit.pid, signal.SIGKILL)
        hit.join()
    if hit.exitcode:
        for child in children:  # what waits for it
            child.kill()
    for child in children:
        child.join()
    codes = [hit.exitcode, *(child.exitcode for child in children)]
    return next(filter(None, codes), 0), time.monotonic() - start


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def train(
    number: int,
    line: Line,
    directory: Path,
    stepping: Callable[[], None],
    host: int,
    ports: list[int],
) -> None:
    """The child: train to the end, from wherever the directory stands."""
    strategy = tf.distribute.get_strategy()
    if line.hosts > 1:
        os.environ["TF_CONFIG"] = json.dumps(
            {
                "cluster": {"worker": [f"127.0.0.1:{port}" for port in ports]},
                "task": {"type": "worker", "index": host},
            }
        )
        strategy = tt.distribute.MultiWorkerMirroredStrategy()
    tf.config.experimental.enable_op_determinism()
    for _ in range(number):
        keras.layers.Dense(1)  # layers get other numbers than before
        keras.layers.BatchNormalization()
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model, data = task(line)
        if line.method == "freezing":
            loss = model.loss
            model = tt.supermask(model, score_penalty=1e-4)
            model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    callback, epochs = METHODS[line.method](directory / "run")
    keeping = [
        keras.callbacks.BackupAndRestore(
            directory / "backup", double_checkpoint=True
        )
    ]
    first = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: stepping()
    )
    model.fit(
        data,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[*(keeping if line.backup else []), callback, first],
    )
    # Masks, weights, optimizer: everything that training can leave behind.
    masks = (
        tt.Ticket.from_model(model).masks if line.method != "freezing" else {}
    )
    tickets = getattr(callback, "tickets", {})
    if isinstance(tickets, dict):
        tickets = [tickets[key] for key in sorted(tickets)]
    ends = [
        *(v.numpy() for v in [*model.variables, *model.optimizer.variables]),
        *masks.values(),
        *(mask for ticket in tickets for mask in ticket.masks.values()),
    ]
    np.savez(directory / f"end{host}.npz", *ends)


def task(line: Line) -> tuple[keras.Model, tf.data.Dataset]:
    """A model without names of its own, and data in fixed order.

    Normalization is over the batch of all hosts: otherwise Keras has other
    statistics on each, and only those of the chief are kept.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(128, 16)).astype("float32")
    y = (x @ rng.normal(size=(16, 4))).argmax(1)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA
    )
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    model = keras.Sequential(
        [
            keras.Input((16,)),
            keras.layers.Dense(line.units, activation="relu"),
            keras.layers.BatchNormalization(synchronized=line.hosts > 1),
            keras.layers.Dropout(0.1, seed=1),
            keras.layers.Dense(4),
        ]
    )
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model, data.with_options(options)


def _imp(directory: Path) -> tuple[Any, int]:
    imp = tt.callbacks.IterativeMagnitudePruning(
        target_sparsity=0.93,
        rounds=8,
        epochs_per_round=4,
        rewind_epoch=1,
        directory=directory,
    )
    return imp, imp.epochs


def _gradual(directory: Path) -> tuple[Any, int]:
    gradual = tt.callbacks.GradualPruning(
        target_sparsity=0.93, end_step=150, every=7, directory=directory
    )
    return gradual, 24


def _freezing(directory: Path) -> tuple[Any, int]:
    freezing = tt.callbacks.IterativeFreezing(
        target_sparsity=0.88, every=3, directory=directory
    )
    return freezing, 24


def _early_bird(directory: Path) -> tuple[Any, int]:
    early_bird = tt.callbacks.EarlyBird(
        [0.3, 0.5], stop=False, epsilon=0.5, directory=directory
    )
    return early_bird, 24


METHODS: dict[str, Callable[[Path], tuple[Any, int]]] = {
    "imp": _imp,
    "gradual": _gradual,
    "freezing": _freezing,
    "early_bird": _early_bird,
}

if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_multi_enum("method", _METHODS, _METHODS, "Which to kill.")
    flags.DEFINE_list("units", _UNITS, "Sizes of the hidden layer.")
    flags.DEFINE_integer("hosts", 1, "Processes of one training.", 1)
    flags.DEFINE_integer("kills", 7, "Kills for each line of the table.")
    flags.DEFINE_integer("seed", 0, "Seed of the moments.")
    app.run(main)
