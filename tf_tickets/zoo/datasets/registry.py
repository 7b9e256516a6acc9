"""The registry of data sets: a name for each, for scripts and flags."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

from tf_tickets import checks
from tf_tickets.zoo.datasets.dataset import Dataset, Settings
from tf_tickets.zoo.datasets.digits import load_digits
from tf_tickets.zoo.datasets.mnist1d import load_mnist1d
from tf_tickets.zoo.datasets.prepared import (
    load_caltech101,
    load_cifar,
    load_tiny_imagenet,
)

DATASETS: dict[str, Callable[[Settings], Dataset]] = {
    "digits": load_digits,
    "cifar10": functools.partial(load_cifar, classes=10),
    "cifar100": functools.partial(load_cifar, classes=100),
    "tiny_imagenet": load_tiny_imagenet,
    "caltech101": load_caltech101,
    "mnist1d": load_mnist1d,
}
"""``{name: function of the settings that returns a data set}``, yours too."""


def names() -> tuple[str, ...]:
    """The names that `load` knows.

    Example:

    >>> from tf_tickets.zoo import datasets
    >>> datasets.names()[0]
    'digits'
    """
    return tuple(DATASETS)


def load(
    name: str | Callable[[Settings], Dataset] = "digits",
    *,
    batch_size: int = 128,
    data_dir: str | os.PathLike[str] | None = None,
    augment: bool | None = None,
    seed: int = 0,
    validation_split: float | None = None,
) -> Dataset:
    """Loads a data set as batches of normalized images and labels.

    The splits are the same in every run: stratified, and independent of
    `seed`. Images are read once and kept as bytes; augmentation comes after,
    new in every epoch. Order and augmentation follow from the seed and the
    epoch, so that a run with a ``directory`` goes on after a kill as if nothing
    had happened: see `tf_tickets.data`.

    Args:
        name: One of `names()`: `"digits"` needs scikit-learn and no
            download; `"cifar10"`, `"cifar100"` and `"caltech101"` come from
            TensorFlow Datasets; `"tiny_imagenet"` from its unpacked archive;
            `"mnist1d"`, 4,000 short sequences, is made by the package of that
            name (`pip install 'tf_tickets[mnist1d]'`) without a download.
            Or a function that gets these options as `Settings` and returns a
            `Dataset`.
        batch_size: Examples in a batch.
        data_dir: Where TensorFlow Datasets has prepared or shall prepare the
            data; for TinyImageNet the folder `tiny-imagenet-200` or its
            parent.
        augment: Whether to augment the training images. CIFAR is padded by
            4, cropped and mirrored; TinyImageNet is rotated and mirrored;
            Caltech-101 is mirrored; digits are shifted by up to one pixel,
            which takes more epochs than their recipe has. `None` augments
            everything but the digits.
        seed: Seed of the order of the training images and of their
            augmentation. Both depend on `keras.utils.set_random_seed` too.
        validation_split: Share of the training examples to hold out; 0 keeps
            them all, as *Rare Gems* does for its reported results. `None`
            takes the usual share: a tenth, for digits a fifth, for
            Caltech-101 a quarter.

    Returns:
        A `Dataset`.

    Raises:
        ValueError: If an option is out of its range.
        ImportError: If a package is missing that the data set needs.
        RuntimeError: If TensorFlow Datasets can neither find nor download
            the data.
        FileNotFoundError: If the folder of TinyImageNet is not there.

    Reference:
        Sreenivasan et al., "Rare Gems", NeurIPS 2022, appendix A.1; Jaiswal
        et al., "Spending Your Winning Lottery Better After Drawing It", 2021.

    Example:

    >>> from tf_tickets.zoo import datasets
    >>> digits = datasets.load("digits", batch_size=64)
    >>> digits.train_size, digits.validation_size, digits.test_size
    (1198, 299, 300)
    >>> digits.train.element_spec[0].shape
    TensorShape([64, 8, 8, 1])
    """
    settings = Settings(
        batch_size=batch_size,
        data_dir=data_dir,
        augment=augment,
        seed=seed,
        validation_split=validation_split,
    )
    if not callable(name):
        checks.choice("name", name, DATASETS)
        name = DATASETS[name]
    found = name(settings)
    if not isinstance(found, Dataset):
        raise ValueError(
            f"A data set must be a `Dataset`. Received: {found!r}"[:500]
        )
    return found
