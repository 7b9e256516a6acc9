"""What is exported: a model, its weights, and what it takes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import checks
from tf_tickets.selection import (
    layers_of,
    named_weights,
    prunable_among,
    view_of,
)

Function = Callable[..., Any]
Endpoint = Function | tuple[Function, Sequence[Any]]
Endpoints = Mapping[str, tuple[Function, list[Any]]]

DEFAULT = "serve"


@dataclasses.dataclass(frozen=True)
class Source:
    """A model to export, asked once for what every step needs.

    Attributes:
        model: The model.
        weights: ``{key: variable}``: all its weights, in order.
        values: ``{key: array}``: what they hold now; on CPU no copies.
        kept: ``{key: how many values are not zero}``.
        prunable: The keys of the weights that pruning may touch.
        endpoints: ``{name: (function, input signature)}``, the model itself
            as ``"serve"``.
    """

    model: keras.Model
    weights: Mapping[str, keras.Variable]
    values: Mapping[str, np.ndarray]
    kept: Mapping[str, int]
    prunable: frozenset[str]
    endpoints: Endpoints

    @classmethod
    def of(
        cls,
        model: keras.Model,
        input_signature: Sequence[Any] | None = None,
        endpoints: Mapping[str, Endpoint] | None = None,
    ) -> Source:
        """Ask ``model``.

        Args:
            model: A built model.
            input_signature: One structure of `tf.TensorSpec` for each of its
                positional arguments; `None` asks the model.
            endpoints: As in `tf_tickets.export.saved_model`.

        Raises:
            ValueError: If the model has no weights, nothing says what it
                takes, or an endpoint is none.
        """
        weights = named_weights(model)
        endpoints = _endpoints_of(model, input_signature, endpoints)
        values = {key: view_of(v) for key, v in weights.items()}
        kept = {k: int(np.count_nonzero(v)) for k, v in values.items()}
        try:
            prunable = frozenset(prunable_among(weights))
        except ValueError:  # a model without kernels is a model all the same
            prunable = frozenset()
        return cls(model, weights, values, kept, prunable, endpoints)

    @contextlib.contextmanager
    def traceable(self) -> Iterator[None]:
        """Names that a graph can hold, as long as it is traced.

        Keras calls every layer under its name, and TensorFlow's graphs refuse
        names with a space or beyond ASCII. Keras cannot even `fit` such a
        model, only call it.
        """
        functions = [function for function, _ in self.endpoints.values()]
        layers = [
            layer
            for model in (self.model, *functions)
            if isinstance(model, keras.Model)
            for layer in (model, *layers_of(model))
        ]
        with contextlib.ExitStack() as stack:
            for layer in layers:
                name = graph_name(layer.name)
                if name != layer.name:
                    stack.callback(setattr, layer, "name", layer.name)
                    layer.name = name
            yield


def graph_name(name: str) -> str:
    """A name that TensorFlow's graphs can hold; such a name itself.

    Example:

    >>> graph_name("dense/kernel"), graph_name("größe")
    ('dense/kernel', 'named_gr__e')
    """
    if re.fullmatch(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*", name):
        return name
    return "named_" + re.sub(r"[^A-Za-z0-9_.\\/>-]", "_", name)


def batch_sizes_of(batch_sizes: Sequence[int]) -> tuple[int, ...]:
    """The option ``batch_sizes``, checked.

    Raises:
        ValueError: If there is none, or one is no positive whole number.
    """
    if not isinstance(batch_sizes, Sequence) or not batch_sizes:
        raise ValueError(
            "`batch_sizes` must list one whole number or several. "
            f"Received: batch_sizes={batch_sizes!r}"
        )
    return tuple(checks.whole("batch_sizes", size) for size in batch_sizes)


def signature_of(model: keras.Model) -> list[Any]:
    """One entry for each positional argument of ``model``, batch size free.

    Args:
        model: A built model.

    Returns:
        A list of structures of `tf.TensorSpec`.

    Raises:
        ValueError: If a subclassed model was never called, so that nothing
            says what it takes.
    """
    if isinstance(model, keras.Sequential):
        return [_from_symbolic(tensor) for tensor in model.inputs]
    if getattr(model, "inputs", None):
        return [keras.tree.map_structure(_from_symbolic, model.input)]
    built = model.get_build_config() or {}
    shapes = built.get("shapes_dict") or {"input": built.get("input_shape")}
    found = [_from_shape(shape, model.input_dtype) for shape in shapes.values()]
    if None in found:
        raise ValueError(
            "Nothing says what this model takes: call it on a batch first or "
            f"give `input_signature`. Received: model={model.name!r}"
        )
    return found


def concrete(signature: Any, batch: int) -> Any:
    """The signature with a batch size.

    Raises:
        ValueError: If another axis has no size.
    """

    def fix(spec: tf.TensorSpec) -> tf.TensorSpec:
        shape = [batch, *spec.shape[1:]] if spec.shape.rank else []
        if None in shape:
            raise ValueError(
                "Latency is measured at a fixed input size: give "
                "`input_signature` with every size but the batch's. "
                f"Received: {spec}"
            )
        return tf.TensorSpec(shape, spec.dtype, spec.name)

    return keras.tree.map_structure(fix, signature)


def shapes_in(signature: Sequence[Any]) -> Any:
    """The shapes in a signature without the batch axis, as `flops` takes them.

    Args:
        signature: One structure of `tf.TensorSpec` for each argument.

    Returns:
        A list of shapes, or a dictionary of them where the model takes one.
    """
    only = signature[0] if len(signature) == 1 else signature
    if isinstance(only, Mapping):
        return {key: tuple(one.shape[1:]) for key, one in only.items()}
    return [tuple(one.shape[1:]) for one in keras.tree.flatten(only)]


def sample(signature: Any, batch: int, seed: int = 0) -> Any:
    """Random inputs: normal numbers, zeros for integers, empty strings."""
    generator = tf.random.Generator.from_seed(seed)

    def draw(spec: tf.TensorSpec) -> tf.Tensor:
        if spec.dtype.is_floating:
            return tf.cast(generator.normal(spec.shape), spec.dtype)
        if spec.dtype == tf.string:
            return tf.fill(spec.shape, "")
        return tf.zeros(spec.shape, spec.dtype)

    return keras.tree.map_structure(draw, concrete(signature, batch))


def _from_symbolic(tensor: keras.KerasTensor) -> tf.TensorSpec:
    return tf.TensorSpec(
        (None, *tensor.shape[1:]), tensor.dtype, name=graph_name(tensor.name)
    )


def _from_shape(shape: Any, dtype: str) -> Any:
    if isinstance(shape, Mapping):
        return {key: _from_shape(one, dtype) for key, one in shape.items()}
    if isinstance(shape, (list, tuple)):
        if all(size is None or isinstance(size, int) for size in shape):
            return tf.TensorSpec((None, *shape[1:]), dtype)
        return [_from_shape(one, dtype) for one in shape]
    return None


def _endpoints_of(
    model: keras.Model,
    signature: Sequence[Any] | None,
    endpoints: Mapping[str, Endpoint] | None,
) -> Endpoints:
    default = list(signature) if signature else signature_of(model)
    found: dict[str, tuple[Function, list[Any]]] = {
        DEFAULT: (_predicting(model), default)
    }
    for name, endpoint in (endpoints or {}).items():
        function, own = (
            endpoint if isinstance(endpoint, tuple) else (endpoint, None)
        )
        if (
            not callable(function)
            or not name.isidentifier()
            or name == "serving_default"
        ):
            raise ValueError(
                "`endpoints` must map names to a function or to (function, "
                f"input signature). Received: {name!r}: {endpoint!r}"
            )
        if own is None and isinstance(function, keras.Model):
            own = signature_of(function)
        if isinstance(function, keras.layers.Layer):
            function = _predicting(function)
        found[name] = (function, default if own is None else list(own))
    return found


def _predicting(layer: keras.layers.Layer) -> Function:
    """The layer as it predicts.

    Left to themselves some layers train: augmentation of images does, and so
    does whatever comes after it in a model.
    """
    if "training" in inspect.signature(layer.call).parameters:
        return functools.partial(layer, training=False)
    return layer
