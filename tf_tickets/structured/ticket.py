"""Channel masks and the weights to start from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import keras
import numpy as np

from tf_tickets import archive, masking
from tf_tickets.selection import layers_of, match_keys, named_weights
from tf_tickets.ticket import check_mappings
from tf_tickets.version import __version__


class ChannelTicket:
    """One mask per normalisation layer or kernel: which channels it keeps.

    Args:
        masks: ``{key: 1-D boolean array}``, `True` = kept. A key is the path
            of a normalisation layer's scale, or of a kernel, whose output
            channels the mask then names.
        weights: ``{path: array}``: the weights to inherit, or `None`.
        metadata: JSON values that say where the ticket came from.
        scores: ``{key: 1-D array}``: what the masks were drawn by, or `None`.

    Raises:
        ValueError: If there is no mask, or one is not a vector of booleans
            or of zeros and ones.

    Reference:
        You et al., "Drawing Early-Bird Tickets", ICLR 2020.

    Example:

    >>> ticket = ChannelTicket({"bn/gamma": [True, False, True, True]})
    >>> ticket.sparsity
    0.25
    >>> ticket.hamming_distance(ChannelTicket({"bn/gamma": [0, 1, 1, 1]}))
    0.5
    """

    def __init__(
        self,
        masks: Mapping[str, Any],
        weights: Mapping[str, np.ndarray] | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        scores: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        check_mappings(masks=masks, weights=weights, scores=scores)
        check_mappings(metadata=metadata)
        if not masks:
            raise ValueError(
                f"A ticket needs a mask. Received: masks={masks!r}"
            )
        self._masks = MappingProxyType(
            {str(k): _as_vector(str(k), m) for k, m in masks.items()}
        )
        self._weights = _frozen_copies(weights)
        self._scores = _frozen_copies(scores)
        self._metadata = {"tf_tickets": __version__, **(metadata or {})}

    @property
    def masks(self) -> Mapping[str, np.ndarray]:
        """``{key: 1-D boolean array}``, read-only; `True` = kept."""
        return self._masks

    @property
    def weights(self) -> Mapping[str, np.ndarray] | None:
        """``{path: array}``, read-only: the weights to inherit."""
        return self._weights

    @property
    def scores(self) -> Mapping[str, np.ndarray] | None:
        """``{key: array}``, read-only: what the masks were drawn by."""
        return self._scores

    @property
    def metadata(self) -> dict[str, Any]:
        """Where the ticket came from, as JSON values (a copy)."""
        return dict(self._metadata)

    @property
    def size(self) -> int:
        """How many channels the masks cover."""
        return sum(m.size for m in self._masks.values())

    @property
    def kept(self) -> int:
        """How many channels the masks keep."""
        return sum(int(np.count_nonzero(m)) for m in self._masks.values())

    @property
    def sparsity(self) -> float:
        """Fraction of the channels that are pruned."""
        return (self.size - self.kept) / self.size

    @property
    def density(self) -> float:
        """1 − sparsity."""
        return self.kept / self.size

    def densities(self) -> dict[str, float]:
        """``{key: density}``."""
        return {
            key: float(np.count_nonzero(m) / m.size)
            for key, m in self._masks.items()
        }

    def __repr__(self) -> str:
        return (
            f"<ChannelTicket: {self.kept:,} of {self.size:,} channels in "
            f"{len(self._masks)} layers, sparsity {self.sparsity:.4f}>"
        )

    def hamming_distance(self, other: ChannelTicket) -> float:
        """Fraction of the channels in which two tickets differ, in [0, 1].

        Raises:
            ValueError: If the tickets cover different channels.
        """
        if not isinstance(other, ChannelTicket):
            raise ValueError(
                f"`other` must be a channel ticket. Received: other={other!r}"
            )
        mine = {k: m.size for k, m in self._masks.items()}
        theirs = {k: m.size for k, m in other.masks.items()}
        if mine != theirs:
            raise ValueError(
                "The tickets cover different channels. Received: "
                f"{sorted(mine.items() ^ theirs.items())}"
            )
        differing = sum(
            int(np.count_nonzero(m != other.masks[k]))
            for k, m in self._masks.items()
        )
        return differing / self.size

    def match(self, model: keras.Model) -> dict[str, str]:
        """``{key in the ticket: key in the model}``.

        Raises:
            ValueError: If the ticket is of another architecture.
        """
        named = named_weights(model)
        if self._weights is not None:
            shapes = {k: w.shape for k, w in self._weights.items()}
            every = match_keys(shapes, named)
            keys = {k: every.get(k, k) for k in self._masks}
        else:
            keys = {k: k for k in self._masks}
        misfits = [
            f"{key} with {mask.size} channels"
            for key, mask in self._masks.items()
            if keys[key] not in named
            or mask.size not in tuple(named[keys[key]].shape)[-2:]
        ]
        if misfits:
            raise ValueError(
                "The ticket names channels that the model does not have. "
                f"Received: {misfits}"
            )
        return keys

    def apply(
        self, model: keras.Model, *, weights: Literal["start", "keep"] = "start"
    ) -> None:
        """Put the ticket into ``model``: pruned channels are held at zero.

        The model keeps its size; `tf_tickets.structured.shrink` makes it
        small. Scale and offset of a normalisation layer are masked, or kernel
        and bias where the key names a kernel, until `tf_tickets.release`.

        Args:
            model: A built model of the same architecture.
            weights: `"start"` assigns the ticket's weights first, `"keep"`
                masks those that the model has.

        Raises:
            ValueError: If the ticket does not fit, or has no weights to
                assign.
        """
        if weights not in ("start", "keep"):
            raise ValueError(
                "`weights` must be 'start' or 'keep'. "
                f"Received: weights={weights!r}"
            )
        masks = self.element_masks(model)
        if weights == "start":
            if self._weights is None:
                raise ValueError(
                    "This ticket has no weights: apply it with "
                    "`weights='keep'`. Received: weights='start'"
                )
            named = named_weights(model)
            for key, value in self.weights_for(model).items():
                named[key].assign(value)
        masking.enforce(model, masks)

    def weights_for(self, model: keras.Model) -> dict[str, np.ndarray]:
        """The ticket's weights by the keys of ``model``; empty without any.

        Raises:
            ValueError: If the ticket is of another architecture.
        """
        if self._weights is None:
            return {}
        shapes = {k: w.shape for k, w in self._weights.items()}
        keys = match_keys(shapes, named_weights(model))
        return {keys[k]: value for k, value in self._weights.items()}

    def element_masks(self, model: keras.Model) -> dict[str, np.ndarray]:
        """``{weight's key: mask of its shape}``: what `apply` enforces."""
        named = named_weights(model)
        masks: dict[str, np.ndarray] = {}
        for key, target in self.match(model).items():
            mask = self._masks[key]
            variable = named[target]
            shape = tuple(variable.shape)
            vector = len(shape) == 1
            axis = channel_axis(model, variable)
            layout = [1] * len(shape)
            layout[axis] = mask.size
            masks[target] = np.broadcast_to(mask.reshape(layout), shape)
            # The offset that goes with a scale or kernel is its neighbour.
            stem, _, tail = target.rpartition("/")
            _, mark, number = tail.partition("#")
            offset = f"{stem}/{'beta' if vector else 'bias'}{mark}{number}"
            if offset in named:
                masks[offset] = mask
        return masks

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ticket to one ``.npz`` file, whole or not at all."""
        arrays: dict[str, np.ndarray] = {}
        for part in ("masks", "weights", "scores"):
            for key, value in (getattr(self, part) or {}).items():
                arrays[f"{part}:{key}"] = value
        archive.write(
            path,
            "channel_ticket",
            {
                "parts": [
                    part
                    for part in ("masks", "weights", "scores")
                    if getattr(self, part) is not None
                ],
                "metadata": self._metadata,
            },
            arrays,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ChannelTicket:
        """Read a ticket that `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or holds something else.
        """
        manifest, arrays = archive.read(path, "channel_ticket")
        parts: dict[str, dict[str, np.ndarray]] = {
            part: {} for part in manifest["parts"]
        }
        for name, array in arrays.items():
            part, key = name.split(":", 1)
            parts[part][key] = array
        return cls(
            parts["masks"],
            parts.get("weights"),
            manifest["metadata"],
            scores=parts.get("scores"),
        )


def channel_axis(model: keras.Model, variable: keras.Variable) -> int:
    """The axis of a scale or kernel that counts its layer's channels."""
    rank = len(variable.shape)
    if rank == 1:
        return 0
    transposed = any(
        getattr(layer, "kernel", None) is variable
        and "Transpose" in type(layer).__name__
        for layer in layers_of(model)
    )
    return rank - 2 if transposed else rank - 1


def _as_vector(key: str, mask: Any) -> np.ndarray:
    array = np.asarray(mask)
    if array.ndim != 1 or not array.size or not np.isin(array, (0, 1)).all():
        raise ValueError(
            "A channel mask is a vector of booleans, or of zeros and ones. "
            f"Received: {key} with shape {array.shape}, dtype {array.dtype}"
        )
    array = array.astype(bool)
    array.flags.writeable = False
    return array


def _frozen_copies(
    arrays: Mapping[str, np.ndarray] | None,
) -> Mapping[str, np.ndarray] | None:
    if arrays is None:
        return None
    copies = {str(k): np.array(a) for k, a in arrays.items()}
    for array in copies.values():
        array.flags.writeable = False
    return MappingProxyType(copies)
