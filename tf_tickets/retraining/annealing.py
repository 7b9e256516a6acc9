"""Tweaks for a time: shares that fall to zero while a ticket is retrained."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tf_tickets import checks
from tf_tickets.network import kinds
from tf_tickets.network.channels import Channels, Flow
from tf_tickets.network.constants import computed
from tf_tickets.network.graph import Call
from tf_tickets.network.weighted import unused
from tf_tickets.selection import layers_of


class Annealing(keras.callbacks.Callback):
    """Leads shares linearly from 1 down to 0; subclasses say which.

    Args:
        end_epoch: The first epoch that trains at share 0.
        start_epoch: The last epoch that trains at share 1. Default 0.

    Raises:
        ValueError: If the epochs are out of their ranges.
    """

    # What there must be in the model, and how one gets it.
    needs: str

    def __init__(self, end_epoch: int, *, start_epoch: int = 0) -> None:
        super().__init__()
        self.start_epoch = checks.whole("start_epoch", start_epoch, least=0)
        self.end_epoch = checks.whole(
            "end_epoch", end_epoch, least=self.start_epoch + 1
        )
        self.share = 1.0

    def shares(self) -> list[Any]:
        """The variables of the model that are led."""
        raise NotImplementedError

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not self.shares():
            raise ValueError(
                f"The model has no {self.needs}. "
                f"Received: model={self.model.name!r}"
            )
        epochs = (self.params or {}).get("epochs")
        if epochs is not None and epochs <= self.end_epoch:
            raise ValueError(
                "Training must go on after `end_epoch`, without what was there "
                f"for a time. Received: end_epoch={self.end_epoch}, "
                f"epochs={epochs}"
            )

    def on_epoch_begin(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        done = (epoch - self.start_epoch) / (self.end_epoch - self.start_epoch)
        self.share = 1.0 - min(max(done, 0.0), 1.0)
        for share in self.shares():
            share.assign(self.share)


@keras.saving.register_keras_serializable(package="tf_tickets")
class SkipShare(keras.layers.Layer):
    r"""Multiplies what enters by a share that can change in training.

    The share is a weight of the layer that is not trained: it is saved with
    the model, and to change it needs no new trace of the training step.

    Args:
        share: Number in [0, 1] to begin with. Default 1.
        **kwargs: As for any layer.

    Raises:
        ValueError: If ``share`` is out of its range.

    Example:

    >>> from tf_tickets.retraining.annealing import SkipShare
    >>> SkipShare(0.25)(np.array([4.0], "float32")).numpy().tolist()
    [1.0]
    """

    def __init__(self, share: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.initial = checks.number("share", share, "[0, 1]")

    def build(self, input_shape: Any) -> None:
        self.share = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(self.initial),
            trainable=False,
            name="share",
        )

    def call(self, inputs: Any) -> Any:
        return inputs * keras.ops.cast(self.share, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "share": self.initial}


class AnnealSkips(Annealing):
    """Lead temporary skip connections back to nothing.

    The share of all branches falls linearly from 1 at the beginning of
    ``start_epoch`` to 0 at the beginning of ``end_epoch``. From there on the
    network computes what it would compute without them;
    `merge_skip_connections` then takes them out, and leaves kernels, masks and
    normalizations as they are. So a ticket has the help of dense branches
    while it begins to train, and is as sparse as it says when it has ended.

    Published code has such a factor $\\alpha$ in a second version of its
    network, where it stays at 1; the schedule is ours.

    Args:
        end_epoch: Whole number above ``start_epoch``: the first epoch that
            trains without the branches.
        start_epoch: Whole number of at least 0: the last epoch that trains
            with whole branches. Default 0.

    Raises:
        ValueError: If the epochs are out of their ranges, or, when training
            begins, if the model has no temporary skip connection or the
            training ends before ``end_epoch``.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 1)),
    ...     keras.layers.Conv2D(4, 3, padding="same", name="one"),
    ...     keras.layers.Conv2D(4, 3, padding="same", name="two"),
    ... ])
    >>> deeper = tt.retraining.inject_skip_connections(model, temporary=True)
    >>> deeper.compile("sgd", "mse")
    >>> _ = deeper.fit(
    ...     np.ones((4, 8, 8, 1)), np.ones((4, 8, 8, 4)), epochs=3, verbose=0,
    ...     callbacks=[tt.retraining.AnnealSkips(end_epoch=2)])
    >>> plain = tt.retraining.merge_skip_connections(deeper)
    >>> [layer.name for layer in plain.layers[1:]]
    ['one', 'two']
    """

    needs = (
        "temporary skip connection: make them with "
        "inject_skip_connections(model, temporary=True)"
    )

    def shares(self) -> list[Any]:
        return [
            layer.share
            for layer in layers_of(self.model)
            if isinstance(layer, SkipShare)
        ]


def share_of(layer: SkipShare) -> float:
    """The share of this moment."""
    return float(tf.convert_to_tensor(layer.share))


def _through(channels: Channels, call: Call) -> Flow:
    return channels.entering(call)


kinds.register(SkipShare, channels=_through, constants=computed, flops=unused)
