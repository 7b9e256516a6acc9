"""SavedModels that a process without tf_tickets loads and serves."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Literal

import keras

from tf_tickets import masking
from tf_tickets.selection import named_weights


def saved_model(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    format: Literal["dense"] = "dense",
) -> Path:
    """Write ``model`` as a SavedModel with the zeros of its ticket.

    The artifact is what ``model.export`` writes: an endpoint ``serve`` and
    the signature ``serving_default``, with a free batch size, of standard
    operations only. Masks in force are enforced once more before writing. The
    directory appears whole or not at all.

    Args:
        model: A built Keras model.
        path: A directory that does not exist yet.
        format: `"dense"`: every weight is stored, zeros included; a
            compressed file of it is small, the directory itself is not.

    Returns:
        The path.

    Raises:
        ValueError: On an unknown format or a model without weights.
        FileExistsError: If ``path`` exists.
        OSError: If it cannot be written; nothing is left behind.

    Example:

    >>> import tf_tickets as tt
    >>> import tempfile, tensorflow as tf
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> tt.prune(model, sparsity=0.5).apply(model)
    >>> where = tt.export.saved_model(model, tempfile.mkdtemp() + "/model")
    >>> served = tf.saved_model.load(where)
    >>> served.serve(tf.ones((3, 4))).shape
    TensorShape([3, 2])
    """
    if format != "dense":
        raise ValueError(
            f"`format` must be 'dense'. Received: format={format!r}"
        )
    path = Path(path)
    if path.exists():
        raise FileExistsError(
            f"{str(path)!r} exists: choose a path that does not."
        )
    named_weights(model)
    masking.project(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        model.export(str(workspace / "model"), verbose=False)
        os.replace(workspace / "model", path)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    return path
