"""Rules of the layers that have weights: they make or keep channels."""

from __future__ import annotations

import numpy as np

from tf_tickets.network.graph import Call
from tf_tickets.structured.channels import Atoms, Channels, Flow, Read
from tf_tickets.structured.checks import (
    Unfollowed,
    activated,
    apart_from,
    check_weights,
    data_axis,
    other_axis,
)

# --- layers that make channels ------------------------------------------


def dense(channels: Channels, call: Call) -> Flow:
    layer = call.operation
    check_weights(layer)
    read = channels.along(call.inputs[0], -1, other_axis(call))
    made = channels.make(layer, layer.units)
    channels.claim(layer, "kernel", 0, read)
    channels.claim(layer, "kernel", 1, made)
    channels.claim(layer, "bias", 0, made)
    channels.configure(layer, "units", int, made)
    channels.reads.append(Read(call, layer, "kernel", (0, 1), read, made))
    return activated(channels, call, made, -1)


def conv(channels: Channels, call: Call) -> Flow:
    layer = call.operation
    check_weights(layer)
    axis = data_axis(channels, call)
    read = channels.along(call.inputs[0], axis, other_axis(call))
    if layer.groups > 1 and layer.groups == read.size:
        return _conv_per_channel(channels, call, read, axis)
    made = channels.make(layer, layer.filters)
    if layer.groups > 1:
        # One kernel serves all groups: the groups keep equal sizes, so
        # channels at the same place in every group go together.
        for atoms in (read, made):
            groups = atoms.reshape(layer.groups, -1)
            for group in groups[1:]:
                channels.tie(groups[0], group)
    rank = len(layer.kernel.shape)
    claimed = read[: read.size // layer.groups]
    channels.claim(layer, "kernel", rank - 2, claimed)
    channels.claim(layer, "kernel", rank - 1, made)
    channels.claim(layer, "bias", 0, made)
    channels.configure(layer, "filters", int, made)
    channels.reads.append(
        Read(call, layer, "kernel", (rank - 2, rank - 1), read, made)
    )
    return activated(channels, call, made, axis)


def _conv_per_channel(
    channels: Channels, call: Call, read: Atoms, axis: int
) -> Flow:
    layer = call.operation
    multiplier = layer.filters // layer.groups
    made = np.repeat(read, multiplier)
    channels.claim(layer, "kernel", len(layer.kernel.shape) - 1, made)
    channels.claim(layer, "bias", 0, made)
    channels.configure(layer, "filters", int, made)
    channels.configure(layer, "groups", int, read)
    return activated(channels, call, made, axis)


def conv_transpose(channels: Channels, call: Call) -> Flow:
    layer = call.operation
    check_weights(layer)
    axis = data_axis(channels, call)
    read = channels.along(call.inputs[0], axis, other_axis(call))
    made = channels.make(layer, layer.filters)
    rank = len(layer.kernel.shape)
    channels.claim(layer, "kernel", rank - 1, read)
    channels.claim(layer, "kernel", rank - 2, made)
    channels.claim(layer, "bias", 0, made)
    channels.configure(layer, "filters", int, made)
    channels.reads.append(
        Read(call, layer, "kernel", (rank - 1, rank - 2), read, made)
    )
    return activated(channels, call, made, axis)


def depthwise(channels: Channels, call: Call) -> Flow:
    layer = call.operation
    # Keras calls the variable of a depthwise convolution "kernel" too.
    check_weights(layer)
    axis = data_axis(channels, call)
    read = channels.along(call.inputs[0], axis, other_axis(call))
    made = np.repeat(read, layer.depth_multiplier)
    channels.claim(layer, layer.kernel.name, len(layer.kernel.shape) - 2, read)
    channels.claim(layer, "bias", 0, made)
    return activated(channels, call, made, axis)


def separable(channels: Channels, call: Call) -> Flow:
    layer = call.operation
    check_weights(layer)
    axis = data_axis(channels, call)
    read = channels.along(call.inputs[0], axis, other_axis(call))
    made = channels.make(layer, layer.filters)
    rank = len(layer.depthwise_kernel.shape)
    between = np.repeat(read, layer.depth_multiplier)
    channels.claim(layer, "depthwise_kernel", rank - 2, read)
    channels.claim(layer, "pointwise_kernel", rank - 2, between)
    channels.claim(layer, "pointwise_kernel", rank - 1, made)
    channels.claim(layer, "bias", 0, made)
    channels.configure(layer, "filters", int, made)
    channels.reads.append(
        Read(
            call, layer, "pointwise_kernel", (rank - 2, rank - 1), between, made
        )
    )
    return activated(channels, call, made, axis)


def embedding(channels: Channels, call: Call) -> Flow:
    layer = call.operation
    check_weights(layer, {"embeddings"})
    made = channels.make(layer, layer.output_dim)
    channels.claim(layer, "embeddings", 1, made)
    channels.configure(layer, "output_dim", int, made)
    return Flow(made, len(channels.shape(call.outputs[0])) - 1)


# --- layers with weights for every channel --------------------------------


def batch_norm(channels: Channels, call: Call) -> Flow:
    layer = call.operation
    axis = layer.axis % len(channels.shape(call.inputs[0]))
    atoms = channels.along(call.inputs[0], axis, other_axis(call))
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        channels.claim(layer, name, 0, atoms)
    return Flow(atoms, axis)


def group_norm(channels: Channels, call: Call) -> Flow:
    layer = call.operation
    axis = layer.axis % len(channels.shape(call.inputs[0]))
    atoms = channels.along(call.inputs[0], axis, other_axis(call))
    if layer.groups != atoms.size:
        raise Unfollowed("normalizes several channels together")
    channels.claim(layer, "gamma", 0, atoms)
    channels.claim(layer, "beta", 0, atoms)
    channels.configure(layer, "groups", int, atoms)
    return Flow(atoms, axis)


def layer_norm(channels: Channels, call: Call) -> Flow:
    axes = call.operation.axis
    return apart_from(
        channels,
        call,
        list(axes) if isinstance(axes, list | tuple) else [axes],
        "normalizes several channels together",
    )


def prelu(channels: Channels, call: Call) -> Flow:
    layer = call.operation
    flow = channels.flows[call.inputs[0]]
    if flow.atoms is not None and flow.axis is not None:
        axis = flow.axis - 1
        if tuple(layer.alpha.shape)[axis] == flow.atoms.size > 1:
            channels.claim(layer, "alpha", axis, flow.atoms)
    return flow
