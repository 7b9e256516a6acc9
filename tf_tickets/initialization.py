"""Draw start values: a layer's own initializer, another one, with seeds."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets.selection import Shape, named_weights, owners

_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)


def redraw(
    model: keras.Model, seed: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """New start weights for ``model``, drawn as Keras draws them.

    Args:
        model: A built Keras model; only read.
        seed: Integer; the seed of each weight follows from it and the
            weight's position.

    Returns:
        ``({key: array}, [keys with no known initializer])``.
    """
    owner = owners(model)
    drawn: dict[str, np.ndarray] = {}
    unknown: list[str] = []
    for position, (key, variable) in enumerate(named_weights(model).items()):
        layer = owner.get(id(variable))
        initializer = _initializer_of(layer, variable.name)
        if initializer is None:
            unknown.append(key)
            continue
        shape = tuple(variable.shape)
        value = draw(initializer, shape, (seed, position), dtype=variable.dtype)
        if variable.name == "bias" and getattr(
            layer, "unit_forget_bias", False
        ):
            # LSTM: the forget gate's bias starts at one (Jozefowicz et al.
            # 2015).
            units = shape[0] // 4
            value[units : 2 * units] = 1
        drawn[key] = value
    return drawn, unknown


def draw(
    initializer: Any,
    shape: Shape,
    seed: tuple[int, ...],
    *,
    fans: Shape | None = None,
    dtype: Any = "float32",
) -> np.ndarray:
    """Values from ``initializer``, with a seed of its own.

    Args:
        initializer: A Keras initializer or a callable ``(shape, dtype=...)``.
        shape: The shape of the result.
        seed: Integers; equal ones give equal values.
        fans: A shape of the same size from which the initializer reads the
            right fans, see `fan_shape`; `None` for ``shape`` itself.
        dtype: The type of the result; float32 by default.

    Returns:
        An array of ``shape``.
    """
    if isinstance(initializer, keras.initializers.Initializer):
        config = initializer.get_config()
        if "seed" in config:
            state = np.random.SeedSequence(seed).generate_state(1)[0]
            initializer = type(initializer).from_config(
                {**config, "seed": int(state >> 1)}
            )
    with tf.init_scope():  # where a graph is traced, values are drawn now
        values = initializer(shape if fans is None else fans, dtype=dtype)
        return np.array(keras.ops.convert_to_numpy(values)).reshape(shape)


def fan_shape(layer: Any, variable: keras.Variable) -> Shape:
    """A shape of the kernel's size whose fans are those of its layer.

    Initializers see a shape only and take it for a convolution's: ``(...,
    inputs, outputs)``. That is wrong for depthwise and transposed convolutions
    and for the projections of attention.

    Args:
        layer: The layer that owns the kernel, or `None`.
        variable: The kernel.

    Returns:
        The kernel's own shape where it is right, else ``(receptive field,
        inputs, outputs)``.
    """
    shape = tuple(variable.shape)
    if isinstance(layer, _DEPTHWISE) or variable.name == "depthwise_kernel":
        return (math.prod(shape[:-2]), 1, shape[-2] * shape[-1])
    if isinstance(layer, _TRANSPOSED):
        return (*shape[:-2], shape[-1], shape[-2])
    if isinstance(layer, keras.layers.EinsumDense):
        inputs, _, rest = layer.equation.partition(",")
        kernel, _, outputs = rest.partition("->")
        contracted = math.prod(
            size
            for label, size in zip(kernel.strip(), shape, strict=True)
            if label in inputs and label not in outputs
        )
        return (contracted, math.prod(shape) // max(contracted, 1))
    return shape


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
