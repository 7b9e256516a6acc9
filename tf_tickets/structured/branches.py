"""Branches that add nothing: where all of one is zero, it can go whole."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from tf_tickets.network.constants import Constants
from tf_tickets.network.graph import Graph
from tf_tickets.network.kinds import operation_of


@dataclasses.dataclass(frozen=True)
class Empty:
    """Branches that are zero everywhere.

    Attributes:
        skips: ``{id(addition): positions among its inputs}`` that are left
            out.
        dropped: Ids of the layers that nothing reads then.
    """

    skips: dict[int, frozenset[int]] = dataclasses.field(default_factory=dict)
    dropped: frozenset[int] = frozenset()

    def connect(
        self, layer: Any, copy: Any, args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """Call a copy of an addition without them, as `Copier` does."""
        left_out = self.skips.get(id(layer))
        if left_out is None:
            return copy(*args, **kwargs)
        tensors = [
            x
            for i, x in enumerate(keras.tree.flatten((args, kwargs)))
            if i not in left_out
        ]
        return tensors[0] if len(tensors) == 1 else copy(tensors)


def empty_branches(graph: Graph, known: Constants) -> Empty:
    """Find the inputs of additions that are zero whatever the model reads.

    Args:
        graph: The calls of the model.
        known: The constants of its tensors.
    """
    additions = (keras.layers.Add, operation_of(keras.ops.add))
    skips: dict[int, frozenset[int]] = {}
    for call in graph.calls:
        if (
            type(call.operation) not in additions
            or graph.uses(call.operation) != 1
        ):
            continue
        shape = graph.shapes[call.outputs[0]]
        whole = [graph.shapes[t] == shape for t in call.inputs]
        zero = [t in known and not known[t].any() for t in call.inputs]
        if all(zero) or not any(
            one and not other for one, other in zip(whole, zero, strict=True)
        ):
            continue
        if any(zero):
            skips[id(call.operation)] = frozenset(
                i for i, one in enumerate(zero) if one
            )
    if not skips:
        return Empty()
    heard = set(graph.outputs)
    called: set[int] = set()
    for call in reversed(graph.calls):
        if heard & set(call.outputs):
            called.add(id(call.operation))
            left_out = skips.get(id(call.operation), frozenset())
            heard |= {t for i, t in enumerate(call.inputs) if i not in left_out}
    if not heard.issuperset(graph.inputs):
        return Empty()  # a model reads all of its inputs
    every = {id(call.operation) for call in graph.calls}
    return Empty(skips, frozenset(every - called))
