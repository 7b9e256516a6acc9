"""Where a skip connection can go around a convolution."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from tf_tickets.network.graph import Call, Graph, graphs_of, trace
from tf_tickets.selection import Filters, prunable_weights

_DENSE = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_PADS = (
    keras.layers.ZeroPadding1D,
    keras.layers.ZeroPadding2D,
    keras.layers.ZeroPadding3D,
)


@dataclasses.dataclass(frozen=True)
class Site:
    """A convolution around which a branch can go.

    Attributes:
        conv: The convolution.
        norm: The batch normalization that alone reads it, if there is one:
            the branch joins after it.
        pad: The zero padding in front of a "valid" convolution, if there is
            one: the branch starts before it.
        input_shape: Shape of what enters the branch.
        model: The model, the outermost or a nested one, that calls it.
    """

    conv: keras.layers.Layer
    norm: keras.layers.Layer | None
    pad: keras.layers.Layer | None
    input_shape: tuple[int | None, ...]
    model: keras.Model

    @property
    def depthwise(self) -> bool:
        """Whether every channel is convolved on its own."""
        return isinstance(self.conv, _DEPTHWISE)

    @property
    def keeps_shape(self) -> bool:
        """Whether input and output have the same shape."""
        channels = self.input_shape[channel_axis(self.conv)]
        made = (
            (channels or 0) * self.conv.depth_multiplier
            if self.depthwise
            else self.conv.filters
        )
        return set(_each(self.conv.strides)) == {1} and channels == made


def find_sites(
    model: keras.Model, filters: Filters
) -> tuple[list[Site], dict[str, str]]:
    """The sites of ``model``, and ``{layer: reason}`` of the others.

    Args:
        model: A functional or sequential model, nested or not.
        filters: As in `tf_tickets.prunable_weights`; `None` for all
            convolutions but those that read the model's input.
    """
    asked = {id(v) for v in prunable_weights(model, filters).values()}
    graphs = [(graph, trace(graph, inline=False)) for graph in graphs_of(model)]
    sites: list[Site] = []
    refused: dict[str, str] = {}
    for graph, calls in graphs:
        for call in calls.calls:
            conv = call.operation
            if not _is_spatial(conv) or id(conv.kernel) not in asked:
                continue
            if sum(c.uses(conv) for _, c in graphs) > 1:
                refused[conv.name] = "it is shared between several places"
                continue
            found = _site(graph, calls, call)
            if isinstance(found, str):
                refused[conv.name] = found
            elif filters is None and graph is model and _first(calls, call):
                refused[conv.name] = "it reads the model's input"
            else:
                sites.append(found)
    return sites, refused


def channel_axis(conv: Any) -> int:
    """The axis of the channels in a convolution's input."""
    return 1 if conv.data_format == "channels_first" else -1


def is_linear(layer: Any) -> bool:
    """Whether a layer applies no activation."""
    return layer.activation in (None, keras.activations.linear)


def reach(conv: Any) -> list[int]:
    """How many pixels the kernel spans in each direction."""
    return [
        (size - 1) * gap + 1
        for size, gap in zip(
            _each(conv.kernel_size), _each(conv.dilation_rate), strict=True
        )
    ]


def _site(graph: keras.Model, calls: Graph, call: Call) -> Site | str:
    conv: Any = call.operation
    source, pad = call.inputs[0], None
    if conv.padding == "valid":
        maker = calls.maker(source)
        if maker is None or not _pads_half(maker.operation, conv):
            return "its output is smaller than its input (padding='valid')"
        if calls.uses(maker.operation) > 1:
            return "its padding is shared between several places"
        pad, source = maker.operation, maker.inputs[0]
    elif conv.padding != "same":
        return f"padding={conv.padding!r}"
    norm = None
    made = call.outputs[0]
    readers = calls.readers(made)
    if (
        len(readers) == 1
        and isinstance(readers[0].operation, keras.layers.BatchNormalization)
        and calls.uses(readers[0].operation) == 1
        and made not in calls.outputs
        and is_linear(conv)
    ):
        norm = readers[0].operation
    return Site(conv, norm, pad, calls.shapes[source], graph)


def _first(calls: Graph, call: Call) -> bool:
    maker = calls.maker(call.inputs[0])
    if maker is not None and isinstance(maker.operation, _PADS):
        call = maker
    return call.inputs[0] in calls.inputs or (
        (maker := calls.maker(call.inputs[0])) is not None
        and isinstance(maker.operation, keras.layers.InputLayer)
    )


def _is_spatial(operation: Any) -> bool:
    return isinstance(operation, (*_DENSE, *_DEPTHWISE)) and (
        set(_each(operation.kernel_size)) != {1}
    )


def _pads_half(pad: Any, conv: Any) -> bool:
    if not isinstance(pad, _PADS):
        return False
    padding = pad.padding
    if isinstance(pad, keras.layers.ZeroPadding1D):
        padding = (padding,)
    elif pad.data_format != conv.data_format:
        return False
    return [tuple(p) for p in padding] == [
        (span // 2, span // 2) for span in reach(conv)
    ] and all(span % 2 for span in reach(conv))


def _each(value: Any) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def weights_and_kept(model: keras.Model) -> tuple[int, int]:
    """How many prunable weights a model has, and how many are not zero."""
    values = [v.numpy() for v in prunable_weights(model).values()]
    return (
        sum(v.size for v in values),
        sum(int(np.count_nonzero(v)) for v in values),
    )
