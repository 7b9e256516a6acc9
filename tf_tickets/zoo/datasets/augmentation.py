"""Augmentations: random changes of a batch of images, given a seed.

They work on whole batches of raw pixels, before normalization, so
that what moves in from outside is black, as in the published pipelines.
Random numbers are drawn per image with stateless functions: the same seed
gives the same batch in any thread and any process.
"""

from __future__ import annotations

import math

import tensorflow as tf


def random_crop(
    images: tf.Tensor, seed: tf.Tensor, *, padding: int
) -> tf.Tensor:
    """Pads each image with zeros on all sides and crops it at random.

    Args:
        images: Batch of images, `[batch, height, width, channels]`.
        seed: Two integers.
        padding: Pixels to pad on each side.

    Returns:
        Images of the same shape.

    Example:

    >>> import tensorflow as tf
    >>> random_crop(tf.ones((2, 4, 4, 1)), (0, 1), padding=1).shape
    TensorShape([2, 4, 4, 1])
    """
    batch = tf.shape(images)[0]
    height, width = images.shape[1:3]
    offsets = tf.random.stateless_uniform(
        (2, batch, 1), seed, maxval=2 * padding + 1, dtype=tf.int32
    )
    sides = [padding, padding]
    padded = tf.pad(images, [[0, 0], sides, sides, [0, 0]])
    rows = offsets[0] + tf.range(height)
    columns = offsets[1] + tf.range(width)
    cropped = tf.gather(padded, rows, axis=1, batch_dims=1)
    cropped = tf.gather(cropped, columns, axis=2, batch_dims=1)
    return tf.ensure_shape(cropped, images.shape)


def random_flip(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirrors each image left to right with probability one half.

    Args:
        images: Batch of images, `[batch, height, width, channels]`.
        seed: Two integers.

    Returns:
        Images of the same shape.

    Example:

    >>> import tensorflow as tf
    >>> image = tf.reshape(tf.range(2), (1, 1, 2, 1))
    >>> flips = [random_flip(image, (s, 0))[0, 0, 0, 0] for s in range(20)]
    >>> sorted({int(pixel) for pixel in flips})
    [0, 1]
    """
    shape = (tf.shape(images)[0], 1, 1, 1)
    mirrored = tf.random.stateless_uniform(shape, seed) < 0.5
    return tf.where(mirrored, tf.reverse(images, [2]), images)


def random_rotation(
    images: tf.Tensor, seed: tf.Tensor, *, degrees: float
) -> tf.Tensor:
    """Rotates each image by an angle drawn from [-degrees, degrees].

    Args:
        images: Batch of images, `[batch, height, width, channels]`.
        seed: Two integers.
        degrees: The largest angle.

    Returns:
        Images of the same shape.

    Example:

    >>> import tensorflow as tf
    >>> random_rotation(tf.ones((2, 4, 4, 1)), (0, 1), degrees=20).shape
    TensorShape([2, 4, 4, 1])
    """
    angles = tf.random.stateless_uniform(
        (tf.shape(images)[0],), seed, -degrees, degrees
    )
    return rotate(images, angles)


def rotate(images: tf.Tensor, degrees: tf.Tensor) -> tf.Tensor:
    """Rotates each image counter-clockwise about its centre.

    The nearest pixel is taken; what comes from outside is zero.

    Args:
        images: Batch of images, `[batch, height, width, channels]`.
        degrees: One angle for each image.

    Returns:
        Images of the same shape.

    Example:

    >>> import tensorflow as tf
    >>> image = tf.reshape([[1, 2], [3, 4]], (1, 2, 2, 1))
    >>> rotate(image, [90.0])[0, :, :, 0].numpy().tolist()
    [[2, 4], [1, 3]]
    """
    angles = tf.convert_to_tensor(degrees, tf.float32) * (math.pi / 180)
    height, width = images.shape[1:3]
    x, y = (width - 1) / 2, (height - 1) / 2
    cos, sin = tf.cos(angles), tf.sin(angles)
    # Output pixel (u, v) shows input pixel (a u + b v + c, d u + e v + f).
    zeros = tf.zeros_like(cos)
    transforms = tf.stack(
        [
            *(cos, -sin, x - cos * x + sin * y),
            *(sin, cos, y - sin * x - cos * y),
            *(zeros, zeros),
        ],
        axis=1,
    )
    rotated = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=transforms,
        output_shape=(height, width),
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )
    return tf.ensure_shape(rotated, images.shape)
