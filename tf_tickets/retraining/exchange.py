"""Find activations, and put others in their place."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_tickets.network.layer_copy import config_of, copy_of, rebuilt
from tf_tickets.retraining.annealing import TemporaryActivation
from tf_tickets.selection import layers_of

Activation = str | Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class ActivationReport:
    """What became of the activations.

    Attributes:
        activation: Name of the new activation.
        replaced: Where it stands now: names of layers, or `layer.attribute`
            for those inside another layer.
        skipped: ``{place: reason}`` of the old activations that stay.
        unsaved: Layers that get their old activation back when the model is
            loaded from a file, because their own code fixes it. Replace again
            after loading.
        keys: ``{key in the model: key in the new model}`` of the weights.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(2, "relu", name="dense")])
    >>> _, report = tt.retraining.replace_activations(
    ...     model, "mish", return_report=True)
    >>> report.replaced
    ('dense.activation',)
    """

    activation: str
    replaced: tuple[str, ...]
    skipped: Mapping[str, str]
    unsaved: tuple[str, ...] = ()
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.activation} in {len(self.replaced)} places"]
        lines += [f"  kept {k}: {why}" for k, why in self.skipped.items()]
        lines += [f"  not saved with the model: {k}" for k in self.unsaved]
        return "\n".join(lines)


class Old:
    """Recognizes the activations that are to go."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = [names] if isinstance(names, str) else list(names)
        self.functions: dict[str, list[Any]] = {}
        for name in self.names:
            function = get_activation(name)
            rooms = (keras.ops, tf.nn)
            others = [getattr(room, name, None) for room in rooms]
            self.functions[name] = [function, *filter(None, others)]

    def name_of(self, value: Any) -> str | None:
        """The name under which ``value``, a function, is to be replaced."""
        for name, functions in self.functions.items():
            if any(value is function for function in functions):
                return name
        return None

    def name_of_relu(self, relu: Any) -> tuple[str | None, str]:
        """The same of a `ReLU` layer or function call; and why not."""
        top = getattr(relu, "max_value", None)
        slope = getattr(relu, "negative_slope", 0.0)
        threshold = getattr(relu, "threshold", 0.0)
        if type(relu).__name__ == "Relu6":
            top = 6
        if slope or threshold or top not in (None, 6):
            return None, (
                f"a ReLU with max_value={top}, negative_slope={slope} and "
                f"threshold={threshold} is no plain one"
            )
        name = "relu" if top is None else "relu6"
        return (name if name in self.names else None), ""


class Exchange:
    """Exchanges activations and keeps the list."""

    def __init__(
        self, old: Old, new: Any, temporary: bool, built: bool
    ) -> None:
        self.old = old
        self.new = new
        self.temporary = temporary
        self.built = built
        self.replaced: list[str] = []
        self.skipped: dict[str, str] = {}
        self.unsaved: list[str] = []

    def layer(self, layer: Any) -> Any:
        """The layer that stands for ``layer``; `None` if it can stay."""
        if _is_relu(layer):
            name, why = self.old.name_of_relu(layer)
            if name is None:
                if why:
                    self.skipped[layer.name] = why
                return None
            self.replaced.append(layer.name)
            return keras.layers.Activation(
                self._function(name), **_identity(layer)
            )
        if not isinstance(layer, keras.layers.Layer):
            return None
        changed = {}
        try:
            for key, value in config_of(layer).items():
                if "activation" in key and value in self.old.names:
                    new = self._function(str(value))
                    name = keras.activations.serialize(new)
                    if isinstance(name, str):
                        changed[key] = name
            copy = copy_of(layer, **changed)
        except ValueError:
            if layer.variables or self._holds_old(layer):
                raise
            return None
        self.replaced += [f"{layer.name}.{key}" for key in changed]
        before = len(self.replaced)
        self.attributes(copy, done=changed)
        for inner in layers_of(copy):
            if inner is not copy:
                self.attributes(inner, f"{layer.name}/")
        if len(self.replaced) > before and not self._comes_back(copy):
            self.unsaved.append(layer.name)
        return copy if changed or len(self.replaced) > before else None

    def attributes(
        self,
        layer: keras.layers.Layer,
        path: str = "",
        done: Collection[str] = (),
    ) -> None:
        """Exchange what ``layer`` holds in its attributes."""
        for attribute, value in list(vars(layer).items()):
            if attribute in done:
                continue
            place = f"{path}{layer.name}.{attribute}"
            if _is_relu(value):
                self._sublayer(layer, attribute, value, place)
            elif isinstance(value, list | tuple):
                for item in value:
                    # Keras' own lists hold every layer a second time.
                    if _is_relu(item) and not attribute.startswith("_"):
                        self.skipped[place] = "a ReLU layer inside a list"
            elif (name := self._name_of(attribute, value)) is not None:
                setattr(layer, attribute, self._function(name))
                self.replaced.append(place)

    def report(
        self,
        model: keras.Model,
        new: Any,
        keys: Mapping[str, str] | None = None,
    ) -> ActivationReport:
        if not self.replaced:
            raise ValueError(
                f"No activation to exchange: looked for {self.old.names}"
                + (f"; kept {self.skipped}" if self.skipped else "")
                + f". Received: model={model.name!r}, whose layers hold "
                f"{_activations_of(model)}"
            )
        if self.skipped:
            warnings.warn(
                f"Activations that stay as they are: {self.skipped}",
                stacklevel=3,
            )
        return ActivationReport(
            getattr(new, "__name__", type(new).__name__),
            tuple(self.replaced),
            self.skipped,
            tuple(self.unsaved),
            keys or {},
        )

    def _name_of(self, attribute: str, value: Any) -> str | None:
        if isinstance(value, str):
            return (
                value
                if "activation" in attribute and value in self.old.names
                else None
            )
        return self.old.name_of(value) if callable(value) else None

    def _sublayer(
        self, parent: Any, attribute: str, relu: Any, place: str
    ) -> None:
        name, why = self.old.name_of_relu(relu)
        if name is None:
            if why:
                self.skipped[place] = why
            return
        if self.built or parent.built:
            # Keras locks the layers that a built layer holds.
            self.skipped[place] = (
                "a ReLU layer inside a built layer cannot be exchanged; an "
                "Activation layer could"
            )
            return
        delattr(parent, attribute)
        smooth = keras.layers.Activation(
            self._function(name), **_identity(relu)
        )
        setattr(parent, attribute, smooth)
        self.replaced.append(place)

    def _function(self, name: str) -> Any:
        if self.temporary:
            return TemporaryActivation(self.new, name)
        return self.new

    def _comes_back(self, copy: keras.layers.Layer) -> bool:
        """Whether the configuration of a layer says its new activation."""
        if self.old.name_of(self.new) and not self.temporary:
            return True
        return not self._holds_old(rebuilt(copy, config_of(copy)))

    def _holds_old(self, layer: keras.layers.Layer) -> bool:
        return any(
            _is_relu(value) or self._name_of(attribute, value) is not None
            for inner in layers_of(layer)
            for attribute, value in vars(inner).items()
        )


def get_activation(activation: Activation) -> Any:
    if isinstance(activation, keras.layers.Layer):
        raise ValueError(
            "An activation with weights would change what a ticket covers: "
            "give a name or a function. "
            f"Received: activation={activation!r}"
        )
    if activation is None:
        raise ValueError("`activation` must be given. Received: None")
    try:
        function = keras.activations.get(activation)
        if getattr(function, "__name__", "") != "<lambda>":
            keras.activations.serialize(function)
            return function
    except (ValueError, TypeError):
        pass
    raise ValueError(
        "`activation` must be the name of a Keras activation, or a function "
        "that Keras can save (keras.saving.register_keras_serializable). "
        f"Received: activation={activation!r}"
    )


def _is_relu(value: Any) -> bool:
    if isinstance(value, keras.layers.Layer):
        return isinstance(value, keras.layers.ReLU)
    # The function's node in a functional model has no public class.
    return isinstance(value, keras.Operation) and type(value).__name__ in (
        "ReLU",
        "Relu",
        "Relu6",
    )


def _identity(operation: Any) -> dict[str, Any]:
    if not isinstance(operation, keras.layers.Layer):
        return {"name": operation.name}
    return {"name": operation.name, "dtype": operation.dtype_policy}


def _activations_of(model: keras.Model) -> list[str]:
    found = {
        getattr(value, "__name__", type(value).__name__)
        for layer in layers_of(model)
        for attribute, value in vars(layer).items()
        if "activation" in attribute and callable(value)
    }
    return sorted(found - {"linear"})
