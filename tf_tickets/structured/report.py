"""What shrinking did, layer by layer, and what stopped it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


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


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")
