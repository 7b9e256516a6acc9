"""Layers and operations without weights: they pass, move or join channels.

Each section has its rules for channels and for constants; the entries of the
table stand at the end.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tf_tickets.network.channels import (
    Atoms,
    Channels,
    Flow,
    Unfollowed,
    call_name,
)
from tf_tickets.network.constants import (
    Constants,
    computed,
    entering,
    unchanged,
    zeros_only,
)
from tf_tickets.network.graph import Call, trace
from tf_tickets.network.kinds import kind_of, operation_of, register

# --- functions of single values ----------------------------------------------


def elementwise(channels: Channels, call: Call) -> Flow:
    """Every channel stays where it is."""
    flow = channels.entering(call)
    if not isinstance(call.operation, keras.layers.Layer):
        for name, value in vars(call.operation).items():
            if not name.startswith("_") and np.ndim(value):
                raise Unfollowed(f"has a {name} for each channel")
    return flow


def activation(channels: Channels, call: Call) -> Flow:
    flow = channels.entering(call)
    axis = len(channels.shape(call.inputs[0])) - 1
    check_activation(call.operation, flow.axis == axis)
    return flow


def activated(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    return bent(call, entering(channels, call, known))


def bent(call: Call, values: np.ndarray) -> np.ndarray:
    """What the activation of a layer makes of constant channels."""
    layer = call.operation
    function = getattr(layer, "activation", None)
    if function is None:
        return values
    if kind_of(function).channels is not elementwise:
        return np.full(values.shape, np.nan)  # it mixes positions
    bare = np.nan_to_num(values)[None]
    result = function(keras.ops.convert_to_tensor(bare, layer.compute_dtype))
    result = np.array(keras.ops.convert_to_numpy(result), np.float64)[0]
    result[np.isnan(values)] = np.nan
    return result


def check_activation(layer: keras.layers.Layer, last: bool) -> None:
    """Raise unless the activation of ``layer`` keeps its channels apart.

    Args:
        layer: A layer with an activation of its own.
        last: Whether the channels run along the last axis.

    Raises:
        Unfollowed: If the activation mixes channels or is not known.
    """
    function = getattr(layer, "activation", None)
    rule = elementwise if function is None else kind_of(function).channels
    if rule is elementwise:
        return
    if isinstance(function, keras.layers.Layer):
        raise Unfollowed("has an activation that is not elementwise")
    name = getattr(function, "__name__", "") or repr(function)
    if rule is not softmax and _bends_alone(function):
        return
    if rule is not softmax:
        raise Unfollowed(f"has an unknown activation {name}")
    if last:
        raise Unfollowed(f"mixes its channels by {name}")


def _bends_alone(function: Any) -> bool:
    """Whether a function, whatever it calls, leaves all channels apart."""
    x = keras.Input((2, 3))
    try:
        # Whatever the user's code makes of a symbol, or raises.
        graph = trace(keras.Model(x, function(x)))
    except Exception:
        return False
    channels = Channels(graph)
    atoms = channels.fresh(3)
    channels.flows[graph.inputs[0]] = flow = Flow(atoms, 2)
    for call in graph.calls:
        rule = kind_of(call.operation).channels
        try:
            flow = rule(channels, call) if rule else Flow()
        except Unfollowed:
            return False
        if not isinstance(flow, Flow) or len(call.outputs) != 1:
            return False
        channels.flows[call.outputs[0]] = flow
    flow = channels.flows[graph.outputs[0]]
    return (
        flow.atoms is not None
        and flow.axis in (2, -1)
        and np.array_equal(channels.roots(flow.atoms), atoms)
        and not channels.frozen()
    )


def softmax(channels: Channels, call: Call) -> Flow:
    axis = getattr(call.operation, "axis", -1)
    return apart_from(channels, call, axis, "mixes its channels")


def softmaxed(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    """Of equal numbers each gets the same share."""
    values = entering(channels, call, known)
    shape = channels.shape(call.inputs[0])
    axes = axis_set(getattr(call.operation, "axis", -1), len(shape))
    sizes = [shape[axis] or 0 for axis in axes]
    if 0 in sizes or len(call.inputs) > 1 or call.kwargs.get("mask"):
        return np.full(values.shape, np.nan)
    share = 1 / np.prod(sizes)
    if type(call.operation) is operation_of(keras.ops.log_softmax):
        share = np.log(share)
    return np.where(np.isnan(values), np.nan, share)


def apart_from(channels: Channels, call: Call, axes: Any, why: str) -> Flow:
    """Every channel stays, if the layer works along other axes.

    Raises:
        Unfollowed: With the reason ``why``, if it works along the channels.
    """
    flow = channels.entering(call)
    rank = len(channels.shape(call.inputs[0]))
    if flow.axis in axis_set(axes, rank):
        raise Unfollowed(why)
    return flow


def axis_set(axes: Any, rank: int) -> set[int]:
    """What Keras takes for axes, as a set of positions."""
    if axes is None:
        return set(range(rank))
    each = axes if isinstance(axes, list | tuple) else [axes]
    return {axis % rank for axis in each}


def unit_norm(channels: Channels, call: Call) -> Flow:
    flow = channels.entering(call)
    # It divides by the size of all channels together.
    channels.hold(flow.atoms, call)
    return flow


def rescaling(channels: Channels, call: Call) -> Flow:
    layer = call.operation
    if np.ndim(layer.scale) or np.ndim(layer.offset):
        raise Unfollowed("has a scale for each channel")
    return channels.entering(call)


# --- positions come and go ---------------------------------------------------


def data_axis(channels: Channels, call: Call) -> int:
    """Along which axis a layer with a `data_format` finds channels."""
    rank = len(channels.shape(call.inputs[0]))
    first = getattr(call.operation, "data_format", None) == "channels_first"
    return 1 if first else rank - 1


def spatial(channels: Channels, call: Call) -> Flow:
    """Pooling, cropping, resizing: along axes other than the channels'."""
    axis = data_axis(channels, call)
    flow = channels.entering(call)
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
    flow = channels.entering(call)
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


def padded(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    layer = call.operation
    values = entering(channels, call, known)
    # Some of the padding may be channels of zeros; is any of it positions?
    _, (first, second) = channels.of(layer).config.get(
        "padding", (int, (np.zeros(0), np.zeros(0)))
    )
    if np.sum(layer.padding) != first.size + second.size:
        values = np.where(values == 0, 0, np.nan)
    return np.concatenate([np.zeros(first.size), values, np.zeros(second.size)])


def reduction(channels: Channels, call: Call) -> Flow:
    """A mean, sum or extreme over axes other than the channels'."""
    operation = call.operation
    flow = channels.entering(call)
    if flow.atoms is None or flow.axis is None:
        return flow
    if np.ndim(getattr(operation, "initial", 0)):
        raise Unfollowed("starts from a value for each channel")
    rank = len(channels.shape(call.inputs[0]))
    gone = axis_set(operation.axis, rank)
    if flow.axis in gone:
        raise Unfollowed("reduces the axis of the channels")
    if operation.keepdims:
        return flow
    return Flow(flow.atoms, flow.axis - sum(a < flow.axis for a in gone))


# --- channels are rearranged -------------------------------------------------


def flatten(channels: Channels, call: Call) -> Flow:
    flow = channels.entering(call)
    if flow.atoms is None:
        return flow
    return Flow(_flat(call, _grid(channels, call, flow.atoms)), 1)


def flattened(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    return _flat(call, _grid(channels, call, entering(channels, call, known)))


def _flat(call: Call, grid: np.ndarray) -> np.ndarray:
    # Keras flattens channels-first tensors as if the channels came last.
    if call.operation.data_format == "channels_first" and grid.ndim > 1:
        grid = np.moveaxis(grid, 0, -1)
    return grid.ravel()


def reshape(channels: Channels, call: Call) -> Flow:
    flow = channels.entering(call)
    if flow.atoms is None:
        return flow
    grid = _grid(channels, call, flow.atoms)
    target = tuple(int(size or 0) for size in channels.shape(call.outputs[0]))
    columns = grid.reshape(-1, target[-1])
    # Whole columns can go, so what shares a column goes together.
    for row in columns[1:]:
        if not np.array_equal(row, columns[0]):
            channels.tie(columns[0], row)
    atoms = columns[0]
    *others, last = call.operation.target_shape
    # What the layer counts itself may be another number in another call.
    channels.configure(
        call.operation,
        "target_shape",
        lambda count: (*others, -1 if last == -1 else count),
        atoms,
    )
    return Flow(atoms, -1)


def reshaped(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    grid = _grid(channels, call, entering(channels, call, known))
    columns = grid.reshape(-1, channels.shape(call.outputs[0])[-1] or 1)
    return np.where((columns == columns[0]).all(0), columns[0], np.nan)


def _grid(channels: Channels, call: Call, values: np.ndarray) -> np.ndarray:
    """One sample's tensor that holds at each position its channel's value."""
    axis = channels.flows[call.inputs[0]].axis or 1
    shape = channels.shape(call.inputs[0])[1:]
    target = channels.shape(call.outputs[0])[1:]
    if None in shape or None in target or not target:
        raise Unfollowed("rearranges axes of unknown size")
    layout = [-1 if i == axis - 1 else 1 for i in range(len(shape))]
    return np.broadcast_to(
        values.reshape(layout), [int(size or 0) for size in shape]
    )


def permute(channels: Channels, call: Call) -> Flow:
    flow = channels.entering(call)
    if flow.atoms is None:
        return flow
    return Flow(flow.atoms, 1 + list(call.operation.dims).index(flow.axis))


def repeat(channels: Channels, call: Call) -> Flow:
    flow = channels.entering(call)
    return flow if flow.atoms is None else Flow(flow.atoms, 2)


# --- tensors are joined ------------------------------------------------------


def merge(channels: Channels, call: Call) -> Flow:
    if _reads_arrays(call):
        raise Unfollowed("joins a tensor with a constant array")
    tensors = call.inputs
    output = channels.shape(call.outputs[0])
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
    for index in range(len(tensors)):
        atoms = channels.along(call, axis, index)
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


def multiplied(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    result = computed(channels, call, known)
    for index in range(len(call.inputs)):  # zero times anything
        zero = entering(channels, call, known, index=index) == 0
        result[np.broadcast_to(zero, result.shape)] = 0
    return result


def concatenate(channels: Channels, call: Call) -> Flow:
    if _reads_arrays(call):
        raise Unfollowed("joins a tensor with a constant array")
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
    lists = [channels.along(call, along, i) for i in range(len(call.inputs))]
    if along == axis:
        return Flow(np.concatenate(lists), axis)
    for atoms in lists[1:]:
        channels.tie(lists[0], atoms)
    return Flow(lists[0], along)


def concatenated(
    channels: Channels, call: Call, known: Constants
) -> np.ndarray:
    values = [
        entering(channels, call, known, index=i)
        for i in range(len(call.inputs))
    ]
    axis = call.operation.axis % len(channels.shape(call.outputs[0]))
    if axis == channels.flows[call.outputs[0]].axis:
        return np.concatenate(values)
    return np.where(
        np.all([v == values[0] for v in values], axis=0), values[0], np.nan
    )


def _reads_arrays(call: Call) -> bool:
    """Whether some argument is an array, which may differ by channel."""

    def holds(argument: Any) -> bool:
        if isinstance(argument, list | tuple) and any(
            isinstance(one, keras.KerasTensor)
            for one in keras.tree.flatten(argument)
        ):
            return any(holds(one) for one in argument)
        is_tensor = isinstance(argument, keras.KerasTensor)
        return not is_tensor and np.ndim(argument) > 0

    return any(holds(one) for one in (*call.args, *call.kwargs.values()))


# --- the entries -------------------------------------------------------------

_CURVES = (
    "relu relu6 leaky_relu elu selu celu gelu silu sigmoid hard_sigmoid "
    "hard_silu hard_tanh hard_shrink soft_shrink tanh tanh_shrink softplus "
    "softsign log_sigmoid squareplus sparse_plus sparse_sigmoid threshold "
)


def those_of(module: Any, names: str) -> list[Any]:
    """What a module has of these names; not every Keras has them all."""
    found = (getattr(module, name, None) for name in names.split())
    return [one for one in found if one is not None]


register(
    *those_of(
        keras.layers,
        "ReLU LeakyReLU ELU Identity Dropout AlphaDropout GaussianDropout "
        "GaussianNoise SpatialDropout1D SpatialDropout2D SpatialDropout3D "
        "ActivityRegularization",
    ),
    *those_of(
        keras.activations,
        _CURVES + "linear exponential mish",
    ),
    *those_of(
        keras.ops,
        _CURVES + "negative absolute square sqrt exp clip",
    ),
    channels=elementwise,
    constants=computed,
)
register(keras.layers.Activation, channels=activation, constants=activated)
register(
    keras.layers.Softmax,
    *those_of(keras.ops, "softmax log_softmax"),
    channels=softmax,
    constants=softmaxed,
)
# As a part of another layer.
register(*those_of(keras.activations, "softmax log_softmax"), channels=softmax)
register(
    keras.layers.UnitNormalization, channels=unit_norm, constants=zeros_only
)
register(keras.layers.Rescaling, channels=rescaling, constants=computed)
register(
    *those_of(
        keras.layers,
        " ".join(
            f"{kind}{n}D"
            for kind in (
                "MaxPooling",
                "AveragePooling",
                "GlobalMaxPooling",
                "GlobalAveragePooling",
                "AdaptiveMaxPooling",
                "AdaptiveAveragePooling",
            )
            for n in (1, 2, 3)
        )
        + " UpSampling1D UpSampling2D UpSampling3D"
        + " Cropping1D Cropping2D Cropping3D",
    ),
    channels=spatial,
    constants=unchanged,
)
# These may fill what lies outside.
register(*those_of(keras.layers, "Resizing CenterCrop"), channels=spatial)
register(keras.layers.ZeroPadding1D, channels=spatial, constants=zeros_only)
register(
    *those_of(keras.layers, "ZeroPadding2D ZeroPadding3D"),
    channels=padding,
    constants=padded,
)
register(keras.layers.Flatten, channels=flatten, constants=flattened)
register(keras.layers.Reshape, channels=reshape, constants=reshaped)
register(keras.layers.Permute, channels=permute, constants=unchanged)
register(keras.layers.RepeatVector, channels=repeat, constants=unchanged)
register(
    *those_of(keras.layers, "Add Subtract Average Maximum Minimum"),
    *those_of(keras.ops, "add subtract maximum minimum divide true_divide"),
    channels=merge,
    constants=computed,
)
register(
    keras.layers.Multiply,
    keras.ops.multiply,
    channels=merge,
    constants=multiplied,
)
register(
    keras.layers.Concatenate,
    keras.ops.concatenate,
    channels=concatenate,
    constants=concatenated,
)
register(
    *those_of(keras.ops, "mean max min"),
    channels=reduction,
    constants=computed,
)
register(keras.ops.sum, channels=reduction, constants=zeros_only)
