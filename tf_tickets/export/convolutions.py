"""Convolutions with few weights as sparse matrix products.

Both methods multiply a sparse [filters, window x channels] matrix with the
pixels under each window. ``patches`` extracts these with TensorFlow's own
operation, channels last. ``shifts`` turns the images to channels first and
pads them, so that each row of the pixel matrix is one channel moved by a
fixed distance: one long copy, and only for the channels that some filter
reads at that place of its window.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tf_tickets.export.products import (
    Decoded,
    Method,
    Tensors,
    columns_product,
    coordinate_types,
    coordinates,
    rows_product,
)

_ORDER = (3, 0, 1, 2)


def patches(layer: keras.layers.Conv2D, kernel: np.ndarray) -> Method:
    """A channels-last convolution of any window, as one product."""
    height, width, channels, filters = kernel.shape
    shape = (filters, height * width * channels)

    def apply(inputs: tf.Tensor, tensors: Tensors) -> tf.Tensor:
        windows = tf.image.extract_patches(
            inputs,
            [1, height, width, 1],
            [1, *layer.strides, 1],
            [1, *layer.dilation_rate, 1],
            layer.padding.upper(),
        )
        y = rows_product(tf.reshape(windows, [-1, shape[1]]), tensors, shape)
        out = tf.reshape(y, tf.concat([tf.shape(windows)[:3], [filters]], 0))
        out.set_shape(windows.shape[:3].concatenate(filters))
        return out

    return Method(
        "patches",
        _ORDER,
        coordinate_types(int(np.count_nonzero(kernel))),
        lambda decoded: coordinates(shape, decoded),
        apply,
    )


def shifts(layer: keras.layers.Conv2D, kernel: np.ndarray) -> Method:
    """The same for a window that moves by one, without gaps."""
    height, width, channels, filters = kernel.shape
    shape = (filters, height * width * channels)
    read = kernel.any(axis=3).reshape(height * width, channels)
    # Rows of the pixel matrix: first those of the window's first place, ...
    ends = np.cumsum(read.sum(axis=1)).tolist()
    starts = [0, *ends[:-1]]
    rows = ends[-1]

    def prepare(decoded: Decoded) -> Tensors:
        whole = coordinates(shape, decoded)
        column = whole["indices"][:, 1]
        used = tf.sort(tf.unique(column)[0])
        row = tf.searchsorted(used, column, out_type=tf.int64)
        return {
            "indices": tf.stack([whole["indices"][:, 0], row], axis=1),
            "values": whole["values"],
            "channels": tf.cast(used % channels, tf.int32),
        }

    def apply(inputs: tf.Tensor, tensors: Tensors) -> tf.Tensor:
        images = tf.transpose(inputs, [3, 0, 1, 2])
        if layer.padding == "same":
            images = tf.pad(
                images,
                [
                    [0, 0],
                    [0, 0],
                    [(height - 1) // 2, height // 2],
                    [(width - 1) // 2, width // 2],
                ],
            )
        _, batch, tall, wide = tf.unstack(tf.shape(images))
        pixels = batch * tall * wide
        picked = tf.gather(
            tf.reshape(images, [channels, -1]), tensors["channels"]
        )
        # What a shift pulls in from the next row lands on padding only.
        farthest = (height - 1) * wide + width - 1
        line = tf.pad(tf.reshape(picked, [-1]), [[0, farthest]])
        moved = []
        for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
            if start == end:
                continue
            by = (place // width) * wide + place % width
            moved.append(line[start * pixels + by : end * pixels + by])
        matrix = tf.reshape(tf.concat(moved, 0), [rows, pixels])
        y = columns_product(matrix, tensors, (filters, rows))
        y = tf.reshape(y, [filters, batch, tall, wide])
        y = y[:, :, : tall - height + 1, : wide - width + 1]
        out = tf.transpose(y, [1, 2, 3, 0])
        size = [
            None if n is None else n if layer.padding == "same" else n - k + 1
            for n, k in zip(inputs.shape[1:3], (height, width), strict=True)
        ]
        out.set_shape([inputs.shape[0], *size, filters])
        return out

    return Method(
        "shifts",
        _ORDER,
        {
            **coordinate_types(int(np.count_nonzero(kernel))),
            "channels": (tf.int32, (rows,)),
        },
        prepare,
        apply,
    )
