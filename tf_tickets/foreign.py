"""Weights that are not in a Keras 3 model: of tf_keras, or plain arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tf_tickets.selection import unique_keys

Weights = Mapping[str, Any] | Iterable[Any]


@dataclasses.dataclass(frozen=True)
class Weight:
    """One weight, with what selection asks of a variable.

    Attributes:
        path: Its name, without the ``:0`` of TensorFlow.
        value: Its array.
    """

    path: str
    value: np.ndarray

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.value.shape

    @property
    def dtype(self) -> np.dtype:
        """Of the array."""
        return self.value.dtype


def collect(weights: Weights) -> dict[str, Weight]:
    """The weights by unique key; a repeated path gets ``#1``, ``#2``, ...

    Args:
        weights: ``{path: array}``, or the variables of a model, in order.

    Raises:
        ValueError: If there are none, something has no name or is no array of
            numbers, or they are still wrapped for pruning.
    """
    if isinstance(weights, Mapping):
        pairs = list(weights.items())
    elif isinstance(weights, Iterable) and not isinstance(weights, str):
        pairs = [
            (getattr(v, "path", None) or getattr(v, "name", None), v)
            for v in weights
        ]
    else:
        pairs = []
    found = [
        Weight(name.removesuffix(":0"), _array(value))
        for name, value in pairs
        if isinstance(name, str)
    ]
    if not found or len(found) < len(pairs):
        raise ValueError(
            "`weights` must be {path: array} or the variables of a model, "
            f"such as `model.weights`. Received: weights={weights!r}"[:500]
        )
    odd = [w.path for w in found if w.value.dtype.kind in "OSUmM"]
    if odd:
        raise ValueError(f"Weights must be arrays of numbers. Received: {odd}")
    wrapped = [w.path for w in found if w.name == "pruning_step"]
    if wrapped:
        raise ValueError(
            "The model is still wrapped for pruning: take the weights of "
            "`tfmot.sparsity.keras.strip_pruning(model)`. "
            f"Received: {wrapped[:3]}"
        )
    return unique_keys(found)


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "numpy"):
        value = value.numpy()
    try:
        return np.array(value)
    except ValueError:  # rows of different lengths
        return np.array(None)
