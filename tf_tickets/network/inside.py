"""The calls inside layers that call others, as transformer blocks do.

A functional model knows a block of the user's own class as one call. What that
block calls is seen by calling a copy of it on symbols: the layers inside then
leave the same record that a functional model is made of. Nothing is computed,
and the block itself is only read.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import warnings
from typing import Any

import keras

from tf_tickets.network.graph import (
    Block,
    Graph,
    Shape,
    is_graph,
    record,
    tensors_of,
    trace,
)
from tf_tickets.network.kinds import kind_of
from tf_tickets.network.layer_copy import copy_of, scope_of, twins
from tf_tickets.selection import layers_of

# What stands for sizes that are open: code that asks for them needs numbers.
_BATCH, _LENGTH = 3, 5
# Layers of Keras that are made of others that are known.
_ENTERED = (
    keras.layers.MultiHeadAttention,
    keras.layers.GroupQueryAttention,
)


def look_inside(model: keras.Model) -> Graph:
    """As `tf_tickets.network.graph.trace`, with the calls inside layers too.

    A layer is entered if the table of kinds has no rule for it and all that
    it does can be seen: it is copied by its configuration, its `call` runs on
    symbols, and calls the same layers in training and at inference.
    Elsewhere it is one call.

    Raises:
        ValueError: If the model is neither functional nor sequential.

    Example:

    >>> class Block(keras.layers.Layer):
    ...     def __init__(self, **options):
    ...         super().__init__(**options)
    ...         self.wide = keras.layers.Dense(8, activation="relu")
    ...         self.narrow = keras.layers.Dense(4)
    ...     def call(self, x):
    ...         return x + self.narrow(self.wide(x))
    >>> model = keras.Sequential([keras.Input((4,)), Block(name="block")])
    >>> [type(call.operation).__name__ for call in look_inside(model).calls]
    ['Dense', 'Dense', 'Add']
    """
    return trace(model, enter=_Entering())


class _Entering:
    """Enters layers, and knows whose copies it met inside them."""

    def __init__(self) -> None:
        self._originals: dict[int, keras.layers.Layer] = {}
        # Ids stay valid while what has them is held.
        self._held: list[Any] = []
        self._within = ""

    def original(self, operation: Any) -> Any:
        return self._originals.get(id(operation), operation)

    def __call__(
        self,
        graph: Graph,
        layer: keras.layers.Layer,
        args: Any,
        kwargs: Any,
        read: tuple[int, ...],
        made: list[Any],
    ) -> tuple[int, ...] | None:
        if not _may_be_entered(layer):
            return None
        symbols = _static(layer, args, kwargs)
        try:
            # Whatever the user's code does with symbols, or raises.
            view = self._called(layer, args, kwargs, symbols)
        except Exception:
            return None
        if view is None or not _agree(view.outputs, made):
            return None
        numbers: dict[int, int] = {}
        for tensor, number in zip(tensors_of(args, kwargs), read, strict=True):
            numbers.setdefault(id(symbols[id(tensor)]), number)
        entered = tuple(numbers[id(x)] for x in view.inputs)
        outer, self._within = self._within, self._within or layer.name
        returned = record(
            graph,
            view,
            entered,
            enter=self,
            original=self.original,
            shapes=[tuple(x.shape) for x in view.inputs],
            within=self._within,
        )
        self._within = outer
        for number, tensor in zip(returned, made, strict=True):
            if number not in entered:
                graph.shapes[number] = tuple(tensor.shape)
        graph.blocks.append(
            Block(
                self.original(layer),
                read,
                returned,
                argument_names(layer, args, kwargs),
                tuple(symbols[id(x)] for x in tensors_of(args, kwargs)),
                *keras.tree.map_structure(
                    lambda x: symbols.get(id(x), x), (args, dict(kwargs))
                ),
            )
        )
        return returned

    def _called(
        self,
        layer: keras.layers.Layer,
        args: Any,
        kwargs: Any,
        symbols: dict[int, Any],
    ) -> keras.Model | None:
        """A functional model of what a layer does; `None` if it varies."""
        copy = layer
        if id(layer) not in self._originals:
            copy = self._copied(layer, args, kwargs, symbols)
        args, kwargs = keras.tree.map_structure(
            lambda x: symbols.get(id(x), x), (args, dict(kwargs))
        )
        distinct = list({id(x): x for x in symbols.values()}.values())
        phases: list[dict[str, Any]] = [{}]
        if "training" in inspect.signature(copy.call).parameters:
            kwargs.pop("training", None)
            phases = [{"training": True}, {"training": False}]
        views = []
        for phase in phases:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outputs = keras.tree.flatten(
                    copy.call(*args, **kwargs, **phase)
                )
            if not all(isinstance(x, keras.KerasTensor) for x in outputs):
                return None
            views.append(keras.Model(distinct, outputs))
            self._held.append(views[-1])
        same = [[_same(o) for o in view.operations] for view in views]
        return views[-1] if all(one == same[0] for one in same) else None

    def _copied(
        self,
        layer: keras.layers.Layer,
        args: Any,
        kwargs: Any,
        symbols: dict[int, Any],
    ) -> keras.layers.Layer:
        """A copy of a layer, built, that answers symbols inside it."""
        copy = copy_of(layer)
        with scope_of(layer), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what no `build` makes
            config = layer.get_build_config() if layer.built else None
            if config and not copy.built:
                copy.build_from_config(config)
            if len(copy.variables) != len(layer.variables):
                args, kwargs = keras.tree.map_structure(
                    lambda x: symbols.get(id(x), x), (args, dict(kwargs))
                )
                copy(*args, **kwargs)
        for old, new in twins(layer, copy):
            self._originals[id(new)] = old
        for inner in layers_of(copy):
            if inner is not copy and not is_graph(inner):
                inner.compute_output_spec = functools.partial(_spec, inner)
        self._held.append(copy)
        return copy


def _may_be_entered(layer: keras.layers.Layer) -> bool:
    if kind_of(layer).channels is not None or isinstance(layer, keras.Model):
        return False
    if type(layer).__module__.partition(".")[0] == "keras":
        return type(layer) in _ENTERED
    package, _, name = keras.saving.get_registered_name(type(layer)).rpartition(
        ">"
    )
    return package != "tf_tickets" or name == "Recorded"


def _static(layer: Any, args: Any, kwargs: Any) -> dict[int, Any]:
    """``{id of an argument: a symbol of its shape without open sizes}``."""
    count = itertools.count()

    def dtype(x: Any) -> str:
        # As the layer casts what it is called with.
        casts = layer.autocast and "float" in x.dtype
        return str(layer.compute_dtype if casts else x.dtype)

    return {
        id(x): keras.Input(
            batch_shape=_closed(tuple(x.shape)),
            dtype=dtype(x),
            name=f"inside_{next(count)}",
        )
        for x in tensors_of(args, kwargs)
    }


def _closed(shape: Shape) -> tuple[int, ...]:
    # Images are halved a few times on their way.
    length = 32 if len(shape) > 3 else _LENGTH
    return tuple(
        size if size is not None else (length if axis else _BATCH)
        for axis, size in enumerate(shape)
    )


def _spec(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
    """What a layer makes of symbols, with all sizes.

    What it says itself may leave sizes open, or not know all arguments of its
    `call`; then the call is traced.
    """
    with contextlib.suppress(TypeError):
        made = type(layer).compute_output_spec(layer, *args, **kwargs)
        if all(None not in x.shape for x in keras.tree.flatten(made)):
            return made
    return keras.Operation.compute_output_spec(layer, *args, **kwargs)


def _same(operation: Any) -> Any:
    is_layer = isinstance(operation, keras.layers.Layer)
    return id(operation) if is_layer else type(operation)


def _agree(outputs: list[Any], made: list[Any]) -> bool:
    """Whether shapes are those that the layer was known to make."""
    return len(outputs) == len(made) and all(
        len(one.shape) == len(other.shape)
        and all(
            b is None or a is None or a == b
            for a, b in zip(one.shape, other.shape, strict=True)
        )
        for one, other in zip(outputs, made, strict=True)
    )


def argument_names(layer: Any, args: Any, kwargs: Any) -> tuple[str, ...]:
    """What the arguments of `call` that are tensors are called, in order."""
    parameters = list(inspect.signature(layer.call).parameters)
    names = [
        (x, parameters[i] if i < len(parameters) else "")
        for i, arg in enumerate(args)
        for x in tensors_of((arg,), {})
    ]
    names += [
        (x, name)
        for name, arg in sorted(kwargs.items())
        for x in tensors_of((arg,), {})
    ]
    return tuple(name for _, name in names)
