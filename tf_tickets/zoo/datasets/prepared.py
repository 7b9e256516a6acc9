"""Data from disk: what TensorFlow Datasets prepares, and TinyImageNet."""

from __future__ import annotations

import functools
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_tickets.zoo.datasets.augmentation import (
    random_crop,
    random_flip,
    random_rotation,
)
from tf_tickets.zoo.datasets.dataset import (
    Dataset,
    Examples,
    Normalization,
    Settings,
    assemble,
    require,
)

# TFDS itself tries ten times, for minutes, before it gives up.
_SECONDS = 10

_CIFAR = {
    10: Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    100: Normalization((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
_TINY_IMAGENET = Normalization(
    (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
)
# The networks to transfer to Caltech-101 were trained with this one.
_IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def read(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None,
    host: str,
    **options: Any,
) -> tuple[Any, Any]:
    """Reads a split, downloading it only if it is not on disk.

    Args:
        name: Name of the data set in TensorFlow Datasets.
        split: Which examples, such as `"train"`.
        data_dir: Where data sets are prepared; `None` for the usual place.
        host: URL of the server the data set is downloaded from.
        **options: Passed to `tfds.core.DatasetBuilder.as_dataset`.

    Returns:
        The examples in a fixed order, as a `tf.data.Dataset`, and the
        `tfds.core.DatasetInfo`.

    Raises:
        ImportError: If TensorFlow Datasets is not installed.
        RuntimeError: If the data set is neither on disk nor downloadable.
    """
    tfds = require("tensorflow_datasets")
    directory = None if data_dir is None else os.path.expanduser(data_dir)
    try:
        builder = tfds.builder(name, data_dir=directory, try_gcs=False)
        try:
            examples = builder.as_dataset(split=split, **options)
        except AssertionError:  # How TFDS says that nothing is prepared.
            _download(builder, host)
            examples = builder.as_dataset(split=split, **options)
    except ImportError:
        raise
    except Exception as error:
        raise RuntimeError(
            f"The data set {name!r} is not prepared under data_dir and could "
            f"not be downloaded from {host} ({type(error).__name__}: {error})."
            " Take --dataset=digits, which needs no download, or point "
            "--data_dir to a directory in which TensorFlow Datasets has "
            f"prepared it. Received: data_dir={data_dir!r}"
        ) from error
    settings = tf.data.Options()
    settings.autotune.enabled = False
    settings.deterministic = True
    return examples.with_options(settings), builder.info


def _download(builder: Any, host: str) -> None:
    _knock(host)
    configure = require("tensorflow_datasets").download.DownloadConfig
    try:
        builder.download_and_prepare(
            download_config=configure(try_download_gcs=False)
        )
    except ImportError as error:
        # TFDS imports some packages only now, and does not declare them all.
        raise ImportError(
            f"Preparing {builder.name!r} needs {error.name!r}, which could "
            f"not be imported ({error}). Install it with: pip install "
            f"'tf_tickets[datasets]' {error.name}"
        ) from error


def _knock(host: str) -> None:
    """Raises `OSError` at once if the server cannot be reached."""
    request = urllib.request.Request(host, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()  # Any answer, even a refusal, means there is a network.


def load_cifar(settings: Settings, *, classes: int) -> Dataset:
    """Loads CIFAR-10 or CIFAR-100 from TensorFlow Datasets.

    45,000 images to train, 5,000 to validate and 10,000 to test, as in *Rare
    Gems*, and as the 9:1 split of *Spending Your Winning Lottery Better*.
    The augmentation pads by 4, crops and mirrors.
    """
    name = f"cifar{classes}"
    train, validation = settings.split(
        _read_cifar(name, "train", settings), usual=0.1
    )
    return assemble(
        name,
        train=train,
        validation=validation,
        test=_read_cifar(name, "test", settings),
        input_shape=(32, 32, 3),
        classes=classes,
        augmentations=(
            functools.partial(random_crop, padding=4),
            random_flip,
        ),
        normalization=_CIFAR[classes],
        settings=settings,
    )


def _read_cifar(name: str, split: str, settings: Settings) -> Examples:
    examples, _ = read(
        name,
        split,
        data_dir=settings.data_dir,
        host="https://www.cs.toronto.edu",
        as_supervised=True,
        batch_size=1000,
    )
    batches = list(examples.as_numpy_iterator())
    return Examples(
        np.concatenate([images for images, _ in batches]),
        np.concatenate([labels for _, labels in batches]),
    )


def load_caltech101(settings: Settings) -> Dataset:
    """Loads Caltech-101 from TensorFlow Datasets, resized to 224x224.

    *Rare Gems* splits all images 60/20/20, and so does this: both splits of
    TFDS together, 20 % of them to test, and a quarter of the rest to
    validate. TFDS has 102 labels; the images of `background_google` show
    nothing in particular and are left out, and the labels after it move down
    by one. The augmentation, of which the paper says nothing, mirrors.
    """
    examples = _read_caltech(settings)
    rest, test = examples.hold_out(round(0.2 * len(examples)))
    train, validation = settings.split(rest, usual=0.25)
    return assemble(
        "caltech101",
        train=train,
        validation=validation,
        test=test,
        input_shape=(224, 224, 3),
        classes=101,
        augmentations=(random_flip,),
        normalization=_IMAGENET,
        settings=settings,
    )


def _read_caltech(settings: Settings) -> Examples:
    # Kept encoded: 0.13 GB against 1.3 GB of pixels.
    decode = require("tensorflow_datasets").decode
    examples, info = read(
        "caltech101",
        "train+test",
        data_dir=settings.data_dir,
        host="https://data.caltech.edu",
        decoders={"image": decode.SkipDecoding()},
    )
    pairs = [
        (example["image"], example["label"])
        for example in examples.as_numpy_iterator()
    ]
    records = np.array([image for image, _ in pairs], object)
    labels = np.array([label for _, label in pairs], np.int64)
    background = info.features["label"].str2int("background_google")
    foreground = np.flatnonzero(labels != background)
    labels = labels - (labels > background)
    return Examples(records, labels, _decode_resized).take(foreground)


def _decode_resized(encoded: tf.Tensor) -> tf.Tensor:
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image = tf.image.resize(image, (224, 224), antialias=True)
    return tf.cast(tf.round(image), tf.uint8)


def load_tiny_imagenet(settings: Settings) -> Dataset:
    """Loads TinyImageNet from `tiny-imagenet-200` in `data_dir`.

    The labels of the archive's test images were never published, so its
    labelled `val` images are the test split here, and the validation split
    is a tenth of the training images, as in *Spending Your Winning Lottery
    Better*. The augmentation mirrors and rotates, as in *Rare Gems*; the
    paper does not give the angle: up to 20 degrees here.
    """
    folder = _find_folder(settings)
    names = sorted(path.name for path in (folder / "train").iterdir())
    train, validation = settings.split(
        _files_to_train(folder, names), usual=0.1
    )
    return assemble(
        "tiny_imagenet",
        train=train,
        validation=validation,
        test=_files_to_test(folder, names),
        input_shape=(64, 64, 3),
        classes=len(names),
        augmentations=(
            functools.partial(random_rotation, degrees=20.0),
            random_flip,
        ),
        normalization=_TINY_IMAGENET,
        settings=settings,
    )


def _find_folder(settings: Settings) -> Path:
    if settings.data_dir is not None:
        given = Path(settings.data_dir).expanduser()
        for folder in (given, given / "tiny-imagenet-200"):
            if (folder / "train").is_dir() and (
                folder / "val" / "val_annotations.txt"
            ).is_file():
                return folder
    raise FileNotFoundError(
        "TinyImageNet needs its unpacked archive: --data_dir must be the "
        "folder 'tiny-imagenet-200' or its parent, with train/<class>/images "
        "and val/val_annotations.txt (http://cs231n.stanford.edu/"
        "tiny-imagenet-200.zip). Or take --dataset=digits, which needs no "
        f"download. Received: data_dir={settings.data_dir!r}"
    )


def _files_to_train(folder: Path, names: list[str]) -> Examples:
    pairs = [
        (str(file), label)
        for label, name in enumerate(names)
        for file in sorted((folder / "train" / name / "images").iterdir())
    ]
    return _files(pairs)


def _files_to_test(folder: Path, names: list[str]) -> Examples:
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
    return _files([(str(images / row[0]), labels[row[1]]) for row in fields])


def _files(pairs: list[tuple[str, int]]) -> Examples:
    files = np.array([file for file, _ in pairs], object)
    labels = np.array([label for _, label in pairs], np.int64)
    return Examples(files, labels, _decode_file)


def _decode_file(file: tf.Tensor) -> tf.Tensor:
    # A few of the images are grey: three channels make them like the rest.
    image = tf.io.decode_jpeg(tf.io.read_file(file), channels=3)
    return tf.ensure_shape(image, (64, 64, 3))
