"""The module behind an exported model: weights, decoders, endpoints."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets.export import decoding, packing
from tf_tickets.export.kernels import outputs_of
from tf_tickets.export.products import Method
from tf_tickets.selection import named_weights, view_of

# What decoding adds to the graph, once and for each tensor, generously: where
# packing saves less, the directory would not shrink.
GRAPH_BYTES = 40_000
TENSOR_BYTES = 1_000

# What the TF 2 checkpoint calls the variables of the module.
PACKED_NAME = "packed/.ATTRIBUTES/VARIABLE_VALUE"
KEPT_NAME = "kept/{}/.ATTRIBUTES/VARIABLE_VALUE"


@dataclasses.dataclass(frozen=True)
class Choice:
    """How one kernel is computed when it is served."""

    layer: keras.layers.Layer
    method: Method


@dataclasses.dataclass(frozen=True)
class Packed:
    """The tensors of a model that are stored packed.

    Attributes:
        specs: ``{key: where it lies}``.
        stamps: ``{key: fingerprint of its bytes}``.
        blob: All bytes.
    """

    specs: Mapping[str, packing.Spec]
    stamps: Mapping[str, np.ndarray]
    blob: np.ndarray


def pack_model(
    model: keras.Model,
    *,
    values: str | None,
    choices: Mapping[str, Choice],
) -> Packed:
    """Pack every weight of ``model`` that gets smaller by it.

    Args:
        model: A built model.
        values: Type to store float values in; their own if `None`.
        choices: Kernels that are not computed densely, by key.
    """
    weights = named_weights(model)
    sizes = {key: _sizes(v, values) for key, v in weights.items()}
    saved = {key: whole - packed for key, (whole, packed) in sizes.items()}
    worth = {key for key, size in saved.items() if size > TENSOR_BYTES}
    if sum(saved[key] for key in worth) <= GRAPH_BYTES:
        worth = set()
    chosen = [key for key in weights if key in worth or key in choices]
    specs, stamps, begin = {}, {}, 0
    # Filled in place: a second copy of everything would be felt.
    blob = np.empty(sum(sizes[key][1] for key in chosen), np.uint8)
    for key in chosen:
        spec, data = packing.pack(
            key,
            view_of(weights[key]),
            stored=_stored(weights[key], values),
            order=choices[key].method.order if key in choices else None,
            out=blob[begin : begin + sizes[key][1]],
        )
        specs[key] = dataclasses.replace(spec, begin=begin)
        stamps[key] = decoding.fingerprint(data)
        begin += spec.bytes
    return Packed(specs, stamps, blob)


def build(
    model: keras.Model,
    endpoints: Mapping[str, tuple[Callable[..., Any], list[Any]]],
    packed: Packed,
    choices: Mapping[str, Choice],
) -> tf.Module:
    """A module to save, with one `tf.function` for each endpoint.

    Args:
        model: The model.
        endpoints: ``{name: (function, input signature)}``.
        packed: What is stored packed; all else is stored as it is.
        choices: Kernels that are not computed densely; all of them packed.
    """
    module = tf.Module(name="tf_tickets_export")
    weights = named_weights(model)
    kept = [v for key, v in weights.items() if key not in packed.specs]
    module.kept = [variable.value for variable in kept]
    if packed.specs:
        # On the module, not on the resources, which are restored first.
        module.packed = tf.Variable(
            packed.blob, trainable=False, dtype=tf.uint8, name="packed"
        )
    plan = _plan(packed, choices)
    module.decoded = {
        dtype: _resource(dtype, entries, module, packed, choices)
        for dtype, entries in plan.items()
    }
    module.tables = _tables(model)

    def substituting(function: Callable[..., Any]) -> Callable[..., Any]:
        def endpoint(*args: Any) -> Any:
            made: dict[str, dict[str, tf.Tensor]] = {}
            for dtype, entries in plan.items():
                item = module.decoded[dtype].read()
                for index, entry in enumerate(entries):
                    tensors = made.setdefault(entry.key, {})
                    tensors[entry.name] = item(index, entry.shape)
            values = [
                (weights[key], tensors["kernel"])
                for key, tensors in made.items()
                if key not in choices
            ]
            with contextlib.ExitStack() as stack:
                scope = stack.enter_context(_RecordingScope(values))
                for key, choice in choices.items():
                    call = outputs_of(choice.layer, choice.method, made[key])
                    stack.enter_context(replaced_call(choice.layer, call))
                outputs = function(*args)
            for variable in scope.updated:
                variable.assign(scope.get_current_value(variable))
            return outputs

        return endpoint

    traced = []
    for name, (function, signature) in endpoints.items():
        served = tf.function(
            substituting(function) if packed.specs else function,
            input_signature=signature,
            autograph=False,
        )
        traced += list(served.get_concrete_function().variables)
        setattr(module, name, served)
    tracked = {id(variable) for variable in module.kept}
    module.others = [v for v in traced if id(v) not in tracked]
    return module


class _RecordingScope(keras.StatelessScope):
    """A scope that remembers which variables a model updates as it serves.

    A stateful recurrent layer does; its states are in no list of variables.
    """

    def __init__(self, values: list[tuple[keras.Variable, tf.Tensor]]) -> None:
        super().__init__(values)
        self.updated: list[keras.Variable] = []

    def add_update(self, update: tuple[keras.Variable, tf.Tensor]) -> None:
        super().add_update(update)
        if all(update[0] is not variable for variable in self.updated):
            self.updated.append(update[0])


@contextlib.contextmanager
def replaced_call(
    layer: keras.layers.Layer, call: Callable[..., Any]
) -> Iterator[None]:
    """Within the context, ``layer`` computes with ``call``."""
    # `Layer.__setattr__` would track what the function holds.
    vars(layer)["call"] = call
    try:
        yield
    finally:
        del vars(layer)["call"]


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One tensor that is made at load time."""

    key: str
    name: str
    shape: tuple[int, ...]


def _plan(
    packed: Packed, choices: Mapping[str, Choice]
) -> dict[str, list[_Entry]]:
    """``{dtype: the tensors of that type, in order}``."""
    plan: dict[str, list[_Entry]] = {}
    for key, spec in packed.specs.items():
        tensors = (
            choices[key].method.tensors
            if key in choices
            else {"kernel": (tf.as_dtype(spec.dtype), spec.shape)}
        )
        for name, (dtype, shape) in tensors.items():
            plan.setdefault(dtype.name, []).append(_Entry(key, name, shape))
    return plan


def _resource(
    dtype: str,
    entries: list[_Entry],
    module: tf.Module,
    packed: Packed,
    choices: Mapping[str, Choice],
) -> decoding.DecodedList:
    def make() -> tf.Tensor:
        tensors = decoding.empty_list(tf.as_dtype(dtype), len(entries))
        alike: dict[tuple[str, bool], dict[int, packing.Spec]] = {}
        for index, entry in enumerate(entries):
            spec = packed.specs[entry.key]
            if entry.key not in choices:
                kind = (spec.stored, spec.code == "all")
                alike.setdefault(kind, {})[index] = spec
                continue
            decoded = decoding.decode(
                module.packed, spec, packed.stamps[entry.key]
            )
            made = choices[entry.key].method.prepare(decoded)
            tensors = decoding.set_item(tensors, index, made[entry.name])
        for specs in alike.values():
            tensors = decoding.set_dense(
                tensors, module.packed, specs, packed.stamps
            )
        return tensors

    return decoding.DecodedList(f"tf_tickets/{dtype}", tf.as_dtype(dtype), make)


def _tables(model: keras.Model) -> list[tf.types.experimental.Callable]:
    """Look-up tables of preprocessing layers, which no variable list has."""
    return [
        found
        for found in tf.train.TrackableView(model).descendants()
        if isinstance(found, tf.saved_model.experimental.TrackableResource)
    ]


def _stored(variable: keras.Variable, values: str | None) -> str:
    dtype = keras.backend.standardize_dtype(variable.dtype)
    return values if values and "float" in dtype else dtype


def _sizes(variable: keras.Variable, values: str | None) -> tuple[int, int]:
    """Bytes of ``variable`` as it is and packed."""
    dtype = _stored(variable, values)
    array = view_of(variable)
    if not dtype.startswith(("float16", "float32", "float64", "bfloat16")) and (
        not dtype.startswith(("int", "uint")) or dtype.endswith("int4")
    ):
        return array.nbytes, array.nbytes
    return array.nbytes, packing.packed_bytes(
        array.size,
        int(np.count_nonzero(array)),
        packing.np_dtype(dtype).itemsize,
    )


NOTHING = Packed({}, {}, np.empty(0, np.uint8))
