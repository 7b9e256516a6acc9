"""What GradInit looks at in an iteration, in the masked network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import masking
from tf_tickets.loss.batches import Batch, batches
from tf_tickets.loss.objective import Objective, Tensors
from tf_tickets.masking import masked
from tf_tickets.retraining.scalars import ScaleOptimizer
from tf_tickets.selection import layers_of

Row = dict[str, Any]
_DROPOUT = (
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.AlphaDropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)


class Search:
    """The quantities of one iteration, at any factors."""

    def __init__(
        self,
        objective: Objective,
        step_size: float,
        optimizer: str,
        jit_compile: bool,
    ) -> None:
        self.objective = objective
        self.step_size = step_size
        self.optimizer = optimizer
        masks = masking.attached_masks(objective.model)
        self.masks = {k: tf.constant(m) for k, m in masks.items()}
        self.start = objective.values(self.masks)
        self.trainable = objective.trainable()
        self.scaled = [
            key
            for key in self.trainable
            if float(tf.reduce_max(tf.abs(self.start[key]))) > 0
        ]
        if not self.scaled:
            raise ValueError(
                "Every trainable weight is zero: there is nothing to rescale. "
                f"Received: model={objective.model.name!r}"
            )
        self._slopes, self._norm, self._after = (
            tf.function(step, jit_compile=jit_compile)
            for step in (self.slopes, self.norm_slope, self.after)
        )
        if not jit_compile:
            # The gradient of TensorFlow's swish holds control dependencies.
            # Differentiated again they can form a cycle, which a graph may
            # not have and eager execution does not know.
            self._norm = self.norm_slope

    def iterate(
        self, scales: ScaleOptimizer, feed: Iterator[Batch], bound: float
    ) -> Row:
        first, second = next(feed), next(feed)
        both = joined(first, second)
        at = tf.constant(scales.values, tf.float32)
        loss, norm, slopes = self._slopes(at, both)
        row: Row = {
            "loss": float(loss),
            "gradient_norm": float(norm),
            "constrained": float(norm) > bound,
        }
        if not np.isfinite([row["loss"], row["gradient_norm"]]).all():
            raise ValueError(
                "The loss or its gradient is not finite: does the data hold "
                f"NaN, or is `step_size` too large? Received: {row}"
            )
        if row["constrained"]:
            direction = self._norm(at, both)
        else:
            new = joined(first, next(feed))
            after, direction = self._after(at, slopes, new)
            row["loss_after"] = float(after)
        scales.step(direction.numpy(), constraint=row["constrained"])
        return row

    def weights(self, scales: tf.Tensor) -> Tensors:
        """All weights, with the factors in."""
        values = dict(self.start)
        for i, key in enumerate(self.scaled):
            values[key] = tf.cast(scales[i], values[key].dtype) * values[key]
        return values

    def slopes(
        self, scales: tf.Tensor, batch: Batch
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """Loss, norm of its gradient, and the gradient where masks keep."""
        loss, slopes = self._gradient(self.weights(scales), batch)
        return loss, self._norm_of(slopes), slopes

    def norm_slope(self, scales: tf.Tensor, batch: Batch) -> tf.Tensor:
        r"""$\partial \|g\| / \partial \alpha$."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(scales)
            _, slopes = self._gradient(self.weights(scales), batch)
            norm = self._norm_of(slopes)
        return tape.gradient(norm, scales)

    def after(
        self, scales: tf.Tensor, slopes: list[tf.Tensor], batch: Batch
    ) -> tuple[tf.Tensor, tf.Tensor]:
        r"""$L(w')$ after the first step, $\partial L(w')/\eta/\partial\alpha$.

        The slopes come masked, so the step leaves pruned weights at zero.
        """
        norm = self._norm_of(slopes)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(scales)
            values = self.weights(scales)
            for key, slope in zip(self.trainable, slopes, strict=True):
                direction = (
                    tf.sign(slope)
                    if self.optimizer == "adam"
                    else slope / tf.cast(norm, slope.dtype)
                )
                values[key] = values[key] - self.step_size * direction
            loss = self.objective(values, batch)
            target = loss / self.step_size
        return loss, tape.gradient(target, scales)

    def _gradient(
        self, values: Tensors, batch: Batch
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        wanted = [values[key] for key in self.trainable]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(wanted)
            loss = self.objective(values, batch)
        slopes = tape.gradient(
            loss, wanted, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        # An embedding's gradient is a sparse one.
        dense = [tf.convert_to_tensor(slope) for slope in slopes]
        return loss, [
            masked(slope, self.masks[key]) if key in self.masks else slope
            for key, slope in zip(self.trainable, dense, strict=True)
        ]

    def _norm_of(self, slopes: list[tf.Tensor]) -> tf.Tensor:
        if self.optimizer == "adam":
            return tf.add_n([tf.reduce_sum(tf.abs(s)) for s in slopes])
        squares = tf.add_n([tf.reduce_sum(s * s) for s in slopes])
        # The slope of a root at zero is infinite.
        return tf.sqrt(squares + 1e-20)


def endless(
    data: Any, needed_by: str, batch_size: int, labels: bool
) -> Iterator[Batch]:
    """Batches of one size, again and again; the first is read at once."""

    def read() -> Iterator[Batch]:
        return batches(
            data,
            needed_by=needed_by,
            batch_size=batch_size,
            labels=labels,
        )

    size = next(read()).size

    def feed() -> Iterator[Batch]:
        while True:
            for batch in read():
                if batch.size == size:
                    yield batch

    return feed()


def joined(a: Batch, b: Batch) -> Batch:
    return Batch(
        *(
            None
            if one is None
            else keras.tree.map_structure(
                lambda s, t: tf.concat([s, t], 0), one, other
            )
            for one, other in zip(a, b, strict=True)
        )
    )


@contextlib.contextmanager
def without_dropout(model: keras.Model) -> Iterator[None]:
    """Inside, training mode means batch statistics and nothing else."""
    with contextlib.ExitStack() as undo:
        for layer in layers_of(model):
            for name in ("rate", "dropout", "recurrent_dropout"):
                value = vars(layer).get(name)
                known = isinstance(layer, _DROPOUT) or name != "rate"
                if known and isinstance(value, float) and value > 0:
                    undo.callback(setattr, layer, name, value)
                    setattr(layer, name, 0.0)
        yield
