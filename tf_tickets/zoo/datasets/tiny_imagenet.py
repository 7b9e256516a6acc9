"""TinyImageNet, from the unpacked archive."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import tensorflow as tf

from tf_tickets.zoo.datasets.augmentation import random_flip, random_rotation
from tf_tickets.zoo.datasets.dataset import Dataset, Normalization, assemble
from tf_tickets.zoo.datasets.examples import Examples
from tf_tickets.zoo.datasets.settings import Settings

_FOLDER = "tiny-imagenet-200"
_SIZE = 64
_VALIDATION_SPLIT = 0.1
_NORMALIZATION = Normalization(
    (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
)


def load_tiny_imagenet(settings: Settings) -> Dataset:
    """Loads TinyImageNet from `tiny-imagenet-200` in `data_dir`.

    The labels of the archive's test images were never published, so its
    labelled `val` images are the test split here, and the validation split
    is a tenth of the training images, as in *Spending Your Winning Lottery
    Better*. The augmentation mirrors and rotates, as in *Rare Gems*; the
    paper does not give the angle: up to 20 degrees here.
    """
    folder = _find(settings)
    names = sorted(path.name for path in (folder / "train").iterdir())
    examples = _train(folder, names)
    split = settings.validation_split
    split = _VALIDATION_SPLIT if split is None else split
    train, validation = examples.hold_out(round(split * len(examples)))
    return assemble(
        "tiny_imagenet",
        train=train,
        validation=validation,
        test=_test(folder, names),
        input_shape=(_SIZE, _SIZE, 3),
        classes=len(names),
        augmentations=(
            functools.partial(random_rotation, degrees=20.0),
            random_flip,
        ),
        normalization=_NORMALIZATION,
        settings=settings,
    )


def _find(settings: Settings) -> Path:
    if settings.data_dir is not None:
        given = Path(settings.data_dir).expanduser()
        for folder in (given, given / _FOLDER):
            if (folder / "train").is_dir() and (
                folder / "val" / "val_annotations.txt"
            ).is_file():
                return folder
    raise FileNotFoundError(
        f"TinyImageNet needs its unpacked archive: --data_dir must be the "
        f"folder {_FOLDER!r} or its parent, with train/<class>/images and "
        "val/val_annotations.txt (http://cs231n.stanford.edu/"
        "tiny-imagenet-200.zip). Or take --dataset=digits, which needs no "
        f"download. Received: data_dir={settings.data_dir!r}"
    )


def _train(folder: Path, names: list[str]) -> Examples:
    pairs = [
        (str(file), label)
        for label, name in enumerate(names)
        for file in sorted((folder / "train" / name / "images").iterdir())
    ]
    return _examples(pairs)


def _test(folder: Path, names: list[str]) -> Examples:
    labels = {name: label for label, name in enumerate(names)}
    lines = (folder / "val" / "val_annotations.txt").read_text().splitlines()
    fields = [line.split("\t") for line in lines if line]
    unknown = sorted({row[1] for row in fields} - set(names))
    if unknown:
        raise ValueError(
            f"{folder / 'val' / 'val_annotations.txt'} names classes that "
            f"the training images do not have. Received: {unknown}"
        )
    images = folder / "val" / "images"
    return _examples([(str(images / row[0]), labels[row[1]]) for row in fields])


def _examples(pairs: list[tuple[str, int]]) -> Examples:
    files = np.array([file for file, _ in pairs], object)
    labels = np.array([label for _, label in pairs], np.int64)
    return Examples(files, labels, _decode)


def _decode(file: tf.Tensor) -> tf.Tensor:
    # A few of the images are grey: three channels make them like the rest.
    image = tf.io.decode_jpeg(tf.io.read_file(file), channels=3)
    return tf.ensure_shape(image, (_SIZE, _SIZE, 3))
