"""Recipes of *Rare Gems*: search (Tables 8 to 14) and finetuning (Table 15)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

from tf_tickets import checks
from tf_tickets.callbacks import IterativeFreezing
from tf_tickets.zoo.recipes.recipe import Algorithm, Recipe, find


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
        checks.number("density", self.density, "(0, 1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GemMinerRecipe(Recipe):
    """How to train the scores that choose a ticket at initialization.

    Args:
        target_sparsity: As in `tf_tickets.callbacks.IterativeFreezing`.
        every: As there: the paper's pruning period.
        score_penalty: As in `tf_tickets.supermask`: the paper's lambda.
        **options: Those of `Recipe`.

    Example:

    >>> from tf_tickets.zoo import recipes
    >>> recipe = recipes.gem_miner("resnet20", "cifar10", 0.0144)
    >>> recipe.target_sparsity, recipe.every, recipe.score_penalty
    (0.9856, 5, 0.0001)
    >>> recipe.callback().every
    5
    """

    target_sparsity: float
    every: int
    score_penalty: float

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number("score_penalty", self.score_penalty, "[0, inf)")
        self.callback()  # which checks its own arguments

    def callback(self, **options: Any) -> IterativeFreezing:
        """The callback that freezes as the recipe says.

        Args:
            **options: More of its arguments, or others than the recipe's.
        """
        return IterativeFreezing(
            **{
                "target_sparsity": self.target_sparsity,
                "every": self.every,
                **options,
            }
        )


class _Finetuning(NamedTuple):
    epochs: int
    batch_size: int
    learning_rate: float
    milestones: tuple[int, ...]
    # The rate at density 0.5 where the table has a line for it.
    half_learning_rate: float | None = None


_FINETUNING = {
    ("resnet20", "cifar10"): _Finetuning(150, 128, 0.01, (80, 120), 0.1),
    ("mobilenet_v2", "cifar10"): _Finetuning(300, 128, 0.1, (150, 250)),
    ("vgg16", "cifar10"): _Finetuning(200, 128, 0.05, (100, 150)),
    ("wide_resnet_28_2", "cifar10"): _Finetuning(
        150, 128, 0.01, (80, 120), 0.1
    ),
    ("resnet18", "tiny_imagenet"): _Finetuning(200, 256, 0.1, (100, 150)),
    ("resnet50", "tiny_imagenet"): _Finetuning(150, 256, 0.1, (80, 120)),
    ("resnet50", "caltech101"): _Finetuning(50, 16, 0.0001, (20, 40)),
}


class _Mining(NamedTuple):
    algorithm: Algorithm
    # {density: (pruning period, learning rate, lambda)}
    rows: dict[float, tuple[int, float, float]]


def _mining_at(rate: float, *rows: tuple[float, float]) -> dict[Any, Any]:
    """Rows of ``(density, lambda)`` with one rate and a period of 5."""
    return {density: (5, rate, penalty) for density, penalty in rows}


# Rows that VGG-16 and both ResNet-50s have.
_COMMON = (0.5, 0.0), (0.05, 1e-6), (0.014, 1e-6), (0.005, 1e-6)
_MINING = {
    ("resnet20", "cifar10"): _Mining(
        "sgd",
        {0.5: (8, 0.05, 1e-8)}
        | _mining_at(
            0.1, (0.1374, 1e-5), (0.0373, 3e-5), (0.0144, 1e-4), (0.0059, 1e-4)
        ),
    ),
    ("mobilenet_v2", "cifar10"): _Mining(
        "sgd",
        _mining_at(0.05, (0.5, 0.0))
        | _mining_at(0.1, (0.2, 3e-6), (0.05, 7e-6), (0.0144, 1e-4)),
    ),
    ("vgg16", "cifar10"): _Mining(
        "sgd", _mining_at(0.01, *_COMMON, (0.025, 1e-6))
    ),
    ("wide_resnet_28_2", "cifar10"): _Mining(
        "sgd",
        _mining_at(0.1, (0.5, 0.0))
        | {density: (10, 0.1, 1e-5) for density in (0.2, 0.05, 0.0144, 0.005)},
    ),
    ("resnet18", "tiny_imagenet"): _Mining(
        "sgd",
        {0.5: (10, 0.1, 0.0)}
        | _mining_at(0.001, (0.05, 8e-6), (0.014, 5e-6), (0.005, 1e-5)),
    ),
    ("resnet50", "tiny_imagenet"): _Mining("adam", _mining_at(0.01, *_COMMON)),
    ("resnet50", "caltech101"): _Mining("adam", _mining_at(0.01, *_COMMON)),
}


def finetune(model: str, dataset: str, density: float) -> FinetuneRecipe:
    """The recipe for training the weights of a rare gem.

    The table's "all" and "others" hold for any density. It gives epochs,
    batches, learning rates and milestones; that SGD has momentum 0.9 and
    weight decay 1e-4 and that the rate is divided by ten comes from the
    published code. The networks have neither affine normalization nor biases,
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
    row = find(_FINETUNING, model, dataset)
    checks.number("density", density, "(0, 1)")
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
    algorithm, rows = find(_MINING, model, dataset)
    found = [row for row in rows if math.isclose(row, density)]
    if not found:
        known = ", ".join(map(str, sorted(rows)))
        raise ValueError(
            f"For {model} on {dataset} there are the densities {known}. "
            f"Received: density={density!r}"
        )
    every, rate, penalty = rows[found[0]]
    weights = finetune(model, dataset, found[0])
    return GemMinerRecipe(
        model=model,
        dataset=dataset,
        epochs=weights.epochs,
        batch_size=weights.batch_size,
        algorithm=algorithm,
        initial_learning_rate=rate,
        schedule="cosine",
        affine=weights.affine,
        bias=weights.bias,
        # With no rounding error in what the tables print with four digits.
        target_sparsity=round(1 - found[0], 6),
        every=every,
        score_penalty=penalty,
    )
