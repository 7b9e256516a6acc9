"""Which weights of a model may be pruned, and by which key they are known.

A weight's key is its ``variable.path``. Two weights with one path (a model
that holds two functional models built by the same function) are told apart by
a suffix: ``conv/kernel``, ``conv/kernel#1``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

Filter = str | Callable[[str, keras.Variable], bool]
Filters = Filter | Sequence[Filter] | None
Shape = tuple[int, ...]
# A variable, or what has its path, name, shape and dtype.
Named = TypeVar("Named", bound=Any)

_KERNELS = {
    "kernel",
    "depthwise_kernel",
    "pointwise_kernel",
    "recurrent_kernel",
}
# Rank says nothing here: attention biases have rank 2, and a normalization
# over several axes has scales of rank 2 and more.
_NEVER = {
    "bias",
    "recurrent_bias",
    "gamma",
    "beta",
    "scale",
    "mean",
    "variance",
    "moving_mean",
    "moving_variance",
    "vector_u",
}


def named_weights(model: keras.Model) -> dict[str, keras.Variable]:
    """All weights of ``model`` by their unique key, in the model's order.

    Args:
        model: A built Keras model.

    Returns:
        ``{key: variable}``: kernels, biases, normalization parameters and
        statistics; no optimizer, metric or random-seed state.

    Raises:
        ValueError: If the model has no weights yet.
    """
    check_model(model)
    if not model.weights:
        raise ValueError(
            "The model has no weights yet: build it first, with an Input "
            "layer, `model.build(input_shape)` or one call on a batch. "
            f"Received: model={model.name!r}"
        )
    return unique_keys(model.weights)


def check_model(model: Any) -> None:
    """Raise if ``model`` is something else.

    Raises:
        ValueError: If it has no weights and no layers to have any, or is of
            another Keras.
    """
    check_keras(model)
    if isinstance(model, type) or not isinstance(
        getattr(model, "weights", None), list
    ):
        raise ValueError(
            f"`model` must be a Keras model. Received: model={model!r}"[:500]
        )


def check_keras(model: Any) -> None:
    """Raise if ``model`` is one of tf_keras, which looks like one of Keras 3.

    Raises:
        ValueError: If it is; with what to do instead.
    """
    # By its name: importing tf_keras sets up a second Keras.
    if any(
        c.__module__.split(".")[0] == "tf_keras" for c in type(model).__mro__
    ):
        raise ValueError(
            "tf_tickets works on models of Keras 3, and this is one of "
            "tf_keras (Keras 2): build it with `keras`, and bring its weights "
            "and zeros along with tf_tickets.Ticket.from_weights("
            "model.weights). "
            f"Received: a tf_keras model named {getattr(model, 'name', '')!r}"
        )


def unique_keys(variables: Sequence[Named]) -> dict[str, Named]:
    """``{path: variable}``; a repeated path gets ``#1``, ``#2``, ..."""
    named: dict[str, Named] = {}
    seen: dict[str, int] = {}
    for variable in variables:
        path = variable.path
        count = seen.get(path, 0)
        seen[path] = count + 1
        named[f"{path}#{count}" if count else path] = variable
    return named


def values_of(
    variables: Mapping[str, keras.Variable],
) -> dict[str, np.ndarray]:
    """Copies of the variables' values, as arrays."""
    return {key: np.array(view_of(v)) for key, v in variables.items()}


def view_of(variable: keras.Variable) -> np.ndarray:
    """A variable's value to look at now: on CPU it may share its memory.

    What is kept beyond the next training step must be copied.
    ``keras.ops.convert_to_numpy`` copies twice, which big models feel.
    """
    return np.asarray(tf.convert_to_tensor(variable))


def prunable_weights(
    model: keras.Model, filters: Filters = None
) -> dict[str, keras.Variable]:
    """The weights of ``model`` that pruning may touch.

    Without ``filters``: the kernels of Dense, Conv, DepthwiseConv,
    SeparableConv, transposed convolution and EinsumDense layers and the
    projections inside attention and recurrent layers. With ``filters``: every
    weight matrix or tensor that a filter names, embeddings and the weights of
    your own layers included. Biases and normalization parameters are never
    prunable.

    Args:
        model: A built Keras model: sequential, functional, nested or
            subclassed.
        filters: `None`; a regular expression searched in the weight's path;
            a callable ``(path, variable) -> bool``; or a list of these, of
            which one must agree.

    Returns:
        ``{path: variable}`` in the model's order, each weight once, however
        many times its layer is shared.

    Raises:
        ValueError: If nothing is selected, or one of the filters of a list
            selects nothing.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((8,)),
    ...     keras.layers.Dense(16, name="hidden"),
    ...     keras.layers.Dense(4, name="head"),
    ... ])
    >>> [path.split("/", 1)[1] for path in prunable_weights(model)]
    ['hidden/kernel', 'head/kernel']
    >>> len(prunable_weights(model, filters="hidden"))
    1
    """
    return prunable_among(named_weights(model), filters)


def prunable_among(
    weights: Mapping[str, Named], filters: Filters = None
) -> dict[str, Named]:
    """Those of ``weights`` that pruning may touch, as in `prunable_weights`.

    Args:
        weights: ``{key: variable}``, or what has a variable's name, shape and
            dtype.
        filters: As in `prunable_weights`.

    Raises:
        ValueError: If nothing is selected, or one of the filters of a list
            selects nothing.
    """
    if filters is None:
        chosen = {
            path: variable
            for path, variable in weights.items()
            if variable.name in _KERNELS and _is_maskable(variable)
        }
        if not chosen:
            quantized = any(
                v.name in _KERNELS and "int" in str(v.dtype)
                for v in weights.values()
            )
            raise ValueError(
                "The model has no prunable weights: no float kernel of rank "
                "2 or more. "
                + (
                    "It is quantized: quantize it after pruning. "
                    if quantized
                    else "Name your own weights with `filters`. "
                )
                + f"Received: a model with the weights {_listing(weights)}"
            )
        return chosen
    maskable = {p: v for p, v in weights.items() if _is_maskable(v)}
    chosen_paths: set[str] = set()
    for entry in _as_list(filters):
        hits = {p for p, v in maskable.items() if _agrees(entry, p, v)}
        if not hits:
            raise ValueError(
                "A filter matches no prunable weight. The model has "
                f"{_listing(maskable)}. Received: filters={entry!r}"
            )
        chosen_paths |= hits
    return {p: v for p, v in maskable.items() if p in chosen_paths}


def match_keys(
    shapes: Mapping[str, Shape],
    variables: Mapping[str, Any],
    wanted: Iterable[str] | None = None,
    *,
    by_name: bool = False,
) -> dict[str, str]:
    """Find each stored key among a model's variables.

    Keras numbers layers as they are made (``dense``, ``dense_1``, ...), so
    the same model has other paths in another process, and a path alone may
    name another layer there. So the whole list is matched to the whole list:

    - the same paths with the same shapes are the same weights;
    - paths may differ in the names of models around the layers;
    - two lists with the same shapes in order are aligned by order, when
      either no path or every path without its numbers and the models around
      it is the same;
    - in a model with more or other weights, a path counts only if no other
      weight of the same shape differs from it in a number alone.

    Args:
        shapes: ``{stored key: shape}``: all weights of the model that they
            were stored from, in its order.
        variables: ``{key: variable or array}``, in the model's order.
        wanted: The stored keys that must be found; `None` for all.
        by_name: Whether a path that is in the model means just that weight,
            because a person wrote it and ``shapes`` is no whole list.

    Returns:
        ``{stored key: key of the variable}``.

    Raises:
        ValueError: One error that lists every mismatch, or says which paths
            could mean more than one weight.

    Example:

    >>> there = {"dense/kernel": (4, 4), "dense_1/kernel": (4, 4)}
    >>> here = {"dense_1/kernel": np.eye(4), "dense_2/kernel": np.eye(4)}
    >>> match_keys(there, here, ["dense_1/kernel"])
    {'dense_1/kernel': 'dense_2/kernel'}
    """
    wanted = list(shapes) if wanted is None else list(wanted)
    present = {key: tuple(v.shape) for key, v in variables.items()}
    stored = {key: tuple(shape) for key, shape in shapes.items()}
    exact = {k: k for k, shape in stored.items() if present.get(k) == shape}
    if by_name and exact.keys() >= set(wanted):
        return {key: key for key in wanted}
    unclear: dict[str, list[str]] = {}
    for found in (exact, _by_ending(stored, present)):
        if len(found) == len(stored) and stored:
            rivals = _rivals(found, wanted, stored, present)
            if not rivals:
                return {key: found[key] for key in wanted}
            unclear = unclear or rivals
    if list(stored.values()) == list(present.values()):
        pairs = dict(zip(stored, present, strict=True))
        strangers = not set(stored) & set(present)
        if strangers or all(
            _is_ending(_unnumbered(a), _unnumbered(b)) for a, b in pairs.items()
        ):
            return {key: pairs[key] for key in wanted}
    if exact.keys() >= set(wanted):
        unclear = unclear or _rivals(exact, wanted, stored, present)
        if not unclear:
            return {key: key for key in wanted}
    if unclear:
        raise ValueError(
            "The stored weights are not all of this model's, and a path that "
            "differs from others in a layer's number alone does not say which "
            "is meant: Keras numbers layers as they are made. Give the layers "
            "names, or use the model that the weights were taken from. "
            "Received: "
            + "; ".join(f"{k}, beside {v}" for k, v in unclear.items())[:500]
        )
    problems = [
        f"{key}: stored {shape}, in the model {present[key]}"
        if key in present
        else f"{key} {shape}: not in the model"
        for key, shape in stored.items()
        if present.get(key) != shape
    ]
    raise ValueError(
        "The weights do not fit this model:\n  "
        + "\n  ".join(problems)
        + f"\nThe model has {_listing(variables)}."
    )


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern is the path, or a regular expression found in it.

    The number that tells weights of one path apart is no part of what a
    person writes, so that ``"kernel$"`` finds all of them.

    Example:

    >>> matches("kernel$", "dense/kernel#1"), matches("#1$", "dense/kernel#1")
    (True, True)
    """
    return pattern == path or any(
        re.search(pattern, text) for text in {path, path.partition("#")[0]}
    )


def layers_of(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Every layer inside ``model``, nested and attribute-held ones included.

    Keras has no public walk that reaches the sublayers of attention, wrapper
    and subclassed layers; this is the one place that knows the private one.
    """
    check_model(model)
    yield from model._flatten_layers(include_self=True)


def own_weights(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The weights that ``layer`` holds itself, not through a layer inside it.

    Args:
        layer: A layer or a model.

    Returns:
        Its variables in the layer's order; none for most models.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> len(own_weights(model)), len(own_weights(model.layers[0]))
    (0, 2)
    """
    inside = {
        id(variable)
        for inner in layers_of(layer)
        if inner is not layer
        for variable in inner.weights
    }
    return [v for v in layer.weights if id(v) not in inside]


def owners(model: keras.Model) -> dict[int, keras.layers.Layer]:
    """The innermost layer that holds each weight.

    Args:
        model: A layer or a model.

    Returns:
        ``{id of a variable: its layer}``. Where unrelated layers share a
        variable, the last of them.

    Example:

    >>> inner = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model = keras.Sequential([inner, keras.layers.Dense(2)])
    >>> owners(model)[id(inner.weights[0])] is inner.layers[0]
    True
    """
    return {
        id(variable): layer
        for layer in layers_of(model)
        for variable in own_weights(layer)
    }


def _is_maskable(variable: keras.Variable) -> bool:
    return (
        len(variable.shape) >= 2
        and variable.name not in _NEVER
        and "float" in str(variable.dtype)
        and "float8" not in str(variable.dtype)
    )


def _as_list(filters: Filters) -> list[Filter]:
    entries: list[Any] | None = (
        [filters]
        if isinstance(filters, str) or callable(filters)
        else list(filters)
        if isinstance(filters, Sequence)
        else None
    )
    for entry in entries or [filters]:
        if isinstance(entry, keras.layers.Layer):
            raise ValueError(
                "A filter names weights by their path, and a layer is no "
                "filter: give a regular expression such as "
                f"filters={f'{entry.name}/'!r}. "
                f"Received: the layer {entry.name!r} "
                f"({type(entry).__name__}) in `filters`"
            )
    if not entries or not all(
        isinstance(e, str) or callable(e) for e in entries
    ):
        raise ValueError(
            "`filters` must be None, a regular expression, a callable "
            "(path, variable) -> bool, or a list of these. "
            f"Received: filters={filters!r}"
        )
    return entries


def _agrees(entry: Filter, path: str, variable: keras.Variable) -> bool:
    if not isinstance(entry, str):
        return bool(entry(path, variable))
    try:
        return matches(entry, path)
    except re.error as error:
        raise ValueError(
            f"A filter is not a regular expression: {error}. "
            f"Received: filters={entry!r}"
        ) from error


def _by_ending(
    stored: Mapping[str, Shape], present: Mapping[str, Shape]
) -> dict[str, str]:
    """Pairs of which one path ends with the whole other, if all are clear."""
    found = {
        key: [p for p in present if f"/{p}".endswith(f"/{key}")]
        or [p for p in present if _is_ending(key, p)]
        for key in stored
    }
    if any(
        len(paths) != 1 or present[paths[0]] != stored[key]
        for key, paths in found.items()
    ) or len({paths[0] for paths in found.values()}) < len(stored):
        return {}
    return {key: paths[0] for key, paths in found.items()}


def _rivals(
    found: Mapping[str, str],
    wanted: Iterable[str],
    stored: Mapping[str, Shape],
    present: Mapping[str, Shape],
) -> dict[str, list[str]]:
    """``{wanted key: what it could mean as well}``, where there is such.

    Layers whose names differ in a number only, with weights of one shape, may
    have changed places unless all of them are found, on both sides.
    """
    alone: dict[tuple[str, Shape], list[str]] = {}
    taken = set(found.values())
    for key, shape in present.items():
        if key not in taken:
            alone.setdefault((_family(key), shape), []).append(key)
    for key, shape in stored.items():
        if key not in found:
            alone.setdefault((_family(key), shape), []).append(key)
    unclear = {}
    for key in wanted:
        others = {
            other
            for one in (key, found[key])
            for other in alone.get((_family(one), stored[key]), ())
        }
        if others:
            unclear[key] = sorted(others)
    return unclear


def _is_ending(one: str, other: str) -> bool:
    """Whether one path is the other below some of its models."""
    return f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}")


def _unnumbered(path: str) -> str:
    # Before Keras 3.13 an optimizer names its slots by the whole path, joined
    # with underscores.
    return re.sub(r"_\d+(?=[/#_]|$)", "", path)


def _family(path: str) -> str:
    """A path without any number that Keras, or `unique_keys`, has added."""
    return _unnumbered(path).partition("#")[0]


def _listing(variables: Mapping[str, Any]) -> str:
    rows = [f"{p} {tuple(v.shape)}" for p, v in variables.items()]
    shown = ", ".join(rows[:20])
    return shown + (f", and {len(rows) - 20} more" if len(rows) > 20 else "")
