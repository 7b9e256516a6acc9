"""Call a layer with other values in place of its variables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

Values = Sequence[tuple[keras.Variable, tf.Tensor]]


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
