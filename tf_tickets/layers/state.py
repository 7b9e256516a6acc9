"""What a supermask is asked for, its variables, and the masks they mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import checks, initialization
from tf_tickets.layers import initializers
from tf_tickets.layers.masked import serialized_filters
from tf_tickets.pruning import scopes
from tf_tickets.pruning.topk import select
from tf_tickets.selection import (
    Filters,
    owners,
    prunable_weights,
    unique_keys,
    values_of,
)

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
        checks.choice("mask", self.mask, MASKS)
        checks.choice("penalty", self.penalty, PENALTIES)
        scopes.check_scope(self.scope)
        if isinstance(self.scope, scopes.AtLeast):
            raise ValueError(
                "A supermask has no floor per tensor: its step selects with "
                "one count a tensor or one for all. "
                f"Received: scope={self.scope!r}"
            )
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
        checks.number("score_penalty", self.score_penalty, "[0, inf)")
        checks.whole("seed", self.seed, least=0)
        checks.make_plain(self)
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


class UnitInterval(keras.constraints.Constraint):
    """Projection to [0, 1], which Keras applies inside the training step."""

    def __call__(self, w: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(tf.convert_to_tensor(w), 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class SupermaskState:
    """Everything by the paths of the wrapped layer.

    Attributes:
        lent: The wrapped layer's variables.
        copies: The supermask's own copy of each: w and all the rest.
        scores: p or s of each prunable weight.
        kept: q of each prunable weight; empty for top-k masks.
        pools: The tensors that compete in a top-k mask, with the counts they
            start from; empty for other masks.
        keep: How many weights each pool keeps now.
    """

    lent: dict[str, keras.Variable]
    copies: dict[str, keras.Variable]
    scores: dict[str, keras.Variable]
    kept: dict[str, keras.Variable]
    pools: list[scopes.Pool]
    keep: keras.Variable | None

    @property
    def positions(self) -> list[list[int]]:
        """The pools, by place in ``scores``."""
        order = list(self.scores)
        return [list(map(order.index, pool.paths)) for pool in self.pools]

    def masks(self, which: str) -> dict[str, np.ndarray]:
        """As `Supermask.masks`."""
        checks.choice("mask", which, ("effective", "frozen"))
        if self.keep is None:
            kept = values_of(self.kept)
            if which == "frozen":
                return kept
            scores = values_of(self.scores)
            return {key: q & (scores[key] > 0.5) for key, q in kept.items()}
        if which == "frozen":
            raise ValueError(
                "Nothing is frozen in a supermask with mask='top_k': its mask "
                "is the 'effective' one. Received: mask='frozen'"
            )
        scores = {k: np.abs(s) for k, s in values_of(self.scores).items()}
        keeps = keras.ops.convert_to_numpy(self.keep).tolist()
        return select(
            scores,
            [
                pool._replace(keep=keep)
                for pool, keep in zip(self.pools, keeps, strict=True)
            ],
            {key: np.ones(s.shape, bool) for key, s in scores.items()},
        )


def make(
    add_weight: Callable[..., keras.Variable],
    layer: keras.layers.Layer,
    options: SupermaskOptions,
) -> SupermaskState:
    """Copy the layer's variables; draw frozen weights, scores and masks.

    Args:
        add_weight: Of the layer that is to own them.
        layer: The wrapped layer, built.
        options: How to draw.
    """
    lent = unique_keys(layer.variables)
    kernels = prunable_weights(layer, options.filters)
    owner = owners(layer)
    pools = (
        top_k_pools(options, kernels, options.sparsity)
        if options.mask == "top_k"
        else []
    )

    def add(key: str, suffix: str, **arguments: Any) -> keras.Variable:
        return add_weight(
            shape=tuple(lent[key].shape),
            autocast=False,
            name=key.replace("/", "_").replace("#", "_") + suffix,
            **arguments,
        )

    def drawing(key: str, purpose: str) -> Any:
        initializer = (
            options.score_initializer
            if purpose == "scores"
            else options.weight_initializer
        )
        seed = (
            int(options.seed) % 2**63,
            list(kernels).index(key),
            int(purpose == "scores"),
        )
        variable = lent[key]
        fans = initialization.fan_shape(owner.get(id(variable)), variable)

        def draw(size: Sequence[int], dtype: Any) -> tf.Tensor:
            values = initialization.draw(
                initializer, tuple(size), seed, fans=fans
            )
            if purpose == "scores" and not pools:
                _check_unit_interval(values, key)
            return tf.constant(values, dtype)

        return draw

    copies, scores, kept = {}, {}, {}
    for key, variable in lent.items():
        redrawn = key in kernels and options.weight_initializer is not None
        copies[key] = add(
            key,
            "",
            initializer=drawing(key, "weights")
            if redrawn
            else _copying(variable),
            dtype=_stored_dtype(variable, layer),
            aggregation=variable.aggregation,
            trainable=False,
        )
    for key in kernels:
        if not pools:
            kept[key] = add(
                key,
                "_kept",
                initializer="ones",
                dtype="bool",
                trainable=False,
            )
        scores[key] = add(
            key,
            "_scores",
            initializer=drawing(key, "scores"),
            dtype="float32",
            trainable=True,
            regularizer=options.regularizer,
            constraint=None if pools else UnitInterval(),
        )
    keep = None
    if pools:
        keep = add_weight(
            shape=(len(pools),),
            # int32 variables do not live on a GPU.
            dtype="int64",
            initializer=lambda shape, dtype: tf.constant(
                [pool.keep for pool in pools], dtype
            ),
            trainable=False,
            autocast=False,
            name="keep",
        )
    return SupermaskState(lent, copies, scores, kept, pools, keep)


def top_k_pools(
    options: SupermaskOptions,
    kernels: Mapping[str, keras.Variable],
    sparsity: float | None,
) -> list[scopes.Pool]:
    """Which tensors compete in a top-k mask, for how many kept weights."""
    shapes = {key: tuple(kernel.shape) for key, kernel in kernels.items()}
    sizes = {
        key: int(np.prod(shape, dtype=np.int64))
        for key, shape in shapes.items()
    }
    return scopes.pools(options.scope, shapes, sparsity, sizes)


# Variables may be made while Keras only traces shapes: then their initializers
# run later, so all values come from functions.
def _copying(variable: keras.Variable) -> Any:
    return lambda shape, dtype: tf.cast(
        tf.convert_to_tensor(variable.value), dtype
    )


def _check_unit_interval(values: np.ndarray, key: str) -> None:
    low, high = values.min(initial=0.0), values.max(initial=1.0)
    if not (low == 0 and high == 1):
        raise ValueError(
            "Scores must lie in [0, 1], unless the mask is 'top_k'. "
            f"Received: scores of {key} from {low:.4g} to {high:.4g}"
        )


def _stored_dtype(variable: keras.Variable, layer: keras.layers.Layer) -> str:
    # Inside a mixed-precision call, a variable says it has the compute dtype.
    dtype = keras.backend.standardize_dtype(variable.dtype)
    return layer.variable_dtype if dtype == layer.compute_dtype else dtype


def _serialized(initializer: Any) -> Any:
    if initializer is None or isinstance(initializer, str | dict):
        return initializer
    return keras.initializers.serialize(initializer)
