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
from absl import app

import tf_tickets as tt
from benchmarks import networks, script, timing

FLAGS = script.define(
    __name__,
    rounds=(8, "Of pruning.", 2),
    epochs_per_round=(2, "Of training."),
    steps=(5, "In an epoch."),
    batch_size=(64, "Of images."),
    jit_compile=(False, "Compile the step by XLA."),
)

SPARSITY = 0.9  # of the last ticket
FIRST, LATER = "first round", "later round"


class Traced(keras.Model):
    """A model that counts how often its training step is traced."""

    traces = 0

    def train_step(self, data: Any) -> Any:
        """Keras calls this once for every trace."""
        self.traces += 1
        return super().train_step(data)


class Ledger(keras.callbacks.Callback):
    """Traces and times of each round, noted when it ends.

    As a callback it ends a round after every ``epochs_per_round`` epochs; it
    must stand behind the one that prunes, whose work belongs to the round.
    """

    def __init__(self, epochs_per_round: int = 0) -> None:
        super().__init__()
        self.epochs_per_round = epochs_per_round
        self.traces: list[int] = []
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.start()

    def start(self) -> None:
        """A round begins now."""
        self._start = time.perf_counter(), time.process_time()

    def end(self, model: Traced) -> None:
        """A round ends now, and the next begins."""
        self.wall.append(time.perf_counter() - self._start[0])
        self.cpu.append(time.process_time() - self._start[1])
        self.traces.append(model.traces - sum(self.traces))
        self.start()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.start()

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if (epoch + 1) % self.epochs_per_round == 0:
            self.end(self.model)


def main(argv: Sequence[str]) -> None:
    """Run the rounds in one `fit`, then with a `fit` for each."""
    del argv
    rounds = 2 if FLAGS.smoke else FLAGS.rounds
    ledgers = {
        "one fit": one_fit(rounds),
        "compiled each round": fit_per_round(rounds),
    }
    notes: dict[str, Any] = {"jit_compile": FLAGS.jit_compile}
    for case, ledger in ledgers.items():
        notes[f"traces in each round, {case}"] = ledger.traces
        notes[f"seconds of each round, {case}"] = np.round(
            ledger.wall, 2
        ).tolist()
    script.report(
        "retraces",
        [row for case in ledgers for row in rows_of(case, ledgers[case])],
        unit="s",
        per_unit=1,
        output=FLAGS.output,
        notes=notes,
    )


def rows_of(case: str, ledger: Ledger) -> list[timing.Row]:
    """The first round of a run, and its later rounds against it."""
    wall, cpu = np.array(ledger.wall), np.array(ledger.cpu)
    later = timing.Times(wall[1:], cpu[1:])
    first = timing.Times(
        np.full_like(later.wall, wall[0]), np.full_like(later.cpu, cpu[0])
    )
    times = {FIRST: first, LATER: later}
    return [timing.compare(times, name, FIRST, case=case) for name in times]


def one_fit(rounds: int) -> Ledger:
    """All rounds under the callback."""
    model = compiled(fresh_model())
    imp = tt.callbacks.IterativeMagnitudePruning(
        target_sparsity=SPARSITY,
        rounds=rounds,
        epochs_per_round=FLAGS.epochs_per_round,
    )
    ledger = Ledger(FLAGS.epochs_per_round)
    fit(model, imp.epochs, [imp, ledger])
    return ledger


def fit_per_round(rounds: int) -> Ledger:
    """The same rounds, each with a freshly compiled model."""
    model = fresh_model()
    start = tt.Snapshot.take(compiled(model))
    ledger = Ledger()
    for done in range(1, rounds + 1):
        fit(compiled(model), FLAGS.epochs_per_round, [])
        ticket = tt.prune(model, sparsity=1 - (1 - SPARSITY) ** (done / rounds))
        start.restore(model)
        ticket.apply(model, weights="keep")
        ledger.end(model)
    return ledger


def fresh_model() -> Traced:
    """A ResNet-20, or in a smoke test a very small one."""
    network = networks.build("resnet20", smoke=FLAGS.smoke)
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
