"""From masks to the channels that really go, and an account of it."""

from __future__ import annotations

import collections
import dataclasses
import warnings
from collections.abc import Callable, Collection, Mapping

import keras
import numpy as np

from tf_tickets.network.channels import Atoms, Channels
from tf_tickets.structured.branches import Empty, empty_branches
from tf_tickets.structured.readers import Readers


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
        dropped: Layers that went whole: all that they said was zero.
        held: Channels that stay although a mask prunes them, and are held at
            zero.
        macs: Multiply-accumulates of one example, ``(before, after)``; `None`
            if the model leaves sizes open.
        latency: Seconds that one batch takes, ``(before, after)``, where that
            was the target; else `None`.
        sparsity: Of the ticket that a target led to; else `None`.
    """

    asked: int
    removed: int
    layers: Mapping[str, tuple[int, int]]
    stops: tuple[Stop, ...]
    floored: tuple[str, ...]
    parameters: tuple[int, int]
    dropped: tuple[str, ...] = ()
    held: int = 0
    macs: tuple[int, int] | None = None
    latency: tuple[float, float] | None = None
    sparsity: float | None = None

    def __str__(self) -> str:
        before, after = self.parameters
        lines = [
            f"{self.removed} of {self.asked} channels removed, parameters "
            f"{before:,} -> {after:,}"
        ]
        if self.macs is not None:
            before, after = self.macs
            lines.append(
                f"  multiply-accumulates {before:,} -> {after:,}: "
                f"{after / max(before, 1):.3f}"
            )
        if self.latency is not None:
            old_time, new_time = self.latency
            lines.append(
                f"  {1e3 * old_time:.2f} -> {1e3 * new_time:.2f} ms: "
                f"{new_time / old_time:.3f}"
            )
        if self.sparsity is not None:
            lines.append(f"  by pruning {self.sparsity:.4f} of the channels")
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
        if self.dropped:
            lines.append(f"  went whole: {_some(self.dropped)}")
        if self.held:
            lines.append(
                f"  {self.held} of the channels kept are held at zero by masks"
            )
        return "\n".join(lines)


@dataclasses.dataclass
class Decision:
    """Which atoms go, and why others stay.

    Attributes:
        removed: One boolean per atom.
        asked: Roots that a mask prunes.
        stayed: ``{root: why it stays}``, besides those that are frozen.
        floored: ``{root: layer}`` kept so that the layer survives.
        empty: Branches that go whole.
        biases: ``{id(layer): bias}`` that take over what went.
        held: How many channels stay that are zero.
    """

    removed: np.ndarray
    asked: set[int]
    stayed: dict[int, str]
    floored: dict[int, str]
    empty: Empty = dataclasses.field(default_factory=Empty)
    biases: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    held: int = 0

    def report(
        self, channels: Channels, model: keras.Model, small: keras.Model
    ) -> ShrinkReport:
        """The account of this decision."""
        why = {**self.stayed, **channels.frozen()}
        reasons: dict[str, list[int]] = {}
        for root in sorted(self.asked & set(why)):
            reasons.setdefault(why[root], []).append(root)
        makers = _makers(channels)
        dropped = self.empty.dropped
        removed = len(self.asked - set(why) - set(self.floored))
        return ShrinkReport(
            asked=len(self.asked),
            removed=removed,
            layers={
                entry.layer.name: (
                    entry.made.size,
                    0
                    if key in dropped
                    else int((~self.removed[entry.made]).sum()),
                )
                for key, entry in channels.layers.items()
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
            dropped=tuple(
                dict.fromkeys(
                    call.operation.name
                    for call in channels.graph.calls
                    if id(call.operation) in dropped
                )
            ),
            held=self.held,
        )


# ``roots that masks may not zero -> {id(variable): value}``
Zeroed = Callable[[Collection[int]], Mapping[int, np.ndarray]]


def decide(
    channels: Channels,
    masks: Mapping[str, tuple[Atoms, np.ndarray]],
    scores: Mapping[str, np.ndarray],
    zeroed: Zeroed | None = None,
    *,
    whole: bool = True,
    spared: Collection[int] = (),
) -> Decision:
    """Remove a channel when every mask that names it prunes it.

    Channels stay that something unknown reads, or that say more than a bias
    can say in their place. Every layer that makes channels keeps one, the best
    by ``scores``, of equal ones the first, unless it is on a branch that goes
    whole.

    Args:
        channels: The channels of the model. Their values are those of the
            decision afterwards.
        masks: ``{key: (atoms, boolean mask)}``.
        scores: ``{key: one number per channel}``, as in a ticket.
        zeroed: What the weights are when the masks are applied; `None` where
            zeros are known to stay zeros until something reads them.
        whole: Whether branches may go whole.
        spared: Roots that stay whatever the masks say.
    """
    wanted = np.zeros(channels.size, bool)
    kept = np.zeros(channels.size, bool)
    kept[list(spared)] = True
    strength = np.zeros(channels.size)
    for key, (atoms, mask) in masks.items():
        roots = channels.roots(atoms)
        kept[roots[mask]] = True
        wanted[roots[~mask]] = True
        if key in scores:
            np.add.at(strength, roots, np.abs(scores[key]).astype(float))
    shared = _through_choices(channels, wanted, kept, strength)
    going = (wanted | shared) & ~kept
    # What only other channels are taken from is asked for if all of them go.
    shared &= going & ~wanted
    asked = set(np.flatnonzero(wanted | shared).tolist())
    going[list(channels.frozen())] = False
    stayed = dict.fromkeys(
        np.flatnonzero(wanted & kept).tolist(),
        "another layer that shares them keeps them",
    )
    if zeroed is None:
        floored = floor(channels, going, strength)
        stayed |= channels.keep_taken(going)
        removed = going[channels.roots(np.arange(channels.size))]
        return Decision(removed, asked, stayed, floored)
    channels.values = zeroed(())
    readers = Readers(channels)
    reasons = readers.settle(going)
    empty = empty_branches(channels.graph, readers.known) if whole else Empty()
    floored = floor(channels, going, strength, empty.dropped)
    if floored:
        # These say something again, and what hears them does.
        channels.values = zeroed(floored)
        readers = Readers(channels)
        reasons |= readers.settle(going)
    stayed |= {root: why for root, (why, _) in reasons.items()}
    removed = going[channels.roots(np.arange(channels.size))]
    biases = readers.biases(removed)
    gone = set(np.flatnonzero(going).tolist())
    held = (set(stayed) | asked & set(channels.frozen())) - gone
    held &= set(np.flatnonzero(wanted).tolist())
    return Decision(removed, asked, stayed, floored, empty, biases, len(held))


def _through_choices(
    channels: Channels,
    wanted: np.ndarray,
    kept: np.ndarray,
    strength: np.ndarray,
) -> np.ndarray:
    """What masks say of channels that layers take from others.

    Of a channel that no mask names they say what they say of the one that it
    is taken from. That one stays for each that stays, and may go when all go.

    Args:
        channels: The channels of the model.
        wanted: By root, whether a mask prunes it; changed in place, as the
            following ones.
        kept: By root, whether a mask keeps it.
        strength: By root.

    Returns:
        By root, whether what is taken from it may go.
    """
    shared = np.zeros(channels.size, bool)
    choices = [
        (channels.roots(choice.taken), channels.roots(choice.made))
        for _, choice in channels.choices()
    ]
    for taken, made in choices:
        unnamed = ~wanted[made] & ~kept[made]
        wanted[made[unnamed & wanted[taken]]] = True
        kept[made[unnamed & kept[taken]]] = True
    for taken, made in reversed(choices):
        going = (wanted | shared)[made] & ~kept[made]
        shared[taken[going]] = True
        kept[taken[~going]] = True
        np.maximum.at(strength, taken, strength[made])
    return shared


def floor(
    channels: Channels,
    going: np.ndarray,
    strength: np.ndarray,
    dropped: Collection[int] = (),
) -> dict[int, str]:
    """Take back one channel of every layer that would lose all.

    Args:
        channels: The channels of the model.
        going: One boolean per atom, read at the roots; changed in place.
        strength: By which the best is found.
        dropped: Ids of layers that go whole: built once more, not called.

    Returns:
        ``{root: layer}`` of the layers that do not go whole.
    """
    floored: dict[int, str] = {}
    for key, entry in channels.layers.items():
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
                if key not in dropped:
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
