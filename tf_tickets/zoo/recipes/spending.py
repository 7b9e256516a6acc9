"""Recipes for spending a ticket better."""

from __future__ import annotations

import dataclasses
from typing import Any

from tf_tickets import checks
from tf_tickets.retraining import keras_label_smoothing
from tf_tickets.zoo.recipes.recipe import Recipe, find


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpendingRecipe(Recipe):
    """How to train a network densely, and how to retrain its ticket.

    Args:
        label_smoothing: Share of the label spread over the *other* classes,
            when a ticket is retrained. Keras spreads it over all of them:
            give its losses `keras_label_smoothing(classes)`.
        rewind_epoch: As in `tf_tickets.callbacks.IterativeMagnitudePruning`,
            for the experiments with rewinding.
        **options: Those of `Recipe`.

    Example:

    >>> from tf_tickets.zoo import recipes
    >>> recipe = recipes.spending("resnet18", "cifar100")
    >>> recipe.epochs, recipe.milestones, recipe.rewind_epoch
    (182, (90, 135), 33)
    """

    label_smoothing: float = 0.1
    rewind_epoch: int = 33

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number("label_smoothing", self.label_smoothing, "[0, 1)")
        if checks.whole("rewind_epoch", self.rewind_epoch, least=0) >= (
            self.epochs
        ):
            raise ValueError(
                f"`rewind_epoch` must be in [0, {self.epochs}). "
                f"Received: rewind_epoch={self.rewind_epoch!r}"
            )

    def adjusted(self, **changes: Any) -> SpendingRecipe:
        """The recipe with some values changed; see `Recipe.adjusted`.

        Args:
            **changes: With other epochs the rewind point moves along, too.
        """
        epochs = changes.get("epochs")
        if epochs is not None and changes.get("rewind_epoch") is None:
            moved = round(self.rewind_epoch * epochs / self.epochs)
            changes["rewind_epoch"] = min(moved, max(epochs - 1, 0))
        return super().adjusted(**changes)

    def keras_label_smoothing(self, classes: int) -> float:
        """Returns the same smoothing as Keras' losses count it.

        Args:
            classes: Number of classes.

        Returns:
            What to give as `label_smoothing`, at most 1.

        Raises:
            ValueError: If there are fewer than two classes, or so few that
                the true class would get less than the others.

        Example:

        >>> from tf_tickets.zoo import recipes
        >>> recipe = recipes.spending("resnet18", "cifar10")
        >>> round(recipe.keras_label_smoothing(10), 4)
        0.1111
        """
        return keras_label_smoothing(self.label_smoothing, classes)


def spending(model: str, dataset: str) -> SpendingRecipe:
    """The recipe of *Spending Your Winning Lottery Better*.

    One recipe for every network and data set: SGD from 0.1, divided by ten
    after 90 and 135 epochs, weight decay 2e-4, batches of 128. The paper's
    text says 180 epochs, the published code 182, and the code is followed.
    The stem on TinyImageNet is CIFAR's, which is what the published networks
    have unless told otherwise; the paper does not say.

    Args:
        model: `"resnet18"`, `"resnet34"`, `"vgg16"` or `"mobilenet_v1"`.
        dataset: `"cifar10"`, `"cifar100"` or `"tiny_imagenet"`.

    Returns:
        A `SpendingRecipe`.

    Raises:
        ValueError: If there is no recipe for the two together.

    Reference:
        Jaiswal et al., "Spending Your Winning Lottery Better After Drawing
        It", 2021, section 4.1.

    Example:

    >>> from tf_tickets.zoo import recipes
    >>> recipes.spending("vgg16", "tiny_imagenet").weight_decay
    0.0002
    """
    return find(_RECIPES, model, dataset)


_RECIPES = {
    (model, dataset): SpendingRecipe(
        model=model,
        dataset=dataset,
        epochs=182,
        batch_size=128,
        initial_learning_rate=0.1,
        schedule="multistep",
        milestones=(90, 135),
        weight_decay=2e-4,
    )
    for model in ("resnet18", "resnet34", "vgg16", "mobilenet_v1")
    for dataset in ("cifar10", "cifar100", "tiny_imagenet")
}
