"""Recipe: how a network is trained, as data."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

import keras

Algorithm: TypeAlias = Literal["sgd", "adam"]
Schedule: TypeAlias = Literal["constant", "multistep", "cosine"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train one network on one data set.

    Weight decay is PyTorch's, in the gradient and so under the momentum. It
    belongs in the model, `models.get(..., weight_decay=recipe.weight_decay)`:
    `keras.optimizers.SGD(weight_decay=...)` is decoupled and decays, at
    momentum 0.9, about ten times less.

    Args:
        model: Name of the network in `models`.
        dataset: Name of the data set in `datasets`.
        epochs: Epochs of one training run.
        batch_size: Examples in a batch.
        initial_learning_rate: Learning rate of the first epoch.
        algorithm: `"sgd"` or `"adam"`.
        momentum: Momentum of `"sgd"`.
        schedule: `"constant"`; `"multistep"`: multiplied by `decay_factor`
            at each milestone; `"cosine"`: down to zero.
        milestones: Epochs at which the learning rate drops.
        decay_factor: What the learning rate is multiplied by at a milestone.
        weight_decay: Decay of every trainable parameter.
        affine: Whether normalisation learns a scale and an offset.
        bias: Whether the network has biases.

    Raises:
        ValueError: If a value is out of its range.

    Example:

    >>> from tf_tickets.zoo import recipes
    >>> recipe = recipes.Recipe(
    ...     model="resnet20", dataset="cifar10", epochs=160, batch_size=128,
    ...     initial_learning_rate=0.1, schedule="multistep",
    ...     milestones=(80, 120))
    >>> round(float(recipe.learning_rate(390)(81 * 390)), 6)
    0.01
    """

    model: str
    dataset: str
    epochs: int
    batch_size: int
    initial_learning_rate: float
    algorithm: Algorithm = "sgd"
    momentum: float = 0.9
    schedule: Schedule = "constant"
    milestones: tuple[int, ...] = ()
    decay_factor: float = 0.1
    weight_decay: float = 0.0
    affine: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                _refuse(name, "a positive integer", value)
        if not self.initial_learning_rate > 0:
            rate = self.initial_learning_rate
            _refuse("initial_learning_rate", "positive", rate)
        if self.algorithm not in ("sgd", "adam"):
            _refuse("algorithm", '"sgd" or "adam"', self.algorithm)
        if self.schedule not in ("constant", "multistep", "cosine"):
            known = '"constant", "multistep" or "cosine"'
            _refuse("schedule", known, self.schedule)
        if not 0.0 <= self.momentum < 1.0:
            _refuse("momentum", "in [0, 1)", self.momentum)
        if not 0.0 < self.decay_factor < 1.0:
            _refuse("decay_factor", "in (0, 1)", self.decay_factor)
        if not 0.0 <= self.weight_decay < 1.0:
            _refuse("weight_decay", "in [0, 1)", self.weight_decay)
        if bool(self.milestones) != (self.schedule == "multistep"):
            wanted = 'given with schedule="multistep" and only then'
            _refuse("milestones", wanted, self.milestones)
        bounds = (0, *self.milestones, self.epochs)
        if any(
            left >= right
            for left, right in zip(bounds, bounds[1:], strict=False)
        ):
            wanted = f"increasing and between 0 and {self.epochs} epochs"
            _refuse("milestones", wanted, self.milestones)

    def learning_rate(
        self, steps_per_epoch: int
    ) -> keras.optimizers.schedules.LearningRateSchedule:
        """Makes the learning rate schedule, in steps.

        The rate drops at the first step of a milestone's epoch. The cosine
        falls with every step, where PyTorch's usual one falls with every
        epoch.

        Args:
            steps_per_epoch: Training batches in an epoch.

        Returns:
            A schedule for a Keras optimizer.

        Raises:
            ValueError: If `steps_per_epoch` is not a positive integer.
        """
        if not isinstance(steps_per_epoch, int) or steps_per_epoch < 1:
            _refuse("steps_per_epoch", "a positive integer", steps_per_epoch)
        rate = self.initial_learning_rate
        if self.schedule == "cosine":
            return keras.optimizers.schedules.CosineDecay(
                rate, self.epochs * steps_per_epoch
            )
        if self.schedule == "constant":
            return keras.optimizers.schedules.PolynomialDecay(
                rate, 1, end_learning_rate=rate
            )
        # Keras drops the rate one step after the boundary it is given.
        return keras.optimizers.schedules.PiecewiseConstantDecay(
            [epoch * steps_per_epoch - 1 for epoch in self.milestones],
            [
                rate * self.decay_factor**drops
                for drops in range(len(self.milestones) + 1)
            ],
        )

    def optimizer(self, steps_per_epoch: int) -> keras.optimizers.Optimizer:
        """Makes a new optimizer.

        Keras' momentum remembers steps, PyTorch's gradients: they differ for
        the few steps after a drop of the learning rate, and not otherwise.

        Args:
            steps_per_epoch: Training batches in an epoch.

        Returns:
            A Keras optimizer without weight decay, which is in the model.

        Raises:
            ValueError: If `steps_per_epoch` is not a positive integer.
        """
        schedule = self.learning_rate(steps_per_epoch)
        if self.algorithm == "adam":
            return keras.optimizers.Adam(schedule)
        return keras.optimizers.SGD(schedule, momentum=self.momentum)


def _refuse(name: str, wanted: str, value: object) -> None:
    raise ValueError(f"`{name}` must be {wanted}. Received: {name}={value!r}")
