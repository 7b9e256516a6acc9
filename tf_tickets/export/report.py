"""What an export is worth: bytes, milliseconds, differences, all measured."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_tickets.analysis.figures import new_axes, save
from tf_tickets.export.latency import Latency, gain


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
            found["size"] = gain(
                self.dense_disk_bytes / self.disk_bytes, "smaller"
            )
        for batch, times in self.latencies.items():
            dense, export = times["dense"], times["export"]
            ratio = dense.median / export.median
            # Quartiles that overlap are runs that cannot be told apart.
            if export.high >= dense.low and dense.high >= export.low:
                ratio = 1.0
            found[f"batch {batch}"] = gain(ratio, "faster")
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
        figure, (size, speed) = new_axes((9, 3.5), columns=2)
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
        save(figure, path)

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
