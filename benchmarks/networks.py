"""The networks that are timed, built by Keras 3 and by tf_keras alike."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests import gallery

CLASSES = 10


SIZES: dict[str, tuple[Callable[..., Any], dict[str, int]]] = {
    "resnet20": (gallery.resnet, {"size": 32, "width": 16, "blocks": 3}),
    "mlp": (gallery.stack, {"width": 2048, "depth": 3}),
}

Step = Callable[[], object]


def build(name: str, module: ModuleType = keras, *, smoke: bool = False) -> Any:
    """A network of the gallery in the size that is timed.

    Args:
        name: ``"resnet20"`` or ``"mlp"``, nearly all of whose time goes to
            its weights.
        module: ``keras`` or ``tf_keras``.
        smoke: Whether to leave it as small as it is in the gallery.

    Returns:
        A model of ``module``, not compiled.
    """
    make, sizes = SIZES[name]
    return make(module, **({} if smoke else sizes))


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


def step_of(model: Any, batches: tf.data.Dataset) -> Step:
    """One training step as `fit` runs it, without callbacks."""
    iterator = iter(batches)
    # tf_keras returns the function, Keras 3 only keeps it.
    step = model.make_train_function() or model.train_function
    return lambda: step(iterator)
