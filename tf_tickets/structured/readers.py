"""Who hears the channels that go, and what is said in their place.

A channel can go without a trace where it is the same everywhere, whatever the
input: what a reader's kernel makes of that constant moves into its bias.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tf_tickets import masking
from tf_tickets.network.channels import Channels, Read
from tf_tickets.network.constants import (
    Constants,
    input_constants,
    present,
    propagate,
    pushed,
    weight,
)


@dataclasses.dataclass
class Reader:
    """A kernel, and what it meets in all calls of its layer.

    Attributes:
        read: One of the calls.
        present: Whether an input meets a weight that is not zero, anywhere:
            a matrix (inputs, outputs).
        uniform: Whether a constant input moves every position alike, in all
            calls.
        values: The constant that each input has in all calls, else NaN.
    """

    read: Read
    present: np.ndarray
    uniform: bool
    values: np.ndarray

    @property
    def folds(self) -> np.ndarray:
        """Whether the bias can say what an input says."""
        constant = ~np.isnan(self.values)
        # A layer inside another one is not given a bias.
        takes = not self.read.call.within or has_free_bias(self.read.layer)
        return (self.values == 0) | (constant & (self.uniform and takes))


def has_free_bias(layer: Any) -> bool:
    """Whether a layer has a bias, and no mask says what it may be."""
    bias = getattr(layer, "bias", None)
    return bias is not None and not isinstance(
        bias.constraint, masking.MaskConstraint
    )


class Readers:
    """All kernels of a model, and the constants that they meet.

    Args:
        channels: The channels of the model.

    Attributes:
        readers: One for each kernel.
        known: What `tf_tickets.network.constants.propagate` finds.
    """

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self.known: Constants = propagate(channels)
        found: dict[int, Reader] = {}
        for read in channels.reads:
            values = input_constants(channels, read, self.known)
            first = found.get(id(read.layer))
            if first is None:
                found[id(read.layer)] = Reader(
                    read, present(channels, read), read.uniform, values
                )
            else:
                # One bias serves all calls: a constant must be one for all.
                first.values = np.where(first.values == values, values, np.nan)
                first.uniform &= read.uniform
        self.readers = list(found.values())

    def settle(self, going: np.ndarray) -> dict[int, tuple[str, bool]]:
        """Take back the channels that cannot go without a trace.

        Args:
            going: One boolean per atom, read at the roots; changed in place.

        Returns:
            ``{root: (why it stays, whether it is a constant all the same)}``.
        """
        rows = [self.channels.roots(r.read.read) for r in self.readers]
        columns = [self.channels.roots(r.read.made) for r in self.readers]
        reasons = self._read_together(going)
        changed = True
        while changed:
            taken = self.channels.keep_taken(going)
            changed = bool(taken)
            for root, why in taken.items():
                reasons.setdefault(root, (why, False))
            for reader, row, column in zip(
                self.readers, rows, columns, strict=True
            ):
                heard = reader.present[:, ~going[column]].any(1)
                stays = going[row] & heard & ~reader.folds
                for root, value in zip(
                    row[stays].tolist(), reader.values[stays], strict=True
                ):
                    constant = not np.isnan(value)
                    reasons.setdefault(
                        root, (_reason(reader, constant), constant)
                    )
                changed |= bool(stays.any())
                going[row[stays]] = False
        for reader, row, column in zip(
            self.readers, rows, columns, strict=True
        ):
            # What varies where another layer hears it is no constant.
            heard = reader.present[:, ~going[column]].any(1)
            for root in row[heard & np.isnan(reader.values)].tolist():
                if root in reasons and reasons[root][1]:
                    reasons[root] = _reason(reader, False), False
        return reasons

    def _read_together(self, going: np.ndarray) -> dict[int, tuple[str, bool]]:
        """What is summed over all channels hears every one but zeros."""
        reasons = {}
        for atoms, tensor, why in self.channels.together():
            roots = self.channels.roots(atoms)
            zero = self.known.get(tensor, np.full(atoms.size, np.nan)) == 0
            for root in roots[going[roots] & ~zero].tolist():
                reasons[root] = why, False
                going[root] = False
        return reasons

    def biases(self, removed: np.ndarray) -> dict[int, np.ndarray]:
        """Biases that take over what the removed constants said.

        Args:
            removed: One boolean per atom.

        Returns:
            ``{id(layer): its new bias, of the full size}`` where it changes.
        """
        found: dict[int, np.ndarray] = {}
        for reader in self.readers:
            gone = removed[reader.read.read] & ~np.isnan(reader.values)
            shift = pushed(
                self.channels, reader.read, np.where(gone, reader.values, 0)
            )
            if shift.any():
                layer = reader.read.layer
                old = weight(self.channels, layer, "bias")
                found[id(layer)] = old.astype(np.float64) + shift
        return found


def _reason(reader: Reader, constant: bool) -> str:
    name = reader.read.layer.name
    if constant:
        return (
            f"their constant does not fold into the bias of {name}, which "
            "pads with zeros"
        )
    return f"they are not the same everywhere where {name} reads them"
