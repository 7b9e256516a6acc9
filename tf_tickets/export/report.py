"""What an export says about itself, and what it is worth.

Every export carries a manifest, whatever its format: which model and which
weights, stored and computed how. A `Report` is that and what was measured.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import figures, tables
from tf_tickets.analysis.flops import flops
from tf_tickets.export import digests
from tf_tickets.export.choosing import gain
from tf_tickets.export.coding import entropy_floor, np_dtype
from tf_tickets.export.source import DEFAULT, Source, shapes_in
from tf_tickets.timing import Latency
from tf_tickets.version import __version__

FORMAT_VERSION = 1

# Columns of the table that hold words.
_WORDS = (0, 7)

# TensorFlow leaves this directory of a SavedModel to its users.
PLACE = Path("assets.extra") / "tf_tickets.json.gz"


@dataclasses.dataclass(frozen=True)
class Written:
    """What a writer says about what it wrote; all of it has a default.

    Attributes:
        source: The model that was written, where it is not the one given.
        rows: ``{key: more fields of the weight's row in the manifest}``:
            ``"method"``, how its layer computes; ``"reason"``, why not
            sparsely; other fields of a `WeightRow`; and what reading the
            export takes.
        notes: What was decided against, and why.
        batch_size: The only one that the export takes, if so.
        sparse_tensors: How many tensors hold kept values and their places.
        takes_zip: Whether a file of this format may end in a zip archive,
            which is where its manifest goes then.
    """

    source: Source | None = None
    rows: Mapping[str, Mapping[str, Any]] = dataclasses.field(
        default_factory=dict
    )
    notes: Sequence[str] = ()
    batch_size: int | None = None
    sparse_tensors: int = 0
    takes_zip: bool = False


def describe(format: str, source: Source, written: Written) -> dict[str, Any]:
    """The manifest of an export, as JSON values.

    Args:
        format: Its name in `tf_tickets.export.FORMATS`.
        source: The model that was given to the writer.
        written: What the writer says.
    """
    source = written.source or source
    try:
        counted = flops(
            source.model, input_shape=shapes_in(source.endpoints[DEFAULT][1])
        ).layers
    except ValueError:  # a subclassed model, or sizes left open
        counted = ()
    macs = {layer.name: layer.macs for layer in counted}
    rows = []
    for key, array in source.values.items():
        said = written.rows.get(key, {})
        packed = said.get("packed", {})
        stored = np_dtype(packed.get("stored", str(array.dtype)))
        # The kernel of a layer with several stands for all of them.
        layer = key.rpartition("/")[0].rpartition("/")[2]
        used = macs.pop(layer, None) if key in source.prunable else None
        row = WeightRow(
            key=key,
            shape=array.shape,
            density=source.kept[key] / max(array.size, 1),
            dense_bytes=array.nbytes,
            packed_bytes=sum(packed.get("sections", [array.nbytes])),
            floor_bytes=entropy_floor(
                array.size, source.kept[key], 8 * stored.itemsize
            ),
            flops=None if used is None else 2 * used,
        )
        prunable = {"prunable": key in source.prunable}
        rows.append({**dataclasses.asdict(row), **prunable, **said})
    return {
        "format": "tf_tickets.export",
        "format_version": FORMAT_VERSION,
        "tf_tickets": __version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "export": format,
        "notes": list(written.notes),
        "batch_size": written.batch_size,
        "sparse_tensors": written.sparse_tensors,
        # For `unpack`, which reads SavedModels; a small file stays small.
        "model": None if written.takes_zip else _config(source.model),
        "weights": rows,
    }


def write_manifest(
    target: Path, fields: Mapping[str, Any], takes_zip: bool
) -> None:
    """Put the manifest into an export.

    Args:
        target: A folder; or a file, which gets it only if it takes a zip
            archive at its end.
        fields: What `describe` returned.
        takes_zip: See `Written`.
    """
    data = json.dumps(fields).encode()
    if target.is_dir():
        (target / PLACE).parent.mkdir(exist_ok=True)
        (target / PLACE).write_bytes(gzip.compress(data, mtime=0))
    elif takes_zip:
        with zipfile.ZipFile(target, "a") as bundle:
            place = zipfile.ZipInfo(PLACE.stem)
            bundle.writestr(place, data, zipfile.ZIP_DEFLATED)


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of an export, all of whose files are whole.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If it is not an export of this library, or damaged.
    """
    path = Path(path)
    digests.compare(path)
    try:
        if path.is_dir():
            data = gzip.decompress((path / PLACE).read_bytes())
        else:
            with zipfile.ZipFile(path) as bundle:
                data = bundle.read(PLACE.stem)
        fields = json.loads(data)
        if fields["format"] != "tf_tickets.export":
            raise ValueError(f"it says it holds {fields['format']!r}")
        if fields["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"it has format version {fields['format_version']!r}; this "
                f"release reads version {FORMAT_VERSION}"
            )
    except PermissionError:
        raise
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        NotImplementedError,  # of a compression that Python does not know
        RuntimeError,  # an encrypted member
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(
            f"{str(path)!r} is not a whole export of tf_tickets: {error}"
        ) from error
    return fields


def bytes_of(path: str | os.PathLike[str]) -> int:
    """Bytes of all files below ``path``; of the file itself if it is one."""
    path = Path(path)
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


@dataclasses.dataclass(frozen=True)
class WeightRow:
    """One weight of an exported model.

    Attributes:
        key: The weight.
        shape: Its shape.
        density: Fraction that is not zero.
        dense_bytes: In its own type.
        packed_bytes: As stored in this export; `None` if not known.
        floor_bytes: `tf_tickets.export.coding.entropy_floor`, for the type
            in which its values are stored.
        flops: Of its layer for one example, zeros included, two for each
            multiply-accumulate; `None` if not known.
        method: How its layer computes: ``"dense"``, ``"csr"``, ``"XNNPACK"``,
            ...
        reason: Why its layer does not compute sparsely, where that was asked
            and is known; else empty.
        latencies: ``{batch size: {method: seconds}}`` as measured when the
            method was chosen; empty if it was not.
        gzip_bytes: Of the dense ones after gzip; `None` if not measured.
    """

    key: str
    shape: tuple[int, ...]
    density: float
    dense_bytes: int
    packed_bytes: int | None
    floor_bytes: float
    flops: int | None
    method: str = "dense"
    reason: str = ""
    latencies: Mapping[str, Mapping[str, float]] = dataclasses.field(
        default_factory=dict
    )
    gzip_bytes: int | None = None

    @property
    def parameters(self) -> int:
        """How many values the weight has, zeros included."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclasses.dataclass(frozen=True)
class Report:
    """An export, of any format, in numbers; it stands for its path.

    What writes an export returns one, and so does `report`, which measures.

    Attributes:
        path: The file or directory.
        format: Its format, a name in `tf_tickets.export.FORMATS`.
        rows: One `WeightRow` for each weight.
        disk_bytes: Of all files of the export.
        notes: What the export decided against, and why.
        sparse_tensors: How many tensors hold kept values and their places.
        batch_size: The only one that the export takes; `None` for any.
        dense_disk_bytes: Of the same model exported without sparsity; `None`
            if not measured.
        latencies: ``{batch size: {"dense" | "export": Latency}}``; empty if
            not measured.
        differences: ``{batch size: largest difference from the outputs of the
            dense export, over the largest output}``; empty if not measured.
    """

    path: Path
    format: str
    rows: list[WeightRow]
    disk_bytes: int
    notes: list[str] = dataclasses.field(default_factory=list)
    sparse_tensors: int = 0
    batch_size: int | None = None
    dense_disk_bytes: int | None = None
    latencies: dict[int, dict[str, Latency]] = dataclasses.field(
        default_factory=dict
    )
    differences: dict[int, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, described: Mapping[str, Any]) -> Report:
        """What the manifest of an export says, before anything is measured."""
        fields = [field.name for field in dataclasses.fields(WeightRow)]
        rows = [
            WeightRow(
                **{name: row[name] for name in fields}
                | {"shape": tuple(row["shape"])}
            )
            for row in described["weights"]
        ]
        return cls(
            path,
            described["export"],
            rows,
            bytes_of(path),
            described["notes"],
            described["sparse_tensors"],
            described["batch_size"],
        )

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __fspath__(self) -> str:
        return str(self.path)

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
        fields = dataclasses.asdict(self) | {"path": str(self.path)}
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
        lines = tables.text(self._rows(), words=_WORDS)
        return "\n".join([lines, "", *self._summary()])

    def _rows(self) -> list[tuple[str, ...]]:
        """What the table holds: heads, matrices, the total of everything."""
        sizes = ("dense", "gzip", "packed", "floor")
        return [
            ("weight", "shape", "density", *sizes, "method", "MFLOPs"),
            # Biases and statistics would hide what matters.
            *(
                (
                    row.key,
                    "x".join(map(str, row.shape)),
                    f"{row.density:.4f}",
                    *(_size(getattr(row, f"{name}_bytes")) for name in sizes),
                    row.method,
                    "" if row.flops is None else f"{row.flops / 1e6:.2f}",
                )
                for row in self.rows
                if len(row.shape) > 1
            ),
            (
                "total, biases and statistics too",
                f"{self.total('parameters'):,.0f}",
                f"{self.density:.4f}",
                *(_size(self.total(f"{name}_bytes") or None) for name in sizes),
                self.format,
                f"{self.total('flops') / 1e6:.2f}",
            ),
        ]

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return tables.as_html(
            self._rows(),
            caption=f"Export to {self.path}, format {self.format!r}",
            notes=self._summary(),
            words=_WORDS,
        )

    def plot(self, path: figures.Path | None = None) -> Any:
        """Draw bytes and latencies; see `tf_tickets.figures`.

        The bars are those of the text's last row and of its lines below, with
        the same numbers beside them. What was not measured has no bar.

        Args:
            path: An image file to write, or `None`.

        Returns:
            The two axes.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        figure, (size, speed) = figures.new_axes((10, 3), columns=2)
        weights = {
            f"weights, {name}": self.total(f"{name}_bytes")
            for name in ("dense", "gzip", "packed", "floor")
        }
        disk = {
            "on disk, dense": self.dense_disk_bytes,
            f"on disk, {self.format}": self.disk_bytes,
        }
        measured = {k: v for k, v in {**weights, **disk}.items() if v}
        figures.bars(measured, "size", axes=size, form=_size)
        size.xaxis.set_major_formatter(lambda value, _: _size(value))
        size.locator_params(axis="x", nbins=3)
        gains = self.gains()
        size.set_title(f"size: {gains.get('size', 'not compared')}")
        times = {
            f"batch {batch}, {self.format if name == 'export' else name}": row[
                name
            ]
            for batch, row in self.latencies.items()
            for name in ("dense", "export")
        }
        medians = {name: 1e3 * one.median for name, one in times.items()}
        if not times:
            speed.set_axis_off()
            speed.set_title("latency: not measured")
        else:
            spread = {
                name: (1e3 * (t.median - t.low), 1e3 * (t.high - t.median))
                for name, t in times.items()
            }
            figures.bars(
                medians,
                "ms a call, median and quartiles",
                axes=speed,
                form="{:.2f} ms",
                spread=spread,
            )
            speed.set_title(
                "\n".join(
                    f"{name}: {word}"
                    for name, word in gains.items()
                    if name != "size"
                ),
                fontsize=10,
            )
        figures.save(figure, path)
        return size, speed

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
        reasons = [
            f"{row.key} is not computed sparsely: {row.reason}"
            for row in self.rows
            if row.reason
        ]
        return [
            *lines,
            *(["; ".join(gains)] if gains else []),
            *reasons,
            *self.notes,
        ]


def _config(model: keras.Model) -> Any:
    # A subclassed model need not be able to describe itself; then `unpack`
    # must be given one.
    try:
        config = json.loads(model.to_json())
    except (NotImplementedError, TypeError, ValueError):
        return None
    config.pop("compile_config", None)
    return config


def _size(size: float | None) -> str:
    if size is None:
        return ""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
