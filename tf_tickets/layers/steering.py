r"""Steer the score penalty, so that the density of a mask follows its goal.

A weight leaves a threshold mask when its score has come down to the threshold,
so λ says how fast the density falls, not where it is. A λ that follows the
density alone would swing: it must follow how the density changes, too. With the
error e, the logarithm of density over goal, and the speed v at which the
logarithm of the goal falls, one step is

$$\log\lambda \leftarrow \log\lambda
    + \mathrm{clip}(K_P (e - e_{before}) + K_I v e, -F, R)$$

Where λ is right, the logarithm of the density falls at the speed v, and nearly
in proportion to λ around there. So e obeys a damped wave equation, with damping
$K_P/(2\sqrt{K_I})$ whatever v is: short and long trainings, and small and
large learning rates, need no gains of their own. λ may fall faster than it
rises: too many weights can still go, a mask that has lost all of a layer never
comes back.

All of it is part of the training step. The host says once an epoch where the
goal is and how fast it falls.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_tickets.tracing import retrace

PROPORTIONAL = 8.0  # K_P
INTEGRAL = 16.0  # K_I: damping 1, no swinging
RISE, FALL = 0.3, 1.0  # R, F
# λ at first: too small for any run, and a hundred steps can take it anywhere.
START = 1e-6
# Beyond these, more or less changes nothing, and the way back must be short.
LOWEST, HIGHEST = 1e-9, 1e3


def next_penalty(
    penalty: tf.Tensor, error: tf.Tensor, before: tf.Tensor, speed: tf.Tensor
) -> tf.Tensor:
    r"""λ after one step.

    Args:
        penalty: λ > 0.
        error: $e = \log(\mathrm{density} / \mathrm{goal})$ of this step.
        before: e of the step before.
        speed: v, the usual fall of the goal's logarithm in a step.

    Returns:
        The next λ: larger where the density is above its goal and does not
        fall to it fast enough, smaller where it is below and does not rise.

    Example:

    >>> half, e = tf.constant(0.5), tf.constant(0.1)
    >>> bool(next_penalty(half, error=e, before=e, speed=0.01) > half)
    True
    """
    change = PROPORTIONAL * (error - before) + INTEGRAL * speed * error
    factor = tf.exp(tf.clip_by_value(change, -FALL, RISE))
    return tf.clip_by_value(penalty * factor, LOWEST, HIGHEST)


@dataclasses.dataclass(frozen=True)
class Steering:
    """Variables of one supermask, which go wherever the model goes.

    Attributes:
        penalty: λ; 0 before it is steered for the first time.
        error: e of the step before.
        goal: The logarithm of the density that is wanted, what is added to it
            in a step, and v.
        steps: Steps since `Helm.aim`; -1 while λ is to stay as it is.
    """

    penalty: keras.Variable
    error: keras.Variable
    goal: keras.Variable
    steps: keras.Variable


def variables(add_weight: Callable[..., keras.Variable]) -> Steering:
    """Make the variables.

    Args:
        add_weight: Of the layer that is to own them.
    """

    def add(name: str, shape: tuple[int, ...], start: float) -> keras.Variable:
        return add_weight(
            shape=shape,
            dtype="float32",
            initializer=keras.initializers.Constant(start),
            trainable=False,
            autocast=False,
            # Replicas have the same scores, so they come to the same values.
            aggregation="only_first_replica",
            name=name,
        )

    return Steering(
        penalty=add("score_penalty", (), 0.0),
        error=add("density_error", (), 0.0),
        goal=add("density_goal", (3,), 0.0),
        steps=add("steered_steps", (), -1.0),
    )


class Penalty(keras.regularizers.Regularizer):
    """λ times a sum over scores, with the λ of the moment.

    Args:
        kind: `"l1"` or `"l2"`.
        penalty: λ.
    """

    def __init__(self, kind: str, penalty: keras.Variable) -> None:
        self.kind = kind
        self.penalty = penalty

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        size = keras.ops.abs if self.kind == "l1" else keras.ops.square
        return self.penalty.value * keras.ops.sum(size(x))


def advance(
    steerings: Sequence[Steering],
    scores: Sequence[keras.Variable],
    kept: Sequence[keras.Variable],
) -> None:
    """One step of steering, as part of a training step.

    Args:
        steerings: Of the supermasks that share one λ.
        scores: p of all prunable weights whose density counts.
        kept: q of the same.
    """
    first = steerings[0]
    count = tf.add_n(
        [
            tf.reduce_sum(tf.cast(q.value & (p.value > 0.5), tf.float32))
            for p, q in zip(scores, kept, strict=True)
        ]
    )
    total = sum(math.prod(p.shape) for p in scores)
    steps = tf.convert_to_tensor(first.steps.value)
    goal = tf.convert_to_tensor(first.goal.value)
    before = tf.convert_to_tensor(first.error.value)
    penalty = tf.convert_to_tensor(first.penalty.value)
    # An empty mask has half a weight, for the logarithm.
    error = tf.math.log(tf.maximum(count, 0.5) / total) - goal[0]
    steered = steps >= 0
    penalty = tf.where(
        steered, next_penalty(penalty, error, before, goal[2]), penalty
    )
    for one in steerings:
        one.penalty.assign(penalty)
    first.error.assign(tf.where(steered, error, before))
    first.goal.assign(
        tf.where(steered, goal + tf.stack([goal[1], 0.0, 0.0]), goal)
    )
    first.steps.assign(tf.where(steered, steps + 1, steps))


class Helm:
    """Steering, seen from the host: what is said once an epoch.

    Args:
        model: The model in training.
        layers: All its supermasks; their density, all together, is steered.
    """

    def __init__(self, model: keras.Model, layers: Sequence[Any]) -> None:
        steered = [one for one in layers if one.state.steering is not None]
        self._steerings = [one.state.steering for one in steered]
        # The first steers all: its call is part of every training step.
        new = [
            one.steer(layers if one is steered[0] else ()) for one in steered
        ]
        if any(new):
            retrace(model, "train")

    def __bool__(self) -> bool:
        return bool(self._steerings)

    @property
    def penalty(self) -> float:
        """λ of the moment."""
        return _read(self._steerings[0].penalty)

    def start(self, density: float, goal: float) -> None:
        """A new training begins: how the density moved before is forgotten.

        Args:
            density: That of now.
            goal: The density that is wanted now.
        """
        self._steerings[0].error.assign(math.log(max(density, 1e-9) / goal))
        for one in self._steerings:
            one.penalty.assign(self.penalty or START)

    def aim(
        self, goal: float, then: float, speed: float, steps: int | None
    ) -> None:
        """Let the training steps of the next epoch steer.

        Args:
            goal: The density that is wanted now.
            then: The density that is wanted when the epoch ends.
            speed: v, by the epoch.
            steps: Of the epoch. Where nobody knows, `None`, the goal stays
                where it is.
        """
        per_step = (
            [math.log(then / goal) / steps, speed / steps]
            if steps
            else [0.0, 0.0]
        )
        self._steerings[0].goal.assign([math.log(goal), *per_step])
        self._steerings[0].steps.assign(0.0)

    def hold(self) -> int:
        """Let λ stay as it is; returns the steps that were steered."""
        steps = int(_read(self._steerings[0].steps))
        self._steerings[0].steps.assign(-1.0)
        return steps


def _read(variable: keras.Variable) -> float:
    return float(keras.ops.convert_to_numpy(variable))
