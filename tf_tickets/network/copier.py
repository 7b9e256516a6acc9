"""Copy a model with some layers exchanged, resized, or wired anew."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import keras
import numpy as np

from tf_tickets import masking
from tf_tickets.network.graph import (
    Shape,
    as_called,
    functional_view,
    is_graph,
)
from tf_tickets.network.layer_copy import (
    carry_functions,
    copy_of,
    derive_state,
    scope_of,
    twins,
)
from tf_tickets.selection import layers_of, unique_keys, view_of

Replace = Callable[[keras.Operation], keras.Operation | None]
# (the layer of the model, its copy, args, kwargs) -> output
Connect = Callable[[keras.Operation, Any, tuple[Any, ...], Any], Any]

# What a class may change about training. One that changes `call` has no graph.
_STEPS = (
    "train_step",
    "test_step",
    "predict_step",
    "compute_loss",
    "compute_metrics",
    "make_train_function",
    "make_test_function",
    "make_predict_function",
)


@dataclasses.dataclass(frozen=True)
class Resizing:
    """What has another size in a copy.

    Attributes:
        layers: Ids of the layers whose tensors have other shapes in the copy:
            each is built there by its first call.
        part: ``(variable of the model, array of its shape)`` to what of the
            array is left in the copy.
        input_shape: ``(model, index of an input, its shape)`` to its shape in
            the copy.
        biases: ``{id(layer): bias in the copy}`` of the layers whose bias has
            nothing to do with that of the model, if there is one.
    """

    layers: Collection[int] = ()
    part: Callable[[keras.Variable, np.ndarray], np.ndarray] = (
        lambda variable, value: value
    )
    input_shape: Callable[[keras.Model, int, Shape], Shape] = (
        lambda model, index, shape: shape
    )
    biases: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)


class Copier:
    """Copies a model and everything that makes it what it is.

    The copy has the model's weights under the same paths (but for the numbers
    of weights that have no name), its masks, flags of what is trainable,
    adapted statistics, vocabularies and activations. It is compiled alike,
    with a fresh optimizer, and made in the scope of the model's strategy. It
    shares no weight with the model. Layers are told apart by identity and
    class, never by name.

    A class of the user's is kept where its constructor takes ``inputs`` and
    ``outputs`` (a sequential one's: ``layers``) and each further argument is
    an attribute or in ``get_config``. Elsewhere, as with every task of
    KerasHub, the copy is a plain functional or sequential model, with a
    warning; but a class with a training, test or prediction step of its own
    is refused, because the copy would train differently. The class of a
    nested model decides nothing and may be lost.

    Args:
        replace: The layer that stands in the copy for a layer of the model,
            not built; `None` for a copy of it. Models inside the model are
            entered and not asked about. By default nothing is replaced.
        connect: Calls a copy; called in place of the copy itself.
        rewired: Ids of the models, the outermost or nested ones, in which
            ``connect`` adds branches: a sequential one becomes functional.
        dropped: Ids of the layers that the copy does without: what they read
            first takes the place of what they made.
        fresh: Ids of the layers whose weights are not copied.
        values: ``{id(variable): value}`` to copy in place of the values that
            variables of the model have.
        resizing: What has another size in the copy; by default nothing.
        keep_class: Whether to refuse a model whose own steps would be lost;
            otherwise that is a warning too, for a copy that only predicts.

    Attributes:
        keys: After `copy`, ``{key in the model: key in the copy}``.
    """

    def __init__(
        self,
        *,
        replace: Replace = lambda layer: None,
        connect: Connect | None = None,
        rewired: Collection[int] = (),
        dropped: Collection[int] = (),
        fresh: Collection[int] = (),
        values: Mapping[int, np.ndarray] | None = None,
        resizing: Resizing | None = None,
        keep_class: bool = True,
    ) -> None:
        self.replace = replace
        self.connect = connect
        self.rewired = rewired
        self.dropped = dropped
        self.fresh = fresh
        self.values = values or {}
        self.resizing = resizing or Resizing()
        self.keep_class = keep_class
        self.keys: dict[str, str] = {}
        self._copies: dict[int, Any] = {}
        self._originals: dict[int, Any] = {}
        self._replaced: set[int] = set()
        self._holders: dict[int, keras.layers.Layer] = {}
        self._pairs: list[tuple[keras.Variable, keras.Variable]] = []

    def copy(self, model: keras.Model) -> keras.Model:
        """The copy.

        Raises:
            ValueError: If a layer, or the model's class, cannot be copied.
        """
        with model.distribute_strategy.scope():
            copy = self._copy_model(model, outermost=True)
            self._match(model, copy)
            for source, target in self._pairs:
                value = self.values.get(id(source))
                if value is None:
                    value = view_of(source)
                # A copy: a view may share memory with the model's variable.
                target.assign(np.array(self.resizing.part(source, value)))
                if target.trainable != source.trainable:
                    target.trainable = source.trainable
            for layer in layers_of(copy):
                derive_state(layer)
        places = {id(v): k for k, v in unique_keys(copy.weights).items()}
        targets = {id(source): id(target) for source, target in self._pairs}
        named = unique_keys(model.weights)
        self.keys = {
            key: places[targets[id(variable)]]
            for key, variable in named.items()
            if targets.get(id(variable)) in places
        }
        masks = {
            self.keys[key]: self.resizing.part(named[key], mask)
            for key, mask in (
                masking.attached_masks(model) if named else {}
            ).items()
            if key in self.keys
        }
        if masks:
            masking.enforce(copy, masks)
        if getattr(model, "compiled", False):
            compile_like(model, copy)
        return copy

    def copied(self, layer: keras.layers.Layer) -> Any:
        """The layer that stands in the copy for ``layer``."""
        return self._copies[id(layer)]

    def inherit_optimizer(self, model: keras.Model, copy: keras.Model) -> None:
        """Also copy the optimizer's state, slots in the size of the copy.

        Raises:
            ValueError: If the two optimizers hold different variables.
        """
        for owner in (model, copy):
            if not owner.optimizer.built:
                owner.optimizer.build(owner.trainable_variables)
        old = unique_keys(model.optimizer.variables)
        new = unique_keys(copy.optimizer.variables)
        if len(old) != len(new):
            raise ValueError(
                "The optimizer of the new model holds other variables: give "
                "layers that get a bias a fresh optimizer. Received: "
                f"{len(old)} variables, {len(new)} in the new model"
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
                owners = [
                    v
                    for prefix, v in prefixes
                    if source.name.startswith(prefix + "_")
                    and tuple(v.shape) == value.shape
                ]
                owners = [v for v in owners if v.path == owners[0].path]
                if index >= len(owners):
                    raise ValueError(
                        "The optimizer's state cannot be cut to the new "
                        "model; let it have a fresh optimizer. Received: "
                        f"{path} of shape {value.shape}, "
                        f"{tuple(target.shape)} in the new model"
                    )
                value = self.resizing.part(owners[index], value)
            target.assign(value)

    # --- the graph -----------------------------------------------------------

    def _copy_model(
        self, model: keras.Model, outermost: bool = False
    ) -> keras.Model:
        view = functional_view(model)
        inputs = self._inputs(model, view)
        given: dict[str, Any]
        if isinstance(model, keras.Sequential) and id(model) not in (
            self.rewired
        ):
            plain = keras.Sequential
            given = {"layers": [*inputs, *self._chain(model, inputs[0])]}
        else:
            plain = keras.Model
            copy = keras.models.clone_model(
                view,
                input_tensors=keras.tree.pack_sequence_as(view.input, inputs),
                clone_function=self._copy,
                call_function=self._call,
            )
            given = {"inputs": copy.input, "outputs": copy.output}
        if type(model) not in (keras.Sequential, type(view)):
            try:
                return self._of_class_of(model, view, given)
            except Exception as error:  # whatever user code raises
                if outermost:
                    self._lose_class(model, error)
        return plain(**given, name=model.name)

    def _inputs(self, model: keras.Model, view: keras.Model) -> list[Any]:
        layers = {
            id(layer.output): layer
            for layer in view.layers
            if isinstance(layer, keras.layers.InputLayer)
        }
        return [
            keras.Input(
                batch_shape=self.resizing.input_shape(
                    model, index, tuple(x.shape)
                ),
                dtype=x.dtype,
                sparse=x.sparse,
                ragged=x.ragged,
                name=x.name,
                optional=layers[id(x)].optional,
            )
            for index, x in enumerate(view.inputs)
        ]

    def _chain(self, model: keras.Sequential, x: Any) -> list[Any]:
        """Copies of a sequential model's layers."""
        layers = [x for x in model.layers if id(x) not in self.dropped]
        copies = [self._copy(layer) for layer in layers]
        if self.resizing.layers:
            # Built by the new model, they would get the path that it has.
            for layer, copy in zip(layers, copies, strict=True):
                if not copy.built:
                    with scope_of(layer):
                        copy.build(x.shape)
                (seen,), _ = as_called(copy, (x,), {})
                x = copy.compute_output_spec(seen)
        return copies

    def _call(self, copy: Any, *args: Any, **kwargs: Any) -> Any:
        layer = self._originals[id(copy)]
        if id(layer) in self.dropped:
            return keras.tree.flatten((args, kwargs))[0]
        is_new = isinstance(layer, keras.layers.Layer) and not copy.built
        with scope_of(layer) if is_new else contextlib.nullcontext():
            if self.connect is None:
                return copy(*args, **kwargs)
            return self.connect(layer, copy, args, kwargs)

    # --- the class of the model ----------------------------------------------

    def _of_class_of(
        self, model: keras.Model, view: keras.Model, given: dict[str, Any]
    ) -> keras.Model:
        """A model of the class of ``model``, made of what is given."""
        kind: Any = type(model)
        _, *parameters = inspect.signature(kind.__init__).parameters.values()
        is_open = any(p.kind is p.VAR_KEYWORD for p in parameters)
        names = [
            p.name
            for p in parameters
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        options: dict[str, Any] = {}
        if is_open or "name" in names:
            options["name"] = model.name
        first: list[Any] = []
        if set(given) <= set(names) or not names or hasattr(model, names[0]):
            options |= given
        else:  # the constructor has other names for them
            first, names = list(given.values()), names[len(given) :]
        for name in names:
            if name not in {*given, "name", "trainable", "dtype"}:
                options[name] = self._argument(model, name)
        made = kind(*first, **options)
        if not _is_made_of(made, given):
            raise ValueError("its constructor changes what it is given")
        for name, value in vars(model).items():
            if (
                isinstance(value, str | bool | int | float)
                and not name.startswith("_")
                and name not in (*vars(view), "stop_training")
                and vars(made).get(name) != value
            ):
                setattr(made, name, value)
        return made

    def _argument(self, model: keras.Model, name: str) -> Any:
        """What the constructor of the copy gets as its argument ``name``."""
        if hasattr(model, name):
            value = getattr(model, name)
            return self._copies.get(id(value), value)
        config = model.get_config()
        if name not in config:
            raise ValueError(
                f"no attribute and no entry of get_config says what {name!r} is"
            )
        return keras.saving.deserialize_keras_object(config[name])

    def _lose_class(self, model: keras.Model, error: Exception) -> None:
        """Raise, or warn where a plain model can stand for ``model``."""
        kind = type(model)
        own = [
            s for s in _STEPS if getattr(kind, s) is not getattr(keras.Model, s)
        ]
        why = (
            f"{kind.__name__} cannot be made of other inputs and outputs "
            f"({type(error).__name__}: {error})"
        )
        if own and self.keep_class:
            raise ValueError(
                f"The copy would lose the {', '.join(own)} of the model's "
                f"class: {why}. Let its constructor take `inputs` and "
                "`outputs`, and keep its further arguments as attributes; or "
                "give `keras.Model(model.input, model.output)`, which trains "
                f"as any model. Received: model={model.name!r}"
            ) from error
        warnings.warn(
            "The new model is a plain functional or sequential one, without "
            f"what {kind.__name__} adds to it: {why}.",
            stacklevel=6,
        )

    # --- layers --------------------------------------------------------------

    def _copy(self, layer: Any) -> Any:
        if id(layer) not in self._copies:
            if id(layer) in self.dropped:
                copy = keras.layers.Identity(name=layer.name)  # never called
            elif is_graph(layer):
                copy = self._copy_model(layer)
            else:
                copy = self._copy_operation(layer)
            self._copies[id(layer)] = copy
            self._originals[id(copy)] = layer
        return self._copies[id(layer)]

    def _copy_operation(self, layer: Any) -> Any:
        """A copy of a layer, or of a function in the graph."""
        variables = getattr(layer, "variables", ())
        self._check_holders(layer)
        copy = self.replace(layer)
        if copy is None:
            try:
                copy = copy_of(layer)
            except ValueError:
                if variables:
                    raise
                return layer  # nothing tells the two models apart
        else:
            self._replaced.add(id(layer))
        config = layer.get_build_config() if variables and layer.built else None
        if config and not copy.built and id(layer) not in self.resizing.layers:
            with scope_of(layer):
                copy.build_from_config(config)
        return copy

    def _check_holders(self, layer: Any) -> None:
        """Raise if another layer holds weights of this one too."""
        for variable in getattr(layer, "weights", ()):
            holder = self._holders.setdefault(id(variable), layer)
            if holder is not layer:
                raise ValueError(
                    "Two layers hold the same weights, as when one is called "
                    "by the model and by another layer too; their copies "
                    "would each have weights of their own. Received: "
                    f"{variable.path} in {holder.name!r} and {layer.name!r}"
                )

    # --- what layers hold ----------------------------------------------------

    def _match(self, model: keras.Model, copy: keras.Model) -> None:
        """Pair the variables, and set what a copy has only once it is built."""
        alike: list[tuple[Any, Any]] = [(model, copy)]
        for key, new in self._copies.items():
            old = self._originals[id(new)]
            if (
                not isinstance(old, keras.layers.Layer)
                or new is old
                or key in self.dropped
            ):
                continue
            if is_graph(old):
                alike.append((old, new))
                continue
            inside = list(twins(old, new))
            alike += inside or [(old, new)]
            for one, other in inside:
                if one.built and not other.built:
                    with scope_of(one):
                        other.build_from_config(one.get_build_config())
                if key not in self._replaced:
                    carry_functions(one, other)
            bias = self.resizing.biases.get(key)
            if bias is not None:
                new.bias.assign(bias)
            if key not in self.fresh:
                apart = () if bias is None else (old.bias, new.bias)
                ones, others = (
                    [v for v in x.variables if all(v is not a for a in apart)]
                    for x in (old, new)
                )
                self._pair(
                    ones,
                    others,
                    f"the layer {old.name!r} ({type(old).__name__})",
                )
        try:
            self._pair(_own_variables(model), _own_variables(copy), "the model")
        except ValueError:
            if self.keep_class:
                raise
        # A flag is handed down to all layers inside, which come next.
        for _ in alike:
            wrong = [(a, b) for a, b in alike if a.trainable != b.trainable]
            if not wrong:
                break
            for old, new in wrong:
                new.trainable = old.trainable

    def _pair(
        self,
        old: list[keras.Variable],
        new: list[keras.Variable],
        whose: str,
    ) -> None:
        if len(old) != len(new):
            raise ValueError(
                f"The copy of {whose} does not hold the same variables: does "
                "`build` make all of them? Received: "
                f"{[v.path for v in old]}, in the copy {[v.path for v in new]}"
            )
        self._pairs += [
            (a, b) for a, b in zip(old, new, strict=True) if a is not b
        ]


def compile_like(model: keras.Model, copy: keras.Model, **changes: Any) -> None:
    """Compile ``copy`` with the settings of ``model`` and a new optimizer.

    The loss is the model's own, which has no state. A metric that cannot be
    serialized cannot be copied: the copy stays uncompiled then, with a
    warning.

    Args:
        model: A compiled model.
        copy: Another one with the same outputs.
        **changes: To the settings.
    """
    why = "its class compiles in its own way"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*includes a `lambda`")
            config = model.get_compile_config()
        kind = type(copy)
        if (
            kind.compile is keras.Model.compile
            and kind.compile_from_config is keras.Model.compile_from_config
        ):
            changes = {"loss": model.loss, **changes}
            copied = {k: v for k, v in config.items() if k not in changes}
            settings = keras.saving.deserialize_keras_object(copied)
            copy.compile(**settings, **changes)
        else:
            changes = {
                name: keras.saving.serialize_keras_object(value)
                for name, value in changes.items()
            }
            copy.compile_from_config({**config, **changes})
    except Exception as error:  # whatever user code raises
        why = f"{type(error).__name__}: {error}"
    if not copy.compiled:
        warnings.warn(
            "The new model is not compiled: the settings of the model could "
            f"not be copied ({why}).",
            stacklevel=5,
        )


def count(variables: Collection[keras.Variable]) -> int:
    """How many numbers the variables hold."""
    return sum(int(np.prod(v.shape)) for v in variables)


def _is_made_of(made: keras.Model, given: Mapping[str, Any]) -> bool:
    if "layers" in given:
        found, asked = made.layers, given["layers"][1:]
    else:
        found = [*made.inputs, *made.outputs]
        asked = keras.tree.flatten([given["inputs"], given["outputs"]])
    return len(found) == len(asked) and all(
        one is other for one, other in zip(found, asked, strict=True)
    )


def _own_variables(model: keras.Model) -> list[keras.Variable]:
    """Those that no layer of its graph holds."""
    inside = {
        id(v)
        for layer in functional_view(model).layers
        for v in layer.variables
    }
    return [v for v in model.variables if id(v) not in inside]
