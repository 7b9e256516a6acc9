"""How many channels have to go for what a network should cost."""

from __future__ import annotations

import abc
import dataclasses
import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import checks
from tf_tickets.network.channels import Channels
from tf_tickets.network.kinds import kind_of
from tf_tickets.structured.decide import Decision, ShrinkReport
from tf_tickets.structured.draw import ChannelScores, Criterion, Drawing, cut
from tf_tickets.structured.ticket import ChannelTicket
from tf_tickets.timing import Latency, interleaved

Masks = Mapping[str, np.ndarray]
# (masks, roots that stay whatever these say) -> which atoms would go
Removed = Callable[[Masks, Collection[int]], np.ndarray]

# Halvings of the sparsity: one channel of sixteen thousand.
STEPS = 14
# A step of these builds a model and runs it.
TIMED_STEPS = 5


@dataclasses.dataclass(frozen=True)
class Target:
    """What the smaller network should cost.

    Attributes:
        flops: At most this fraction of the network's multiplications.
        latency: At most this fraction of its time.
        round_to: Channels stay in multiples of this.
    """

    flops: float | None = None
    latency: float | None = None
    round_to: int = 1

    @classmethod
    def of(
        cls,
        flops: float | None,
        latency: float | None,
        round_to: int | None,
    ) -> Target:
        """The options, checked."""
        if flops is not None:
            checks.number("flops", flops, "(0, 1)")
        if latency is not None:
            checks.number("latency", latency, "(0, 1)")
        if flops is not None and latency is not None:
            raise ValueError(
                "A network is shrunk to a fraction of its `flops` or of its "
                f"`latency`, not both. Received: flops={flops}, "
                f"latency={latency}"
            )
        whole = 1 if round_to is None else checks.whole("round_to", round_to)
        return cls(flops, latency, whole)

    def __bool__(self) -> bool:
        return self.flops is not None or self.latency is not None


class Shrinking(abc.ABC):
    """One model, shrunk by one ticket or another.

    Args:
        model: The model.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model

    @abc.abstractmethod
    def decide(self, ticket: Any) -> Decision:
        """What goes."""

    @abc.abstractmethod
    def build(self, decision: Decision) -> keras.Model:
        """The smaller model; right after its decision."""

    @abc.abstractmethod
    def macs(self, decision: Decision) -> tuple[int, int] | None:
        """Multiply-accumulates ``(before, after)``; `None`: not known."""

    @abc.abstractmethod
    def report(self, decision: Decision, small: keras.Model) -> ShrinkReport:
        """The account of a decision; right after it."""

    def reach(
        self, draw: Callable[[float], Any], target: Target
    ) -> tuple[float, Any]:
        """``(sparsity, ticket)`` that reach a target."""

        def operations(ticket: Any) -> float:
            counted = self.macs(self.decide(ticket))
            if counted is None or not counted[0]:
                raise ValueError(
                    "The model's operations are not known: its input leaves "
                    "sizes open, or it has no layer that is counted. "
                    f"Received: model={self.model.name!r}"
                )
            return counted[1] / counted[0]

        def seconds(ticket: Any) -> float:
            small = self.build(self.decide(ticket))
            before, after = latencies(self.model, small)
            return after.median / before.median

        if target.flops is not None:
            return search(draw, operations, target.flops, STEPS)
        return search(draw, seconds, target.latency or 0.0, TIMED_STEPS)


def ranking(
    model: keras.Model,
    ticket: ChannelTicket | None,
    criterion: Criterion,
    select: bool = False,
) -> Callable[[float], ChannelTicket]:
    """``sparsity -> ticket``, always by the same scores.

    Args:
        model: The model.
        ticket: One with scores, or `None` to score the model's channels,
            those that can only go together as one.
        criterion: Of the scores.
        select: Whether each normalization has its own say on what it reads.

    Raises:
        ValueError: If the ticket has no scores.
    """
    if ticket is None:
        scores = ChannelScores(model, criterion, coupled=True, select=select)

        def draw(sparsity: float) -> ChannelTicket:
            drawing, values = scores.draw(sparsity)
            return ChannelTicket(drawing.masks, scores=values)

        return draw
    known = ticket.scores
    if not known or known.keys() != ticket.masks.keys():
        raise ValueError(
            "To be cut to a target, a ticket needs the scores that its masks "
            "were drawn by, as those of `draw_channels` have: give no ticket, "
            "or one with scores. Received: a ticket without scores"
        )

    def redraw(sparsity: float) -> ChannelTicket:
        flat = np.concatenate([np.abs(known[key]) for key in ticket.masks])
        keep = max(round((1 - sparsity) * flat.size), 1)
        kept, undecided = cut(flat, np.ones(flat.size, np.int64), keep)
        ends = np.cumsum([known[key].size for key in ticket.masks])[:-1]
        drawing = Drawing(
            dict(zip(ticket.masks, np.split(kept, ends), strict=True)),
            dict(zip(ticket.masks, np.split(undecided, ends), strict=True)),
        )
        return ChannelTicket(
            drawing.masks, ticket.weights, ticket.metadata, scores=known
        )

    return redraw


def search(
    draw: Callable[[float], Any],
    cost: Callable[[Any], float],
    most: float,
    steps: int,
) -> tuple[float, Any]:
    """The fewest channels that have to go so that a cost is reached.

    Args:
        draw: ``sparsity -> ticket``.
        cost: Of a ticket, as a fraction of the model's.
        most: What it may be.
        steps: Halvings.

    Returns:
        ``(sparsity, ticket)``.

    Raises:
        ValueError: If no ticket costs so little.
    """
    low, high = 0.0, 1 - 2.0**-STEPS
    best = draw(high)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Every channel of these layers")
        least = cost(best)
        if least > most:
            raise ValueError(
                "No ticket makes the network so cheap: channels stay that "
                "something unknown reads, and every layer keeps one. "
                f"Received: a target of {most}, and {least:.3f} is the least"
            )
        for _ in range(steps):
            middle = (low + high) / 2
            ticket = draw(middle)
            if cost(ticket) <= most:
                high, best = middle, ticket
            else:
                low = middle
    return high, best


def macs(
    channels: Channels, removed: np.ndarray, dropped: Collection[int] = ()
) -> int | None:
    """Multiply-accumulates of one example without some channels.

    Args:
        channels: The channels of the model.
        removed: One boolean per atom.
        dropped: Ids of the layers that go whole.

    Returns:
        Those of the layers whose operations are known; `None` if the model
        leaves sizes open.
    """
    graph = channels.graph
    total = 0
    for call in graph.calls:
        rule = kind_of(call.operation).flops
        if (
            rule is None
            or not isinstance(call.operation, keras.layers.Layer)
            or id(call.operation) in dropped
        ):
            continue
        entry = channels.layers.get(id(call.operation))
        for kernel, sizes in rule(
            call.operation,
            graph.shapes[call.inputs[0]],
            graph.shapes[call.outputs[0]],
        ):
            if None in sizes:
                return None
            shape = list(kernel.shape)
            axes = entry.slices.get(kernel.name, {}) if entry else {}
            for axis, atoms in axes.items():
                shape[axis] = int((~removed[atoms]).sum())
            total += math.prod(shape) * math.prod(sizes)
    return total


def rounded(
    channels: Channels,
    masks: Masks,
    atoms_of: Mapping[str, np.ndarray],
    removed: Removed,
    strength: np.ndarray,
    multiple: int,
    lists: Sequence[np.ndarray] | None = None,
) -> tuple[dict[str, np.ndarray], set[int]]:
    """Masks that leave every layer a multiple of channels, or all.

    Channels come back, the best first; none goes that would have stayed.

    Args:
        channels: The channels of the model.
        masks: By key.
        atoms_of: ``{key: atoms}`` that they are about.
        removed: What would go.
        strength: By root, by which the best is found.
        multiple: Of which.
        lists: Atoms of which a multiple stays. Default: those that each layer
            makes.

    Returns:
        The masks, and the roots that came back: what others are taken from
        may be named by no mask.
    """
    found = {key: np.array(mask) for key, mask in masks.items()}
    spared: set[int] = set()
    if multiple == 1:
        return found, spared
    if lists is None:
        made = [entry.made for entry in channels.layers.values()]
        lists = [atoms for atoms in made if atoms is not None]
    while True:
        going = removed(found, spared)
        back: set[int] = set()
        for atoms in lists:
            roots = channels.roots(atoms)
            gone = going[atoms] & ~np.isin(roots, list(back))
            order = np.unique(roots[gone])
            order = order[np.argsort(-strength[order], kind="stable")]
            for root in order.tolist():
                if not (~gone).sum() % multiple:
                    break
                back.add(root)
                gone &= roots != root
        if not back:
            return found, spared
        spared |= back
        for key, mask in found.items():
            mask |= np.isin(channels.roots(atoms_of[key]), list(back))


def latencies(
    model: keras.Model, small: keras.Model, batch: int = 32
) -> tuple[Latency, Latency]:
    """How long both take to predict one batch, in turns.

    Raises:
        ValueError: If an input leaves a size open or holds no numbers.
    """
    inputs = []
    for x in model.inputs:
        shape = (batch, *x.shape[1:])
        if None in shape or x.dtype == "string":
            raise ValueError(
                "Time is measured on inputs of known sizes that hold numbers. "
                f"Received: an input of shape {tuple(x.shape)}, {x.dtype}"
            )
        numbers = np.random.default_rng(0).normal(size=shape)
        inputs.append(
            tf.cast(numbers if "float" in x.dtype else numbers * 0, x.dtype)
        )

    def caller(one: keras.Model) -> Callable[[], object]:
        packed = keras.tree.pack_sequence_as(one.input, inputs)
        run = tf.function(
            lambda: keras.tree.flatten(one(packed, training=False)),
            autograph=False,
        )
        return lambda: [np.asarray(y) for y in run()]

    sides = {"before": caller(model), "after": caller(small)}
    times = interleaved(sides, rounds=30, seconds=3.0)
    return Latency.of(times["before"]), Latency.of(times["after"])
