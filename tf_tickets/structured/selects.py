"""Normalizations that read a wider tensor than they need.

In a pre-activation network the residual stream is normalized anew in front of
every block, each time under a mask of its own. The stream keeps what any of
them needs; a selection in front of a normalization lets it have no more than
its own channels, and so the layers behind it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from tf_tickets.layers.selecting import SelectChannels
from tf_tickets.network.channels import Channels
from tf_tickets.network.graph import Call, Graph, tensors_of
from tf_tickets.network.kinds import kind_of
from tf_tickets.selection import layers_of
from tf_tickets.structured.decide import Decision

Selects = Mapping[int, SelectChannels]


def selectable(graph: Graph) -> Iterator[Call]:
    """The calls of normalizations that may have a selection in front of them.

    They treat every channel for itself, are called once, and not from inside
    of another layer.
    """
    rule = kind_of(keras.layers.BatchNormalization).channels
    for call in graph.calls:
        if (
            kind_of(call.operation).channels is rule
            and not call.within
            and graph.uses(call.operation) == 1
            and len(call.inputs) == 1
        ):
            yield call


def wanting(
    channels: Channels, masks: Mapping[int, np.ndarray], decision: Decision
) -> list[int]:
    """The normalizations whose masks prune channels that stay.

    Args:
        channels: The channels of the model.
        masks: ``{id(scale): mask}``.
        decision: Made without selections.

    Returns:
        Ids of the layers.
    """
    found = []
    for call in selectable(channels.graph):
        layer: Any = call.operation
        if id(layer) in decision.empty.dropped or not layer.scale:
            continue
        mask = masks.get(id(layer.gamma))
        atoms = channels.layers[id(layer)].slices["gamma"][0]
        if mask is not None and (~mask & ~decision.removed[atoms]).any():
            found.append(id(layer))
    return found


def with_selects(
    graph: Graph, layers: Collection[int]
) -> tuple[Graph, dict[int, SelectChannels]]:
    """A graph with a selection of all channels in front of some layers.

    Args:
        graph: The calls of a model.
        layers: Ids of normalizations that are `selectable`.

    Returns:
        The new graph, and the selection in front of each layer.
    """
    wider = dataclasses.replace(graph, calls=[], shapes=list(graph.shapes))
    taken = {
        part.name
        for call in graph.calls
        if isinstance(call.operation, keras.layers.Layer)
        for part in layers_of(call.operation)
    }
    selects: dict[int, SelectChannels] = {}
    for call in graph.calls:
        layer: Any = call.operation
        if id(layer) in layers:
            [tensor] = call.inputs
            shape = graph.shapes[tensor]
            name = f"{layer.name}_select"
            while name in taken:
                name += "_again"
            taken.add(name)
            selects[id(layer)] = select = SelectChannels(
                range(int(shape[layer.axis] or 0)),
                axis=layer.axis,
                name=name,
                # It may not round what the normalization reads.
                dtype=layer.dtype_policy,
            )
            number = wider.new_tensor(shape)
            symbols = tuple(tensors_of(call.args, call.kwargs))
            wider.calls.append(Call(select, (tensor,), (number,), symbols))
            call = dataclasses.replace(call, inputs=(number,))
        wider.calls.append(call)
    return wider, selects


def useful(
    channels: Channels, selects: Selects, decision: Decision
) -> list[int]:
    """The layers in front of which fewer channels are taken than there are.

    Args:
        channels: The channels of the model with the selections.
        selects: The selections.
        decision: Made with them.
    """
    found = []
    for layer, select in selects.items():
        choice = channels.layers[id(select)].choice
        if choice is not None and (
            decision.removed[choice.made].sum()
            > decision.removed[choice.read].sum()
        ):
            found.append(layer)
    return found
