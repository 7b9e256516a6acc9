"""The export formats as a table, and what is done alike for all of them."""

from __future__ import annotations

import dataclasses
import gzip
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import archive, checks, masking, progress
from tf_tickets.export import digests
from tf_tickets.export.choosing import compared, difference
from tf_tickets.export.litert import LiteRT
from tf_tickets.export.report import (
    PLACE,
    Report,
    Written,
    describe,
    read_manifest,
    write_manifest,
)
from tf_tickets.export.savedmodel import SavedModel
from tf_tickets.export.source import (
    Endpoint,
    Source,
    batch_sizes_of,
    signature_of,
)
from tf_tickets.pruning.prune import warn_of_collapse
from tf_tickets.selection import check_model
from tf_tickets.timing import Latency

# Writers: functions, or objects that have more methods.
FORMATS: dict[str, Any] = {
    "dense": SavedModel(),
    "packed": SavedModel(packs=True),
    "sparse": SavedModel(packs=True, chooses=True),
    "auto": SavedModel(packs=True, chooses=True, whole=True),
    "litert": LiteRT(),
}
"""``{name: writer}``, yours too.

A writer is called as ``writer(source, target, **options)``: it writes what the
`Source` holds to the path ``target``, a file or a directory, and returns a
`Written` or `None`. It need not care for masks, old files or half-written
ones. With a method ``load(path)``, which returns the function of the model's
inputs that an export serves, `report` measures it; with ``baseline(made)``,
which returns ``(format, options)``, against another format than `"dense"`.
"""


def write(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    format: str,
    endpoints: Mapping[str, Endpoint] | None = None,
    input_signature: Sequence[Any] | None = None,
    overwrite: bool = True,
    verbose: progress.Verbosity = "auto",
    **options: Any,
) -> Report:
    """Write ``model`` in any format of `FORMATS`.

    Masks in force are enforced once more before writing, and a kernel whose
    weights are all zero is warned of. What is served predicts: augmentation
    and dropout are off. What is written appears whole or not at all; a killed
    export leaves at most a hidden directory beside it, which the next one
    removes. It carries digests, which `verify` compares.

    Args:
        model: A built Keras model whose weights hold zeros.
        path: Of a file or a directory, as the format has it.
        format: A name in `FORMATS`.
        endpoints: As in `saved_model`.
        input_signature: As in `saved_model`.
        overwrite: Whether to replace what is at ``path``, which is the
            default. A directory is replaced only if it is empty or holds an
            export.
        verbose: As in `saved_model`.
        **options: Of the format.

    Returns:
        A `Report` of what was written, not measured yet. It stands for the
        path wherever one is taken.

    Raises:
        ValueError: On an unknown format or a bad option, or a model without
            weights.
        FileExistsError: If ``path`` exists and must not be replaced.
        OSError: If it cannot be written; nothing is left behind.

    Example:

    >>> import tf_tickets as tt
    >>> import tempfile
    >>> def compressed(source, target):
    ...     with target.open("wb") as file:
    ...         np.savez_compressed(file, **source.values)
    >>> tt.export.FORMATS["compressed"] = compressed
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(256)])
    >>> tt.prune(model, sparsity=0.9).apply(model)
    >>> where = tempfile.mkdtemp() + "/model.npz"
    >>> made = tt.export.write(model, where, format="compressed")
    >>> made.disk_bytes < made.total("dense_bytes") / 5
    True
    >>> del tt.export.FORMATS["compressed"]
    """
    checks.choice("format", format, FORMATS)
    path = Path(path)
    check_model(model)
    masking.warn_of_written(model)
    masking.project(model)
    source = Source.of(model, input_signature, endpoints)
    # Whether a weight is kept is all that is asked of a mask here.
    warn_of_collapse(
        {key: np.array([source.kept[key] > 0]) for key in source.prunable}
    )
    with progress.shown(verbose):
        return _write(source, path, format, options, overwrite)


def _write(
    source: Source,
    path: Path,
    format: str,
    options: Mapping[str, Any],
    overwrite: bool = True,
) -> Report:
    """Write what is ready to be written."""
    with archive.replacing(path, overwrite=overwrite) as target:
        _check_replaceable(path)
        try:
            written = FORMATS[format](source, target, **options) or Written()
        except tf.errors.OpError as error:
            raise OSError(
                f"{str(path)!r} could not be written: {error.message}"
            ) from error
        if not target.exists():
            raise ValueError(
                "A writer must write to its target, and this one did not. "
                f"Received: format={format!r}"
            )
        described = describe(format, source, written)
        write_manifest(target, described, written.takes_zip)
        digests.seal(target, written.takes_zip)
    return Report.of(path, described)


def saved_model(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    format: str = "dense",
    values: Literal["float32", "float16", "bfloat16"] = "float32",
    batch_sizes: Sequence[int] = (1, 32),
    fold: bool | None = None,
    endpoints: Mapping[str, Endpoint] | None = None,
    input_signature: Sequence[Any] | None = None,
    overwrite: bool = True,
    verbose: progress.Verbosity = "auto",
) -> Report:
    """Write ``model`` as a SavedModel with the zeros of its ticket.

    The artifact has an endpoint ``serve`` and the signature
    ``serving_default``, a free batch size, and standard operations only:
    `tf.saved_model.load`, the TF 1 loader, TensorFlow Serving and
    `keras.layers.TFSMLayer` read it without this library. It is written as
    `write` does.

    Args:
        model: A built Keras model whose weights hold zeros.
        path: A directory.
        format: `"dense"`: every weight is stored, zeros included; a
            compressed file of it is small, the directory itself is not.
            `"packed"`: kept values and their places are stored, and decoded
            once when the model is loaded; served like the dense model.
            `"sparse"`: packed, and each layer that was measured to be faster
            with a sparse kernel on this machine runs it.
            `"auto"`: `"sparse"`, after channels that are dead are removed and
            batch normalizations folded; and the whole is measured against the
            same without sparse kernels, so that these never make it slower
            beyond noise.
        values: In which type kept float weights are stored, in any format
            but `"dense"`; they are computed with in their own type. Biases
            and other small weights keep their type.
        batch_sizes: At which `"sparse"` and `"auto"` measure. A sparse kernel
            is used if it wins at each of them.
        fold: Whether batch normalizations become part of the layers beside
            them, as `tf_tickets.export.fold` does it; what is written are the
            weights of the model that it makes then. `None`, the default: with
            `"auto"`.
        endpoints: ``{name: function}`` or ``{name: (function, signature)}``
            for more than `"serve"`: sub-models that share the model's layers,
            or functions that call it. Without a signature they take what the
            model takes.
        input_signature: A list of structures of `tf.TensorSpec`, one for each
            positional argument of the model, where the model does not say
            itself what it takes.
        overwrite: Whether to replace an export that is there, which is the
            default.
        verbose: `"auto"`, the default, shows a bar of what is measured once
            that has taken a second; 1 at once; 2 one line at the end; 0
            nothing.

    Returns:
        A `Report` of what was written, not measured yet. It stands for the
        path wherever one is taken.

    Raises:
        ValueError: On an unknown option, a model without weights, or values
            too large for ``values``.
        FileExistsError: If ``path`` exists and must not be replaced: with
            ``overwrite=False``, or if it holds something else.
        OSError: If it cannot be written; nothing is left behind.

    Example:

    >>> import tf_tickets as tt
    >>> import tempfile, tensorflow as tf
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(256)])
    >>> tt.prune(model, sparsity=0.9).apply(model)
    >>> where = tempfile.mkdtemp()
    >>> packed = tt.export.saved_model(model, where + "/m", format="packed")
    >>> loaded = tf.saved_model.load(packed)
    >>> loaded.serve(tf.ones((3, 64))).shape
    TensorShape([3, 256])
    """
    known = [k for k, one in FORMATS.items() if isinstance(one, SavedModel)]
    checks.choice("format", format, known)
    return write(
        model,
        path,
        format=format,
        endpoints=endpoints,
        input_signature=input_signature,
        overwrite=overwrite,
        verbose=verbose,
        values=values,
        batch_sizes=batch_sizes,
        fold=fold,
    )


def litert(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    sparse: bool = True,
    batch_size: int = 1,
    values: Literal["float32", "float16", "int8"] = "float32",
    data: Any = None,
    fold: bool = True,
    input_signature: Sequence[Any] | None = None,
    overwrite: bool = True,
    verbose: progress.Verbosity = "auto",
) -> Report:
    """Write ``model`` as a LiteRT file, run it to check it, and measure it.

    Args:
        model: A built Keras model whose weights hold zeros.
        path: The file.
        sparse: Store sparse kernels sparsely.
        batch_size: The file's; LiteRT is fastest with a fixed one.
        values: In which type weights are stored. `"float16"` halves the file
            and is computed with in float32. `"int8"` also computes with
            integers, and never sparsely: the best file for an x86 server.
        data: Examples, as the model takes them, in arrays: what the file is
            run on to check it, and calibrated on for `"int8"`, which needs
            it. Default: random numbers.
        fold: Whether batch normalizations become part of the layers beside
            them, as `tf_tickets.export.fold` does it, which is the default.
        input_signature: As in `saved_model`.
        overwrite: Whether to replace a file that is there, which is the
            default.
        verbose: As in `saved_model`.

    Returns:
        A `Report`, measured against the float32 file stored densely: for each
        prunable weight whether the file computes it sparsely, and the first
        condition that fails where it does not.

    Raises:
        ImportError: If ai-edge-litert is not installed.
        ValueError: On a bad option, a model that the converter does not take,
            or if the interpreter's outputs differ from the model's; nothing
            is written then.
        FileExistsError: If ``path`` exists and must not be replaced: with
            ``overwrite=False``, or if it holds something else.
        OSError: If it cannot be written.

    Example:

    >>> import tf_tickets as tt
    >>> import tempfile
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(256)])
    >>> tt.prune(model, sparsity=0.95).apply(model)
    >>> where = tempfile.mkdtemp() + "/model.tflite"
    >>> found = tt.export.litert(model, where)  # doctest: +SKIP
    >>> found.disk_bytes < found.dense_disk_bytes  # doctest: +SKIP
    True
    """
    made = write(
        model,
        path,
        format="litert",
        input_signature=input_signature,
        overwrite=overwrite,
        sparse=sparse,
        batch_size=batch_size,
        values=values,
        data=data,
        fold=fold,
    )
    return report(
        made,
        model,
        seconds=2.0,
        input_signature=input_signature,
        verbose=verbose,
    )


def report(
    path: str | os.PathLike[str],
    model: keras.Model | None = None,
    *,
    batch_sizes: Sequence[int] = (1, 32),
    runs: int = 30,
    seconds: float = 5.0,
    input_signature: Sequence[Any] | None = None,
    verbose: progress.Verbosity = "auto",
) -> Report:
    """Measure what an export is worth, whatever its format.

    Bytes are those of the files. Latencies are of the export and of a dense
    export of ``model``, loaded into this process and run in turns; as a busy
    machine slows both, ratios say more than milliseconds.

    Args:
        path: The export, or the `Report` that writing it returned.
        model: The Keras model that was exported; without it there are no
            latencies and no differences.
        batch_sizes: At which to measure, unless the export takes one only.
        runs: At most so many of each, at each batch size.
        seconds: At most about so long at each batch size.
        input_signature: As in `saved_model`.
        verbose: As in `saved_model`.

    Returns:
        A `Report`, with ``table()``, ``to_json()`` and ``plot(path)``.

    Raises:
        FileNotFoundError: If there is nothing at ``path``.
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
    batch_sizes = batch_sizes_of(batch_sizes)
    checks.whole("runs", runs)
    checks.number("seconds", seconds, "(0, inf)")
    found = _read(path)
    writer = FORMATS[found.format]
    load = getattr(writer, "load", None)
    if model is None or load is None:
        return found
    if found.batch_size is not None:
        batch_sizes = (found.batch_size,)
    name, options = "dense", {}
    if hasattr(writer, "baseline"):
        name, options = writer.baseline(found)
    signature = list(input_signature or signature_of(model))
    latencies: dict[int, dict[str, Latency]] = {}
    differences: dict[int, float] = {}
    with (
        progress.shown(verbose),
        progress.bar(
            f"Measuring the {found.format} export", 1 + len(batch_sizes)
        ) as step,
    ):
        with tempfile.TemporaryDirectory() as directory:
            masking.project(model)
            source = Source.of(model, signature)
            dense = _write(source, Path(directory) / "dense", name, options)
            served = {
                "dense": FORMATS[name].load(dense.path),
                "export": load(found.path),
            }
        step()
        for batch in batch_sizes:
            latencies[batch], outputs = compared(
                served, signature, batch, runs=runs, seconds=seconds
            )
            differences[batch] = difference(outputs["dense"], outputs["export"])
            step()
    return dataclasses.replace(
        found,
        dense_disk_bytes=dense.disk_bytes,
        latencies=latencies,
        differences=differences,
    )


def _check_replaceable(path: Path) -> None:
    """Meet a directory that is somebody's, before all of it is deleted."""
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not any((path / name).exists() for name in ("saved_model.pb", PLACE)):
        raise FileExistsError(
            f"{str(path)!r} is a directory that holds something else than an "
            "export, which stays: choose another path."
        )


def _read(path: str | os.PathLike[str]) -> Report:
    """What is known of an export before it is run."""
    try:
        described = read_manifest(path)
    except ValueError:
        if isinstance(path, Report):  # of a format that holds no manifest
            return path
        raise
    found = Report.of(Path(path), described)
    checks.choice("format", found.format, FORMATS)
    writer = FORMATS[found.format]
    if not hasattr(writer, "weights_of"):
        return found
    weights = writer.weights_of(path, described)
    rows = [
        dataclasses.replace(
            row, gzip_bytes=len(gzip.compress(weights[row.key].tobytes(), 6))
        )
        for row in found.rows
    ]
    return dataclasses.replace(found, rows=rows)
