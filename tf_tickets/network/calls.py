"""Who feeds whom inside a functional or sequential model."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of one operation; tensors are known by number."""

    operation: keras.Operation
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Calls:
    """The calls of one model in the order in which they run.

    Nested models stand there as one call each.

    Attributes:
        calls: In running order.
        inputs: Numbers of the model's inputs.
        outputs: Numbers of the model's outputs.
        shapes: Shape of each tensor, by its number.
    """

    calls: tuple[Call, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    shapes: tuple[tuple[int | None, ...], ...]

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
    """Whether ``layer`` is a model whose inner calls are known."""
    if isinstance(layer, keras.Sequential):
        return bool(layer.built and getattr(layer, "inputs", None))
    if not isinstance(layer, keras.Model) or not isinstance(
        layer, keras.Function
    ):
        return False
    # A subclass may be built like a functional model and called otherwise.
    return type(layer).call is type(functional_view(layer)).call


def functional_view(model: keras.Model) -> keras.Model:
    """An uncompiled functional model over the layers of ``model``."""
    if isinstance(model, keras.Sequential):
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    return keras.Model(model.input, model.output, name=model.name)


def graphs_of(model: keras.Model) -> list[keras.Model]:
    """``model`` and the models nested in it that are graphs, each once."""
    found: dict[int, keras.Model] = {}

    def visit(one: keras.Model) -> None:
        if id(one) in found:
            return
        found[id(one)] = one
        for layer in one.layers:
            if is_graph(layer):
                visit(layer)

    visit(model)
    return list(found.values())


def calls_of(model: keras.Model) -> Calls:
    """Record the calls of one graph.

    `keras.models.clone_model` runs through the graph; stand-ins answer in
    place of the layers, which so gain no new connections.
    """
    view = functional_view(model)
    numbers: dict[int, int] = {}
    held: list[Any] = []  # an id is good while its tensor lives
    calls: list[Call] = []

    def number(tensor: Any) -> int:
        if id(tensor) not in numbers:
            numbers[id(tensor)] = len(held)
            held.append(tensor)
        return numbers[id(tensor)]

    inputs = [
        keras.Input(batch_shape=x.shape, dtype=x.dtype, sparse=x.sparse)
        for x in view.inputs
    ]
    entering = tuple(number(x) for x in inputs)

    def call_function(operation: Any, *args: Any, **kwargs: Any) -> Any:
        spec = operation.compute_output_spec(
            *args, **{k: v for k, v in kwargs.items() if k != "training"}
        )
        made = _StandIn(spec)(*args, **kwargs)
        read = [
            number(x)
            for x in keras.tree.flatten((args, kwargs))
            if isinstance(x, keras.KerasTensor)
        ]
        outputs = [number(x) for x in keras.tree.flatten(made)]
        calls.append(Call(operation, tuple(read), tuple(outputs)))
        return made

    clone = keras.models.clone_model(
        view,
        input_tensors=keras.tree.pack_sequence_as(view.input, inputs),
        clone_function=lambda layer: layer,
        call_function=call_function,
    )
    leaving = tuple(number(x) for x in clone.outputs)
    shapes = tuple(tuple(x.shape) for x in held)
    return Calls(tuple(calls), entering, leaving, shapes)


class _StandIn(keras.Operation):
    """Answers with tensors of the right shapes and computes nothing."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.spec = keras.tree.map_structure(
            lambda x: keras.KerasTensor(x.shape, x.dtype, sparse=x.sparse),
            spec,
        )

    def call(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("A stand-in is called symbolically only.")

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self.spec
