"""Which channels have the same value everywhere, whatever the input.

A filter of zeros gives a constant, not a zero: its bias, moved by the
normalisation and bent by the activation. This walk finds the value that each
channel has at inference at every position of every sample, where there is
one, and NaN where there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tf_tickets.network.graph import Call
from tf_tickets.selection import view_of
from tf_tickets.structured import plain_rules as plain
from tf_tickets.structured import rules
from tf_tickets.structured import weighted_rules as weighted
from tf_tickets.structured.channels import Channels, Read

Constants = dict[int, np.ndarray]
Propagation = Callable[[Channels, Call, Constants], np.ndarray]


def propagate(channels: Channels) -> Constants:
    """``{tensor: value of each of its channels}``, NaN where it varies."""
    known: Constants = {}
    for call in channels.graph.calls:
        for tensor in (*call.inputs, *call.outputs):
            atoms = channels.flows[tensor].atoms
            if atoms is not None:
                known.setdefault(tensor, np.full(atoms.size, np.nan))
        rule = rules.rule_of(call.operation)
        through = None if rule is None else _PROPAGATIONS.get(rule)
        flows = [channels.flows[t] for t in (*call.inputs, *call.outputs)]
        if (
            through is None
            or call.kwargs.get("training")
            or any(flow.atoms is None for flow in flows[-1:])
        ):
            continue
        if rule not in _MAKERS and any(flow.atoms is None for flow in flows):
            continue
        known[call.outputs[0]] = through(channels, call, known)
    return known


def present(read: Read) -> np.ndarray:
    """Whether an input channel meets a weight that is not zero, anywhere.

    Returns:
        A boolean matrix (input channels, output channels).
    """
    return _block_diagonal((_positions(read) != 0).any(0), read)


def pushed(read: Read, values: np.ndarray) -> np.ndarray:
    """What a kernel makes of constant input channels, at every position.

    Args:
        read: The kernel.
        values: One number for each input channel.

    Returns:
        values · Σ kernel over its positions: one number for each output.
    """
    heard = np.flatnonzero(values)
    kernel = _positions(read)
    if getattr(read.layer, "groups", 1) > 1:
        total = _block_diagonal(kernel.sum(0, dtype=np.float64), read)[heard]
    else:
        total = kernel[:, heard].sum(0, dtype=np.float64)
    return values[heard] @ total


def _positions(read: Read) -> np.ndarray:
    """A kernel as (positions, input channels, output channels)."""
    kernel = np.moveaxis(weight(read.layer, read.variable), read.axes, (-2, -1))
    return kernel.reshape(-1, *kernel.shape[-2:])


def input_constants(
    channels: Channels, read: Read, known: Constants
) -> np.ndarray:
    """The values of the channels that a kernel reads."""
    tensor = read.call.inputs[0]
    values = known.get(tensor)
    if values is None:
        values = np.full(read.read.size, np.nan)
    if read.variable == "pointwise_kernel":
        layer = read.layer
        values = _each_channel(
            np.repeat(values, layer.depth_multiplier),
            weight(layer, "depthwise_kernel"),
            is_uniform(layer, "depthwise_kernel"),
        )
    return values


def weight(layer: keras.layers.Layer, name: str) -> np.ndarray:
    """The value of a weight of ``layer`` by its name, as `view_of`."""
    for variable in layer.weights:
        if variable.name == name:
            return view_of(variable)
    return np.zeros(())  # a layer without bias, scale or offset


def is_uniform(layer: keras.layers.Layer, name: str) -> bool:
    """Whether a constant input gives the same value at every position."""
    if isinstance(layer, keras.layers.Dense) or name == "pointwise_kernel":
        return True
    sizes = set(layer.kernel_size)
    if "Transpose" in type(layer).__name__:
        # Strides leave gaps between the inputs, and borders see fewer.
        return sizes | set(layer.strides) == {1}
    return layer.padding == "valid" or sizes == {1}


def _block_diagonal(matrix: np.ndarray, read: Read) -> np.ndarray:
    """One block for each group: no input reaches another group's outputs."""
    groups = getattr(read.layer, "groups", 1)
    if groups == 1:
        return matrix
    rows, columns = matrix.shape[0], matrix.shape[1] // groups
    full = np.zeros((rows * groups, matrix.shape[1]), matrix.dtype)
    for g in range(groups):
        block = slice(g * columns, (g + 1) * columns)
        full[g * rows : (g + 1) * rows, block] = matrix[:, block]
    return full


def _make(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    read = next((r for r in channels.reads if r.call is call), None)
    if read is None:  # as many groups as channels
        return _depthwise(channels, call, known)
    values = input_constants(channels, read, known)
    varies = np.isnan(values) | (
        (values != 0) & (not is_uniform(read.layer, read.variable))
    )
    bias = weight(read.layer, "bias")
    made = pushed(read, np.where(varies, 0, values)) + bias
    made[present(read)[varies].any(0)] = np.nan
    return _activated(call, made)


def _depthwise(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    layer = call.operation
    values = known[call.inputs[0]]
    made = channels.flows[call.outputs[0]].atoms
    size = 0 if made is None else made.size
    moved = _each_channel(
        np.repeat(values, size // values.size),
        weight(layer, layer.kernel.name),
        is_uniform(layer, "kernel"),
    )
    return _activated(call, moved + weight(layer, "bias"))


def _each_channel(
    values: np.ndarray, kernel: np.ndarray, uniform: bool
) -> np.ndarray:
    """A kernel that treats every channel for itself."""
    flat = kernel.astype(np.float64)
    flat = flat.reshape(-1, flat.shape[-2] * flat.shape[-1])
    with np.errstate(invalid="ignore"):
        result = values * flat.sum(0)
    if not uniform:
        result[values != 0] = np.nan
    result[~(flat != 0).any(0)] = 0
    return result


def _batch_norm(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    layer = call.operation
    gamma, beta = weight(layer, "gamma"), weight(layer, "beta")
    if not layer.scale:
        gamma = np.ones(())
    deviation = np.sqrt(
        weight(layer, "moving_variance").astype(np.float64) + layer.epsilon
    )
    moved = known[call.inputs[0]] - weight(layer, "moving_mean")
    return np.where(gamma == 0, 0, moved * gamma / deviation) + beta


def _instance_norm(
    channels: Channels, call: Call, known: Constants
) -> np.ndarray:
    layer = call.operation
    gamma, beta = weight(layer, "gamma"), weight(layer, "beta")
    constant = ~np.isnan(known[call.inputs[0]])
    if layer.scale:
        constant |= gamma == 0
    return np.where(constant, beta, np.nan)


def _computed(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    """By the operation itself, on one position of one sample."""
    inputs = iter(call.inputs)
    flow = channels.flows[call.outputs[0]]
    rank = len(channels.shape(call.outputs[0]))
    layout = [-1 if axis == flow.axis else 1 for axis in range(rank)]
    unknown = np.zeros((), bool)
    zero = np.zeros((), bool)

    def fill(argument: Any) -> Any:
        nonlocal unknown, zero
        if not isinstance(argument, keras.KerasTensor):
            return argument
        values = known[next(inputs)]
        unknown = unknown | np.isnan(values)
        zero = zero | (values == 0)
        return keras.ops.convert_to_tensor(
            np.nan_to_num(values).reshape(layout), argument.dtype
        )

    args, kwargs = keras.tree.map_structure(
        fill, (call.args, dict(call.kwargs))
    )
    result = np.array(
        keras.ops.convert_to_numpy(call.operation(*args, **kwargs)), np.float64
    ).ravel()
    result[np.broadcast_to(unknown, result.shape)] = np.nan
    if type(call.operation).__name__ == "Multiply":
        # Zero times anything.
        result[np.broadcast_to(zero, result.shape)] = 0
    return result


def _prelu(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    # Where the slope may vary from place to place, only what is not
    # negative stays constant.
    values = known[call.inputs[0]]
    return np.where(values >= 0, values, np.nan)


def _elementwise(
    channels: Channels, call: Call, known: Constants
) -> np.ndarray:
    if isinstance(call.operation, keras.layers.UnitNormalization):
        return _zeros_only(channels, call, known)
    return _computed(channels, call, known)


def _same(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    if type(call.operation).__name__ in ("Resizing", "CenterCrop"):
        return np.full_like(known[call.inputs[0]], np.nan)  # they may fill
    return known[call.inputs[0]]


def _zeros_only(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    values = known[call.inputs[0]]
    return np.where(values == 0, 0, np.nan)


def _sequence(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    if isinstance(call.operation, keras.layers.ZeroPadding1D):
        return _zeros_only(channels, call, known)
    return known[call.inputs[0]]


def _padding(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    inside = channels.flows[call.inputs[0]].atoms
    outside = channels.flows[call.outputs[0]].atoms
    values = known[call.inputs[0]]
    sizes = np.array(call.operation.padding)
    if inside is None or outside is None or inside.size == outside.size:
        return values if not sizes.any() else np.where(values == 0, 0, np.nan)
    # Some of the padding is channels of zeros; is any of it positions?
    _, (first, second) = channels.of(call.operation).config["padding"]
    if sizes.sum() != first.size + second.size:
        values = np.where(values == 0, 0, np.nan)
    return np.concatenate([np.zeros(first.size), values, np.zeros(second.size)])


def _reduction(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    if type(call.operation).__name__ == "Sum":
        return _zeros_only(channels, call, known)
    return known[call.inputs[0]]


def _flatten(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    grid = _grid(channels, call, known)
    if call.operation.data_format == "channels_first" and grid.ndim > 1:
        grid = np.moveaxis(grid, 0, -1)
    return grid.ravel()


def _reshape(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    grid = _grid(channels, call, known)
    columns = grid.reshape(-1, channels.shape(call.outputs[0])[-1] or 1)
    return np.where((columns == columns[0]).all(0), columns[0], np.nan)


def _grid(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    shape = channels.shape(call.inputs[0])[1:]
    axis = channels.flows[call.inputs[0]].axis or 1
    layout = [-1 if i == axis - 1 else 1 for i in range(len(shape))]
    return np.broadcast_to(
        known[call.inputs[0]].reshape(layout), [size or 1 for size in shape]
    )


def _concatenate(
    channels: Channels, call: Call, known: Constants
) -> np.ndarray:
    values = [known[t] for t in call.inputs]
    axis = call.operation.axis % len(channels.shape(call.outputs[0]))
    if axis == channels.flows[call.outputs[0]].axis:
        return np.concatenate(values)
    return np.where(
        np.all([v == values[0] for v in values], axis=0), values[0], np.nan
    )


def _activated(call: Call, values: np.ndarray) -> np.ndarray:
    layer = call.operation
    result = np.array(
        keras.ops.convert_to_numpy(
            layer.activation(
                keras.ops.convert_to_tensor(
                    np.nan_to_num(values)[None], layer.compute_dtype
                )
            )
        ),
        np.float64,
    )[0]
    result[np.isnan(values)] = np.nan
    return result


_MAKERS = {
    weighted.dense,
    weighted.conv,
    weighted.conv_transpose,
    weighted.separable,
}
_PROPAGATIONS: dict[rules.Rule, Propagation] = {
    **dict.fromkeys(_MAKERS, _make),
    weighted.depthwise: _depthwise,
    weighted.batch_norm: _batch_norm,
    weighted.group_norm: _instance_norm,
    weighted.prelu: _prelu,
    plain.elementwise: _elementwise,
    plain.activation: _computed,
    plain.rescaling: _computed,
    plain.spatial: _same,
    plain.padding: _padding,
    plain.sequence: _sequence,
    plain.reduction: _reduction,
    plain.flatten: _flatten,
    plain.reshape: _reshape,
    plain.permute: _same,
    plain.repeat: _same,
    plain.merge: _computed,
    plain.concatenate: _concatenate,
}
