"""What enters the layers of a model while it runs.

A kernel is a matrix, inputs × outputs, as `tf_tickets.network.kinds` knows it,
and its layer multiplies rows of numbers with it. These rows are what data says
of a kernel: how large its inputs are, and how they hang together.

The calls of layers are replaced for the time of a pass, so that layers inside
others, attributes and custom ones, are reached wherever they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tf_tickets.network.kinds import Rule, nearest
from tf_tickets.selection import layers_of, named_weights, own_weights

See = Callable[[keras.layers.Layer, Any], None]


@dataclasses.dataclass(frozen=True)
class Site:
    """A kernel, the layer that multiplies with it, and how.

    Attributes:
        path: The kernel's key.
        layer: The layer.
        kernel: The kernel.
        rule: As `tf_tickets.network.kinds.Kind.rows`.
    """

    path: str
    layer: keras.layers.Layer
    kernel: keras.Variable
    rule: Rule

    def rows(self, x: Any) -> tf.Tensor:
        """What the kernel's matrix is multiplied with, for one input.

        Args:
            x: The first argument of the layer's call.

        Returns:
            A float32 tensor of shape (samples, groups, rows of the matrix).
            With several groups each has an equal share of the columns, one
            after the other, and these see its inputs alone.
        """
        x = keras.tree.map_structure(lambda t: tf.cast(t, tf.float32), x)
        return self.rule(self.layer, self.kernel, x)


def sites_of(
    model: keras.Model, paths: Iterable[str], needed_by: str
) -> dict[str, Site]:
    """Where the kernels of these paths are multiplied.

    Args:
        model: A built model.
        paths: Keys of weights of it.
        needed_by: What asks, for error messages.

    Returns:
        ``{path: site}``, in the order of ``paths``.

    Raises:
        ValueError: If there are weights of which this is not known, listing
            them all with the reason.
    """
    weights = named_weights(model)
    paths = list(paths)
    unknown = [path for path in paths if path not in weights]
    if unknown:
        raise ValueError(
            f"{needed_by} must be asked of weights of the model. "
            f"Received: {unknown[:8]}"
        )
    holders: dict[int, list[keras.layers.Layer]] = {}
    for layer in layers_of(model):
        for variable in own_weights(layer):
            found = holders.setdefault(id(variable), [])
            if all(layer is not other for other in found):
                found.append(layer)
    sites, refused = {}, {}
    for path in paths:
        variable = weights[path]
        held = holders.get(id(variable), [])
        layer = held[0] if held else None
        rule = None if layer is None else nearest(layer, "rows")
        if len(held) > 1:
            refused[path] = "several layers share it"
        elif getattr(layer, "lora_enabled", False):
            refused[path] = "a low-rank update is added to it: merge it first"
        elif rule is None or layer is None:
            kind = type(layer).__name__
            refused[path] = f"no rule says what a {kind} multiplies it with"
        else:
            sites[path] = Site(path, layer, variable, rule)
    if refused:
        raise unreadable(needed_by, refused)
    return sites


def unreadable(needed_by: str, reasons: dict[str, str]) -> ValueError:
    """The error that names weights whose inputs cannot be read.

    Args:
        needed_by: What needs them.
        reasons: ``{path: why}``.
    """
    listed = "; ".join(f"{path}: {why}" for path, why in [*reasons.items()][:8])
    more = f"; and {len(reasons) - 8} more" if len(reasons) > 8 else ""
    return ValueError(
        f"{needed_by} needs to see what enters each layer, which it cannot "
        "for some weights: leave them out with `filters`, or enter a layer of "
        "your own with tf_tickets.network.kinds.register(Layer, rows=...). "
        f"Received: {listed}{more}"
    )


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


@contextlib.contextmanager
def watched(layers: Iterable[keras.layers.Layer], see: See) -> Iterator[None]:
    """Inside, ``see(layer, input)`` is called before every call of a layer.

    Args:
        layers: Each is watched once, however often it comes.
        see: Gets the first argument of the call: a tensor with a value, or a
            symbolic one where Keras runs a layer inside a loop.
    """

    def seeing(layer: keras.layers.Layer) -> Callable[..., Any]:
        call = layer.call

        def called(*args: Any, **kwargs: Any) -> Any:
            see(layer, args[0] if args else next(iter(kwargs.values())))
            return call(*args, **kwargs)

        return called

    with contextlib.ExitStack() as undo:
        for layer in {id(layer): layer for layer in layers}.values():
            undo.enter_context(replaced_call(layer, seeing(layer)))
        yield


def has_value(x: Any) -> bool:
    """Whether a tensor, or each of several, can be looked at now."""
    return all(hasattr(t, "numpy") for t in keras.tree.flatten(x))
