"""Copy a model with some layers exchanged and some wires laid anew."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from tf_tickets import masking
from tf_tickets.network.calls import functional_view, is_graph
from tf_tickets.selection import layers_of, named_weights

Replace = Callable[[keras.Operation], keras.Operation | None]
# (the layer of the model, its copy, args, kwargs) -> output
Connect = Callable[[keras.Operation, Any, tuple[Any, ...], Any], Any]


class Copier:
    """Copies a model: weights, masks, names, trainability, compilation.

    Args:
        replace: The layer that stands in the copy for a layer of the model,
            not built; `None` for a copy of it. Models inside the model are
            entered and not asked about.
        connect: Calls a copy; called in place of the copy itself.
        rewired: Ids of the models, the outermost or nested ones, in which
            ``connect`` adds branches: a sequential one becomes functional.
        fresh: Ids of the layers whose weights are not copied.

    Attributes:
        keys: After `copy`, ``{key in the model: key in the copy}``.
    """

    def __init__(
        self,
        *,
        replace: Replace = lambda layer: None,
        connect: Connect | None = None,
        rewired: Collection[int] = (),
        fresh: Collection[int] = (),
    ) -> None:
        self.replace = replace
        self.fresh = fresh
        self.connect = connect
        self.rewired = rewired
        self.keys: dict[str, str] = {}
        self._copies: dict[int, Any] = {}
        self._originals: dict[int, Any] = {}
        self._pairs: list[tuple[keras.Variable, keras.Variable]] = []

    def copy(self, model: keras.Model) -> keras.Model:
        """The copy.

        Raises:
            ValueError: If the calls inside the model are not known, or a
                layer cannot be copied.
        """
        with model.distribute_strategy.scope():
            copy = self._copy_model(model)
            for source, target in self._pairs:
                target.assign(keras.ops.convert_to_numpy(source))
                if target.trainable != source.trainable:
                    target.trainable = source.trainable
        places = {id(v): k for k, v in named_weights(copy).items()}
        originals = {id(old): new for old, new in self._pairs}
        self.keys = {
            key: places[id(originals[id(variable)])]
            for key, variable in named_weights(model).items()
            if id(originals.get(id(variable))) in places
        }
        masks = masking.attached_masks(model)
        if masks:
            masking.enforce(
                copy,
                {self.keys[k]: m for k, m in masks.items() if k in self.keys},
            )
        if getattr(model, "compiled", False):
            compile_like(model, copy)
        return copy

    def copied(self, layer: keras.layers.Layer) -> Any:
        """The layer that stands in the copy for ``layer``."""
        return self._copies[id(layer)]

    def _copy_model(self, model: keras.Model) -> keras.Model:
        inputs = [
            keras.Input(
                batch_shape=x.shape, dtype=x.dtype, sparse=x.sparse, name=x.name
            )
            for x in model.inputs
        ]
        if isinstance(model, keras.Sequential) and id(model) not in (
            self.rewired
        ):
            copies = [self._copy(layer) for layer in model.layers]
            return keras.Sequential(
                [*inputs, *copies], name=model.name, trainable=model.trainable
            )
        view = functional_view(model)
        copy = keras.models.clone_model(
            view,
            input_tensors=keras.tree.pack_sequence_as(view.input, inputs),
            clone_function=self._copy,
            call_function=self._call,
        )
        copy = _as_class_of(model, copy)
        if not model.trainable:
            copy.trainable = False
        return copy

    def _copy(self, layer: Any) -> Any:
        if id(layer) not in self._copies:
            if is_graph(layer):
                copy = self._copy_model(layer)
            else:
                copy = self._copy_layer(layer)
            self._copies[id(layer)] = copy
            self._originals[id(copy)] = layer
        return self._copies[id(layer)]

    def _copy_layer(self, layer: Any) -> Any:
        copy = self.replace(layer)
        if not isinstance(layer, keras.layers.Layer):
            return copy or copy_of(layer)
        if copy is None:
            copy = copy_of(layer)
            if _activations(copy) != _activations(layer):
                warnings.warn(
                    "The copy of this layer gets back the activations that "
                    "its code fixes: exchange activations after everything "
                    f"else. Layer: {layer.name} ({type(layer).__name__})",
                    stacklevel=2,
                )
        with scope_of(layer):
            config = layer.get_build_config() if layer.built else None
            if config and not copy.built:
                copy.build_from_config(config)
        if id(layer) in self.fresh:
            return copy
        if len(layer.variables) != len(copy.variables):
            raise ValueError(
                "The copy of a layer must hold the variables of the layer: "
                "does its `build` make them all? Received: "
                f"{layer.name} ({type(layer).__name__}) with "
                f"{len(layer.variables)} variables, {len(copy.variables)} in "
                "its copy"
            )
        self._pairs += zip(layer.variables, copy.variables, strict=True)
        return copy

    def _call(self, copy: Any, *args: Any, **kwargs: Any) -> Any:
        if self.connect is None:
            return copy(*args, **kwargs)
        return self.connect(self._originals[id(copy)], copy, args, kwargs)


def require_graph(model: keras.Model, what: str, advice: str) -> None:
    """Raise unless the calls inside ``model`` are known."""
    if not is_graph(model):
        raise ValueError(
            f"{what} needs a functional model or a sequential one with a "
            "known input shape: the calls inside another model cannot be "
            f"seen. {advice} Received: {type(model).__name__} "
            f"{getattr(model, 'name', model)!r}"
        )


def copy_of(operation: Any, config: Mapping[str, Any] | None = None) -> Any:
    """A copy by ``get_config``, not built; a layer's config may be given."""
    try:
        chosen = operation.get_config() if config is None else dict(config)
        if isinstance(operation, keras.layers.Layer) and "name" not in chosen:
            # The automatic configuration of a user's layer leaves out what
            # its constructor only passes on.
            with contextlib.suppress(TypeError):
                return type(operation).from_config(
                    {**chosen, "name": operation.name}
                )
        return type(operation).from_config(chosen)
    except (NotImplementedError, TypeError, AttributeError) as error:
        if not isinstance(operation, keras.layers.Layer):
            return operation  # a function without state can be called again
        raise ValueError(
            "A layer is copied by its `get_config`, and this one cannot be: "
            f"{error} Received: {operation.name} ({type(operation).__name__})"
        ) from error


@contextlib.contextmanager
def scope_of(layer: keras.layers.Layer) -> Iterator[None]:
    """What is built inside gets the path that ``layer`` has."""
    parents = (layer.path or "").split("/")[:-1]
    if not parents:
        yield
        return
    with keras.name_scope(parents[-1], override_parent="/".join(parents[:-1])):
        yield


def compile_like(model: keras.Model, copy: keras.Model, **changes: Any) -> None:
    """Compile ``copy`` with the settings of ``model`` and a new optimizer.

    A loss or metric that cannot be serialized cannot be copied: the copy
    stays uncompiled then, with a warning.
    """
    try:
        config = model.get_compile_config()
        settings = keras.saving.deserialize_keras_object(config)
        copy.compile(**{**settings, **changes})
    except Exception as error:  # whatever user code raises
        warnings.warn(
            "The new model is not compiled: the settings of the model could "
            f"not be copied ({type(error).__name__}: {error}).",
            stacklevel=4,
        )


def count(variables: Collection[keras.Variable]) -> int:
    """How many numbers the variables hold."""
    return sum(int(np.prod(v.shape)) for v in variables)


def _activations(layer: keras.layers.Layer) -> list[str]:
    found = []
    for inner in layers_of(layer):
        found.append(type(inner).__name__)
        for attribute, value in vars(inner).items():
            if "activation" in attribute and callable(value):
                name = getattr(value, "__name__", type(value).__name__)
                found.append(f"{attribute}={name}")
    return found


def _as_class_of(model: keras.Model, copy: keras.Model) -> keras.Model:
    # A subclass with a training step of its own keeps it, where its
    # constructor takes inputs and outputs.
    if type(model) is type(copy) or isinstance(model, keras.Sequential):
        return copy
    try:
        return type(model)(copy.input, copy.output, name=model.name)
    except Exception as error:  # whatever user code raises
        raise ValueError(
            "The class of the model must be constructible as "
            f"`{type(model).__name__}(inputs, outputs, name=...)` to be "
            f"copied ({type(error).__name__}: {error}). "
            f"Received: model={model.name!r}"
        ) from error
