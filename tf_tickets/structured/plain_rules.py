"""Rules of the layers without weights: they pass, move or join channels."""

from __future__ import annotations

import keras
import numpy as np

from tf_tickets.network.graph import Call
from tf_tickets.structured.channels import Atoms, Channels, Flow, call_name
from tf_tickets.structured.checks import (
    Unfollowed,
    apart_from,
    check_activation,
    data_axis,
    other_axis,
)

# --- layers without weights --------------------------------------------------


def elementwise(channels: Channels, call: Call) -> Flow:
    return channels.flows[call.inputs[0]]


def activation(channels: Channels, call: Call) -> Flow:
    flow = channels.flows[call.inputs[0]]
    axis = len(channels.shape(call.inputs[0])) - 1
    check_activation(call.operation, flow.axis == axis)
    return flow


def softmax(channels: Channels, call: Call) -> Flow:
    axes = call.operation.axis
    return apart_from(
        channels,
        call,
        list(axes) if isinstance(axes, list | tuple) else [axes],
        "mixes its channels",
    )


def rescaling(channels: Channels, call: Call) -> Flow:
    layer = call.operation
    if np.ndim(layer.scale) or np.ndim(layer.offset):
        raise Unfollowed("has a scale for each channel")
    return channels.flows[call.inputs[0]]


def spatial(channels: Channels, call: Call) -> Flow:
    """Pooling, padding, cropping, resizing: axes other than the channels'."""
    axis = data_axis(channels, call)
    flow = channels.flows[call.inputs[0]]
    if flow.atoms is None:
        return flow
    if flow.axis != axis:
        raise Unfollowed("works along the axis of the channels")
    rank = len(channels.shape(call.outputs[0]))
    return Flow(flow.atoms, axis if axis < rank else rank - 1)


def padding(channels: Channels, call: Call) -> Flow:
    """Zeros around a tensor, along the channels too.

    A layer told that channels come first pads the last axis, which may hold
    the channels: the shortcut of the CIFAR residual networks.
    """
    layer = call.operation
    flow = channels.flows[call.inputs[0]]
    if flow.atoms is None or flow.axis is None:
        return flow
    start = 2 if layer.data_format == "channels_first" else 1
    place = flow.axis - start
    if not 0 <= place < len(layer.padding):
        return flow
    before, after = (channels.fresh(n) for n in layer.padding[place])

    def sizes_of(*counts: int) -> tuple[tuple[int, int], ...]:
        sizes = [tuple(pair) for pair in layer.padding]
        sizes[place] = (counts[0], counts[1])
        return tuple(sizes)

    before, after = channels.configure(
        layer, "padding", sizes_of, before, after
    )
    return Flow(np.concatenate([before, flow.atoms, after]), flow.axis)


def sequence(channels: Channels, call: Call) -> Flow:
    """Padding, cropping, up-sampling of (batch, steps, channels)."""
    flow = channels.flows[call.inputs[0]]
    if flow.atoms is not None and flow.axis != 2:
        raise Unfollowed("works along the axis of the channels")
    return flow


def reduction(channels: Channels, call: Call) -> Flow:
    """A mean, sum or maximum over axes other than the channels'."""
    operation = call.operation
    flow = channels.flows[call.inputs[0]]
    if flow.atoms is None or flow.axis is None:
        return flow
    rank = len(channels.shape(call.inputs[0]))
    axes = operation.axis
    if axes is None:
        raise Unfollowed("reduces the axis of the channels")
    gone = {
        a % rank for a in (axes if isinstance(axes, list | tuple) else [axes])
    }
    if flow.axis in gone:
        raise Unfollowed("reduces the axis of the channels")
    if operation.keepdims:
        return flow
    return Flow(flow.atoms, flow.axis - sum(a < flow.axis for a in gone))


# --- layers that rearrange channels --------------------------------------


def flatten(channels: Channels, call: Call) -> Flow:
    first = call.operation.data_format == "channels_first"
    grid, why = _grid(channels, call)
    if grid is None:
        return Flow(why=why)
    # Keras flattens channels-first tensors as if the channels came last.
    if first and grid.ndim > 1:
        grid = np.moveaxis(grid, 0, -1)
    return Flow(grid.ravel(), 1)


def reshape(channels: Channels, call: Call) -> Flow:
    grid, why = _grid(channels, call)
    if grid is None:
        return Flow(why=why)
    target = tuple(int(size or 0) for size in channels.shape(call.outputs[0]))
    columns = grid.reshape(-1, target[-1])
    # Whole columns can go, so what shares a column goes together.
    for row in columns[1:]:
        if not np.array_equal(row, columns[0]):
            channels.tie(columns[0], row)
    atoms = columns[0]
    channels.configure(
        call.operation,
        "target_shape",
        lambda count: (*target[1:-1], count),
        atoms,
    )
    return Flow(atoms, len(target) - 1)


def permute(channels: Channels, call: Call) -> Flow:
    flow = channels.flows[call.inputs[0]]
    if flow.atoms is None:
        return flow
    return Flow(flow.atoms, 1 + list(call.operation.dims).index(flow.axis))


def repeat(channels: Channels, call: Call) -> Flow:
    flow = channels.flows[call.inputs[0]]
    return flow if flow.atoms is None else Flow(flow.atoms, 2)


def _grid(channels: Channels, call: Call) -> tuple[np.ndarray | None, str]:
    """The atom at every position of one sample, or why it is not known."""
    flow = channels.flows[call.inputs[0]]
    if flow.atoms is None or flow.axis is None:
        return None, flow.why
    shape = channels.shape(call.inputs[0])[1:]
    target = channels.shape(call.outputs[0])[1:]
    if None in shape or None in target or not target:
        raise Unfollowed("rearranges axes of unknown size")
    expanded = flow.atoms.reshape(
        [-1 if i == flow.axis - 1 else 1 for i in range(len(shape))]
    )
    sizes = [int(size or 0) for size in shape]
    return np.broadcast_to(expanded, sizes), ""


# --- layers that join tensors --------------------------------------------


def merge(channels: Channels, call: Call) -> Flow:
    tensors = call.inputs
    output = channels.shape(call.outputs[0])
    others = [
        a
        for a in keras.tree.flatten((call.args, dict(call.kwargs)))
        if not isinstance(a, keras.KerasTensor)
    ]
    if any(np.ndim(a) for a in others):
        raise Unfollowed("joins a tensor with a constant array")
    axes = {
        flow.axis
        for flow in (channels.flows[t] for t in tensors)
        if flow.atoms is not None
    }
    if not axes:
        return channels.flows[tensors[0]]
    axis = axes.pop()
    if axes or axis is None or output[axis] is None:
        raise Unfollowed("joins tensors whose channels run along other axes")
    if any(len(channels.shape(t)) != len(output) for t in tensors):
        raise Unfollowed("joins tensors of different ranks")
    full: Atoms | None = None
    for tensor in tensors:
        atoms = channels.along(tensor, axis, other_axis(call))
        if atoms.size != output[axis]:
            channels.freeze(
                atoms, f"{call_name(call)} spreads it over all channels"
            )
        elif full is None:
            full = atoms
        else:
            channels.tie(full, atoms)
    if full is None:
        raise Unfollowed("joins tensors of which none has all channels")
    return Flow(full, axis)


def concatenate(channels: Channels, call: Call) -> Flow:
    axis = call.operation.axis % len(channels.shape(call.outputs[0]))
    flows = [channels.flows[t] for t in call.inputs]
    axes = {flow.axis for flow in flows if flow.atoms is not None}
    if not axes:
        return flows[0]
    if len(axes) > 1:
        raise Unfollowed("joins tensors whose channels run along other axes")
    along = axes.pop()
    if along is None or channels.shape(call.outputs[0])[along] is None:
        raise Unfollowed("joins axes of unknown size")
    lists = [channels.along(t, along, other_axis(call)) for t in call.inputs]
    if along == axis:
        return Flow(np.concatenate(lists), axis)
    for atoms in lists[1:]:
        channels.tie(lists[0], atoms)
    return Flow(lists[0], along)
