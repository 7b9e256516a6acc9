"""Floating-point operations: of a model, layer by layer; of a whole run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import keras
import numpy as np

from tf_tickets import checks
from tf_tickets.network.graph import Call, Graph, InputShape, trace
from tf_tickets.network.kinds import kind_of
from tf_tickets.selection import named_weights, view_of

# A training step runs forward once, and backward twice as long: once for the
# weights, once for the inputs.
_TRAINING = 3


@dataclasses.dataclass(frozen=True)
class LayerFlops:
    """One layer's share, for one sample.

    Attributes:
        name: The layer.
        kind: Its class.
        macs: Multiply-accumulate operations of the dense layer.
        masked_macs: Those with a weight that is not zero.
        parameters: How many weights it has.
    """

    name: str
    kind: str
    macs: int
    masked_macs: int
    parameters: int


@dataclasses.dataclass(frozen=True)
class FlopsReport:
    """Operations of one forward pass of one sample, layer by layer.

    One multiply-accumulate is two floating-point operations (FLOPs). Many
    papers write "FLOPs" for multiply-accumulates: compare `macs` with those.
    Counted are convolutions and dense layers; activations, normalization,
    pooling and biases are not, as is customary.

    Attributes:
        layers: One row for each layer that has kernels.
        uncounted: Layers with kernels whose operations are not known.
    """

    layers: tuple[LayerFlops, ...]
    uncounted: tuple[str, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates, zeros included."""
        return sum(row.macs for row in self.layers)

    @property
    def masked_macs(self) -> int:
        """Multiply-accumulates with weights that are not zero.

        What hardware that skips zeros would do; dense kernels do not.
        """
        return sum(row.masked_macs for row in self.layers)

    @property
    def forward(self) -> int:
        """FLOPs of a forward pass: two for each multiply-accumulate."""
        return 2 * self.macs

    @property
    def training(self) -> int:
        """FLOPs of a training step per sample: three forward passes.

        The backward pass takes two, one for the gradients of the weights and
        one for those of the inputs.
        """
        return _TRAINING * self.forward

    def __str__(self) -> str:
        lines = [
            f"{'layer':<32}{'kind':<20}{'MACs':>14}{'masked':>14}"
            f"{'parameters':>12}"
        ]
        lines += [
            f"{row.name:<32}{row.kind:<20}{row.macs:>14,}"
            f"{row.masked_macs:>14,}{row.parameters:>12,}"
            for row in self.layers
        ]
        lines.append(
            f"{'total':<52}{self.macs:>14,}{self.masked_macs:>14,}"
            f"{sum(row.parameters for row in self.layers):>12,}"
        )
        if self.uncounted:
            lines.append(f"not counted: {', '.join(self.uncounted)}")
        return "\n".join(lines)


def flops(
    model: keras.Model,
    *,
    masks: Mapping[str, np.ndarray] | None = None,
    input_shape: InputShape | None = None,
) -> FlopsReport:
    """Count the operations of one forward pass of one sample.

    For the cost of a shrunk network, count the model that
    `tf_tickets.structured.shrink` returns.

    Args:
        model: A functional model or a built sequential one, nested or not. A
            layer that is called twice counts twice.
        masks: ``{path: mask}``, as in a ticket, for the masked count; `None`
            counts the weights that are not zero now.
        input_shape: Without the batch axis; for a model whose input leaves
            sizes open. With several inputs: the shape of each, in a list or
            by name.

    Returns:
        The report.

    Raises:
        ValueError: If the model is not built or is subclassed, sizes are
            open, or a mask does not fit.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 3)),
    ...     keras.layers.Conv2D(4, 3),
    ...     keras.layers.Flatten(),
    ...     keras.layers.Dense(10),
    ... ])
    >>> report = tt.analysis.flops(model)
    >>> report.macs == 6 * 6 * 4 * 3 * 3 * 3 + 6 * 6 * 4 * 10
    True
    >>> report.forward == 2 * report.macs
    True
    """
    checks.mapping("masks", masks)
    kept = _kept_weights(model, masks)  # raises if it is not built
    graph = trace(model, input_shape)
    rows: dict[int, LayerFlops] = {}
    uncounted: dict[str, None] = {}
    for call in graph.calls:
        layer = call.operation
        if not isinstance(layer, keras.layers.Layer) or not any(
            len(v.shape) > 1 for v in layer.weights
        ):
            continue
        uses = _uses(graph, call)
        if uses is None or any(id(v) not in kept for v, _ in uses):
            # Not known; or a kernel that is computed: unpacked, adapted.
            uncounted[f"{layer.name} ({type(layer).__name__})"] = None
            continue
        if not uses:
            continue
        before = rows.get(id(layer))
        rows[id(layer)] = LayerFlops(
            layer.name,
            type(layer).__name__,
            (before.macs if before else 0)
            + sum(math.prod(v.shape) * n for v, n in uses),
            (before.masked_macs if before else 0)
            + sum(kept[id(v)] * n for v, n in uses),
            layer.count_params(),
        )
    return FlopsReport(tuple(rows.values()), tuple(uncounted))


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

    Raises:
        ValueError: If a number is not a whole one.

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
        self.dense = Phase(
            "dense",
            checks.whole("epochs", epochs),
            checks.whole("samples", samples),
            _report(dense).training,
        )
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
            bits: Bits per value. Default: 32.

        Raises:
            ValueError: If a number is not a whole one.
        """
        self.phases.append(
            Phase(
                name,
                checks.whole("epochs", epochs, least=0),
                self.dense.samples,
                _report(model).training,
                checks.whole("bits", bits),
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


def _kept_weights(
    model: keras.Model, masks: Mapping[str, np.ndarray] | None
) -> dict[int, int]:
    named = named_weights(model)
    kept = {}
    for key, variable in named.items():
        if len(variable.shape) < 2:
            continue
        if masks is not None and key in masks:
            chosen = np.asarray(masks[key])
        else:
            chosen = view_of(variable)
        kept[id(variable)] = int(np.count_nonzero(chosen))
    misfits = [
        key
        for key, mask in (masks or {}).items()
        if key not in named or np.shape(mask) != tuple(named[key].shape)
    ]
    if misfits:
        raise ValueError(
            "A mask must have a weight's path and shape; apply a ticket of "
            f"another process first. Received: {misfits}"
        )
    return kept


def _uses(graph: Graph, call: Call) -> list[tuple[keras.Variable, int]] | None:
    """``(kernel, how often each of its weights is used)``, if known."""
    layer = call.operation
    rule = kind_of(layer).flops
    if rule is None:
        return None
    read, made = graph.shapes[call.inputs[0]], graph.shapes[call.outputs[0]]
    uses = []
    for variable, sizes in rule(layer, read, made):
        if None in sizes:
            raise ValueError(
                "The model leaves sizes open: give `input_shape`. Received: "
                f"{layer.name} with positions {tuple(sizes)}"
            )
        uses.append((variable, math.prod(sizes)))
    return uses


def _report(model: keras.Model | FlopsReport) -> FlopsReport:
    return model if isinstance(model, FlopsReport) else flops(model)
