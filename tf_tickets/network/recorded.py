"""Layers whose configuration does not say what they hold: it is recorded.

A block of a transformer computes the size of a head from the number of heads,
so with fewer heads no configuration gives the same block. Such a block is
made by its class as ever, and the layers that it makes inside are exchanged
for the recorded ones as it takes them. It is an instance of its class, holds
layers of the same names under the same attributes, trains, and is saved with
the record. To load it, tf_tickets must be imported.
"""

from __future__ import annotations

import contextvars
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras

from tf_tickets.network.layer_copy import (
    carry_functions,
    classes_of,
    usable_config,
)


def parts_of(
    layer: keras.layers.Layer,
) -> Iterator[tuple[keras.layers.Layer, list[str]]]:
    """The layers that a layer holds, each with its places in it.

    A place is the name of an attribute, and of a list or dictionary also the
    index or key: ``"blocks/0"``.
    """
    found: dict[int, tuple[keras.layers.Layer, list[str]]] = {}
    common = _bookkeeping()
    for name, value in vars(layer).items():
        if name in common:
            continue
        for place, item in _items(name, value):
            if isinstance(item, keras.layers.Layer):
                found.setdefault(id(item), (item, []))[1].append(place)
    yield from found.values()


def recorded(
    layer: keras.layers.Layer,
    parts: Sequence[tuple[keras.layers.Layer, list[str], Any]] = (),
) -> keras.layers.Layer:
    """A layer of the class of ``layer`` that holds other layers than it would.

    Args:
        layer: The layer to copy; not built is the copy.
        parts: Layers that are not built, the places each takes, and the
            ``build_config`` that it gets, whatever the layer gives it.

    Returns:
        The copy. Its class is one derived from that of ``layer``.
    """
    record: dict[str, Any] = {"layer": None, "parts": []}
    if is_recorded(layer):
        record = layer.get_config()
    given = [place for _, places, _ in parts for place in places]
    kept = [e for e in record["parts"] if not {*e["places"]} & {*given}]
    with classes_of(layer):
        return _made(
            {
                "name": layer.name,
                "layer": record["layer"] or serialized(layer),
                "parts": kept
                + [
                    {
                        "places": places,
                        "layer": serialized(part),
                        "build": keras.saving.serialize_keras_object(
                            dict(build or {})
                        ),
                    }
                    for part, places, build in parts
                ],
            },
            [None] * len(kept) + [part for part, _, _ in parts],
        )


def class_of(layer: Any) -> type:
    """The class of a layer, as its author knows it."""
    return getattr(type(layer), "records", type(layer))


def is_recorded(layer: Any) -> bool:
    """Whether a layer holds what its configuration alone would not give."""
    return isinstance(layer, _Recorded)


def serialized(layer: keras.layers.Layer) -> dict[str, Any]:
    """A layer as Keras saves it, without a size that it was built for."""
    config = usable_config(layer)
    vars(layer)["get_config"] = lambda: config
    try:
        saved = keras.saving.serialize_keras_object(layer)
    finally:
        del vars(layer)["get_config"]
    saved.pop("build_config", None)
    return dict(json.loads(json.dumps(saved)))


class _Pending:
    """What a layer in the making still has to exchange."""

    def __init__(self, text: str, parts: dict[str, keras.layers.Layer]) -> None:
        self.text = text
        self.parts = parts
        # What was exchanged is held so that its id stays its own.
        self.taken: dict[int, tuple[Any, keras.layers.Layer]] = {}

    def take(self, place: str, value: Any) -> Any:
        if not isinstance(value, keras.layers.Layer):
            return value
        if id(value) in self.taken:
            self.parts.pop(place, None)
            return self.taken[id(value)][1]
        if place not in self.parts:
            return value
        part = self.parts.pop(place)
        self.taken[id(value)] = value, part
        return part

    def exchanged(self, name: str, value: Any) -> Any:
        if not self.parts and not self.taken:
            return value
        if isinstance(value, dict):
            return {k: self.take(f"{name}/{k}", v) for k, v in value.items()}
        if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
            items = [self.take(f"{name}/{i}", v) for i, v in enumerate(value)]
            return tuple(items) if isinstance(value, tuple) else items
        return self.take(name, value)


class _Recorded:
    """Exchanges layers as attributes are set. Stands before a layer's class."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        layer = super().__new__(cls, *args, **kwargs)
        object.__setattr__(layer, "_record", _PENDING.get())
        return layer

    def __setattr__(self, name: str, value: Any) -> None:
        pending = vars(self).get("_record")
        if pending is None or name == "_record":
            super().__setattr__(name, value)
            return
        super().__setattr__(name, pending.exchanged(name, value))
        held = vars(self).get(name)
        if isinstance(held, list) and any(
            place.startswith(f"{name}/") for place in pending.parts
        ):
            # Keras's own kind of list, which may grow later.
            held.__class__ = _growing(type(held))
            vars(held)["take"] = functools.partial(_take, pending, name)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(vars(self)["_record"].text)
        return {**config, "name": self.name}  # type: ignore[attr-defined]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Any:
        return _made(config)


_PENDING: contextvars.ContextVar[_Pending] = contextvars.ContextVar("pending")


def _take(pending: _Pending, name: str, index: int, value: Any) -> Any:
    return pending.take(f"{name}/{index}", value)


@functools.cache
def _growing(kind: Any) -> Any:
    """A kind of list that exchanges what is appended to it."""

    def append(self: Any, value: Any) -> None:
        kind.append(self, self.take(len(self), value))

    def extend(self: Any, values: Any) -> None:
        for value in values:
            append(self, value)

    return type(kind.__name__, (kind,), {"append": append, "extend": extend})


@keras.saving.register_keras_serializable("tf_tickets", "Recorded")
class Recorded(keras.layers.Layer):
    """What Keras finds under the name that recorded layers are saved by."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Any:
        return _made(config)


@functools.cache
def _class(base: Any) -> Any:
    """A class derived from ``base`` whose layers exchange what they hold."""
    members: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "records": base,
    }
    if not hasattr(base.build, "_is_default"):

        @functools.wraps(base.build)
        def build(self: Any, *args: Any, **kwargs: Any) -> None:
            base.build(self, *args, **kwargs)
            pending = vars(self)["_record"]
            pending.taken.clear()
            if pending.parts:
                raise ValueError(
                    "A saved layer does not hold all that its record names; "
                    "has its class changed? Received: "
                    f"{self.name} ({base.__name__}) without "
                    f"{sorted(pending.parts)}"
                )

        members["build"] = build
    made = type(base.__name__, (_Recorded, base), members)
    register = keras.saving.register_keras_serializable
    register("tf_tickets", "Recorded")(made)
    # One name serves all of them, and is looked up for all here.
    register("tf_tickets", "Recorded")(Recorded)
    return made


def _made(
    config: Mapping[str, Any],
    layers: Sequence[keras.layers.Layer | None] | None = None,
) -> Any:
    """A recorded layer, of its own parts or of given ones."""
    config = json.loads(json.dumps(dict(config)))
    plain = keras.saving.deserialize_keras_object(config["layer"])
    parts: dict[str, keras.layers.Layer] = {}
    for index, entry in enumerate(config["parts"]):
        part = layers[index] if layers else None
        if part is None:
            part = keras.saving.deserialize_keras_object(entry["layer"])
        build = keras.saving.deserialize_keras_object(entry["build"])
        _settle(part, build)
        parts |= dict.fromkeys(entry["places"], part)
    pending = _Pending(json.dumps(config), parts)
    token = _PENDING.set(pending)
    try:
        kind = _class(class_of(plain))
        made = super(_Recorded, kind).from_config(
            {**config["layer"]["config"], "name": config["name"]}
        )
    finally:
        _PENDING.reset(token)
    pending.taken.clear()
    carry_functions(plain, made)
    return made


def _settle(part: keras.layers.Layer, config: Any) -> None:
    """Let a layer be built in one way, whatever it is told."""
    if not config:
        return
    plain = part.build

    @functools.wraps(plain)
    def build(*args: Any, **kwargs: Any) -> None:
        if part.built:
            return
        part.build = plain
        try:
            part.build_from_config(config)
        finally:
            part.build = build

    part.build = build


def by_config(
    layer: keras.layers.Layer,
    sizes: Mapping[int, int],
    fits: Callable[[dict[str, Any]], bool],
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """The fewest changes of a configuration that give a layer other sizes.

    Args:
        layer: The layer.
        sizes: What becomes of the sizes that change.
        fits: Whether the layer made with these changes is what is wanted.
        more: Changes to try beside those, where those alone do not fit.

    Returns:
        The changes, none of them if what the layer is built for is enough, or
        `None` if no changes of its numbers fit.
    """
    config = usable_config(layer)
    keys = [
        key
        for key, value in config.items()
        if type(value) is int and value in sizes
    ][:4]
    for beside in ({}, more) if more else ({},):
        for count in range(len(keys) + 1):
            for chosen in itertools.combinations(keys, count):
                changes = {key: sizes[config[key]] for key in chosen}
                if fits({**changes, **beside}):
                    return {**changes, **beside}
    return None


@functools.cache
def _bookkeeping() -> frozenset[str]:
    """Attributes in which every layer lists what it holds once more."""
    probe = keras.layers.Layer(name="probe")
    probe.one = keras.layers.Layer(name="inner")
    probe.several = [probe.one]
    return frozenset(vars(probe)) - {"one", "several"}


def _items(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield f"{name}/{index}", item
    elif isinstance(value, dict):
        for key, item in value.items():
            yield f"{name}/{key}", item
    else:
        yield name, value
