"""MNIST-1D: digits as short noisy sequences, for studies on two CPU cores."""

from __future__ import annotations

import functools
import random

import numpy as np

from tf_tickets.zoo.datasets.dataset import (
    Dataset,
    Examples,
    Normalization,
    Settings,
    assemble,
    require,
)


def load_mnist1d(settings: Settings) -> Dataset:
    """Loads 5,000 sequences of 40 numbers: 4,000 to train, 1,000 to test.

    A tenth of those to train are held out. They come from the generator of the
    `mnist1d` package with its own seed, without a download, and are already
    standardized. There is no augmentation.
    """
    data = _generated()
    examples = Examples(data["x"][..., np.newaxis], data["y"])
    test = Examples(data["x_test"][..., np.newaxis], data["y_test"])
    train, validation = settings.split(examples, usual=0.1)
    return assemble(
        "mnist1d",
        train=train,
        validation=validation,
        test=test,
        input_shape=(40, 1),
        classes=10,
        augmentations=(),
        normalization=Normalization((0.0,), (1.0,), scale=1.0),
        settings=settings,
        augment=False,
    )


@functools.cache
def _generated() -> dict[str, np.ndarray]:
    generator = require("mnist1d.data", extra="mnist1d")
    # It seeds the generators that everybody shares.
    states = random.getstate(), np.random.get_state()
    try:
        found = generator.make_dataset()
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    return {
        name: np.asarray(found[name], np.float32 if "x" in name else np.int64)
        for name in ("x", "y", "x_test", "y_test")
    }
