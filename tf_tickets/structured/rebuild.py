"""Make the smaller model: the same layers with fewer channels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import keras
import numpy as np

from tf_tickets import masking
from tf_tickets.network.channels import Channels
from tf_tickets.network.graph import functional_view, is_graph
from tf_tickets.selection import named_weights, unique_keys, view_of

Values = Mapping[int, np.ndarray]


class Rebuilder:
    """Copies a model without the channels that ``removed`` marks.

    Args:
        channels: The channels of the model.
        removed: One boolean per atom.
        values: ``{id(variable): value}`` to inherit in place of the
            variable's own, of the full shape.
        biases: ``{id(layer): bias of full size}`` for layers that have none
            and get one.
    """

    def __init__(
        self,
        channels: Channels,
        removed: np.ndarray,
        values: Values | None = None,
        biases: Values | None = None,
    ) -> None:
        self.channels = channels
        self.removed = removed
        self.values = dict(values or {})
        self.biases = dict(biases or {})
        self._copies: dict[int, keras.layers.Layer] = {}
        self._kept_alive: list[keras.layers.Layer] = []
        self._pairs: list[tuple[keras.Variable, keras.Variable]] = []

    def build(self, model: keras.Model) -> keras.Model:
        """The smaller model, with inherited weights and masks."""
        small = self._copy_model(model)
        for old, new in zip(
            self._kept_alive, self._copies.values(), strict=True
        ):
            if not is_graph(old):
                self._inherit(old, new)
        masks = {
            id(variable): mask
            for key, mask in masking.attached_masks(model).items()
            for variable in (named_weights(model)[key],)
        }
        if masks:
            keys = {id(v): k for k, v in named_weights(small).items()}
            masking.enforce(
                small,
                {
                    keys[id(new)]: self.sliced(old, masks[id(old)])
                    for old, new in self._pairs
                    if id(old) in masks
                },
            )
        return small

    def sliced(self, variable: keras.Variable, value: np.ndarray) -> np.ndarray:
        """What is left of an array of the variable's shape."""
        for axis, kept in self._kept_of(variable).items():
            if not kept.all():
                value = np.compress(kept, value, axis=axis)
        return value

    def inherit_optimizer(self, model: keras.Model, small: keras.Model) -> None:
        """Copy the optimizer's state, its slots without the channels gone.

        Raises:
            ValueError: If the two optimizers hold different variables.
        """
        for optimizer in (model.optimizer, small.optimizer):
            if not optimizer.built:
                owner = model if optimizer is model.optimizer else small
                optimizer.build(owner.trainable_variables)
        old = unique_keys(model.optimizer.variables)
        new = unique_keys(small.optimizer.variables)
        if len(old) != len(new):
            raise ValueError(
                "The optimizer of the smaller model holds other variables: "
                "give layers that get a bias a fresh optimizer. Received: "
                f"{len(old)} variables, {len(new)} in the smaller model"
            )
        # Slots carry their variable's path as a prefix of their name.
        prefixes = sorted(
            ((v.path.replace("/", "_"), v) for v in model.trainable_variables),
            key=lambda item: -len(item[0]),
        )
        seen: dict[str, int] = {}
        for (path, source), target in zip(
            old.items(), new.values(), strict=True
        ):
            value = np.array(view_of(source))
            # Weights of one path, in two nested models, have slots of one
            # name, in the same order.
            index = seen.get(source.path, 0)
            seen[source.path] = index + 1
            if value.shape != tuple(target.shape):
                path_of = [
                    v.path
                    for prefix, v in prefixes
                    if source.name.startswith(prefix + "_")
                    and tuple(v.shape) == value.shape
                ]
                same = [
                    v
                    for v in model.trainable_variables
                    if path_of and v.path == path_of[0]
                ]
                if index >= len(same):
                    raise ValueError(
                        "The optimizer's state cannot be cut to the smaller "
                        "model; let it have a fresh optimizer. Received: "
                        f"{path} of shape {value.shape}, "
                        f"{tuple(target.shape)} in the smaller model"
                    )
                value = self.sliced(same[index], value)
            target.assign(value)

    def _copy_model(self, model: keras.Model) -> keras.Model:
        inputs = [
            keras.Input(
                batch_shape=self._input_shape(model, i, tensor.shape),
                dtype=tensor.dtype,
                sparse=tensor.sparse,
                name=tensor.name,
            )
            for i, tensor in enumerate(model.inputs)
        ]
        if isinstance(model, keras.Sequential):
            copy = keras.Sequential(
                [*inputs, *[self._copy(layer) for layer in model.layers]],
                name=model.name,
            )
        else:
            view = functional_view(model)
            copy = keras.models.clone_model(
                view,
                input_tensors=keras.tree.pack_sequence_as(view.input, inputs),
                clone_function=self._copy,
            )
            copy = _as_class_of(model, copy)
        return copy

    def _copy(self, layer: keras.Operation) -> keras.Operation:
        if not isinstance(layer, keras.layers.Layer):
            return layer  # a function without state
        if id(layer) in self._copies:
            return self._copies[id(layer)]
        if is_graph(layer):
            copy = self._copy_model(layer)
        else:
            copy = self._smaller(layer)
        self._copies[id(layer)] = copy
        self._kept_alive.append(layer)
        return copy

    def _smaller(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        try:
            config = layer.get_config()
            entry = self.channels.layers.get(id(layer))
            for key, (count, lists) in (entry.config if entry else {}).items():
                if any(self.removed[atoms].any() for atoms in lists):
                    config[key] = count(
                        *(int((~self.removed[a]).sum()) for a in lists)
                    )
            if id(layer) in self.biases:
                config["use_bias"] = True
            if "activation" in config:
                # The function itself: not every one survives its config.
                config["activation"] = layer.activation
            return type(layer).from_config(config)
        except (NotImplementedError, TypeError, ValueError) as error:
            if not layer.variables:
                return layer  # nothing to tell the two models apart
            raise ValueError(
                "A layer must be copied by its `get_config` to build the "
                f"smaller model, and this one cannot: {error} Received: "
                f"{layer.name} ({type(layer).__name__})"
            ) from error

    def _inherit(
        self, old: keras.layers.Layer, new: keras.layers.Layer
    ) -> None:
        added = id(old) in self.biases
        targets = [v for v in new.variables if not (added and v.name == "bias")]
        for source, target in zip(old.variables, targets, strict=True):
            value = self.values.get(id(source))
            if value is None:
                value = view_of(source)
            part = self.sliced(source, value)
            # Two variables must not share memory.
            target.assign(part.copy() if part is value else part)
            if target.trainable != source.trainable:
                target.trainable = source.trainable
            self._pairs.append((source, target))
        if added:
            made = self.channels.layers[id(old)].made
            bias = self.biases[id(old)]
            new.bias.assign(bias if made is None else bias[~self.removed[made]])
        if isinstance(new, keras.layers.Normalization):
            new.finalize_state()

    def _kept_of(self, variable: keras.Variable) -> dict[int, np.ndarray]:
        if not hasattr(self, "_slices"):
            self._slices = {
                id(v): {
                    axis: ~self.removed[atoms] for axis, atoms in axes.items()
                }
                for entry in self.channels.layers.values()
                for v in entry.layer.weights
                for axes in (entry.slices.get(v.name, {}),)
            }
        return self._slices.get(id(variable), {})

    def _input_shape(
        self, model: keras.Model, index: int, shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
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
        return tuple(shape)


def compile_like(model: keras.Model, small: keras.Model) -> bool:
    """Compile ``small`` with the settings of ``model`` and a new optimizer.

    Returns:
        Whether it worked; a loss or metric that cannot be serialized cannot
        be copied, and the smaller model stays uncompiled with a warning.
    """
    try:
        small.compile_from_config(model.get_compile_config())
    except Exception as error:  # whatever user code raises
        warnings.warn(
            "The smaller model is not compiled: the settings of the model "
            f"could not be copied ({type(error).__name__}: {error}).",
            stacklevel=4,
        )
    return bool(small.compiled)


def _as_class_of(model: keras.Model, copy: keras.Model) -> keras.Model:
    # A subclass with a training step of its own keeps it, where its
    # constructor takes inputs and outputs.
    if type(model) is type(copy):
        return copy
    try:
        return type(model)(copy.input, copy.output, name=model.name)
    except TypeError:
        return copy
