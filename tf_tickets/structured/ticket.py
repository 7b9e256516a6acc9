"""Channel masks and the weights to start from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import numpy as np

from tf_tickets.masks import Masks
from tf_tickets.network.attention import made_axis
from tf_tickets.network.kinds import kind_of
from tf_tickets.selection import named_weights, owners


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

    covers: ClassVar[str] = "channels"
    kind: ClassVar[str] = "channel_ticket"

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
        keys = {k: k for k in self._masks}
        if self._weights is not None:
            known = self._masks.keys() & self._weights.keys()
            keys |= self._aligned(named, known)
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

    def element_masks(self, model: keras.Model) -> dict[str, np.ndarray]:
        """``{weight's key: mask of its shape}``: what `apply` enforces.

        Scale and offset of a normalization layer, or kernel and bias where
        the key names a kernel. The model keeps its size;
        `tf_tickets.structured.shrink` makes it small.

        Raises:
            ValueError: If the ticket is of another architecture.
        """
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


def channel_axis(model: keras.Model, variable: keras.Variable) -> int:
    """The axis of a scale or kernel that counts its layer's channels."""
    rank = len(variable.shape)
    if rank == 1:
        return 0
    owner = owners(model)[id(variable)]
    if isinstance(owner, keras.layers.EinsumDense):
        return made_axis(owner, variable)
    return kind_of(owner).axes_of(variable.name)[1] % rank
