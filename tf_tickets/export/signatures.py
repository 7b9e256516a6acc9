"""What an exported model takes: input signatures and endpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

Function = Callable[..., Any]
Endpoint = Function | tuple[Function, Sequence[Any]]

DEFAULT = "serve"


def input_signature(model: keras.Model) -> list[Any]:
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


def endpoints_of(
    model: keras.Model,
    signature: Sequence[Any] | None,
    endpoints: Mapping[str, Endpoint] | None,
) -> dict[str, tuple[Function, list[Any]]]:
    """``{name: (function, signature)}``, the model itself as ``"serve"``.

    Raises:
        ValueError: If an endpoint is neither a function nor a pair of a
            function and its signature, or takes a reserved name.
    """
    default = list(signature) if signature else input_signature(model)
    found: dict[str, tuple[Function, list[Any]]] = {DEFAULT: (model, default)}
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
            own = input_signature(function)
        found[name] = (function, default if own is None else list(own))
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
        (None, *tensor.shape[1:]), tensor.dtype, name=tensor.name
    )


def _from_shape(shape: Any, dtype: str) -> Any:
    if isinstance(shape, Mapping):
        return {key: _from_shape(one, dtype) for key, one in shape.items()}
    if isinstance(shape, (list, tuple)):
        if all(size is None or isinstance(size, int) for size in shape):
            return tf.TensorSpec((None, *shape[1:]), dtype)
        return [_from_shape(one, dtype) for one in shape]
    return None
