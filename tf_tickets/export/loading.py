"""Back from an exported model: its weights, a Keras model, a ticket."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets.export import decoding, manifest, packing, serving
from tf_tickets.selection import match_keys, named_weights
from tf_tickets.ticket import Ticket


def load_sparse(path: str | os.PathLike[str]) -> Ticket:
    """The ticket in an exported model: where it is not zero, and its weights.

    Args:
        path: What `saved_model` wrote, in any format.

    Returns:
        A ticket of the prunable weights; its start weights are the exported
        values, biases and normalization state included.

    Raises:
        FileNotFoundError: If there is no such directory.
        ValueError: If it is damaged, not an export of this library, or holds
            no prunable weights.

    Example:

    >>> import tf_tickets as tt
    >>> import tempfile
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(256)])
    >>> tt.prune(model, sparsity=0.75).apply(model)
    >>> where = tempfile.mkdtemp() + "/model"
    >>> _ = tt.export.saved_model(model, where, format="packed")
    >>> tt.export.load_sparse(where)
    <Ticket: 4,096 of 16,384 weights in 1 tensors, sparsity 0.7500>
    """
    described = manifest.read(path)
    weights = weights_of(path, described)
    masks = {
        row["key"]: weights[row["key"]] != 0
        for row in described["weights"]
        if row["prunable"]
    }
    if not masks:
        raise ValueError(
            f"The exported model has no prunable weights. Received: {path!r}"
        )
    return Ticket(
        masks, weights, {"source": "export", "export": described["export"]}
    )


def unpack(
    path: str | os.PathLike[str], model: keras.Model | None = None
) -> keras.Model:
    """The Keras model in an exported model.

    Args:
        path: What `saved_model` wrote, in any format.
        model: A built model of the same architecture to put the weights into;
            weights under a mask must fit it. `None` builds it from the
            description in the export, which every sequential and functional
            model of Keras layers has. What preprocessing layers learned by
            ``adapt`` is not in it.

    Returns:
        The model, not compiled, with the exported weights.

    Raises:
        FileNotFoundError: If there is no such directory.
        ValueError: If it is damaged, not an export of this library, has no
            description of its model, or the weights do not fit ``model``.

    Example:

    >>> import tf_tickets as tt
    >>> import tempfile
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(256)])
    >>> where = tempfile.mkdtemp() + "/model"
    >>> _ = tt.export.saved_model(model, where, format="packed")
    >>> again = tt.export.unpack(where)
    >>> bool((again.get_weights()[0] == model.get_weights()[0]).all())
    True
    """
    described = manifest.read(path)
    weights = weights_of(path, described)
    if model is None:
        if described["model"] is None:
            raise ValueError(
                "This export has no description of its model, a subclassed "
                f"one perhaps: give `model`. Received: path={str(path)!r}"
            )
        try:
            model = keras.models.model_from_json(json.dumps(described["model"]))
        except (TypeError, ValueError) as error:
            raise ValueError(
                "The model cannot be built from its description, of custom "
                f"layers perhaps: give `model`. Received: path={str(path)!r}, "
                f"and Keras says: {error}"
            ) from error
    variables = named_weights(model)
    keys = match_keys({k: v.shape for k, v in weights.items()}, variables)
    for key, value in weights.items():
        variables[keys[key]].assign(value)
    return model


def weights_of(
    path: str | os.PathLike[str], described: dict[str, Any]
) -> dict[str, np.ndarray]:
    """``{key: array}`` of an export with the manifest ``described``."""
    prefix = Path(path) / "variables" / "variables"
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        found = {
            row["key"]: _stored(reader, row) for row in described["weights"]
        }
    except (tf.errors.OpError, ValueError, KeyError) as error:
        raise ValueError(
            f"{str(path)!r} is not a whole export of tf_tickets: {error}"
        ) from error
    return found


def _stored(reader: Any, row: dict[str, Any]) -> np.ndarray:
    if "packed" not in row:
        return reader.get_tensor(row["checkpoint"])
    spec = packing.Spec.from_json(row["packed"])
    blob = reader.get_tensor(serving.PACKED_NAME)
    data = blob[spec.begin : spec.begin + spec.bytes]
    if (
        data.size != spec.bytes
        or decoding.fingerprint(data).tolist() != row["stamp"]
    ):
        raise ValueError(f"packed weight {spec.key} is damaged")
    return packing.unpack(spec, data)
