"""The calls of a functional or sequential model, as one record.

The record is made with `keras.models.clone_model`: its ``call_function`` sees
every call of the graph in order. Stand-ins answer instead of the layers, so
nothing is computed and the model's own layers gain no new connections.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from tf_tickets.selection import check_keras

Shape = tuple[int | None, ...]
# (graph, layer, args, kwargs, numbers it reads, what it makes) -> the numbers
# of what it returns, once its inner calls are in the graph; `None` if they
# cannot be seen.
Enter = Callable[..., tuple[int, ...] | None]
InputShape = (
    Sequence[int | None]
    | Sequence[Sequence[int | None]]
    | Mapping[str, Sequence[int | None]]
)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of one operation; tensors are known by number.

    Attributes:
        operation: A layer, or a function of `keras.ops` in the graph.
        inputs: Numbers of the tensors it reads, in the order of its
            arguments.
        outputs: Numbers of the tensors it makes.
        args: Its positional arguments; tensors stand there as symbols.
        kwargs: Its keyword arguments.
        within: Name of the layer that makes the call, if that was entered.
    """

    operation: keras.Operation
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    within: str = ""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One use of a nested model: which tensors enter it."""

    model: keras.Model
    inputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Block:
    """One call of a layer whose inner calls are recorded in its place.

    Attributes:
        layer: The layer, as of the user's own class, that calls others.
        inputs: Numbers of the tensors it reads, in the order of its
            arguments.
        outputs: Numbers of the tensors it returns.
        names: What its arguments that are tensors are called.
        symbols: These arguments, without open sizes.
        args: Its positional arguments; the symbols stand among them.
        kwargs: Its keyword arguments.
    """

    layer: keras.layers.Layer
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    names: tuple[str, ...]
    symbols: tuple[Any, ...]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def run(self, layer: keras.layers.Layer, values: Sequence[Any]) -> Any:
        """What a layer makes of values in place of the symbols."""
        known = {id(s): v for s, v in zip(self.symbols, values, strict=True)}
        args, kwargs = keras.tree.map_structure(
            lambda x: known.get(id(x), x), (self.args, dict(self.kwargs))
        )
        return layer(*args, **kwargs)


@dataclasses.dataclass
class Graph:
    """All calls of a model in the order in which they run.

    Attributes:
        calls: The calls.
        entries: The uses of nested models whose calls are among ``calls``.
        shapes: Shape of each tensor, by its number.
        inputs: The model's inputs.
        outputs: The model's outputs.
        blocks: The layers whose inner calls are among ``calls``.
    """

    calls: list[Call]
    entries: list[Entry]
    shapes: list[Shape]
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    blocks: list[Block] = dataclasses.field(default_factory=list)

    def new_tensor(self, shape: Sequence[int | None]) -> int:
        """The number of a new tensor."""
        self.shapes.append(tuple(shape))
        return len(self.shapes) - 1

    def readers(self, tensor: int) -> list[Call]:
        """The calls that read a tensor."""
        return [call for call in self.calls if tensor in call.inputs]

    def maker(self, tensor: int) -> Call | None:
        """The call that made a tensor; `None` for a model input."""
        return next((c for c in self.calls if tensor in c.outputs), None)

    def uses(self, operation: keras.Operation) -> int:
        """How many times an operation is called."""
        return sum(call.operation is operation for call in self.calls)


def is_graph(layer: object) -> bool:
    """Whether ``layer`` is a model whose calls are known as a graph.

    It is if it was made of inputs and outputs, or of a list of layers and an
    input shape, and its class does not call it in another way.
    """
    if isinstance(layer, keras.Sequential):
        # Without an input shape a sequential model knows no tensors.
        return (
            type(layer).call is keras.Sequential.call
            and layer.built
            and bool(getattr(layer, "inputs", None))
        )
    return (
        isinstance(layer, keras.Model)
        and isinstance(layer, keras.Function)
        and type(layer).call is _functional().call
    )


def require_graph(model: object, what: str, advice: str = "") -> None:
    """Raise unless the calls inside ``model`` are known.

    Args:
        model: What was given as a model.
        what: What needs to know them, as the subject of a sentence.
        advice: What to do instead, as a sentence.

    Raises:
        ValueError: If they are not.
    """
    check_keras(model)
    if not is_graph(model):
        raise ValueError(
            f"{what} needs a functional model or a sequential one with a "
            "known input shape: the calls inside a subclassed model cannot "
            f"be seen. {advice + ' ' if advice else ''}Received: "
            f"{type(model).__name__} {getattr(model, 'name', model)!r}"
        )


def functional_view(model: keras.Model) -> keras.Model:
    """An uncompiled functional model over the layers of ``model``.

    Cloning a compiled model would also clone its loss and metrics, and fail
    where those cannot be serialized.
    """
    if isinstance(model, keras.Sequential):
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    return keras.Model(model.input, model.output, name=model.name)


def graphs_of(model: keras.Model) -> list[keras.Model]:
    """``model`` and the models nested in it that are graphs, each once."""
    found = {id(model): model}
    for layer in model.layers:
        if is_graph(layer) and id(layer) not in found:
            found.update({id(m): m for m in graphs_of(layer)})
    return list(found.values())


def trace(
    model: keras.Model,
    input_shape: InputShape | None = None,
    *,
    inline: bool = True,
    enter: Enter | None = None,
) -> Graph:
    """Record the calls of ``model``.

    Args:
        model: A functional model, or a sequential one that is built.
        input_shape: Without the batch axis, for a model that leaves sizes
            open: of its one input, or of each, in a list or by name; `None`:
            as the model says.
        inline: Record the calls inside nested models in place of the call
            of each; otherwise a nested model is one call.
        enter: Records the calls inside a layer; see
            `tf_tickets.network.inside`. Default: a layer is one call.

    Returns:
        The graph.

    Raises:
        ValueError: If the model is neither.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(3, name="hidden"),
    ...     keras.Sequential([keras.layers.Dense(2, name="inner")], name="two"),
    ... ])
    >>> [call.operation.name for call in trace(model).calls]
    ['hidden', 'inner']
    >>> [call.operation.name for call in trace(model, inline=False).calls]
    ['hidden', 'two']
    """
    require_graph(model, "Following the calls of a model")
    graph = Graph([], [], [])
    shapes = [tuple(x.shape) for x in model.inputs]
    if input_shape is not None:
        shapes = _given_shapes(model, shapes, input_shape)
    graph.inputs = tuple(graph.new_tensor(shape) for shape in shapes)
    graph.outputs = record(graph, model, graph.inputs, inline, enter=enter)
    return graph


def _given_shapes(
    model: keras.Model, shapes: list[Shape], given: InputShape
) -> list[Shape]:
    """The shapes of the model's inputs as they were given."""
    found: list[Any] = [given]
    if isinstance(given, Mapping):
        names = [x.name for x in model.inputs]
        own = getattr(model, "input", None)  # some have none of their own
        if isinstance(own, dict) and own.keys() == given.keys():
            # Keys need not be names; the inputs come in the order of the keys.
            names = sorted(own, key=lambda key: _place(own[key], model.inputs))
        found = [given.get(name) for name in names]
    elif len(given) and all(hasattr(one, "__len__") for one in given):
        found = list(given)
    if len(found) != len(shapes) or any(
        one is None or len(shape) != len(one) + 1
        for one, shape in zip(found, shapes, strict=False)
    ):
        raise ValueError(
            "`input_shape` must be that of the model's one input, without "
            "the batch axis, or have the shape of each, in a list or by name. "
            f"Received: input_shape={given!r}, inputs of shapes {shapes}"
        )
    return [(None, *one) for one in found]


def _place(tensor: Any, tensors: Sequence[Any]) -> int:
    return next(i for i, one in enumerate(tensors) if one is tensor)


def record(
    graph: Graph,
    model: keras.Model,
    numbers: tuple[int, ...],
    inline: bool = True,
    *,
    enter: Enter | None = None,
    original: Callable[[Any], Any] = lambda operation: operation,
    shapes: Sequence[Shape] | None = None,
    within: str = "",
) -> tuple[int, ...]:
    """Add the calls of ``model`` to a graph.

    Args:
        graph: Which grows.
        model: A functional or sequential model.
        numbers: Those of the tensors that enter it.
        inline: As in `trace`.
        enter: As in `trace`.
        original: What to record in place of an operation of ``model``.
        shapes: Of the tensors that enter it. Default: as the graph says.
        within: As in a `Call`.

    Returns:
        The numbers of its outputs.
    """
    view = keras.Model(model.inputs, model.outputs, name=model.name)
    # clone_model makes the tensors; ids stay valid while they are held here.
    known: dict[int, int] = {}
    held: list[Any] = []

    def remember(tensor: Any, number: int) -> None:
        known[id(tensor)] = number
        held.append(tensor)

    inputs = []
    shapes = shapes or [graph.shapes[number] for number in numbers]
    for tensor, number, shape in zip(view.inputs, numbers, shapes, strict=True):
        symbol = keras.Input(
            batch_shape=shape,
            dtype=tensor.dtype,
            sparse=tensor.sparse,
            name=tensor.name,
        )
        remember(symbol, number)
        inputs.append(symbol)

    def call_function(operation: Any, *args: Any, **kwargs: Any) -> Any:
        given, options = as_called(operation, args, kwargs)
        options.pop("training", None)
        spec = keras.tree.map_structure(
            lambda t: keras.KerasTensor(t.shape, t.dtype, sparse=t.sparse),
            operation.compute_output_spec(*given, **options),
        )
        made = _StandIn(spec)(*args, **kwargs)
        is_model = is_graph(operation)
        ordered = _in_order(operation, args) if is_model else args
        read = tuple(known[id(t)] for t in tensors_of(ordered, kwargs))
        made_flat = keras.tree.flatten(made)
        if inline and is_model and len(read) == len(operation.inputs):
            graph.entries.append(Entry(original(operation), read))
            numbers = record(
                graph,
                operation,
                read,
                inline,
                enter=enter,
                original=original,
                shapes=[tuple(t.shape) for t in tensors_of(ordered, kwargs)],
                within=within,
            )
        else:
            inside = None
            if enter is not None and isinstance(operation, keras.layers.Layer):
                inside = enter(graph, operation, args, kwargs, read, made_flat)
            if inside is None:
                inside = tuple(graph.new_tensor(t.shape) for t in made_flat)
                graph.calls.append(
                    Call(
                        original(operation), read, inside, args, kwargs, within
                    )
                )
            numbers = inside
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


def tensors_of(args: Any, kwargs: Any) -> list[Any]:
    """The symbolic tensors among arguments, in the order of a `Call`."""
    return [
        t
        for t in keras.tree.flatten((args, kwargs))
        if isinstance(t, keras.KerasTensor)
    ]


def as_called(
    operation: Any, args: Any, kwargs: Any
) -> tuple[Any, dict[str, Any]]:
    """Arguments in the dtypes in which a layer's `call` sees them."""
    dtype = getattr(operation, "compute_dtype", None)
    if dtype is None or not getattr(operation, "autocast", False):
        return args, dict(kwargs)

    def cast(x: Any) -> Any:
        if not isinstance(x, keras.KerasTensor) or "float" not in x.dtype:
            return x
        return keras.KerasTensor(x.shape, dtype, sparse=x.sparse)

    given, options = keras.tree.map_structure(cast, (args, dict(kwargs)))
    return given, options


def _in_order(model: keras.Model, args: tuple[Any, ...]) -> tuple[Any, ...]:
    # Keras lets a dictionary stand for a list of named inputs; flattened, it
    # would come in the order of its keys.
    if isinstance(args[0], dict) and not isinstance(model.input, dict):
        return ([args[0][x.name] for x in model.inputs], *args[1:])
    return args


@functools.cache
def _functional() -> Any:
    """The class of functional models, which has no public name."""
    x = keras.Input((1,), name="x")
    return type(keras.Model(x, x, name="functional"))


class _StandIn(keras.Operation):
    """Answers with tensors of the right shapes and computes nothing."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.spec = spec

    def call(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("A stand-in is only called symbolically.")

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self.spec
