"""Heads, widths and blocks: all weights that can only go together, as one.

A head is its part of queries, keys and values and the rows of the output that
read it; a width of a feed-forward block a column of every layer that makes it
and a row of every layer that reads it. Where all weights of a group are zero,
whatever the activation, the model computes what it does without the group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np

from tf_tickets import checks
from tf_tickets.loss.objective import Loss, Objective, computing_in, mean_over
from tf_tickets.masks import Arrays
from tf_tickets.network.attention import made_axis
from tf_tickets.network.channels import (
    Atoms,
    Channels,
    LayerChannels,
    follow,
)
from tf_tickets.network.graph import Block, Call, Graph
from tf_tickets.network.inside import look_inside
from tf_tickets.network.kinds import kind_of
from tf_tickets.selection import layers_of, named_weights, values_of
from tf_tickets.structured.ticket import ChannelTicket

GROUPS = ("heads", "widths", "channels", "embeddings", "blocks")
SCOPES = ("layer", "global")


@dataclasses.dataclass(frozen=True)
class Family:
    """Groups that one layer makes, or one block.

    Attributes:
        key: The path of the kernel that makes them, or of the block.
        kind: One of `GROUPS`.
        atoms: What each group is in `tf_tickets.network.channels`; none of a
            block.
        stays: By group, whether it cannot go.
        block: The block that can go whole, or `None`.
        ends: Of a block: the layers that must be silent for it to do nothing.
    """

    key: str
    kind: str
    atoms: Atoms
    stays: np.ndarray
    block: Block | None = None
    ends: tuple[keras.layers.Layer, ...] = ()


class WeightGroups:
    """The groups of a model: which weights belong to each.

    A criterion of your own is called with it.

    Args:
        model: A functional or sequential model, layers of your own inside or
            not.

    Attributes:
        families: ``{key: family}``.
        channels: How the model's channels hang together.

    Raises:
        ValueError: If the model is subclassed.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((2,)),
    ...     keras.layers.Dense(3, name="wide"),
    ...     keras.layers.Dense(1, name="narrow"),
    ... ])
    >>> [family.kind for family in WeightGroups(model).families.values()]
    ['widths']
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self.channels: Channels = follow(look_inside(model))
        self._keys = {id(v): k for k, v in named_weights(model).items()}
        self.families: dict[str, Family] = {}
        for family in (*self._made(), *self._blocks()):
            self.families.setdefault(family.key, family)

    def of(self, kinds: Sequence[str]) -> dict[str, Family]:
        """The families of these kinds."""
        return {k: f for k, f in self.families.items() if f.kind in kinds}

    def sums(self, values: Arrays) -> dict[str, np.ndarray]:
        """What numbers, one for each weight, add up to in every group.

        Args:
            values: ``{path of a weight: array of its shape}``. Weights that
                are not there count as zero.

        Returns:
            ``{key: one number for each group}``.

        Example:

        >>> model = keras.Sequential([
        ...     keras.Input((2,)),
        ...     keras.layers.Dense(3, name="wide"),
        ...     keras.layers.Dense(1, name="narrow"),
        ... ])
        >>> named = named_weights(model)
        >>> ones = {k: np.ones(v.shape) for k, v in named.items()}
        >>> [sums.tolist() for sums in WeightGroups(model).sums(ones).values()]
        [[4.0, 4.0, 4.0]]
        """
        total = np.zeros(self.channels.size)
        for variable, axis, atoms in self._slices():
            value = values.get(self._keys.get(id(variable), ""))
            if value is not None:
                others = tuple(i for i in range(value.ndim) if i != axis)
                sums = np.asarray(value, np.float64).sum(axis=others)
                np.add.at(total, self.channels.roots(atoms), sums)
        found = {}
        for key, family in self.families.items():
            if family.block is None:
                found[key] = total[self.channels.roots(family.atoms)]
            else:
                inside = [
                    values[self._keys[id(v)]]
                    for v in family.block.layer.weights
                    if self._keys.get(id(v)) in values
                ]
                found[key] = np.array([sum(float(np.sum(v)) for v in inside)])
        return found

    def masks(self, groups: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """``{path: mask of its shape}`` of every weight of the groups.

        Args:
            groups: ``{key: boolean vector}``, `True` = kept. A group that
                several name goes only if all prune it.
        """
        gone = np.zeros(self.channels.size, bool)
        kept = np.zeros(self.channels.size, bool)
        masks: dict[str, np.ndarray] = {}
        for key, mask in groups.items():
            family = self.families[key]
            if family.block is None:
                roots = self.channels.roots(family.atoms)
                gone[roots[~mask]] = True
                kept[roots[mask]] = True
            for layer in family.ends:
                for variable in layer.weights:
                    masks[self._keys[id(variable)]] = np.full(
                        tuple(variable.shape), bool(mask[0])
                    )
        gone &= ~kept
        named = {*groups}
        covered = {
            int(root)
            for key in named
            if self.families[key].block is None
            for root in self.channels.roots(self.families[key].atoms)
        }
        for variable, axis, atoms in self._slices():
            roots = self.channels.roots(atoms)
            key = self._keys.get(id(variable), "")
            if not key or covered.isdisjoint(roots.tolist()):
                continue
            shape = tuple(variable.shape)
            layout = [-1 if i == axis else 1 for i in range(len(shape))]
            mask = masks.get(key, np.ones(shape, bool))
            masks[key] = mask & ~gone[roots].reshape(layout)
        return masks

    def _slices(self) -> Iterator[tuple[keras.Variable, int, Atoms]]:
        for entry in self.channels.layers.values():
            for variable in getattr(entry.layer, "weights", ()):
                for axis, atoms in entry.slices.get(variable.name, {}).items():
                    yield variable, axis, atoms

    def _made(self) -> Iterator[Family]:
        """One family for all layers that make the same groups.

        Its key is of the layer that makes each group once, as keys do that
        several queries share, and of such layers of the first.
        """
        frozen = list(self.channels.frozen())
        order = {id(v): i for i, v in enumerate(self.model.weights)}
        makers: dict[frozenset[int], list[tuple[int, int, Any, Any]]] = {}
        for entry in self.channels.layers.values():
            kernel = self._kernel(entry)
            if entry.made is not None and kernel is not None:
                roots = self.channels.roots(entry.made)
                makers.setdefault(frozenset(roots.tolist()), []).append(
                    (entry.made.size, order[id(kernel)], entry, kernel)
                )
        seen: set[int] = set()
        first = sorted(
            (min(several, key=lambda m: m[:2]) for several in makers.values()),
            key=lambda m: m[1],
        )
        for _, _, entry, kernel in first:
            roots = self.channels.roots(entry.made)
            stays = np.isin(roots, frozen)
            if not stays.all() and not seen.issuperset(roots.tolist()):
                seen.update(roots.tolist())
                kind = _kind(entry.layer, kernel)
                key = self._keys[id(kernel)]
                yield Family(key, kind, entry.made, stays)

    def _kernel(self, entry: LayerChannels) -> keras.Variable | None:
        """The kernel whose outputs are the channels that a layer makes."""
        for variable in getattr(entry.layer, "weights", ()):
            axes = entry.slices.get(variable.name, {})
            if (
                len(variable.shape) > 1
                and variable.name != "bias"
                and id(variable) in self._keys
                and any(atoms is entry.made for atoms in axes.values())
            ):
                return variable
        return None

    def _blocks(self) -> Iterator[Family]:
        graph = self.channels.graph
        inner = {
            id(part)
            for block in graph.blocks
            for part in layers_of(block.layer)
            if part is not block.layer
        }
        count = [block.layer for block in graph.blocks]
        for block in graph.blocks:
            layer = block.layer
            if id(layer) in inner or sum(one is layer for one in count) > 1:
                continue
            ends = _silenced(self.channels, block)
            if ends:
                yield Family(
                    layer.path,
                    "blocks",
                    np.zeros(0, np.int64),
                    np.zeros(1, bool),
                    block,
                    tuple(ends),
                )


def _kind(layer: keras.layers.Layer, kernel: keras.Variable) -> str:
    if isinstance(layer, keras.layers.EinsumDense):
        last = made_axis(layer, kernel) == len(kernel.shape) - 1
        return "widths" if last else "heads"
    if isinstance(layer, keras.layers.Dense):
        return "widths"
    if isinstance(layer, keras.layers.Embedding):
        return "embeddings"
    return "channels"


def _silenced(
    channels: Channels, block: Block
) -> list[keras.layers.Layer] | None:
    """The layers without which a block gives back what it reads.

    Each is the end of a branch that is added to what the block reads first.
    `None` if it does something else.
    """
    graph = channels.graph
    if len(block.outputs) != 1:
        return None
    makers = {tensor: call for call in graph.calls for tensor in call.outputs}
    ends: list[keras.layers.Layer] = []
    tensor = block.outputs[0]
    while tensor != block.inputs[0]:
        call = makers.get(tensor)
        if call is None:
            return None
        if _passes(call):
            tensor = call.inputs[0]
        elif _adds(call):
            found = [_end(graph, makers, one) for one in call.inputs]
            # The main path is what no layer ends.
            if (found[0] is None) == (found[1] is None):
                return None
            tensor = call.inputs[0 if found[0] is None else 1]
            ends += [one for one in found if one is not None]
        else:
            return None
    return ends


def _passes(call: Call) -> bool:
    return len(call.inputs) == 1 and isinstance(
        call.operation, keras.layers.Dropout | keras.layers.Identity
    )


def _adds(call: Call) -> bool:
    alike = kind_of(call.operation) in (
        kind_of(keras.ops.add),
        kind_of(keras.layers.Add),
    )
    name = type(call.operation).__name__
    return alike and name == "Add" and len(call.inputs) == 2


def _end(
    graph: Graph, makers: Mapping[int, Call], tensor: int
) -> keras.layers.Layer | None:
    """The linear layer whose output, and nothing else, a tensor is."""
    while tensor in makers:
        call = makers[tensor]
        if len(graph.readers(tensor)) != 1:
            return None
        if _passes(call):
            tensor = call.inputs[0]
            continue
        layer = call.operation
        linear = isinstance(
            layer, keras.layers.Dense | keras.layers.EinsumDense
        )
        if not linear or graph.uses(layer) != 1:
            return None
        plain = layer.activation in (None, keras.activations.linear)
        return layer if plain else None
    return None


class GroupTicket(ChannelTicket):
    """Which heads, widths and blocks of a model are kept.

    Args:
        masks: ``{key: boolean vector}``, `True` = kept: one value for each
            group that the kernel with this path makes, or one for a block,
            whose key is the path of its layer.
        weights: As in `ChannelTicket`.
        metadata: As in `ChannelTicket`.
        scores: As in `ChannelTicket`.

    Example:

    >>> ticket = GroupTicket({"block/attention/query/kernel": [1, 0, 0, 1]})
    >>> ticket.sparsity
    0.5
    """

    covers: ClassVar[str] = "groups"
    kind: ClassVar[str] = "group_ticket"

    def match(self, model: keras.Model) -> dict[str, str]:
        """``{key in the ticket: key in the model}``.

        Raises:
            ValueError: If the ticket is of another architecture.
        """
        return self._fitting(WeightGroups(model))

    def element_masks(self, model: keras.Model) -> dict[str, np.ndarray]:
        """``{weight's key: mask of its shape}``: what `apply` enforces.

        All weights of a group are zero, those that make it and those that
        read it.

        Raises:
            ValueError: If the ticket is of another architecture.
        """
        return self.masks_of(WeightGroups(model))

    def masks_of(self, groups: WeightGroups) -> dict[str, np.ndarray]:
        """As `element_masks`, of a model whose groups are known."""
        keys = self._fitting(groups)
        return groups.masks({keys[k]: m for k, m in self._masks.items()})

    def _fitting(self, groups: WeightGroups) -> dict[str, str]:
        keys = {k: k for k in self._masks}
        if self._weights is not None:
            listing = self._weights.keys()
            named = named_weights(groups.model)
            keys |= self._aligned(named, self._masks.keys() & listing)
            for key in self._masks.keys() - listing:  # of blocks
                inside = [k for k in listing if k.startswith(f"{key}/")]
                for one, there in self._aligned(named, inside[:1]).items():
                    depth = one[len(key) :].count("/")
                    keys[key] = there.rsplit("/", depth)[0]
        misfits = [
            f"{key} with {mask.size} groups"
            for key, mask in self._masks.items()
            if keys[key] not in groups.families
            or groups.families[keys[key]].stays.size != mask.size
        ]
        if misfits:
            raise ValueError(
                "The ticket names groups that the model does not have. "
                f"Received: {misfits}; the model has {[*groups.families]}"[:900]
            )
        return keys


# --- scores ------------------------------------------------------------------

Criterion = Callable[..., Mapping[str, np.ndarray]]


def magnitude(
    model: keras.Model,
    groups: WeightGroups,
    *,
    data: Any = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The L2 norm of all weights of a group, over the mean of its family."""
    del data, seed
    values = values_of(named_weights(model))
    sums = groups.sums(
        {k: np.square(v, dtype=float) for k, v in values.items()}
    )
    norms = {key: np.sqrt(s) for key, s in sums.items()}
    return {
        key: n / max(float(n.mean()), 1e-30) if n.size > 1 else n
        for key, n in norms.items()
    }


def taylor(
    model: keras.Model,
    groups: WeightGroups,
    *,
    data: Any = None,
    seed: int = 0,
    loss: Loss | None = None,
    batch_size: int = 256,
    batches: int | None = None,
) -> dict[str, np.ndarray]:
    r"""How much the loss would change: $|\sum w \, \partial L / \partial w|$.

    The sum is over all weights of the group, the gradient the mean over all
    samples.

    Reference:
        Molchanov et al., "Importance Estimation for Neural Network Pruning",
        CVPR 2019, equation 8, of the group as a whole.
    """
    del seed
    objective = Objective(model, needed_by="criterion='taylor'", loss=loss)
    values = objective.values({})
    keys = objective.trainable()
    with computing_in(model):
        slopes = mean_over(
            objective.batches(data, batch_size=batch_size, limit=batches),
            lambda batch: objective.gradient(values, keys, batch),
        )
    sums = groups.sums({k: (values[k] * slopes[k]).numpy() for k in keys})
    return {key: np.abs(one) for key, one in sums.items()}


def random(
    model: keras.Model,
    groups: WeightGroups,
    *,
    data: Any = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Uniform numbers: the control."""
    del model, data
    rng = np.random.default_rng(seed)
    return {k: rng.random(f.stays.size) for k, f in groups.families.items()}


CRITERIA: dict[str, Criterion] = {
    "magnitude": magnitude,
    "taylor": taylor,
    "random": random,
}


# --- the draw ----------------------------------------------------------------


def draw_groups(
    model: keras.Model,
    sparsity: float | Mapping[str, float],
    *,
    groups: Sequence[str] = ("heads", "widths"),
    criterion: str | Criterion = "magnitude",
    scope: str = "layer",
    data: Any = None,
    seed: int = 0,
    gone: GroupTicket | None = None,
    found: WeightGroups | None = None,
) -> GroupTicket:
    """Draw heads, widths of feed-forward blocks, or whole blocks.

    They are found wherever layers of Keras make them: in attention layers, in
    chains of Dense and EinsumDense layers, gated or not, and inside layers of
    your own whose `call` can be followed, as those of KerasHub.

    Args:
        model: A built functional or sequential model. It is only read.
        sparsity: Fraction of the groups of each kind that go, in [0, 1); or
            ``{kind: fraction}``.
        groups: Which kinds: `"heads"` of attention, `"widths"` of Dense and
            EinsumDense layers, `"channels"` of convolutions, `"embeddings"`,
            what hangs on the width of an embedding, and `"blocks"`, layers of
            your own that add something to what they read and can go whole.
            Ignored where ``sparsity`` names them.
        criterion: `"magnitude"`: the L2 norm of all weights of the group,
            relative to the mean of its layer; `"taylor"`: the sum of weight
            times gradient; `"random"`; or your own ``(model, groups, *, data,
            seed) -> {key: scores}``, where ``groups`` is a `WeightGroups`.
        scope: `"layer"`: the same fraction of each layer's groups; `"global"`:
            all of a kind are ranked together. Every layer keeps one.
        data: What a criterion scores on; see `tf_tickets.prune`.
        seed: Of `"random"`.
        gone: A ticket whose groups have gone before, and count among those
            that go.
        found: The groups of the model, if they are known.

    Returns:
        A ticket with the model's present weights and the scores. Its `apply`
        holds all weights of what is pruned at zero, `shrink` takes them out.

    Raises:
        ValueError: On bad arguments, scores that are not finite, or a model
            without such groups.

    Example:

    >>> import tf_tickets as tt
    >>> x = keras.Input((6, 8))
    >>> attention = keras.layers.MultiHeadAttention(4, 2, name="attention")
    >>> y = keras.layers.Add()([x, attention(x, x)])
    >>> model = keras.Model(x, keras.layers.Dense(3)(y))
    >>> ticket = tt.structured.draw_groups(model, 0.5, groups=["heads"])
    >>> small = tt.structured.shrink(model, ticket)
    >>> small.get_layer("attention").num_heads
    2
    """
    if isinstance(sparsity, Mapping):
        fractions = {str(k): checks.sparsity(v) for k, v in sparsity.items()}
    else:
        named = [groups] if isinstance(groups, str) else list(groups)
        fractions = dict.fromkeys(named, checks.sparsity(sparsity))
    for kind in fractions:
        checks.choice("groups", kind, GROUPS)
    checks.choice("scope", scope, SCOPES)
    if not callable(criterion):
        checks.choice("criterion", criterion, tuple(CRITERIA))
    for name, given, wanted in (
        ("gone", gone, GroupTicket),
        ("found", found, WeightGroups),
    ):
        if given is not None and not isinstance(given, wanted):
            raise ValueError(
                f"`{name}` must be a {wanted.__name__} or None. "
                f"Received: {name}={given!r}"[:500]
            )
    found = WeightGroups(model) if found is None else found
    chosen = found.of(tuple(fractions))
    absent = fractions.keys() - {f.kind for f in chosen.values()}
    if absent or not chosen:
        raise ValueError(
            "The model has no such groups that could go; what stops others is "
            "in the report of `shrink`. Received: "
            f"groups={sorted(absent or fractions)}, the model has "
            f"{sorted({f.kind for f in found.families.values()})}"
        )
    rate = criterion if callable(criterion) else CRITERIA[criterion]
    scores = rate(model, found, data=data, seed=seed)
    scores = {
        key: np.asarray(scores[key], np.float64).reshape(-1) for key in chosen
    }
    checks.finite(
        "The scores of groups",
        scores,
        "has training diverged, or does the data hold NaN?",
    )
    before: dict[str, np.ndarray] = {}
    if gone is not None:
        keys = gone._fitting(found)
        before = {keys[k]: m for k, m in gone.masks.items()}
    masks = _masks(chosen, scores, fractions, scope, before)
    return GroupTicket(
        masks,
        values_of(named_weights(model)),
        {
            "source": "draw_groups",
            "requested_sparsity": fractions,
            "criterion": getattr(rate, "__name__", type(rate).__name__),
            "scope": scope,
        },
        scores=scores,
    )


def drawn_anew(
    model: keras.Model, ticket: GroupTicket
) -> Callable[[float], GroupTicket]:
    """``sparsity -> ticket``, by the scores and in the scope of a ticket.

    Args:
        model: The model.
        ticket: Whose kinds keep the proportions of their sparsities: the
            sparsity is that of the kind that loses most.

    Raises:
        ValueError: If the ticket has no scores.
    """
    scores = ticket.scores
    if not scores or not scores.keys() >= ticket.masks.keys():
        raise ValueError(
            "To be cut to a target, a ticket needs the scores that its masks "
            "were drawn by, as those of `draw_groups` have. "
            "Received: a ticket without scores"
        )
    groups = WeightGroups(model)
    keys = ticket._fitting(groups)
    kinds = sorted({groups.families[keys[key]].kind for key in ticket.masks})
    asked = ticket.metadata.get("requested_sparsity", {})
    shares = {kind: float(asked.get(kind, 1.0)) for kind in kinds}
    most = max(shares.values())
    shares = {k: v / most if most else 1.0 for k, v in shares.items()}
    rated = {keys[key]: np.asarray(scores[key]) for key in ticket.masks}
    back = {there: here for here, there in keys.items()}
    scope = str(ticket.metadata.get("scope", "layer"))

    def draw(sparsity: float) -> GroupTicket:
        chosen = {key: groups.families[key] for key in rated}
        fractions = {kind: sparsity * share for kind, share in shares.items()}
        masks = _masks(chosen, rated, fractions, scope, {})
        return GroupTicket(
            {back[key]: mask for key, mask in masks.items()},
            ticket.weights,
            {**ticket.metadata, "requested_sparsity": fractions},
            scores=scores,
        )

    return draw


def _masks(
    families: Mapping[str, Family],
    scores: Mapping[str, np.ndarray],
    fractions: Mapping[str, float],
    scope: str,
    before: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Masks at a sparsity for each kind."""
    masks: dict[str, np.ndarray] = {}
    for kind, fraction in fractions.items():
        alike = {k: f for k, f in families.items() if f.kind == kind}
        parts = (
            [alike]
            if scope == "global" or kind == "blocks"
            else [{k: f} for k, f in alike.items()]
        )
        for part in parts:
            masks |= _kept(part, scores, fraction, before)
    return masks


def _kept(
    families: Mapping[str, Family],
    scores: Mapping[str, np.ndarray],
    fraction: float,
    before: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """The best of some families together; each family keeps one."""
    flat = np.concatenate([scores[key] for key in families]).copy()
    ends = np.cumsum([f.stays.size for f in families.values()])
    start = 0
    for end, (key, family) in zip(ends, families.items(), strict=True):
        mine = flat[start:end]
        if key in before:
            mine[~before[key]] = -np.inf
        if family.block is None:
            mine[np.argmax(mine)] = np.inf
        mine[family.stays] = np.inf
        start = end
    count = max(round((1 - fraction) * flat.size), 1)
    kept = np.zeros(flat.size, bool)
    kept[np.argsort(-flat, kind="stable")[:count]] = True
    kept |= flat == np.inf
    return dict(zip(families, np.split(kept, ends[:-1]), strict=True))
