"""CIFAR-10 and CIFAR-100."""

from __future__ import annotations

import functools

import numpy as np

from tf_tickets.zoo.datasets import prepared
from tf_tickets.zoo.datasets.augmentation import random_crop, random_flip
from tf_tickets.zoo.datasets.dataset import Dataset, Normalization, assemble
from tf_tickets.zoo.datasets.examples import Examples
from tf_tickets.zoo.datasets.settings import Settings

_HOST = "https://www.cs.toronto.edu"
_VALIDATION_SPLIT = 0.1
_NORMALIZATION = {
    10: Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    100: Normalization((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def load_cifar(settings: Settings, *, classes: int) -> Dataset:
    """Loads CIFAR-10 or CIFAR-100 from TensorFlow Datasets.

    45,000 images to train, 5,000 to validate and 10,000 to test, as in *Rare
    Gems*, and as the 9:1 split of *Spending Your Winning Lottery Better*.
    The augmentation pads by 4, crops and mirrors.
    """
    name = f"cifar{classes}"
    examples = _read(name, "train", settings)
    split = settings.validation_split
    split = _VALIDATION_SPLIT if split is None else split
    train, validation = examples.hold_out(round(split * len(examples)))
    return assemble(
        name,
        train=train,
        validation=validation,
        test=_read(name, "test", settings),
        input_shape=(32, 32, 3),
        classes=classes,
        augmentations=(
            functools.partial(random_crop, padding=4),
            random_flip,
        ),
        normalization=_NORMALIZATION[classes],
        settings=settings,
    )


def _read(name: str, split: str, settings: Settings) -> Examples:
    examples, _ = prepared.read(
        name,
        split,
        data_dir=settings.data_dir,
        host=_HOST,
        as_supervised=True,
        batch_size=1000,
    )
    batches = list(examples.as_numpy_iterator())
    return Examples(
        np.concatenate([images for images, _ in batches]),
        np.concatenate([labels for _, labels in batches]),
    )
