"""Packed tensors inside a SavedModel: decoded once, when it is loaded.

A `tf.saved_model.experimental.TrackableResource` has a function that every
loader runs after the variables are restored, the TF 1 session loader behind
TensorFlow Serving included. Here it decodes a part of one packed buffer into
a resource variable, with standard operations only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_tickets.export.packing import Spec

Decoded = tuple[tf.Tensor, tf.Tensor]
Shape = tuple[int, ...]

# Up to so many tensors are decoded without loops and functions, which take a
# loader longer to make than to run.
FEW = 4


class DecodedList(tf.saved_model.experimental.TrackableResource):
    """A list of tensors of one type that is made when the model is loaded.

    One resource for all tensors: a loader spends as much time on making and
    filling a resource as on decoding a million weights.

    Args:
        name: Unique within the SavedModel.
        dtype: Of the tensors.
        make: Returns the tensors as a TensorList; traced when the model is
            saved, run when it is loaded. What it reads must be tracked by the
            saved module, not by the resource: resources are made before
            variables.
    """

    def __init__(
        self, name: str, dtype: tf.DType, make: Callable[[], tf.Tensor]
    ) -> None:
        super().__init__()
        self._name = name
        self._dtype = dtype
        self._make = tf.function(make, input_signature=[], autograph=False)
        # Made here, eagerly: a handle that first appears while the serving
        # function is traced is not found by the TF 1 loader.
        self._made = self.resource_handle

    def read(self) -> Callable[[int, Shape], tf.Tensor]:
        """Inside a serving function: ``(index, shape) -> tensor``, no copy."""

        def made() -> tf.Tensor:
            return tf.raw_ops.ReadVariableOp(
                resource=self.resource_handle, dtype=tf.variant
            )

        def make_again() -> tf.Tensor:
            self._initialize()
            return made()

        # Who keeps only a signature of a loaded model has let go of the
        # resources, but not of the variables: then it is made anew.
        tensors = tf.cond(
            tf.raw_ops.VarIsInitializedOp(resource=self.resource_handle),
            made,
            make_again,
        )

        def item(index: int, shape: Shape) -> tf.Tensor:
            return tf.raw_ops.TensorListGetItem(
                input_handle=tensors,
                index=index,
                element_shape=tf.constant(shape, tf.int32, [len(shape)]),
                element_dtype=self._dtype,
            )

        return item

    def _create_resource(self) -> tf.Tensor:
        # Loaders make the shared name unique to each load; within one model
        # it must be so already.
        return tf.raw_ops.VarHandleOp(
            dtype=tf.variant, shape=[], shared_name=self._name
        )

    def _initialize(self) -> None:
        tf.raw_ops.AssignVariableOp(
            resource=self.resource_handle, value=self._make()
        )

    def _destroy_resource(self) -> None:
        tf.raw_ops.DestroyResourceOp(
            resource=self.resource_handle, ignore_lookup_error=True
        )


def empty_list(dtype: tf.DType, size: int) -> tf.Tensor:
    """A TensorList for ``size`` tensors of any shape."""
    return tf.raw_ops.TensorListReserve(
        element_shape=-1, num_elements=size, element_dtype=dtype
    )


def set_item(tensors: tf.Tensor, index: Any, value: tf.Tensor) -> tf.Tensor:
    """The TensorList with ``value`` at ``index``."""
    return tf.raw_ops.TensorListSetItem(
        input_handle=tensors, index=index, item=value
    )


def scattered(
    positions: tf.Tensor, values: tf.Tensor, size: tf.Tensor
) -> tf.Tensor:
    """A vector with ``values`` at ``positions`` and zeros elsewhere."""
    # Five to twenty times faster than `tf.scatter_nd`.
    return tf.raw_ops.SparseToDense(
        sparse_indices=positions,
        output_shape=tf.reshape(tf.cast(size, positions.dtype), [1]),
        sparse_values=values,
        default_value=tf.zeros([], values.dtype),
        validate_indices=False,
    )


def set_dense(
    tensors: tf.Tensor,
    blob: tf.Variable,
    specs: Mapping[int, Spec],
    stamps: Mapping[str, np.ndarray],
) -> tf.Tensor:
    """The TensorList with the whole tensors of ``specs`` at their indices.

    All must agree in type and stored type, be flattened in their own order
    and either all or none be stored whole. A loop decodes one after the
    other: the graph stays as small as for one, and so does the memory in use.
    """
    one = next(iter(specs.values()))

    def whole(found: Decoded, shape: Any, size: tf.Tensor) -> tf.Tensor:
        values, positions = found
        values = tf.cast(values, one.dtype)
        if one.code != "all":
            values = scattered(positions, values, size)
        return tf.reshape(values, shape)

    if len(specs) <= FEW:
        for index, spec in specs.items():
            if not spec.count:  # a bias that was never trained
                zeros = tf.zeros(spec.shape, spec.dtype)
                tensors = set_item(tensors, index, zeros)
                continue
            found = decode(blob, spec, stamps[spec.key], inline=True)
            size = tf.constant(spec.size, tf.int64)
            tensors = set_item(tensors, index, whole(found, spec.shape, size))
        return tensors
    rank = max(len(spec.shape) for spec in specs.values())
    numbers = tf.constant([_numbers(s) for s in specs.values()], tf.int64)
    keys = tf.constant([s.key for s in specs.values()])
    checks = tf.constant(np.stack([stamps[s.key] for s in specs.values()]))
    indices = tf.constant([*specs], tf.int32)
    ranks = tf.constant([len(s.shape) for s in specs.values()])
    shapes = tf.constant(
        [[*s.shape] + [0] * (rank - len(s.shape)) for s in specs.values()],
        tf.int64,
    )

    def body(i: tf.Tensor, tensors: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        found = _decoder(one.stored)(blob, numbers[i], checks[i], keys[i])
        shape = shapes[i][: ranks[i]]
        made = whole(found, shape, tf.reduce_prod(shape))
        return i + 1, set_item(tensors, indices[i], made)

    _, tensors = tf.while_loop(
        lambda i, _: i < len(specs),
        body,
        (tf.constant(0), tensors),
        parallel_iterations=1,
    )
    return tensors


def fingerprint(data: np.ndarray) -> np.ndarray:
    """Eight bytes that change when ``data`` does (FarmHash64)."""
    return tf.fingerprint(data[None]).numpy()[0]


def decode(
    blob: tf.Variable, spec: Spec, stamp: np.ndarray, *, inline: bool = False
) -> Decoded:
    """``(values, positions)`` of a packed tensor, or an error if damaged.

    Args:
        blob: The buffer with all packed tensors.
        spec: Where this one lies.
        stamp: Its `fingerprint`.
        inline: Whether to spell the operations out at this place. It is
            faster to load than the function that many tensors share; of a
            few tensors, that is most of the time.

    Returns:
        Values in their stored type and positions in the flattened tensor,
        ascending, int64 unless ``inline``; for the code ``"all"`` none.
    """
    stamp, key = tf.constant(stamp), tf.constant(spec.key)
    if not inline:
        numbers = tf.constant(_numbers(spec), tf.int64)
        return _decoder(spec.stored)(blob, numbers, stamp, key)

    # Half the memory traffic, which is what time goes to.
    index = tf.int32 if spec.size < 2**31 else tf.int64

    def lows(planes: tf.Tensor) -> tf.Tensor:
        if not spec.low:
            return tf.constant(0, index)
        small = tf.uint8 if spec.low <= 8 else index
        sums, *others = reversed(
            tf.unstack(tf.cast(planes, small), num=spec.low)
        )
        for plane in others:
            sums = sums + sums + plane
        return tf.cast(sums, index)

    return _decoded(
        blob.read_value(),
        _numbers(spec),
        stamp,
        key,
        stored=spec.stored,
        index=index,
        lows=lows,
    )


def _numbers(spec: Spec) -> list[int]:
    places = 0 if spec.code == "all" else spec.count
    return [
        spec.begin,
        *spec.sections,
        places,
        spec.low,
        int(spec.code == "gaps"),
    ]


@functools.cache
def _decoder(stored: str) -> Callable[..., Decoded]:
    # One traced function for all tensors of a type: each adds a call to the
    # graph, not a copy.
    def decoder(
        blob: tf.Tensor, spec: tf.Tensor, stamp: tf.Tensor, key: tf.Tensor
    ) -> Decoded:
        numbers = tf.unstack(spec, num=7)
        count, low = numbers[4:6]

        def lows(planes: tf.Tensor) -> tf.Tensor:
            _, sums = tf.while_loop(
                lambda i, _: i > 0,
                lambda i, sums: (
                    i - 1,
                    2 * sums + tf.cast(planes[i - 1], tf.int32),
                ),
                (low, tf.zeros(count[None], tf.int32)),
                parallel_iterations=1,
            )
            return tf.cast(sums, tf.int64)

        return _decoded(
            blob,
            numbers,
            stamp,
            key,
            stored=stored,
            index=tf.int64,
            lows=lows,
        )

    decoder.__name__ = f"unpack_{stored}"
    return tf.function(
        decoder,
        autograph=False,
        input_signature=[
            tf.TensorSpec([None], tf.uint8),
            tf.TensorSpec([7], tf.int64),
            tf.TensorSpec([8], tf.uint8),
            tf.TensorSpec([], tf.string),
        ],
    )


def _decoded(
    blob: tf.Tensor,
    numbers: Sequence[Any],
    stamp: tf.Tensor,
    key: tf.Tensor,
    *,
    stored: str,
    index: tf.DType,
    lows: Callable[[tf.Tensor], tf.Tensor],
) -> Decoded:
    """`decode`, with numbers that are known when it is traced, or tensors.

    ``lows`` adds the planes of the low bits up, from the highest plane down:
    faster than one sum over all. Positions are of the type ``index``.
    """
    # Every operation costs a loader more than it costs to run: no slices by
    # index, which take four.
    dtype = tf.as_dtype(stored)
    begin, *sizes, count, low, is_gaps = numbers
    data = tf.slice(blob, [begin], [sum(sizes)])
    intact = tf.reduce_all(tf.fingerprint(tf.reshape(data, [1, -1])) == stamp)
    # The bare operation: `tf.debugging.Assert` wraps it in a branch.
    check = tf.raw_ops.Assert(
        condition=intact,
        data=["This export is damaged: packed weight", key],
    )
    with tf.control_dependencies([check]):
        raw, places = tf.split(data, [sizes[0], sizes[1] + sizes[2]])
    bits = _bits(places)
    planes = tf.reshape(tf.slice(bits, [0], [low * count]), [low, count])
    rest = tf.slice(bits, [8 * sizes[1]], [8 * sizes[2]])
    positions = tf.reshape(tf.raw_ops.Where(condition=rest), [-1])
    positions = tf.cast(positions, index)
    if isinstance(is_gaps, tf.Tensor) or is_gaps:
        # Gaps in unary: the i-th one bit stands at (high part) + i.
        # (A range of a constant length would be folded, for nothing.)
        ranks = tf.range(tf.size(positions, out_type=index), dtype=index)
        positions -= ranks if isinstance(is_gaps, int) else is_gaps * ranks
        positions = tf.bitwise.left_shift(positions, low) + lows(planes)
    if dtype.size > 1:
        raw = tf.reshape(raw, [-1, dtype.size])
    return tf.bitcast(raw, dtype), positions


_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)


def _bits(data: tf.Tensor) -> tf.Tensor:
    # A look-up moves eight bits at a time; shifting each is slower.
    return tf.reshape(tf.gather(_BITS, tf.cast(data, tf.int32)), [-1])
