"""Rewrite a model, with the same outputs, for XNNPACK's sparse inference.

XNNPACK computes 1x1 convolutions sparsely in a part of a network that has a
certain shape (`tf_tickets.export.clusters` tells which), and the networks of
`keras.applications` miss it by one pixel: TensorFlow pads a layer of stride 2
on an even number of pixels below and right only, and XNNPACK wants 1 on each
side.

**The network is turned by 180 degrees.** Let `n` outputs of a window of `k`
read ``x[2 i + j]``, `j` in 0..k-1, the rows behind the last one being zero. Of
the turned image ``t[m] = x[N - 1 - m]`` output ``n - 1 - i`` reads, with the
turned kernel, ``t[2 i' - 1 + j']``: what was padded below is padded above, by
one for a window of 3 and by two for one of 5, and the last row that a
symmetric padding adds is never read. So the turned network on the turned
image is exactly the same, the first convolution included, with kernels of the
same size; global pooling does not see which way up an image is. What remains
of it is one operation that turns the image.

Where that does not fit (an explicit padding above, a model that is turned and
has a layer the other way round), a depthwise 3x3 kernel becomes a 5x5 one with
its values in a corner, padded by 2 on each side, which is exact too, and
slower.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, overload

import keras
import numpy as np

from tf_tickets.export.fitting import (
    GLOBAL,
    Axis,
    Plan,
    axes_of,
    commutes,
    spatial_kernel,
    tensors_in,
)
from tf_tickets.network.copier import Copier, Resizing
from tf_tickets.network.graph import Call, Graph, require_graph
from tf_tickets.network.layer_copy import copy_of

layers = keras.layers
ops = keras.ops


@dataclasses.dataclass(frozen=True)
class Rewriting:
    """What `for_xnnpack` did.

    Attributes:
        turned: Whether the network computes on the image turned by 180
            degrees.
        changed: ``{layer: what was changed}``.
        unchanged: ``{layer: why XNNPACK will not have it inside a cluster}``,
            of those between the first and the last 1x1 convolution. `litert`
            reads the last word from the converted file.
        begins: The layer at which sparse inference can begin; empty if there
            is none, so that nothing is gained.
    """

    turned: bool
    changed: dict[str, str]
    unchanged: dict[str, str]
    begins: str

    def __str__(self) -> str:
        lines = [
            f"sparse inference can begin at {self.begins!r}"
            if self.begins
            else "nothing for sparse inference to begin at: no 3x3 "
            "convolution of stride 2 on the image that a symmetric padding "
            "can be given"
        ]
        if self.turned:
            lines.append("computes on the image turned by 180 degrees")
        lines += [f"{name}: {what}" for name, what in self.changed.items()]
        lines += [
            f"{name} stays, and ends what is computed sparsely: {why}"
            for name, why in self.unchanged.items()
        ]
        return "\n".join(lines)


@overload
def for_xnnpack(
    model: keras.Model,
    *,
    turned_input: bool = ...,
    return_report: Literal[False] = ...,
) -> keras.Model: ...


@overload
def for_xnnpack(
    model: keras.Model,
    *,
    turned_input: bool = ...,
    return_report: Literal[True],
) -> tuple[keras.Model, Rewriting]: ...


def for_xnnpack(
    model: keras.Model,
    *,
    turned_input: bool = False,
    return_report: bool = False,
) -> keras.Model | tuple[keras.Model, Rewriting]:
    """A model with the same outputs that XNNPACK can compute sparsely.

    On ARM and in WebAssembly, XNNPACK computes 1x1 convolutions of which more
    than two thirds of the weights are zero sparsely, if the network around
    them has a certain shape. This gives a network that shape where it can be
    done exactly:

    - layers of stride 2 get a padding of 1 (2 for a window of 5) on each side,
      by turning the whole network, with its kernels, by 180 degrees, or else
      by giving a depthwise 3x3 kernel a border of zeros;
    - a first convolution on one or two channels reads three, the others zero;
    - a hard sigmoid, which the converter takes apart, becomes one that it
      leaves alone.

    Batch normalization need not be folded: the converter does that.

    Masks go along, so the model can be trained on. Rewrite before or after
    pruning; the 1x1 kernels stay what they are.

    Args:
        model: A functional or sequential model on images whose sizes are
            known, channels last.
        turned_input: Whether the new model takes images that are turned by
            180 degrees already, ``x[:, ::-1, ::-1]``, if it computes on such
            (``report.turned``); it saves the time to turn them. By default it
            takes what ``model`` takes.
        return_report: Also return what was changed.

    Returns:
        The new model; the old one is left as it is. With ``return_report``
        also a `Rewriting`.

    Raises:
        ValueError: If the calls inside the model cannot be seen, an image's
            size is open, or a layer cannot be copied.

    Example:

    >>> import tf_tickets as tt
    >>> net = keras.applications.MobileNetV2(
    ...     (64, 64, 3), alpha=0.35, weights=None, classes=4)
    >>> turned, report = tt.export.for_xnnpack(net, return_report=True)
    >>> report.turned, report.begins, report.unchanged
    (True, 'Conv1', {})
    >>> x = np.random.default_rng(0).random((1, 64, 64, 3), "float32")
    >>> bool(np.allclose(net(x), turned(x), atol=1e-6))
    True
    """
    require_graph(model, "Rewriting for XNNPACK")
    plan = Plan(model)
    writer = _Writer(model, plan, turned_input and plan.turned)
    copy = writer.copy()
    report = Rewriting(
        plan.turned,
        writer.changed,
        plan.unfitting(),
        plan.begins,
    )
    return (copy, report) if return_report else copy


class _Writer:
    """Makes the copy; `Copier` calls it for every layer, in their order.

    Every image in the copy is as it was or turned. Layers that do not care
    pass on what they get, convolutions get turned images if the network is
    turned, and all others get their images turned back.
    """

    def __init__(
        self, model: keras.Model, plan: Plan, turned_input: bool
    ) -> None:
        self.model = model
        self.plan = plan
        self._enters_turned = [*plan.entered_turned]
        if turned_input:
            self._enters_turned.append(plan.graphs[id(model)])
        self.changed: dict[str, str] = {}
        self._turned: set[int] = set()
        self._other: dict[int, Any] = {}
        self._held: list[Any] = []  # an id is one's own as long as it is held
        self._seen: dict[int, int] = {}
        self._calls = {
            (id(call.operation), index): (graph, call)
            for graph in plan.graphs.values()
            for index, call in _numbered(graph)
        }
        self._kernels = {
            id(kernel): call.operation
            for graph in plan.graphs.values()
            for call in graph.calls
            if (kernel := spatial_kernel(call.operation)) is not None
        }
        self._matrices = {
            id(call.operation.kernel)
            for graph in plan.graphs.values()
            for call in graph.calls
            if type(call.operation) is layers.Dense
            and id(call.operation) in plan.convolved
        }

    def copy(self) -> keras.Model:
        return Copier(
            replace=self.replace,
            connect=self.connect,
            rewired=[*self.plan.graphs],
            resizing=Resizing(
                {
                    *self.plan.widened,
                    *self.plan.gray,
                    *self.plan.convolved,
                },
                self.part,
            ),
            keep_class=False,
        ).copy(self.model)

    # --- layers and their weights ---------------------------------------------

    def replace(self, layer: Any) -> Any:
        if type(layer) is layers.Dense and id(layer) in self.plan.convolved:
            return layers.Conv2D(
                layer.units,
                1,
                use_bias=layer.use_bias,
                dtype=layer.dtype_policy,
                name=layer.name,
            )
        if spatial_kernel(layer) is None:
            return None
        changes: dict[str, Any] = {}
        if id(layer) in self.plan.widened:
            changes["kernel_size"] = (5, 5)
        if self.plan.repads(layer):
            changes["padding"] = "valid"
        # A layer whose weights grow must be built anew.
        grows = id(layer) in self.plan.gray
        return copy_of(layer, **changes) if changes or grows else None

    def part(self, variable: keras.Variable, value: np.ndarray) -> np.ndarray:
        """A kernel, or its mask, as it is in the copy."""
        if id(variable) in self._matrices:
            return value[None, None]
        layer = self._kernels.get(id(variable))
        if layer is None:
            return value
        if self.plan.turned:
            value = value[::-1, ::-1]
        site = self.plan.widened.get(id(layer))
        if site is not None:
            rim = [
                (2 - a.before, a.before) for a in site.facing(self.plan.turned)
            ]
            value = np.pad(value, [*rim, (0, 0), (0, 0)])
        if id(layer) in self.plan.gray:
            more = 3 - value.shape[2]
            value = np.pad(value, [(0, 0), (0, 0), (0, more), (0, 0)])
        return value

    # --- calls ----------------------------------------------------------------

    def connect(
        self, layer: Any, copy: Any, args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        number = self._seen.get(id(layer), 0)
        self._seen[id(layer)] = number + 1
        graph, call = self._calls[id(layer), number]
        self._enter(graph, call, args, kwargs)
        if id(call) in self.plan.skipped:
            return args[0]
        if id(call) in self.plan.sigmoids:
            made = self._sigmoid(layer, args[0])
        elif spatial_kernel(layer) is not None:
            made = self._convolution(layer, copy, args[0], graph, call)
        elif id(layer) in self.plan.graphs:
            made = self._model(layer, copy, args, kwargs)
        elif id(call) in self.plan.convolved and isinstance(layer, GLOBAL):
            pool: Any = layers.GlobalAveragePooling2D
            made = pool(keepdims=True, name=copy.name)(args[0])
        elif id(layer) in self.plan.convolved:
            made = self._dense(layer, copy, args[0])
        else:
            made = self._any(layer, copy, args, kwargs)
        if id(call) in self.plan.closed:
            # With `keepdims` the converter sees that it changes nothing.
            shape = made.shape[1:]
            made = layers.GlobalAveragePooling2D()(made)
            made = layers.Reshape(shape)(made)
            self._tell(layer, "a mean over its one pixel ends the cluster")
        if id(call) in self.plan.cut:
            made = self._cut(layer, made)
        if graph is self.plan.graphs[id(self.model)]:
            flat = [
                self._facing(x, False) if tensor in graph.outputs else x
                for x, tensor in zip(
                    keras.tree.flatten(made), call.outputs, strict=True
                )
            ]
            made = keras.tree.pack_sequence_as(made, flat)
        return made

    def _enter(self, graph: Graph, call: Call, args: Any, kwargs: Any) -> None:
        """Mark the inputs of a model inside the model."""
        if graph not in self._enters_turned:
            return
        for x, tensor in zip(
            tensors_in(args, kwargs), call.inputs, strict=True
        ):
            if tensor in graph.inputs and _is_image(x):
                self._mark(x, True)

    def _convolution(
        self, layer: Any, copy: Any, x: Any, graph: Graph, call: Call
    ) -> Any:
        turned = self.plan.turned
        x = self._facing(x, turned)
        sizes = x.shape[1:3]
        axes = axes_of(layer, sizes, self.plan.pads_before(graph, call))
        if turned:
            axes = (axes[0].turned, axes[1].turned)
        site = self.plan.fitting.get(id(layer))
        if id(layer) in self.plan.widened:
            axes = (axes[0].padded(2, 5), axes[1].padded(2, 5))
            self._tell(layer, "a 5x5 kernel with a border of zeros")
        elif site is not None:
            pads = axes[0].window // 2
            axes = (axes[0].padded(pads), axes[1].padded(pads))
            self._tell(layer, f"padded by {pads} on each side")
        if id(layer) in self.plan.gray:
            x = ops.pad(x, [[0, 0]] * 3 + [[0, 3 - x.shape[3]]])
            self._tell(layer, "reads three channels, the new ones zero")
        if copy.padding == "valid":
            x = _padded(x, axes)
        return self._mark(copy(x), turned)

    def _model(self, layer: Any, copy: Any, args: Any, kwargs: Any) -> Any:
        enters = self.plan.graphs[id(layer)] in self.plan.entered_turned
        args, kwargs = self._all_facing((args, kwargs), enters)
        made = copy(*args, **kwargs)
        for x, inside in zip(
            keras.tree.flatten(made), copy.outputs, strict=True
        ):
            self._mark(x, id(inside) in self._turned)
        return made

    def _any(self, layer: Any, copy: Any, args: Any, kwargs: Any) -> Any:
        images = [x for x in tensors_in(args, kwargs) if _is_image(x)]
        turned = any(id(x) in self._turned for x in images)
        if turned and type(layer) in (
            layers.ZeroPadding2D,
            layers.Cropping2D,
        ):
            name = "padding" if hasattr(layer, "padding") else "cropping"
            sides = [tuple(reversed(side)) for side in getattr(layer, name)]
            copy = copy_of(layer, **{name: tuple(sides)})
        elif turned and not commutes(layer, args, kwargs):
            self._tell(layer, "gets its input turned back")
            turned = False
        args, kwargs = self._all_facing((args, kwargs), turned)
        made = copy(*args, **kwargs)
        for x in keras.tree.flatten(made):
            self._mark(x, turned)
        return made

    def _dense(self, layer: Any, copy: Any, x: Any) -> Any:
        """A dense layer as a 1x1 convolution and a mean over its pixel."""
        self._tell(layer, "a 1x1 convolution on the one pixel")
        made = layers.GlobalAveragePooling2D()(copy(x))
        if layer.activation is keras.activations.linear:
            return made
        return layers.Activation(layer.activation)(made)

    def _cut(self, layer: Any, x: Any) -> Any:
        self._tell(layer, "what comes behind it is cut off, being dense")
        flat = layers.Flatten()(x)
        return layers.Reshape((1, 1, x.shape[-1]))(flat)

    def _sigmoid(self, layer: Any, x: Any) -> Any:
        """A hard sigmoid that the converter does not take apart.

        What it makes of any other is a product with a number, and XNNPACK has
        that in the ordinary layout only. Here the factor is folded into the
        convolution before.
        """
        self._tell(layer, "a hard sigmoid, as a limit of a linear function")
        made = ops.minimum(ops.relu(x * (1 / 6) + 0.5), 1.0)
        return self._mark(made, id(x) in self._turned)

    # --- which way up ---------------------------------------------------------

    def _mark(self, x: Any, turned: bool) -> Any:
        self._held.append(x)
        if turned and _is_image(x):
            self._turned.add(id(x))
        return x

    def _facing(self, x: Any, turned: bool) -> Any:
        """An image the way up that is wanted."""
        if not _is_image(x) or (id(x) in self._turned) == turned:
            return x
        if id(x) not in self._other:
            flipped = ops.flip(x, axis=(1, 2))
            self._mark(flipped, turned)
            self._held.append(x)
            self._other[id(x)] = flipped
            self._other[id(flipped)] = x
        return self._other[id(x)]

    def _all_facing(self, structure: Any, turned: bool) -> Any:
        return keras.tree.map_structure(
            lambda x: (
                self._facing(x, turned)
                if isinstance(x, keras.KerasTensor)
                else x
            ),
            structure,
        )

    def _tell(self, layer: Any, what: str) -> None:
        self.changed[layer.name] = what


def _numbered(graph: Graph) -> Iterator[tuple[int, Call]]:
    """Each call with the number of calls of the same operation before it."""
    seen: dict[int, int] = {}
    for call in graph.calls:
        number = seen.get(id(call.operation), 0)
        seen[id(call.operation)] = number + 1
        yield number, call


def _is_image(x: Any) -> bool:
    """Whether it makes a difference which way up it is."""
    shape = tuple(getattr(x, "shape", ()))
    return len(shape) == 4 and shape[1:3] != (1, 1)


def _padded(x: Any, axes: tuple[Axis, Axis]) -> Any:
    """An image with the zeros that a window without padding wants."""
    pads = [(axis.before, axis.after) for axis in axes]
    cut = [(max(-a, 0), max(-b, 0)) for a, b in pads]
    more = [(max(a, 0), max(b, 0)) for a, b in pads]
    if np.any(cut):
        x = layers.Cropping2D(cut)(x)
    return layers.ZeroPadding2D(more)(x) if np.any(more) else x
