"""Train which weights are kept, and no weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets.layers import estimators, ranking, steering
from tf_tickets.layers.masked import call_with
from tf_tickets.layers.state import (
    SupermaskOptions,
    SupermaskState,
    make,
    top_k_pools,
)
from tf_tickets.masking import masked
from tf_tickets.pruning import scopes
from tf_tickets.selection import (
    Filters,
    check_keras,
    layers_of,
    named_weights,
    values_of,
)


@dataclasses.dataclass(frozen=True)
class _Lent:
    """Hides a layer from Keras, which would track its variables."""

    layer: keras.layers.Layer


@dataclasses.dataclass(frozen=True)
class _Together:
    """Hides layers from Keras, too."""

    layers: tuple[Supermask, ...]


@keras.saving.register_keras_serializable("tf_tickets")
class Supermask(keras.layers.Wrapper):
    r"""A layer or model whose weights are frozen, under a mask that is trained.

    The wrapped layer computes with $w \odot m(p) \odot q$ in place of each
    prunable weight: w is frozen, the scores p are trained through a
    straight-through estimator of the mask m, and q, all true at first, is what
    `tf_tickets.callbacks.IterativeFreezing` narrows. The scores are the only
    trainable weights; biases and normalization parameters stay as they are,
    normalization statistics move. Regularizers on weights do nothing, as
    weights are not trained; other losses of the layer count.

    The wrapped layer lends its computation only. The supermask has its own
    copy of every variable, so the layer's weights, statistics, seeds and
    trainability stay untouched, and one model can serve several supermasks.
    `tf_tickets.supermask` makes a model that is ready to compile.

    Args:
        layer: A layer or a whole model. A layer that takes several inputs must
            be built.
        scores: How scores start: `"uniform"` in [0, 1], `"kaiming_uniform"` in
            ±1/√fan_in, `"constant"` (just above ½), `"bernoulli"` (0 or 1),
            `"bimodal"` (Beta(0.1, 0.1)), `"skew"` (Beta(1, 5)) or a Keras
            initializer.
            `None`, the default, is `"kaiming_uniform"` for top-k masks, else
            `"uniform"`.
        weights: The frozen weights: `"signed_constant"`, the default
            (±√2/√fan_in, see `tf_tickets.layers.SignedConstant`), a Keras
            initializer, or `"keep"` for those that the layer has, such as
            pretrained ones.
        mask: `"threshold"`, the default, keeps a weight where p > ½
            (Gem-Miner); `"random"` with probability p in training, by the
            threshold otherwise; `"top_k"` keeps the largest |s| (Edge-Popup).
        sparsity: Of a top-k mask; the others find their own.
        scope: Among which weights a top-k mask chooses: `"layer"`, the
            default, each tensor for itself, `"global"`, or as in
            `tf_tickets.prune`.
        score_penalty: λ ≥ 0 of a penalty that is added to the loss. `"auto"`:
            `tf_tickets.callbacks.IterativeFreezing` steers λ so that the
            density falls to its target; training without that callback is
            refused. `None`, the default: the same where the callback is there,
            and 0 where it is not and for top-k masks.
        penalty: `"l2"`, the default: $\lambda \sum p^2$; `"l1"`: $\lambda
            \sum |p|$. A sum over every score, frozen ones too, not a mean.
        filters: Which weights get a mask, as in
            `tf_tickets.prunable_weights`; by default all prunable ones.
        seed: Integer, for weights, scores and random masks; 0 by default.
        **kwargs: ``name``, ``trainable``, ``dtype``, as of every layer.

    Raises:
        ValueError: On unknown names, numbers out of range, nothing prunable,
            or scores off [0, 1] for a mask that is not top-k.

    Reference:
        Sreenivasan et al., "Rare Gems: Finding Lottery Tickets at
        Initialization", NeurIPS 2022, algorithm 1; Ramanujan et al., "What's
        Hidden in a Randomly Weighted Neural Network?", CVPR 2020; Zhou et al.,
        "Deconstructing Lottery Tickets", NeurIPS 2019 (the name).

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     Supermask(keras.layers.Dense(8, activation="relu")),
    ...     Supermask(keras.layers.Dense(2)),
    ... ])
    >>> [tuple(v.shape) for v in model.trainable_weights]
    [(4, 8), (8, 2)]
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        *,
        scores: Any = None,
        weights: Any = "signed_constant",
        mask: str = "threshold",
        sparsity: float | None = None,
        scope: scopes.Scope = "layer",
        score_penalty: float | str | None = None,
        penalty: str = "l2",
        filters: Filters = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if not isinstance(layer, keras.layers.Layer):
            raise ValueError(
                "`layer` must be a Keras layer or model. "
                f"Received: layer={layer!r}"
            )
        options = SupermaskOptions(
            scores,
            weights,
            mask,
            sparsity,
            scope,
            score_penalty,
            penalty,
            filters,
            seed,
        )
        kwargs.setdefault("dtype", layer.dtype_policy)
        # Not Wrapper's constructor, which would track the layer.
        super(keras.layers.Wrapper, self).__init__(autocast=False, **kwargs)
        self._lent = _Lent(layer)
        self.options = options
        self.supports_jit = all(one.supports_jit for one in layers_of(layer))
        self._state: SupermaskState | None = None
        # The supermasks of which this one steers the density.
        self._steers = _Together(())
        self._is_steered = False
        if mask == "random":
            self._seeds = keras.random.SeedGenerator(seed)
        if layer.built:
            self._state = make(self.add_weight, layer, options)
            self.built = True

    @property
    def layer(self) -> keras.layers.Layer:
        """The wrapped layer, as it was given."""
        return self._lent.layer

    @property
    def state(self) -> SupermaskState:
        """The variables; there are none before the layer is built."""
        if self._state is None:
            raise ValueError(
                "This Supermask is not built: it wraps a layer without "
                "weights. Build it, or call it once on a batch. "
                f"Received: layer={self.layer!r}"
            )
        return self._state

    @property
    def scores(self) -> dict[str, keras.Variable]:
        """``{path in the wrapped layer: scores}``, the trained variables."""
        return dict(self.state.scores)

    def build(self, input_shape: Any = None) -> None:
        """Build the wrapped layer if need be, and the scores."""
        if not self.layer.built:
            self.layer.build(input_shape)
        if self._state is None:
            self._state = make(self.add_weight, self.layer, self.options)

    def call(
        self,
        inputs: Any,
        *args: Any,
        training: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """The wrapped layer's outputs under the mask of the moment."""
        state = self.state
        if training:
            self._steer()
        weights = self._effective_weights(bool(training))
        values = [
            (variable, weights.get(key, state.copies[key].value))
            for key, variable in state.lent.items()
        ]
        outputs, updates, losses = call_with(
            self.layer, values, inputs, *args, training=training, **kwargs
        )
        copies = {
            id(variable): state.copies[key]
            for key, variable in state.lent.items()
        }
        for variable, value in updates:
            # A metric that the layer holds has no copy.
            copies.get(id(variable), variable).assign(value)
        if losses:
            self.add_loss(losses)
        return outputs

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        """Outputs have the mask that the wrapped layer gave them, or none."""
        return None

    def masks(self, which: str = "effective") -> dict[str, np.ndarray]:
        """The masks of the moment.

        Args:
            which: `"effective"`: what the forward pass of inference keeps;
                `"frozen"`: q alone, what freezing has left.

        Returns:
            ``{path in the wrapped layer: boolean array}``.

        Raises:
            ValueError: If a top-k mask is asked for q.
        """
        return self.state.masks(which)

    def density(self, which: str = "effective") -> float:
        """Fraction of the prunable weights that `masks` keeps."""
        masks = self.masks(which).values()
        return sum(int(m.sum()) for m in masks) / sum(m.size for m in masks)

    def freeze(self, kept: Mapping[str, np.ndarray]) -> None:
        """Narrow q: weights that ``kept`` leaves out stay out.

        Args:
            kept: ``{path: boolean array}``.
        """
        if not self.state.kept:
            raise ValueError(
                "A supermask with mask='top_k' freezes nothing: change its "
                "sparsity instead. Received: freeze()"
            )
        for key, mask in kept.items():
            variable = self.state.kept[key]
            variable.assign(keras.ops.convert_to_numpy(variable) & mask)

    def score_penalty(self) -> float:
        """λ of the moment."""
        if self.state.steering is not None:
            return float(self.state.steering.penalty.value)
        return float(self.options.score_penalty or 0.0)

    def steer(self, layers: Sequence[Supermask]) -> bool:
        """Let λ be steered as part of the training steps.

        Args:
            layers: All supermasks of the model, if the call of this one is to
                steer λ of them all, by their density; else none.

        Returns:
            Whether that is new, and steps must be traced again.
        """
        new = not self._is_steered or self._steers.layers != tuple(layers)
        self._steers = _Together(tuple(layers))
        self._is_steered = True
        return new

    def fill_up(self) -> None:
        """Lift scores over the threshold, of all weights that are not frozen.

        The effective mask is then q.
        """
        for key, q in self.masks("frozen").items():
            p = keras.ops.convert_to_numpy(self.scores[key])
            above = np.nextafter(p.dtype.type(0.5), p.dtype.type(1))
            self.scores[key].assign(np.where(q & (p <= 0.5), above, p))

    def set_sparsity(self, sparsity: float) -> None:
        """Change the sparsity of a top-k mask, with no new trace.

        Args:
            sparsity: In [0, 1).
        """
        if self.state.keep is None or isinstance(self.options.scope, Mapping):
            raise ValueError(
                "Only a supermask with mask='top_k' and a scope that is no "
                f"mapping is given a sparsity. Received: sparsity={sparsity!r}"
            )
        pools = top_k_pools(self.options, self.state.scores, sparsity)
        self.state.keep.assign([pool.keep for pool in pools])

    def ticket_parts(
        self, which: str = "effective"
    ) -> tuple[
        dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]
    ]:
        """``(masks, weights, scores)`` under the wrapped layer's paths, as
        `tf_tickets.Ticket.from_supermask` takes them.

        The weights are the frozen ones, with everything else that the layer
        has: biases, and normalization statistics as mining left them.
        """
        copies = self.state.copies
        weights = {key: copies[key] for key in named_weights(self.layer)}
        return (
            self.masks(which),
            values_of(weights),
            values_of(self.state.scores),
        )

    def get_config(self) -> dict[str, Any]:
        """The layer and the arguments."""
        keys = () if self._state is None else tuple(self._state.scores)
        return {
            **super().get_config(),
            **self.options.as_config(keys),
        }

    def _steer(self) -> None:
        if self.options.score_penalty == "auto" and not self._is_steered:
            raise ValueError(
                "score_penalty='auto' is steered by the callback "
                "IterativeFreezing, which knows the target: add it to fit, or "
                "give a number. Received: score_penalty='auto', no callback"
            )
        states = [layer.state for layer in self._steers.layers]
        if states:
            steering.advance(
                [s.steering for s in states if s.steering is not None],
                [p for s in states for p in s.scores.values()],
                [q for s in states for q in s.kept.values()],
            )

    def _effective_weights(self, training: bool) -> dict[str, tf.Tensor]:
        """w ⊙ m(p) ⊙ q of each prunable weight."""
        state = self.state
        scores = {key: s.value for key, s in state.scores.items()}
        weights = {key: state.copies[key].value for key in scores}
        if state.keep is not None:
            tensors = [tf.convert_to_tensor(s) for s in scores.values()]
            kept = ranking.largest(tensors, state.keep.value, state.positions)
            masks: Iterable[tf.Tensor] = map(estimators.top_k, tensors, kept)
        else:
            weights = {
                key: masked(w, state.kept[key].value)
                for key, w in weights.items()
            }
            masks = (
                self._rounded(tf.convert_to_tensor(p), training)
                for p in scores.values()
            )
        return {
            key: w * tf.cast(m, w.dtype)
            for (key, w), m in zip(weights.items(), masks, strict=True)
        }

    def _rounded(self, p: tf.Tensor, training: bool) -> tf.Tensor:
        if self.options.mask == "random" and training:
            return estimators.bernoulli(
                p, tf.cast(self._seeds.next(), tf.int32)
            )
        return estimators.threshold(p)


@keras.saving.register_keras_serializable("tf_tickets")
class SupermaskModel(keras.Model):
    """A model around one `Supermask`, as `tf_tickets.supermask` makes it.

    Args:
        supermask: The layer, around a built model.
        **kwargs: ``name`` and the like.

    Attributes:
        supermask: The layer.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> miner = SupermaskModel(Supermask(model))
    >>> miner(np.ones((1, 4))).shape
    TensorShape([1, 2])
    """

    def __init__(self, supermask: Supermask, **kwargs: Any) -> None:
        if not isinstance(supermask, Supermask):
            raise ValueError(
                "`supermask` must be a tf_tickets.layers.Supermask. "
                f"Received: supermask={supermask!r}"
            )
        kwargs.setdefault("dtype", supermask.dtype_policy)
        super().__init__(autocast=False, **kwargs)
        self.supermask = supermask
        # With the shapes that the model knows there is nothing left for a
        # first call to find out.
        shape = (supermask.layer.get_build_config() or {}).get("input_shape")
        if supermask.built and shape is not None:
            self.build(shape)

    def build(self, input_shape: Any = None) -> None:
        """Nothing: the supermask has its variables."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The outputs of the masked model."""
        return self.supermask(inputs, training=training)

    def get_config(self) -> dict[str, Any]:
        """The layer and what a layer has."""
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "supermask": keras.saving.serialize_keras_object(self.supermask),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> SupermaskModel:
        """Make the model again."""
        supermask = keras.saving.deserialize_keras_object(
            config.pop("supermask"), custom_objects=custom_objects
        )
        return cls(supermask, **config)


def supermask(model: keras.Model, **options: Any) -> SupermaskModel:
    """A model that trains which weights of ``model`` are kept.

    Compile and `fit` it as any model: it trains the scores of the mask, and no
    weight. ``model`` is left as it is. Then `tf_tickets.Ticket.from_supermask`
    has the mask with the frozen weights, to be applied to ``model``.

    Args:
        model: A built Keras model: sequential, functional, nested or
            subclassed. Its loss and its own ``train_step`` play no part.
        **options: Those of `tf_tickets.layers.Supermask`, by name: ``scores``,
            ``weights``, ``mask``, ``sparsity``, ``scope``, ``score_penalty``,
            ``penalty``, ``filters`` and ``seed``.

    Returns:
        A `SupermaskModel`, not compiled.

    Raises:
        ValueError: On bad options, or a model with nothing prunable.

    Example:

    Gem-Miner, with a penalty that steers itself (the published one is fixed,
    ``score_penalty=1e-4``):

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([
    ...     keras.Input((8,)), keras.layers.Dense(32, activation="relu"),
    ...     keras.layers.Dense(2)])
    >>> miner = tt.supermask(model)
    >>> miner.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    >>> freezing = tt.callbacks.IterativeFreezing(
    ...     target_sparsity=0.9, every=1)
    >>> _ = miner.fit(np.ones((8, 8)), np.ones((8, 2)), epochs=4, verbose=0,
    ...     callbacks=[freezing])
    >>> tt.Ticket.from_supermask(miner).density
    0.1

    Edge-Popup, with 10 % of each layer:

    >>> miner = tt.supermask(model, mask="top_k", sparsity=0.9)
    >>> tt.Ticket.from_supermask(miner).kept
    32
    """
    check_keras(model)
    if isinstance(model, keras.Model):
        named_weights(model)  # raises if it is not built
    return SupermaskModel(Supermask(model, **options))
