"""A model's loss over data as a function of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import checks, masking
from tf_tickets.loss.batches import Batch
from tf_tickets.loss.objective import (
    Loss,
    Objective,
    Tensors,
    compiled,
    computing_in,
    mean_over,
)
from tf_tickets.masking import masked
from tf_tickets.selection import prunable_weights
from tf_tickets.ticket import Ticket, check_ticket


class LossOverData:
    """$L(w)$, its gradient and its Hessian's products, in the kept weights.

    Nothing is assigned to the model, and what is traced once serves for all
    later weights of it.

    Args:
        model: A built model; compiled, unless there is a ``loss``.
        data: See `tf_tickets.loss.batches.batches`; read once and kept.
        needed_by: What asks for the loss, for error messages.
        ticket: Whose masks say which weights are there; `None` for the masks
            enforced on the model, if any.
        loss: Instead of the compiled loss. Regularization counts only in the
            compiled one.
        training: Whether normalization uses the statistics of the batch.
            `False` by default.
        only: `"all"` trainable weights or the `"prunable"` ones.
        batch_size: Samples in a batch where arrays are cut into batches; 256
            by default.
        batches: Read at most this many batches; `None` for all.
        jit_compile: Compile with XLA. `False` by default.

    Raises:
        ValueError: If there is no loss, no data, or nothing to train.

    Example:

    >>> model = keras.Sequential(
    ...     [keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> _ = model.layers[0].kernel.assign([[3.0]])
    >>> model.compile(loss="mse")
    >>> data = np.ones((4, 1)), np.zeros((4, 1))  # L = w²
    >>> function = LossOverData(model, data, needed_by="the example")
    >>> at = function.weights()
    >>> [slope] = function.slope(at).values()
    >>> function.value(at), slope.numpy().tolist()
    (9.0, [[6.0]])
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
        batches: int | None = None,
        jit_compile: bool = False,
    ) -> None:
        self.model = model
        self.objective = Objective(
            model, needed_by=needed_by, loss=loss, training=training
        )
        self.batches: list[Batch] = list(
            self.objective.batches(data, batch_size=batch_size, limit=batches)
        )
        if ticket is None:
            self.masks = dict(masking.attached_masks(model))
        else:
            check_ticket(ticket)
            keys = ticket.match(model)
            self.masks = {keys[k]: m for k, m in ticket.masks.items()}
        checks.choice("only", only, ("all", "prunable"))
        self.keys = self.objective.trainable()
        if only == "prunable":
            chosen = prunable_weights(model)
            self.keys = [key for key in self.keys if key in chosen]
        if not self.keys:
            raise ValueError(
                f"{needed_by} needs trainable weights. "
                f"Received: model={model.name!r}, which has none"
            )
        self._value, self._gradient, self._hessian_product = (
            compiled(function, jit_compile, often=True)
            for function in (
                self.objective,
                self.objective.gradient,
                self.objective.hessian_product,
            )
        )

    def weights(self) -> Tensors:
        """The model's weights of this moment, under the masks."""
        return self.objective.values(self.masks)

    def random(self, seed: int) -> Tensors:
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

    def kept(self, vector: Mapping[str, Any]) -> Tensors:
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
            mean = mean_over(
                self.batches,
                lambda batch: {"loss": float(self._value(weights, batch))},
            )
        return float(mean["loss"])

    def slope(self, weights: Tensors) -> Tensors:
        """The gradient of the loss."""
        with computing_in(self.model):
            return self.kept(
                mean_over(
                    self.batches,
                    lambda batch: self._gradient(weights, self.keys, batch),
                )
            )

    def product(self, weights: Tensors, vector: Tensors) -> Tensors:
        """The Hessian of the loss times ``vector``."""
        with computing_in(self.model):
            return self.kept(
                mean_over(
                    self.batches,
                    lambda batch: self._hessian_product(
                        weights, self.keys, vector, batch
                    ),
                )
            )


def inner(a: Tensors, b: Tensors) -> float:
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


def scaled(vector: Tensors, factor: float) -> Tensors:
    """A multiple of a vector."""
    return {k: tf.cast(factor, v.dtype) * v for k, v in vector.items()}


def moved(weights: Tensors, *steps: Mapping[str, Any]) -> Tensors:
    """Weights plus vectors."""
    values = dict(weights)
    for step in steps:
        for key, v in step.items():
            values[key] = values[key] + tf.cast(v, values[key].dtype)
    return values
