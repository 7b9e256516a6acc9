"""Measuring an export: every number of a `Report`."""

from __future__ import annotations

import gzip
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets.export import loading, manifest, packing, signatures
from tf_tickets.export.latency import Latency, interleaved
from tf_tickets.export.report import Report, WeightRow
from tf_tickets.export.savedmodel import saved_model


def report(
    path: str | os.PathLike[str],
    model: keras.Model | None = None,
    *,
    batch_sizes: Sequence[int] = (1, 32),
    runs: int = 30,
    seconds: float = 5.0,
) -> Report:
    """Measure what an export is worth.

    Bytes are those of the files. Latencies are of the export and of a dense
    export of ``model``, loaded into this process and run in turns; as a busy
    machine slows both, ratios say more than milliseconds.

    Args:
        path: What `saved_model` wrote.
        model: The Keras model that was exported; without it there are no
            latencies and no differences.
        batch_sizes: At which to measure.
        runs: At most so many of each, at each batch size.
        seconds: At most about so long at each batch size.

    Returns:
        A `Report`, with ``table()``, ``to_json()`` and ``plot(path)``.

    Raises:
        FileNotFoundError: If there is no such directory.
        ValueError: If it is damaged or not an export of this library.

    Example:

    >>> import tf_tickets as tt
    >>> import tempfile
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(512)])
    >>> tt.prune(model, sparsity=0.9).apply(model)
    >>> where = tempfile.mkdtemp() + "/model"
    >>> _ = tt.export.saved_model(model, where, format="packed")
    >>> found = tt.export.report(where, model)
    >>> round(found.rows[0].density, 2)
    0.1
    >>> found.differences[1]
    0.0
    """
    described = manifest.read(path)
    latencies: dict[int, dict[str, Latency]] = {}
    differences: dict[int, float] = {}
    dense_disk_bytes = None
    if model is not None:
        with tempfile.TemporaryDirectory() as directory:
            dense = saved_model(model, Path(directory) / "dense")
            dense_disk_bytes = manifest.directory_bytes(dense)
            loaded = {
                "dense": tf.saved_model.load(str(dense)),
                "export": tf.saved_model.load(os.fspath(path)),
            }
        signature = signatures.input_signature(model)
        for batch in batch_sizes:
            inputs = signatures.sample(signature, batch)
            calls = {
                name: lambda served=served, x=inputs: _numbers(served.serve(*x))
                for name, served in loaded.items()
            }
            differences[batch] = _difference(
                calls["dense"](), calls["export"]()
            )
            latencies[batch] = interleaved(calls, runs=runs, seconds=seconds)
    return Report(
        path=str(path),
        format=described["export"],
        rows=_rows(path, described),
        disk_bytes=manifest.directory_bytes(path),
        dense_disk_bytes=dense_disk_bytes,
        latencies=latencies,
        differences=differences,
        notes=described["notes"],
    )


def _rows(
    path: str | os.PathLike[str], described: dict[str, Any]
) -> list[WeightRow]:
    weights = loading.weights_of(path, described)
    macs = dict(described["macs"] or {})
    rows = []
    for row in described["weights"]:
        array = weights[row["key"]]
        spec = row.get("packed")
        stored = spec["stored"] if spec else str(array.dtype)
        rows.append(
            WeightRow(
                key=row["key"],
                shape=tuple(row["shape"]),
                density=row["nonzero"] / max(array.size, 1),
                dense_bytes=array.nbytes,
                gzip_bytes=len(gzip.compress(array.tobytes(), 6)),
                packed_bytes=sum(spec["sections"]) if spec else array.nbytes,
                floor_bytes=packing.entropy_floor(
                    array.size,
                    row["nonzero"],
                    8 * packing.np_dtype(stored).itemsize,
                ),
                method=row["method"],
                # The kernel of a layer with several stands for all of them.
                flops=_twice(macs.pop(_layer_of(row["key"]), None))
                if row["prunable"]
                else None,
                latencies={
                    batch: {name: one["median"] for name, one in times.items()}
                    for batch, times in row.get("measured", {})
                    .get("latencies", {})
                    .items()
                },
            )
        )
    return rows


def _layer_of(key: str) -> str:
    return key.rpartition("/")[0].rpartition("/")[2]


def _twice(counts: list[int] | None) -> int | None:
    return None if counts is None else 2 * counts[0]


def _numbers(outputs: Any) -> list[np.ndarray]:
    return [output.numpy() for output in keras.tree.flatten(outputs)]


def _difference(dense: list[np.ndarray], export: list[np.ndarray]) -> float:
    worst = 0.0
    for a, b in zip(dense, export, strict=True):
        a, b = a.astype(np.float64), b.astype(np.float64)
        largest = np.abs(a).max(initial=0) or 1.0
        worst = max(worst, float(np.abs(a - b).max(initial=0) / largest))
    return worst
