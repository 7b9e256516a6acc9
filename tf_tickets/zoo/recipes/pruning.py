"""Recipes for iterative magnitude pruning."""

from __future__ import annotations

import dataclasses
from typing import Any

from tf_tickets.callbacks import IterativeMagnitudePruning
from tf_tickets.zoo.recipes.recipe import Recipe, find


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruningRecipe(Recipe):
    """How to draw a ticket by rounds of training, pruning and rewinding.

    Args:
        epochs: Epochs of one round, and of the last training.
        prune_fraction: As in
            `tf_tickets.callbacks.IterativeMagnitudePruning`.
        rewind_step: As there.
        **options: Those of `Recipe`.

    Example:

    >>> from tf_tickets.zoo import recipes
    >>> recipe = recipes.iterative_pruning("resnet20", "cifar10")
    >>> recipe.epochs, recipe.prune_fraction, recipe.rewind_step
    (160, 0.2, 1000)
    >>> recipe.callback(rounds=3).epochs
    480
    """

    prune_fraction: float
    rewind_step: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.callback()  # which checks its own arguments

    def callback(self, **options: Any) -> IterativeMagnitudePruning:
        """The callback that prunes as the recipe says.

        Args:
            **options: More of its arguments, or others than the recipe's: with
                a ``target_sparsity`` goes ``prune_fraction=None``.
        """
        return IterativeMagnitudePruning(
            **{
                "epochs_per_round": self.epochs,
                "prune_fraction": self.prune_fraction,
                "rewind_step": self.rewind_step,
                **options,
            }
        )


def iterative_pruning(model: str, dataset: str) -> PruningRecipe:
    """The recipe for drawing tickets by iterative magnitude pruning.

    ResNet-20 and VGG-16 on CIFAR-10 as in the published experiments with
    linear mode connectivity: SGD from 0.1, divided by ten after 80 and 120 of
    160 epochs, weight decay 1e-4. Papers rewind to steps between 500 and
    2,000; 1,000 is what *Rare Gems*' own baseline takes. That baseline
    rewinds the prunable weights only and keeps the normalization. Published
    code never prunes the classifier of VGG-16, but that of ResNet-20.

    The recipes for the digits and for MNIST-1D are ours, for real runs in
    seconds and minutes.

    Args:
        model: `"resnet20"`, `"vgg16"`, `"mobilenet_v2"`,
            `"wide_resnet_28_2"`, `"digits_cnn"` or `"resnet1d"`.
        dataset: `"cifar10"`, `"digits"` or `"mnist1d"`.

    Returns:
        A `PruningRecipe`.

    Raises:
        ValueError: If there is no recipe for the two together.

    Reference:
        Frankle et al., "Linear Mode Connectivity and the Lottery Ticket
        Hypothesis", ICML 2020.

    Example:

    >>> from tf_tickets.zoo import recipes
    >>> recipes.iterative_pruning("digits_cnn", "digits").algorithm
    'adam'
    """
    return find(_RECIPES, model, dataset)


_RECIPES = {
    (model, "cifar10"): PruningRecipe(
        model=model,
        dataset="cifar10",
        epochs=160,
        batch_size=128,
        initial_learning_rate=0.1,
        schedule="multistep",
        milestones=(80, 120),
        weight_decay=1e-4,
        prune_fraction=0.2,
        rewind_step=1000,
    )
    for model in ("resnet20", "vgg16", "mobilenet_v2", "wide_resnet_28_2")
} | {
    ("digits_cnn", "digits"): PruningRecipe(
        model="digits_cnn",
        dataset="digits",
        epochs=12,
        batch_size=128,
        algorithm="adam",
        initial_learning_rate=2e-3,
        prune_fraction=0.3,
        rewind_step=0,
    ),
    ("resnet1d", "mnist1d"): PruningRecipe(
        model="resnet1d",
        dataset="mnist1d",
        epochs=40,
        batch_size=128,
        algorithm="adam",
        initial_learning_rate=2e-3,
        schedule="multistep",
        milestones=(25, 35),
        prune_fraction=0.3,
        rewind_step=0,
    ),
}
