"""Draw the weights of a model again, each from its own layer's initializer."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tf_tickets.selection import layers_of, named_weights


def redraw(
    model: keras.Model, seed: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """New start weights for ``model``, which is only read.

    Args:
        model: A built Keras model.
        seed: Integer; the seed of each weight follows from it and the
            weight's position.

    Returns:
        ``({key: array}, [keys with no known initializer])``.
    """
    # Outer layers come first in the walk, so the innermost owner is left.
    owners = {
        id(variable): layer
        for layer in layers_of(model)
        for variable in layer.weights
    }
    drawn: dict[str, np.ndarray] = {}
    unknown: list[str] = []
    for position, (key, variable) in enumerate(named_weights(model).items()):
        layer = owners.get(id(variable))
        initializer = _initializer_of(layer, variable.name)
        if initializer is None:
            unknown.append(key)
            continue
        fresh = _seeded(initializer, (seed, position))
        drawn[key] = _draw(layer, variable, fresh)
    return drawn, unknown


def _initializer_of(layer: Any, name: str) -> Any:
    stem = name.removesuffix("_kernel")
    for attribute in (
        f"{name}_initializer",
        f"{stem}_initializer",
        # DepthwiseConv names its weight "kernel" and its initializer so:
        "depthwise_initializer" if name == "kernel" else "",
    ):
        found = getattr(layer, attribute, None)
        if found is not None:
            return keras.initializers.get(found)
    return None


def _seeded(initializer: Any, entropy: tuple[int, int]) -> Any:
    """The same initializer with a seed of its own."""
    if not isinstance(initializer, keras.initializers.Initializer):
        return initializer
    config = initializer.get_config()
    if "seed" not in config:
        return initializer
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)
    return type(initializer).from_config({**config, "seed": seed})


def _draw(layer: Any, variable: keras.Variable, initializer: Any) -> np.ndarray:
    shape, dtype = tuple(variable.shape), variable.dtype
    if variable.name == "bias" and getattr(layer, "unit_forget_bias", False):
        # LSTM: the forget gate's bias starts at one (Jozefowicz et al. 2015).
        units = shape[0] // 4
        value = np.array(initializer((shape[0],), dtype=dtype))
        value[units : 2 * units] = 1
        return value
    return np.array(initializer(shape, dtype=dtype))
