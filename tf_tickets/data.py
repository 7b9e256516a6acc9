"""Orders of examples that follow from a seed and the epoch alone.

A pipeline that shuffles with `tf.data.Dataset.shuffle`, and `fit` with arrays,
deal new batches in every epoch, from a stream of random numbers that begins
anew in every process. So a run that was killed in epoch 7 and goes on there
would see the batches of epoch 0 again, and end with other weights than a run
that was never broken off.

The pipelines that are made here number their passes, from 0. Callbacks with a
``directory`` tell them the epoch of `fit` when it begins. So a run that goes on
sees what it would have seen: it ends as it would have, to the bit, if all else
in the pipeline follows from its elements.

The first passes are those of ``dataset.shuffle(size, seed)`` and
``tf.data.Dataset.random(seed)`` in a new process, one after the other.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_tickets import checks


def shuffled(
    data: Any, *, seed: int = 0, buffer_size: int | None = None
) -> tf.data.Dataset:
    """Examples in an order that follows from the seed and the epoch.

    In place of ``dataset.shuffle(buffer_size, seed)``, and of arrays given to
    `fit`, where a run must be able to go on after a kill as if nothing had
    happened. Batch what it returns. Each epoch must be one pass over it: give
    neither ``repeat()`` nor ``steps_per_epoch``.

    Args:
        data: Examples in an order that is always the same: a
            `tf.data.Dataset`, or arrays as `fit` takes them, such as
            ``(x, y)``.
        seed: Of the order; 0 by default. It also depends on
            `keras.utils.set_random_seed`, as that of TensorFlow does.
        buffer_size: How many examples to choose each one from; by default all
            of them.

    Returns:
        A dataset of examples, one after the other, of the same length.

    Raises:
        ValueError: If the length of ``data`` is not known and there is no
            ``buffer_size``, or on a number out of range.

    Example:

    >>> def batches():
    ...     return shuffled(np.arange(6), seed=1).batch(6)
    >>> one = batches()
    >>> epochs = [next(iter(one)).numpy().tolist() for _ in range(3)]
    >>> epochs[1] == epochs[2]
    False
    >>> other = batches()  # as in a process that goes on with epoch 2
    >>> set_epoch(2)
    >>> next(iter(other)).numpy().tolist() == epochs[2]
    True
    """
    seed = checks.whole("seed", seed, least=0)
    dataset = (
        data
        if isinstance(data, tf.data.Dataset)
        else tf.data.Dataset.from_tensor_slices(data)
    )
    length = int(dataset.cardinality())
    if buffer_size is None:
        if length < 0:
            raise ValueError(
                "How many examples there are is not known: give `buffer_size`."
                f" Received: buffer_size=None, {dataset}"
            )
        buffer_size = max(1, length)
    size = checks.whole("buffer_size", buffer_size)

    def shuffle(seeds: tf.Tensor) -> tf.data.Dataset:
        # `Dataset.shuffle` takes one seed. Both give each pass the order that
        # it has had without a run to go on with.
        return tf.data.experimental.from_variant(
            tf.raw_ops.ShuffleDataset(
                input_dataset=tf.data.experimental.to_variant(dataset),
                buffer_size=size,
                seed=seeds[0],
                seed2=seeds[1],
                reshuffle_each_iteration=False,
                **_types(dataset.element_spec),
            ),
            dataset.element_spec,
        )

    found = _each_pass(shuffle, seed)
    if length < 0:
        return found
    return found.apply(tf.data.experimental.assert_cardinality(length))


def random_seeds(*, seed: int = 0) -> tf.data.Dataset:
    """Seeds for augmentation that follow from the seed and the epoch.

    What a pipeline changes at random must draw with the stateless functions of
    TensorFlow, from seeds like these, or a run that goes on sees other images.

    Args:
        seed: Of the seeds; 0 by default.

    Returns:
        An endless dataset of pairs of integers, to be zipped with batches.

    Raises:
        ValueError: If ``seed`` is no whole number.

    Example:

    >>> import tensorflow as tf
    >>> images = shuffled(np.ones((4, 8, 8, 3)), seed=1).batch(2)
    >>> augmented = tf.data.Dataset.zip(images, random_seeds(seed=1)).map(
    ...     lambda x, seed: tf.image.stateless_random_flip_left_right(x, seed))
    >>> len(augmented)
    2
    """
    seed = checks.whole("seed", seed, least=0)
    spec = tf.TensorSpec((), tf.int64)

    def draw(seeds: tf.Tensor) -> tf.data.Dataset:
        return tf.data.experimental.from_variant(
            tf.raw_ops.RandomDataset(
                seed=seeds[0], seed2=seeds[1], **_types(spec)
            ),
            spec,
        )

    # As long as anything that it may be zipped with.
    endless = tf.data.experimental.assert_cardinality(
        tf.data.experimental.INFINITE_CARDINALITY
    )
    return _each_pass(draw, seed).batch(2, drop_remainder=True).apply(endless)


def set_epoch(epoch: int) -> None:
    """Say which epoch the next pass over each pipeline belongs to.

    Callbacks with a ``directory`` say so when an epoch of `fit` begins. Say it
    yourself in a loop of your own, or beside `keras.callbacks.BackupAndRestore`
    alone, with ``keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch,
    logs: tf_tickets.data.set_epoch(epoch))``. Pipelines that nobody tells count
    on from the last one.

    Args:
        epoch: Counted from 0.

    Raises:
        ValueError: If it is no such number.

    Example:

    >>> set_epoch(3)
    """
    epoch = checks.whole("epoch", epoch, least=0)
    for passes in list(_ALIVE):
        passes.next = epoch


class _Passes:
    """The number of the next pass over a pipeline."""

    def __init__(self) -> None:
        self.next = 0
        self._lock = threading.Lock()
        _ALIVE.add(self)

    def take(self) -> np.int64:
        with self._lock:  # TensorFlow asks from threads of its own
            number, self.next = self.next, self.next + 1
        return np.int64(number)


# Of all pipelines. TensorFlow holds a Python function of a pipeline, and this
# number with it, as long as the process lives; the data it lets go.
_ALIVE: weakref.WeakSet[_Passes] = weakref.WeakSet()


def _each_pass(
    make: Callable[[tf.Tensor], tf.data.Dataset], seed: int
) -> tf.data.Dataset:
    """A dataset that each pass makes anew from two seeds of its own."""
    passes = _Passes()

    def number(_: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.numpy_function(passes.take, [], tf.int64), ())

    def seeds(index: tf.Tensor) -> tf.data.Dataset:
        return tf.data.Dataset.random(seed).batch(2).skip(index).take(1)

    return tf.data.Dataset.range(1).map(number).flat_map(seeds).flat_map(make)


def _types(spec: Any) -> dict[str, Any]:
    """How raw operations are told what elements are."""
    # Ragged and sparse tensors go through a pipeline as one variant each.
    variant = tf.TensorSpec(None, tf.variant)
    flat = [
        one if isinstance(one, tf.TensorSpec) else variant
        for one in tf.nest.flatten(spec)
    ]
    return {
        "output_types": [one.dtype for one in flat],
        "output_shapes": [one.shape for one in flat],
    }
