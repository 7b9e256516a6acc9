"""Zeros that move against zeros that stay, and what an update costs.

The digits network is pruned to one sparsity in every layer: step by step by
`GradualPruning`, with and without regrowth, or sparse from its first step by
`DynamicSparseTraining`. Then one RigL update of a large layer is timed against
one exact selection from as many weights. With `--output` the tables between
the two marks of that page are replaced.

    python -m benchmarks.dynamic_sparse --output=docs/dynamic.md
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import keras
import numpy as np
from absl import app

import tf_tickets as tt
from benchmarks import script
from tf_tickets.zoo import datasets, models

FLAGS = script.define(
    __name__,
    smoke=(False, "One seed, two epochs, a small layer."),
    output=(None, "Page whose tables to replace."),
    seeds=(5, "Runs of each."),
    epochs=(20, "Epochs of a run.", 2),
    size=(5000, "Inputs and outputs of the layer that is timed."),
    repeats=(5, "Timed updates and selections."),
)

SPARSITY = 0.95
LEARNING_RATE = 2e-3

Make = Callable[[int, int], keras.callbacks.Callback]


def gradual(regrow: bool) -> Make:
    """Half of the training climbs, one drawing an epoch."""
    return lambda steps, epochs: tt.callbacks.GradualPruning(
        target_sparsity=SPARSITY,
        end_step=steps * (epochs // 2),
        every=steps,
        scope="layer",
        regrow=regrow,
    )


def dynamic(method: str, scope: str) -> Make:
    """Sparse from the first step, an update about once an epoch."""
    return lambda steps, epochs: tt.callbacks.DynamicSparseTraining(
        method, sparsity=SPARSITY, every=steps, scope=scope
    )


SIDES: dict[str, Make] = {
    '`GradualPruning(scope="layer")`': gradual(False),
    '`GradualPruning(scope="layer", regrow=True)`': gradual(True),
    '`DynamicSparseTraining("set", scope="layer")`': dynamic("set", "layer"),
    '`DynamicSparseTraining("rigl", scope="layer")`': dynamic("rigl", "layer"),
    '`DynamicSparseTraining("rigl")`': dynamic("rigl", "erk"),
}


def sides() -> dict[str, Make]:
    """All, or to show that it runs two."""
    names = list(SIDES)
    chosen = (names[1], names[-1]) if FLAGS.smoke else names
    return {name: SIDES[name] for name in chosen}


def accuracies(seeds: int, epochs: int) -> dict[str, list[float]]:
    """``{side: [test accuracy, ...]}``."""
    found: dict[str, list[float]] = {side: [] for side in sides()}
    for seed in range(seeds):
        for side, make in sides().items():
            keras.utils.clear_session(free_memory=True)
            keras.utils.set_random_seed(seed)
            data = datasets.load("digits", seed=seed)
            model = models.digits_cnn()
            model.compile(
                keras.optimizers.Adam(LEARNING_RATE),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                metrics=["accuracy"],
            )
            model.fit(
                data.train,
                epochs=epochs,
                verbose=0,
                shuffle=False,
                callbacks=[make(data.steps_per_epoch, epochs)],
            )
            _, accuracy = model.evaluate(data.test, verbose=0)
            sparsity = tt.Ticket.from_model(model).sparsity
            found[side].append(float(accuracy))
            print(f"seed {seed}, {side}: {accuracy:.4f}, {sparsity:.6f}")
    return found


def update_times(size: int, repeats: int) -> tuple[float, float]:
    """Processor seconds of an update and a selection of ``size``² weights."""
    model = keras.Sequential(
        [keras.Input((size,)), keras.layers.Dense(size, use_bias=False)]
    )
    model.compile("adam", "mse")
    seconds: list[float] = []

    class Timed(tt.callbacks.DynamicSparseTraining):
        def on_train_batch_end(
            self, batch: int, logs: dict[str, float] | None = None
        ) -> None:
            start = time.process_time()
            super().on_train_batch_end(batch, logs)
            seconds.append(time.process_time() - start)

    x = np.random.default_rng(0).normal(size=(8, size)).astype("float32")
    model.fit(
        np.concatenate([x] * (repeats + 2)),
        np.concatenate([x] * (repeats + 2)),
        batch_size=8,
        verbose=0,
        callbacks=[Timed(sparsity=0.9, every=1, until=1.0)],
    )
    scores = np.abs(model.get_weights()[0]).ravel()
    selections = []
    for _ in range(repeats):
        start = time.process_time()
        tt.pruning.keep_largest(scores, scores.size // 10)
        selections.append(time.process_time() - start)
    # The first warms up, the last step has no update; others may want the
    # machine, too.
    return min(seconds[1:-1]), min(selections)


def main(argv: Sequence[str]) -> None:
    """Train, time, tell."""
    del argv
    seeds = 1 if FLAGS.smoke else FLAGS.seeds
    epochs = 2 if FLAGS.smoke else FLAGS.epochs
    lines = [
        f"Test accuracy on the digits at {SPARSITY:.0%}, mean of {seeds} seeds "
        f"(lowest to highest), {epochs} epochs:",
        "",
        "| | accuracy |",
        "|---|---:|",
    ]
    for side, values in accuracies(seeds, epochs).items():
        low, high = 100 * min(values), 100 * max(values)
        mean = 100 * np.mean(values)
        lines.append(f"| {side} | {mean:.1f} ({low:.1f}–{high:.1f}) |")
    size = 64 if FLAGS.smoke else FLAGS.size
    update, selection = update_times(size, 3 if FLAGS.smoke else FLAGS.repeats)
    lines += [
        "",
        f"One RigL update of {size**2:,} weights takes {update:.3g} s of the "
        f"processor, {update / selection:.1f} times the {selection:.3g} s of "
        "one exact selection from as many.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if FLAGS.output is not None:
        script.replace_tables(FLAGS.output, text)


if __name__ == "__main__":
    app.run(main)
