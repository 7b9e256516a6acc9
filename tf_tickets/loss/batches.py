"""Data as batches, whatever form it comes in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import checks


class Batch(NamedTuple):
    """Inputs, labels and weights of some samples, as tensors.

    Inputs and labels have the structure that the model takes and returns.
    """

    x: Any
    y: Any = None
    sample_weight: Any = None

    @property
    def size(self) -> int:
        """How many samples the batch has."""
        return int(keras.tree.flatten(self.x)[0].shape[0])


def batches(
    data: Any,
    *,
    needed_by: str,
    batch_size: int = 256,
    limit: int | None = None,
    labels: bool = True,
) -> Iterator[Batch]:
    """Read ``data`` batch by batch.

    Args:
        data: A tuple ``(x, y)`` or ``(x, y, sample_weight)`` of arrays or of
            nested structures of arrays, which is cut into batches; a
            ``tf.data.Dataset``, a ``keras.utils.PyDataset`` or a list of such
            tuples, each of which is a batch; or the array ``x`` alone, where
            no labels are needed.
        needed_by: What reads the data, for error messages.
        batch_size: Samples in a batch where arrays are cut into batches; 256
            by default.
        limit: Read at most this many batches; `None` for all.
        labels: Whether a batch without labels is an error, as it is by
            default.

    Yields:
        Batches, at least one.

    Raises:
        ValueError: If there is no data, or it is of another form, endless
            without a ``limit``, unlabelled, or of unequal lengths.
    """
    checks.whole("batch_size", batch_size)
    if limit is not None:
        checks.whole("batches", limit)
    source = _source(data, needed_by, batch_size, limit)
    empty = True
    for item in islice(source, limit):
        empty = False
        batch = _as_batch(item, needed_by)
        if labels and batch.y is None:
            raise ValueError(
                f"{needed_by} needs labels: give `data` as (x, y). "
                "Received: inputs alone"
            )
        yield batch
    if empty:
        raise ValueError(
            f"{needed_by} needs at least one batch. Received: empty data"
        )


def _source(
    data: Any, needed_by: str, batch_size: int, limit: int | None
) -> Iterable[Any]:
    if data is None:
        raise ValueError(
            f"{needed_by} scores on data: give `data` as arrays (x, y), a "
            "tf.data.Dataset or a list of batches. Received: data=None"
        )
    if isinstance(data, tf.data.Dataset):
        endless = data.cardinality() == tf.data.INFINITE_CARDINALITY
        if endless and limit is None:
            raise ValueError(
                f"{needed_by} would read an endless dataset: use "
                "`data.take(n)` or the option `batches`. "
                f"Received: data={data!r}"
            )
        return data
    if isinstance(data, keras.utils.PyDataset):
        return (data[i] for i in range(len(data)))
    if isinstance(data, tuple | Mapping) or _is_array(data):
        return _slices(data, needed_by, batch_size)
    if isinstance(data, Iterable) and not isinstance(
        data, Iterator | str | bytes
    ):
        return data
    raise ValueError(
        "`data` must be arrays (x, y), a tf.data.Dataset or a list of "
        "batches (an iterator could be read only once). "
        f"Received: data={data!r} of type {type(data).__name__}"
    )


def _slices(data: Any, needed_by: str, batch_size: int) -> Iterator[Any]:
    parts = data if isinstance(data, tuple) else (data,)
    leaves = [np.shape(a) for a in keras.tree.flatten(parts) if a is not None]
    lengths = {shape[0] if shape else None for shape in leaves}
    if len(lengths) != 1 or None in lengths:
        raise ValueError(
            f"{needed_by} needs arrays with one length along their first "
            f"axis. Received: shapes {leaves}"
        )
    for start in range(0, lengths.pop() or 0, batch_size):
        yield tuple(
            None
            if part is None
            else keras.tree.map_structure(
                lambda a, start=start: a[start : start + batch_size], part
            )
            for part in parts
        )


def _as_batch(item: Any, needed_by: str) -> Batch:
    # A dataset element or an item of a list: Keras reads a tuple as x, y,
    # sample_weight and everything else as x.
    parts = item if isinstance(item, tuple) else (item,)
    if not 1 <= len(parts) <= 3 or parts[0] is None:
        raise ValueError(
            f"{needed_by} needs batches (x, y) or (x, y, sample_weight). "
            f"Received: a batch of {len(parts)} parts"
            + (", the first of which is None" if 1 <= len(parts) <= 3 else "")
        )
    return Batch(
        *(
            None
            if part is None
            else keras.tree.map_structure(tf.convert_to_tensor, part)
            for part in parts
        )
    )


def _is_array(data: Any) -> bool:
    return hasattr(data, "shape") and hasattr(data, "__getitem__")
