"""Copy one layer, and what its configuration does not say."""

from __future__ import annotations

import contextlib
import inspect
import tempfile
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import keras

from tf_tickets.selection import layers_of


def copy_of(operation: Any, **changes: Any) -> Any:
    """A copy of a layer or function by its ``get_config``, not built.

    It keeps what a configuration forgets: functions that cannot be saved,
    vocabularies, layers exchanged for others without weights.

    Args:
        operation: A layer, or a function in a functional model.
        **changes: To the configuration.

    Returns:
        The copy.

    Raises:
        ValueError: If it cannot be copied.
    """
    config = usable_config(operation, **changes)
    with _explained(operation):
        copy = rebuilt(operation, config)
    if isinstance(operation, keras.layers.Layer):
        for old, new in twins(operation, copy):
            _carry(old, new, changes)
    return copy


def usable_config(operation: Any, **changes: Any) -> dict[str, Any]:
    """The configuration with changes, one that the class takes.

    Some classes are only ever saved with the model around them: their own
    `get_config` does not run, or says what the constructor does not take.
    Then it is what the constructor takes, if each argument is an attribute.

    Raises:
        ValueError: If there is none.
    """
    try:
        config = {**config_of(operation), **changes}
        with _explained(operation):
            rebuilt(operation, config)
    except ValueError:
        known = _from_attributes(operation)
        if known is None:
            raise
        return {**known, **changes}
    return config


def is_saved(operation: Any) -> bool:
    """Whether a saved layer could be loaded: its class takes its config."""
    if not isinstance(operation, keras.layers.Layer):
        return True
    if type(operation).__module__.partition(".")[0] == "keras":
        return True
    try:
        config = config_of(operation)
        with _explained(operation):
            rebuilt(operation, config)
    except ValueError:
        return False
    return True


def rebuilt(operation: Any, config: Mapping[str, Any]) -> Any:
    """A layer or function as its class makes it of a configuration."""
    with classes_of(operation):
        return _of_config(operation, config)


def classes_of(layer: Any) -> Any:
    """A scope in which Keras finds the classes of a layer and those inside.

    What can be copied need not be registered.
    """
    if not isinstance(layer, keras.layers.Layer):
        return contextlib.nullcontext()
    return keras.saving.custom_object_scope(
        {
            kind.__name__: kind
            for kind in (
                getattr(type(one), "records", type(one))
                for one in layers_of(layer)
            )
            if kind.__module__.partition(".")[0] != "keras"
            and keras.saving.get_registered_name(kind) == kind.__name__
        }
    )


def _of_config(operation: Any, config: Mapping[str, Any]) -> Any:
    if "name" not in config:
        # The automatic configuration of a user's layer leaves out what its
        # constructor only passes on.
        with contextlib.suppress(TypeError):
            return type(operation).from_config(
                {**config, "name": operation.name}
            )
    return type(operation).from_config(dict(config))


def config_of(operation: Any) -> dict[str, Any]:
    """The configuration, from which a copy is made that is not built.

    Functions that cannot be saved are linear in it.

    Raises:
        ValueError: If there is none.
    """
    with contextlib.ExitStack() as undo, _explained(operation):
        if isinstance(operation, keras.layers.Layer):
            for layer in layers_of(operation):
                for name, value in _functions(layer).items():
                    if not _can_be_saved(value):
                        undo.callback(setattr, layer, name, value)
                        setattr(layer, name, keras.activations.linear)
        return _unbuilt(dict(operation.get_config()))


def _from_attributes(operation: Any) -> dict[str, Any] | None:
    """The constructor's arguments; `None` unless each is kept by its name."""
    if not isinstance(operation, keras.layers.Layer):
        return None
    _, *parameters = inspect.signature(
        type(operation).__init__
    ).parameters.values()
    config: dict[str, Any] = {
        "name": operation.name,
        "trainable": operation.trainable,
        "dtype": keras.saving.serialize_keras_object(operation.dtype_policy),
    }
    for parameter in parameters:
        if parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ) or (parameter.name in config):
            continue
        if parameter.name not in vars(operation):
            return None
        config[parameter.name] = keras.saving.serialize_keras_object(
            getattr(operation, parameter.name)
        )
    return config


def _unbuilt(config: Any) -> Any:
    # Keras would build the layers inside at once, outside the path of this.
    if isinstance(config, dict):
        return {
            key: _unbuilt(value)
            for key, value in config.items()
            if not (key == "build_config" and "class_name" in config)
        }
    if isinstance(config, list):
        return [_unbuilt(value) for value in config]
    return config


@contextlib.contextmanager
def _explained(operation: Any) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever user code raises
        # Keras appends examples, each after an empty line.
        why = " ".join(str(error).strip().split("\n\n")[0].split())
        raise ValueError(
            "A layer is copied by its `get_config`, and this one cannot be: "
            f"{why} Received: {operation.name} ({type(operation).__name__})"
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


def carry_functions(
    layer: keras.layers.Layer,
    copy: keras.layers.Layer,
    changes: Collection[str] = (),
) -> None:
    """Give a copy the very functions of a layer, but for those changed."""
    for name, value in _functions(layer).items():
        if name not in changes and vars(copy).get(name) is not value:
            setattr(copy, name, value)


def _functions(layer: keras.layers.Layer) -> dict[str, Any]:
    """The activations of a layer, and what a `Lambda` calls."""
    return {
        name: value
        for name, value in vars(layer).items()
        if ("activation" in name or name == "function")
        and callable(value)
        and not isinstance(value, keras.layers.Layer)
        and not hasattr(value, "get_config")
    }


def _can_be_saved(function: Any) -> bool:
    if getattr(function, "__name__", "<lambda>") == "<lambda>":
        return False
    try:
        saved = keras.activations.serialize(function)
        return keras.activations.get(saved) is function
    except (ValueError, TypeError):
        return False


def twins(
    layer: keras.layers.Layer, copy: keras.layers.Layer
) -> Iterator[tuple[Any, Any]]:
    """A layer and the layers it holds, each with the one of its copy.

    A layer without weights that was put in the place of one of another class
    takes its place in the copy too.
    """
    seen: set[int] = set()
    ahead: list[tuple[Any, Any]] = [(layer, copy)]
    while ahead:
        old, new = ahead.pop()
        if not _alike(old, new) or old is new or id(old) in seen:
            continue
        seen.add(id(old))
        yield old, new
        if isinstance(old, keras.Sequential):
            # Among those it lists for itself is an input once it is built.
            ahead += zip(old.layers, new.layers, strict=False)
            continue
        for name, value in list(vars(old).items()):
            other = vars(new).get(name)
            if isinstance(value, list | tuple) and isinstance(
                other, list | tuple
            ):
                pairs = list(zip(value, other, strict=False))
            elif isinstance(value, dict) and isinstance(other, dict):
                pairs = [(value[k], other[k]) for k in value if k in other]
            else:
                if (
                    isinstance(value, keras.layers.Layer)
                    and isinstance(other, keras.layers.Layer)
                    and not _alike(value, other)
                    and not (value.weights or new.built)
                ):
                    other = copy_of(value)
                    setattr(new, name, other)
                pairs = [(value, other)]
            ahead += [p for p in pairs if isinstance(p[0], keras.layers.Layer)]


def _alike(old: Any, new: Any) -> bool:
    """Whether two layers are of one class, or of one that records its parts."""
    return type(old) is type(new) or any(
        getattr(a, "records", None) is type(b)
        for a, b in ((type(old), new), (type(new), old))
    )


def _carry(old: Any, new: Any, changes: Collection[str]) -> None:
    """Give a layer what its configuration does not say."""
    carry_functions(old, new, changes)
    if isinstance(old, keras.layers.StringLookup | keras.layers.IntegerLookup):
        if old.get_vocabulary(include_special_tokens=False):
            weights = getattr(old, "idf_weights", None)
            new.set_vocabulary(
                old.get_vocabulary(),
                None if weights is None else weights.numpy(),
            )
    elif hasattr(old, "save_assets") and not isinstance(
        old,
        keras.layers.TextVectorization,  # holds a StringLookup
    ):
        with tempfile.TemporaryDirectory() as directory:
            old.save_assets(directory)
            new.load_assets(directory)


def derive_state(layer: Any) -> None:
    """Let a layer compute what it keeps besides its variables, as on loading.

    Only the layers that say so: loading merges adapters of Keras's others.
    """
    load = type(layer).load_own_variables
    if (
        isinstance(layer, keras.layers.Normalization)
        or load.__module__.partition(".")[0] != "keras"
    ):
        store: dict[str, Any] = {}
        layer.save_own_variables(store)
        layer.load_own_variables(store)
