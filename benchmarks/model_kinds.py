"""The kinds of model that the matrix shows: entries of the gallery."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras

from tests import gallery

BATCH = 4
STEPS = 2

Inputs = Any


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        group: Heading of its part of the table.
        name: Its own name there.
        entry: Its name in the gallery.
        filters: As in `tf_tickets.prunable_weights`.
        known: ``{operation: part of a message}``: what an operation must say
            that cannot work on this kind.
        note: What a user should know.
    """

    group: str
    name: str
    entry: str
    filters: Any = None
    known: Mapping[str, str] = dataclasses.field(default_factory=dict)
    note: str = ""

    def build(self) -> tuple[keras.Model, Inputs]:
        """A new model that is not compiled, and `STEPS` batches for it."""
        model = gallery.GALLERY[self.entry]()
        return model, gallery.inputs(model, BATCH * STEPS)


def _nothing_to_prune(message: str) -> dict[str, str]:
    return dict.fromkeys(("prune, apply", "IMP, rewind"), message)


_BUILT, _AFTER = "How it is built", "What was done to it before"
_RECURRENT, _HUB = "Recurrent", "KerasHub, random weights"
_APPLICATIONS = "`keras.applications`, random weights, no top"

KINDS = {
    kind.name: kind
    for kind in (
        Kind(_BUILT, "sequential", "sequential"),
        Kind(_BUILT, "functional", "functional"),
        Kind(_BUILT, "nested, names repeated", "nested"),
        Kind(_BUILT, "subclassed, with attention", "subclassed_attention"),
        Kind(_BUILT, "one layer shared by two inputs", "towers"),
        Kind(_BUILT, "dictionaries of inputs and outputs", "several"),
        Kind(
            _BUILT,
            "custom layer, kernel named otherwise",
            "custom",
            filters="mixing",
            note='`filters="mixing"`',
        ),
        Kind(
            _BUILT,
            "the same without `filters`",
            "custom",
            known=_nothing_to_prune("Name your own weights with `filters`"),
        ),
        Kind(_RECURRENT, "LSTM", "lstm"),
        Kind(_RECURRENT, "GRU", "gru"),
        Kind(_RECURRENT, "Bidirectional LSTM, then SimpleRNN", "bidirectional"),
        Kind(_RECURRENT, "RNN over stacked cells", "cells"),
        Kind(_RECURRENT, "ConvLSTM2D", "conv_lstm"),
        Kind(_RECURRENT, "TimeDistributed convolution", "distributed"),
        Kind(
            _AFTER,
            "zeros in its weights, no masks",
            "sparse_already",
            note="old zeros go first; they count as weights until pruned",
        ),
        Kind(
            _AFTER,
            "`layer.enable_lora`",
            "lora",
            known={".keras": "zeros of the file"},
            note="saving merges a dense update: see *LoRA* below",
        ),
        Kind(
            _AFTER,
            '`model.quantize("int8")`',
            "int8",
            known=_nothing_to_prune("quantize it after pruning"),
            note="quantize after pruning: see *int8* below",
        ),
        Kind(
            _AFTER,
            "one layer in int8",
            "int8_partly",
            note="the float kernels are pruned, the int8 kernel is not",
        ),
        *(Kind(_APPLICATIONS, name, name) for name in gallery.APPLICATIONS),
        *(Kind(_HUB, name, name) for name in gallery.HUB),
    )
}
