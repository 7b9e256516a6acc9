"""The gradients of a training step, seen where the optimizer gets them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets.tracing import retrace

# What sees the gradients and the variables that they are of.
See = Callable[[Sequence[Any], Sequence[keras.Variable]], None]
# ``(weight, gradient) -> tensor``: what one step adds.
EachStep = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def let_see(
    model: keras.Model,
    see: See,
    undo: contextlib.ExitStack,
    needed_by: str,
) -> None:
    """Let the training step of ``model`` show its gradients.

    Args:
        model: A compiled model.
        see: Called inside the traced step, in every replica, before each
            update.
        undo: Gets what ends it.
        needed_by: What needs the gradients, for the error message.

    Raises:
        ValueError: If the model has no optimizer.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        raise ValueError(
            f"{needed_by} needs the gradients that the model's optimizer "
            "gets: compile the model with one. "
            f"Received: model={model.name!r} without an optimizer"
        )
    # Not around what an interrupted training may have left.
    apply = getattr(optimizer.apply, "inner", optimizer.apply)

    def seeing(
        grads: Sequence[Any],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> Any:
        grads = list(grads)
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            see(grads, trainable_variables)
        return apply(grads, trainable_variables)

    setattr(seeing, "inner", apply)  # noqa: B010
    vars(optimizer)["apply"] = seeing
    retrace(model, "train")

    def forget() -> None:
        if vars(optimizer).get("apply") is seeing:
            del vars(optimizer)["apply"]
            retrace(model, "train")

    undo.callback(forget)


def of_watched(
    grads: Sequence[Any],
    variables: Sequence[keras.Variable],
    weights: Mapping[str, keras.Variable],
) -> dict[str, tf.Tensor]:
    """``{path: gradient}`` of those weights that have one."""
    places = {id(weight): path for path, weight in weights.items()}
    return {
        places[id(variable)]: tf.convert_to_tensor(grad)
        for grad, variable in zip(grads, variables, strict=False)
        if id(variable) in places and grad is not None
    }


def on_each_replica(value: Any) -> tf.Variable:
    """A variable of which each replica has its own; what is read is the sum."""
    return tf.Variable(
        value,
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM,
    )


class StepSums:
    """What every training step adds to the scores of a criterion.

    Args:
        model: A compiled model, whose strategy the sums are made for.
        weights: ``{path: variable}`` of those that are scored.
        each_step: What one step adds. Gradients are in float32, without the
            scale of the loss; what is not finite adds nothing.
    """

    def __init__(
        self,
        model: keras.Model,
        weights: Mapping[str, keras.Variable],
        each_step: EachStep,
    ) -> None:
        self.model = model
        self.weights = dict(weights)
        self.each_step = each_step
        with model.distribute_strategy.scope():
            self.steps = on_each_replica(0)
            self.sums = {
                path: on_each_replica(tf.zeros(weight.shape))
                for path, weight in self.weights.items()
            }

    def see(
        self, grads: Sequence[Any], variables: Sequence[keras.Variable]
    ) -> None:
        """Inside the step: add to the sums."""
        found = of_watched(grads, variables, self.weights)
        if not found:
            return  # another model's variables
        scale = tf.cast(
            self.model.optimizer.scale_loss(tf.constant(1.0)), tf.float32
        )
        for path, grad in found.items():
            weight = tf.convert_to_tensor(self.weights[path])
            term = self.each_step(
                tf.cast(weight, tf.float32), tf.cast(grad, tf.float32) / scale
            )
            finite = tf.math.is_finite(term)
            self.sums[path].assign_add(tf.where(finite, term, 0.0))
        self.steps.assign_add(1)

    @property
    def count(self) -> int:
        """Steps since the last drawing, of all replicas together."""
        return int(tf.convert_to_tensor(self.steps))

    def values(self) -> dict[str, np.ndarray]:
        """The sums of all replicas."""
        return {
            path: tf.convert_to_tensor(value).numpy()
            for path, value in self.sums.items()
        }

    def restart(
        self, values: Mapping[str, np.ndarray] | None = None, count: int = 0
    ) -> None:
        """Begin anew, or where another process has ended.

        Args:
            values: What `values` gave there; `None` for zeros.
            count: What `count` was there.
        """
        for path, value in self.sums.items():
            start = np.zeros(value.shape, np.float32)
            value.assign(start if values is None else values[path])
        self.steps.assign(count)
