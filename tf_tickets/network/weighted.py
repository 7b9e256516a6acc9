"""Layers with weights: they make channels, or keep something for each.

Each section has its rules for channels and for constants, then what the
layers compute and which sparse methods can compute it; the entries of the
table stand at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets.network.channels import (
    Atoms,
    Channels,
    Flow,
    Read,
    Unfollowed,
    call_name,
)
from tf_tickets.network.constants import (
    Constants,
    entering,
    input_constants,
    present,
    pushed,
    weight,
    zeros_only,
)
from tf_tickets.network.graph import Call, Shape
from tf_tickets.network.kinds import Rule, kind_of, register
from tf_tickets.network.weightless import (
    apart_from,
    axis_set,
    bent,
    check_activation,
    data_axis,
    those_of,
)

_WEIGHTS = {"kernel", "depthwise_kernel", "pointwise_kernel", "bias"}

# --- kernels that make channels ----------------------------------------------


def makes(size: str, uniform: Callable[[Any], bool]) -> Rule:
    """The rule of a layer whose kernel reads channels and makes new ones.

    Args:
        size: The key of its configuration that counts those it makes.
        uniform: Whether, in this layer, an input that is the same at every
            position gives an output that is.
    """

    def rule(channels: Channels, call: Call) -> Flow:
        layer = call.operation
        check_weights(layer)
        axis = data_axis(channels, call)
        read = channels.along(call, axis)
        groups = getattr(layer, "groups", 1)
        if groups == read.size > 1:
            return _per_channel_groups(channels, call, read, axis)
        made = channels.make(layer, getattr(layer, size))
        if groups > 1:
            # One kernel serves all groups: the groups keep equal sizes, so
            # channels at the same place in every group go together.
            for atoms in (read, made):
                first, *others = atoms.reshape(groups, -1)
                for group in others:
                    channels.tie(first, group)
        ins, outs = kind_of(layer).axes_of("kernel")
        channels.claim(layer, "kernel", ins, read[: read.size // groups])
        channels.claim(layer, "kernel", outs, made)
        channels.claim(layer, "bias", 0, made)
        channels.configure(layer, size, int, made)
        channels.reads.append(
            Read(call, layer, "kernel", read, made, axis, uniform(layer))
        )
        return _activated(channels, call, made, axis)

    return rule


def _per_channel_groups(
    channels: Channels, call: Call, read: Atoms, axis: int
) -> Flow:
    layer = call.operation
    made = np.repeat(read, layer.filters // layer.groups)
    channels.claim(layer, "kernel", -1, made)
    channels.claim(layer, "bias", 0, made)
    channels.configure(layer, "filters", int, made)
    channels.configure(layer, "groups", int, read)
    return _activated(channels, call, made, axis)


def depthwise(channels: Channels, call: Call) -> Flow:
    layer = call.operation
    check_weights(layer)
    axis = data_axis(channels, call)
    read = channels.along(call, axis)
    made = np.repeat(read, layer.depth_multiplier)
    # Keras calls the variable of a depthwise convolution "kernel" too.
    channels.claim(layer, layer.kernel.name, -2, read)
    channels.claim(layer, "bias", 0, made)
    return _activated(channels, call, made, axis)


def separable(channels: Channels, call: Call) -> Flow:
    layer = call.operation
    check_weights(layer)
    axis = data_axis(channels, call)
    read = channels.along(call, axis)
    made = channels.make(layer, layer.filters)
    between = np.repeat(read, layer.depth_multiplier)
    channels.claim(layer, "depthwise_kernel", -2, read)
    channels.claim(layer, "pointwise_kernel", -2, between)
    channels.claim(layer, "pointwise_kernel", -1, made)
    channels.claim(layer, "bias", 0, made)
    channels.configure(layer, "filters", int, made)

    def before(values: np.ndarray) -> np.ndarray:
        return _each(
            np.repeat(values, layer.depth_multiplier),
            weight(channels, layer, "depthwise_kernel"),
            unpadded(layer),
        )

    channels.reads.append(
        Read(call, layer, "pointwise_kernel", between, made, axis, True, before)
    )
    return _activated(channels, call, made, axis)


def embedding(channels: Channels, call: Call) -> Flow:
    layer = call.operation
    check_weights(layer, {"embeddings"})
    made = channels.make(layer, layer.output_dim)
    channels.claim(layer, "embeddings", 1, made)
    channels.configure(layer, "output_dim", int, made)
    return Flow(made, -1)


def embedded(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    """A column of equal numbers says the same of every word."""
    table = weight(channels, call.operation, "embeddings")
    return np.where((table == table[:1]).all(0), table[0], np.nan)


def check_weights(
    layer: keras.layers.Layer, names: set[str] | None = None
) -> None:
    """Raise if a layer holds other weights than those of its kind.

    Raises:
        Unfollowed: Quantized and LoRA layers hold more, packed in their own
            ways.
    """
    strange = {v.name for v in layer.weights} - (names or _WEIGHTS)
    if strange:
        raise Unfollowed(f"has weights of another kind: {sorted(strange)}")


def everywhere(layer: keras.layers.Layer) -> bool:
    return True


def unpadded(layer: Any) -> bool:
    return layer.padding == "valid" or set(layer.kernel_size) == {1}


def one_to_one(layer: Any) -> bool:
    # Strides leave gaps between the inputs, and borders see fewer.
    return set(layer.kernel_size) | set(layer.strides) == {1}


def _activated(channels: Channels, call: Call, made: Atoms, axis: int) -> Flow:
    """The output of a layer with an activation of its own."""
    rank = len(channels.shape(call.outputs[0]))
    try:
        check_activation(call.operation, axis % rank == rank - 1)
    except Unfollowed as reason:
        why = f"{call_name(call)} {reason}"
        channels.freeze(made, why)
        return Flow(why=why)
    return Flow(made, axis)


def made(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    read = next((r for r in channels.reads if r.call is call), None)
    if read is None:  # as many groups as channels
        return made_of_each(channels, call, known)
    values = input_constants(channels, read, known)
    varies = np.isnan(values) | ((values != 0) & (not read.uniform))
    result = pushed(channels, read, np.where(varies, 0, values))
    result = result + weight(channels, read.layer, "bias")
    result[present(channels, read)[varies].any(0)] = np.nan
    return bent(call, result)


def made_of_each(
    channels: Channels, call: Call, known: Constants
) -> np.ndarray:
    layer = call.operation
    values = entering(channels, call, known, data_axis(channels, call))
    atoms = channels.flows[call.outputs[0]].atoms
    size = 0 if atoms is None else atoms.size
    kernel = weight(channels, layer, layer.kernel.name)
    moved = _each(
        np.repeat(values, size // values.size), kernel, unpadded(layer)
    )
    return bent(call, moved + weight(channels, layer, "bias"))


def _each(values: np.ndarray, kernel: np.ndarray, uniform: bool) -> np.ndarray:
    """A kernel that treats every channel for itself."""
    flat = kernel.astype(np.float64)
    flat = flat.reshape(-1, flat.shape[-2] * flat.shape[-1])
    with np.errstate(invalid="ignore"):
        result = values * flat.sum(0)
    if not uniform:
        result[values != 0] = np.nan
    result[~(flat != 0).any(0)] = 0
    return result


# --- something for every channel ---------------------------------------------


def batch_norm(channels: Channels, call: Call) -> Flow:
    layer = call.operation
    atoms = channels.along(call, layer.axis)
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        channels.claim(layer, name, 0, atoms)
    return Flow(atoms, layer.axis)


def batch_normed(
    channels: Channels, call: Call, known: Constants
) -> np.ndarray:
    layer = call.operation
    gamma, beta = (
        weight(channels, layer, "gamma"),
        weight(channels, layer, "beta"),
    )
    if not layer.scale:
        gamma = np.ones(())
    deviation = np.sqrt(
        weight(channels, layer, "moving_variance").astype(np.float64)
        + layer.epsilon
    )
    values = entering(channels, call, known, layer.axis)
    moved = values - weight(channels, layer, "moving_mean")
    return np.where(gamma == 0, 0, moved * gamma / deviation) + beta


def instance_norm(channels: Channels, call: Call) -> Flow:
    layer = call.operation
    atoms = channels.along(call, layer.axis)
    if layer.groups != atoms.size:
        raise Unfollowed("normalizes several channels together")
    channels.claim(layer, "gamma", 0, atoms)
    channels.claim(layer, "beta", 0, atoms)
    channels.configure(layer, "groups", int, atoms)
    return Flow(atoms, layer.axis)


def instance_normed(
    channels: Channels, call: Call, known: Constants
) -> np.ndarray:
    layer = call.operation
    gamma, beta = (
        weight(channels, layer, "gamma"),
        weight(channels, layer, "beta"),
    )
    constant = ~np.isnan(entering(channels, call, known, layer.axis))
    if layer.scale:
        constant |= gamma == 0
    return np.where(constant, beta, np.nan)


def layer_norm(channels: Channels, call: Call) -> Flow:
    why = "normalizes several channels together"
    return apart_from(channels, call, call.operation.axis, why)


def layer_normed(
    channels: Channels, call: Call, known: Constants
) -> np.ndarray:
    """Along other axes than the channels', where equal numbers vanish."""
    constant = ~np.isnan(entering(channels, call, known))
    beta = weight(channels, call.operation, "beta").astype(np.float64)
    if np.ptp(beta):
        return np.full(constant.shape, np.nan)
    return np.where(constant, beta.ravel()[0], np.nan)


def rms_norm(channels: Channels, call: Call) -> Flow:
    rank = len(channels.shape(call.inputs[0]))
    found = axis_set(call.operation.axis, rank)
    if found != set(range(rank - len(found), rank)):
        # Keras lays its scale along the last axes, whatever it normalizes.
        raise Unfollowed("normalizes axes before the last")
    return layer_norm(channels, call)


def prelu(channels: Channels, call: Call) -> Flow:
    layer = call.operation
    flow = channels.entering(call)
    if flow.atoms is not None and flow.axis is not None:
        axis = flow.axis - 1
        if tuple(layer.alpha.shape)[axis] == flow.atoms.size > 1:
            channels.claim(layer, "alpha", axis, flow.atoms)
    return flow


def bent_by_slope(
    channels: Channels, call: Call, known: Constants
) -> np.ndarray:
    # Where the slope may vary from place to place, only what is not
    # negative stays constant.
    values = entering(channels, call, known)
    return np.where(values >= 0, values, np.nan)


def times(kernel: str, uniform: Callable[[Any], bool]) -> Rule:
    """The rule of a layer that multiplies by a kernel and adds a bias."""
    return lambda layer: (kernel, uniform(layer))


def nowhere(layer: keras.layers.Layer) -> bool:
    return False


# --- what they compute, and which sparse methods can -------------------------

Uses = list[tuple[keras.Variable, Shape]]


def at_outputs(layer: Any, read: Shape, made: Shape) -> Uses:
    """Every kernel is used once at every position of the output."""
    first = getattr(layer, "data_format", None) == "channels_first"
    sizes = made[2:] if first else made[1:-1]
    names = ("kernel", "depthwise_kernel", "pointwise_kernel")
    return [(getattr(layer, n), sizes) for n in names if hasattr(layer, n)]


def at_inputs(layer: Any, read: Shape, made: Shape) -> Uses:
    return at_outputs(layer, made, read)


def einsum_uses(layer: Any, read: Shape, made: Shape) -> Uses:
    names, _, rest = layer.equation.replace(" ", "").partition(",")
    kernel, _, _ = rest.partition("->")
    # "...ab": what stands for the dots, but for the batch, is free.
    known = names.replace(".", "") if "." in names else names[1:]
    free = read[1 : len(read) - len(known)]
    named = zip(known, read[len(read) - len(known) :], strict=True)
    sizes = (*free, *(size for name, size in named if name not in kernel))
    return [(layer.kernel, sizes)]


def unused(layer: Any, read: Shape, made: Shape) -> Uses:
    """Tables and scales are read, not multiplied into sums."""
    return []


def dense_kernels(layer: Any) -> Mapping[str, Any]:
    return {"csr": {}, "gather": {}}


def einsum_kernels(layer: Any) -> Mapping[str, Any]:
    rank = len(layer.kernel.shape)
    contracted = contracted_axes(layer.equation, rank)
    if contracted is None:
        return {}
    return {"csr": {"contracted": contracted, "outer": rank - contracted}}


def einsum_outputs(layer: Any, kernel: keras.Variable) -> Sequence[int]:
    """Axes of the kernel whose letters stand in the output."""
    if kernel.name != "kernel":
        return [-1]
    _, _, rest = layer.equation.replace(" ", "").partition(",")
    names, _, outputs = rest.partition("->")
    return [axis for axis, name in enumerate(names) if name in outputs]


def conv_kernels(layer: Any) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    pointwise = set(layer.kernel_size) == {1}
    still = set(layer.strides) == {1}
    images = len(layer.kernel_size) == 2
    if layer.groups > 1:
        return found
    if layer.data_format == "channels_first":
        return found
    if pointwise:
        found["csr"] = {"strides": layer.strides}
    elif images and layer.padding in ("same", "valid"):
        found["patches"] = {}
        if still and set(layer.dilation_rate) == {1}:
            found["shifts"] = {}
    if layer.padding != "causal":  # padded in its `call`
        found["gather"] = {}
    return found


def contracted_axes(equation: str, rank: int) -> int | None:
    """How many leading kernel axes an einsum contracts, if it is a matmul.

    `None` unless the equation multiplies the trailing axes of the inputs with
    the leading axes of the kernel and appends the kernel's other axes.

    Example:

    >>> contracted_axes("abc,cde->abde", 3)
    1
    >>> contracted_axes("abc,dc->abd", 2) is None
    True
    """
    inputs, _, rest = equation.replace(" ", "").partition(",")
    kernel, _, outputs = rest.partition("->")
    for count in range(1, rank):
        batch = inputs[: len(inputs) - count]
        if (
            inputs[len(inputs) - count :] == kernel[:count]
            and outputs == batch + kernel[count:]
            and len(set(batch) | set(kernel)) == len(batch) + len(kernel)
        ):
            return count
    return None


# --- what their kernels are multiplied with ----------------------------------


def dense_rows(layer: Any, kernel: keras.Variable, x: Any) -> tf.Tensor:
    """The last axis, at every position."""
    return tf.reshape(x, (-1, 1, kernel.shape[0]))


def einsum_rows(layer: Any, kernel: keras.Variable, x: Any) -> tf.Tensor:
    """The axes that are summed over; those that stay in both are groups."""
    inputs, _, rest = layer.equation.replace(" ", "").partition(",")
    names, _, outputs = rest.partition("->")
    dots = len(x.shape) - len(inputs.replace("...", ""))
    inputs, outputs = (
        text.replace("...", "".join(_UNUSED[:dots]))
        for text in (inputs, outputs)
    )
    summed = [name for name in names if name not in outputs]
    made = [name for name in names if name in outputs]
    shared = [name for name in made if name in inputs]
    if not set(summed) <= set(inputs):
        raise ValueError(f"the equation {layer.equation!r} sums it alone")
    if made[: len(shared)] != shared:
        raise ValueError(
            f"the equation {layer.equation!r} has axes of the input among "
            "those that the kernel makes"
        )
    free = [name for name in inputs if name in outputs and name not in names]
    sizes = dict(zip(names, kernel.shape, strict=True))
    turned = tf.einsum(f"{inputs}->{''.join(free + shared + summed)}", x)
    groups, rows = (
        math.prod(sizes[name] for name in part) for part in (shared, summed)
    )
    return tf.reshape(turned, (-1, groups, rows))


# Letters for the axes that the dots of an equation stand for.
_UNUSED = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def conv_rows(layer: Any, kernel: keras.Variable, x: Any) -> tf.Tensor:
    """The window: what a kernel that only copies would make of it."""
    if _op_of(type(layer)) is not _op_of(keras.layers.Conv2D):
        raise ValueError("its class convolves in a way of its own")
    padding = layer.padding
    if padding == "causal":
        before = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
        steps = data_axes(layer)[0]
        x = tf.pad(x, [(before * (a == steps), 0) for a in range(3)])
        padding = "valid"
    rows = math.prod(kernel.shape[:-1])
    copying = tf.reshape(tf.eye(rows), (*kernel.shape[:-1], rows))
    made = keras.ops.conv(
        x,
        tf.concat([copying] * layer.groups, -1),
        strides=list(layer.strides),
        padding=padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )
    return _positions(layer, made, (layer.groups, rows))


def depthwise_rows(layer: Any, kernel: keras.Variable, x: Any) -> tf.Tensor:
    """The window of every channel for itself."""
    *window, channels, _ = kernel.shape
    rows = math.prod(window)
    copying = tf.reshape(tf.eye(rows), (*window, 1, rows))
    made = _depthwise(layer, x, tf.repeat(copying, channels, axis=-2))
    return _positions(layer, made, (channels, rows))


def separable_rows(layer: Any, kernel: keras.Variable, x: Any) -> tf.Tensor:
    """The windows, or what the first kernel makes of them."""
    if kernel.name == "depthwise_kernel":
        return depthwise_rows(layer, kernel, x)
    first = tf.cast(tf.convert_to_tensor(layer.depthwise_kernel), x.dtype)
    return _positions(layer, _depthwise(layer, x, first), (1, kernel.shape[-2]))


def transposed_rows(layer: Any, kernel: keras.Variable, x: Any) -> tf.Tensor:
    """What reaches each position of the output, through a copying kernel."""
    *window, _, channels = kernel.shape
    rows = math.prod(window) * channels
    copying = tf.reshape(tf.eye(rows), (*window, channels, rows))
    made = keras.ops.conv_transpose(
        x,
        tf.einsum("...ab->...ba", copying),
        strides=list(layer.strides),
        padding=layer.padding,
        output_padding=layer.output_padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )
    return _positions(layer, made, (1, rows))


def data_axes(layer: Any) -> range:
    """The axes of a convolution's input that are neither batch nor channel."""
    first = 2 if layer.data_format == "channels_first" else 1
    return range(first, first + len(layer.kernel_size))


def _op_of(kind: type) -> Any:
    return getattr(kind, "convolution_op", None)


def _depthwise(layer: Any, x: Any, kernel: tf.Tensor) -> Any:
    return keras.ops.depthwise_conv(
        x,
        kernel,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )


def _positions(layer: Any, made: Any, sizes: tuple[int, int]) -> tf.Tensor:
    """The channels at every position, cut into groups and rows."""
    if layer.data_format == "channels_first":
        made = keras.ops.moveaxis(made, 1, -1)
    return tf.reshape(made, (-1, *sizes))


# --- the entries -------------------------------------------------------------

register(
    keras.layers.Dense,
    channels=makes("units", everywhere),
    constants=made,
    flops=at_outputs,
    kernels=dense_kernels,
    rows=dense_rows,
    affine=times("kernel", everywhere),
)
register(
    keras.layers.EinsumDense,
    flops=einsum_uses,
    kernels=einsum_kernels,
    outputs=einsum_outputs,
    rows=einsum_rows,
)
register(
    *those_of(keras.layers, "Conv1D Conv2D Conv3D"),
    channels=makes("filters", unpadded),
    constants=made,
    flops=at_outputs,
    kernels=conv_kernels,
    rows=conv_rows,
    affine=times("kernel", unpadded),
)
register(
    *those_of(keras.layers, "Conv1DTranspose Conv2DTranspose Conv3DTranspose"),
    channels=makes("filters", one_to_one),
    constants=made,
    flops=at_inputs,
    axes={"kernel": (-1, -2)},
    rows=transposed_rows,
    affine=times("kernel", one_to_one),
)
register(
    *those_of(keras.layers, "DepthwiseConv1D DepthwiseConv2D"),
    channels=depthwise,
    constants=made_of_each,
    flops=at_outputs,
    axes={"kernel": (-2, -2)},
    rows=depthwise_rows,
    affine=times("kernel", unpadded),
)
register(
    *those_of(keras.layers, "SeparableConv1D SeparableConv2D"),
    channels=separable,
    constants=made,
    flops=at_outputs,
    axes={"depthwise_kernel": (-2, -2)},
    rows=separable_rows,
    affine=times("pointwise_kernel", nowhere),
)
register(
    keras.layers.Embedding,
    channels=embedding,
    constants=embedded,
    flops=unused,
)
register(
    keras.layers.BatchNormalization,
    channels=batch_norm,
    constants=batch_normed,
    flops=unused,
)
register(
    keras.layers.GroupNormalization,
    channels=instance_norm,
    constants=instance_normed,
    flops=unused,
)
register(
    keras.layers.LayerNormalization,
    channels=layer_norm,
    constants=layer_normed,
    flops=unused,
)
register(
    *those_of(keras.layers, "RMSNormalization"),
    channels=rms_norm,
    constants=zeros_only,
    flops=unused,
)
register(keras.layers.Normalization, flops=unused)
register(
    keras.layers.PReLU, channels=prelu, constants=bent_by_slope, flops=unused
)
