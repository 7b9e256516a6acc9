r"""What it costs several hosts to go on with the same masks.

    python -m benchmarks.hosts

Two processes of this machine train under `MultiWorkerMirroredStrategy`. Each
draws global magnitude masks from the same weights; then they compare what they
have drawn, and, where one has drawn something else, take the chief's. Both
share this machine's cores and its memory as its network: what they send to each
other is given in bytes, for the network that there is.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
from absl import app

import tf_tickets as tt
from benchmarks import script
from benchmarks.kills import free_ports
from tf_tickets.distribute import agreed
from tf_tickets.selection import named_weights

FLAGS = script.define(
    __name__,
    weights=(25, "Of the network, in millions."),
    rounds=(5, "Of which the median is told."),
)

# The parent never runs an operation: then a fork of it is a whole process, and
# TensorFlow is imported once for all.
_PROCESSES = multiprocessing.get_context("fork")


def stack(millions: float) -> keras.Model:
    """Dense layers of 1024 units."""
    depth = max(1, round(millions * 1e6 / 1024**2))
    layers = [keras.layers.Dense(1024, use_bias=False) for _ in range(depth)]
    return keras.Sequential([keras.Input((1024,)), *layers])


def seconds(call: Callable[[], Any], rounds: int) -> float:
    """Median of the times of a call."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def host(index: int, ports: list[int], said: Any) -> None:
    """One of the processes; what the chief has measured goes to ``said``."""
    os.environ["TF_CONFIG"] = json.dumps(
        {
            "cluster": {"worker": [f"127.0.0.1:{port}" for port in ports]},
            "task": {"type": "worker", "index": index},
        }
    )
    strategy = tt.distribute.MultiWorkerMirroredStrategy()
    keras.utils.set_random_seed(0)
    rounds = 1 if FLAGS.smoke else FLAGS.rounds
    with strategy.scope():
        model = stack(0.1 if FLAGS.smoke else FLAGS.weights)
    size = sum(w.numpy().size for w in named_weights(model).values())

    def draw() -> dict[str, np.ndarray]:
        return dict(tt.prune(model, 0.9, weights=False).masks)

    masks = draw()
    other = {key: np.roll(mask, index, axis=0) for key, mask in masks.items()}
    row = {
        "weights": size,
        "draw": seconds(draw, rounds),
        "compare": seconds(lambda: agreed(strategy, masks), rounds),
        "take the chief's": seconds(lambda: agreed(strategy, other), rounds),
    }
    if index == 0:
        said.put(row)


def main(argv: list[str]) -> None:
    del argv
    ports, said = free_ports(2), _PROCESSES.Queue()
    hosts = [
        _PROCESSES.Process(target=host, args=(i, ports, said)) for i in range(2)
    ]
    for one in hosts:
        one.start()
    for one in hosts:
        one.join()
    if any(one.exitcode for one in hosts):
        sys.exit("A host has failed.")
    row = said.get()
    size = row.pop("weights")
    print(f"{size / 1e6:.1f} million weights on two hosts")
    print("| | seconds | ns a weight | bytes a host sends |")
    print("|---|---:|---:|---:|")
    sent = {"draw": 0, "compare": 32, "take the chief's": size // 4 + 64}
    for name, value in row.items():
        print(
            f"| {name} | {value:.3f} | {value / size * 1e9:.2f} "
            f"| {sent[name]:,} |"
        )
    for name, value in script.describe_machine().items():
        print(f"{name}: {value}")
    if FLAGS.output is not None:
        with open(FLAGS.output, "w") as file:
            json.dump({"weights": size, **row}, file, indent=2)


if __name__ == "__main__":
    app.run(main)
