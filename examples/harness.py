"""What the examples share: flags, progress, tables, plots."""

from __future__ import annotations

import csv
import gzip
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from absl import app, flags, logging

import tf_tickets as tt
from tf_tickets.selection import named_weights
from tf_tickets.zoo import datasets, models

FLAGS = flags.FLAGS


def define_flags(name: str) -> None:
    """The flags of examples that take any data set and network."""
    flags.DEFINE_enum("dataset", "digits", list(datasets.names()), "Data set.")
    flags.DEFINE_enum(
        "model", None, list(models.names()), "Network; default: the recipe's."
    )
    flags.DEFINE_string("data_dir", None, "Where the data set is prepared.")
    flags.DEFINE_string("output_dir", None, f"Default: runs/{name}_<dataset>.")


def run(main: Callable[[Path], None], name: str) -> None:
    """Run an example that `define_flags` was called for.

    Args:
        main: Gets the output directory, which is there.
        name: Of that directory, where no flag names another: that of
            `define_flags`.
    """

    def whole(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"Unknown arguments: {argv[1:]}")
        logging.set_verbosity(logging.ERROR)  # TensorFlow's remarks on saving
        started = time.monotonic()
        output = Path(FLAGS.output_dir or f"runs/{name}_{FLAGS.dataset}")
        output.mkdir(parents=True, exist_ok=True)
        main(output)
        print(f"\nDone in {time.monotonic() - started:.0f} s; see {output}.")

    app.run(whole)


def found_or_near(
    lookup: Callable[[str, str], Any], model: str, near: tuple[str, str]
) -> Any:
    """The recipe for a network and the data set, or what the nearest has."""
    try:
        return lookup(model, FLAGS.dataset)
    except ValueError:
        return lookup(*near).adjusted(model=model, dataset=FLAGS.dataset)


def everything(model: keras.Model, start: tt.Snapshot) -> tt.Ticket:
    """The dense network as a ticket: every weight, as it was at a start."""
    masks = {
        path: np.ones(variable.shape, bool)
        for path, variable in tt.prunable_weights(model).items()
    }
    return tt.Ticket(masks, start.weights_of(model))


class Progress(keras.callbacks.Callback):
    """One line that moves on a terminal; elsewhere a line every few seconds.

    Args:
        label: What is being trained, or a callable that says it.
    """

    def __init__(self, label: Any, seconds: float = 5.0) -> None:
        super().__init__()
        self.label = label
        self.seconds = seconds
        self._last = 0.0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._last = time.monotonic()

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        label = self.label() if callable(self.label) else self.label
        numbers = "  ".join(
            f"{name} {value:.4f}"
            for name, value in (logs or {}).items()
            if name in ("loss", "accuracy", "val_accuracy", "sparsity")
        )
        text = (
            f"  {label}, epoch {epoch + 1}/{self.params['epochs']}  {numbers}"
        )
        last = epoch + 1 == self.params["epochs"]
        if sys.stdout.isatty():
            end = "\n" if last else "\r"
            print(f"{text:<100}", end=end, flush=True)
        elif last or time.monotonic() - self._last > self.seconds:
            self._last = time.monotonic()
            print(text, flush=True)


def gzipped_bytes(model: keras.Model) -> tuple[int, int]:
    """``(bytes, bytes after gzip)`` of all weights of ``model``."""
    raw = b"".join(v.numpy().tobytes() for v in named_weights(model).values())
    return len(raw), len(gzip.compress(raw, compresslevel=6))


def print_densities(model: keras.Model) -> None:
    """A row for each prunable weight, and the total of everything."""
    rows = [
        (path, int(np.count_nonzero(v.numpy())), v.numpy().size)
        for path, v in tt.prunable_weights(model).items()
    ]
    kept, size = (sum(row[i] for row in rows) for i in (1, 2))
    rows.append(("all prunable weights", kept, size))
    every = [v.numpy() for v in named_weights(model).values()]
    rows.append(
        (
            "all parameters (biases, normalization too)",
            sum(int(np.count_nonzero(v)) for v in every),
            sum(v.size for v in every),
        )
    )
    print(f"  {'weights':<44}{'kept':>10}{'of':>12}{'density':>10}")
    for name, nonzero, total in rows:
        print(f"  {name:<44}{nonzero:>10,}{total:>12,}{nonzero / total:>10.4f}")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of one kind or several; a missing value stays empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def figure(columns: int = 1, *, width: float = 7.0) -> tuple[Any, list[Any]]:
    """A figure without a window, and its axes in a row."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, 4.2), layout="constrained")
    return made, list(made.subplots(1, columns, sharey=True, squeeze=False)[0])
