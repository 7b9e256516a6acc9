"""What the examples share: data and model by name, progress, tables, plots."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from absl import logging

import tf_tickets as tt
from tf_tickets.selection import named_weights
from tf_tickets.zoo import datasets, models, recipes


@dataclasses.dataclass
class Task:
    """A compiled model, its data, and how it is trained."""

    data: datasets.Dataset
    model: keras.Model
    recipe: recipes.Recipe

    def fit(self, epochs: int, callbacks: Sequence[Any]) -> dict[str, Any]:
        """Train on; returns the logs of the last epoch."""
        history = self.model.fit(
            self.data.train,
            validation_data=self.data.validation,
            epochs=epochs,
            shuffle=False,  # the data set shuffles itself
            verbose=0,
            callbacks=list(callbacks),
        ).history
        return {name: values[-1] for name, values in history.items()}

    def test_accuracy(self) -> float:
        """Accuracy on the test split, which no choice has looked at."""
        return self.model.evaluate(self.data.test, verbose=0, return_dict=True)[
            "accuracy"
        ]


def prepare(
    recipe: recipes.Recipe,
    *,
    data_dir: str | None,
    seed: int,
    **model_options: Any,
) -> Task:
    """Load the data and build and compile the model that a recipe names."""
    logging.set_verbosity(logging.ERROR)  # TensorFlow's remarks on saving
    keras.utils.set_random_seed(seed)
    data = datasets.load(
        recipe.dataset,
        batch_size=recipe.batch_size,
        data_dir=data_dir,
        seed=seed,
    )
    model = models.get(
        recipe.model,
        **{
            "input_shape": data.input_shape,
            "classes": data.classes,
            "weight_decay": recipe.weight_decay,
            **model_options,
        },
    )
    model.compile(
        recipe.optimizer(data.steps_per_epoch),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return Task(data, model, recipe)


def adjusted(recipe: Any, **changes: Any) -> Any:
    """The recipe with what is not None changed; milestones move with it."""
    changes = {name: value for name, value in changes.items() if value}
    epochs = changes.get("epochs", recipe.epochs)
    if epochs != recipe.epochs:
        changes["milestones"] = tuple(
            max(1, round(m * epochs / recipe.epochs)) for m in recipe.milestones
        )
    return dataclasses.replace(recipe, **changes)


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
