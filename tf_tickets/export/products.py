"""A sparse kernel times dense activations, by standard operations.

A `Method` says how a layer's kernel is stored, what is made of it at load time
and how the layer's linear map is computed from that. Bias and activation stay
the layer's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import tensorflow as tf

from tf_tickets.export.decoding import Decoded

Tensors = Mapping[str, tf.Tensor]

# From this many rows on, a CSR product, which must convert its operand first,
# beats the plain loop over the weights.
_MANY_ROWS = 16


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


def coordinate_types(
    count: int,
) -> dict[str, tuple[tf.DType, tuple[int, ...]]]:
    """The types of what `coordinates` returns."""
    return {"indices": (tf.int64, (count, 2)), "values": (tf.float32, (count,))}


def columns_product(
    x: tf.Tensor, tensors: Tensors, shape: tuple[int, int]
) -> tf.Tensor:
    """``x`` [columns, inner] → [outer, columns], by a sparse [outer, inner]."""
    csr = tf.raw_ops.SparseTensorToCSRSparseMatrix(
        indices=tensors["indices"],
        values=tensors["values"],
        dense_shape=tf.constant(shape, tf.int64),
    )
    return tf.raw_ops.SparseMatrixMatMul(a=csr, b=x)


def rows_product(
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
        return tf.transpose(columns_product(tf.transpose(x), tensors, shape))

    return tf.cond(tf.shape(x)[0] < _MANY_ROWS, few, many)


def coordinates(
    shape: tuple[int, int], decoded: Decoded
) -> dict[str, tf.Tensor]:
    values, positions = decoded
    indices = tf.stack([positions // shape[1], positions % shape[1]], axis=1)
    return {"indices": indices, "values": tf.cast(values, tf.float32)}
