"""Handwritten digits of 8x8 pixels, which come with scikit-learn."""

from __future__ import annotations

import functools

import numpy as np

from tf_tickets.zoo.datasets.augmentation import random_crop
from tf_tickets.zoo.datasets.dataset import (
    Dataset,
    Examples,
    Normalization,
    Settings,
    assemble,
    require,
)


def load_digits(settings: Settings) -> Dataset:
    """Loads 1,797 digits: 1,198 to train, 299 to validate, 300 to test.

    The augmentation, off by default, shifts by up to one pixel. Pixels are
    standardized with the mean and the deviation of the training images.
    """
    source = require("sklearn.datasets").load_digits()
    images = source.images.astype(np.uint8)[..., np.newaxis]
    examples, test = Examples(images, source.target).hold_out(300)
    train, validation = settings.split(examples, usual=0.2)
    pixels = train.records / 16
    return assemble(
        "digits",
        train=train,
        validation=validation,
        test=test,
        input_shape=(8, 8, 1),
        classes=10,
        augmentations=(functools.partial(random_crop, padding=1),),
        normalization=Normalization(
            (float(pixels.mean()),), (float(pixels.std()),), scale=16.0
        ),
        settings=settings,
        augment=False,
    )
