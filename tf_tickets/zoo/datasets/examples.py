"""Examples: labelled images in memory, and the batches made of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

Augmentation: TypeAlias = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


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
        """Makes batches of normalised images and labels.

        Args:
            batch_size: Examples in a batch.
            normalize: Applied to each batch of images, last of all.
            augmentations: Applied to each batch of images, in this order.
            shuffle_seed: Seed of the order and of the augmentations, both
                new in each epoch; every batch is then full. `None` keeps the
                order and the incomplete last batch.

        Returns:
            A `tf.data.Dataset` of `(images, labels)`.
        """
        training = shuffle_seed is not None
        order = tf.data.Dataset.range(len(self))
        if training:
            order = order.shuffle(len(self), seed=shuffle_seed)
        batches = self._fetch(order, batch_size, training)
        if augmentations:
            seeds = tf.data.Dataset.random(
                seed=shuffle_seed, rerandomize_each_iteration=True
            ).batch(2, drop_remainder=True)
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
                    (tf.gather(records, index),) + (tf.gather(labels, index),)
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
    """Chooses indices so that each class keeps its share of the labels."""
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
