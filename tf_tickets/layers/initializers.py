"""Start values of frozen weights and of scores."""

from __future__ import annotations

import math
import random
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import checks
from tf_tickets.selection import Shape


class _Drawn(keras.initializers.Initializer):
    """An initializer whose values NumPy draws, anew from the same seed."""

    def __init__(self, seed: int | None = None) -> None:
        self.seed = (
            None if seed is None else checks.whole("seed", seed, least=0)
        )
        # As in Keras: an instance without a seed repeats itself too, and
        # `keras.utils.set_random_seed` decides what.
        self._seed = random.randint(1, 10**9) if seed is None else self.seed

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
    # ½ itself is outside of a threshold mask: no weight would be in it, and no
    # score would ever get a gradient. The next number that bfloat16 has is not.
    "constant": keras.initializers.Constant(0.5 + 2**-8),
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
