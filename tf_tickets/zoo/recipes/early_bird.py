"""Recipes for Early-Bird tickets."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from tf_tickets import checks
from tf_tickets.callbacks import EarlyBird
from tf_tickets.selection import layers_of
from tf_tickets.zoo.recipes.recipe import Recipe, find


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyBirdRecipe(Recipe):
    """How to search for channels to prune while training.

    Args:
        sparsities: As in `tf_tickets.callbacks.EarlyBird`, like all but the
            last; 0.3, 0.5 and 0.7 by default.
        window: How many masks are compared; 5 by default.
        epsilon: Largest distance between masks that counts as no change; 0.1
            by default.
        slimming: Factor of the L1 penalty on the scales of normalization; 1e-4
            by default.
        initial_scale: What those scales start from; 0.5 by default. The
            published code has 0.5 in its networks for CIFAR and 1 in those
            for ImageNet.
        **options: Those of `Recipe`.

    Example:

    >>> from tf_tickets.zoo import recipes
    >>> recipe = recipes.early_bird("vgg16", "cifar10")
    >>> recipe.epsilon, recipe.window, recipe.slimming
    (0.1, 5, 0.0001)
    >>> recipe.callback(stop=False).sparsities
    (0.3, 0.5, 0.7)
    """

    sparsities: tuple[float, ...] = (0.3, 0.5, 0.7)
    window: int = 5
    epsilon: float = 0.1
    slimming: float = 1e-4
    initial_scale: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number("initial_scale", self.initial_scale, "[0, inf)")
        self.callback()  # which checks its own arguments

    def callback(self, **options: Any) -> EarlyBird:
        """The callback that searches as the recipe says.

        Args:
            **options: More of its arguments, or others than the recipe's.
        """
        return EarlyBird(
            **{
                "sparsities": self.sparsities,
                "window": self.window,
                "epsilon": self.epsilon,
                "slimming": self.slimming,
                **options,
            }
        )

    def start(self, model: keras.Model) -> None:
        """Sets the scales of a new network to what they start from.

        Args:
            model: Whose batch normalization is set.

        Example:

        >>> from tf_tickets.zoo import models, recipes
        >>> model = models.digits_cnn()
        >>> recipes.early_bird("digits_cnn", "digits").start(model)
        >>> float(model.get_layer("conv1_bn").gamma[0])
        0.5
        """
        for layer in layers_of(model):
            if isinstance(layer, keras.layers.BatchNormalization):
                if layer.scale:
                    scale = self.initial_scale
                    layer.gamma.assign(keras.ops.full(layer.gamma.shape, scale))


def early_bird(model: str, dataset: str) -> EarlyBirdRecipe:
    """The recipe for drawing Early-Bird tickets.

    SGD from 0.1 in batches of 256: on CIFAR 160 epochs, divided by ten after
    80 and 120, scales from 0.5; on ImageNet, which `datasets` does not load,
    90 epochs, divided after 30 and 60, scales from 1. The other schedule that
    was tried on CIFAR, [0, 100], is `recipe.adjusted(milestones=(0, 100))`:
    the rate is divided before the first epoch, too.

    The digits recipe is ours.

    Args:
        model: `"vgg16"` or `"preresnet101"`; `"resnet18"` or `"resnet50"` for
            ImageNet; `"digits_cnn"`. CIFAR takes `"resnet18"`, too, as the
            paper's figures do.
        dataset: `"cifar10"`, `"cifar100"`, `"imagenet"` or `"digits"`.

    Returns:
        An `EarlyBirdRecipe`.

    Raises:
        ValueError: If there is no recipe for the two together.

    Reference:
        You et al., "Drawing Early-Bird Tickets", ICLR 2020.

    Example:

    >>> from tf_tickets.zoo import recipes
    >>> recipes.early_bird("resnet18", "imagenet").milestones
    (30, 60)
    """
    return find(_RECIPES, model, dataset)


def _recipe(
    model: str, dataset: str, epochs: int, milestones: tuple[int, ...]
) -> EarlyBirdRecipe:
    return EarlyBirdRecipe(
        model=model,
        dataset=dataset,
        epochs=epochs,
        batch_size=256,
        initial_learning_rate=0.1,
        schedule="multistep",
        milestones=milestones,
        weight_decay=1e-4,
        initial_scale=1.0 if dataset == "imagenet" else 0.5,
    )


_RECIPES = (
    {
        (model, dataset): _recipe(model, dataset, 160, (80, 120))
        for model in ("vgg16", "preresnet101", "resnet18")
        for dataset in ("cifar10", "cifar100")
    }
    | {
        (model, "imagenet"): _recipe(model, "imagenet", 90, (30, 60))
        for model in ("resnet18", "resnet50")
    }
    | {
        ("digits_cnn", "digits"): EarlyBirdRecipe(
            model="digits_cnn",
            dataset="digits",
            epochs=60,
            batch_size=128,
            initial_learning_rate=0.1,
            schedule="multistep",
            milestones=(30, 45),
            weight_decay=1e-4,
        )
    }
)
