"""A model that is a supermask of another model."""

from __future__ import annotations

from typing import Any

import keras

from tf_tickets.layers.supermask import Supermask
from tf_tickets.pruning import scopes
from tf_tickets.selection import Filters, named_weights


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


def supermask(
    model: keras.Model,
    *,
    scores: Any = None,
    weights: Any = "signed_constant",
    mask: str = "threshold",
    sparsity: float | None = None,
    scope: scopes.Scope = "layer",
    score_penalty: float = 0.0,
    penalty: str = "l2",
    filters: Filters = None,
    seed: int = 0,
) -> SupermaskModel:
    """A model that trains which weights of ``model`` are kept.

    Compile and `fit` it as any model: it trains the scores of the mask, and no
    weight. ``model`` is left as it is. Then `tf_tickets.Ticket.from_supermask`
    has the mask with the frozen weights, to be applied to ``model``.

    Args:
        model: A built Keras model: sequential, functional, nested or
            subclassed. Its loss and its own ``train_step`` play no part.
        scores: As in `tf_tickets.layers.Supermask`, like all that follow.
        weights: How the frozen weights start; `"keep"` mines in the weights
            that the model has.
        mask: `"threshold"`, `"top_k"` or `"random"`.
        sparsity: Of a top-k mask.
        scope: Of a top-k mask.
        score_penalty: λ.
        penalty: `"l2"` or `"l1"`.
        filters: Which weights get a mask.
        seed: Integer.

    Returns:
        A `SupermaskModel`, not compiled.

    Raises:
        ValueError: On bad options, or a model with nothing prunable.

    Example:

    Gem-Miner, in the published setting:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([
    ...     keras.Input((8,)), keras.layers.Dense(32, activation="relu"),
    ...     keras.layers.Dense(2)])
    >>> miner = tt.supermask(model, score_penalty=1e-4)
    >>> miner.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    >>> freezing = tt.callbacks.IterativeFreezing(
    ...     target_sparsity=0.9, every=1)
    >>> _ = miner.fit(np.ones((8, 8)), np.ones((8, 2)), epochs=4, verbose=0,
    ...     callbacks=[freezing])
    >>> tt.Ticket.from_supermask(miner, mask="frozen").density
    0.1

    Edge-Popup, with 10 % of each layer:

    >>> miner = tt.supermask(model, mask="top_k", sparsity=0.9)
    >>> tt.Ticket.from_supermask(miner).kept
    32
    """
    if isinstance(model, keras.Model):
        named_weights(model)  # raises if it is not built
    return SupermaskModel(
        Supermask(
            model,
            scores=scores,
            weights=weights,
            mask=mask,
            sparsity=sparsity,
            scope=scope,
            score_penalty=score_penalty,
            penalty=penalty,
            filters=filters,
            seed=seed,
        )
    )
