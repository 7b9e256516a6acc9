"""Recipes for searching rare gems: Tables 8 to 14 of *Rare Gems*."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from tf_tickets.zoo.recipes.finetune import finetune
from tf_tickets.zoo.recipes.lookup import check_density, find
from tf_tickets.zoo.recipes.recipe import Algorithm, Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class GemMinerRecipe(Recipe):
    """How to train the scores that choose a ticket at initialisation.

    Args:
        density: Share of the prunable weights to keep.
        freeze_every: Epochs from one freezing of the lowest scores to the
            next: the paper's pruning period.
        score_penalty: Factor of the sum of squared scores in the loss: the
            paper's lambda.
        **options: Those of `Recipe`.

    Example:

    >>> from tf_tickets.zoo import recipes
    >>> recipe = recipes.gem_miner("resnet20", "cifar10", 0.0144)
    >>> recipe.freeze_every, recipe.score_penalty, recipe.epochs
    (5, 0.0001, 150)
    """

    density: float
    freeze_every: int
    score_penalty: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_density(self.density)
        if not isinstance(self.freeze_every, int) or self.freeze_every < 1:
            raise ValueError(
                "`freeze_every` must be a positive integer. "
                f"Received: freeze_every={self.freeze_every!r}"
            )
        if not self.score_penalty >= 0:
            raise ValueError(
                "`score_penalty` must not be negative. "
                f"Received: score_penalty={self.score_penalty!r}"
            )

    @property
    def target_sparsity(self) -> float:
        """Share of the prunable weights to prune."""
        return 1.0 - self.density


class _Row(NamedTuple):
    density: float
    freeze_every: int
    algorithm: Algorithm
    learning_rate: float
    score_penalty: float


_TABLES = {
    ("resnet20", "cifar10"): (
        _Row(0.5, 8, "sgd", 0.05, 1e-8),
        _Row(0.1374, 5, "sgd", 0.1, 1e-5),
        _Row(0.0373, 5, "sgd", 0.1, 3e-5),
        _Row(0.0144, 5, "sgd", 0.1, 1e-4),
        _Row(0.0059, 5, "sgd", 0.1, 1e-4),
    ),
    ("mobilenet_v2", "cifar10"): (
        _Row(0.5, 5, "sgd", 0.05, 0.0),
        _Row(0.2, 5, "sgd", 0.1, 3e-6),
        _Row(0.05, 5, "sgd", 0.1, 7e-6),
        _Row(0.0144, 5, "sgd", 0.1, 1e-4),
    ),
    ("vgg16", "cifar10"): (
        _Row(0.5, 5, "sgd", 0.01, 0.0),
        _Row(0.05, 5, "sgd", 0.01, 1e-6),
        _Row(0.025, 5, "sgd", 0.01, 1e-6),
        _Row(0.014, 5, "sgd", 0.01, 1e-6),
        _Row(0.005, 5, "sgd", 0.01, 1e-6),
    ),
    ("wide_resnet_28_2", "cifar10"): (
        _Row(0.5, 5, "sgd", 0.1, 0.0),
        _Row(0.2, 10, "sgd", 0.1, 1e-5),
        _Row(0.05, 10, "sgd", 0.1, 1e-5),
        _Row(0.0144, 10, "sgd", 0.1, 1e-5),
        _Row(0.005, 10, "sgd", 0.1, 1e-5),
    ),
    ("resnet18", "tiny_imagenet"): (
        _Row(0.5, 10, "sgd", 0.1, 0.0),
        _Row(0.05, 5, "sgd", 0.001, 8e-6),
        _Row(0.014, 5, "sgd", 0.001, 5e-6),
        _Row(0.005, 5, "sgd", 0.001, 1e-5),
    ),
    ("resnet50", "tiny_imagenet"): (
        _Row(0.5, 5, "adam", 0.01, 0.0),
        _Row(0.05, 5, "adam", 0.01, 1e-6),
        _Row(0.014, 5, "adam", 0.01, 1e-6),
        _Row(0.005, 5, "adam", 0.01, 1e-6),
    ),
    ("resnet50", "caltech101"): (
        _Row(0.5, 5, "adam", 0.01, 0.0),
        _Row(0.05, 5, "adam", 0.01, 1e-6),
        _Row(0.014, 5, "adam", 0.01, 1e-6),
        _Row(0.005, 5, "adam", 0.01, 1e-6),
    ),
}


def gem_miner(model: str, dataset: str, density: float) -> GemMinerRecipe:
    """The recipe for searching a rare gem.

    Rows are the paper's, except that it calls density sparsity. Epochs and
    batches are those of finetuning, as the caption of Table 15 says. The
    tables give no schedule; the published code lowers the rate of the scores
    along a cosine, without weight decay. Where that code's configurations
    differ from the tables, the tables are followed: for MobileNet-V2 at
    density 0.0144 they take a penalty of 1.5e-5 in place of 1e-4.

    Args:
        model: Name of the network in `models`.
        dataset: Name of the data set in `datasets`.
        density: Share of the prunable weights to keep, one of the tables'.

    Returns:
        A `GemMinerRecipe`.

    Raises:
        ValueError: If the tables have no such row; the message lists those
            they have.

    Reference:
        Sreenivasan et al., "Rare Gems", NeurIPS 2022, Tables 8 to 14.

    Example:

    >>> from tf_tickets.zoo import recipes
    >>> recipes.gem_miner("resnet50", "tiny_imagenet", 0.014).algorithm
    'adam'
    """
    rows = find(_TABLES, model, dataset)
    for row in rows:
        if math.isclose(row.density, density):
            break
    else:
        raise ValueError(
            f"For {model} on {dataset} there are the densities "
            f"{', '.join(str(row.density) for row in rows)}. "
            f"Received: density={density!r}"
        )
    weights = finetune(model, dataset, row.density)
    return GemMinerRecipe(
        model=model,
        dataset=dataset,
        density=row.density,
        epochs=weights.epochs,
        batch_size=weights.batch_size,
        algorithm=row.algorithm,
        initial_learning_rate=row.learning_rate,
        schedule="cosine",
        freeze_every=row.freeze_every,
        score_penalty=row.score_penalty,
        affine=weights.affine,
        bias=weights.bias,
    )
