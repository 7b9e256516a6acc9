"""Multi-worker training: the one repair that Keras 3's `fit` needs."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


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
