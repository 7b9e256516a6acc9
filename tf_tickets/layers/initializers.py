"""Start values of frozen weights and of scores."""

from __future__ import annotations

import math
import random
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import checks
from tf_tickets.selection import layers_of

Shape = tuple[int, ...]

_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)


class _Drawn(keras.initializers.Initializer):
    """An initializer whose values NumPy draws, anew from the same seed."""

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed
        # As in Keras: an instance without a seed repeats itself too, and
        # `keras.utils.set_random_seed` decides what.
        self._seed = random.randint(1, 10**9) if seed is None else seed

    def __call__(self, shape: Shape, dtype: Any = None) -> tf.Tensor:
        values = self._draw(np.random.default_rng(self._seed), tuple(shape))
        return tf.cast(values, dtype or keras.config.floatx())

    def _draw(self, rng: np.random.Generator, shape: Shape) -> np.ndarray:
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {"seed": self.seed}


@keras.saving.register_keras_serializable("tf_tickets")
class SignedConstant(_Drawn):
    r"""$\pm g / \sqrt{k \cdot \mathrm{fan}}$, both signs equally likely.

    Args:
        fan_mode: `"fan_in"`, the default, `"fan_out"` or `"fan_avg"`.
        gain: $g$; the default, $\sqrt 2$, is for ReLU.
        density: $k$ in (0, 1]: the density that the layer will have. The
            default, 1, leaves the weights unscaled, as published for
            Gem-Miner; with the density of the mask the signal keeps its
            variance under Edge-Popup.
        seed: Integer; by default one that `keras.utils.set_random_seed`
            decides.

    Reference:
        Ramanujan et al., CVPR 2020, section 3.2 (signed Kaiming constant; the
        scaled variance 2/(k·fan) is from there).

    Example:

    >>> values = SignedConstant(seed=0)((8, 4))
    >>> sorted(set(values.numpy().ravel().tolist()))
    [-0.5, 0.5]
    """

    def __init__(
        self,
        fan_mode: str = "fan_in",
        gain: float = math.sqrt(2),
        density: float = 1.0,
        seed: int | None = None,
    ) -> None:
        checks.choice("fan_mode", fan_mode, ("fan_in", "fan_out", "fan_avg"))
        super().__init__(seed=seed)
        self.fan_mode = fan_mode
        self.gain = checks.number("gain", gain, "(0, inf)")
        self.density = checks.number("density", density, "(0, 1]")

    def _draw(self, rng: np.random.Generator, shape: Shape) -> np.ndarray:
        receptive = math.prod(shape[:-2])
        fan_in = receptive * (shape[-2] if len(shape) > 1 else 1)
        fan_out = receptive * (shape[-1] if shape else 1)
        fan = {
            "fan_in": fan_in,
            "fan_out": fan_out,
            "fan_avg": (fan_in + fan_out) / 2,
        }[self.fan_mode]
        size = self.gain / math.sqrt(max(fan, 1) * self.density)
        return np.where(rng.random(shape) < 0.5, -size, size)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {
            **super().get_config(),
            "fan_mode": self.fan_mode,
            "gain": self.gain,
            "density": self.density,
        }


@keras.saving.register_keras_serializable("tf_tickets")
class Bernoulli(_Drawn):
    """Ones with probability ``p``, else zeros.

    Args:
        p: In [0, 1]; ½ by default.
        seed: As in `SignedConstant`.

    Example:

    >>> Bernoulli(1.0)((2,)).numpy().tolist()
    [1.0, 1.0]
    """

    def __init__(self, p: float = 0.5, seed: int | None = None) -> None:
        super().__init__(seed=seed)
        self.p = checks.number("p", p, "[0, 1]")

    def _draw(self, rng: np.random.Generator, shape: Shape) -> np.ndarray:
        return rng.random(shape) < self.p

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "p": self.p}


@keras.saving.register_keras_serializable("tf_tickets")
class Beta(_Drawn):
    """The beta distribution: Beta(0.1, 0.1) has its mass at 0 and at 1,
    Beta(1, 5) near 0.

    Args:
        alpha: First parameter, positive.
        beta: Second parameter, positive.
        seed: As in `SignedConstant`.

    Example:

    >>> values = Beta(1, 5, seed=0)((1000,)).numpy()
    >>> bool(0 <= values.min() and values.mean() < 0.25)
    True
    """

    def __init__(
        self, alpha: float, beta: float, seed: int | None = None
    ) -> None:
        super().__init__(seed=seed)
        self.alpha = checks.number("alpha", alpha, "(0, inf)")
        self.beta = checks.number("beta", beta, "(0, inf)")

    def _draw(self, rng: np.random.Generator, shape: Shape) -> np.ndarray:
        return rng.beta(self.alpha, self.beta, shape)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "beta": self.beta,
        }


SCORES: dict[str, Any] = {
    "uniform": keras.initializers.RandomUniform(0.0, 1.0),
    # U(-1/√fan_in, 1/√fan_in): the variance is a third of 1/fan_in.
    "kaiming_uniform": keras.initializers.VarianceScaling(
        1 / 3, "fan_in", "uniform"
    ),
    "constant": keras.initializers.Constant(0.5),
    "bernoulli": Bernoulli(0.5),
    "bimodal": Beta(0.1, 0.1),
    "skew": Beta(1.0, 5.0),
}
WEIGHTS: dict[str, Any] = {"signed_constant": SignedConstant()}


def get(identifier: Any, named: dict[str, Any], argument: str) -> Any:
    """The initializer of that name, of Keras' names, or as it is given.

    Raises:
        ValueError: If there is none.
    """
    if isinstance(identifier, str) and identifier in named:
        return named[identifier]
    try:
        found = keras.initializers.get(identifier)
    except (ValueError, TypeError):
        found = None
    if found is None:
        raise ValueError(
            f"`{argument}` must be one of {sorted(named)} or a Keras "
            f"initializer. Received: {argument}={identifier!r}"
        )
    return found


def draw(
    initializer: Any, shape: Shape, stand_in: Shape, seed: tuple[int, ...]
) -> np.ndarray:
    """Values of ``shape`` from ``initializer``, with a seed of its own.

    Args:
        initializer: A Keras initializer.
        shape: Of the result.
        stand_in: A shape of the same size from which the initializer reads
            the right fans; see `stand_in`.
        seed: Integers; equal ones give equal values.
    """
    if isinstance(initializer, keras.initializers.Initializer):
        config = initializer.get_config()
        if "seed" in config:
            entropy = np.random.SeedSequence(seed)
            value = int(entropy.generate_state(1)[0] >> 1)
            initializer = type(initializer).from_config(
                {**config, "seed": value}
            )
    with tf.init_scope():  # where a graph is traced, values are drawn now
        values = initializer(stand_in, dtype="float32")
        return np.reshape(keras.ops.convert_to_numpy(values), shape)


def stand_in(layer: Any, variable: keras.Variable) -> Shape:
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


def owners(layer: keras.layers.Layer) -> dict[int, keras.layers.Layer]:
    """``{id of a variable: the innermost layer that owns it}``."""
    return {
        id(variable): one
        for one in layers_of(layer)
        for variable in one.weights
    }
