"""Recipes for Early-Bird tickets."""

from __future__ import annotations

import dataclasses

from tf_tickets.zoo.recipes.lookup import find
from tf_tickets.zoo.recipes.recipe import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyBirdRecipe(Recipe):
    """How to search for channels to prune while training.

    Args:
        prune_fractions: Shares of the channels to prune, tracked at once.
        scale_penalty: Factor of the L1 penalty on the scales of normalisation.
        initial_scale: What those scales start from.
        threshold: Largest distance between masks that counts as no change.
        window: Number of masks compared.
        **options: Those of `Recipe`.

    Example:

    >>> from tf_tickets.zoo import recipes
    >>> recipe = recipes.early_bird("vgg16", "cifar10")
    >>> recipe.threshold, recipe.window, recipe.scale_penalty
    (0.1, 5, 0.0001)
    """

    prune_fractions: tuple[float, ...] = (0.3, 0.5, 0.7)
    scale_penalty: float = 1e-4
    initial_scale: float = 0.5
    threshold: float = 0.1
    window: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prune_fractions or any(
            not 0.0 < fraction < 1.0 for fraction in self.prune_fractions
        ):
            raise ValueError(
                "`prune_fractions` must be in (0, 1). "
                f"Received: prune_fractions={self.prune_fractions!r}"
            )
        for name in ("scale_penalty", "initial_scale", "threshold"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"`{name}` must not be negative. "
                    f"Received: {name}={getattr(self, name)!r}"
                )
        if not isinstance(self.window, int) or self.window < 2:
            raise ValueError(
                "`window` must be an integer of at least 2. "
                f"Received: window={self.window!r}"
            )


def early_bird(model: str, dataset: str) -> EarlyBirdRecipe:
    """The recipe for drawing Early-Bird tickets.

    SGD from 0.1 in batches of 256: on CIFAR 160 epochs, divided by ten after
    80 and 120; on ImageNet, which `datasets` does not load, 90 epochs, divided
    after 30 and 60.

    Args:
        model: `"vgg16"` or `"resnet18"`.
        dataset: `"cifar10"` or `"cifar100"`; `"imagenet"` with `"resnet18"`.

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
    )


_RECIPES = {
    (model, dataset): _recipe(model, dataset, 160, (80, 120))
    for model in ("vgg16", "resnet18")
    for dataset in ("cifar10", "cifar100")
} | {("resnet18", "imagenet"): _recipe("resnet18", "imagenet", 90, (30, 60))}
