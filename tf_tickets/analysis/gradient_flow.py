"""Gradient flow: how much of the loss reaches the kept weights."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal

import keras
import numpy as np

from tf_tickets.analysis.figures import new_axes, save
from tf_tickets.loss.objective import Loss
from tf_tickets.loss.over_data import LossOverData
from tf_tickets.ticket import Ticket


@dataclasses.dataclass(frozen=True)
class GradientFlow:
    """Norms of the gradient in the kept weights.

    Attributes:
        layers: ``{key: norm}`` of each weight tensor.
        kept: ``{key: how many of its weights are kept}``.
        norm: Norm of the whole gradient.
        effective: Mean of the tensors' norms.

    Example:

    >>> from tf_tickets.analysis import GradientFlow
    >>> GradientFlow({"a": 3.0, "b": 4.0}, {"a": 2, "b": 9}, 5.0, 3.5).effective
    3.5
    """

    layers: Mapping[str, float]
    kept: Mapping[str, int]
    norm: float
    effective: float

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw a bar for each tensor, into an image file."""
        figure, axes = new_axes((max(4.0, 0.4 * len(self.layers)), 3))
        axes.bar(range(len(self.layers)), list(self.layers.values()))
        axes.set_xticks(
            range(len(self.layers)), list(self.layers), rotation=90, fontsize=7
        )
        axes.set_ylabel("norm of the gradient")
        axes.set_yscale("log")
        save(figure, path)


def gradient_flow(
    model: keras.Model,
    data: Any,
    *,
    ticket: Ticket | None = None,
    order: Literal[1, 2] = 2,
    loss: Loss | None = None,
    training: bool = True,
    only: Literal["all", "prunable"] = "prunable",
    batch_size: int = 256,
    batches: int | None = None,
) -> GradientFlow:
    r"""Norms of $\partial L/\partial w \odot m$, by tensor and in all.

    Args:
        model: A built model; compiled, unless there is a ``loss``. Nothing
            in it changes.
        data: See `tf_tickets.loss.batches.batches`.
        ticket: Whose masks say which weights are there; `None` for the masks
            enforced on the model, if any.
        order: Of the norm: 1 or 2.
        loss: Instead of the compiled loss.
        training: Whether the model runs as in training.
        only: The `"prunable"` weights or `"all"` trainable ones.
        batch_size: Of the batches that arrays are cut into.
        batches: Read at most so many batches.

    Returns:
        The norms.

    Raises:
        ValueError: If an option is out of its range, or there is no data.

    Reference:
        Tessera et al., "Keep the Gradients Flowing", 2021, section 3.1
        (effective gradient flow); Evci et al., "Gradient Flow in Sparse
        Neural Networks", AAAI 2022.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential(
    ...     [keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.layers[0].kernel.assign([[1.0], [1.0]]) is not None
    True
    >>> model.compile(loss="mse")
    >>> flow = tt.analysis.gradient_flow(
    ...     model, (np.array([[3.0, 4.0]]), np.array([[6.5]])))
    >>> flow.norm
    5.0
    """
    if order not in (1, 2):
        raise ValueError(f"`order` must be 1 or 2. Received: order={order!r}")
    function = LossOverData(
        model,
        data,
        needed_by="gradient_flow",
        ticket=ticket,
        loss=loss,
        training=training,
        only=only,
        batch_size=batch_size,
        limit=batches,
    )
    slopes = {
        key: slope.numpy().astype(np.float64).ravel()
        for key, slope in function.slope(function.weights()).items()
    }
    norms = {
        key: float(np.linalg.norm(slope, order))
        for key, slope in slopes.items()
    }
    return GradientFlow(
        norms,
        {
            key: int(np.count_nonzero(function.masks[key]))
            if key in function.masks
            else slope.size
            for key, slope in slopes.items()
        },
        float(np.linalg.norm(np.concatenate(list(slopes.values())), order)),
        float(np.mean(list(norms.values()))),
    )
