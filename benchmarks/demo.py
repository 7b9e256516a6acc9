"""The demo of the README with several seeds, and its picture.

    python -m benchmarks.demo --picture=docs/pictures/demo.png

Runs `examples/imp_cifar.py` as it is, once for each seed, and shows what came
out: test accuracies at the last density in a table, validation accuracies of
all rounds as a curve, each the mean of the seeds with their standard deviation.
Runs that are there already are not run again.
"""

from __future__ import annotations

import collections
import csv
import os
import pathlib
import subprocess
import sys

import numpy as np
from absl import app

from benchmarks import script
from tf_tickets.figures import over_sparsity

FLAGS = script.define(
    __name__,
    seeds=(5, "How many."),
    directory=("runs/demo_seeds", "Where the runs are kept."),
    picture=(None, "An image file for the curve."),
)

ROOT = pathlib.Path(__file__).parents[1]
KINDS = {
    "dense": "dense network",
    "ticket": "winning ticket",
    "re-initialized": "same mask, re-initialized weights",
    "random mask": "random mask, same densities",
}


def results(seed: int) -> list[dict[str, str]]:
    """The rows of one seed's run, which is made if it is not there."""
    output = pathlib.Path(FLAGS.directory).absolute() / f"seed_{seed}"
    table = output / "results.csv"
    if not table.exists():
        flags = ["--rounds=2", "--epochs=1"] if FLAGS.smoke else []
        subprocess.run(
            [
                sys.executable,
                str(ROOT / "examples" / "imp_cifar.py"),
                f"--seed={seed}",
                f"--output_dir={output}",
                *flags,
            ],
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )
    with table.open() as file:
        return list(csv.DictReader(file))


def main(argv: list[str]) -> None:
    del argv
    count = 2 if FLAGS.smoke else FLAGS.seeds
    curves: dict[str, dict[float, list[float]]] = {
        name: collections.defaultdict(list) for name in KINDS.values()
    }
    tested: dict[str, list[float]] = collections.defaultdict(list)
    for seed in range(count):
        rows = results(seed)
        last = min(float(row["density"]) for row in rows)
        for row in rows:
            name, density = KINDS[row["kind"]], float(row["density"])
            if row["test_accuracy"] and density in (1.0, last):
                tested[name].append(float(row["test_accuracy"]))
            values = curves[name][density]
            if len(values) <= seed:  # the dense one is trained twice
                values.append(float(row["val_accuracy"]))
    print(f"density {last:.4f}, {count} seeds: test accuracy")
    for name in KINDS.values():
        values = 100 * np.array(tested[name])
        print(
            f"| {name} | {values.mean():.1f} ± {values.std(ddof=1):.1f} % | "
            f"{', '.join(f'{value:.1f}' for value in values)}"
        )
    dense = curves.pop(KINDS["dense"])
    if FLAGS.picture:
        over_sparsity(
            {name: dict(points) for name, points in curves.items()},
            "validation accuracy",
            FLAGS.picture,
            dense=dense[1.0],
        )


if __name__ == "__main__":
    app.run(main)
