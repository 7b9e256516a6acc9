"""What an export is worth: bytes, milliseconds, differences, all measured."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets.export import loading, manifest, packing, signatures
from tf_tickets.export.latency import NOISE, Latency, interleaved
from tf_tickets.export.savedmodel import saved_model


@dataclasses.dataclass(frozen=True)
class WeightRow:
    """One weight of an exported model.

    Attributes:
        key: The weight.
        shape: Its shape.
        density: Fraction that is not zero.
        dense_bytes: In its own type.
        gzip_bytes: Of these after gzip.
        packed_bytes: As stored in this export.
        floor_bytes: `tf_tickets.export.packing.entropy_floor`, for the type
            in which its values are stored.
        method: How its layer computes: ``"dense"``, ``"csr"``, ...
        flops: Of its layer for one example, zeros included, two for each
            multiply-accumulate; `None` if not known.
        latencies: ``{batch size: {method: seconds}}`` as measured when the
            format was chosen.
    """

    key: str
    shape: tuple[int, ...]
    density: float
    dense_bytes: int
    gzip_bytes: int
    packed_bytes: int
    floor_bytes: float
    method: str
    flops: int | None
    latencies: dict[str, dict[str, float]]

    @property
    def parameters(self) -> int:
        """How many values the weight has, zeros included."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclasses.dataclass(frozen=True)
class Report:
    """An exported model in numbers; made by `report`.

    Attributes:
        path: The export.
        format: Its format.
        rows: One `WeightRow` for each weight.
        disk_bytes: Of all files of the export.
        dense_disk_bytes: Of all files of the same model exported densely;
            `None` if no model was given.
        latencies: ``{batch size: {"dense" | "export": Latency}}``; empty if
            no model was given.
        differences: ``{batch size: largest difference of outputs, over the
            largest output}``.
        notes: What the export decided against, and why.
    """

    path: str
    format: str
    rows: list[WeightRow]
    disk_bytes: int
    dense_disk_bytes: int | None
    latencies: dict[int, dict[str, Latency]]
    differences: dict[int, float]
    notes: list[str]

    def total(self, field: str) -> float:
        """The sum of a field of the rows, ``parameters`` included."""
        return sum(getattr(row, field) or 0 for row in self.rows)

    @property
    def density(self) -> float:
        """Fraction of all parameters that is not zero."""
        kept = sum(row.density * row.parameters for row in self.rows)
        return kept / max(self.total("parameters"), 1)

    def gains(self) -> dict[str, str]:
        """What is gained, in words: ``"no gain"`` where nothing is."""
        found = {}
        if self.dense_disk_bytes is not None:
            found["size"] = _gain(
                self.dense_disk_bytes / self.disk_bytes, "smaller"
            )
        for batch, times in self.latencies.items():
            dense, export = times["dense"], times["export"]
            ratio = dense.median / export.median
            # Quartiles that overlap are runs that cannot be told apart.
            if ratio > 1 and export.high >= dense.low:
                ratio = 1.0
            found[f"batch {batch}"] = _gain(ratio, "faster")
        return found

    def to_json(self) -> dict[str, Any]:
        """All fields, totals and gains as JSON values."""
        fields = dataclasses.asdict(self)
        fields["total"] = {
            name: self.total(name)
            for name in (
                "parameters",
                "dense_bytes",
                "gzip_bytes",
                "packed_bytes",
                "floor_bytes",
                "flops",
            )
        } | {"density": self.density}
        fields["gains"] = self.gains()
        return json.loads(json.dumps(fields))

    def table(self) -> str:
        """The report as text."""
        header = (
            "weight",
            "shape",
            "density",
            "dense",
            "gzip",
            "packed",
            "floor",
            "method",
            "MFLOPs",
        )
        lines: list[tuple[str, ...]] = [header]
        # Biases and statistics would hide what matters.
        shown = [row for row in self.rows if len(row.shape) > 1]
        for row in shown:
            lines.append(
                (
                    row.key,
                    "x".join(map(str, row.shape)),
                    f"{row.density:.4f}",
                    *(
                        _size(getattr(row, f"{name}_bytes"))
                        for name in ("dense", "gzip", "packed", "floor")
                    ),
                    row.method,
                    "" if row.flops is None else f"{row.flops / 1e6:.2f}",
                )
            )
        lines.append(
            (
                "total, biases and statistics too",
                f"{self.total('parameters'):,.0f}",
                f"{self.density:.4f}",
                *(
                    _size(self.total(f"{name}_bytes"))
                    for name in ("dense", "gzip", "packed", "floor")
                ),
                self.format,
                f"{self.total('flops') / 1e6:.2f}",
            )
        )
        return "\n".join([*_aligned(lines), "", *self._summary()])

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw bytes and latencies into an image file (needs matplotlib)."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "Plots need matplotlib: pip install 'tf_tickets[plots]'"
            ) from error
        figure = Figure(figsize=(9, 3.5), layout="constrained")
        size, speed = figure.subplots(1, 2)
        names = ("dense", "gzip", "packed", "floor")
        size.bar(names, [self.total(f"{n}_bytes") / 1e6 for n in names])
        size.set(ylabel="MB", yscale="log", title="weights")
        for offset, name in ((-0.2, "dense"), (0.2, "export")):
            times = [row[name] for row in self.latencies.values()]
            speed.bar(
                np.arange(len(times)) + offset,
                [1e3 * t.median for t in times],
                0.4,
                yerr=np.array(
                    [
                        (1e3 * (t.median - t.low), 1e3 * (t.high - t.median))
                        for t in times
                    ]
                ).T.reshape(2, -1),
                label=name,
            )
        speed.set_xticks(
            range(len(self.latencies)), [f"batch {b}" for b in self.latencies]
        )
        speed.set(ylabel="ms, median and quartiles", title="latency")
        speed.legend()
        figure.savefig(path)

    def __str__(self) -> str:
        return self.table()

    def _summary(self) -> list[str]:
        lines = [f"on disk: {_size(self.disk_bytes)}"]
        if self.dense_disk_bytes is not None:
            lines[0] += f", dense {_size(self.dense_disk_bytes)}"
        for batch, times in self.latencies.items():
            dense, export = times["dense"], times["export"]
            lines.append(
                f"batch {batch}: {1e3 * export.median:.2f} ms "
                f"({1e3 * export.low:.2f}-{1e3 * export.high:.2f}), dense "
                f"{1e3 * dense.median:.2f} ms ({1e3 * dense.low:.2f}-"
                f"{1e3 * dense.high:.2f}), outputs differ by "
                f"{self.differences[batch]:.1e}"
            )
        gains = [f"{name}: {gain}" for name, gain in self.gains().items()]
        return [*lines, *(["; ".join(gains)] if gains else []), *self.notes]


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
    >>> found.rows[0].density
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


def _gain(ratio: float, word: str) -> str:
    if ratio > 1 + NOISE:
        return f"{ratio:.2f}x {word}"
    if ratio < 1 / (1 + NOISE):
        return f"no gain: {1 / ratio:.2f}x not {word}"
    return "no gain"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i in (0, 7) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
