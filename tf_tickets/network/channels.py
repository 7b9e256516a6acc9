"""Which channels belong together, and which weights each of them indexes.

Every output channel of a layer is an atom. Each tensor carries the atoms along
its channel axis; an addition ties the atoms of its two sides, a concatenation
joins their lists, a flattening repeats them. Tied atoms can only go together:
they are one channel of the network. What each layer does is said by its entry
in the table of kinds; a layer without a rule keeps all channels that reach it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np

from tf_tickets.network.graph import Call, Graph, Shape
from tf_tickets.network.kinds import kind_of
from tf_tickets.selection import named_weights

Atoms = np.ndarray
# How many channels are left of each list -> a configuration key's new value.
Count = Callable[..., object]


class Unfollowed(Exception):
    """A rule meets a use of its layer that it does not cover.

    The message goes on where a sentence that begins with the layer's name
    ends: ``Unfollowed("mixes its channels")``.
    """


@dataclasses.dataclass(frozen=True)
class Flow:
    """What is known of a tensor: the atoms along one of its axes.

    Attributes:
        atoms: Integer array as long as the axis, or `None` where no channel
            can be followed.
        axis: Position of the axis, batch axis counted; rules may count from
            the end, as in NumPy.
        why: If no channel can be followed: the reason. Atoms that are known
            all the same came with the question, and stay.
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
        read: Atoms along the input axis of the kernel.
        made: Atoms along its output axis.
        axis: Of the tensor that it reads: along which the channels run.
        uniform: Whether channels that are the same at every position make
            channels that are: no border is padded.
        before: What the layer does to each constant channel before the kernel
            reads it; `None`: nothing.
        axes: Input and output axis of the kernel. Default: as its kind says.
    """

    call: Call
    layer: keras.layers.Layer
    variable: str
    read: Atoms
    made: Atoms
    axis: int
    uniform: bool
    before: Callable[[np.ndarray], np.ndarray] | None = None
    axes: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Choice:
    """Channels that a layer takes from those that it reads.

    They are channels of their own, so that one may go which others still read;
    but what is taken must be there.

    Attributes:
        read: Atoms of all that it reads.
        indices: Which of these it takes.
        made: Atoms of what it makes of them, one for each index.
    """

    read: Atoms
    indices: np.ndarray
    made: Atoms

    @property
    def taken(self) -> Atoms:
        """Atoms of what is taken."""
        return self.read[self.indices]


@dataclasses.dataclass
class LayerChannels:
    """How one layer depends on channels.

    Attributes:
        layer: The layer.
        slices: ``{variable name: {axis: atoms}}``.
        config: ``{config key: (kept counts -> new value, lists of atoms)}``.
        made: The atoms that the layer itself makes, or `None`.
        choice: What it takes from what it reads, or `None`.
    """

    layer: keras.layers.Layer
    slices: dict[str, dict[int, Atoms]] = dataclasses.field(
        default_factory=dict
    )
    config: dict[str, tuple[Count, tuple[Atoms, ...]]] = dataclasses.field(
        default_factory=dict
    )
    made: Atoms | None = None
    choice: Choice | None = None


class Channels:
    """The channels of a model: a union-find over atoms, filled by `follow`.

    A rule says what one call does to them: it asks for the channels that
    enter (`entering`, `along`), ties, makes, claims and configures, and
    returns what leaves.

    Args:
        graph: As `tf_tickets.network.graph.trace` made it.
        values: ``{id(variable): value}`` to take in place of the values that
            variables have. Default: none.

    Attributes:
        layers: How each layer that has channels depends on them.
        reads: The kernels, one entry for each call.
        flows: What each tensor carries, by its number.
    """

    def __init__(
        self, graph: Graph, values: Mapping[int, np.ndarray] | None = None
    ) -> None:
        self.graph = graph
        self.values = values or {}
        self.layers: dict[int, LayerChannels] = {}
        self.reads: list[Read] = []
        self.flows: dict[int, Flow] = {}
        self._parent: list[int] = []
        self._frozen: dict[int, str] = {}
        self._held: list[tuple[Atoms, int | None, str]] = []

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

    def hold(self, atoms: Atoms | None, call: Call | None = None) -> None:
        """Never take these channels for dead: they are read all together.

        Masks may still remove those that are zero where they are read.

        Args:
            atoms: The channels; `None` for none.
            call: Which reads them; without it masks may remove them all.
        """
        if atoms is None:
            return
        where = None if call is None else call.inputs[0]
        name = "" if call is None else call_name(call)
        self._held.append(
            (
                atoms,
                where,
                f"{name} reads all of them together, and they are not zero",
            )
        )

    def entering(self, call: Call) -> Flow:
        """What is known of the one tensor that a call reads.

        Raises:
            Unfollowed: If the call reads several.
        """
        if len(call.inputs) != 1:
            raise Unfollowed("reads several tensors")
        return self.flows[call.inputs[0]]

    def along(self, call: Call, axis: int, index: int | None = None) -> Atoms:
        """The atoms along an axis of what a call reads; new ones stay for good.

        Args:
            call: The call.
            axis: Position of the axis; it must have a static size.
            index: Which of the tensors it reads. Default: the only one.

        Returns:
            The atoms. Where the tensor's channels run along another axis, or
            are not known, these are new ones that cannot go, nor can those.

        Raises:
            Unfollowed: If no tensor is chosen and the call reads several.
        """
        if index is None:
            self.entering(call)
        tensor = call.inputs[index or 0]
        flow = self.flows[tensor]
        shape = self.shape(tensor)
        axis %= len(shape)
        if flow.atoms is not None and flow.axis == axis:
            return flow.atoms
        reason = f"{call_name(call)} reads it along another axis"
        self.freeze(flow.atoms, reason)
        atoms = self.fresh(int(shape[axis] or 1))
        self.freeze(atoms, flow.why or reason)
        # The same tensor may be asked again, and must answer the same.
        if flow.atoms is None:
            self.flows[tensor] = Flow(atoms, axis, flow.why or reason)
        return atoms

    def of(self, layer: keras.layers.Layer) -> LayerChannels:
        """The entry of ``layer``."""
        return self.layers.setdefault(id(layer), LayerChannels(layer))

    def claim(
        self, layer: keras.layers.Layer, name: str, axis: int, atoms: Atoms
    ) -> None:
        """``atoms`` index the weight ``name`` along ``axis``, if it exists.

        A layer that is called again has the same weights, so its channels are
        tied to those of its first call.
        """
        shapes = [v.shape for v in layer.weights if v.name == name]
        if not shapes:
            return
        axis %= len(shapes[0])
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

        Raises:
            Unfollowed: If that had other numbers of them.
        """
        _, first = self.of(layer).config.setdefault(key, (count, atoms))
        for known, other in zip(first, atoms, strict=True):
            if known.size != other.size:
                why = f"{layer.name} is called on other numbers of channels"
                for each in first:
                    self.freeze(each, why)
                raise Unfollowed("is called on different numbers of channels")
            self.tie(known, other)
        return first

    def make(self, layer: keras.layers.Layer, count: int) -> Atoms:
        """The channels that ``layer`` makes: the same ones at every call."""
        entry = self.of(layer)
        if entry.made is None:
            entry.made = self.fresh(count)
        return entry.made

    def choose(
        self, layer: keras.layers.Layer, read: Atoms, indices: Sequence[int]
    ) -> Atoms:
        """``layer`` takes some of the channels that it reads.

        Args:
            layer: The layer, whose configuration says ``indices``.
            read: The atoms of all that it reads.
            indices: Which of these it takes.

        Returns:
            New atoms, the same ones at every call.

        Raises:
            Unfollowed: If it read another number of them in another call.
        """
        made = self.make(layer, len(indices))
        entry = self.of(layer)
        if entry.choice is None:
            entry.choice = Choice(read, np.asarray(indices, np.int64), made)
        elif entry.choice.read.size == read.size:
            self.tie(entry.choice.read, read)
        else:
            why = f"{layer.name} is called on other numbers of channels"
            self.freeze(entry.choice.read, why)
            raise Unfollowed("is called on different numbers of channels")
        return made

    # --- what is asked afterwards ----------------------------------------

    def roots(self, atoms: Atoms) -> Atoms:
        """The root of each atom."""
        return np.array([self.root(a) for a in atoms.tolist()], np.int64)

    def frozen(self) -> dict[int, str]:
        """``{root: why it stays}``."""
        return dict(self._frozen)

    def held(self) -> list[int]:
        """Roots that may not be taken for dead, those that stay included."""
        return [
            *self._frozen,
            *(root for atoms, *_ in self._held for root in self.roots(atoms)),
        ]

    def choices(self) -> list[tuple[str, Choice]]:
        """``[(name of the layer, what it takes)]``, in the order of calls."""
        return [
            (entry.layer.name, entry.choice)
            for entry in self.layers.values()
            if entry.choice is not None
        ]

    def keep_taken(self, going: np.ndarray) -> dict[int, str]:
        """Take back the channels that a layer takes for what stays.

        Args:
            going: One boolean per atom, read at the roots; changed in place.

        Returns:
            ``{root: why it stays}``.
        """
        reasons = {}
        for name, choice in reversed(self.choices()):
            taken = self.roots(choice.taken)[~going[self.roots(choice.made)]]
            for root in taken[going[taken]].tolist():
                reasons[root] = f"{name} takes them for what stays"
                going[root] = False
        return reasons

    def together(self) -> list[tuple[Atoms, int, str]]:
        """``[(channels, the tensor in which they are read, why it matters)]``
        of those that only zeros may leave."""
        return [
            (atoms, tensor, why)
            for atoms, tensor, why in self._held
            if tensor is not None
        ]

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
                self._tie_flows(
                    [self.flows[t] for t in tensors],
                    "it enters a nested model used twice",
                )

    def join_widths(self) -> None:
        """Some layers answer as wide as what they read, whatever is asked."""
        for block in self.graph.blocks:
            if not isinstance(block.layer, keras.layers.GroupQueryAttention):
                continue
            tensors = [
                tensor
                for name, tensor in zip(block.names, block.inputs, strict=True)
                if name in ("query", "value")
            ]
            self._tie_flows(
                [self.flows[t] for t in (*tensors, block.outputs[0])],
                f"{block.layer.name} answers as wide as it reads",
            )

    def _tie_flows(self, flows: list[Flow], why: str) -> None:
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
                    self.freeze(each, why)
                return
            self.tie(first, atoms)


def follow(
    graph: Graph, values: Mapping[int, np.ndarray] | None = None
) -> Channels:
    """Walk the graph once and collect its channels.

    Args:
        graph: As `tf_tickets.network.graph.trace` made it.
        values: ``{id(variable): value}`` to take in place of the values that
            variables have. Default: none.

    Returns:
        The channels; those of the model's inputs and outputs are frozen.

    Raises:
        ValueError: If a rule returns another number of channels than the
            tensor has.
    """
    channels = Channels(graph, values)
    for tensor in graph.inputs:
        channels.flows[tensor] = Flow(why="it meets an input of the model")
    for call in graph.calls:
        for tensor, flow in zip(
            call.outputs, _flows_after(channels, call), strict=True
        ):
            channels.flows[tensor] = _checked(channels, call, tensor, flow)
    for tensor in graph.outputs:
        channels.freeze(
            channels.flows[tensor].atoms, "it is an output of the model"
        )
    channels.join_entries()
    channels.join_widths()
    return channels


def _flows_after(channels: Channels, call: Call) -> Sequence[Flow]:
    rule = kind_of(call.operation).channels
    why = "has no rule to follow its channels"
    if rule is not None:
        try:
            made = rule(channels, call)
            return [made] if isinstance(made, Flow) else made
        except Unfollowed as reason:
            why = str(reason)
    why = f"{call_name(call)} {why}"
    for tensor in call.inputs:
        channels.freeze(channels.flows[tensor].atoms, why)
    return [Flow(why=why) for _ in call.outputs]


def _checked(channels: Channels, call: Call, tensor: int, flow: Flow) -> Flow:
    if flow.atoms is None or flow.axis is None:
        return flow
    shape = channels.shape(tensor)
    size = shape[flow.axis]
    if size is not None and size != flow.atoms.size:
        raise ValueError(
            "A rule must return as many channels as the axis has. Received: "
            f"{flow.atoms.size} channels for an axis of {size}, from the rule "
            f"of {call_name(call)}"
        )
    return dataclasses.replace(flow, axis=flow.axis % len(shape))


def owners(channels: Channels, model: keras.Model) -> dict[str, Atoms]:
    """``{weight's key: atoms}`` for every weight that can name channels.

    These are the scales of normalization layers and the kernels (by their
    output channels); the keys are those of `tf_tickets.prunable_weights`.
    """
    keys = {id(v): key for key, v in named_weights(model).items()}
    found: dict[str, Atoms] = {}
    for entry in channels.layers.values():
        for variable in getattr(entry.layer, "weights", ()):
            axes = entry.slices.get(variable.name, {})
            if id(variable) not in keys:
                continue
            if variable.name in ("gamma", "scale") and 0 in axes:
                found[keys[id(variable)]] = axes[0]
            elif (
                len(variable.shape) > 1
                and variable.name != "bias"
                and any(atoms is entry.made for atoms in axes.values())
            ):
                found[keys[id(variable)]] = np.asarray(entry.made)
    order = {key: i for i, key in enumerate(keys.values())}
    return dict(sorted(found.items(), key=lambda item: order[item[0]]))


def call_name(call: Call) -> str:
    """How reports name the operation of a call."""
    name = f"{call.operation.name} ({type(call.operation).__name__})"
    return f"{name} inside {call.within}" if call.within else name
