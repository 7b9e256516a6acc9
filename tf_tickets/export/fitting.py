"""What has to be done to a model so that XNNPACK computes it sparsely.

`tf_tickets.export.xnnpack` explains it and does it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from tf_tickets.export.flatbuffer import same_padding
from tf_tickets.export.folding import fold
from tf_tickets.network.graph import Call, Graph, graphs_of, trace
from tf_tickets.network.kinds import operation_of
from tf_tickets.selection import view_of

layers = keras.layers
ops = keras.ops

# Whose output of turned inputs is the turned output, as they stand.
_POINTWISE: tuple[type, ...] = (
    layers.Activation,
    layers.ActivityRegularization,
    layers.Add,
    layers.AlphaDropout,
    layers.Average,
    layers.Dense,
    layers.Dropout,
    layers.ELU,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.GroupNormalization,
    layers.Identity,
    layers.LeakyReLU,
    layers.Maximum,
    layers.Minimum,
    layers.Multiply,
    layers.ReLU,
    layers.Rescaling,
    layers.SpatialDropout2D,
    layers.Subtract,
    layers.UpSampling2D,
)
_ON_CHANNELS: tuple[type, ...] = (
    layers.BatchNormalization,
    layers.Concatenate,
    layers.LayerNormalization,
    layers.Normalization,
    layers.Softmax,
)
_POOLS: tuple[type, ...] = (layers.AveragePooling2D, layers.MaxPooling2D)
GLOBAL: tuple[type, ...] = (
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling2D,
)
FUNCTIONS = tuple(
    operation_of(function)
    for function in (
        ops.add,
        ops.subtract,
        ops.multiply,
        ops.divide,
        ops.true_divide,
        ops.maximum,
        ops.minimum,
        ops.clip,
        ops.abs,
        ops.square,
        ops.sqrt,
        ops.exp,
        ops.relu,
        ops.relu6,
        ops.sigmoid,
        ops.silu,
        ops.tanh,
        ops.gelu,
        ops.elu,
        ops.leaky_relu,
        ops.hard_sigmoid,
        ops.hard_silu,
        ops.negative,
    )
)

# What stands inside a cluster beside convolutions, for the report.
_FITTING = (
    layers.Activation,
    layers.Add,
    layers.BatchNormalization,
    layers.Dropout,
    layers.ELU,
    layers.GlobalAveragePooling2D,
    layers.Identity,
    layers.LeakyReLU,
    layers.Multiply,
    layers.ReLU,
    layers.SpatialDropout2D,
    layers.ZeroPadding2D,
)

_EXACT_HALF = 0.5


# --- geometry -----------------------------------------------------------------

Pads = tuple[
    tuple[int, int], tuple[int, int]
]  # above and below, left and right
NO_PADS: Pads = ((0, 0), (0, 0))


@dataclasses.dataclass(frozen=True)
class Axis:
    """A window that moves along one axis.

    Attributes:
        size: How many pixels there are, padding not counted.
        window: From the first to the last pixel that it reads.
        stride: By how much it moves.
        before: How many zeros come before the pixels.
        after: How many come after.
    """

    size: int
    window: int
    stride: int
    before: int
    after: int

    @property
    def steps(self) -> int:
        whole = self.size + self.before + self.after
        return (whole - self.window) // self.stride + 1

    @property
    def turned(self) -> Axis:
        """The same outputs, from the other end."""
        before = (
            self.stride * (self.steps - 1)
            + self.window
            - self.size
            - self.before
        )
        return dataclasses.replace(self, before=before, after=self.before)

    def padded(self, pads: int, window: int | None = None) -> Axis:
        """With other padding, and perhaps another window."""
        return dataclasses.replace(
            self,
            before=pads,
            after=pads,
            window=self.window if window is None else window,
        )


def axes_of(layer: Any, sizes: Sequence[int], pads: Pads) -> tuple[Axis, Axis]:
    """Both axes of a layer with a window, on an image of ``sizes``.

    Args:
        layer: A convolution or a pooling.
        sizes: Height and width of what it reads, ``pads`` not counted.
        pads: Zeros that a layer before it adds.
    """
    window = getattr(layer, "kernel_size", None) or layer.pool_size
    dilation = getattr(layer, "dilation_rate", (1, 1))
    found = []
    for size, k, stride, rate, (before, after) in zip(
        sizes, window, layer.strides, dilation, pads, strict=True
    ):
        if layer.padding == "same":
            own = same_padding(size + before + after, k, stride, rate)
            before, after = before + own[0], after + own[1]
        found.append(Axis(size, (k - 1) * rate + 1, stride, before, after))
    return found[0], found[1]


def spatial_kernel(layer: Any) -> keras.Variable | None:
    """The kernel of a layer that has two axes of pixels."""
    if isinstance(layer, layers.SeparableConv2D):
        return layer.depthwise_kernel
    if type(layer) in (layers.Conv2D, layers.DepthwiseConv2D):
        return layer.kernel
    return None


def _is_depthwise(layer: Any) -> bool:
    return isinstance(layer, layers.DepthwiseConv2D | layers.SeparableConv2D)


def is_pointwise(layer: Any) -> bool:
    return type(layer) is layers.Conv2D and tuple(layer.kernel_size) == (1, 1)


# --- what to do ---------------------------------------------------------------


@dataclasses.dataclass
class Site:
    """A convolution that moves by more than a pixel, where it is called.

    Attributes:
        layer: The layer.
        axes: Along height and width.
        first: Whether a cluster could begin there.
    """

    layer: Any
    axes: tuple[Axis, Axis]
    first: bool

    def fits(self, turned: bool) -> bool:
        """Whether a symmetric padding gives the same outputs."""
        pads = self.axes[0].window // 2
        return all(
            axis.before == pads and axis.padded(pads).steps == axis.steps
            for axis in self.facing(turned)
        )

    def widens(self, turned: bool) -> bool:
        """Whether it does with a window of 5 in place of 3."""
        return (
            not self.first
            and not self.fits(turned)
            and [axis.window for axis in self.axes] == [3, 3]
            and all(
                0 <= axis.before <= 2 and axis.padded(2, 5).steps == axis.steps
                for axis in self.facing(turned)
            )
        )

    def facing(self, turned: bool) -> tuple[Axis, Axis]:
        one, other = self.axes
        return (one.turned, other.turned) if turned else (one, other)


class Plan:
    """What is to be done to a model.

    Attributes:
        graphs: ``{id(model): its graph}``, of the model and those inside.
        sites: The convolutions of stride 2.
        turned: Whether to turn the network.
        begins: The name of the layer where a cluster begins, or nothing.
        widened: ``{id(layer): site}`` of the kernels that become 5x5.
        fitting: ``{id(layer): site}`` of those that a symmetric padding fits.
        gray: Ids of the first convolutions on fewer than three channels.
        skipped: Ids of the calls that are left out: paddings that become part
            of a convolution, and the beginnings of hard sigmoids.
        sigmoids: Ids of the calls that end a hard sigmoid.
        entered_turned: The graphs of models inside that get turned images.
        closed: Ids of the calls after which a cluster is ended by a mean over
            their one pixel.
        cut: Ids of the global poolings behind which it is ended.
        convolved: Ids of the dense layers that become 1x1 convolutions, and
            of the calls that lead there from the global pooling.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self.graphs = {
            id(one): trace(one, inline=False) for one in graphs_of(model)
        }
        self._check()
        calls = [(g, c) for g in self.graphs.values() for c in g.calls]
        paddings = [c for g, c in calls if self._dissolves(g, c)]
        self._dissolved = {id(call.operation) for call in paddings}
        self._fed = {
            id(g.readers(c.outputs[0])[0].operation)
            for g, c in calls
            if id(c.operation) in self._dissolved
        }
        self.sigmoids: set[int] = set()
        self.skipped = {id(call) for call in paddings}
        for before, last in _hard_sigmoids(self.graphs.values()):
            self.skipped.update(map(id, before))
            self.sigmoids.add(id(last))
        self.sites = [*self._sites()]
        self.turned = self._better_turned()
        first = next(
            (s for s in self.sites if s.first and s.fits(self.turned)), None
        )
        self.begins = first.layer.name if first else ""
        self.widened = {
            id(site.layer): site
            for site in self.sites
            if self.begins
            and site.widens(self.turned)
            and self._uses(site.layer) == 1
        }
        self.fitting = {
            id(site.layer): site
            for site in self.sites
            if self.begins and site.fits(self.turned)
        }
        self.gray = {
            id(site.layer)
            for site in self.sites
            if site.first
            and id(site.layer) in self.fitting
            and site.layer.kernel.shape[2] < 3
        }
        self.entered_turned = [*self._entered_turned()]
        self.closed, self.cut, self.convolved = (
            self._tails() if self.begins else (set(), set(), set())
        )

    def _check(self) -> None:
        graph = self.graphs[id(self.model)]
        for tensor in graph.inputs:
            shape = graph.shapes[tensor]
            if len(shape) == 4 and None in shape[1:]:
                raise ValueError(
                    "How a layer of stride 2 pads depends on the image's size, "
                    "and this model leaves it open: make it anew with a fixed "
                    f"`input_shape`. Received: {self.model.name!r} with an "
                    f"input of {shape}"
                )
        for one in graph.calls:
            if getattr(one.operation, "data_format", None) == "channels_first":
                raise ValueError(
                    "LiteRT computes with channels last. Received: "
                    f"{one.operation.name!r} with channels first"
                )

    def _uses(self, operation: Any) -> int:
        return sum(graph.uses(operation) for graph in self.graphs.values())

    def _dissolves(self, graph: Graph, call: Call) -> bool:
        """Whether a padding becomes part of the one convolution behind it."""
        readers = graph.readers(call.outputs[0])
        return (
            type(call.operation) is layers.ZeroPadding2D
            and graph.uses(call.operation) == 1
            and call.outputs[0] not in graph.outputs
            and len(readers) == 1
            and spatial_kernel(readers[0].operation) is not None
            and graph.uses(readers[0].operation) == 1
        )

    def _sites(self) -> Iterator[Site]:
        for graph in self.graphs.values():
            for call in graph.calls:
                layer = call.operation
                if spatial_kernel(layer) is None or max(layer.strides) < 2:
                    continue
                read = call.inputs[0]
                pads = self.pads_before(graph, call)
                before = graph.maker(read)
                if before and id(before.operation) in self._dissolved:
                    read = before.inputs[0]
                sizes: Any = graph.shapes[read][1:3]
                axes = axes_of(layer, sizes, pads)
                first = (
                    not _is_depthwise(layer)
                    and tuple(layer.kernel_size) == (3, 3)
                    and tuple(layer.strides) == (2, 2)
                    and set(layer.dilation_rate) == {1}
                    and layer.groups == 1
                    and layer.kernel.shape[2] <= 3
                )
                if first or (
                    _is_depthwise(layer)
                    and tuple(layer.strides) == (2, 2)
                    and axes[0].window == axes[1].window in (3, 5)
                    and set(layer.dilation_rate) == {1}
                ):
                    yield Site(layer, axes, first)

    def pads_before(self, graph: Graph, call: Call) -> Pads:
        """What a padding layer adds that becomes part of a convolution."""
        before = graph.maker(call.inputs[0])
        if before and id(before.operation) in self._dissolved:
            return before.operation.padding
        return NO_PADS

    def repads(self, layer: Any) -> bool:
        """Whether a convolution's own padding is taken out of it."""
        even = any(k % 2 == 0 for k in layer.kernel_size)
        return layer.padding == "same" and (
            max(layer.strides) > 1 or even or id(layer) in self._fed
        )

    def _better_turned(self) -> bool:
        """Whether more is gained turned than not; as it is where they tie."""

        def worth(turned: bool) -> tuple[bool, float]:
            first = any(s.first and s.fits(turned) for s in self.sites)
            rest = sum(
                s.fits(turned) + _EXACT_HALF * s.widens(turned)
                for s in self.sites
                if not s.first
            )
            return first, rest

        first = any(
            s.first and (s.fits(False) or s.fits(True)) for s in self.sites
        )
        return first and worth(True) > worth(False)

    def _entered_turned(self) -> Iterator[Graph]:
        """The graphs of models inside that get images turned already.

        Those that get an image as large as the model's own turn it themselves:
        nothing before them had a reason to.
        """
        graph = self.graphs[id(self.model)]
        whole = {graph.shapes[tensor][1:3] for tensor in graph.inputs}
        for outer in self.graphs.values():
            for call in outer.calls:
                inner = self.graphs.get(id(call.operation))
                shapes = [outer.shapes[tensor][1:3] for tensor in call.inputs]
                if self.turned and inner and not whole & {*shapes}:
                    yield inner

    def _tails(self) -> tuple[set[int], set[int], set[int]]:
        """What comes behind a global pooling, on one pixel.

        XNNPACK computes it sparsely as well, and a cluster that ends there in
        anything but a mean does not even load: a mean over the one pixel
        changes nothing and ends it. Where most weights of the tail are not
        zero they would count against the others, and it is cut off.
        """
        closed, cut, convolved = set(), set(), set()
        for graph in self.graphs.values():
            for call in graph.calls:
                if type(call.operation) is layers.Dense:
                    chain = self._pooled(graph, call)
                    if chain and _zeros([call.operation.kernel]) > _FEWEST:
                        convolved.add(id(call.operation))
                        convolved.update(map(id, chain))
                if not self._leaves(graph, call):
                    continue
                tail = self._tail(graph, call)
                if _zeros(
                    [c.operation.kernel for c in tail if _weighs(c.operation)]
                ) > _FEWEST or not isinstance(tail[0].operation, GLOBAL):
                    closed.add(id(call))
                else:
                    cut.add(id(tail[0]))
        return closed, cut, convolved

    def _pooled(self, graph: Graph, call: Call) -> list[Call]:
        """From a global pooling to a dense layer, with nothing in between."""
        chain: list[Call] = []
        maker = graph.maker(call.inputs[0])
        while (
            maker is not None
            and len(graph.readers(maker.outputs[0])) == 1
            and maker.outputs[0] not in graph.outputs
            and self._uses(call.operation) == 1
        ):
            chain.insert(0, maker)
            if type(maker.operation) is layers.GlobalAveragePooling2D:
                return [] if maker.operation.keepdims else chain
            if type(maker.operation) is not layers.Dropout:
                return []
            maker = graph.maker(maker.inputs[0])
        return []

    def _leaves(self, graph: Graph, call: Call) -> bool:
        """Whether one pixel goes from inside a cluster to where none can be."""
        shape = graph.shapes[call.outputs[0]]
        readers = graph.readers(call.outputs[0])
        return (
            len(shape) == 4
            and shape[1:3] == (1, 1)
            and (is_pointwise(call.operation) or _fits(call.operation))
            and not isinstance(call.operation, GLOBAL)
            and not any(
                _fits(c.operation) or _weighs(c.operation) for c in readers
            )
        )

    def _tail(self, graph: Graph, call: Call) -> list[Call]:
        """The calls on one pixel that lead to one, in their order."""
        found = [call]
        for one in found:
            for tensor in one.inputs:
                maker = graph.maker(tensor)
                shape = graph.shapes[tensor]
                if maker and len(shape) == 4 and shape[1:3] == (1, 1):
                    found.append(maker)
        return sorted(found, key=graph.calls.index)

    def unfitting(self) -> dict[str, str]:
        """The layers that XNNPACK will not have inside, and why."""
        graph = trace(self.model)
        calls = graph.calls
        points = [i for i, c in enumerate(calls) if is_pointwise(c.operation)]
        by_layer = {id(site.layer): site for site in self.sites}
        # One more copy is made to ask; it is the one that knows.
        stays = fold(self.model, return_report=True)[1].kept
        found: dict[str, str] = {}
        for call in calls[points[0] : points[-1]] if points else ():
            shape = graph.shapes[call.outputs[0]]
            if len(shape) != 4 or shape[1:3] == (1, 1):
                continue  # on one pixel, or behind the images
            why = self._why_not(call.operation, by_layer)
            if call.operation.name in stays:
                why = f"it cannot be folded, {stays[call.operation.name]}"
            if why:
                found.setdefault(call.operation.name, why)
        return found

    def _why_not(self, layer: Any, sites: dict[int, Site]) -> str:
        if spatial_kernel(layer) is not None:
            if set(layer.dilation_rate) != {1}:
                return "it is dilated"
            site = sites.get(id(layer))
            if _is_depthwise(layer):
                if layer.depth_multiplier != 1:
                    return "it makes several channels of one"
                if tuple(layer.kernel_size) not in ((3, 3), (5, 5)):
                    return "its window is neither 3x3 nor 5x5"
                if max(layer.strides) > 2 or len({*layer.strides}) > 1:
                    return "its stride is neither 1 nor 2"
                if (
                    site
                    and not site.fits(self.turned)
                    and id(layer) not in self.widened
                ):
                    pads = [a.before for a in site.facing(self.turned)]
                    return (
                        f"it pads {pads[0]} above and {pads[1]} left, and no "
                        "exact rewriting is known"
                    )
                return ""
            if layer.groups > 1:
                return "it is in groups"
            if max(layer.strides) > 1 or not is_pointwise(layer):
                size = "x".join(map(str, layer.kernel_size))
                return f"a {size} convolution of stride {max(layer.strides)}"
            return ""
        if _fits(layer):
            return ""
        return f"{type(layer).__name__} has no kernel with channels first"


def _hard_sigmoids(
    graphs: Iterable[Graph],
) -> Iterator[tuple[list[Call], Call]]:
    """Calls that compute ``relu6(x + 3) / 6``: those before, and the last."""
    for graph in graphs:
        for call in graph.calls:
            one = call.operation
            if type(one) is operation_of(ops.hard_sigmoid) or (
                type(one) is layers.Activation
                and one.activation is keras.activations.hard_sigmoid
            ):
                yield [], call
                continue
            before = [call]
            while len(before) < 3 and len(before[0].inputs) == 1:
                maker = graph.maker(before[0].inputs[0])
                read = maker and len(graph.readers(maker.outputs[0])) == 1
                if not maker or not read or maker.outputs[0] in graph.outputs:
                    break
                before.insert(0, maker)
            if len(before) == 3 and _is_hard_sigmoid(*before):
                yield before[:2], call


def _is_hard_sigmoid(add: Call, limit: Call, scale: Call) -> bool:
    top = limit.operation
    relu6 = type(top) is operation_of(ops.relu6) or (
        type(top) is layers.ReLU
        and (top.max_value, top.negative_slope, top.threshold) == (6, 0, 0)
    )
    return (
        relu6
        and type(add.operation) is operation_of(ops.add)
        and type(scale.operation) is operation_of(ops.multiply)
        and _number(add) == 3
        and bool(np.isclose(_number(scale), 1 / 6))
    )


def _number(call: Call) -> float:
    """The one number among the arguments of a call; NaN if there is none."""
    others = [
        x
        for x in keras.tree.flatten((call.args, dict(call.kwargs)))
        if not isinstance(x, keras.KerasTensor)
    ]
    if len(others) != 1 or np.ndim(others[0]):
        return float("nan")
    return float(others[0])


_FEWEST = 2 / 3


def _zeros(kernels: Sequence[keras.Variable]) -> float:
    """Which fraction of some weights is zero."""
    size = sum(view_of(one).size for one in kernels)
    return 1 - sum(np.count_nonzero(view_of(k)) for k in kernels) / max(size, 1)


def _weighs(operation: Any) -> bool:
    return is_pointwise(operation) and max(operation.strides) == 1


def _fits(operation: Any) -> bool:
    """Whether it is elementwise and can stand inside a cluster."""
    if isinstance(operation, layers.Activation):
        return operation.activation is not keras.activations.softmax
    return isinstance(operation, _FITTING) or type(operation) in FUNCTIONS


def tensors_in(args: Any, kwargs: Any) -> list[Any]:
    return [
        x
        for x in keras.tree.flatten((args, kwargs))
        if isinstance(x, keras.KerasTensor)
    ]


def commutes(layer: Any, args: Any, kwargs: Any) -> bool:
    """Whether turned inputs give the turned output."""
    tensors = tensors_in(args, kwargs)
    if any(len(x.shape) != 4 for x in tensors):
        return False
    if type(layer) in FUNCTIONS:
        return all(
            np.ndim(x) == 0
            for x in keras.tree.flatten((args, kwargs))
            if not isinstance(x, keras.KerasTensor)
        )
    if type(layer) in _ON_CHANNELS:
        axis = layer.axis
        axis = axis if isinstance(axis, list | tuple) else [axis]
        return {one % 4 for one in axis if one is not None} == {3}
    if type(layer) is layers.GroupNormalization:
        return layer.axis in (-1, 3)
    if type(layer) is layers.PReLU:
        return tuple(layer.shared_axes or ()) == (1, 2)
    if type(layer) in _POOLS:
        axes = axes_of(layer, tensors[0].shape[1:3], NO_PADS)
        return all(axis.turned.before == axis.before for axis in axes)
    return type(layer) in (*_POINTWISE, *GLOBAL)
