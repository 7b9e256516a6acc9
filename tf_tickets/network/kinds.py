"""What is known of each kind of layer: one table, one entry a kind.

An entry says what a layer does to channels, which channels it leaves constant,
how much it computes, and which sparse methods can compute it. A layer without
an entry is safe everywhere: its channels stay, its operations are listed as
not counted, and it is served dense.

The entries of Keras's own layers stand in `tf_tickets.network.weighted` and
`tf_tickets.network.weightless`. `register` adds one, from anywhere:

>>> import tf_tickets as tt
>>> class Clipped(keras.layers.ReLU):
...     def call(self, x):
...         return keras.ops.minimum(super().call(x), 1.0)
>>> tt.network.kinds.register(Clipped, like=keras.layers.ReLU)

Entries are found by the exact class, never by a name: a subclass may compute
something else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras

# The signatures of rules are those that `Kind` tells; rules know channels and
# graphs, which are built on this table.
Rule = Callable[..., Any]
# A layer's class; the class of an operation; or a function of `keras.ops` or
# `keras.activations`, which stands for itself and for the operation it makes.
Target = type[keras.Operation] | Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is known of a kind of layer; every part may be left out.

    Attributes:
        channels: ``(channels, call) -> Flow``: ties and claims the channels
            that meet in one call, as `tf_tickets.network.channels` explains,
            and returns those of its output. Raises `Unfollowed` for a use of
            the layer that it does not cover. `None`: all channels stay.
        constants: ``(channels, call, constants) -> array``: the value that
            each channel of the output has at inference at every position of
            every sample, NaN where it varies. `None`: all vary, so that no
            channel that arrives at a kernel from there can go: what was
            pruned may have become anything.
        flops: ``(layer, input shape, output shape) -> [(kernel, sizes)]``: each
            weight of the kernel is multiplied once at every position of axes
            of these sizes. `None`: not known.
        kernels: ``layer -> {method: options}``: the methods of
            `tf_tickets.export` that can compute this layer from a sparse
            kernel. `None`: no method can.
        axes: ``{name of a kernel: (input axis, output axis)}`` where these are
            not the last two; the same axis twice where a kernel treats every
            channel for itself.
        outputs: ``(layer, kernel) -> axes``: the axes of a kernel that the
            outputs have; the others are summed over. `None`: the output axis,
            and where every channel is treated for itself, what follows it.
        rows: ``(layer, kernel, input) -> (samples, groups, rows)``: what the
            matrix of a kernel is multiplied with, as
            `tf_tickets.network.inputs.Site` explains; raises `ValueError` for
            a layer that it does not cover. `None`: not known.
        affine: ``layer -> (name of a kernel, whether inputs are never
            padded)``: the outputs are the inputs times this kernel, plus the
            layer's ``bias`` if its configuration says ``use_bias``, then its
            ``activation``. So a normalization after it can go into both, and
            one before it where nothing is padded and the kernel is its only
            one. `None`: not known.
    """

    channels: Rule | None = None
    constants: Rule | None = None
    flops: Rule | None = None
    kernels: Rule | None = None
    axes: Mapping[str, tuple[int, int]] | None = None
    outputs: Rule | None = None
    rows: Rule | None = None
    affine: Rule | None = None

    def axes_of(self, kernel: str) -> tuple[int, int]:
        """``(input axis, output axis)`` of the kernel of this name."""
        return (self.axes or {}).get(kernel, (-2, -1))


_KINDS: dict[Any, Kind] = {}
_NOTHING = Kind()


def register(
    *targets: Target, like: Target | None = None, **parts: Any
) -> None:
    """Enter a kind of layer into the table, in place of an older entry.

    Args:
        *targets: Layer classes, operation classes, or functions: of
            `keras.ops` and `keras.activations`, or one's own that serve as a
            layer's activation.
        like: A registered target whose entry to start from. Default: an empty
            entry.
        **parts: The parts of a `Kind`, by name.

    Raises:
        TypeError: If a `Kind` has no such part.
        ValueError: If there is no target, one is neither a class nor a
            function, or ``like`` is not in the table.

    Example:

    >>> from tf_tickets.network import kinds
    >>> from tf_tickets.network.channels import Flow
    >>> class Scale(keras.layers.Layer):
    ...     def build(self, shape):
    ...         self.scale = self.add_weight((shape[-1],), name="scale")
    ...     def call(self, x):
    ...         return x * self.scale
    >>> def scaled(channels, call):
    ...     atoms = channels.along(call, -1)
    ...     channels.claim(call.operation, "scale", 0, atoms)
    ...     return Flow(atoms, -1)
    >>> kinds.register(Scale, channels=scaled)
    """
    if not targets or not all(
        callable(one) and not isinstance(one, keras.Operation)
        for one in targets
    ):
        raise ValueError(
            "A kind of layer is a class of layers or operations, or a "
            f"function. Received: {targets}"
        )
    if like is not None and like not in _KINDS:
        raise ValueError(
            "`like` must be a class or function that is registered. "
            f"Received: like={like!r}"
        )
    kind = dataclasses.replace(_KINDS.get(like, _NOTHING), **parts)
    for target in targets:
        _KINDS[target] = kind
        made = operation_of(target)
        if made is not None:
            _KINDS[made] = kind


def kind_of(thing: Any) -> Kind:
    """The entry of a layer, of an operation, or of a function.

    Args:
        thing: A layer or an operation in a model's graph; or a function, such
            as the activation of a layer.

    Returns:
        Its entry; an empty one if there is none.

    Example:

    >>> kind_of(keras.layers.ReLU()) == kind_of(keras.ops.relu)
    True
    >>> kind_of(keras.layers.Layer()) == Kind()
    True
    """
    key = type(thing) if isinstance(thing, keras.Operation) else thing
    try:
        return _KINDS.get(key, _NOTHING)
    except TypeError:  # an activation may be any callable, hashable or not
        return _NOTHING


def output_axes(layer: Any, kernel: keras.Variable) -> tuple[int, ...]:
    """The axes of a kernel that the outputs have.

    The other axes are summed over, so that a kernel is a matrix: the axes that
    are summed over × these. A subclass lays its kernels as its base does.

    Args:
        layer: Which has the kernel; `None` if it is not known.
        kernel: One of its weights.

    Example:

    >>> layer = keras.layers.Conv2DTranspose(8, 3)
    >>> layer.build((None, 5, 5, 4))
    >>> tuple(layer.kernel.shape), output_axes(layer, layer.kernel)
    ((3, 3, 8, 4), (2,))
    """
    rank = len(kernel.shape)
    known = (_KINDS[c] for c in type(layer).__mro__ if c in _KINDS)
    kind = next(known, _NOTHING)
    if kind.outputs is not None:
        axes = tuple(kind.outputs(layer, kernel))
    elif rank < 2:
        axes = (-1,)
    else:
        into, out = kind.axes_of(kernel.name)
        axes = (out,) if into != out else tuple(range(out, 0))
    return tuple(sorted(axis % rank for axis in axes))


def nearest(layer: keras.layers.Layer, part: str) -> Rule | None:
    """A part of the entry of a layer, or of what it is a subclass of.

    Args:
        layer: A layer.
        part: The name of a part of `Kind`.

    Returns:
        The part of its class, or of the nearest base whose ``call`` it has;
        `None` if there is none.

    Example:

    >>> class Named(keras.layers.Dense):
    ...     pass
    >>> class Other(keras.layers.Dense):
    ...     def call(self, x):
    ...         return -super().call(x)
    >>> nearest(Named(2), "rows") is kind_of(keras.layers.Dense(2)).rows
    True
    >>> nearest(Other(2), "rows") is None
    True
    """
    for base in type(layer).__mro__:
        if base in _KINDS:
            # A watched layer has a call of its own for a time.
            same = getattr(base, "call", None) is type(layer).call
            return getattr(_KINDS[base], part) if same else None
    return None


def registered() -> dict[Any, Kind]:
    """The whole table: ``{class or function: entry}``."""
    return dict(_KINDS)


def operation_of(function: Any) -> type[keras.Operation] | None:
    """The class of the operation that a function of Keras puts in a graph.

    These classes have no public names, and the names they have are those of
    other things (`keras.layers.Add`). The function itself knows: it makes one.

    Returns:
        The class, or `None` for a function that makes no operation of its
        own, and for anything else.

    Example:

    >>> x = keras.Input((3,))
    >>> function = keras.Function(x, keras.ops.tanh(x))
    >>> isinstance(function.operations[-1], operation_of(keras.ops.tanh))
    True
    """
    code = getattr(function, "__code__", None)
    if code is None or not function.__module__.startswith("keras."):
        return None
    known = (function.__globals__.get(name) for name in code.co_names)
    made = [
        one
        for one in known
        if isinstance(one, type) and issubclass(one, keras.Operation)
    ]
    return made[0] if len(made) == 1 else None
