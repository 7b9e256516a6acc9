"""From masks to the channels that really go, and an account of it."""

from __future__ import annotations

import collections
import dataclasses
import warnings
from collections.abc import Mapping

import keras
import numpy as np

from tf_tickets.network.channels import Atoms, Channels


@dataclasses.dataclass(frozen=True)
class Stop:
    """Channels that were to go and stay.

    Attributes:
        layers: The layers that make them.
        channels: How many.
        reason: Which layer stopped them, and why.
    """

    layers: tuple[str, ...]
    channels: int
    reason: str


@dataclasses.dataclass(frozen=True)
class ShrinkReport:
    """What became of the channels of a model.

    A channel counts once, however many layers share it.

    Attributes:
        asked: Channels that were to go.
        removed: Channels that went.
        layers: ``{layer: (channels before, channels after)}`` of every layer
            that makes channels.
        stops: The channels that stay, by reason.
        floored: Layers that would have lost all channels and kept one.
        parameters: ``(before, after)``.
    """

    asked: int
    removed: int
    layers: Mapping[str, tuple[int, int]]
    stops: tuple[Stop, ...]
    floored: tuple[str, ...]
    parameters: tuple[int, int]

    def __str__(self) -> str:
        before, after = self.parameters
        lines = [
            f"{self.removed} of {self.asked} channels removed, parameters "
            f"{before:,} -> {after:,}"
        ]
        lines += [
            f"  {name}: {old} -> {new}"
            for name, (old, new) in self.layers.items()
            if new != old
        ]
        lines += [
            f"  kept {stop.channels} channels of {_some(stop.layers)}: "
            f"{stop.reason}"
            for stop in self.stops
        ]
        if self.floored:
            lines.append(f"  kept one channel each in {_some(self.floored)}")
        return "\n".join(lines)


@dataclasses.dataclass
class Decision:
    """Which atoms go, and why others stay.

    Attributes:
        removed: One boolean per atom.
        asked: Roots that a mask prunes.
        stayed: ``{root: why it stays}``, besides those that are frozen.
        floored: ``{root: layer}`` kept so that the layer survives.
    """

    removed: np.ndarray
    asked: set[int]
    stayed: dict[int, str]
    floored: dict[int, str]

    def report(
        self, channels: Channels, model: keras.Model, small: keras.Model
    ) -> ShrinkReport:
        """The account of this decision."""
        why = {**self.stayed, **channels.frozen()}
        reasons: dict[str, list[int]] = {}
        for root in sorted(self.asked & set(why)):
            reasons.setdefault(why[root], []).append(root)
        makers = _makers(channels)
        return ShrinkReport(
            asked=len(self.asked),
            removed=sum(bool(self.removed[root]) for root in self.asked),
            layers={
                entry.layer.name: (
                    entry.made.size,
                    int((~self.removed[entry.made]).sum()),
                )
                for entry in channels.layers.values()
                if entry.made is not None
            },
            stops=tuple(
                Stop(
                    tuple({name: 0 for r in roots for name in makers[r]}),
                    len(roots),
                    reason,
                )
                for reason, roots in reasons.items()
            ),
            floored=tuple(dict.fromkeys(self.floored.values())),
            parameters=(model.count_params(), small.count_params()),
        )


def decide(
    channels: Channels,
    masks: Mapping[str, tuple[Atoms, np.ndarray]],
    scores: Mapping[str, np.ndarray] | None = None,
) -> Decision:
    """Remove a channel when every mask that names it prunes it.

    Channels that something unknown reads stay, and every layer that makes
    channels keeps one: the best by ``scores``, of equal ones the first.

    Args:
        channels: The channels of the model.
        masks: ``{key: (atoms, boolean mask)}``.
        scores: ``{key: one number per channel}``, as in a ticket.
    """
    wanted = np.zeros(channels.size, bool)
    kept = np.zeros(channels.size, bool)
    strength = np.zeros(channels.size)
    for key, (atoms, mask) in masks.items():
        roots = channels.roots(atoms)
        kept[roots[mask]] = True
        wanted[roots[~mask]] = True
        if scores is not None and key in scores:
            np.add.at(strength, roots, np.abs(scores[key]).astype(float))
    asked = set(np.flatnonzero(wanted).tolist())
    going = wanted & ~kept
    going[list(channels.frozen())] = False
    floored = floor(channels, going, strength)
    every = channels.roots(np.arange(channels.size))
    disputed = dict.fromkeys(
        np.flatnonzero(wanted & kept).tolist(),
        "another layer that shares them keeps them",
    )
    return Decision(going[every], asked, disputed, floored)


def floor(
    channels: Channels, going: np.ndarray, strength: np.ndarray
) -> dict[int, str]:
    """Take back one channel of every layer that would lose all."""
    floored: dict[int, str] = {}
    for entry in channels.layers.values():
        for atoms in [
            *([] if entry.made is None else [entry.made]),
            *(
                atoms
                for axes in entry.slices.values()
                for atoms in axes.values()
            ),
        ]:
            roots = channels.roots(atoms)
            if going[roots].all():
                best = int(roots[np.argmax(strength[roots])])
                going[best] = False
                floored[best] = entry.layer.name
    if floored:
        warnings.warn(
            "Every channel of these layers was to go; each keeps one: "
            f"{sorted(set(floored.values()))}.",
            stacklevel=4,
        )
    return floored


def _makers(channels: Channels) -> Mapping[int, list[str]]:
    makers = collections.defaultdict(list)
    for entry in channels.layers.values():
        if entry.made is not None:
            for root in set(channels.roots(entry.made).tolist()):
                makers[root].append(entry.layer.name)
    return makers


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")
