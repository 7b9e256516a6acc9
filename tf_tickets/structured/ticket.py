"""Channel masks and the weights to start from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import keras
import numpy as np

from tf_tickets import archive, masking
from tf_tickets.masks import Masks, check_weights_option, shapes_of
from tf_tickets.network.kinds import kind_of
from tf_tickets.selection import match_keys, named_weights, owners


class ChannelTicket(Masks):
    """One mask per normalization layer or kernel: which channels it keeps.

    Args:
        masks: ``{key: 1-D boolean array}``, `True` = kept. A key is the path
            of a normalization layer's scale, or of a kernel, whose output
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
        super().__init__(masks, weights, metadata, scores=scores)
        for key, mask in self._masks.items():
            if mask.ndim != 1 or not mask.size:
                raise ValueError(
                    "A channel mask is a vector of booleans, or of zeros and "
                    f"ones. Received: {key} with shape {mask.shape}"
                )

    def match(self, model: keras.Model) -> dict[str, str]:
        """``{key in the ticket: key in the model}``.

        Raises:
            ValueError: If the ticket is of another architecture.
        """
        named = named_weights(model)
        if self._weights is not None:
            shapes = shapes_of(self._weights)
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
        small. Scale and offset of a normalization layer are masked, or kernel
        and bias where the key names a kernel, until `tf_tickets.release`.

        Args:
            model: A built model of the same architecture.
            weights: `"start"` assigns the ticket's weights first, `"keep"`
                masks those that the model has.

        Raises:
            ValueError: If the ticket does not fit, or has no weights to
                assign.
        """
        check_weights_option(weights, self._weights)
        masks = self.element_masks(model)
        if weights == "start":
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
        shapes = shapes_of(self._weights)
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
    owner = owners(model)[id(variable)]
    return kind_of(owner).axes_of(variable.name)[1] % rank
