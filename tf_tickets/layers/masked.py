"""Compute under a mask that is not trained."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import masking
from tf_tickets.selection import Filters, prunable_weights, values_of

Values = Sequence[tuple[keras.Variable, tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class _Variables:
    """By the wrapped layer's paths; Keras tracks them elsewhere."""

    kernels: dict[str, keras.Variable]
    masks: dict[str, keras.Variable]


@keras.saving.register_keras_serializable("tf_tickets")
class Masked(keras.layers.Wrapper):
    r"""A layer or model that computes with $m \odot w$.

    Weights are trained as usual, but pruned ones get a gradient of exactly
    zero: they do not count in gradient norms, and slots of optimizers stay
    zero. Their values stay in memory (and weight decay may move them), out of
    reach of the outputs. For a plain model whose pruned weights *are* zero,
    apply a `tf_tickets.Ticket` instead: nothing needs to be wrapped.

    Masks are saved with the layer, in ``.keras`` and ``.weights.h5`` files.

    Args:
        layer: A layer or a whole model. A layer that takes several inputs must
            be built.
        masks: ``{path in the layer: boolean array}``, or one array for a layer
            with one prunable weight. `None`, the default, keeps all weights,
            and so do paths that are left out.
        filters: Which weights get a mask, as in
            `tf_tickets.prunable_weights`; by default all prunable ones.
        **kwargs: ``name``, ``trainable``, ``dtype``, as of every layer.

    Raises:
        ValueError: If nothing is prunable, or a mask does not fit.

    Example:

    >>> layer = Masked(keras.layers.Dense(2, use_bias=False, kernel_initializer=
    ...     "ones"), masks=np.array([[1, 0], [1, 0], [0, 0]]))
    >>> layer(np.ones((1, 3))).numpy().tolist()
    [[2.0, 0.0]]
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        *,
        masks: Mapping[str, np.ndarray] | np.ndarray | None = None,
        filters: Filters = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(layer, keras.layers.Layer):
            raise ValueError(
                "`layer` must be a Keras layer or model. "
                f"Received: layer={layer!r}"
            )
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, autocast=False, **kwargs)
        self.filters = filters
        self.supports_jit = layer.supports_jit
        self._initial = _Initial(masks)
        self._own: _Variables | None = None
        if layer.built:
            self._make_masks()

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """``{path in the layer: boolean array}``, `True` = kept."""
        return values_of(self._variables().masks)

    def set_masks(self, masks: Mapping[str, np.ndarray] | np.ndarray) -> None:
        """Change masks, with no new trace.

        Args:
            masks: As the constructor takes them; paths left out stay.

        Raises:
            ValueError: If a mask does not fit; nothing is changed then.
        """
        variables = self._variables().masks
        for key, mask in _checked(masks, variables).items():
            variables[key].assign(mask)

    def build(self, input_shape: Any = None) -> None:
        """Build the wrapped layer if need be, and the masks."""
        super().build(input_shape)
        if self._own is None:
            self._make_masks()

    def call(
        self,
        inputs: Any,
        *args: Any,
        training: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """The wrapped layer's outputs under the masks."""
        own = self._variables()
        values = [
            (kernel, masking.masked(kernel.value, own.masks[key].value))
            for key, kernel in own.kernels.items()
        ]
        outputs, updates, losses = call_with(
            self.layer, values, inputs, *args, training=training, **kwargs
        )
        for variable, value in updates:
            variable.assign(value)
        if losses:
            self.add_loss(losses)
        return outputs

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        """Outputs have the mask that the wrapped layer gave them, or none."""
        return None

    def get_config(self) -> dict[str, Any]:
        """The layer and the filters; masks are saved as weights are."""
        keys = () if self._own is None else tuple(self._own.kernels)
        return {
            **super().get_config(),
            "filters": serialized_filters(self.filters, keys),
        }

    def _variables(self) -> _Variables:
        if self._own is None:
            raise ValueError(
                "This Masked layer is not built: build it, or call it once on "
                f"a batch. Received: layer={self.layer!r}"
            )
        return self._own

    def _make_masks(self) -> None:
        kernels = prunable_weights(self.layer, self.filters)
        given = _checked(self._initial.masks, kernels)
        masks = {
            key: self.add_weight(
                shape=tuple(kernel.shape),
                dtype="bool",
                initializer=_constant(given.get(key)),
                trainable=False,
                autocast=False,
                name=key.replace("/", "_").replace("#", "_") + "_mask",
            )
            for key, kernel in kernels.items()
        }
        self._own = _Variables(kernels, masks)
        self.built = True


def call_with(
    layer: keras.layers.Layer, values: Values, *args: Any, **kwargs: Any
) -> tuple[Any, list[tuple[keras.Variable, tf.Tensor]], list[tf.Tensor]]:
    """``layer(*args, **kwargs)``, while variables have other values.

    No variable is written. What the call would have written comes back, so
    that moving statistics and random-seed states can follow.

    Args:
        layer: A built layer or model.
        values: ``(variable, value)`` of the variables to replace; the value
            has the variable's shape.
        *args: For the layer.
        **kwargs: For the layer.

    Returns:
        ``(outputs, [(variable, new value)], [losses that were added])``.

    Example:

    >>> layer = keras.layers.Dense(1, use_bias=False)
    >>> layer.build((None, 2))
    >>> outputs, _, _ = call_with(
    ...     layer, [(layer.kernel, tf.ones((2, 1)))], tf.ones((1, 2)))
    >>> outputs.numpy().tolist()
    [[2.0]]
    """
    state = [*layer.variables, *layer.metrics_variables]
    with keras.StatelessScope(values, collect_losses=True) as scope:
        # A scope hides the one around it (a model that is itself called
        # statelessly or only traced for its shapes).
        if scope.original_scope is not None:
            _inherit(scope, state)
        before = {id(v): scope.get_current_value(v) for v in state}
        outputs = layer(*args, **kwargs)
        updates = [
            (v, value)
            for v in state
            if (value := scope.get_current_value(v)) is not before[id(v)]
        ]
    return outputs, updates, list(scope.losses)


def _inherit(
    scope: keras.StatelessScope, state: Iterable[keras.Variable]
) -> None:
    for variable in state:
        value = scope.original_scope.get_current_value(variable)
        if value is not None and scope.get_current_value(variable) is None:
            scope.add_update((variable, value))


def serialized_filters(filters: Filters, keys: Sequence[str]) -> Any:
    """JSON values that select the same weights again, in a copy of the model.

    Functions cannot be saved, and a copy may have another root name.

    Args:
        filters: As in `tf_tickets.prunable_weights`.
        keys: What they selected; empty if the model is not built yet.
    """
    if filters is None or not keys:
        return filters
    return [f"(^|/){re.escape(key.split('/', 1)[-1])}$" for key in keys]


@dataclasses.dataclass(frozen=True)
class _Initial:
    """Hides arrays from Keras, which would wrap them."""

    masks: Any


def _constant(mask: np.ndarray | None) -> Any:
    if mask is None:
        return "ones"
    return lambda shape, dtype: tf.cast(mask, dtype)


def _checked(
    masks: Any, variables: Mapping[str, keras.Variable]
) -> dict[str, np.ndarray]:
    if masks is None:
        return {}
    if not isinstance(masks, Mapping):
        if len(variables) != 1:
            raise ValueError(
                "One array is a mask for a layer with one prunable weight; "
                f"give {{path: mask}}. Received: one array for {[*variables]}"
            )
        masks = {next(iter(variables)): masks}
    checked = {}
    for key, mask in masks.items():
        array = np.asarray(mask)
        if (
            key not in variables
            or array.shape != tuple(variables[key].shape)
            or not np.isin(array, (0, 1)).all()
        ):
            shapes = {k: tuple(v.shape) for k, v in variables.items()}
            raise ValueError(
                f"Masks must be of zeros and ones, with shapes {shapes}. "
                f"Received: {key!r} of shape {array.shape}, {array.dtype}"
            )
        checked[key] = array.astype(bool)
    return checked
