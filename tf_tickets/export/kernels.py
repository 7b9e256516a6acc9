"""Which ways there are to compute a layer whose kernel holds few weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from tf_tickets.export import convolutions
from tf_tickets.export.decoding import scattered
from tf_tickets.export.products import (
    Decoded,
    Method,
    Tensors,
    coordinate_types,
    coordinates,
    rows_product,
)

# Gathering pays only if it leaves out some of the work.
_GATHER_FRACTION = 0.9


def methods_for(
    layer: keras.layers.Layer, kernel: np.ndarray
) -> dict[str, Method]:
    """The methods that can compute ``layer``, by name; empty if none can.

    Args:
        layer: Exactly a Dense, EinsumDense, Conv1D or Conv2D layer that
            computes in float32, with neither groups nor adapters.
        kernel: Its kernel's value.
    """
    if not _is_plain(layer) or not kernel.any():
        return {}
    found = []
    if isinstance(layer, keras.layers.Dense):
        found.append(_matrix(kernel, (1, 0), 1, kernel.shape[1:]))
    elif isinstance(layer, keras.layers.EinsumDense):
        contracted = contracted_axes(layer.equation, kernel.ndim)
        if contracted is not None:
            axes = range(kernel.ndim)
            order = (*axes[contracted:], *axes[:contracted])
            outer = kernel.shape[contracted:]
            found.append(_matrix(kernel, order, contracted, outer))
    elif set(layer.kernel_size) == {1}:
        order = (kernel.ndim - 1, *range(kernel.ndim - 1))
        stride = _strided(layer.strides)
        found.append(_matrix(kernel, order, 1, kernel.shape[-1:], stride))
    elif isinstance(layer, keras.layers.Conv2D) and layer.padding in (
        "same",
        "valid",
    ):
        found += convolutions.methods_for(layer, kernel)
    if not isinstance(layer, keras.layers.EinsumDense):
        found += _gather(layer, kernel)
    return {method.name: method for method in found}


def outputs_of(
    layer: keras.layers.Layer, method: Method, tensors: Tensors
) -> Callable[..., tf.Tensor]:
    """A replacement for ``layer.call`` that computes with ``method``."""

    def call(inputs: tf.Tensor, *_: object, **__: object) -> tf.Tensor:
        outputs = method.apply(inputs, tensors)
        if layer.bias is not None:
            outputs = outputs + tf.convert_to_tensor(layer.bias)
        if layer.activation is not None:
            outputs = layer.activation(outputs)
        return outputs

    return call


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


def _is_plain(layer: keras.layers.Layer) -> bool:
    # A subclass may compute something else in its `call`.
    return (
        type(layer)
        in (
            keras.layers.Dense,
            keras.layers.EinsumDense,
            keras.layers.Conv1D,
            keras.layers.Conv2D,
        )
        and layer.compute_dtype == layer.variable_dtype == "float32"
        and layer.quantization_mode is None
        and not layer.lora_enabled
        and getattr(layer, "groups", 1) == 1
        and getattr(layer, "data_format", None) in (None, "channels_last")
    )


def _strided(strides: tuple[int, ...]) -> Callable[[tf.Tensor], tf.Tensor]:
    def stride(x: tf.Tensor) -> tf.Tensor:
        if set(strides) == {1}:
            return x
        window = [slice(None, None, step) for step in strides]
        return x[tuple([slice(None), *window])]

    return stride


def _matrix(
    kernel: np.ndarray,
    order: tuple[int, ...],
    contracted: int,
    outer_dims: tuple[int, ...],
    prepare_input: Callable[[tf.Tensor], tf.Tensor] = lambda x: x,
) -> Method:
    """A product with the trailing ``contracted`` axes of the inputs."""
    inner = kernel.size // math.prod(outer_dims)
    shape = (math.prod(outer_dims), inner)
    count = int(np.count_nonzero(kernel))

    def apply(inputs: tf.Tensor, tensors: Tensors) -> tf.Tensor:
        x = prepare_input(inputs)
        rank = x.shape.rank - contracted
        y = rows_product(tf.reshape(x, [-1, inner]), tensors, shape)
        out = tf.reshape(y, tf.concat([tf.shape(x)[:rank], outer_dims], 0))
        out.set_shape(x.shape[:rank].concatenate(outer_dims))
        return out

    return Method(
        "csr",
        order,
        coordinate_types(count),
        lambda decoded: coordinates(shape, decoded),
        apply,
    )


def _gather(layer: keras.layers.Layer, kernel: np.ndarray) -> list[Method]:
    """A smaller dense kernel, where whole rows or columns are gone."""
    if getattr(layer, "padding", None) == "causal":  # padded in its `call`
        return []
    ins, outs = kernel.shape[-2:]
    flat = kernel.reshape(-1, ins, outs)
    live_in = np.flatnonzero(flat.any(axis=(0, 2))).astype(np.int32)
    live_out = np.flatnonzero(flat.any(axis=(0, 1))).astype(np.int32)
    if live_in.size * live_out.size > _GATHER_FRACTION * ins * outs:
        return []
    # Where each output is found among the live ones; the gone ones point at
    # a column of zeros behind them.
    place = np.full(outs, live_out.size, np.int32)
    place[live_out] = np.arange(live_out.size)
    order = tuple(range(kernel.ndim))
    small = (*kernel.shape[:-2], live_in.size, live_out.size)

    def prepare(decoded: Decoded) -> Tensors:
        values, positions = decoded
        whole = tf.reshape(
            scattered(
                positions,
                tf.cast(values, tf.float32),
                tf.constant(kernel.size, tf.int64),
            ),
            kernel.shape,
        )
        rows = tf.gather(whole, live_in, axis=-2)
        return {"kernel": tf.gather(rows, live_out, axis=-1)}

    def apply(inputs: tf.Tensor, tensors: Tensors) -> tf.Tensor:
        x = inputs
        if live_in.size < ins:
            x = tf.gather(x, live_in, axis=-1)
        if isinstance(layer, keras.layers.Dense):
            y = keras.ops.matmul(x, tensors["kernel"])
        else:
            y = layer.convolution_op(x, tensors["kernel"])
        if live_out.size < outs:
            y = tf.pad(y, [[0, 0]] * (y.shape.rank - 1) + [[0, 1]])
            y = tf.gather(y, place, axis=-1)
        return y

    return [
        Method("gather", order, {"kernel": (tf.float32, small)}, prepare, apply)
    ]
