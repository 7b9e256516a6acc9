"""Fold skip connections into the convolutions they go around."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Literal, overload

import keras
import numpy as np

from tf_tickets.network.copier import Copier, count
from tf_tickets.network.folding import fold_normalization
from tf_tickets.network.graph import (
    Call,
    Graph,
    graphs_of,
    require_graph,
    trace,
)
from tf_tickets.network.layer_copy import copy_of
from tf_tickets.retraining.annealing import SkipShare, share_of
from tf_tickets.retraining.skips import (
    channel_axis,
    is_depthwise,
    is_linear,
    reach,
)


@dataclasses.dataclass(frozen=True)
class MergeReport:
    """Which skip connections were merged and what that cost.

    Attributes:
        kernels: ``{convolution: (before, after, size)}``: how many weights of
            its kernel were not zero before, without the branch, how many are
            not after, with the branch in it, and how many there are.
        refused: ``{convolution: reason}`` of the skips that stay.
        parameters: How many the whole model had before and has after.

    Example:

    >>> from tf_tickets.retraining import MergeReport
    >>> print(MergeReport({"conv": (9, 25, 144)}, {}, (188, 148)))
    1 skip connections merged, parameters 188 -> 148
      conv: density 0.0625 -> 0.1736
    """

    kernels: Mapping[str, tuple[int, int, int]]
    refused: Mapping[str, str]
    parameters: tuple[int, int]

    def __str__(self) -> str:
        before, after = self.parameters
        lines = [
            f"{len(self.kernels)} skip connections merged, parameters "
            f"{before:,} -> {after:,}"
        ]
        lines += [
            f"  {k}: density {a / size:.4f} -> {b / size:.4f}"
            for k, (a, b, size) in self.kernels.items()
        ]
        lines += [f"  kept at {k}: {why}" for k, why in self.refused.items()]
        return "\n".join(lines)


@overload
def merge_skip_connections(
    model: keras.Model, *, return_report: Literal[False] = ...
) -> keras.Model: ...


@overload
def merge_skip_connections(
    model: keras.Model, *, return_report: Literal[True]
) -> tuple[keras.Model, MergeReport]: ...


def merge_skip_connections(
    model: keras.Model, *, return_report: bool = False
) -> keras.Model | tuple[keras.Model, MergeReport]:
    r"""Serve without the branches that `inject_skip_connections` added.

    In inference mode a normalization is a scale and an offset for each
    channel, and a 1x1 kernel is a larger one that is zero but for one pixel:
    $BN(k*x) + BN'(k'*x) = (\gamma k/\sigma + E(\gamma'k'/\sigma'))*x + b$.
    So convolution, branch and both normalizations become one convolution
    with a bias, and the outputs are those of ``model.predict``. The price:
    that one pixel of each kernel is dense now, 1/9 of the weights of a 3x3
    kernel; the report counts it. Such kernels lose their mask.

    A temporary branch whose share has come to 0 is taken out and nothing else:
    kernel, mask and normalization stay what they are. At another share it is
    merged as it is.

    Args:
        model: A trained model that has skip connections. It is not changed.
        return_report: Boolean: also return what was merged and what it cost.
            Default `False`.

    Returns:
        The model for serving; with ``return_report`` a pair of it and a
        `MergeReport`. To train it on would not be to train the model on: its
        normalizations are gone.

    Raises:
        ValueError: If there is nothing to merge, or the calls inside the
            model are not known.

    Reference:
        Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR
        2021, section 3.3.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 4)),
    ...     keras.layers.Conv2D(4, 3, padding="same", name="conv"),
    ... ])
    >>> deeper = tt.retraining.inject_skip_connections(
    ...     model, filters="conv")
    >>> merged = tt.retraining.merge_skip_connections(deeper)
    >>> [layer.name for layer in merged.layers[1:]]
    ['conv']
    """
    require_graph(
        model,
        "Merging skip connections",
        "Merge before the model is built into another one.",
    )
    merges: list[_Merge] = []
    refused: dict[str, str] = {}
    for graph in graphs_of(model):
        calls = trace(graph, inline=False)
        for call in calls.calls:
            if not call.operation.name.endswith("_skip_add"):
                continue
            found = _merge_at(calls, call)
            if isinstance(found, str):
                refused[call.operation.name.removesuffix("_skip_add")] = found
            else:
                merges.append(found)
    if not merges:
        raise ValueError(
            "There is no skip connection to merge. Received: "
            f"model={model.name!r}"
            + (f", where these stay: {refused}" if refused else "")
        )
    convs = {id(m.conv): m for m in merges if m.share != 0}

    def replace(layer: Any) -> Any:
        if id(layer) not in convs:
            return None
        return copy_of(layer, use_bias=True)

    copier = Copier(
        replace=replace,
        fresh=convs,
        dropped={id(layer) for m in merges for layer in m.dropped},
    )
    merged = copier.copy(model)
    kernels = {}
    for m in merges:
        before = kernel = np.array(m.conv.kernel.numpy())
        if m.share != 0:
            kernel, bias = m.folded()
            copy = copier.copied(m.conv)
            copy.kernel.assign(kernel)
            copy.bias.assign(bias)
        kernels[m.conv.name] = (
            int(np.count_nonzero(before)),
            int(np.count_nonzero(kernel)),
            kernel.size,
        )
    if not return_report:
        return merged
    parameters = count(model.weights), count(merged.weights)
    return merged, MergeReport(kernels, refused, parameters)


@dataclasses.dataclass(frozen=True)
class _Merge:
    """A convolution and the layers that become part of it."""

    conv: Any
    norm: Any
    small: Any
    small_norm: Any
    gate: SkipShare | None
    add: Any
    tap: tuple[int, ...]

    @property
    def share(self) -> float:
        """Of the branch in the sum."""
        return 1.0 if self.gate is None else share_of(self.gate)

    @property
    def dropped(self) -> list[Any]:
        norm = self.norm if self.share != 0 else None
        layers = (norm, self.small, self.small_norm, self.gate, self.add)
        return [layer for layer in layers if layer is not None]

    def folded(self) -> tuple[np.ndarray, np.ndarray]:
        """The one kernel and its bias."""
        conv = self.conv
        kernel = conv.kernel.numpy().astype(np.float64)
        axes = (-2, -1) if is_depthwise(conv) else (-1,)
        none = np.zeros(math.prod(kernel.shape[axis] for axis in axes))
        bias = conv.bias.numpy().astype(np.float64) if conv.use_bias else none
        if self.norm is not None:
            kernel, bias = fold_normalization(kernel, bias, self.norm, axes)
        if self.small is None:
            kernel[self.tap] += self.share * _identity(conv, kernel.shape)
        else:
            pixel, offset = fold_normalization(
                self.small.kernel.numpy(), none, self.small_norm, axes
            )
            kernel[self.tap] += self.share * pixel[(0,) * len(self.tap)]
            bias = bias + self.share * offset
        return kernel, bias


def _merge_at(calls: Graph, add: Call) -> _Merge | str:
    main, side = add.inputs
    maker = calls.maker(main)
    norm = None
    if maker and isinstance(maker.operation, keras.layers.BatchNormalization):
        norm, maker = maker.operation, calls.maker(maker.inputs[0])
    name = add.operation.name.removesuffix("_skip_add")
    # A second branch around a convolution has a number in its name.
    if maker is None or not re.fullmatch(
        re.escape(maker.operation.name) + r"(_\d+)?", name
    ):
        return "another layer than the convolution leads to the addition"
    conv: Any = maker.operation
    if not is_linear(conv):
        return "the convolution has an activation"
    small = small_norm = gate = None
    side_maker = calls.maker(side)
    if side_maker and isinstance(side_maker.operation, SkipShare):
        gate, side = side_maker.operation, side_maker.inputs[0]
        side_maker = calls.maker(side)
    if side_maker and side_maker.operation.name == f"{name}_skip_bn":
        small_norm = side_maker.operation
        small_maker = calls.maker(side_maker.inputs[0])
        if small_maker is None or small_maker.operation.name != (
            f"{name}_skip_conv"
        ):
            return "the branch is not a 1x1 convolution and a normalization"
        small = small_maker.operation
        side = small_maker.inputs[0]
    rank = len(calls.shapes[main])
    for one in filter(None, (norm, small_norm)):
        if one.axis % rank != channel_axis(conv) % rank:
            return "a normalization is over another axis than the channels"
    tap = _tap(conv, calls.shapes[side])
    if gate is not None and share_of(gate) == 0:
        tap = ()  # it goes without a trace
    if isinstance(tap, str):
        return tap
    return _Merge(conv, norm, small, small_norm, gate, add.operation, tap)


def _tap(conv: Any, shape: tuple[int | None, ...]) -> tuple[int, ...] | str:
    """The pixel of the kernel that sees what the branch sees."""
    sizes = shape[2:] if conv.data_format == "channels_first" else shape[1:-1]
    tap = []
    for size, span, stride, gap in zip(
        sizes, reach(conv), conv.strides, conv.dilation_rate, strict=True
    ):
        before = (span - 1) // 2
        if conv.padding == "same" and stride > 1:
            # "same" pads as little as it must, the far side first.
            if size is None:
                return "with strides, merging needs a known input size"
            total = max((-(-size // stride) - 1) * stride + span - size, 0)
            before = total // 2
        if before % gap:
            return "no pixel of the dilated kernel sees what the branch sees"
        tap.append(before // gap)
    return tuple(tap)


def _identity(conv: Any, shape: tuple[int, ...]) -> np.ndarray:
    inputs, outputs = shape[-2:]
    if is_depthwise(conv):
        return np.ones((inputs, outputs))
    unit = np.zeros((inputs, outputs))
    unit[np.arange(outputs) % inputs, np.arange(outputs)] = 1
    return unit
