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
from tf_tickets.network.kinds import kind_of

# Methods of another runtime.
LITERT = ("LiteRT", "XNNPACK")
# Gathering pays only if it leaves out some of the work.
_GATHER_FRACTION = 0.9


def methods_for(
    layer: keras.layers.Layer, kernel: np.ndarray
) -> dict[str, Method]:
    """The methods that can compute ``layer``, by name; empty if none can.

    Args:
        layer: A layer whose kind has kernel methods in the table, and that
            computes in float32 without adapters.
        kernel: Its kernel's value.

    Raises:
        ValueError: If the table names a method that does not exist.
    """
    rule = kind_of(layer).kernels
    if rule is None or not _is_plain(layer) or not kernel.any():
        return {}
    found = {}
    for name, options in rule(layer).items():
        if name in LITERT:
            continue
        build = options if callable(options) else _METHODS.get(name)
        if build is None:
            raise ValueError(
                f"No method has this name; known are {[*_METHODS, *LITERT]}. "
                f"Received: {name!r} for {type(layer).__name__}"
            )
        method = build(layer, kernel, **({} if callable(options) else options))
        if method is not None:
            found[method.name] = method
    return found


def outputs_of(
    layer: keras.layers.Layer, method: Method, tensors: Tensors
) -> Callable[..., tf.Tensor]:
    """A replacement for ``layer.call`` that computes with ``method``."""

    def call(inputs: tf.Tensor, *_: object, **__: object) -> tf.Tensor:
        outputs = method.apply(inputs, tensors)
        bias = getattr(layer, "bias", None)
        activation = getattr(layer, "activation", None)
        if bias is not None:
            outputs = outputs + tf.convert_to_tensor(bias)
        return outputs if activation is None else activation(outputs)

    return call


def _is_plain(layer: keras.layers.Layer) -> bool:
    return (
        layer.compute_dtype == layer.variable_dtype == "float32"
        and getattr(layer, "quantization_mode", None) is None
        and not getattr(layer, "lora_enabled", False)
    )


def _strided(strides: tuple[int, ...]) -> Callable[[tf.Tensor], tf.Tensor]:
    def stride(x: tf.Tensor) -> tf.Tensor:
        if set(strides) <= {1}:
            return x
        window = [slice(None, None, step) for step in strides]
        return x[tuple([slice(None), *window])]

    return stride


def _matrix(
    layer: keras.layers.Layer,
    kernel: np.ndarray,
    *,
    contracted: int = 1,
    outer: int = 1,
    strides: tuple[int, ...] = (),
) -> Method:
    """A product with the trailing ``contracted`` axes of the inputs.

    The ``outer`` last axes of the kernel are those of the outputs.
    """
    axes = range(kernel.ndim)
    order = (*axes[-outer:], *axes[:-outer])
    outer_dims = kernel.shape[-outer:]
    inner = kernel.size // math.prod(outer_dims)
    shape = (math.prod(outer_dims), inner)
    prepare_input = _strided(strides)
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


def _gather(layer: keras.layers.Layer, kernel: np.ndarray) -> Method | None:
    """A smaller dense kernel, where whole rows or columns are gone."""
    ins, outs = kernel.shape[-2:]
    flat = kernel.reshape(-1, ins, outs)
    live_in = np.flatnonzero(flat.any(axis=(0, 2))).astype(np.int32)
    live_out = np.flatnonzero(flat.any(axis=(0, 1))).astype(np.int32)
    if live_in.size * live_out.size > _GATHER_FRACTION * ins * outs:
        return None
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
        if hasattr(layer, "convolution_op"):
            y = layer.convolution_op(x, tensors["kernel"])
        else:
            y = keras.ops.matmul(x, tensors["kernel"])
        if live_out.size < outs:
            y = tf.pad(y, [[0, 0]] * (y.shape.rank - 1) + [[0, 1]])
            y = tf.gather(y, place, axis=-1)
        return y

    return Method(
        "gather", order, {"kernel": (tf.float32, small)}, prepare, apply
    )


# What the table of kinds calls them; a method of one's own stands there itself.
_METHODS: dict[str, Callable[..., Method | None]] = {
    "csr": _matrix,
    "patches": convolutions.patches,
    "shifts": convolutions.shifts,
    "gather": _gather,
}
