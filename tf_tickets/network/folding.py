"""A normalization as a part of the layer before it or after it.

In inference mode a batch normalization is a scale and an offset for each
channel, BN(x) = fx + o with f = γ/√(σ² + ε) and o = β - fμ. A layer that
multiplies by a kernel and adds a bias can take both over.
"""

from __future__ import annotations

import keras
import numpy as np


def scale_and_offset(
    norm: keras.layers.BatchNormalization,
) -> tuple[np.ndarray, np.ndarray]:
    """What a built normalization does to each channel, in float64.

    Example:

    >>> norm = keras.layers.BatchNormalization(epsilon=0.0)
    >>> norm.build((None, 2))
    >>> norm.set_weights(  # scale, offset, mean, variance
    ...     np.array([[2.0, 1.0], [0.0, 5.0], [0.0, 3.0], [1.0, 4.0]]))
    >>> [array.tolist() for array in scale_and_offset(norm)]
    [[2.0, 0.5], [0.0, 3.5]]
    """

    def value(variable: keras.Variable) -> np.ndarray:
        return keras.ops.convert_to_numpy(variable).astype(np.float64)

    factor = 1 / np.sqrt(value(norm.moving_variance) + norm.epsilon)
    if norm.scale:
        factor = factor * value(norm.gamma)
    offset = -value(norm.moving_mean) * factor
    if norm.center:
        offset = offset + value(norm.beta)
    return factor, offset


def fold_normalization(
    kernel: np.ndarray,
    bias: np.ndarray,
    norm: keras.layers.BatchNormalization,
    axes: tuple[int, ...] = (-1,),
) -> tuple[np.ndarray, np.ndarray]:
    r"""Kernel and bias of a layer together with the normalization after it.

    $BN(k*x + b) = (fk)*x + fb + o$.

    Args:
        kernel: Array: the layer's kernel.
        bias: Array: its bias, zeros if it has none.
        norm: A built `BatchNormalization` over the layer's output channels.
        axes: The axes of the kernel that count the output channels. Default
            ``(-1,)``, as in dense layers and convolutions; ``(-2, -1)`` in
            depthwise convolutions, ``(-2,)`` in transposed ones.

    Returns:
        The new kernel and the new bias, in float64.

    Example:

    >>> from tf_tickets.network.folding import fold_normalization
    >>> norm = keras.layers.BatchNormalization(epsilon=0.0)
    >>> norm.build((None, 2))
    >>> norm.set_weights(  # scale, offset, mean, variance
    ...     np.array([[2.0, 1.0], [0.0, 5.0], [0.0, 3.0], [1.0, 4.0]]))
    >>> kernel, bias = fold_normalization(np.ones((3, 2)), np.zeros(2), norm)
    >>> kernel[0].tolist(), bias.tolist()
    ([2.0, 0.5], [0.0, 3.5])
    """
    factor, offset = scale_and_offset(norm)
    shape = [1] * kernel.ndim
    for axis in axes:
        shape[axis] = kernel.shape[axis]
    bias = np.asarray(bias, np.float64) * factor + offset
    return np.asarray(kernel, np.float64) * factor.reshape(shape), bias


def fold_normalization_before(
    kernel: np.ndarray,
    bias: np.ndarray,
    norm: keras.layers.BatchNormalization,
    axes: tuple[int, int] = (-2, -1),
    groups: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Kernel and bias of a layer together with the normalization before it.

    $k*BN(x) + b = (kf)*x + b + \sum ko$, the sum over the positions and
    inputs of the kernel; so not where the layer pads its input with zeros.

    Args:
        kernel: Array: the layer's kernel.
        bias: Array: its bias, zeros if it has none.
        norm: A built `BatchNormalization` over the layer's input channels.
        axes: The axes of the kernel that count inputs and outputs. Default
            ``(-2, -1)``; ``(-1, -2)`` in transposed convolutions, ``(-2, -2)``
            where every channel is treated for itself.
        groups: Of the convolution. Default 1.

    Returns:
        The new kernel and the new bias, in float64.

    Example:

    >>> norm = keras.layers.BatchNormalization(epsilon=0.0)
    >>> norm.build((None, 2))
    >>> norm.set_weights(  # scale, offset, mean, variance
    ...     np.array([[2.0, 1.0], [0.0, 5.0], [0.0, 3.0], [1.0, 4.0]]))
    >>> kernel, bias = fold_normalization_before(
    ...     np.ones((2, 3)), np.zeros(3), norm)
    >>> kernel[:, 0].tolist(), bias.tolist()
    ([2.0, 0.5], [3.5, 3.5, 3.5])
    """
    factor, offset = scale_and_offset(norm)
    ins, outs = axes
    if ins == outs:  # the outputs of a channel come one after another
        ins, outs = -2, -1
        moved = np.asarray(kernel, np.float64)
        shift = moved.reshape(-1, *moved.shape[-2:]).sum(0) * offset[:, None]
        return moved * factor[:, None], bias + shift.ravel()
    moved = np.moveaxis(np.asarray(kernel, np.float64), axes, (-2, -1))
    # Which channels the kernel's inputs are, for every output.
    outputs = moved.shape[-1]
    read = np.arange(factor.size).reshape(groups, -1)
    read = np.repeat(read, outputs // groups, axis=0).T
    shift = moved.reshape(-1, *moved.shape[-2:]).sum(0) * offset[read]
    moved = moved * factor[read]
    return np.moveaxis(moved, (-2, -1), axes), bias + shift.sum(0)
