"""Channels that say nothing, removed without changing one output."""

from __future__ import annotations

import dataclasses
from typing import Literal, overload

import keras
import numpy as np

from tf_tickets.network.channels import Channels, follow
from tf_tickets.network.graph import trace
from tf_tickets.structured.decide import Decision, ShrinkReport, floor
from tf_tickets.structured.readers import Readers
from tf_tickets.structured.rebuild import without


@dataclasses.dataclass
class DeadChannels:
    """Which channels of a model are dead.

    Attributes:
        channels: Those of the model.
        readers: Its kernels.
        removed: By channel, whether it goes.
        candidates: Why constant channels may have to stay, by root.
        floored: Layers that keep a channel although all are dead.
    """

    channels: Channels
    readers: Readers
    removed: np.ndarray
    candidates: dict[int, str]
    floored: dict[int, str]

    def __bool__(self) -> bool:
        return bool(self.removed.any())

    def without(self, model: keras.Model) -> keras.Model:
        """The smaller model."""
        return without(
            self.channels,
            self.removed,
            model,
            biases=self.readers.biases(self.removed),
            keep_class=False,
        )

    def report(self, model: keras.Model, small: keras.Model) -> ShrinkReport:
        """What went and what stopped the rest."""
        every = self.channels.roots(np.arange(self.channels.size))
        reasons = {
            root: reason
            for root, reason in self.candidates.items()
            if not self.removed[root] and root not in self.floored
        }
        asked = {r for r in np.unique(every).tolist() if self.removed[r]}
        decision = Decision(
            self.removed, asked | set(reasons), reasons, self.floored
        )
        return decision.report(self.channels, model, small)


@overload
def remove_dead_channels(
    model: keras.Model, *, return_report: Literal[False] = ...
) -> keras.Model: ...


@overload
def remove_dead_channels(
    model: keras.Model, *, return_report: Literal[True]
) -> tuple[keras.Model, ShrinkReport]: ...


def remove_dead_channels(
    model: keras.Model, *, return_report: bool = False
) -> keras.Model | tuple[keras.Model, ShrinkReport]:
    """A smaller model with the same outputs, for very sparse tickets.

    Two kinds of channels go: those that nothing reads, because every weight
    that would is zero, and those that are the same everywhere whatever the
    input, because every weight that makes them is zero. Such a constant need
    not be zero: bias, normalization and activation move it. It is folded into
    the biases of the layers that read it, where that is exact: not where a
    convolution pads its input with zeros, since its border then differs. Such
    channels stay, and the report says so.

    Outputs are the same at inference, up to rounding. In training,
    normalization layers and dropout treat a constant channel differently from
    a bias.

    Args:
        model: A functional model or a built sequential one. It is not changed.
        return_report: Also return what went and what stopped the rest.

    Returns:
        The smaller model; with ``return_report`` a pair of it and the report.
        Where the model's class is not made of inputs and outputs, it is a
        plain functional model, with a warning: nothing is lost that computes
        outputs, but a training step of the class is.

    Raises:
        ValueError: If the model is subclassed or a layer cannot be copied.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu", name="hidden"),
    ...     keras.layers.Dense(2, name="head"),
    ... ])
    >>> hidden = model.get_layer("hidden")
    >>> _ = hidden.kernel.assign(hidden.kernel * ([0.0] * 5 + [1.0] * 3))
    >>> small = tt.structured.remove_dead_channels(model)
    >>> small.get_layer("hidden").units
    3
    """
    found = find_dead_channels(model)
    small = found.without(model)
    return (small, found.report(model, small)) if return_report else small


def find_dead_channels(model: keras.Model) -> DeadChannels:
    """What `remove_dead_channels` would remove, before it does.

    Raises:
        ValueError: If the model is subclassed.
    """
    channels = follow(trace(model))
    readers = Readers(channels)
    dead = np.ones(channels.size, bool)
    dead[channels.held()] = False
    reasons = readers.settle(dead)
    floored = floor(channels, dead, np.zeros(channels.size))
    if floored:  # what stays hears others
        reasons |= readers.settle(dead)
    candidates = {
        root: why for root, (why, is_constant) in reasons.items() if is_constant
    }
    removed = dead[channels.roots(np.arange(channels.size))]
    return DeadChannels(channels, readers, removed, candidates, floored)
