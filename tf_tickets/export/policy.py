"""Which layers LiteRT can compute sparsely: a pruning policy.

A kernel that is stored sparsely is computed sparsely in two cases only.

*Dense layers*, by LiteRT's own kernel, if the zeros come in blocks: of all
blocks of 4 neighbouring inputs of one unit, the fraction that is zero must be
above 0.9 times the fraction of weights that is. That is so for a mask in such
blocks at any density, and for a mask without structure below a density of
about 0.03. It is faster below a density of about 0.15, and slower above.

*1x1 convolutions*, by XNNPACK's sparse inference, in a part of a network that

- starts with a 3x3 convolution of stride 2 on 3 channels, padded by 1 on each
  side (`ZeroPadding2D(1)` and ``padding="valid"``, or ``padding="same"`` on an
  odd number of pixels: on an even one, TensorFlow pads on one side only),
- ends with a global average pooling,
- holds 1x1 convolutions, of whose weights at least two thirds are zero, and
  between them depthwise 3x3 and 5x5 convolutions with such padding, additions
  and elementwise activations.

So prune the 1x1 convolutions, and nothing else, to a sparsity of two thirds or
more: ``tt.prune(model, sparsity, filters=tt.export.prunable_for_xnnpack)``.
On x86 processors with AVX, XNNPACK leaves sparse inference off, since its
dense kernels are faster there; ARM and WebAssembly are what it is for.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Collection

import keras
import numpy as np

from tf_tickets.network.kinds import kind_of
from tf_tickets.selection import (
    layers_of,
    owners,
    prunable_weights,
    view_of,
)

_FEWEST_ZEROS = 2 / 3

# How the converter decides that a dense layer's zeros come in blocks.
_BLOCK = 4
_BLOCK_RATIO = 0.9


# Where this is run need not be where the file is meant to be used.
_HERE = (
    "XNNPACK leaves sparse inference of convolutions off on an x86 processor "
    "with AVX, as this one may be: its dense kernels are faster there"
)


@dataclasses.dataclass(frozen=True)
class LayerPolicy:
    """Whether a weight is one that can be computed sparsely.

    Attributes:
        key: The weight.
        density: Fraction that is not zero.
        computed_by: ``"LiteRT"`` or ``"XNNPACK"`` if it is; else empty.
        reason: Why not; empty if it is.
    """

    key: str
    density: float
    computed_by: str
    reason: str


def prunable_for_xnnpack(path: str, variable: keras.Variable) -> bool:
    """A filter for `tf_tickets.prune`: kernels of 1x1 convolutions.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 3)),
    ...     keras.layers.Conv2D(16, 3),
    ...     keras.layers.Conv2D(32, 1, name="pointwise"),
    ... ])
    >>> ticket = tt.prune(
    ...     model, sparsity=0.75, filters=tt.export.prunable_for_xnnpack)
    >>> [key.split("/")[-2] for key in ticket.masks]
    ['pointwise']
    """
    shape = tuple(variable.shape)
    return len(shape) == 4 and shape[:2] == (1, 1) and variable.name == "kernel"


def sparse_inference_policy(model: keras.Model) -> list[LayerPolicy]:
    """For each prunable weight, whether it can be computed sparsely.

    Args:
        model: A built model.

    Returns:
        One row for each weight. What the rows cannot see is whether an
        unusual operation stands between two layers; measure.
    """
    owner = owners(model)
    weights = prunable_weights(model)
    layers = {key: owner[id(v)] for key, v in weights.items()}
    methods = {k: _methods_of(layers[k]) for k in weights}
    pointwise = [k for k in weights if "XNNPACK" in methods[k]]
    zeros = sum(
        weights[k].numpy().size - np.count_nonzero(weights[k].numpy())
        for k in pointwise
    )
    size = sum(int(np.prod(weights[k].shape)) for k in pointwise)
    missing = _missing(model)
    rows = []
    for key, variable in weights.items():
        value = view_of(variable)
        by = "XNNPACK"
        if "LiteRT" in methods[key]:
            by = "LiteRT"
            reason = _not_in_blocks(value)
        elif key not in pointwise:
            reason = "neither a dense layer nor a 1x1 convolution of stride 1"
        elif missing:
            reason = missing
        elif zeros < _FEWEST_ZEROS * size:
            reason = (
                f"only {zeros / size:.2f} of the weights of the 1x1 "
                "convolutions are zero, and it takes two thirds"
            )
        else:
            reason = ""
        rows.append(
            LayerPolicy(
                key,
                float(np.count_nonzero(value)) / value.size,
                "" if reason else by,
                reason,
            )
        )
    return rows


def _not_in_blocks(kernel: np.ndarray) -> str:
    inputs, units = kernel.shape
    padded = np.pad(kernel != 0, [(0, -inputs % _BLOCK), (0, 0)])
    blocks = padded.reshape(-1, _BLOCK, units).any(axis=1)
    empty, zeros = 1 - blocks.mean(), 1 - (kernel != 0).mean()
    if empty > _BLOCK_RATIO * zeros and empty > 0:
        return ""
    return (
        f"{empty:.2f} of the blocks of {_BLOCK} inputs are zero and {zeros:.2f}"
        " of the weights: not in blocks"
    )


def notes() -> list[str]:
    """What about this machine decides whether sparse inference is used."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
    return [_HERE] if is_x86 else []


def _methods_of(layer: keras.layers.Layer) -> Collection[str]:
    rule = kind_of(layer).kernels
    return () if rule is None else rule(layer)


def _missing(model: keras.Model) -> str:
    """What the network lacks of the shape that XNNPACK looks for."""
    first = next(
        (
            one
            for one in layers_of(model)
            if isinstance(one, keras.layers.Conv2D)
        ),
        None,
    )
    if (
        first is None
        or first.kernel_size != (3, 3)
        or first.strides != (2, 2)
        or first.kernel.shape[2] != 3
    ):
        return "the first convolution is not 3x3, of stride 2, on 3 channels"
    if first.padding == "same":
        size = getattr(model, "input_shape", None)
        if not isinstance(size, tuple) or any(
            n is None or n % 2 == 0 for n in size[1:3]
        ):
            return (
                "the first convolution pads an even number of pixels: not by "
                "1 on each side"
            )
    if not any(
        isinstance(one, keras.layers.GlobalAveragePooling2D)
        for one in layers_of(model)
    ):
        return "no global average pooling ends the convolutions"
    return ""
