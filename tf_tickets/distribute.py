"""Multi-worker training: the repair that Keras 3's `fit` needs, and one mask.

Every host draws its masks itself, from the same weights and so to the same
end, while it would wait for the others anyway. But nothing in TensorFlow
carries what one host assigns over to the others: hosts that come to other masks
would go on training other networks. So hosts compare what they have drawn, and
where it differs, all take the chief's.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tf_tickets import checks


class MultiWorkerMirroredStrategy(tf.distribute.MultiWorkerMirroredStrategy):
    """TensorFlow's strategy, under which ``model.fit`` of Keras 3 works.

    Keras hands `reduce` the nested logs of a step and asks for their mean over
    axis 0, which scalars do not have. This subclass reduces every part of a
    structure by itself, and scalars over the replicas. All else is
    TensorFlow's own strategy: build the model in its `scope` and start one
    process for each worker with ``TF_CONFIG`` set.

    Args:
        cluster_resolver: As in `tf.distribute.MultiWorkerMirroredStrategy`.
        communication_options: As there.

    Reference:
        https://github.com/keras-team/keras/issues/20585

    Example (in every worker's process, before any other use of TensorFlow)::

        # TF_CONFIG='{"cluster": {"worker": ["host0:12345", "host1:12345"]},
        #             "task": {"type": "worker", "index": 0}}'
        strategy = tt.distribute.MultiWorkerMirroredStrategy()
        with strategy.scope():
            model = ...
            model.compile(...)
        model.fit(train, callbacks=[imp])
    """

    def reduce(
        self,
        reduce_op: tf.distribute.ReduceOp | str,
        value: Any,
        axis: int | None = None,
    ) -> Any:
        """Reduce every part of ``value`` over the replicas.

        Args:
            reduce_op: ``"SUM"`` or ``"MEAN"``.
            value: A tensor, a per-replica value, or a structure of these.
            axis: Also reduce over this axis, in parts that have it.
        """
        reduce_one = super().reduce

        def one(part: Any) -> Any:
            local = self.experimental_local_results(part)[0]
            scalar = tf.convert_to_tensor(local).shape.rank == 0
            return reduce_one(reduce_op, part, None if scalar else axis)

        return tf.nest.map_structure(one, value)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process should write files: the only one, or the first.

    Example:

    >>> is_chief(tf.distribute.get_strategy())
    True
    """
    resolver = getattr(strategy, "cluster_resolver", None)
    if resolver is None or not resolver.task_type:
        return True
    chief = resolver.cluster_spec().as_dict().get("chief")
    return resolver.task_type == "chief" or (
        resolver.task_type == "worker" and resolver.task_id == 0 and not chief
    )


def agreed(
    strategy: tf.distribute.Strategy, masks: Mapping[str, np.ndarray]
) -> Mapping[str, np.ndarray]:
    """The masks that all hosts go on with: their own, or else the chief's.

    All hosts must call this, one after the other as they call everything that
    they share. Compared is a digest; only where it differs the chief's masks
    go over the network, with two bits an element.

    Args:
        strategy: Of the model. Where it is of one process, nothing happens.
        masks: ``{key: boolean array}``, in the same order on all hosts. Keys
            may differ: layers are numbered as each process has made them.

    Returns:
        ``masks``, or new arrays in their place.

    Raises:
        ValueError: If hosts have masks of other shapes.

    Example:

    >>> agreed(tf.distribute.get_strategy(), {"kernel": np.eye(2) > 0})
    {'kernel': array([[ True, False],
           [False,  True]])}
    """
    if not _is_of_hosts(strategy):
        return masks
    shapes = repr([mask.shape for mask in masks.values()])
    bits = [np.packbits(mask) for mask in masks.values()]
    others = differing(strategy, shapes.encode(), *(p.data for p in bits))
    if not others:
        return masks
    if differing(strategy, shapes.encode()):
        raise ValueError(
            "The hosts mask other weights: build the same model on all of "
            "them, and call the same on all. Received here: masks of the "
            f"shapes {shapes[:300]}"
        )
    joined = np.concatenate(bits) if bits else np.zeros(0, np.uint8)
    chief = _from_chief(strategy, joined)
    here = int(np.unpackbits(chief ^ joined).sum())
    size = sum(mask.size for mask in masks.values())
    if strategy not in _warned:
        _warned.add(strategy)
        checks.warn(
            "The hosts have drawn different masks, and all take the chief's, "
            "now and from here on. Where masks come from data, give all hosts "
            "the same; weights that differ, or other processors, do it, too. "
            f"Received: {others} of {strategy.num_replicas_in_sync} replicas "
            f"with other masks than the chief; here {here} of {size} elements "
            "differ"
        )
    found, start = {}, 0
    for key, own in masks.items():
        end = start + -(-own.size // 8)
        flat = np.unpackbits(chief[start:end], count=own.size)
        found[key] = flat.astype(bool).reshape(own.shape)
        start = end
    return found


# Strategies whose hosts have drawn different masks.
_warned: weakref.WeakSet[tf.distribute.Strategy] = weakref.WeakSet()


def differing(
    strategy: tf.distribute.Strategy, *parts: bytes | memoryview
) -> int:
    """On how many replicas of other hosts something is not as on the chief.

    Args:
        strategy: Of the model.
        *parts: What is compared, byte by byte, by its digest.

    Returns:
        0 if all have the same, or there is only one process. All hosts get
        the same answer.

    Example:

    >>> differing(tf.distribute.get_strategy(), b"epoch 3")
    0
    """
    if not _is_of_hosts(strategy):
        return 0
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    # Sums of whole numbers below 2**24 are exact in what gradients go in.
    numbers = np.frombuffer(digest.digest(), np.uint16).astype(np.float32)
    replicas = strategy.num_replicas_in_sync

    def row(replica: int) -> np.ndarray:
        return np.eye(1, replicas, replica, np.float32).T * numbers

    rows = _sum(strategy, row)
    return int((rows != rows[:1]).any(axis=1).sum())


# Elements of one message: 32 MB.
_MESSAGE = 2**23


def _from_chief(
    strategy: tf.distribute.Strategy, data: np.ndarray
) -> np.ndarray:
    """What the first replica has in a vector of bytes of the same length."""
    padded = np.pad(data, (0, len(data) % 2)).view(np.uint16)
    parts = []
    for start in range(0, len(padded), _MESSAGE):
        own = padded[start : start + _MESSAGE].astype(np.float32)
        none = np.zeros_like(own)

        def part(
            replica: int, own: np.ndarray = own, none: np.ndarray = none
        ) -> np.ndarray:
            return none if replica else own

        parts.append(_sum(strategy, part).astype(np.uint16))
    return np.concatenate(parts).view(np.uint8)[: len(data)]


def _sum(
    strategy: tf.distribute.Strategy, of_replica: Callable[[int], np.ndarray]
) -> np.ndarray:
    """The sum over all replicas, on every host."""
    values = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(
            of_replica(context.replica_id_in_sync_group)
        )
    )
    return np.asarray(strategy.reduce("SUM", values, axis=None))


def _is_of_hosts(strategy: tf.distribute.Strategy) -> bool:
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return False
    jobs = strategy.cluster_resolver.cluster_spec().as_dict()
    return sum(len(jobs.get(job, ())) for job in ("chief", "worker")) > 1
