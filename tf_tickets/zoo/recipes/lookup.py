"""The lookup of recipes, and the error when there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

_Value = TypeVar("_Value")


def find(
    recipes: Mapping[tuple[str, str], _Value], model: str, dataset: str
) -> _Value:
    """Returns the recipe of a network and a data set.

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


def check_density(density: float) -> None:
    """Refuses what is not a share of weights to keep."""
    if not 0.0 < density < 1.0:
        raise ValueError(
            f"`density` must be in (0, 1). Received: density={density!r}"
        )
