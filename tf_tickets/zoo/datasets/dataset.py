"""Dataset: training, validation and test batches of one data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from tf_tickets.zoo.datasets.examples import Augmentation, Examples
from tf_tickets.zoo.datasets.settings import Settings


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """Batches of `(image, label)` and what a model must know about them.

    Attributes:
        name: The name given to `load`.
        train: Shuffled, augmented, full batches; a new order every epoch.
        validation: Held-out batches, or `None` if nothing was held out.
        test: Test batches.
        input_shape: Height, width and channels of an image.
        classes: Number of classes.
        batch_size: Examples in a batch.
        train_size: Examples to train on.
        validation_size: Examples held out.
        test_size: Examples to test on.

    Example:

    >>> from tf_tickets.zoo import datasets
    >>> digits = datasets.load("digits", batch_size=128)
    >>> digits.steps_per_epoch, digits.input_shape, digits.classes
    (9, (8, 8, 1), 10)
    """

    name: str
    train: tf.data.Dataset
    validation: tf.data.Dataset | None
    test: tf.data.Dataset
    input_shape: tuple[int, int, int]
    classes: int
    batch_size: int
    train_size: int
    validation_size: int
    test_size: int

    @property
    def steps_per_epoch(self) -> int:
        """Number of training batches in an epoch."""
        return self.train_size // self.batch_size


@dataclasses.dataclass(frozen=True, eq=False)
class Normalization:
    """`(pixel / scale - mean) / std`, the last two for each channel."""

    mean: Sequence[float]
    std: Sequence[float]
    scale: float = 255.0

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        images = tf.cast(images, tf.float32) / self.scale
        return (images - tf.constant(self.mean)) / tf.constant(self.std)


def assemble(
    name: str,
    *,
    train: Examples,
    validation: Examples,
    test: Examples,
    input_shape: tuple[int, int, int],
    classes: int,
    augmentations: Sequence[Augmentation],
    normalization: Normalization,
    settings: Settings,
    augment: bool = True,
) -> Dataset:
    """Makes the batches of a data set from its three splits.

    `augment` is what `settings.augment=None` means for this data set.

    Raises:
        ValueError: If the training split does not fill one batch.
    """
    size = settings.batch_size
    if settings.augment is not None:
        augment = settings.augment
    if len(train) < size:
        raise ValueError(
            f"`batch_size` must be at most the {len(train)} training "
            f"examples. Received: batch_size={size}"
        )
    return Dataset(
        name=name,
        train=train.batches(
            size,
            normalize=normalization,
            augmentations=augmentations if augment else (),
            shuffle_seed=settings.seed,
        ),
        validation=(
            validation.batches(size, normalize=normalization)
            if len(validation)
            else None
        ),
        test=test.batches(size, normalize=normalization),
        input_shape=input_shape,
        classes=classes,
        batch_size=size,
        train_size=len(train),
        validation_size=len(validation),
        test_size=len(test),
    )
