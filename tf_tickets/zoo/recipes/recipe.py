"""Recipe: how a network is trained, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, TypeVar

import keras

from tf_tickets import checks

_Value = TypeVar("_Value")
_Recipe = TypeVar("_Recipe", bound="Recipe")
Algorithm: TypeAlias = Literal["sgd", "adam"]
Schedule: TypeAlias = Literal["constant", "multistep", "cosine"]
Stem: TypeAlias = Literal["auto", "cifar", "imagenet"]


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
        algorithm: `"sgd"`, the default, or `"adam"`.
        momentum: Momentum of `"sgd"`; 0.9 by default.
        schedule: `"constant"`, the default; `"multistep"`: multiplied by
            `decay_factor` at each milestone; `"cosine"`: down to zero.
        milestones: Epochs at which the learning rate drops, from 0, which
            is before the first; none by default.
        decay_factor: What the learning rate is multiplied by at a milestone;
            0.1 by default.
        weight_decay: Decay of every trainable parameter; 0 by default.
        affine: Whether normalization learns a scale and an offset, as it does
            by default.
        bias: Whether the network has biases, as it has by default.
        stem: As in `models.resnet18`, for networks that have the choice;
            `"auto"`, by the size of the images, by default.

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
    stem: Stem = "auto"

    def __post_init__(self) -> None:
        checks.whole("epochs", self.epochs)
        checks.whole("batch_size", self.batch_size)
        for name, interval in (
            ("initial_learning_rate", "(0, inf)"),
            ("momentum", "[0, 1)"),
            ("decay_factor", "(0, 1)"),
            ("weight_decay", "[0, 1)"),
        ):
            checks.number(name, getattr(self, name), interval)
        checks.choice("algorithm", self.algorithm, ("sgd", "adam"))
        checks.choice(
            "schedule", self.schedule, ("constant", "multistep", "cosine")
        )
        if bool(self.milestones) != (self.schedule == "multistep"):
            raise ValueError(
                "`milestones` are given with schedule='multistep' and only "
                f"then. Received: milestones={self.milestones!r}, "
                f"schedule={self.schedule!r}"
            )
        checks.choice("stem", self.stem, ("auto", "cifar", "imagenet"))
        bounds = (-1, *self.milestones, self.epochs)
        if any(
            left >= right
            for left, right in zip(bounds, bounds[1:], strict=False)
        ):
            raise ValueError(
                f"`milestones` must increase and lie in [0, {self.epochs}) "
                "epochs. Received: "
                f"milestones={self.milestones!r}"
            )

    def adjusted(self: _Recipe, **changes: Any) -> _Recipe:
        """The recipe with some values changed.

        Args:
            **changes: New values by their names; `None` keeps the old one.
                With other epochs the milestones move along.

        Raises:
            ValueError: As of the recipe itself.

        Example:

        >>> from tf_tickets.zoo import recipes
        >>> recipe = recipes.spending("resnet18", "cifar10")
        >>> recipe.adjusted(epochs=20).milestones
        (10, 15)
        """
        changes = {k: v for k, v in changes.items() if v is not None}
        epochs = changes.get("epochs", self.epochs)
        if epochs != self.epochs:
            checks.whole("epochs", epochs)
            moved = {round(m * epochs / self.epochs) for m in self.milestones}
            kept = tuple(sorted(m for m in moved if m < epochs))
            changes.setdefault("milestones", kept)
            if self.milestones and not kept:  # in the last half epoch
                changes.setdefault("schedule", "constant")
        return dataclasses.replace(self, **changes)

    def network_options(self) -> dict[str, Any]:
        """Options of the network that the recipe asks for.

        Those that are not at their defaults, so that networks without such
        an option do as well.

        Example:

        >>> from tf_tickets.zoo import recipes
        >>> recipes.finetune("resnet20", "cifar10", 0.05).network_options()
        {'weight_decay': 0.0001, 'affine': False, 'bias': False}
        """
        usual = {"weight_decay": 0.0, "affine": True, "bias": True}
        return {
            name: getattr(self, name)
            for name, value in {**usual, "stem": "auto"}.items()
            if getattr(self, name) != value
        }

    def learning_rate(
        self, steps_per_epoch: int
    ) -> keras.optimizers.schedules.LearningRateSchedule:
        """Makes the learning rate schedule, in steps.

        The rate drops at the first step of a milestone's epoch. The cosine
        falls with every step, where PyTorch's usual one falls with every
        epoch.

        Args:
            steps_per_epoch: How many training batches an epoch has.

        Returns:
            A schedule for a Keras optimizer.

        Raises:
            ValueError: If `steps_per_epoch` is not a positive integer.
        """
        checks.whole("steps_per_epoch", steps_per_epoch)
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
            steps_per_epoch: How many training batches an epoch has.

        Returns:
            A Keras optimizer without weight decay, which is in the model.

        Raises:
            ValueError: If `steps_per_epoch` is not a positive integer.
        """
        schedule = self.learning_rate(steps_per_epoch)
        if self.algorithm == "adam":
            return keras.optimizers.Adam(schedule)
        return keras.optimizers.SGD(schedule, momentum=self.momentum)


def find(
    recipes: Mapping[tuple[str, str], _Value], model: str, dataset: str
) -> _Value:
    """The recipe of a network and a data set.

    Args:
        recipes: ``{(network, data set): recipe}``.
        model: Name of the network.
        dataset: Name of the data set.

    Raises:
        ValueError: If there is none; the message lists those there are.
    """
    if (model, dataset) not in recipes:
        known = ", ".join(f"{m} on {d}" for m, d in recipes)
        raise ValueError(
            f"There are recipes for {known}. "
            f"Received: model={model!r}, dataset={dataset!r}"
        )
    return recipes[model, dataset]
