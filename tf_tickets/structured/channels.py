"""Which channels belong together, and which weights each of them indexes.

Every output channel of a layer is an atom. Each tensor carries the atoms along
its channel axis; an addition ties the atoms of its two sides, a concatenation
joins their lists, a flattening repeats them. Tied atoms can only go together:
they are one channel of the network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import keras
import numpy as np

from tf_tickets.network.graph import Call, Graph, Shape
from tf_tickets.selection import named_weights

Atoms = np.ndarray
# How many channels are left of each list -> a configuration key's new value.
Count = Callable[..., object]


@dataclasses.dataclass(frozen=True)
class Flow:
    """What is known of a tensor: the atoms along one of its axes.

    Attributes:
        atoms: Integer array as long as the axis, or `None` where no channel
            can be followed.
        axis: Position of the axis, batch axis counted.
        why: If no channel can be followed: the reason.
    """

    atoms: Atoms | None = None
    axis: int | None = None
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Read:
    """A kernel that reads channels and makes new ones of them.

    Attributes:
        call: The call in which it does.
        layer: Its layer.
        variable: Name of the kernel within the layer.
        axes: ``(input axis, output axis)`` of the kernel.
        read: Atoms along the input axis.
        made: Atoms along the output axis.
    """

    call: Call
    layer: keras.layers.Layer
    variable: str
    axes: tuple[int, int]
    read: Atoms
    made: Atoms


@dataclasses.dataclass
class LayerChannels:
    """How one layer depends on channels.

    Attributes:
        layer: The layer.
        slices: ``{variable name: {axis: atoms}}``.
        config: ``{config key: (kept counts -> new value, lists of atoms)}``.
        made: The atoms that the layer itself makes, or `None`.
    """

    layer: keras.layers.Layer
    slices: dict[str, dict[int, Atoms]] = dataclasses.field(
        default_factory=dict
    )
    config: dict[str, tuple[Count, tuple[Atoms, ...]]] = dataclasses.field(
        default_factory=dict
    )
    made: Atoms | None = None


class Channels:
    """The channels of a model: a union-find over atoms, filled by `rules`.

    Args:
        graph: As `tf_tickets.network.graph.trace` made it.

    Attributes:
        layers: How each layer that has channels depends on them.
        reads: The kernels, one entry for each call.
        flows: What each tensor carries, by its number.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.layers: dict[int, LayerChannels] = {}
        self.reads: list[Read] = []
        self.flows: dict[int, Flow] = {}
        self._parent: list[int] = []
        self._frozen: dict[int, str] = {}

    # --- what rules call -------------------------------------------------

    def shape(self, tensor: int) -> Shape:
        """The shape of a tensor."""
        return self.graph.shapes[tensor]

    def fresh(self, count: int) -> Atoms:
        """New atoms, tied to nothing."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def root(self, atom: int) -> int:
        """The atom that stands for all atoms tied to ``atom``."""
        parent = self._parent
        while parent[atom] != atom:
            parent[atom] = parent[parent[atom]]
            atom = parent[atom]
        return atom

    def tie(self, first: Atoms, second: Atoms) -> None:
        """Make ``first[i]`` and ``second[i]`` one channel, for each i."""
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            a, b = self.root(a), self.root(b)
            if a == b:
                continue
            # The smaller one stays, so that a root does not depend on order.
            a, b = min(a, b), max(a, b)
            self._parent[b] = a
            if b in self._frozen:
                self._frozen.setdefault(a, self._frozen.pop(b))

    def freeze(self, atoms: Atoms | None, reason: str) -> None:
        """Keep these channels, whatever is asked; the first reason stays."""
        if atoms is None:
            return
        for atom in np.unique(atoms).tolist():
            self._frozen.setdefault(self.root(atom), reason)

    def along(self, tensor: int, axis: int, reason: str) -> Atoms:
        """The atoms along ``axis``; frozen ones where they are not known.

        Args:
            tensor: Number of the tensor.
            axis: Position of the axis; it must have a static size.
            reason: Said of channels that run along another axis.
        """
        flow = self.flows[tensor]
        shape = self.shape(tensor)
        axis %= len(shape)
        if flow.atoms is not None and flow.axis == axis:
            return flow.atoms
        self.freeze(flow.atoms, reason)
        atoms = self.fresh(int(shape[axis] or 1))
        self.freeze(atoms, flow.why or reason)
        # The same tensor may be asked again, and must answer the same.
        if flow.atoms is None:
            self.flows[tensor] = Flow(atoms, axis)
        return atoms

    def of(self, layer: keras.layers.Layer) -> LayerChannels:
        """The entry of ``layer``."""
        return self.layers.setdefault(id(layer), LayerChannels(layer))

    def claim(
        self, layer: keras.layers.Layer, name: str, axis: int, atoms: Atoms
    ) -> None:
        """``atoms`` index the variable ``name`` along ``axis``.

        A layer that is called again has the same weights, so its channels are
        tied to those of its first call.
        """
        axes = self.of(layer).slices.setdefault(name, {})
        if axis in axes:
            self.tie(axes[axis], atoms)
        else:
            axes[axis] = atoms

    def configure(
        self, layer: keras.layers.Layer, key: str, count: Count, *atoms: Atoms
    ) -> tuple[Atoms, ...]:
        """The layer's configuration says how many of ``atoms`` there are.

        Returns:
            The lists of the layer's first call, to which these are tied.
        """
        _, first = self.of(layer).config.setdefault(key, (count, atoms))
        for known, other in zip(first, atoms, strict=True):
            self.tie(known, other)
        return first

    def make(self, layer: keras.layers.Layer, count: int) -> Atoms:
        """The channels that ``layer`` makes: the same ones at every call."""
        entry = self.of(layer)
        if entry.made is None:
            entry.made = self.fresh(count)
        return entry.made

    # --- what is asked afterwards ----------------------------------------

    def roots(self, atoms: Atoms) -> Atoms:
        """The root of each atom."""
        return np.array([self.root(a) for a in atoms.tolist()], np.int64)

    def frozen(self) -> dict[int, str]:
        """``{root: why it stays}``."""
        return dict(self._frozen)

    @property
    def size(self) -> int:
        """How many atoms there are."""
        return len(self._parent)

    def join_entries(self) -> None:
        """A nested model has one input shape, however often it is used."""
        uses: dict[int, list[Sequence[int]]] = {}
        for entry in self.graph.entries:
            uses.setdefault(id(entry.model), []).append(entry.inputs)
        for calls in uses.values():
            for tensors in zip(*calls, strict=True):
                self._tie_flows([self.flows[t] for t in tensors])

    def _tie_flows(self, flows: list[Flow]) -> None:
        lists = [flow.atoms for flow in flows]
        first = lists[0]
        for flow, atoms in zip(flows, lists, strict=True):
            if (
                first is None
                or atoms is None
                or flow.axis != flows[0].axis
                or atoms.size != first.size
            ):
                for each in lists:
                    self.freeze(each, "it enters a nested model used twice")
                return
            self.tie(first, atoms)


def owners(channels: Channels, model: keras.Model) -> dict[str, Atoms]:
    """``{weight's key: atoms}`` for every weight that can name channels.

    These are the scales of normalisation layers and the kernels (by their
    output channels); the keys are those of `tf_tickets.prunable_weights`.
    """
    keys = {id(v): key for key, v in named_weights(model).items()}
    found: dict[str, Atoms] = {}
    for entry in channels.layers.values():
        for variable in entry.layer.weights:
            axes = entry.slices.get(variable.name, {})
            if id(variable) not in keys:
                continue
            if variable.name in ("gamma", "scale"):
                found[keys[id(variable)]] = axes[0]
            elif len(variable.shape) > 1 and any(
                atoms is entry.made for atoms in axes.values()
            ):
                found[keys[id(variable)]] = np.asarray(entry.made)
    order = {key: i for i, key in enumerate(keys.values())}
    return dict(sorted(found.items(), key=lambda item: order[item[0]]))


def call_name(call: Call) -> str:
    """How reports name the operation of a call."""
    return f"{call.operation.name} ({type(call.operation).__name__})"
