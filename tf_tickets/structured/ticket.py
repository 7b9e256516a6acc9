"""Channel masks and the weights to start from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import numpy as np

from tf_tickets.masks import Masks
from tf_tickets.network.attention import made_axis
from tf_tickets.network.channels import Channels, follow
from tf_tickets.network.channels import owners as owners_of_channels
from tf_tickets.network.constants import entering, propagate
from tf_tickets.network.graph import is_graph
from tf_tickets.network.inside import look_inside
from tf_tickets.network.kinds import kind_of
from tf_tickets.selection import named_weights, owners, view_of


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

        Scale and offset of a normalization layer; or kernel and bias where
        the key names a kernel, and scale and offset of the normalizations
        that only such channels reach, where the calls inside the model are
        known. The model keeps its size; `tf_tickets.structured.shrink` makes
        it small.

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
        if any(len(mask.shape) > 1 for mask in masks.values()):
            if is_graph(model):
                _add_behind(model, named, masks)
        return masks


def _add_behind(
    model: keras.Model,
    named: Mapping[str, keras.Variable],
    masks: dict[str, np.ndarray],
) -> None:
    """Also mask the normalizations that pruned filters reach, and only these.

    A normalization makes something of zeros: it moves them by its mean.
    """
    channels = follow(look_inside(model))
    kernels = [k for k in masks if len(masks[k].shape) > 1]
    known_as = owners_of_channels(channels, model)
    pruned: set[int] = set()
    for key in kernels:
        if key in known_as:
            axis = channel_axis(model, named[key])
            kept = np.moveaxis(masks[key], axis, 0).reshape(
                masks[key].shape[axis], -1
            )[:, 0]
            pruned.update(channels.roots(known_as[key][~kept]).tolist())
    keys = {id(variable): key for key, variable in named.items()}
    norms = _normalizations(channels)
    changed = bool(pruned)
    while changed:
        changed = False
        channels.values = {
            id(named[key]): np.where(mask, view_of(named[key]), 0)
            for key, mask in masks.items()
        }
        constants = propagate(channels)
        for calls, atoms, variables in norms:
            gone = np.isin(channels.roots(atoms), list(pruned))
            for call in calls:
                gone = gone & ~np.isnan(
                    entering(channels, call, constants, call.operation.axis)
                )
            for variable in variables:
                key = keys[id(variable)]
                before = masks.get(key, np.ones(gone.shape, bool))
                if (gone & before).any():
                    masks[key] = before & ~gone
                    changed = True


def _normalizations(
    channels: Channels,
) -> list[tuple[list[Any], np.ndarray, list[keras.Variable]]]:
    """``(calls, channels, scale and offset)`` of each that has some."""
    found = []
    for entry in channels.layers.values():
        variables = [
            v
            for v in getattr(entry.layer, "weights", ())
            if v.name in ("gamma", "beta")
            and len(v.shape) == 1
            and 0 in entry.slices.get(v.name, {})
        ]
        if variables:
            calls = [
                call
                for call in channels.graph.calls
                if call.operation is entry.layer
            ]
            atoms = entry.slices[variables[0].name][0]
            found.append((calls, atoms, variables))
    return found


def channel_axis(model: keras.Model, variable: keras.Variable) -> int:
    """The axis of a scale or kernel that counts its layer's channels."""
    rank = len(variable.shape)
    if rank == 1:
        return 0
    owner = owners(model)[id(variable)]
    if isinstance(owner, keras.layers.EinsumDense):
        return made_axis(owner, variable)
    return kind_of(owner).axes_of(variable.name)[1] % rank
