"""Make the smaller model: the same layers with fewer channels."""

from __future__ import annotations

from collections.abc import Mapping

import keras
import numpy as np

from tf_tickets import masking
from tf_tickets.network.channels import Channels
from tf_tickets.network.copier import Copier, Resizing
from tf_tickets.network.graph import Shape
from tf_tickets.network.layer_copy import copy_of
from tf_tickets.selection import named_weights
from tf_tickets.structured.branches import Empty

Values = Mapping[int, np.ndarray]


def without(
    channels: Channels,
    removed: np.ndarray,
    model: keras.Model,
    *,
    values: Values | None = None,
    biases: Values | None = None,
    masks: Mapping[str, np.ndarray] | None = None,
    empty: Empty | None = None,
    inherit_optimizer: bool = False,
    keep_class: bool = True,
) -> keras.Model:
    """A copy of ``model`` without some of its channels.

    Args:
        channels: The channels of the model.
        removed: One boolean per atom.
        model: The model.
        values: ``{id(variable): value}`` to inherit in place of the
            variable's own, of the full shape.
        biases: ``{id(layer): bias of full size}`` in place of the layer's
            own, or of none.
        masks: ``{weight's key: mask of its full size}`` to hold in the copy,
            beside those of the model.
        empty: Branches that the copy does without.
        inherit_optimizer: Copy the optimizer's state too, if the copy could
            be compiled.
        keep_class: As in `tf_tickets.network.copier.Copier`.

    Raises:
        ValueError: If a layer, or the model's class, cannot be copied.
    """
    cut = _Cut(channels, removed, biases or {})
    copier = Copier(
        replace=cut.smaller,
        connect=empty.connect if empty and empty.skips else None,
        values=values,
        resizing=Resizing(
            cut.resized(), cut.part, cut.input_shape, cut.biases()
        ),
        keep_class=keep_class,
    )
    small = copier.copy(model)
    _hold(model, small, masks or {}, copier.keys, cut)
    if inherit_optimizer and small.compiled:
        copier.inherit_optimizer(model, small)
    return small


def _hold(
    model: keras.Model,
    small: keras.Model,
    masks: Mapping[str, np.ndarray],
    keys: Mapping[str, str],
    cut: _Cut,
) -> None:
    """Put masks in force where they prune something of the copy."""
    named = named_weights(model)
    before = masking.attached_masks(small) if masks else {}
    held = {}
    for key, mask in masks.items():
        if key in keys:
            left = cut.part(named[key], np.asarray(mask))
            if not left.all():
                held[keys[key]] = left & before.get(keys[key], True)
    if held:
        masking.enforce(small, held)


class _Cut:
    """What the channels that go take with them."""

    def __init__(
        self, channels: Channels, removed: np.ndarray, biases: Values
    ) -> None:
        self.channels = channels
        self.removed = removed
        self._biases = biases
        self._kept = {
            id(variable): {
                axis: ~removed[atoms]
                for axis, atoms in entry.slices.get(variable.name, {}).items()
            }
            for entry in channels.layers.values()
            for variable in entry.layer.weights
        }

    def resized(self) -> set[int]:
        """Layers at which channels go, in or out."""
        shrunk = {
            tensor
            for tensor, flow in self.channels.flows.items()
            if flow.atoms is not None and self.removed[flow.atoms].any()
        }
        return {
            id(call.operation)
            for call in self.channels.graph.calls
            if shrunk & {*call.inputs, *call.outputs}
        }

    def part(self, variable: keras.Variable, value: np.ndarray) -> np.ndarray:
        """What is left of an array of the variable's shape."""
        for axis, kept in self._kept.get(id(variable), {}).items():
            if not kept.all():
                value = np.compress(kept, value, axis=axis)
        return value

    def biases(self) -> Values:
        """The new biases in the size that their layers will have."""
        return {
            key: bias[~self.removed[made]]
            for key, bias in self._biases.items()
            if (made := self.channels.layers[key].made) is not None
        }

    def smaller(self, layer: keras.Operation) -> keras.Operation | None:
        """The layer with fewer channels; `None` if it has as many."""
        entry = self.channels.layers.get(id(layer))
        changes = {
            key: count(*(int((~self.removed[a]).sum()) for a in lists))
            for key, (count, lists) in (entry.config if entry else {}).items()
            if any(self.removed[atoms].any() for atoms in lists)
        }
        if id(layer) in self._biases and not getattr(layer, "use_bias", True):
            changes["use_bias"] = True
        return copy_of(layer, **changes) if changes else None

    def input_shape(
        self, model: keras.Model, index: int, shape: Shape
    ) -> Shape:
        """The shape of a nested model's input."""
        for entry in self.channels.graph.entries:
            if entry.model is model:
                flow = self.channels.flows[entry.inputs[index]]
                if flow.atoms is not None and flow.axis is not None:
                    sizes = list(shape)
                    if sizes[flow.axis] is not None:
                        sizes[flow.axis] = int(
                            (~self.removed[flow.atoms]).sum()
                        )
                    return tuple(sizes)
        return shape
