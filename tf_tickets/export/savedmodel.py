"""SavedModels that a process without tf_tickets loads and serves, and back."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import checks
from tf_tickets.export import choosing, coding, serving
from tf_tickets.export.folding import served_view, without_normalization
from tf_tickets.export.kernels import Choice
from tf_tickets.export.report import Written, read_manifest
from tf_tickets.export.source import DEFAULT, Source, batch_sizes_of
from tf_tickets.masks import given
from tf_tickets.selection import match_keys, named_weights
from tf_tickets.structured.dead import find_dead_channels
from tf_tickets.ticket import Ticket

VALUES = ("float32", "float16", "bfloat16")


def weights_of(
    path: str | os.PathLike[str], described: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """``{key: array}`` of an export with the manifest ``described``."""
    prefix = Path(path) / "variables" / "variables"
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        # The packed weights are one tensor, to be read once.
        read = functools.cache(reader.get_tensor)
        found = {row["key"]: _array(read, row) for row in described["weights"]}
    except (tf.errors.OpError, ValueError, KeyError) as error:
        raise ValueError(
            f"{str(path)!r} is not a whole export of tf_tickets: {error}"
        ) from error
    return found


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A writer of SavedModels; the formats differ in how far they go.

    Attributes:
        packs: Whether kept values and their places are stored, not zeros.
        chooses: Whether each layer that was measured to be faster with a
            sparse kernel runs it.
        whole: Whether dead channels are removed first, normalizations folded
            by default, and sparse kernels given up again if the whole is
            slower than without them.
    """

    packs: bool = False
    chooses: bool = False
    whole: bool = False

    weights_of = staticmethod(weights_of)

    def __call__(
        self,
        source: Source,
        target: Path,
        *,
        values: str = "float32",
        batch_sizes: Sequence[int] = (1, 32),
        fold: bool | None = None,
    ) -> Written:
        """Write ``source`` to ``target``, as `saved_model` says."""
        checks.choice("values", values, VALUES)
        if not self.packs and values != "float32":
            raise ValueError(
                "A dense export stores the weights as they are: choose another "
                f"format to store values as {values}. "
                f"Received: values={values!r}"
            )
        batch_sizes = batch_sizes_of(batch_sizes)
        stored = None if values == "float32" else values
        notes = []
        if self.whole:
            source, note = _without_dead_channels(source)
            notes.append(note)
        if self.whole if fold is None else fold:
            source, note = without_normalization(source)
            notes.append(note)
        choices: dict[str, Choice] = {}
        measured: dict[str, choosing.Measured] = {}
        if self.chooses:
            choices, measured = choosing.choose(source, batch_sizes)
        packed = self._save(source, target, stored, choices)
        if self.whole and choices:
            try:
                slower = _slower_than_dense(target, source, batch_sizes)
                why = f"as a whole not faster: {slower}" if slower else ""
            except ValueError as error:
                why = f"cannot be measured: {error}"
            if why:
                notes.append(f"served densely, {why}")
                choices = {}
                shutil.rmtree(target)
                packed = self._save(source, target, stored, choices)
        rows = _rows(source, packed, choices, measured)
        return Written(source, rows, notes, sparse_tensors=len(packed.specs))

    def load(self, path: str | os.PathLike[str]) -> Callable[..., Any]:
        """The function that the export at ``path`` serves."""
        loaded = tf.saved_model.load(os.fspath(path))
        # It holds the resources, which its functions alone do not.
        return lambda *inputs: getattr(loaded, DEFAULT)(*inputs)

    def _save(
        self,
        source: Source,
        target: Path,
        stored: str | None,
        choices: Mapping[str, Choice],
    ) -> serving.Packed:
        packed = serving.NOTHING
        if self.packs:
            packed = serving.pack_model(source, stored, choices)
        with source.traceable():
            module = serving.build(source, packed, choices)
            functions = {
                name: getattr(module, name) for name in source.endpoints
            }
            tf.saved_model.save(
                module,
                str(target),
                signatures={**functions, "serving_default": functions[DEFAULT]},
            )
        return packed


def load_sparse(path: str | os.PathLike[str]) -> Ticket:
    """The ticket in an exported model: where it is not zero, and its weights.

    Args:
        path: What `saved_model` wrote, in any of its formats.

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
    described = read_manifest(path)
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
        given(masks),
        given(weights),
        {"source": "export", "export": described["export"]},
    )


def unpack(
    path: str | os.PathLike[str], model: keras.Model | None = None
) -> keras.Model:
    """The Keras model in an exported model.

    Args:
        path: What `saved_model` wrote, in any of its formats.
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
    described = read_manifest(path)
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


def _array(
    read: Callable[[str], np.ndarray], row: Mapping[str, Any]
) -> np.ndarray:
    if "packed" not in row:
        return read(row["checkpoint"])
    spec = coding.Spec.from_json(row["packed"])
    blob = read(serving.PACKED_NAME)
    return coding.unpack(spec, blob[spec.begin : spec.begin + spec.bytes])


def _rows(
    source: Source,
    packed: serving.Packed,
    choices: Mapping[str, Choice],
    measured: Mapping[str, choosing.Measured],
) -> dict[str, dict[str, Any]]:
    """What the manifest says of each weight, beside its shape and zeros."""
    rows: dict[str, dict[str, Any]] = {key: {} for key in source.weights}
    for key, one in measured.items():
        rows[key]["latencies"] = one.medians()
        rows[key]["reason"] = (
            "no sparse kernel was faster"
            if one.method == "dense"
            else "the model as a whole was not faster"
        )
    for key, choice in choices.items():
        rows[key] |= {"method": choice.method.name, "reason": ""}
    kept = [key for key in rows if key not in packed.specs]
    for number, key in enumerate(kept):
        rows[key]["checkpoint"] = serving.KEPT_NAME.format(number)
    for key, spec in packed.specs.items():
        rows[key]["packed"] = spec.to_json()
    return rows


def _without_dead_channels(source: Source) -> tuple[Source, str]:
    """The model without channels that are dead, and what was done."""
    if len(source.endpoints) > 1:
        return source, (
            "dead channels stay: other endpoints use the layers too"
        )
    try:
        found = find_dead_channels(source.model)
        if not found:
            return source, "no dead channels"
        small = found.without(served_view(source.model))
    except ValueError as error:
        return source, f"dead channels stay: {error}"
    said = str(found.report(source.model, small)).partition("\n")[0]
    return Source.of(small, source.endpoints[DEFAULT][1]), said


def _slower_than_dense(
    target: Path, source: Source, batch_sizes: Sequence[int]
) -> dict[int, float]:
    """``{batch size: time over the dense model's}`` where it is slower."""
    function, signature = source.endpoints[DEFAULT]
    loaded = tf.saved_model.load(str(target))
    dense = tf.function(function, input_signature=signature, autograph=False)
    slower = {}
    for batch in batch_sizes:
        with source.traceable():
            times, _ = choosing.compared(
                {"dense": dense, "export": loaded.serve}, signature, batch
            )
        ratio = times["export"].median / times["dense"].median
        if ratio > 1 + choosing.NOISE:
            slower[batch] = round(ratio, 2)
    return slower
