"""What a supermask can be asked for, checked in one place."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tf_tickets import checks
from tf_tickets.layers import initializers
from tf_tickets.pruning import scopes
from tf_tickets.selection import Filters

MASKS = ("threshold", "top_k", "random")
PENALTIES = ("l1", "l2")


@dataclasses.dataclass(frozen=True)
class SupermaskOptions:
    """The keyword arguments of `tf_tickets.layers.Supermask`, which explains
    them.

    Raises:
        ValueError: On unknown names and numbers out of range.
    """

    scores: Any = None
    weights: Any = "signed_constant"
    mask: str = "threshold"
    sparsity: float | None = None
    scope: scopes.Scope = "layer"
    score_penalty: float = 0.0
    penalty: str = "l2"
    filters: Filters = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_name("mask", self.mask, MASKS)
        _check_name("penalty", self.penalty, PENALTIES)
        scopes.check_scope(self.scope)
        if self.mask != "top_k":
            if self.sparsity is not None:
                raise ValueError(
                    "Only a 'top_k' mask is given a sparsity; the others find "
                    "their own, and callbacks.IterativeFreezing brings them to "
                    f"a target. Received: sparsity={self.sparsity!r}, "
                    f"mask={self.mask!r}"
                )
        elif not isinstance(self.scope, Mapping):
            checks.sparsity(self.sparsity)
        if (
            isinstance(self.score_penalty, bool)
            or not isinstance(self.score_penalty, int | float | np.number)
            or not 0 <= self.score_penalty < float("inf")
        ):
            raise ValueError(
                "`score_penalty` must be a finite number of at least 0. "
                f"Received: score_penalty={self.score_penalty!r}"
            )
        if isinstance(self.seed, bool) or not isinstance(
            self.seed, int | np.integer
        ):
            raise ValueError(
                f"`seed` must be an integer. Received: seed={self.seed!r}"
            )
        # Unknown names raise here, before anything is made.
        _ = self.score_initializer, self.weight_initializer

    @property
    def score_initializer(self) -> Any:
        """The initializer of the scores."""
        scores = self.scores
        if scores is None:
            scores = "kaiming_uniform" if self.mask == "top_k" else "uniform"
        return initializers.get(scores, initializers.SCORES, "scores")

    @property
    def weight_initializer(self) -> Any:
        """The initializer of the frozen weights; `None` for `"keep"`."""
        if isinstance(self.weights, str) and self.weights == "keep":
            return None
        return initializers.get(self.weights, initializers.WEIGHTS, "weights")

    @property
    def regularizer(self) -> keras.regularizers.Regularizer | None:
        """The penalty on a tensor of scores: λ times a sum."""
        if not self.score_penalty:
            return None
        return (
            keras.regularizers.L1(self.score_penalty)
            if self.penalty == "l1"
            else keras.regularizers.L2(self.score_penalty)
        )

    def as_config(self, keys: Sequence[str]) -> dict[str, Any]:
        """JSON values from which `from_config` makes the options again.

        Args:
            keys: The keys that ``filters`` selected, for filters that are
                functions.
        """
        if callable(self.scope):
            raise ValueError(
                "A supermask whose scope is a function cannot be saved. "
                f"Received: scope={self.scope!r}"
            )
        return {
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
            "filters": serialized_filters(self.filters, keys),
            "scores": _serialized(self.scores),
            "weights": _serialized(self.weights),
            "scope": dict(self.scope)
            if isinstance(self.scope, Mapping)
            else self.scope,
        }


def serialized_filters(filters: Filters, keys: Sequence[str]) -> Any:
    """JSON values that select ``keys`` again, in a copy of the model.

    Functions cannot be saved, and a copy may have another root name.
    """
    if filters is None or not keys:
        return filters
    return [f"(^|/){re.escape(key.split('/', 1)[-1])}$" for key in keys]


def _check_name(argument: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(
            f"`{argument}` must be one of {list(known)}. "
            f"Received: {argument}={value!r}"
        )


def _serialized(initializer: Any) -> Any:
    if initializer is None or isinstance(initializer, str | dict):
        return initializer
    return keras.initializers.serialize(initializer)
