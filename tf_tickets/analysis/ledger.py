"""Floating-point operations of a whole run: search, retraining, dense."""

from __future__ import annotations

import dataclasses
import math

import keras

from tf_tickets.analysis.flops import FlopsReport, flops


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of training.

    Attributes:
        name: What it was for.
        epochs: Its epochs.
        samples: Samples in an epoch.
        flops: FLOPs of a training step per sample.
        bits: Bits per value; for the record, a FLOP counts as one at any
            width.
    """

    name: str
    epochs: int
    samples: int
    flops: int
    bits: int = 32

    @property
    def total(self) -> int:
        """FLOPs of the whole phase."""
        return self.epochs * self.samples * self.flops


class TrainingLedger:
    """FLOPs of a whole run, search and retraining, against dense training.

    Args:
        dense: The dense model, or its report.
        epochs: Epochs of training it in full.
        samples: Samples in an epoch.

    Example:

    >>> import tf_tickets as tt
    >>> def net(width):
    ...     return keras.Sequential([
    ...         keras.Input((8,)), keras.layers.Dense(width),
    ...         keras.layers.Dense(2)])
    >>> ledger = TrainingLedger(net(16), epochs=100, samples=1000)
    >>> ledger.add("search", net(16), epochs=10)
    >>> ledger.add("retrain", net(4), epochs=90)
    >>> round(ledger.saving, 2)
    3.08
    """

    def __init__(
        self, dense: keras.Model | FlopsReport, *, epochs: int, samples: int
    ) -> None:
        self.dense = Phase("dense", epochs, samples, _report(dense).training)
        self.phases: list[Phase] = []

    def add(
        self,
        name: str,
        model: keras.Model | FlopsReport,
        *,
        epochs: int,
        bits: int = 32,
    ) -> None:
        """Enter a phase.

        Args:
            name: What it is for.
            model: What is trained, or its report.
            epochs: For how long.
            bits: Bits per value.
        """
        self.phases.append(
            Phase(
                name, epochs, self.dense.samples, _report(model).training, bits
            )
        )

    @property
    def total(self) -> int:
        """FLOPs of all phases."""
        return sum(phase.total for phase in self.phases)

    @property
    def saving(self) -> float:
        """How many times more dense training takes."""
        return self.dense.total / self.total if self.total else math.inf

    def __str__(self) -> str:
        lines = [f"{'phase':<24}{'epochs':>8}{'bits':>6}{'FLOPs':>14}"]
        lines += [
            f"{p.name:<24}{p.epochs:>8}{p.bits:>6}{p.total:>14.4g}"
            for p in [*self.phases, self.dense]
        ]
        lines.append(
            f"{'in all':<38}{self.total:>14.4g}  {self.saving:.2f} times less"
        )
        return "\n".join(lines)


def _report(model: keras.Model | FlopsReport) -> FlopsReport:
    return model if isinstance(model, FlopsReport) else flops(model)
