"""The calls of a functional or sequential model, nested models inlined.

The record is made with `keras.models.clone_model`: its ``call_function`` sees
every call of the graph in order. Stand-ins answer instead of the layers, so
nothing is computed and the model's own layers gain no new connections.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras

Shape = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of one operation.

    Attributes:
        operation: A layer, or a function of `keras.ops` in the graph.
        inputs: Numbers of the tensors it reads, in the order of its
            arguments.
        outputs: Numbers of the tensors it makes.
        args: Its positional arguments; tensors stand there as symbols.
        kwargs: Its keyword arguments.
    """

    operation: keras.Operation
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One use of a nested model: which tensors enter it."""

    model: keras.Model
    inputs: tuple[int, ...]


@dataclasses.dataclass
class Graph:
    """All calls of a model in the order in which they run.

    Attributes:
        calls: The calls, those inside nested models included.
        entries: The uses of nested models.
        shapes: Shape of each tensor, by its number.
        inputs: The model's inputs.
        outputs: The model's outputs.
    """

    calls: list[Call]
    entries: list[Entry]
    shapes: list[Shape]
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()

    def new_tensor(self, shape: Sequence[int | None]) -> int:
        """The number of a new tensor."""
        self.shapes.append(tuple(shape))
        return len(self.shapes) - 1


class _StandIn(keras.Operation):
    """Answers with tensors of the right shapes and computes nothing."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.spec = spec

    def call(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("A stand-in is only called symbolically.")

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self.spec


def is_graph(layer: object) -> bool:
    """Whether ``layer`` is a model whose calls are known as a graph."""
    if isinstance(layer, keras.Sequential):
        if not layer.built:
            return False
        # Without an input shape a sequential model knows no tensors.
        return bool(getattr(layer, "inputs", None))
    if not isinstance(layer, keras.Function) or not isinstance(
        layer, keras.Model
    ):
        return False
    # A subclass may be built like a functional model and called otherwise.
    return type(layer).call is _plain(layer).call


def trace(
    model: keras.Model, input_shape: Sequence[int | None] | None = None
) -> Graph:
    """Record the calls of ``model``.

    Args:
        model: A functional model, or a sequential one that is built.
        input_shape: Without the batch axis, for a model of one input that
            leaves sizes open; `None`: as the model says.

    Returns:
        The graph.

    Raises:
        ValueError: If the model is neither.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(3, name="hidden"),
    ...     keras.Sequential([keras.layers.Dense(2, name="inner")]),
    ... ])
    >>> [call.operation.name for call in trace(model).calls]
    ['hidden', 'inner']
    """
    if not is_graph(model):
        raise ValueError(
            "Channels can be followed only through a functional model or a "
            "built sequential one: the calls inside a subclassed model are "
            f"not known. Received: {type(model).__name__} "
            f"{getattr(model, 'name', model)!r}"
        )
    graph = Graph([], [], [])
    shapes = [tuple(x.shape) for x in model.inputs]
    if input_shape is not None:
        if len(shapes) != 1 or len(shapes[0]) != len(input_shape) + 1:
            raise ValueError(
                "`input_shape` must be that of the model's one input, without "
                f"the batch axis. Received: input_shape={input_shape!r}, "
                f"inputs of shapes {shapes}"
            )
        shapes = [(None, *input_shape)]
    graph.inputs = tuple(graph.new_tensor(shape) for shape in shapes)
    graph.outputs = _record(graph, model, graph.inputs)
    return graph


def functional_view(model: keras.Model) -> keras.Model:
    """An uncompiled functional model over the layers of ``model``.

    Cloning a compiled model would also clone its loss and metrics, and fail
    where those cannot be serialized.
    """
    if isinstance(model, keras.Sequential):
        return keras.Model(model.inputs, model.outputs, name=model.name)
    return keras.Model(model.input, model.output, name=model.name)


def _record(
    graph: Graph, model: keras.Model, numbers: tuple[int, ...]
) -> tuple[int, ...]:
    view = keras.Model(model.inputs, model.outputs)
    # clone_model makes the tensors; ids stay valid while they are held here.
    known: dict[int, int] = {}
    held: list[Any] = []

    def remember(tensor: Any, number: int) -> None:
        known[id(tensor)] = number
        held.append(tensor)

    inputs = []
    for tensor, number in zip(view.inputs, numbers, strict=True):
        symbol = keras.Input(
            batch_shape=graph.shapes[number],
            dtype=tensor.dtype,
            sparse=tensor.sparse,
        )
        remember(symbol, number)
        inputs.append(symbol)

    def call_function(operation: Any, *args: Any, **kwargs: Any) -> Any:
        spec = keras.tree.map_structure(
            lambda t: keras.KerasTensor(t.shape, t.dtype, sparse=t.sparse),
            operation.compute_output_spec(
                *args,
                **{k: v for k, v in kwargs.items() if k != "training"},
            ),
        )
        made = _StandIn(spec)(*args, **kwargs)
        read = tuple(
            known[id(t)]
            for t in keras.tree.flatten((args, kwargs))
            if isinstance(t, keras.KerasTensor)
        )
        made_flat = keras.tree.flatten(made)
        if is_graph(operation) and len(read) == len(operation.inputs):
            graph.entries.append(Entry(operation, read))
            numbers = _record(graph, operation, read)
        else:
            numbers = tuple(graph.new_tensor(t.shape) for t in made_flat)
            graph.calls.append(Call(operation, read, numbers, args, kwargs))
        for tensor, number in zip(made_flat, numbers, strict=True):
            remember(tensor, number)
        return made

    clone = keras.models.clone_model(
        view,
        input_tensors=inputs,
        clone_function=lambda layer: layer,
        call_function=call_function,
    )
    return tuple(known[id(t)] for t in clone.outputs)


def _plain(model: keras.Model) -> type[keras.Model]:
    return type(functional_view(model))
