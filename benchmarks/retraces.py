"""Traces and seconds of every round of `IterativeMagnitudePruning`.

All rounds run in one `fit`. Beside it stands a loop of the same rounds that
compiles the model for each, as a hand-written one would.

    python -m benchmarks.retraces
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from absl import app, flags

import tf_tickets as tt
from benchmarks import networks, timing

# Flags of a script that is imported, by a test, must not meet those of others.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()

timing.define_flags(FLAGS)
flags.DEFINE_integer("rounds", 8, "Of pruning.", 2, flag_values=FLAGS)
flags.DEFINE_integer(
    "epochs_per_round", 2, "Of training.", 1, flag_values=FLAGS
)
flags.DEFINE_integer("steps", 5, "In an epoch.", 1, flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 64, "Of images.", 1, flag_values=FLAGS)
flags.DEFINE_bool(
    "jit_compile", False, "Compile the step by XLA.", flag_values=FLAGS
)

FIRST, LATER = "first round", "later round"


class Traced(keras.Model):
    """A model that counts how often its training step is traced."""

    traces = 0

    def train_step(self, data: Any) -> Any:
        """Keras calls this once for every trace."""
        self.traces += 1
        return super().train_step(data)


class Ledger(keras.callbacks.Callback):
    """The traces of each round, noted when its last epoch ends."""

    def __init__(self, epochs_per_round: int) -> None:
        super().__init__()
        self.epochs_per_round = epochs_per_round
        self.traces: list[int] = []

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if (epoch + 1) % self.epochs_per_round == 0:
            self.traces.append(self.model.traces - sum(self.traces))


def main(argv: Sequence[str]) -> None:
    """Run the rounds in one `fit`, then with a `fit` for each."""
    del argv
    rounds = 3 if FLAGS.smoke else FLAGS.rounds
    traces, seconds = one_fit(rounds)
    compiled_traces, compiled_seconds = fit_per_round(rounds)
    rows = [
        row
        for case, spent in (
            ("one fit", seconds),
            ("compiled each round", compiled_seconds),
        )
        for row in rows_of(case, spent)
    ]
    timing.report(
        "retraces",
        rows,
        unit="s",
        per_unit=1,
        output=FLAGS.output,
        notes={
            "traces in each round, one fit": traces,
            "traces in each round, compiled each round": compiled_traces,
            "seconds of each round, one fit": np.round(seconds, 2).tolist(),
            "jit_compile": FLAGS.jit_compile,
        },
    )


def rows_of(case: str, seconds: Sequence[float]) -> list[timing.Row]:
    """The first round of a run, and its later rounds against it."""
    later = np.array(seconds[1:])
    first = np.full_like(later, seconds[0])
    times = {FIRST: first, LATER: later}
    return [
        timing.compare(times, name, FIRST, case=case) for name in (FIRST, LATER)
    ]


def one_fit(rounds: int) -> tuple[list[int], list[float]]:
    """Traces and seconds of each round under the callback."""
    model = compiled(fresh_model())
    imp = tt.callbacks.IterativeMagnitudePruning(
        target_sparsity=0.9,
        rounds=rounds,
        epochs_per_round=FLAGS.epochs_per_round,
    )
    ledger = Ledger(FLAGS.epochs_per_round)
    fit(model, imp.epochs, [imp, ledger])
    return ledger.traces, [row["seconds"] for row in imp.history]


def fit_per_round(rounds: int) -> tuple[list[int], list[float]]:
    """The same when every round compiles the model again."""
    model = fresh_model()
    traces: list[int] = []
    seconds: list[float] = []
    start = tt.Snapshot.take(compiled(model))
    density = 0.1 ** (1 / rounds)
    for done in range(1, rounds + 1):
        begun = time.perf_counter()
        fit(compiled(model), FLAGS.epochs_per_round, [])
        ticket = tt.prune(model, sparsity=1 - density**done)
        start.restore(model)
        ticket.apply(model, weights="keep")
        seconds.append(time.perf_counter() - begun)
        traces.append(model.traces - sum(traces))
    return traces, seconds


def fresh_model() -> Traced:
    """A ResNet-20, or in a smoke test a very small one."""
    sizes = {"size": 8, "width": 4, "blocks": 1} if FLAGS.smoke else {}
    network = networks.resnet(keras, **sizes)
    return Traced(network.inputs, network.outputs)


def compiled(model: Traced) -> Traced:
    """``model``, compiled anew."""
    return networks.compile_for_training(
        keras, model, jit_compile=FLAGS.jit_compile
    )


def fit(model: Traced, epochs: int, callbacks: list[Any]) -> None:
    """Train on noise."""
    model.fit(
        networks.random_batches(model.input_shape[1:], FLAGS.batch_size),
        epochs=epochs,
        steps_per_epoch=FLAGS.steps,
        callbacks=callbacks,
        verbose=0,
    )


if __name__ == "__main__":
    app.run(main)
