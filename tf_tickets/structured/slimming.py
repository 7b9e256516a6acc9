"""An L1 penalty on the scales that pushes channels apart while training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from tf_tickets.structured.draw import scale_variables
from tf_tickets.tracing import retrace


class Slimming(keras.regularizers.Regularizer):
    r"""Adds $s \cdot \operatorname{sign}(\gamma)$ to the gradient of γ.

    Its value is zero, so that the losses which training shows and callbacks
    watch are the model's own.

    Args:
        strength: s.
        inner: The regulariser that the variable had before, or `None`.
    """

    def __init__(
        self,
        strength: float,
        inner: Callable[[tf.Tensor], tf.Tensor] | None = None,
    ) -> None:
        self.strength = strength
        self.inner = inner

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        penalty = self.strength * keras.ops.sum(keras.ops.abs(x))
        penalty = penalty - keras.ops.stop_gradient(penalty)
        return penalty if self.inner is None else self.inner(x) + penalty


@contextlib.contextmanager
def slimming(model: keras.Model, strength: float = 1e-4) -> Iterator[None]:
    r"""Train with an L1 penalty on the scale of every `BatchNormalization`.

    Inside the block each training step adds $s \cdot \operatorname{sign}
    (\gamma)$ to the gradient of every trainable scale γ. Values of losses and
    the layers' own regularisers stay as they are, and everything is put back
    at the end of the block.

    Args:
        model: A built model.
        strength: s, at least 0; 1e-4 in the paper.

    Raises:
        ValueError: If ``strength`` is negative or not a number.

    Reference:
        Liu et al., "Learning Efficient Convolutional Networks through Network
        Slimming", ICCV 2017, equation 1.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([
    ...     keras.Input((8,)),
    ...     keras.layers.Dense(4),
    ...     keras.layers.BatchNormalization(),
    ... ])
    >>> model.compile("sgd", "mse")
    >>> with tt.structured.slimming(model, 1e-3):
    ...     _ = model.fit(np.ones((8, 8)), np.ones((8, 4)), verbose=0)
    """
    check_strength(strength)
    attached = [
        gamma
        for gamma in scale_variables(model)
        if strength and not isinstance(gamma.regularizer, Slimming)
    ]
    for gamma in attached:
        gamma.regularizer = Slimming(strength, gamma.regularizer)
    if attached:
        retrace(model, "train")
    try:
        yield
    finally:
        for gamma in attached:
            gamma.regularizer = gamma.regularizer.inner
        if attached:
            retrace(model, "train")


def check_strength(strength: object) -> None:
    """Raise unless ``strength`` is a number of at least 0."""
    if (
        isinstance(strength, bool)
        or not isinstance(strength, int | float)
        or not 0 <= strength < float("inf")
    ):
        raise ValueError(
            "The strength of the penalty must be a number of at least 0. "
            f"Received: {strength!r}"
        )
