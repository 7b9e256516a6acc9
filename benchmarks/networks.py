"""The networks that are timed, built by Keras 3 and by tf_keras alike."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

CLASSES = 10


def resnet(
    module: ModuleType, *, size: int = 32, width: int = 16, blocks: int = 3
) -> Any:
    """A CIFAR ResNet with ``6 * blocks + 2`` layers; ResNet-20 by default.

    Args:
        module: ``keras`` or ``tf_keras``.
        size: Height and width of the images.
        width: Channels of the first stage.
        blocks: Residual blocks in each of the three stages.

    Returns:
        A model of ``module``, not compiled.
    """
    layers = module.layers

    def convolve(x: Any, channels: int, stride: int, kernel: int = 3) -> Any:
        x = layers.Conv2D(
            channels, kernel, stride, padding="same", use_bias=False
        )(x)
        return layers.BatchNormalization()(x)

    inputs = module.Input((size, size, 3))
    x = layers.ReLU()(convolve(inputs, width, 1))
    for stage in range(3):
        for block in range(blocks):
            channels = width * 2**stage
            stride = 2 if stage and not block else 1
            y = layers.ReLU()(convolve(x, channels, stride))
            y = convolve(y, channels, 1)
            if stride > 1:
                x = convolve(x, channels, stride, kernel=1)
            x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return module.Model(inputs, layers.Dense(CLASSES)(x))


def mlp(module: ModuleType, *, width: int = 2048, depth: int = 3) -> Any:
    """``depth`` square layers and a head: nearly all time goes to weights."""
    layers = module.layers
    return module.Sequential(
        [
            module.Input((width,)),
            *(layers.Dense(width, activation="relu") for _ in range(depth)),
            layers.Dense(CLASSES),
        ]
    )


def compile_for_training(
    module: ModuleType, model: Any, *, jit_compile: bool
) -> Any:
    """``model``, compiled with SGD and momentum."""
    model.compile(
        module.optimizers.SGD(1e-3, momentum=0.9),
        module.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
    )
    return model


def random_batches(
    shape: tuple[int, ...], batch_size: int, *, seed: int = 0
) -> tf.data.Dataset:
    """One batch of noise for ever: reading data costs no time."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch_size, *shape)).astype(np.float32)
    y = rng.integers(0, CLASSES, batch_size)
    options = tf.data.Options()
    options.autotune.enabled = False
    return tf.data.Dataset.from_tensors((x, y)).repeat().with_options(options)
