"""SavedModels that a process without tf_tickets loads and serves."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import masking
from tf_tickets.analysis.flops import flops
from tf_tickets.export import choosing, manifest, serving, signatures
from tf_tickets.export.latency import NOISE, interleaved
from tf_tickets.network.graph import functional_view
from tf_tickets.selection import named_weights, prunable_weights, view_of
from tf_tickets.structured.dead import find_dead_channels
from tf_tickets.version import __version__

Format = Literal["dense", "packed", "sparse", "auto"]
Values = Literal["float32", "float16", "bfloat16"]


def saved_model(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    format: Format = "dense",
    values: Values = "float32",
    batch_sizes: Sequence[int] = (1, 32),
    endpoints: Mapping[str, signatures.Endpoint] | None = None,
    input_signature: Sequence[Any] | None = None,
) -> Path:
    """Write ``model`` as a SavedModel with the zeros of its ticket.

    The artifact has an endpoint ``serve`` and the signature
    ``serving_default``, a free batch size, and standard operations only:
    `tf.saved_model.load`, the TF 1 loader, TensorFlow Serving and
    `keras.layers.TFSMLayer` read it without this library. Masks in force are
    enforced once more before writing. The directory appears whole or not at
    all; a killed export leaves at most a hidden directory beside it.

    Args:
        model: A built Keras model whose weights hold zeros.
        path: A directory that does not exist yet.
        format: `"dense"`: every weight is stored, zeros included; a
            compressed file of it is small, the directory itself is not.
            `"packed"`: kept values and their places are stored, and decoded
            once when the model is loaded; served like the dense model.
            `"sparse"`: packed, and each layer that was measured to be faster
            with a sparse kernel on this machine runs it.
            `"auto"`: `"sparse"`, after channels that are dead are removed;
            and the whole is measured against the dense model, so that it is
            never slower beyond noise.
        values: In which type kept float weights are stored, in any format
            but `"dense"`; they are computed with in their own type. Biases
            and other small weights keep their type.
        batch_sizes: At which `"sparse"` and `"auto"` measure. A sparse kernel
            is used if it wins at each of them.
        endpoints: ``{name: function}`` or ``{name: (function, signature)}``
            for more than `"serve"`: sub-models that share the model's layers,
            or functions that call it. Without a signature they take what the
            model takes.
        input_signature: A list of structures of `tf.TensorSpec`, one for each
            positional argument of the model, where the model does not say
            itself what it takes.

    Returns:
        The path.

    Raises:
        ValueError: On an unknown option, a model without weights, or values
            too large for ``values``.
        FileExistsError: If ``path`` exists.
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
    _check_options(format, values, batch_sizes)
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise FileExistsError(
            f"{str(path)!r} exists: choose a path that does not."
        )
    named_weights(model)
    served = signatures.endpoints_of(model, input_signature, endpoints)
    masking.project(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        stored = None if values == "float32" else values
        _write(model, workspace / "model", format, stored, batch_sizes, served)
        os.replace(workspace / "model", path)
    except tf.errors.OpError as error:
        raise OSError(
            f"{str(path)!r} could not be written: {error.message}"
        ) from error
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    return path


def _write(
    model: keras.Model,
    target: Path,
    format: Format,
    stored: str | None,
    batch_sizes: Sequence[int],
    served: dict[str, tuple[Any, list[Any]]],
) -> None:
    dense = served[signatures.DEFAULT]
    choices: dict[str, serving.Choice] = {}
    measured: dict[str, choosing.Measured] = {}
    notes: list[str] = []
    if format == "auto":
        model, note = _without_dead_channels(model, len(served) > 1)
        notes.append(note)
        served = {**served, signatures.DEFAULT: (model, dense[1])}
    if format in ("sparse", "auto"):
        choices, measured = choosing.choose(
            model, served[signatures.DEFAULT], batch_sizes
        )
    _save(model, target, format, stored, served, choices, measured, notes)
    if format == "auto" and choices:
        slower = _slower_than_dense(target, dense, batch_sizes)
        if slower:
            notes.append(f"as a whole not faster, so served densely: {slower}")
            shutil.rmtree(target)
            _save(model, target, format, stored, served, {}, measured, notes)


def _without_dead_channels(
    model: keras.Model, is_shared: bool
) -> tuple[keras.Model, str]:
    """A model without the channels that are dead, and what was done."""
    if is_shared:
        return model, "dead channels stay: other endpoints use the layers too"
    try:
        found = find_dead_channels(model)
        if not found:
            return model, "no dead channels"
        # What is served needs no class, and nothing to train with.
        plain = (
            model if type(model) is keras.Sequential else functional_view(model)
        )
        small = found.without(plain)
    except ValueError as error:
        return model, f"dead channels stay: {error}"
    return small, str(found.report(model, small)).partition("\n")[0]


def _save(
    model: keras.Model,
    target: Path,
    format: Format,
    stored: str | None,
    served: dict[str, tuple[Any, list[Any]]],
    choices: dict[str, serving.Choice],
    measured: dict[str, choosing.Measured],
    notes: list[str],
) -> None:
    if format == "dense":
        packed = serving.NOTHING
    else:
        packed = serving.pack_model(model, values=stored, choices=choices)
    module = serving.build(model, served, packed, choices)
    functions = {name: getattr(module, name) for name in served}
    tf.saved_model.save(
        module,
        str(target),
        signatures={
            **functions,
            "serving_default": functions[signatures.DEFAULT],
        },
    )
    manifest.write(
        target,
        {
            "tf_tickets": __version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "export": format,
            "notes": notes,
            "model": _config(model),
            "macs": _macs(model),
            "weights": _described(model, packed, choices, measured),
        },
    )


def _described(
    model: keras.Model,
    packed: serving.Packed,
    choices: dict[str, serving.Choice],
    measured: dict[str, choosing.Measured],
) -> list[dict[str, Any]]:
    try:
        prunable = set(prunable_weights(model))
    except ValueError:  # a model without kernels is a model all the same
        prunable = set()
    rows = []
    kept = 0
    for key, variable in named_weights(model).items():
        array = view_of(variable)
        row: dict[str, Any] = {
            "key": key,
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "nonzero": int(np.count_nonzero(array)),
            "prunable": key in prunable,
            "method": choices[key].method.name if key in choices else "dense",
        }
        if key in packed.specs:
            row["packed"] = packed.specs[key].to_json()
            row["stamp"] = packed.stamps[key].tolist()
        else:
            row["checkpoint"] = serving.KEPT_NAME.format(kept)
            kept += 1
        if key in measured:
            row["measured"] = measured[key].to_json()
        rows.append(row)
    return rows


def _macs(model: keras.Model) -> dict[str, list[int]] | None:
    """``{layer: [multiply-accumulates, those with kept weights]}``."""
    try:
        counted = flops(model)
    except ValueError:  # a subclassed model, or sizes left open
        return None
    return {row.name: [row.macs, row.masked_macs] for row in counted.layers}


def _config(model: keras.Model) -> Any:
    # A subclassed model need not be able to describe itself; then `unpack`
    # must be given one.
    try:
        config = json.loads(model.to_json())
    except (NotImplementedError, TypeError, ValueError):
        return None
    config.pop("compile_config", None)
    return config


def _slower_than_dense(
    target: Path,
    endpoint: tuple[Any, list[Any]],
    batch_sizes: Sequence[int],
) -> dict[int, float]:
    """``{batch size: time over the dense model's}`` where it is slower."""
    function, signature = endpoint
    loaded = tf.saved_model.load(str(target))
    dense = tf.function(
        function, input_signature=signature, autograph=False
    ).get_concrete_function()
    slower = {}
    for batch in batch_sizes:
        inputs = signatures.sample(signature, batch)
        flat = keras.tree.flatten(inputs)
        times = interleaved(
            {
                "dense": functools.partial(_wait, dense, flat),
                "export": functools.partial(_wait, loaded.serve, inputs),
            },
            seconds=2.0,
        )
        ratio = times["export"].median / times["dense"].median
        if ratio > 1 + NOISE:
            slower[batch] = round(ratio, 2)
    return slower


def _wait(function: Any, inputs: list[Any]) -> None:
    for output in keras.tree.flatten(function(*inputs)):
        output.numpy()


def _check_options(
    format: str, values: str, batch_sizes: Sequence[int]
) -> None:
    if format not in get_args(Format):
        raise ValueError(
            f"`format` must be one of {get_args(Format)}. "
            f"Received: format={format!r}"
        )
    if values not in get_args(Values):
        raise ValueError(
            f"`values` must be one of {get_args(Values)}. "
            f"Received: values={values!r}"
        )
    if format == "dense" and values != "float32":
        raise ValueError(
            "A dense export stores the weights as they are: choose another "
            f"format to store values as {values}. Received: values={values!r}"
        )
    if (
        not isinstance(batch_sizes, Sequence)
        or not batch_sizes
        or not all(
            isinstance(b, int) and not isinstance(b, bool) and b > 0
            for b in batch_sizes
        )
    ):
        raise ValueError(
            "`batch_sizes` must be positive whole numbers. "
            f"Received: batch_sizes={batch_sizes!r}"
        )
