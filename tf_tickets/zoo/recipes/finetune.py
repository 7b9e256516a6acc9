"""Recipes for training the weights of a rare gem: Table 15 of *Rare Gems*."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from tf_tickets.zoo.recipes.lookup import check_density, find
from tf_tickets.zoo.recipes.recipe import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(Recipe):
    """How to train the weights of a ticket.

    Args:
        density: Share of the prunable weights that the ticket keeps.
        **options: Those of `Recipe`.

    Example:

    >>> from tf_tickets.zoo import recipes
    >>> recipes.finetune("vgg16", "cifar10", 0.014).initial_learning_rate
    0.05
    """

    density: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_density(self.density)


class _Row(NamedTuple):
    epochs: int
    batch_size: int
    learning_rate: float
    milestones: tuple[int, ...]
    # The rate at density 0.5 where the table has a line for it.
    half_learning_rate: float | None = None


_TABLE = {
    ("resnet20", "cifar10"): _Row(150, 128, 0.01, (80, 120), 0.1),
    ("mobilenet_v2", "cifar10"): _Row(300, 128, 0.1, (150, 250)),
    ("vgg16", "cifar10"): _Row(200, 128, 0.05, (100, 150)),
    ("wide_resnet_28_2", "cifar10"): _Row(150, 128, 0.01, (80, 120), 0.1),
    ("resnet18", "tiny_imagenet"): _Row(200, 256, 0.1, (100, 150)),
    ("resnet50", "tiny_imagenet"): _Row(150, 256, 0.1, (80, 120)),
    ("resnet50", "caltech101"): _Row(50, 16, 0.0001, (20, 40)),
}


def finetune(model: str, dataset: str, density: float) -> FinetuneRecipe:
    """The recipe for training the weights of a rare gem.

    The table's "all" and "others" hold for any density. It gives epochs,
    batches, learning rates and milestones; that SGD has momentum 0.9 and
    weight decay 1e-4 and that the rate is divided by ten comes from the
    published code. The networks have neither affine normalisation nor biases,
    except the ResNet-50 for Caltech-101, which starts from ImageNet weights.

    Args:
        model: Name of the network in `models`.
        dataset: Name of the data set in `datasets`.
        density: Share of the prunable weights that the ticket keeps: what
            the paper prints as its sparsity.

    Returns:
        A `FinetuneRecipe`.

    Raises:
        ValueError: If there is no recipe for the network and the data set,
            or `density` is not in (0, 1).

    Reference:
        Sreenivasan et al., "Rare Gems", NeurIPS 2022, Table 15.

    Example:

    >>> from tf_tickets.zoo import recipes
    >>> recipes.finetune("resnet20", "cifar10", 0.5).initial_learning_rate
    0.1
    >>> recipes.finetune("resnet20", "cifar10", 0.0144).initial_learning_rate
    0.01
    """
    row = find(_TABLE, model, dataset)
    check_density(density)
    rate = row.learning_rate
    if row.half_learning_rate is not None and math.isclose(density, 0.5):
        rate = row.half_learning_rate
    pretrained = dataset == "caltech101"
    return FinetuneRecipe(
        model=model,
        dataset=dataset,
        density=density,
        epochs=row.epochs,
        batch_size=row.batch_size,
        initial_learning_rate=rate,
        schedule="multistep",
        milestones=row.milestones,
        weight_decay=1e-4,
        affine=pretrained,
        bias=pretrained,
    )
