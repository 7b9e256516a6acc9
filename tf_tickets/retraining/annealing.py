"""Activations for a time: smooth first, the old one in the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_tickets.selection import layers_of


@keras.saving.register_keras_serializable(package="tf_tickets")
class TemporaryActivation:
    r"""$f(x) = s \cdot g(x) + (1 - s) \cdot h(x)$ with a share that moves.

    $g$ is the temporary activation, $h$ the original one. At $s = 0$ values
    and gradients are exactly those of $h$.

    Args:
        smooth: The temporary activation.
        original: The activation to come back to.
        share: $s$, in [0, 1].

    Example:

    >>> from tf_tickets.retraining import TemporaryActivation
    >>> f = TemporaryActivation("swish", "relu", share=0.0)
    >>> [float(v) for v in f(np.array([-1.0, 2.0], "float32"))]
    [0.0, 2.0]
    """

    def __init__(
        self,
        smooth: str | Callable[[Any], Any],
        original: str | Callable[[Any], Any] = "relu",
        share: float = 1.0,
    ) -> None:
        if not 0.0 <= share <= 1.0:
            raise ValueError(
                f"`share` must be in [0, 1]. Received: share={share!r}"
            )
        self.smooth = keras.activations.get(smooth)
        self.original = keras.activations.get(original)
        # Changing it needs no new trace of the training step.
        self.share = tf.Variable(
            share, trainable=False, dtype=tf.float32, name="share"
        )

    def __call__(self, x: Any) -> Any:
        x = keras.ops.convert_to_tensor(x)
        share = keras.ops.cast(self.share, x.dtype)
        return share * self.smooth(x) + (1 - share) * self.original(x)

    def get_config(self) -> dict[str, Any]:
        return {
            "smooth": keras.activations.serialize(self.smooth),
            "original": keras.activations.serialize(self.original),
            "share": float(self.share.numpy()),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TemporaryActivation:
        return cls(**config)


class AnnealActivations(keras.callbacks.Callback):
    """Lead temporary activations back to the original ones.

    Their share falls linearly from 1 at the beginning of ``start_epoch`` to
    0 at the beginning of ``end_epoch``. When training ends after that, the
    original activations are put back: the model is what it would be without
    this tweak, and costs as little.

    Args:
        end_epoch: First epoch that trains with the original activations.
        start_epoch: First epoch with a share below 1 is the one after it.

    Raises:
        ValueError: If the epochs are no interval, or, when training begins,
            if the model has no temporary activation or the training ends
            before ``end_epoch``.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(4, activation="relu")])
    >>> model.compile("sgd", "mse")
    >>> smooth = tt.retraining.replace_activations(model, temporary=True)
    >>> _ = smooth.fit(
    ...     np.ones((4, 4)), np.ones((4, 4)), epochs=3, verbose=0,
    ...     callbacks=[tt.retraining.AnnealActivations(end_epoch=2)])
    >>> smooth.layers[0].activation.__name__
    'relu'
    """

    def __init__(self, end_epoch: int, *, start_epoch: int = 0) -> None:
        super().__init__()
        if not 0 <= start_epoch < end_epoch:
            raise ValueError(
                "`start_epoch` must be at least 0 and below `end_epoch`. "
                f"Received: start_epoch={start_epoch!r}, "
                f"end_epoch={end_epoch!r}"
            )
        self.start_epoch = start_epoch
        self.end_epoch = end_epoch
        self.share = 1.0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not _temporary(self.model):
            raise ValueError(
                "The model has no temporary activation: make one with "
                "replace_activations(model, temporary=True). "
                f"Received: model={self.model.name!r}"
            )
        epochs = (self.params or {}).get("epochs")
        if epochs is not None and epochs <= self.end_epoch:
            raise ValueError(
                "Training must go on after `end_epoch`, with the original "
                f"activations. Received: end_epoch={self.end_epoch}, "
                f"epochs={epochs}"
            )

    def on_epoch_begin(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        done = (epoch - self.start_epoch) / (self.end_epoch - self.start_epoch)
        self.share = 1.0 - min(max(done, 0.0), 1.0)
        for _, _, activation in _temporary(self.model):
            activation.share.assign(self.share)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self.share > 0:
            return  # stopped early: the blend is what was trained
        for layer, attribute, activation in _temporary(self.model):
            setattr(layer, attribute, activation.original)
        for step in ("train", "test", "predict"):
            if getattr(self.model, f"{step}_function", None) is not None:
                getattr(self.model, f"make_{step}_function")(force=True)


def _temporary(
    model: keras.Model,
) -> list[tuple[Any, str, TemporaryActivation]]:
    return [
        (layer, attribute, value)
        for layer in layers_of(model)
        for attribute, value in vars(layer).items()
        if isinstance(value, TemporaryActivation)
    ]
