"""Serve without normalizations: each becomes part of a layer beside it."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, overload

import keras
import numpy as np

from tf_tickets.export.source import DEFAULT, Source
from tf_tickets.network.copier import Copier, Resizing
from tf_tickets.network.folding import (
    fold_normalization,
    fold_normalization_before,
)
from tf_tickets.network.graph import (
    Call,
    Graph,
    functional_view,
    graphs_of,
    require_graph,
    trace,
)
from tf_tickets.network.kinds import kind_of, output_axes
from tf_tickets.network.layer_copy import copy_of
from tf_tickets.selection import layers_of

# These do nothing where a model predicts.
_STILL = (
    keras.layers.ActivityRegularization,
    keras.layers.AlphaDropout,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.Identity,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)


@dataclasses.dataclass(frozen=True)
class FoldReport:
    """Which normalizations became part of which layers.

    Attributes:
        folded: ``{batch normalization: the layer that took it over}``, by
            their names, or by their paths where several have one name.
        kept: ``{batch normalization: why it stays}``.
        parameters: How many the whole model had before and has after.

    Example:

    >>> import tf_tickets as tt
    >>> print(tt.export.FoldReport({"norm": "conv"}, {}, (188, 176)))
    1 of 1 batch normalizations folded, parameters 188 -> 176
    """

    folded: Mapping[str, str]
    kept: Mapping[str, str]
    parameters: tuple[int, int]

    def __str__(self) -> str:
        before, after = self.parameters
        every = len(self.folded) + len(self.kept)
        lines = [
            f"{len(self.folded)} of {every} batch normalizations folded, "
            f"parameters {before:,} -> {after:,}"
        ]
        lines += [f"  kept {name}: {why}" for name, why in self.kept.items()]
        return "\n".join(lines)


@overload
def fold(
    model: keras.Model, *, return_report: Literal[False] = ...
) -> keras.Model: ...


@overload
def fold(
    model: keras.Model, *, return_report: Literal[True]
) -> tuple[keras.Model, FoldReport]: ...


def fold(
    model: keras.Model, *, return_report: bool = False
) -> keras.Model | tuple[keras.Model, FoldReport]:
    r"""The model that predicts the same without its batch normalizations.

    Where a model predicts, a batch normalization is a scale and an offset for
    each channel. A dense layer or a convolution of any kind (depthwise,
    separable, transposed, grouped) right before it takes both into its kernel
    and its bias: $BN(k*x+b) = (fk)*x+f(b-\mu)+\beta$ with
    $f=\gamma/\sqrt{\sigma^2+\epsilon}$; it gets a bias if it has none. So does
    one right after it, unless it pads its input with zeros. Zeros of kernels
    stay zeros, and masks in force go with them.

    A normalization stays where that would change an output: something else
    reads what comes before it, an activation stands between, a layer is
    shared between several places or computes in 16 bits. The report names
    each and says why. The export formats `"auto"` and `"litert"` fold by
    default.

    Args:
        model: A functional model or a built sequential one, nested or not. It
            is not changed.
        return_report: Boolean: also return what was folded and what was not.
            Default `False`.

    Returns:
        The model for serving; with ``return_report`` a pair of it and a
        `FoldReport`. To train it on would not be to train the model on: its
        normalizations are gone. Where the model's class is not made of inputs
        and outputs it is a plain functional model, with a warning.

    Raises:
        ValueError: If the model is subclassed or a layer cannot be copied.

    Reference:
        Jacob et al., "Quantization and Training of Neural Networks for
        Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 3)),
    ...     keras.layers.Conv2D(4, 3, use_bias=False, name="conv"),
    ...     keras.layers.BatchNormalization(name="norm"),
    ...     keras.layers.ReLU(name="relu"),
    ... ])
    >>> folded, report = tt.export.fold(model, return_report=True)
    >>> [layer.name for layer in folded.layers], dict(report.folded)
    (['conv', 'relu'], {'norm': 'conv'})
    """
    folds = Folds(model)
    folded = folds.copy(model)
    return (folded, folds.report(model, folded)) if return_report else folded


class Folds:
    """What `fold` does to a model, before it does it.

    Args:
        model: The model.

    Attributes:
        folded: ``{id(normalization): (it, the layer that takes it over)}``.
        kept: ``{id(normalization): (it, why it stays)}``.

    Raises:
        ValueError: If the model is subclassed.
    """

    def __init__(self, model: keras.Model) -> None:
        require_graph(model, "Folding batch normalizations")
        self.folded: dict[int, tuple[Any, Any]] = {}
        self.kept: dict[int, tuple[Any, str]] = {}
        self._changed: dict[int, _Layer] = {}
        graphs = [trace(one, inline=False) for one in graphs_of(model)]
        self._uses = collections.Counter(
            id(call.operation) for graph in graphs for call in graph.calls
        )
        # Into the layer before it wherever that can be: no border matters.
        for rule in (self._before, self._after):
            for graph in graphs:
                for call in graph.calls:
                    if _is_norm(call.operation):
                        self._try(rule, graph, call)
        for layer in layers_of(model):
            if _is_norm(layer) and not self._uses[id(layer)]:
                self.kept[id(layer)] = layer, "another layer holds it"

    def copy(self, model: keras.Model) -> keras.Model:
        """The model with these folds."""
        changed = self._changed
        return Copier(
            replace=lambda layer: (
                copy_of(layer, use_bias=True)
                if id(layer) in changed and not layer.use_bias
                else None
            ),
            dropped=self.folded,
            values={id(one.variable): one.kernel for one in changed.values()},
            resizing=Resizing(
                # No mask on the old bias says anything about the new one.
                biases={key: one.bias for key, one in changed.items()}
            ),
            keep_class=False,
        ).copy(model)

    def report(self, model: keras.Model, folded: keras.Model) -> FoldReport:
        """What was done."""
        known = collections.Counter(one.name for one in layers_of(model))

        def name(layer: Any) -> str:
            return layer.name if known[layer.name] == 1 else layer.path

        return FoldReport(
            {name(norm): name(layer) for norm, layer in self.folded.values()},
            {name(norm): why for norm, why in self.kept.values()},
            (model.count_params(), folded.count_params()),
        )

    def _try(self, rule: Any, graph: Graph, call: Call) -> None:
        norm: Any = call.operation
        if id(norm) in self.folded:
            return
        found = self._own_reason(call) or rule(graph, call)
        if isinstance(found, str):
            _, first = self.kept.get(id(norm), (norm, found))
            if first != found and "after it" in found:
                first = f"{first}, and {found}"
            self.kept[id(norm)] = norm, first
        else:
            self.kept.pop(id(norm), None)
            self.folded[id(norm)] = norm, found.layer
            self._changed[id(found.layer)] = found

    def _own_reason(self, call: Call) -> str:
        norm: Any = call.operation
        if type(norm) is not keras.layers.BatchNormalization:
            return f"{type(norm).__name__} is a class of its own"
        if self._uses[id(norm)] > 1:
            return "it is called in several places"
        if _trains(call):
            return "it is called with training=True"
        return ""

    def _before(self, graph: Graph, call: Call) -> _Layer | str:
        """Into the layer that makes what the normalization reads."""
        tensor = call.inputs[0]
        while True:
            if tensor in graph.outputs:
                return "what it normalizes is an output too"
            if len(graph.readers(tensor)) > 1:
                return "another layer reads what it normalizes"
            maker = graph.maker(tensor)
            if maker is None:
                return "it normalizes an input of the model"
            if not self._passes(maker):
                break
            tensor = maker.inputs[0]
        found = self._layer(maker, call, graph)
        if isinstance(found, str):
            return found
        if not _is_linear(found.layer):
            name = found.layer.name
            return f"the activation of {name} stands between"
        axes = output_axes(found.layer, found.variable)
        found.kernel, found.bias = fold_normalization(
            found.kernel, found.bias, call.operation, axes
        )
        return found

    def _after(self, graph: Graph, call: Call) -> _Layer | str:
        """Into the layer that reads what the normalization makes."""
        tensor = call.outputs[0]
        while True:
            readers = graph.readers(tensor)
            if tensor in graph.outputs or len(readers) != 1:
                return "several layers read it"
            if not self._passes(readers[0]):
                break
            tensor = readers[0].outputs[0]
        found = self._layer(readers[0], call, graph)
        if isinstance(found, str):
            return found
        rule = kind_of(found.layer).affine
        name, uniform = rule(found.layer) if rule else ("", False)
        if not uniform:
            why = (
                "takes over only what comes behind it"
                if getattr(found.layer, "padding", "") == "valid"
                else "pads with zeros"
            )
            return f"{found.layer.name} after it {why}"
        found.kernel, found.bias = fold_normalization_before(
            found.kernel,
            found.bias,
            call.operation,
            kind_of(found.layer).axes_of(name),
            getattr(found.layer, "groups", 1),
        )
        return found

    def _passes(self, call: Call) -> bool:
        """Whether a call gives what it reads, where the model predicts."""
        return id(call.operation) in self.folded or (
            type(call.operation) in _STILL and not _trains(call)
        )

    def _layer(self, call: Call, norm: Call, graph: Graph) -> _Layer | str:
        """The layer of a call, if it can take over a normalization."""
        layer: Any = call.operation
        rule = kind_of(layer).affine
        name = f"{layer.name} ({type(layer).__name__})"
        if rule is None:
            return f"{name} beside it has no kernel to take it over"
        if self._uses[id(layer)] > 1:
            return f"{name} is called in several places"
        kernel, _ = rule(layer)
        variables = {v.name: v for v in layer.weights}
        if kernel not in variables or set(variables) - {
            "kernel",
            "depthwise_kernel",
            "pointwise_kernel",
            "bias",
        }:
            return f"{name} has weights of another kind: {sorted(variables)}"
        if layer.compute_dtype not in ("float32", "float64"):
            return f"{name} computes in {layer.compute_dtype}"
        rank = len(graph.shapes[norm.inputs[0]])
        first = getattr(layer, "data_format", None) == "channels_first"
        operation: Any = norm.operation
        if operation.axis % rank != (1 if first else rank - 1):
            return f"it is over another axis than the channels of {name}"
        if id(layer) in self._changed:
            return self._changed[id(layer)]
        variable = variables[kernel]
        axes = output_axes(layer, variable)
        bias = np.zeros(math.prod(variable.shape[axis] for axis in axes))
        if layer.use_bias:
            bias = keras.ops.convert_to_numpy(layer.bias).astype(np.float64)
        value = keras.ops.convert_to_numpy(variable).astype(np.float64)
        return _Layer(layer, variable, value, bias)


def without_normalization(source: Source) -> tuple[Source, str]:
    """What is exported, folded where that can be, and what was done."""
    if not any(_is_norm(layer) for layer in layers_of(source.model)):
        return source, "no batch normalizations to fold"
    if len(source.endpoints) > 1:
        return source, (
            "batch normalizations stay: other endpoints use the layers too"
        )
    try:
        folds = Folds(source.model)
        if not folds.folded:
            return source, str(folds.report(source.model, source.model))
        folded = folds.copy(served_view(source.model))
    except ValueError as error:
        return source, f"batch normalizations stay: {error}"
    said = str(folds.report(source.model, folded))
    return Source.of(folded, source.endpoints[DEFAULT][1]), said


def served_view(model: keras.Model) -> keras.Model:
    """The model without its class and what it trains with.

    What is served needs neither.
    """
    if type(model) is keras.Sequential:
        return model
    return functional_view(model)


@dataclasses.dataclass
class _Layer:
    """A layer that takes over normalizations: kernel and bias as they will be.

    Attributes:
        layer: The layer.
        variable: Its kernel.
        kernel: The kernel's new value.
        bias: The new bias.
    """

    layer: Any
    variable: keras.Variable
    kernel: np.ndarray
    bias: np.ndarray


def _is_norm(operation: object) -> bool:
    return isinstance(operation, keras.layers.BatchNormalization)


def _is_linear(layer: Any) -> bool:
    return layer.activation in (None, keras.activations.linear)


def _trains(call: Call) -> bool:
    """Whether a layer is told to train whatever the model does."""
    return bool(call.kwargs.get("training"))
