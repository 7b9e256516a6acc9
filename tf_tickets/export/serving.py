"""The module behind an exported model: weights, decoders, endpoints.

Packed tensors are decoded once, when the module is loaded. A
`tf.saved_model.experimental.TrackableResource` has a function that every
loader runs after the variables are restored, the TF 1 session loader behind
TensorFlow Serving included. Here it decodes parts of one packed buffer into a
resource variable, with standard operations only.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets.export import coding
from tf_tickets.export.kernels import Choice, outputs_of
from tf_tickets.export.source import Source, graph_name
from tf_tickets.network.inputs import replaced_call

# What decoding adds to the graph, once and for each tensor, generously: where
# packing saves less, the directory would not shrink.
GRAPH_BYTES = 40_000
TENSOR_BYTES = 1_000

# What decoding a pattern adds, at its own place in the graph.
PATTERN_BYTES = 6_500

# Up to so many tensors are decoded without loops and functions, which take a
# loader longer to make than to run.
_FEW = 4

# What the TF 2 checkpoint calls the variables of the module.
PACKED_NAME = "packed/.ATTRIBUTES/VARIABLE_VALUE"
KEPT_NAME = "kept/{}/.ATTRIBUTES/VARIABLE_VALUE"


@dataclasses.dataclass(frozen=True)
class Packed:
    """The tensors of a model that are stored packed.

    Attributes:
        specs: ``{key: where it lies}``.
        blob: All bytes.
    """

    specs: Mapping[str, coding.Spec]
    blob: np.ndarray


NOTHING = Packed({}, np.empty(0, np.uint8))


def pack_model(
    source: Source, values: str | None, choices: Mapping[str, Choice]
) -> Packed:
    """Pack every weight of a model that gets smaller by it.

    Args:
        source: The model.
        values: Type to store float values in; their own if `None`.
        choices: Kernels that are not computed densely, by key.
    """
    types = {k: _stored(v, values) for k, v in source.weights.items()}
    groups = {
        key: None
        if key in choices or not _is_packable(types[key])
        else coding.group_of(
            source.values[key], coding.np_dtype(types[key]).itemsize
        )
        for key in types
    }
    sizes = {}
    for key, stored in types.items():
        sizes[key] = _packed_bytes(source, key, stored, groups[key])
        if groups[key] is not None:
            plain = _packed_bytes(source, key, stored, None)
            if plain - sizes[key] <= PATTERN_BYTES:
                groups[key], sizes[key] = None, plain
    saved = {key: source.values[key].nbytes - sizes[key] for key in types}
    worth = {key for key, size in saved.items() if size > TENSOR_BYTES}
    if sum(saved[key] for key in worth) <= GRAPH_BYTES:
        worth = set()
    chosen = [key for key in types if key in worth or key in choices]
    specs, begin = {}, 0
    # Filled in place: a second copy of everything would be felt.
    blob = np.empty(sum(sizes[key] for key in chosen), np.uint8)
    for key in chosen:
        specs[key], _ = coding.pack(
            key,
            source.values[key],
            stored=types[key],
            order=choices[key].method.order if key in choices else None,
            begin=begin,
            out=blob[begin : begin + sizes[key]],
            group=groups[key],
        )
        begin += sizes[key]
    return Packed(specs, blob)


def build(
    source: Source, packed: Packed, choices: Mapping[str, Choice]
) -> tf.Module:
    """A module to save, with one `tf.function` for each endpoint.

    Args:
        source: The model and its endpoints.
        packed: What is stored packed; all else is stored as it is.
        choices: Kernels that are not computed densely; all of them packed.
    """
    module = tf.Module(name="tf_tickets_export")
    kept = {k: v for k, v in source.weights.items() if k not in packed.specs}
    # Variables cannot be given another name, so that those whose own no graph
    # can hold are copied.
    copies = {
        key: tf.Variable(source.values[key], trainable=False, name="kept")
        for key, variable in kept.items()
        if variable.path != graph_name(variable.path)
    }
    module.kept = [copies.get(key, v.value) for key, v in kept.items()]
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
    module.tables = _tables(source.model)

    def substituting(function: Callable[..., Any]) -> Callable[..., Any]:
        def endpoint(*args: Any) -> Any:
            made: dict[str, dict[str, tf.Tensor]] = {}
            for dtype, entries in plan.items():
                item = module.decoded[dtype].read()
                for index, entry in enumerate(entries):
                    tensors = made.setdefault(entry.key, {})
                    tensors[entry.name] = item(index, entry.shape)
            values = [
                (source.weights[key], tensors["kernel"])
                for key, tensors in made.items()
                if key not in choices
            ]
            values += [
                (source.weights[key], tf.convert_to_tensor(copy))
                for key, copy in copies.items()
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
    for name, (function, signature) in source.endpoints.items():
        served = tf.function(
            substituting(function) if packed.specs or copies else function,
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


class DecodedList(tf.saved_model.experimental.TrackableResource):
    """A list of tensors of one type that is made when the model is loaded.

    One resource for all tensors: a loader spends as much time on making and
    filling a resource as on decoding a million weights.

    Args:
        name: Unique within the SavedModel.
        dtype: Of the tensors.
        make: Returns the tensors as a TensorList; traced when the model is
            saved, run when it is loaded. What it reads must be tracked by the
            saved module, not by the resource: resources are made before
            variables.
    """

    def __init__(
        self, name: str, dtype: tf.DType, make: Callable[[], tf.Tensor]
    ) -> None:
        super().__init__()
        self._name = name
        self._dtype = dtype
        self._make = tf.function(make, input_signature=[], autograph=False)
        # Made here, eagerly: a handle that first appears while the serving
        # function is traced is not found by the TF 1 loader.
        self._made = self.resource_handle

    def read(self) -> Callable[[int, tuple[int, ...]], tf.Tensor]:
        """Inside a serving function: ``(index, shape) -> tensor``, no copy."""

        def made() -> tf.Tensor:
            return tf.raw_ops.ReadVariableOp(
                resource=self.resource_handle, dtype=tf.variant
            )

        def make_again() -> tf.Tensor:
            self._initialize()
            return made()

        # Who keeps only a signature of a loaded model has let go of the
        # resources, but not of the variables: then it is made anew.
        tensors = tf.cond(
            tf.raw_ops.VarIsInitializedOp(resource=self.resource_handle),
            made,
            make_again,
        )

        def item(index: int, shape: tuple[int, ...]) -> tf.Tensor:
            return tf.raw_ops.TensorListGetItem(
                input_handle=tensors,
                index=index,
                element_shape=tf.constant(shape, tf.int32, [len(shape)]),
                element_dtype=self._dtype,
            )

        return item

    def _create_resource(self) -> tf.Tensor:
        # Loaders make the shared name unique to each load; within one model
        # it must be so already.
        return tf.raw_ops.VarHandleOp(
            dtype=tf.variant, shape=[], shared_name=self._name
        )

    def _initialize(self) -> None:
        tf.raw_ops.AssignVariableOp(
            resource=self.resource_handle, value=self._make()
        )

    def _destroy_resource(self) -> None:
        tf.raw_ops.DestroyResourceOp(
            resource=self.resource_handle, ignore_lookup_error=True
        )


def empty_list(dtype: tf.DType, size: int) -> tf.Tensor:
    """A TensorList for ``size`` tensors of any shape."""
    return tf.raw_ops.TensorListReserve(
        element_shape=-1, num_elements=size, element_dtype=dtype
    )


def _set_item(tensors: tf.Tensor, index: Any, value: tf.Tensor) -> tf.Tensor:
    """The TensorList with ``value`` at ``index``."""
    return tf.raw_ops.TensorListSetItem(
        input_handle=tensors, index=index, item=value
    )


def set_dense(
    tensors: tf.Tensor,
    blob: tf.Variable,
    specs: Mapping[int, coding.Spec],
) -> tf.Tensor:
    """The TensorList with the whole tensors of ``specs`` at their indices.

    All must agree in type and stored type, be flattened in their own order
    and either all or none be stored whole, as patterns or as blocks. A loop
    decodes one after the other: the graph stays as small as for one, and so
    does the memory in use. (Patterns and blocks are decoded one by one.)
    """
    one = next(iter(specs.values()))

    def whole(found: coding.Decoded, shape: Any, size: tf.Tensor) -> tf.Tensor:
        values, positions = found
        values = tf.cast(values, one.dtype)
        if one.code != "all":
            values = coding.scattered(positions, values, size)
        return tf.reshape(values, shape)

    if len(specs) <= _FEW or one.code in ("pattern", "blocks"):
        for index, spec in specs.items():
            if not spec.count:  # a bias that was never trained
                zeros = tf.zeros(spec.shape, spec.dtype)
                tensors = _set_item(tensors, index, zeros)
                continue
            found = coding.decode(blob, spec, inline=True)
            size = tf.constant(spec.size, tf.int64)
            tensors = _set_item(tensors, index, whole(found, spec.shape, size))
        return tensors
    rank = max(len(spec.shape) for spec in specs.values())
    numbers = tf.constant(
        [coding.numbers_of(s) for s in specs.values()], tf.int64
    )
    keys = tf.constant([s.key for s in specs.values()])
    checks = tf.constant([s.stamp for s in specs.values()], tf.uint8)
    indices = tf.constant([*specs], tf.int32)
    ranks = tf.constant([len(s.shape) for s in specs.values()])
    shapes = tf.constant(
        [[*s.shape] + [0] * (rank - len(s.shape)) for s in specs.values()],
        tf.int64,
    )

    def body(i: tf.Tensor, tensors: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        found = coding.decoder_of(one.stored)(
            blob, numbers[i], checks[i], keys[i]
        )
        shape = shapes[i][: ranks[i]]
        made = whole(found, shape, tf.reduce_prod(shape))
        return i + 1, _set_item(tensors, indices[i], made)

    _, tensors = tf.while_loop(
        lambda i, _: i < len(specs),
        body,
        (tf.constant(0), tensors),
        parallel_iterations=1,
    )
    return tensors


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
) -> DecodedList:
    def make() -> tf.Tensor:
        tensors = empty_list(tf.as_dtype(dtype), len(entries))
        alike: dict[tuple[str, str], dict[int, coding.Spec]] = {}
        for index, entry in enumerate(entries):
            spec = packed.specs[entry.key]
            if entry.key not in choices:
                special = spec.code in ("all", "pattern", "blocks")
                kind = (spec.stored, spec.code if special else "")
                alike.setdefault(kind, {})[index] = spec
                continue
            decoded = coding.decode(module.packed, spec)
            made = choices[entry.key].method.prepare(decoded)
            tensors = _set_item(tensors, index, made[entry.name])
        for specs in alike.values():
            tensors = set_dense(tensors, module.packed, specs)
        return tensors

    return DecodedList(f"tf_tickets/{dtype}", tf.as_dtype(dtype), make)


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


def _packed_bytes(
    source: Source,
    key: str,
    stored: str,
    group: coding.Group | coding.Tiles | None,
) -> int:
    array = source.values[key]
    if not _is_packable(stored):
        return array.nbytes
    return coding.packed_bytes(
        array.size, source.kept[key], coding.np_dtype(stored).itemsize, group
    )


def _is_packable(stored: str) -> bool:
    return stored.startswith(("float16", "float32", "float64", "bfloat16")) or (
        stored.startswith(("int", "uint")) and not stored.endswith("int4")
    )
