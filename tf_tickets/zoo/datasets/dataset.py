"""What every data set shares: settings, examples, splits and batches."""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from tf_tickets import checks, data

# Of a batch of images and a seed makes the changed batch.
Augmentation: TypeAlias = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What `load` was asked for: the options that every data set shares.

    Args:
        batch_size: Examples in a batch.
        data_dir: Where the data lies, or is prepared; `None` for the usual
            place.
        augment: Whether to augment the training images; `None` for what is
            usual for the data set.
        seed: Seed of the order of the training images and of their
            augmentation.
        validation_split: Share of the training examples to hold out; `None`
            for what is usual for the data set.

    Raises:
        ValueError: If an option is out of its range.
    """

    batch_size: int = 128
    data_dir: str | os.PathLike[str] | None = None
    augment: bool | None = None
    seed: int = 0
    validation_split: float | None = None

    def __post_init__(self) -> None:
        size = checks.whole("batch_size", self.batch_size)
        seed = checks.whole("seed", self.seed, least=0)
        object.__setattr__(self, "batch_size", size)
        object.__setattr__(self, "seed", seed)
        checks.choice("augment", self.augment, (True, False, None))
        if self.validation_split is not None:
            checks.number("validation_split", self.validation_split, "[0, 1)")
        if not isinstance(self.data_dir, str | os.PathLike | None):
            raise ValueError(
                "`data_dir` must be a path or None. "
                f"Received: data_dir={self.data_dir!r}"
            )

    def split(
        self, examples: Examples, *, usual: float
    ) -> tuple[Examples, Examples]:
        """Returns the examples to train on, and those to validate on.

        Args:
            examples: All that are not for testing.
            usual: Share of them to hold out if `validation_split` is `None`.
        """
        share = self.validation_split
        share = usual if share is None else share
        return examples.hold_out(round(share * len(examples)))


@dataclasses.dataclass(frozen=True, eq=False)
class Normalization:
    """`(pixel / scale - mean) / std`, the last two for each channel."""

    mean: Sequence[float]
    std: Sequence[float]
    scale: float = 255.0

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        images = tf.cast(images, tf.float32) / self.scale
        return (images - tf.constant(self.mean)) / tf.constant(self.std)


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Labelled images that stay as small in memory as they came.

    Args:
        records: Images as bytes, `[number, height, width, channels]`; or
            whatever `decode` takes, such as file names or encoded images.
        labels: A class for each record.
        decode: Makes one image of one record; `None` if records are images.
    """

    records: np.ndarray
    labels: np.ndarray
    decode: Callable[[tf.Tensor], tf.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Examples:
        """Returns the examples at the given indices."""
        return dataclasses.replace(
            self, records=self.records[indices], labels=self.labels[indices]
        )

    def hold_out(self, number: int) -> tuple[Examples, Examples]:
        """Splits off a number of examples, every class in proportion.

        The split is a property of the data: no seed changes it.
        """
        held = _stratified(self.labels, number)
        mask = np.zeros(len(self), bool)
        mask[held] = True
        return self.take(np.flatnonzero(~mask)), self.take(held)

    def batches(
        self,
        batch_size: int,
        *,
        normalize: Callable[[tf.Tensor], tf.Tensor],
        augmentations: Sequence[Augmentation] = (),
        shuffle_seed: int | None = None,
    ) -> tf.data.Dataset:
        """Makes batches of normalized images and labels.

        Args:
            batch_size: Examples in a batch.
            normalize: Applied to each batch of images, last of all.
            augmentations: Applied to each batch of images, in this order.
            shuffle_seed: Seed of the order and of the augmentations, both
                new in each epoch, which they follow from; every batch is then
                full. `None` keeps the order and the incomplete last batch.

        Returns:
            A `tf.data.Dataset` of `(images, labels)`.
        """
        training = shuffle_seed is not None
        order = tf.data.Dataset.range(len(self))
        if shuffle_seed is not None:
            order = data.shuffled(order, seed=shuffle_seed)
        batches = self._fetch(order, batch_size, training)
        if augmentations:
            seeds = data.random_seeds(seed=shuffle_seed or 0)
            batches = tf.data.Dataset.zip(batches, seeds).map(
                lambda batch, seed: (
                    _augment(batch[0], seed, augmentations),
                    batch[1],
                )
            )
        batches = batches.map(
            lambda images, labels: (normalize(images), labels)
        )
        return batches.prefetch(2).with_options(_options())

    def _fetch(
        self, order: tf.data.Dataset, size: int, full: bool
    ) -> tf.data.Dataset:
        # Shuffling and batching indices, not images, leaves one gather of
        # bytes per batch to do in every epoch.
        records = tf.constant(self.records)
        labels = tf.constant(self.labels, tf.int64)
        decode = self.decode
        if decode is None:
            return order.batch(size, drop_remainder=full).map(
                lambda index: (
                    tf.gather(records, index),
                    tf.gather(labels, index),
                )
            )
        return order.map(
            lambda index: (decode(records[index]), labels[index]),
            num_parallel_calls=os.cpu_count() or 1,
        ).batch(size, drop_remainder=full)


def _augment(
    images: tf.Tensor, seed: tf.Tensor, augmentations: Sequence[Augmentation]
) -> tf.Tensor:
    for index, augmentation in enumerate(augmentations):
        # One seed would tie the draws of one augmentation to the next one's.
        own = tf.random.experimental.stateless_fold_in(seed, index)
        images = augmentation(images, own)
    return images


def _options() -> tf.data.Options:
    options = tf.data.Options()
    # Tearing down an autotuned iterator can wait for seconds.
    options.autotune.enabled = False
    # There are no files to give to the workers of a distributed run.
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA
    )
    return options


def _stratified(labels: np.ndarray, number: int) -> np.ndarray:
    """Chooses indices so that each class keeps its share of the labels.

    The choice is the same in every release, which results on the digits rest
    on. scikit-learn's splits promise no such thing, and refuse to hold out
    none, or fewer than there are classes.
    """
    classes, counts = np.unique(labels, return_counts=True)
    shares = counts * number / len(labels)
    chosen = np.floor(shares).astype(int)
    # The largest remainders get the rest, so that the total is exact.
    rest = np.argsort(chosen - shares, kind="stable")[: number - chosen.sum()]
    chosen[rest] += 1
    generator = np.random.default_rng(0)
    picks: list[Any] = [
        generator.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in zip(classes, chosen, strict=True)
    ]
    return np.sort(np.concatenate(picks))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """Batches of `(image, label)` and what a model must know about them.

    Attributes:
        name: The name given to `load`.
        train: Shuffled, augmented, full batches; a new order every epoch,
            which follows from the seed and the epoch (`tf_tickets.data`).
        validation: Held-out batches, or `None` if nothing was held out.
        test: Test batches.
        input_shape: Height, width and channels of an image; length and
            channels of a sequence.
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
    input_shape: tuple[int, ...]
    classes: int
    batch_size: int
    train_size: int
    validation_size: int
    test_size: int

    @property
    def steps_per_epoch(self) -> int:
        """Number of training batches in an epoch."""
        return self.train_size // self.batch_size


def assemble(
    name: str,
    *,
    train: Examples,
    validation: Examples,
    test: Examples,
    input_shape: tuple[int, ...],
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


def require(module: str, *, extra: str = "datasets") -> Any:
    """Imports an optional module, or says how to install it.

    Args:
        module: Name of the module.
        extra: The extra of this package that has it; `"datasets"` by default.

    Returns:
        The module.

    Raises:
        ImportError: If it is not installed.

    Example:

    >>> require("json").dumps([1])
    '[1]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"This data set needs {package!r}, which could not be imported "
            f"({error}). Install it with: pip install 'tf_tickets[{extra}]'"
        ) from error
