"""Some channels of a tensor: what a smaller layer reads of a wider one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tf_tickets import checks
from tf_tickets.network.channels import Channels, Flow
from tf_tickets.network.constants import Constants, entering
from tf_tickets.network.graph import Call
from tf_tickets.network.kinds import register


@keras.saving.register_keras_serializable("tf_tickets")
class SelectChannels(keras.layers.Layer):
    """Takes some of the channels of what it reads, in the order given.

    `tf_tickets.structured.shrink` puts it in front of a normalization that
    keeps fewer channels than the tensor that it reads (``select=True``). It
    has no weights.

    Args:
        indices: Positions along ``axis``; at least one, none negative.
        axis: Which axis has the channels; -1 by default, never the batch's.
        **kwargs: ``name``, ``dtype``, as of every layer.

    Raises:
        ValueError: If an index is no position, or the axis is the batch's.

    Reference:
        The channel selection of Liu et al., "Learning Efficient Convolutional
        Networks through Network Slimming", ICCV 2017, which You et al.,
        "Drawing Early-Bird Tickets", ICLR 2020, take over.

    Example:

    >>> SelectChannels([0, 2])(np.array([[1.0, 2.0, 3.0]])).numpy().tolist()
    [[1.0, 3.0]]
    """

    def __init__(
        self, indices: Sequence[int], *, axis: int = -1, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        listed = not isinstance(indices, str) and np.ndim(indices) == 1
        if not listed or not len(indices):
            raise ValueError(
                "`indices` must be a list of positions. "
                f"Received: indices={indices!r}"
            )
        if axis == 0:
            raise ValueError(
                "The first axis counts the examples of a batch. "
                f"Received: axis={axis}"
            )
        self.indices = tuple(
            checks.whole("indices", index, least=0) for index in indices
        )
        self.axis = axis
        self.supports_masking = True

    def build(self, input_shape: Sequence[int | None]) -> None:
        size = input_shape[self.axis]
        if size is not None and size <= max(self.indices):
            raise ValueError(
                f"{self.name} takes channel {max(self.indices)}, and its "
                f"input has {size}. Received: input shape {tuple(input_shape)}"
            )
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        return keras.ops.take(inputs, self.indices, axis=self.axis)

    def compute_output_shape(
        self, input_shape: Sequence[int | None]
    ) -> tuple[int | None, ...]:
        shape = list(input_shape)
        shape[self.axis] = len(self.indices)
        return tuple(shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "indices": list(self.indices),
            "axis": self.axis,
        }


def _chosen(channels: Channels, call: Call) -> Flow:
    layer: Any = call.operation
    read = channels.along(call, layer.axis)
    return Flow(channels.choose(layer, read, layer.indices), layer.axis)


def _values(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    layer: Any = call.operation
    values = entering(channels, call, known, layer.axis)
    return values[list(layer.indices)]


register(SelectChannels, channels=_chosen, constants=_values)
