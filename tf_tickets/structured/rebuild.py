"""Make the smaller model: the same layers with fewer channels."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import masking
from tf_tickets.layers.selecting import SelectChannels
from tf_tickets.network.channels import Channels
from tf_tickets.network.copier import Copier, Resizing
from tf_tickets.network.graph import Block, Shape, graphs_of, tensors_of
from tf_tickets.network.inside import argument_names
from tf_tickets.network.layer_copy import copy_of, is_saved, usable_config
from tf_tickets.network.recorded import by_config, parts_of, recorded
from tf_tickets.selection import layers_of, named_weights, view_of
from tf_tickets.structured.branches import Empty
from tf_tickets.structured.readers import has_free_bias

Values = Mapping[int, np.ndarray]


def without(
    channels: Channels,
    removed: np.ndarray,
    model: keras.Model,
    *,
    values: Values | None = None,
    biases: Values | None = None,
    masks: Mapping[str, np.ndarray] | None = None,
    empty: Empty | None = None,
    inherit_optimizer: bool = False,
    keep_class: bool = True,
    bypassed: Collection[int] = (),
    selects: Mapping[int, SelectChannels] | None = None,
) -> keras.Model:
    """A copy of ``model`` without some of its channels.

    Args:
        channels: The channels of the model.
        removed: One boolean per atom.
        model: The model.
        values: ``{id(variable): value}`` to inherit in place of the
            variable's own, of the full shape.
        biases: ``{id(layer): bias of full size}`` in place of the layer's
            own, or of none.
        masks: ``{weight's key: mask of its full size}`` to hold in the copy,
            beside those of the model.
        empty: Branches that the copy does without.
        inherit_optimizer: Copy the optimizer's state too, if the copy could
            be compiled.
        keep_class: As in `tf_tickets.network.copier.Copier`.
        bypassed: Ids of layers in whose place the copy has what they read
            first.
        selects: ``{id(layer): what takes channels in front of it}`` in the
            graph of ``channels``, as `tf_tickets.structured.selects` put it.

    Raises:
        ValueError: If a layer, or the model's class, cannot be copied.
    """

    values, biases = dict(values or {}), dict(biases or {})
    for entry in channels.layers.values():
        layer: Any = entry.layer
        if id(layer) in biases and has_free_bias(layer):
            bias = biases.pop(id(layer))
            values[id(layer.bias)] = bias.astype(view_of(layer.bias).dtype)
    entered = {id(block.layer) for block in channels.graph.blocks}
    selects = selects or {}

    def connect(layer: Any, copy: Any, args: Any, kwargs: Any) -> Any:
        if id(layer) in bypassed:
            return tensors_of(args, kwargs)[0]
        if id(layer) in selects:
            (x,) = tensors_of(args, kwargs)
            chosen: Any = cut.smaller(selects[id(layer)])
            args, kwargs = keras.tree.map_structure(
                lambda given: chosen(x) if given is x else given, (args, kwargs)
            )
        if empty is not None and id(layer) in empty.skips:
            return empty.connect(layer, copy, args, kwargs)
        try:
            return copy(*args, **kwargs)
        except Exception as error:  # numbers in the user's code do not fit
            if id(layer) not in entered:
                raise
            raise _Unlike(layer.name) from error

    rewired = [
        id(graph)
        for graph in graphs_of(model)
        if any(id(x) in bypassed or id(x) in selects for x in graph.layers)
    ]
    cause: BaseException | None = None
    for configured in (True, False):
        cut = _Cut(channels, removed, biases, configured)
        copier = Copier(
            replace=cut.smaller,
            connect=connect
            if entered or selects or (empty and empty.skips)
            else None,
            rewired=rewired,
            values=values,
            resizing=Resizing(
                cut.resized(), cut.part, cut.input_shape, cut.biases()
            ),
            keep_class=keep_class,
        )
        # What a configuration says beside sizes is seen by what it computes.
        try:
            small = copier.copy(model)
            wrong = cut.unlike(copier, values)
        except _Unlike as error:
            wrong, cause = {str(error)}, error.__cause__
        if not wrong:
            break
    if wrong:
        raise ValueError(
            "A layer does not compute the same without what is removed inside "
            "it: does its `call` use numbers of its own where it should ask "
            "its layers? Draw groups without those inside it. Received: "
            f"{sorted(wrong)}"
        ) from cause
    _hold(model, small, masks or {}, copier.keys, cut)
    if inherit_optimizer and small.compiled:
        copier.inherit_optimizer(model, small)
    return small


def _hold(
    model: keras.Model,
    small: keras.Model,
    masks: Mapping[str, np.ndarray],
    keys: Mapping[str, str],
    cut: _Cut,
) -> None:
    """Put masks in force where they prune something of the copy."""
    named = named_weights(model)
    before = masking.attached_masks(small) if masks else {}
    held = {}
    for key, mask in masks.items():
        if key in keys:
            left = cut.part(named[key], np.asarray(mask))
            if not left.all():
                held[keys[key]] = left & before.get(keys[key], True)
    if held:
        masking.enforce(small, held)


class _Unlike(Exception):
    """A rebuilt layer cannot be called as the layer was."""


class _Cut:
    """What the channels that go take with them."""

    def __init__(
        self,
        channels: Channels,
        removed: np.ndarray,
        biases: Values,
        configured: bool = True,
    ) -> None:
        self.channels = channels
        self.removed = removed
        self._biases = biases
        self._configured = configured
        graph = channels.graph
        self._blocks = {id(b.layer): b for b in graph.blocks}
        # What each layer reads in its first call, by the argument's name.
        self._reads: dict[int, dict[str, int]] = {}
        for call in graph.calls:
            if isinstance(call.operation, keras.layers.Layer):
                names = argument_names(call.operation, call.args, call.kwargs)
                self._read(call.operation, names, call.inputs)
        for entry in graph.entries:
            self._read(entry.model, ("inputs",), entry.inputs[:1])
        for block in graph.blocks:
            self._read(block.layer, block.names, block.inputs)
        self._kept = {
            id(variable): {
                axis: ~removed[atoms]
                for axis, atoms in entry.slices.get(variable.name, {}).items()
            }
            for entry in channels.layers.values()
            for variable in getattr(entry.layer, "weights", ())
        }

    def resized(self) -> set[int]:
        """Layers at which channels go, in or out."""
        shrunk = {
            tensor
            for tensor, flow in self.channels.flows.items()
            if flow.atoms is not None and self.removed[flow.atoms].any()
        }
        graph = self.channels.graph
        return {
            id(call.operation)
            for call in graph.calls
            if shrunk & {*call.inputs, *call.outputs}
        } | {
            id(block.layer)
            for block in graph.blocks
            if shrunk & {*block.inputs, *block.outputs}
        }

    def part(self, variable: keras.Variable, value: np.ndarray) -> np.ndarray:
        """What is left of an array of the variable's shape."""
        for axis, kept in self._kept.get(id(variable), {}).items():
            if not kept.all():
                value = np.compress(kept, value, axis=axis)
        return value

    def biases(self) -> Values:
        """The new biases in the size that their layers will have."""
        return {
            key: bias[~self.removed[made]]
            for key, bias in self._biases.items()
            if (made := self.channels.layers[key].made) is not None
        }

    def smaller(self, layer: keras.Operation) -> keras.Operation | None:
        """The layer with fewer channels; `None` if it has as many."""
        entry = self.channels.layers.get(id(layer))
        changes = {
            key: count(*(int((~self.removed[a]).sum()) for a in lists))
            for key, (count, lists) in (entry.config if entry else {}).items()
            if any(self.removed[atoms].any() for atoms in lists)
        }
        choice = entry.choice if entry else None
        if choice and self.removed[[*choice.read, *choice.made]].any():
            # Of a layer that goes whole, what it takes may be gone.
            places = (np.cumsum(~self.removed[choice.read]) - 1).clip(0)
            stay = choice.indices[~self.removed[choice.made]]
            changes["indices"] = places[stay].tolist()
        if id(layer) in self._biases and not getattr(layer, "use_bias", True):
            changes["use_bias"] = True
        if changes:
            return copy_of(layer, **changes)
        small = self._block(layer) if id(layer) in self._blocks else None
        if small is None and not is_saved(layer):
            # Its model may have been all that could be saved.
            with contextlib.suppress(ValueError):
                return recorded(layer)
        return small

    # --- layers inside layers ------------------------------------------------

    def _read(
        self,
        layer: keras.layers.Layer,
        names: tuple[str, ...],
        tensors: tuple[int, ...],
    ) -> None:
        pairs = zip(names, tensors, strict=False)
        self._reads.setdefault(id(layer), dict(pairs))

    def _shape(self, variable: keras.Variable) -> tuple[int, ...]:
        """The shape of a variable in the copy."""
        kept = self._kept.get(id(variable), {})
        return tuple(
            int(kept[axis].sum()) if axis in kept else size
            for axis, size in enumerate(variable.shape)
        )

    def _is_cut(self, layer: keras.layers.Layer) -> bool:
        return any(self._shape(v) != tuple(v.shape) for v in layer.variables)

    def _block(self, layer: Any) -> keras.layers.Layer | None:
        """A layer with smaller ones inside it; `None` if none is smaller."""
        if not self._is_cut(layer):
            return None
        build = self._build_config(layer)
        shapes = [self._shape(v) for v in layer.variables]

        def has_shapes(probe: Any) -> bool:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    probe.build_from_config(build or {})
                    if len(probe.variables) != len(shapes):
                        # What no `build` makes is made by a call.
                        block = self._blocks[id(layer)]
                        block.run(probe, block.symbols)
            except (ValueError, TypeError):
                return False
            return [tuple(v.shape) for v in probe.variables] == shapes

        if self._configured:
            changes = by_config(
                layer,
                self._sizes(layer),
                lambda changes: has_shapes(copy_of(layer, **changes)),
                self._width(layer),
            )
            if changes is not None:
                small = copy_of(layer, **changes)
                return small if is_saved(small) else recorded(small)

        def exchanged(parts: Collection[Any]) -> keras.layers.Layer:
            return recorded(
                layer,
                [
                    (self._part(part), places, self._build_config(part))
                    for part, places in parts_of(layer)
                    if part in parts
                ],
            )

        inside = [part for part, _ in parts_of(layer)]
        small = exchanged([part for part in inside if self._is_cut(part)])
        if has_shapes(copy_of(small)):
            return small
        # Parts of the size they had get another one from what is read.
        return exchanged([part for part in inside if part.variables])

    def _width(self, layer: Any) -> dict[str, Any]:
        """How wide a layer says it answers that else goes by what it reads."""
        if usable_config(layer).get("output_shape", ()) is not None:
            return {}
        graph, tensor = self.channels.graph, self._blocks[id(layer)].outputs[0]
        axis = len(graph.shapes[tensor]) - 1
        size = graph.shapes[tensor][axis]
        gone = self._gone(tensor)
        if gone is not None and gone[0] == axis:
            size = int((~gone[1]).sum())
        return {} if size is None else {"output_shape": int(size)}

    def _part(self, layer: Any) -> Any:
        if type(layer) is keras.Sequential:
            return keras.Sequential(
                [self._part(inner) for inner in layer.layers], name=layer.name
            )
        if isinstance(layer, keras.Model):
            raise ValueError(
                "A functional model inside a layer cannot get other sizes. "
                f"Received: {layer.name}"
            )
        return self.smaller(layer) or copy_of(layer)

    def _sizes(self, layer: Any) -> dict[int, int]:
        """What becomes of sizes, where it is one thing."""
        found: dict[int, set[int]] = {}
        for variable in layer.variables:
            for axis, kept in self._kept.get(id(variable), {}).items():
                if not kept.all():
                    size = int(variable.shape[axis])
                    found.setdefault(size, set()).add(int(kept.sum()))
        return {a: min(b) for a, b in found.items() if len(b) == 1}

    def _build_config(self, layer: Any) -> dict[str, Any] | None:
        """What a layer is built from, in the sizes of the copy."""
        config = layer.get_build_config()
        if not config:
            return None
        reads = self._reads.get(id(layer), {})

        def smaller(shape: Any, name: str | None) -> Any:
            tensor = next(iter(reads.values()), None)
            if name is not None:
                tensor = reads.get(name.removesuffix("_shape"))
            flow = None if tensor is None else self.channels.flows[tensor]
            if (
                flow is None
                or flow.atoms is None
                or flow.axis is None
                or not isinstance(shape, list | tuple)
                or len(shape) <= flow.axis
                or shape[flow.axis] != flow.atoms.size
            ):
                return shape
            sizes = list(shape)
            sizes[flow.axis] = int((~self.removed[flow.atoms]).sum())
            return tuple(sizes)

        config = dict(config)
        if "input_shape" in config:
            config["input_shape"] = smaller(config["input_shape"], None)
        if "shapes_dict" in config:
            config["shapes_dict"] = {
                name: smaller(shape, name)
                for name, shape in config["shapes_dict"].items()
            }
        return config

    def unlike(self, copier: Copier, values: Values) -> set[str]:
        """Rebuilt layers that do not compute what they did.

        Each is called beside the layer it was made of, in which all that is
        removed is zero, on random values.
        """
        inner = {
            id(part)
            for block in self.channels.graph.blocks
            for part in layers_of(block.layer)
            if part is not block.layer
        }
        return {
            block.layer.name
            for block in self.channels.graph.blocks
            if id(block.layer) not in inner
            and self._is_cut(block.layer)
            and not self._computes(block, copier, values)
        }

    def _computes(self, block: Block, copier: Copier, values: Values) -> bool:
        layer, small = block.layer, copier.copied(block.layer)
        rng = np.random.default_rng(0)
        given, fewer = [], []
        for symbol, tensor in zip(block.symbols, block.inputs, strict=True):
            gone = self._gone(tensor)
            array = _random(symbol, rng)
            given.append(_cleared(array, gone))
            fewer.append(_without(array, gone))
        with keras.StatelessScope() as scope:
            for variable in layer.variables:
                value = values.get(id(variable))
                if value is None:
                    value = view_of(variable)
                for axis, kept in self._kept.get(id(variable), {}).items():
                    value = _cleared(value, (axis, ~kept))
                scope.add_update((variable, tf.convert_to_tensor(value)))
            try:
                expected = keras.tree.flatten(block.run(layer, given))
            except Exception:  # the user's code, on values that mean nothing
                return True
            try:
                results = keras.tree.flatten(block.run(small, fewer))
            except Exception:  # the user's code, with numbers of its own
                return False
        return all(
            _close(
                np.array(keras.ops.convert_to_numpy(result)),
                _without(
                    np.array(keras.ops.convert_to_numpy(one)),
                    self._gone(tensor),
                ),
                layer.compute_dtype,
            )
            for one, result, tensor in zip(
                expected, results, block.outputs, strict=True
            )
        )

    def _gone(self, tensor: int) -> tuple[int, np.ndarray] | None:
        """Along which axis of a tensor what goes."""
        flow = self.channels.flows[tensor]
        if flow.atoms is None or flow.axis is None:
            return None
        return flow.axis, self.removed[flow.atoms]

    def input_shape(
        self, model: keras.Model, index: int, shape: Shape
    ) -> Shape:
        """The shape of a nested model's input."""
        for entry in self.channels.graph.entries:
            if entry.model is model:
                flow = self.channels.flows[entry.inputs[index]]
                if flow.atoms is not None and flow.axis is not None:
                    sizes = list(shape)
                    if sizes[flow.axis] is not None:
                        sizes[flow.axis] = int(
                            (~self.removed[flow.atoms]).sum()
                        )
                    return tuple(sizes)
        return shape


def _random(symbol: Any, rng: np.random.Generator) -> np.ndarray:
    dtype = keras.backend.standardize_dtype(symbol.dtype)
    if "float" in dtype:
        return rng.normal(size=symbol.shape)
    return rng.integers(0, 2, size=symbol.shape)


def _cleared(
    value: np.ndarray, gone: tuple[int, np.ndarray] | None
) -> np.ndarray:
    if gone is None or not gone[1].any():
        return value
    axis, which = gone
    layout = [-1 if i == axis else 1 for i in range(value.ndim)]
    return np.where(which.reshape(layout), np.zeros((), value.dtype), value)


def _without(
    value: np.ndarray, gone: tuple[int, np.ndarray] | None
) -> np.ndarray:
    if gone is None or not gone[1].any():
        return value
    return np.compress(~gone[1], value, axis=gone[0])


def _close(one: np.ndarray, other: np.ndarray, dtype: str) -> bool:
    if one.shape != other.shape:
        return False
    rate = {"float64": 1e-8, "float32": 1e-3}.get(dtype, 0.1)
    one, other = one.astype(np.float64), other.astype(np.float64)
    size = float(np.max(np.abs(other[np.isfinite(other)]), initial=1.0))
    return np.allclose(one, other, rtol=0, atol=rate * size, equal_nan=True)
