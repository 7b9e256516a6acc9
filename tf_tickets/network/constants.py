"""Which channels have the same value everywhere, whatever the input.

A filter of zeros gives a constant, not a zero: its bias, moved by the
normalization and bent by the activation. This walk finds the value that each
channel has at inference at every position of every sample, where there is
one, and NaN where there is none. What a layer makes of constants is said by
its entry in the table of kinds; rules that suit several kinds are here.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tf_tickets.network.channels import Channels, Read, call_name
from tf_tickets.network.graph import Call
from tf_tickets.network.kinds import kind_of
from tf_tickets.selection import view_of

Constants = dict[int, np.ndarray]


def propagate(channels: Channels) -> Constants:
    """``{tensor: value of each of its channels}``, NaN where it varies.

    Raises:
        ValueError: If a rule returns another number of values.
    """
    known: Constants = {}
    for call in channels.graph.calls:
        rule = kind_of(call.operation).constants
        for tensor in call.outputs:
            flow = channels.flows[tensor]
            if flow.atoms is None:
                continue
            values = np.full(flow.atoms.size, np.nan)
            if rule and not flow.why and not call.kwargs.get("training"):
                values = rule(channels, call, known)
            if values.shape != flow.atoms.shape:
                raise ValueError(
                    "A rule must return one value for each channel. Received: "
                    f"an array of shape {values.shape} for {flow.atoms.size} "
                    f"channels, from the rule of {call_name(call)}"
                )
            known[tensor] = values
    return known


def entering(
    channels: Channels,
    call: Call,
    known: Constants,
    axis: int | None = None,
    index: int = 0,
) -> np.ndarray:
    """The values of the channels that a call reads.

    Args:
        channels: The channels of the model.
        call: The call.
        known: What `propagate` knows by then.
        axis: Along which the channels are read. Default: that of the tensor.
        index: Which of the tensors it reads. Default: the first.

    Returns:
        One number for each channel, NaN where it varies or where the
        channels run along another axis.
    """
    tensor = call.inputs[index]
    flow, shape = channels.flows[tensor], channels.shape(tensor)
    axis = flow.axis if axis is None else axis % len(shape)
    if tensor in known and flow.axis == axis:
        return known[tensor]
    return np.full(1 if axis is None else int(shape[axis] or 1), np.nan)


# --- kernels -----------------------------------------------------------------


def present(channels: Channels, read: Read) -> np.ndarray:
    """Whether an input channel meets a weight that is not zero, anywhere.

    Returns:
        A boolean matrix (input channels, output channels).
    """
    return _block_diagonal((_positions(channels, read) != 0).any(0), read)


def pushed(channels: Channels, read: Read, values: np.ndarray) -> np.ndarray:
    """What a kernel makes of constant input channels, at every position.

    Args:
        channels: The channels of the model.
        read: The kernel.
        values: One number for each input channel.

    Returns:
        values · Σ kernel over its positions: one number for each output.
    """
    heard = np.flatnonzero(values)
    kernel = _positions(channels, read)
    if getattr(read.layer, "groups", 1) > 1:
        total = _block_diagonal(kernel.sum(0, dtype=np.float64), read)[heard]
    else:
        total = kernel[:, heard].sum(0, dtype=np.float64)
    return values[heard] @ total


def _positions(channels: Channels, read: Read) -> np.ndarray:
    """A kernel as (positions, input channels, output channels)."""
    axes = read.axes or kind_of(read.layer).axes_of(read.variable)
    kernel = weight(channels, read.layer, read.variable)
    kernel = np.moveaxis(kernel, axes, (-2, -1))
    return kernel.reshape(-1, *kernel.shape[-2:])


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


def input_constants(
    channels: Channels, read: Read, known: Constants
) -> np.ndarray:
    """The values of the channels that a kernel reads."""
    values = entering(channels, read.call, known, read.axis)
    return values if read.before is None else read.before(values)


def weight(
    channels: Channels, layer: keras.layers.Layer, name: str
) -> np.ndarray:
    """The value of a weight of ``layer`` by its name, as `view_of`."""
    for variable in layer.weights:
        if variable.name == name:
            value = channels.values.get(id(variable))
            return view_of(variable) if value is None else value
    return np.zeros(())  # a layer without bias, scale or offset


# --- rules that suit several kinds -------------------------------------------


def unchanged(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    """Every value stays: the layer moves, repeats or averages positions."""
    return entering(channels, call, known)


def zeros_only(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    """Zeros stay zeros, other constants do not stay constant."""
    values = entering(channels, call, known)
    return np.where(values == 0, 0, np.nan)


def computed(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    """By the operation itself, on one position of one sample.

    For whatever treats all positions alike and each for itself.
    """
    indices = iter(range(len(call.inputs)))
    unknown = np.zeros((), bool)

    def fill(argument: Any) -> Any:
        nonlocal unknown
        if not isinstance(argument, keras.KerasTensor):
            return argument
        index = next(indices)
        values = entering(channels, call, known, index=index)
        unknown = unknown | np.isnan(values)
        axis = channels.flows[call.inputs[index]].axis
        layout = [-1 if i == axis else 1 for i in range(argument.ndim)]
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
    return result
