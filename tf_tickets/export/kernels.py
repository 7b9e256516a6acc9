"""How a layer whose kernel holds few weights can be computed.

A `Method` says how a layer's kernel is stored, what is made of it at load time
and how the layer's linear map is computed from that, by standard operations.
Bias and activation stay the layer's own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import keras
import numpy as np
import tensorflow as tf

from tf_tickets.export.coding import Decoded, scattered
from tf_tickets.network.kinds import kind_of

Tensors = Mapping[str, tf.Tensor]

# From this many rows on, a CSR product, which must convert its operand first,
# beats the plain loop over the weights.
_MANY_ROWS = 16

# Gathering pays only if it leaves out some of the work.
_GATHER_FRACTION = 0.9

# The axes of a convolution's kernel as rows of filters.
_FILTERS_FIRST = (3, 0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to compute the linear map of one layer.

    Attributes:
        name: ``"csr"``, ``"patches"``, ``"shifts"`` or ``"gather"``.
        order: The order of the kernel's axes in which it is stored.
        tensors: ``{name: (dtype, shape)}`` of what is made at load time.
        prepare: ``(values, positions) -> {name: tensor}``.
        apply: ``(inputs, tensors) -> outputs`` without bias.
    """

    name: str
    order: tuple[int, ...]
    tensors: Mapping[str, tuple[tf.DType, tuple[int, ...]]]
    prepare: Callable[[Decoded], Tensors]
    apply: Callable[[tf.Tensor, Tensors], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Choice:
    """How one kernel is computed when it is served.

    Attributes:
        layer: The layer that it belongs to.
        method: One of the layer's methods.
    """

    layer: keras.layers.Layer
    method: Method


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
        build = options if callable(options) else _METHODS.get(name)
        if build is None:
            raise ValueError(
                f"No method has this name; known are {[*_METHODS]}. "
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
        y = _rows_product(tf.reshape(x, [-1, inner]), tensors, shape)
        out = tf.reshape(y, tf.concat([tf.shape(x)[:rank], outer_dims], 0))
        out.set_shape(x.shape[:rank].concatenate(outer_dims))
        return out

    return Method(
        "csr",
        order,
        _coordinate_types(count),
        lambda decoded: _coordinates(shape, decoded),
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


# Both methods for windows multiply a sparse [filters, window x channels]
# matrix with the pixels under each window. ``patches`` extracts these with
# TensorFlow's own operation, channels last. ``shifts`` turns the images to
# channels first and pads them, so that each row of the pixel matrix is one
# channel moved by a fixed distance: one long copy, and only for the channels
# that some filter reads at that place of its window.


def _patches(layer: keras.layers.Conv2D, kernel: np.ndarray) -> Method:
    height, width, channels, filters = kernel.shape
    shape = (filters, height * width * channels)

    def apply(inputs: tf.Tensor, tensors: Tensors) -> tf.Tensor:
        windows = tf.image.extract_patches(
            inputs,
            [1, height, width, 1],
            [1, *layer.strides, 1],
            [1, *layer.dilation_rate, 1],
            layer.padding.upper(),
        )
        y = _rows_product(tf.reshape(windows, [-1, shape[1]]), tensors, shape)
        out = tf.reshape(y, tf.concat([tf.shape(windows)[:3], [filters]], 0))
        out.set_shape(windows.shape[:3].concatenate(filters))
        return out

    return Method(
        "patches",
        _FILTERS_FIRST,
        _coordinate_types(int(np.count_nonzero(kernel))),
        lambda decoded: _coordinates(shape, decoded),
        apply,
    )


def _shifts(layer: keras.layers.Conv2D, kernel: np.ndarray) -> Method:
    height, width, channels, filters = kernel.shape
    shape = (filters, height * width * channels)
    read = kernel.any(axis=3).reshape(height * width, channels)
    # Rows of the pixel matrix: first those of the window's first place, ...
    ends = np.cumsum(read.sum(axis=1)).tolist()
    starts = [0, *ends[:-1]]
    rows = ends[-1]

    def prepare(decoded: Decoded) -> Tensors:
        whole = _coordinates(shape, decoded)
        column = whole["indices"][:, 1]
        used = tf.sort(tf.unique(column)[0])
        row = tf.searchsorted(used, column, out_type=tf.int64)
        return {
            "indices": tf.stack([whole["indices"][:, 0], row], axis=1),
            "values": whole["values"],
            "channels": tf.cast(used % channels, tf.int32),
        }

    def apply(inputs: tf.Tensor, tensors: Tensors) -> tf.Tensor:
        images = tf.transpose(inputs, [3, 0, 1, 2])
        if layer.padding == "same":
            images = tf.pad(
                images,
                [
                    [0, 0],
                    [0, 0],
                    [(height - 1) // 2, height // 2],
                    [(width - 1) // 2, width // 2],
                ],
            )
        _, batch, tall, wide = tf.unstack(tf.shape(images))
        pixels = batch * tall * wide
        picked = tf.gather(
            tf.reshape(images, [channels, -1]), tensors["channels"]
        )
        # What a shift pulls in from the next row lands on padding only.
        farthest = (height - 1) * wide + width - 1
        line = tf.pad(tf.reshape(picked, [-1]), [[0, farthest]])
        moved = []
        for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
            if start == end:
                continue
            by = (place // width) * wide + place % width
            moved.append(line[start * pixels + by : end * pixels + by])
        matrix = tf.reshape(tf.concat(moved, 0), [rows, pixels])
        y = _columns_product(matrix, tensors, (filters, rows))
        y = tf.reshape(y, [filters, batch, tall, wide])
        y = y[:, :, : tall - height + 1, : wide - width + 1]
        out = tf.transpose(y, [1, 2, 3, 0])
        size = [
            None if n is None else n if layer.padding == "same" else n - k + 1
            for n, k in zip(inputs.shape[1:3], (height, width), strict=True)
        ]
        out.set_shape([inputs.shape[0], *size, filters])
        return out

    return Method(
        "shifts",
        _FILTERS_FIRST,
        {
            **_coordinate_types(int(np.count_nonzero(kernel))),
            "channels": (tf.int32, (rows,)),
        },
        prepare,
        apply,
    )


def _coordinate_types(
    count: int,
) -> dict[str, tuple[tf.DType, tuple[int, ...]]]:
    """The types of what `_coordinates` returns."""
    return {"indices": (tf.int64, (count, 2)), "values": (tf.float32, (count,))}


def _columns_product(
    x: tf.Tensor, tensors: Tensors, shape: tuple[int, int]
) -> tf.Tensor:
    """``x`` [columns, inner] → [outer, columns], by a sparse [outer, inner]."""
    csr = tf.raw_ops.SparseTensorToCSRSparseMatrix(
        indices=tensors["indices"],
        values=tensors["values"],
        dense_shape=tf.constant(shape, tf.int64),
    )
    return tf.raw_ops.SparseMatrixMatMul(a=csr, b=x)


def _rows_product(
    x: tf.Tensor, tensors: Tensors, shape: tuple[int, int]
) -> tf.Tensor:
    """``x`` [rows, inner] → [rows, outer], by a sparse [outer, inner]."""

    def few() -> tf.Tensor:
        return tf.transpose(
            tf.raw_ops.SparseTensorDenseMatMul(
                a_indices=tensors["indices"],
                a_values=tensors["values"],
                a_shape=tf.constant(shape, tf.int64),
                b=x,
                adjoint_b=True,
            )
        )

    def many() -> tf.Tensor:
        return tf.transpose(_columns_product(tf.transpose(x), tensors, shape))

    return tf.cond(tf.shape(x)[0] < _MANY_ROWS, few, many)


def _coordinates(
    shape: tuple[int, int], decoded: Decoded
) -> dict[str, tf.Tensor]:
    """Row and column of each kept weight of a matrix, and its value."""
    values, positions = decoded
    indices = tf.stack([positions // shape[1], positions % shape[1]], axis=1)
    return {"indices": indices, "values": tf.cast(values, tf.float32)}


# What the table of kinds calls them; a method of one's own stands there itself.
_METHODS: dict[str, Callable[..., Method | None]] = {
    "csr": _matrix,
    "patches": _patches,
    "shifts": _shifts,
    "gather": _gather,
}
