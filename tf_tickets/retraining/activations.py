"""Smoother activations: exchange a network's ReLUs, for good or for a time."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, overload

import keras
import tensorflow as tf

from tf_tickets import checks
from tf_tickets.network.copier import Copier
from tf_tickets.network.graph import require_graph
from tf_tickets.network.layer_copy import config_of, copy_of, rebuilt
from tf_tickets.retraining.annealing import Annealing
from tf_tickets.selection import layers_of
from tf_tickets.tracing import retrace

Activation = str | Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class ActivationReport:
    """Which activations were exchanged and which were not.

    Attributes:
        activation: Name of the new activation.
        replaced: Where it stands now: names of layers, or `layer.attribute`
            for those inside another layer.
        skipped: ``{place: reason}`` of the old activations that stay.
        unsaved: Layers that get their old activation back when the model is
            loaded from a file, because their own code fixes it. Replace again
            after loading.
        keys: ``{key in the model: key in the new model}`` of the weights;
            empty if the model was changed in place.

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


@overload
def replace_activations(
    model: keras.Model,
    activation: Activation = ...,
    *,
    replaces: Sequence[str] = ...,
    temporary: bool = ...,
    in_place: bool = ...,
    return_report: Literal[False] = ...,
) -> keras.Model: ...


@overload
def replace_activations(
    model: keras.Model,
    activation: Activation = ...,
    *,
    replaces: Sequence[str] = ...,
    temporary: bool = ...,
    in_place: bool = ...,
    return_report: Literal[True],
) -> tuple[keras.Model, ActivationReport]: ...


def replace_activations(
    model: keras.Model,
    activation: Activation = "swish",
    *,
    replaces: Sequence[str] = ("relu", "relu6"),
    temporary: bool = False,
    in_place: bool = False,
    return_report: bool = False,
) -> keras.Model | tuple[keras.Model, ActivationReport]:
    """Exchange every ReLU of a model for a smoother activation.

    Found are `ReLU` and `Activation` layers, ``activation=`` arguments,
    functions of Keras and TensorFlow held as attributes of a layer, ReLU
    functions called in a functional model, all of them in nested models and
    inside other layers too. The new model has the names, weights, masks and
    weight keys of the old one: a ticket of the one applies to the other. A
    compiled model's copy is compiled alike, with a fresh optimizer.

    Args:
        model: A functional model or a sequential one with a known input
            shape, nested or not. It is not changed, unless ``in_place``.
        activation: Name of a Keras activation, or a function without weights
            that Keras can save. Default `"swish"`.
        replaces: Names of the activations to exchange. Default
            ``("relu", "relu6")``.
        temporary: Boolean: blend the new activation with the old one, so
            that `AnnealActivations` can lead back to the old one in
            training. Default `False`.
        in_place: Boolean: set the attributes of the model's own layers and
            return the same model. Works with subclassed models; a `ReLU`
            layer inside a built layer cannot be exchanged so, nor a function
            that ``call`` names in its code. Default `False`.
        return_report: Boolean: also return what was exchanged and what was
            not. Default `False`.

    Returns:
        The model; with ``return_report`` a pair of it and an
        `ActivationReport`.

    Raises:
        ValueError: If there is nothing to exchange, the activation is
            unknown, or the calls inside the model are not known.

    Reference:
        Jaiswal et al., "Spending Your Winning Lottery Better After Drawing
        It", 2021, section 3.1.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([
    ...     keras.Input((8,)),
    ...     keras.layers.Dense(16, activation="relu"),
    ...     keras.layers.Dense(4),
    ... ])
    >>> ticket = tt.prune(model, sparsity=0.9)
    >>> smooth = tt.retraining.replace_activations(model, "mish")
    >>> smooth.layers[0].activation.__name__
    'mish'
    >>> ticket.apply(smooth)
    """
    exchange = Exchange(activation, replaces=replaces, temporary=temporary)
    keys: Mapping[str, str] = {}
    if in_place:
        with model.distribute_strategy.scope():
            for layer in layers_of(model):
                exchange.inside(layer)
        changed = model
    else:
        require_graph(
            model,
            "Exchanging activations in a copy",
            "Use `in_place=True`, which sets the attributes of its layers.",
        )
        copier = Copier(replace=exchange.replace)
        changed = copier.copy(model)
        keys = copier.keys
    report = exchange.report(model, keys)
    if in_place:
        retrace(model)
    return (changed, report) if return_report else changed


class Exchange:
    """Substitutes layers that have the new activation and records where.

    Options and errors are those of `replace_activations`. A `Copier` asks
    `replace` about each layer, so that one copy of a model can combine this
    with other changes.
    """

    def __init__(
        self,
        activation: Activation = "swish",
        *,
        replaces: Sequence[str] = ("relu", "relu6"),
        temporary: bool = False,
    ) -> None:
        self.new = _get_activation(activation)
        self.old = _Old(replaces)
        self.temporary = temporary
        self.replaced: list[str] = []
        self.skipped: dict[str, str] = {}
        self.unsaved: list[str] = []

    def replace(self, layer: Any) -> Any:
        """A layer, not built, for ``layer``; `None` if that can stay."""
        if _is_relu(layer):
            name, why = self.old.name_of_relu(layer)
            if name is None:
                if why:
                    self.skipped[layer.name] = why
                return None
            self.replaced.append(layer.name)
            return self._layer(name, layer)
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
        self.inside(copy, done=changed)
        for inner in layers_of(copy):
            if inner is not copy:
                self.inside(inner, f"{layer.name}/")
        if len(self.replaced) > before and not self._comes_back(copy):
            self.unsaved.append(layer.name)
        return copy if changed or len(self.replaced) > before else None

    def inside(
        self,
        layer: keras.layers.Layer,
        path: str = "",
        done: Collection[str] = (),
    ) -> None:
        """Exchange the activations that ``layer`` holds as attributes.

        Args:
            layer: The layer to change; layers inside it are not entered.
            path: What the report writes before its name. Default empty.
            done: Attributes to leave alone. Default none.
        """
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
        self, model: keras.Model, keys: Mapping[str, str]
    ) -> ActivationReport:
        """What was exchanged so far.

        Args:
            model: The model that was given, for the error message.
            keys: `Copier.keys` of the copy.

        Raises:
            ValueError: If nothing was.
        """
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
            getattr(self.new, "__name__", type(self.new).__name__),
            tuple(self.replaced),
            self.skipped,
            tuple(self.unsaved),
            keys,
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
        if parent.built:
            # Keras locks the layers that a built layer holds.
            self.skipped[place] = (
                "a ReLU layer inside a built layer cannot be exchanged; an "
                "Activation layer could"
            )
            return
        delattr(parent, attribute)
        setattr(parent, attribute, self._layer(name, relu))
        self.replaced.append(place)

    def _layer(self, name: str, relu: Any) -> keras.layers.Layer:
        """The layer for ``relu``, a ReLU layer or a function's node."""
        options = {"name": relu.name}
        if isinstance(relu, keras.layers.Layer):
            options["dtype"] = relu.dtype_policy
        return keras.layers.Activation(self._function(name), **options)

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


class _Old:
    """Recognizes the activations that are to go."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = [names] if isinstance(names, str) else list(names)
        self.functions: dict[str, list[Any]] = {}
        for name in self.names:
            function = _get_activation(name)
            others = [getattr(m, name, None) for m in (keras.ops, tf.nn)]
            self.functions[name] = [function, *filter(None, others)]

    def name_of(self, value: Any) -> str | None:
        """The name under which ``value``, a function, is to be replaced."""
        for name, functions in self.functions.items():
            if any(value is function for function in functions):
                return name
        return None

    def name_of_relu(self, relu: Any) -> tuple[str | None, str]:
        """The same for a ReLU layer or a function's node, and why not."""
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


def _get_activation(activation: Activation) -> Any:
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


def _activations_of(model: keras.Model) -> list[str]:
    found = {
        getattr(value, "__name__", type(value).__name__)
        for layer in layers_of(model)
        for attribute, value in vars(layer).items()
        if "activation" in attribute and callable(value)
    }
    return sorted(found - {"linear"})


@keras.saving.register_keras_serializable(package="tf_tickets")
class TemporaryActivation:
    r"""A blend of two activations whose shares can change in training.

    $f(x) = s \cdot g(x) + (1 - s) \cdot h(x)$ with the temporary activation
    $g$ and the original one $h$. At $s = 0$ values and gradients are exactly
    those of $h$.

    Args:
        smooth: Name or function: the temporary activation $g$.
        original: Name or function: the activation $h$ to come back to.
            Default `"relu"`.
        share: Number in [0, 1]: $s$. Default 1.

    Raises:
        ValueError: If ``share`` is out of its range.

    Example:

    >>> from tf_tickets.retraining import TemporaryActivation
    >>> f = TemporaryActivation("swish", "relu", share=0.0)
    >>> [float(v) for v in f(np.array([-1.0, 2.0], "float32"))]
    [0.0, 2.0]
    """

    def __init__(
        self,
        smooth: Activation,
        original: Activation = "relu",
        share: float = 1.0,
    ) -> None:
        self.smooth = keras.activations.get(smooth)
        self.original = keras.activations.get(original)
        # A variable: changing it needs no new trace of the training step.
        self.share = tf.Variable(
            checks.number("share", share, "[0, 1]"),
            trainable=False,
            dtype=tf.float32,
            name="share",
        )

    def __call__(self, x: Any) -> Any:
        x = keras.ops.convert_to_tensor(x)
        share = keras.ops.cast(self.share, x.dtype)
        return share * self.smooth(x) + (1 - share) * self.original(x)

    def get_config(self) -> dict[str, Any]:
        return {
            "smooth": keras.activations.serialize(self.smooth),
            "original": keras.activations.serialize(self.original),
            "share": float(self.share.numpy()),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TemporaryActivation:
        return cls(**config)


class AnnealActivations(Annealing):
    """Lead temporary activations back to the original ones.

    Their share falls linearly from 1 at the beginning of ``start_epoch`` to
    0 at the beginning of ``end_epoch``. When training ends after that, the
    original activations are put back: the model computes what it would
    compute had its activations never been exchanged, at the same cost.

    Args:
        end_epoch: Whole number above ``start_epoch``: the first epoch that
            trains with the original activations.
        start_epoch: Whole number of at least 0: the last epoch that trains
            with the temporary activations alone. Default 0.

    Raises:
        ValueError: If the epochs are out of their ranges, or, when training
            begins, if the model has no temporary activation or the training
            ends before ``end_epoch``.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(4, activation="relu")])
    >>> model.compile("sgd", "mse")
    >>> smooth = tt.retraining.replace_activations(model, temporary=True)
    >>> _ = smooth.fit(
    ...     np.ones((4, 4)), np.ones((4, 4)), epochs=3, verbose=0,
    ...     callbacks=[tt.retraining.AnnealActivations(end_epoch=2)])
    >>> smooth.layers[0].activation.__name__
    'relu'
    """

    needs = (
        "temporary activation: make one with "
        "replace_activations(model, temporary=True)"
    )

    def shares(self) -> list[Any]:
        return [one.share for _, _, one in _temporary(self.model)]

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self.share > 0:
            return  # stopped early: the blend is what was trained
        for layer, attribute, activation in _temporary(self.model):
            setattr(layer, attribute, activation.original)
        retrace(self.model)


def _temporary(
    model: keras.Model,
) -> list[tuple[Any, str, TemporaryActivation]]:
    return [
        (layer, attribute, value)
        for layer in layers_of(model)
        for attribute, value in vars(layer).items()
        if isinstance(value, TemporaryActivation)
    ]
