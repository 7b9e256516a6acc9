"""Gradual pruning of one network here and with tfmot, side by side.

The digits network of the zoo and its twin in tf_keras start from the same
weights, see the same batches, and are pruned by the same schedule: accuracy on
the test split, time of a training step against each side's dense step, and the
lines of code that each side takes. With `--output` the tables between the two
marks of that page are replaced.

    python -m benchmarks.against_tfmot --output=docs/migrating.md
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from absl import app

import tf_tickets as tt
from benchmarks import networks, script, timing
from benchmarks.masked_step import (
    DENSE,
    MASKED,
    TOOLKIT,
    TWIN,
    Toolkit,
)
from tf_tickets.zoo import datasets, models

FLAGS = script.define(
    __name__,
    smoke=(False, "One sparsity, one seed, two epochs."),
    output=(None, "Page whose tables to replace."),
    seeds=(3, "Runs of each."),
    epochs=(20, "Epochs of a run.", 2),
    sparsities=(["0.5", "0.8", "0.9", "0.95"], "To prune to."),
    rounds=(200, "Timed steps of each side."),
)

LEARNING_RATE = 2e-3


def twin(model: keras.Model) -> Any:
    """The digits network in tf_keras, with the weights of ``model``."""
    import tf_keras

    layers = tf_keras.layers
    stack = [layers.Input((8, 8, 1))]
    for index, filters in enumerate((32, 64), start=1):
        stack += [
            layers.Conv2D(
                filters, 3, padding="same", use_bias=False, name=f"conv{index}"
            ),
            layers.BatchNormalization(
                momentum=0.9, epsilon=1e-5, name=f"conv{index}_norm"
            ),
            layers.ReLU(),
            layers.MaxPooling2D(2, padding="same"),
        ]
    stack += [
        layers.Flatten(),
        layers.Dense(160, activation="relu", name="dense"),
        layers.Dense(10, name="classifier"),
    ]
    made = tf_keras.Sequential(stack)
    for theirs, ours in zip(made.weights, model.weights, strict=True):
        theirs.assign(ours.numpy())
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")
    if not np.allclose(made(x), model(x), atol=1e-5):
        raise ValueError("The twin computes something else.")
    return made


def train_here(
    model: keras.Model, data: Any, sparsity: float, epochs: int, scope: str
) -> keras.Model:
    """Gradual pruning with tf_tickets."""
    pruning = tt.callbacks.GradualPruning(
        target_sparsity=sparsity,
        end_step=data.steps_per_epoch * (epochs // 2),
        every=data.steps_per_epoch,
        scope=scope,
    )
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
        callbacks=[pruning],
    )
    return model


def train_with_tfmot(
    model: Any, data: Any, sparsity: float, epochs: int
) -> Any:
    """The same with the toolkit."""
    import tensorflow_model_optimization as tfmot
    import tf_keras

    schedule = tfmot.sparsity.keras.PolynomialDecay(
        initial_sparsity=0.0,
        final_sparsity=sparsity,
        begin_step=0,
        end_step=data.steps_per_epoch * (epochs // 2),
        frequency=data.steps_per_epoch,
    )
    wrapped = tfmot.sparsity.keras.prune_low_magnitude(model, schedule)
    wrapped.compile(
        tf_keras.optimizers.Adam(LEARNING_RATE),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    wrapped.fit(
        data.train,
        epochs=epochs,
        verbose=0,
        callbacks=[tfmot.sparsity.keras.UpdatePruningStep()],
    )
    stripped = tfmot.sparsity.keras.strip_pruning(wrapped)
    stripped.compile(
        loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return stripped


def accuracies(
    sparsities: Sequence[float], seeds: int, epochs: int
) -> dict[tuple[str, float], list[tuple[float, float]]]:
    """``{(side, sparsity): [(test accuracy, sparsity reached), ...]}``."""
    results: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for seed in range(seeds):
        for sparsity in sparsities:
            for side, train in SIDES.items():
                keras.utils.clear_session(free_memory=True)
                keras.utils.set_random_seed(seed)
                data = datasets.load("digits", seed=seed)
                model = models.digits_cnn()
                trained = train(model, data, sparsity, epochs)
                ticket = tt.Ticket.from_weights(trained.weights)
                _, accuracy = trained.evaluate(data.test, verbose=0)
                results.setdefault((side, sparsity), []).append(
                    (float(accuracy), ticket.sparsity)
                )
                print(
                    f"seed {seed}, {side}, {sparsity}: {accuracy:.4f}, "
                    f"sparsity {ticket.sparsity:.6f}",
                    flush=True,
                )
    return results


Train = Callable[[keras.Model, Any, float, int], Any]
SIDES: dict[str, Train] = {
    "tfmot": lambda model, *rest: train_with_tfmot(twin(model), *rest),
    'here, `scope="layer"`': lambda *args: train_here(*args, "layer"),
    'here, `scope="global"`': lambda *args: train_here(*args, "global"),
}


def step_times(rounds: int, sparsity: float = 0.9) -> list[timing.Row]:
    """Masked steps against each side's dense step, taking turns."""
    import tf_keras

    batches = networks.random_batches((8, 8, 1), 128)

    def compiled(module: Any, model: Any) -> Any:
        model.compile(
            module.optimizers.Adam(1e-6),
            module.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        return model

    model, masked = models.digits_cnn(), models.digits_cnn()
    tt.prune(masked, sparsity, scope="layer").apply(masked)
    toolkit = Toolkit(twin(model), sparsity)
    steps = {
        TWIN: networks.step_of(compiled(tf_keras, twin(model)), batches),
        TOOLKIT: networks.step_of(compiled(tf_keras, toolkit.model), batches),
        DENSE: networks.step_of(compiled(keras, model), batches),
        MASKED: networks.step_of(compiled(keras, masked), batches),
    }
    toolkit.begin()
    times = timing.interleaved(steps, rounds=rounds, warmup=5)
    return [
        timing.compare(times, name, baseline, case="digits_cnn, batch 128")
        for name, baseline in ((TOOLKIT, TWIN), (MASKED, DENSE))
    ]


def lines_of(function: Callable[..., Any]) -> int:
    """Lines of code of a function's body, without its docstring."""
    source = textwrap.dedent(inspect.getsource(function))
    (tree,) = ast.parse(source).body
    if not isinstance(tree, ast.FunctionDef):
        raise TypeError(f"Not a function: {function!r}")
    lines = {
        line
        for node in tree.body[1:]
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    return len(lines)


def main(argv: Sequence[str]) -> None:
    """Train, time, count."""
    del argv
    script.need("tf_keras", "tfmot")
    sparsities = [float(text) for text in FLAGS.sparsities]
    sparsities = sparsities[-2:][:1] if FLAGS.smoke else sparsities
    seeds = 1 if FLAGS.smoke else FLAGS.seeds
    epochs = 2 if FLAGS.smoke else FLAGS.epochs
    found = accuracies(sparsities, seeds, epochs)
    lines = [
        f"Test accuracy on the digits, mean of {seeds} seeds (lowest to "
        f"highest), {epochs} epochs, same start weights, batches and schedule:",
        "",
        f"| | {' | '.join(f'{s:.0%}' for s in sparsities)} |",
        "|---|" + "---:|" * len(sparsities),
    ]
    for side in SIDES:
        cells = []
        for sparsity in sparsities:
            values = [100 * accuracy for accuracy, _ in found[side, sparsity]]
            cells.append(
                f"{np.mean(values):.1f} ({min(values):.1f}–{max(values):.1f})"
            )
        lines.append(f"| {side} | {' | '.join(cells)} |")
    lines += ["", "Kept weights more than asked for, at worst:", ""]
    for side in SIDES:
        size = sum(v.size for v in _kernels())
        surplus = max(
            abs(reached - sparsity) * size
            for (name, sparsity), runs in found.items()
            for _, reached in runs
            if name == side
        )
        lines.append(f"- {side}: {surplus:.0f} of {size:,}")
    rows = step_times(3 if FLAGS.smoke else FLAGS.rounds)
    lines += ["", "Time of a training step under the masks:", ""]
    lines += [timing.table(rows, unit="ms", per_unit=1e-3), ""]
    lines.append(
        f"Lines of code for the same run: {lines_of(train_with_tfmot)} with "
        f"tfmot, {lines_of(train_here)} here."
    )
    text = "\n".join(lines) + "\n"
    print(text)
    if FLAGS.output is not None:
        script.replace_tables(FLAGS.output, text)


def _kernels() -> list[np.ndarray]:
    weights = tt.prunable_weights(models.digits_cnn())
    return [v.numpy() for v in weights.values()]


if __name__ == "__main__":
    app.run(main)
