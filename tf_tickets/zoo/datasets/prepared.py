"""Data that TensorFlow Datasets has prepared, or can download."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from typing import Any

import tensorflow as tf

from tf_tickets.zoo.datasets.extra import require

# TFDS itself tries ten times, for minutes, before it gives up.
_SECONDS = 10


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
