"""A model's loss over data as a function of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import masking
from tf_tickets.loss.batches import Batch, batches
from tf_tickets.loss.derivatives import gradient, hessian_product
from tf_tickets.loss.objective import (
    Loss,
    Objective,
    Tensors,
    computing_in,
)
from tf_tickets.masking import masked
from tf_tickets.selection import prunable_weights
from tf_tickets.ticket import Ticket, check_ticket

Vector = dict[str, tf.Tensor]


class LossOverData:
    """$L(w)$, its gradient and its Hessian's products, in the kept weights.

    Nothing is assigned to the model, and what is traced once serves for all
    later weights of it.

    Args:
        model: A built model; compiled, unless there is a ``loss``.
        data: See `tf_tickets.loss.batches.batches`; read once and kept.
        needed_by: Whose loss it is, for error messages.
        ticket: Whose masks say which weights are there; `None` for the masks
            enforced on the model, if any.
        loss: Instead of the compiled loss. Regularization counts only in the
            compiled one.
        training: Whether normalization uses the statistics of the batch.
        only: `"all"` trainable weights or the `"prunable"` ones.
        batch_size: Of the batches that arrays are cut into.
        limit: Read at most so many batches.
        jit_compile: Compile with XLA.
    """

    def __init__(
        self,
        model: keras.Model,
        data: Any,
        *,
        needed_by: str,
        ticket: Ticket | None = None,
        loss: Loss | None = None,
        training: bool = False,
        only: str = "all",
        batch_size: int = 256,
        limit: int | None = None,
        jit_compile: bool = False,
    ) -> None:
        self.model = model
        self.objective = Objective(
            model, needed_by=needed_by, loss=loss, training=training
        )
        self.batches: list[Batch] = list(
            batches(
                data,
                needed_by=needed_by,
                batch_size=batch_size,
                limit=limit,
                labels=self.objective.needs_labels,
            )
        )
        if ticket is None:
            self.masks = dict(masking.attached_masks(model))
        else:
            check_ticket(ticket)
            keys = ticket.match(model)
            self.masks = {keys[k]: m for k, m in ticket.masks.items()}
        self.keys = self.objective.trainable()
        if only == "prunable":
            chosen = prunable_weights(model)
            self.keys = [key for key in self.keys if key in chosen]
        elif only != "all":
            raise ValueError(
                f"`only` must be 'all' or 'prunable'. Received: only={only!r}"
            )
        if not self.keys:
            raise ValueError(
                f"{needed_by} needs trainable weights. "
                f"Received: model={model.name!r}, which has none"
            )
        options = {"jit_compile": jit_compile}
        self._value = tf.function(self.objective, **options)
        self._slope = tf.function(self._gradient, **options)
        self._product = tf.function(self._hessian_product, **options)

    def weights(self) -> Tensors:
        """The model's weights of this moment, under the masks."""
        return self.objective.values(self.masks)

    def random(self, seed: int) -> Vector:
        """A normal random vector over the kept weights."""
        rng = np.random.default_rng(seed)
        values = self.weights()
        return self.kept(
            {
                key: tf.constant(
                    rng.normal(size=values[key].shape), values[key].dtype
                )
                for key in self.keys
            }
        )

    def kept(self, vector: Mapping[str, Any]) -> Vector:
        """``vector`` with zeros where masks prune."""
        return {
            key: masked(v, tf.constant(self.masks[key]))
            if key in self.masks
            else tf.convert_to_tensor(v)
            for key, v in vector.items()
        }

    def value(self, weights: Tensors) -> float:
        """The loss."""
        with computing_in(self.model):
            total = sum(
                b.size * float(self._value(weights, b)) for b in self.batches
            )
        return total / self._samples

    def slope(self, weights: Tensors) -> Vector:
        """The gradient of the loss."""
        with computing_in(self.model):
            return self._mean(self._slope(weights, b) for b in self.batches)

    def product(self, weights: Tensors, vector: Vector) -> Vector:
        """The Hessian of the loss times ``vector``."""
        direction = [vector[key] for key in self.keys]
        with computing_in(self.model):
            return self._mean(
                self._product(weights, direction, b) for b in self.batches
            )

    @property
    def _samples(self) -> int:
        return sum(batch.size for batch in self.batches)

    def _mean(self, parts: Iterator[list[tf.Tensor]]) -> Vector:
        sums: list[tf.Tensor] | None = None
        for batch, tensors in zip(self.batches, parts, strict=True):
            share = batch.size / self._samples
            scaled = [tf.cast(share, t.dtype) * t for t in tensors]
            sums = (
                scaled
                if sums is None
                else [a + b for a, b in zip(sums, scaled, strict=True)]
            )
        return self.kept(dict(zip(self.keys, sums or [], strict=True)))

    def _gradient(self, weights: Tensors, batch: Batch) -> list[tf.Tensor]:
        return gradient(self.objective, weights, self.keys, batch)

    def _hessian_product(
        self, weights: Tensors, vector: list[tf.Tensor], batch: Batch
    ) -> list[tf.Tensor]:
        return hessian_product(
            self.objective, weights, self.keys, vector, batch
        )


def inner(a: Vector, b: Vector) -> float:
    """The scalar product of two vectors over the same weights."""
    return float(
        sum(
            np.vdot(
                a[key].numpy().astype(np.float64),
                b[key].numpy().astype(np.float64),
            )
            for key in a
        )
    )


def scaled(vector: Vector, factor: float) -> Vector:
    """A multiple of a vector."""
    return {k: tf.cast(factor, v.dtype) * v for k, v in vector.items()}


def moved(weights: Tensors, *steps: Mapping[str, Any]) -> Tensors:
    """Weights plus vectors."""
    values = dict(weights)
    for step in steps:
        for key, v in step.items():
            values[key] = values[key] + tf.cast(v, values[key].dtype)
    return values
