r"""Kill training at random moments; the ticket must not notice.

    python benchmarks/kills.py
    python benchmarks/kills.py --method=gradual --kills=10

Every method trains once without a break. Then it trains again in a process
that is killed (SIGKILL) at random moments and started again with the same
command, until it ends. Both must end with the same masks and the same weights,
bit for bit, on data that are shuffled anew in every epoch.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags

FLAGS = flags.FLAGS
_METHODS = ["imp", "gradual", "freezing", "early_bird"]
flags.DEFINE_multi_enum("method", _METHODS, _METHODS, "Which to kill.")
flags.DEFINE_integer("kills", 5, "Kills for each method.")
flags.DEFINE_integer("seed", 0, "Seed of the moments.")
flags.DEFINE_string("child", None, "Internal: train here, as this method.")

READY, DONE = "training", "done"


def main(argv: list[str]) -> None:
    if FLAGS.child:
        train(FLAGS.method[0], Path(FLAGS.child))
        return
    moments = random.Random(FLAGS.seed)
    print("| method | kills | hit while training | same ticket |")
    print("|---|---|---|---|")
    for method in FLAGS.method:
        hits, same = survive(method, FLAGS.kills, moments)
        print(f"| {method} | {FLAGS.kills} | {hits} | {same} |", flush=True)
        if not same:
            raise SystemExit(f"{method}: the killed run ended elsewhere")


def survive(
    method: str, kills: int, moments: random.Random
) -> tuple[int, bool]:
    """``(kills that hit training, whether both runs ended alike)``."""
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        seconds = attempt(method, whole, None)
        hits = 0
        for _ in range(kills):
            delay = moments.uniform(0, seconds / kills)
            hits += attempt(method, killed, delay) == 0.0
        attempt(method, killed, None)
        return hits, ended(whole) == ended(killed)


def attempt(method: str, directory: Path, delay: float | None) -> float:
    """Train in a new process; kill it ``delay`` seconds into training.

    Returns:
        Seconds of training, or 0 if it was killed before its end.
    """
    child = subprocess.Popen(
        [
            sys.executable,
            __file__,
            f"--child={directory}",
            f"--method={method}",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    if child.stdout is None:
        raise RuntimeError("The child process has no output.")
    for line in child.stdout:
        if line.strip() == READY:
            break
    start = time.monotonic()
    if delay is not None:
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
    rest = child.stdout.read()
    child.wait()
    if delay is None and child.returncode:
        raise RuntimeError(f"{method} failed:\n{rest}")
    return time.monotonic() - start if DONE in rest else 0.0


def ended(directory: Path) -> list[tuple[str, bytes]]:
    """Everything that a run ended with.

    Not the bytes of the file: safetensors writes its header in any order.
    """
    import tf_tickets as tt

    state, _ = tt.Snapshot.load(directory / "final.safetensors")
    arrays = [*state.variables.items(), *state.optimizer.items()]
    return [(key, value.tobytes()) for key, value in arrays]


def train(method: str, directory: Path) -> None:
    """The child: train to the end, from wherever the directory stands."""
    import keras
    import numpy as np
    import tensorflow as tf

    import tf_tickets as tt

    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(512, 16)).astype("float32")
    y = (x @ rng.normal(size=(16, 4))).argmax(1)
    options = tf.data.Options()
    options.autotune.enabled = False
    data = tt.data.shuffled((x, y), seed=0).batch(16)
    model = keras.Sequential(
        [
            keras.Input((16,)),
            keras.layers.Dense(64, activation="relu", name="hidden"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dropout(0.1, seed=1, name="drop"),
            keras.layers.Dense(4, name="head"),
        ],
        name="net",
    )
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    if method == "freezing":
        loss = model.loss
        model = tt.supermask(model, score_penalty=1e-4)
        model.compile(
            keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"]
        )
    callback, epochs = METHODS[method](tt, directory)
    announce = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: print(READY, flush=True)
    )
    model.fit(
        data.with_options(options),
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[announce, callback],
    )
    # Masks, weights, optimizer: everything that training can leave behind.
    tt.Snapshot.take(model).save(directory / "final.safetensors")
    print(DONE, flush=True)


def _imp(tt: Any, directory: Path) -> tuple[Any, int]:
    imp = tt.callbacks.IterativeMagnitudePruning(
        target_sparsity=0.95,
        rounds=8,
        epochs_per_round=4,
        rewind_epoch=1,
        directory=directory,
    )
    return imp, imp.epochs


def _gradual(tt: Any, directory: Path) -> tuple[Any, int]:
    gradual = tt.callbacks.GradualPruning(
        target_sparsity=0.95, end_step=900, every=7, directory=directory
    )
    return gradual, 32


def _freezing(tt: Any, directory: Path) -> tuple[Any, int]:
    freezing = tt.callbacks.IterativeFreezing(
        target_sparsity=0.9, every=3, directory=directory
    )
    return freezing, 32


def _early_bird(tt: Any, directory: Path) -> tuple[Any, int]:
    early_bird = tt.callbacks.EarlyBird(
        [0.3, 0.5], stop=False, epsilon=0.5, directory=directory
    )
    return early_bird, 32


METHODS: dict[str, Callable[[Any, Path], tuple[Any, int]]] = {
    "imp": _imp,
    "gradual": _gradual,
    "freezing": _freezing,
    "early_bird": _early_bird,
}

if __name__ == "__main__":
    app.run(main)
