"""SynFlow: the flow of ones through the absolute weights of a network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import checks
from tf_tickets.loss.batches import batches as read
from tf_tickets.loss.objective import (
    call,
    computing_in,
    substituted,
    value_and_gradient,
)
from tf_tickets.masks import Arrays
from tf_tickets.network.graph import is_graph
from tf_tickets.network.inputs import replaced_call
from tf_tickets.selection import check_model, layers_of, named_weights

_LINEAR = (
    keras.layers.Activation,
    keras.layers.ELU,
    keras.layers.LeakyReLU,
    keras.layers.Normalization,
    keras.layers.PReLU,
    keras.layers.ReLU,
    keras.layers.Rescaling,
    keras.layers.Softmax,
    keras.layers.UnitNormalization,
)
_AFFINE = (
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
)
_CENTERS = ("mean", "moving_mean")


def synflow(
    model: keras.Model,
    masks: Arrays,
    *,
    data: Any = None,
    seed: int = 0,
    dtype: str = "float64",
) -> dict[str, np.ndarray]:
    r"""Score $\theta \odot \partial R / \partial \theta$, divided by $R$.

    $R$ is the sum of the outputs for an input of ones when every weight,
    bias and normalization parameter is replaced by its absolute value and
    pruned weights by zero. No data, no loss and no labels. What enters a
    neuron leaves it, so without biases the scores of every layer that all
    paths cross add up to $R$: layers are not cut off as long as the weights go
    gradually, which they do here in 100 drawings unless ``iterations`` of
    `tf_tickets.prune` says otherwise.

    Differences from the publication, which leaves them to the model:

    - Activations are the identity while scoring. On a flow without negative
      values a ReLU is; swish, GELU, the cap of ReLU6 or a final softmax (whose
      outputs always add up to one) would stop the flow.
    - Batch normalization runs on its moving statistics, as published, with a
      mean of zero (as in a new model); layer, group and RMS normalization keep
      their scale and offset only; input rescaling is left out. Activations
      that a model calls as functions, attention fused into one operation and
      the gates of recurrent layers cannot be replaced and stay; a gate that
      they saturate (GRU's) may stop the flow, which is an error.
    - Everything is computed in float64 and divided by $R$, which changes no
      ranking: in float32 the flow of a deep net leaves the range of numbers.

    Args:
        model: A built model; only read. It need not be compiled. Activations
            and dtype policies of its layers are put back afterwards.
        masks: ``{path: boolean array}``.
        data: Only where the model's input shape is not known or not fixed:
            inputs of that shape, whose values are not used.
        seed: Unused.
        dtype: To compute in; `"float32"` for a model with layers of your own
            that do not take float64.

    Returns:
        ``{path: scores}`` in ``dtype``, none negative but by rounding.

    Raises:
        ValueError: If the shape of the input is not known, no path is left
            through the model, or the flow leaves the range of ``dtype``.

    Reference:
        Tanaka et al., "Pruning neural networks without any data by iteratively
        conserving synaptic flow", NeurIPS 2020, equation 2 and algorithm 1.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> _ = model.layers[0].kernel.assign([[-3.0], [1.0]])
    >>> path = model.layers[0].kernel.path
    >>> tt.pruning.synflow(model, {path: np.ones((2, 1), bool)})[path].tolist()
    [[0.75], [0.25]]
    """
    del seed
    check_model(model)
    checks.mapping("masks", masks)
    return _Scorer(model, data, dtype, traced=False)(masks)


class _Scorer:
    """Scores of one model under one mask after another."""

    def __init__(
        self, model: keras.Model, data: Any, dtype: str, *, traced: bool
    ) -> None:
        self.model, self.dtype = model, dtype
        self.x = _ones(model, data)
        self.variables = named_weights(model)
        self.values = {}
        for key, variable in self.variables.items():
            value = tf.convert_to_tensor(variable)
            if value.dtype.is_floating:
                value = tf.abs(tf.cast(value, dtype))
                if variable.name in _CENTERS:
                    value = tf.zeros_like(value)
            self.values[key] = value
        # Tracing a model costs about five eager passes, and a traced one
        # takes a tenth of an eager one or less.
        self._flow = tf.function(self._flow_of) if traced else self._flow_of

    def __call__(self, masks: Arrays) -> dict[str, np.ndarray]:
        kept = {
            key: tf.where(
                mask, self.values[key], tf.zeros_like(self.values[key])
            )
            for key, mask in masks.items()
        }
        flow, slopes = self._flow(kept, self.values)
        if flow == 0:
            count = sum(int(np.count_nonzero(m)) for m in masks.values())
            raise ValueError(
                "No flow is left from the inputs to the outputs of the model, "
                "so its weights cannot be ranked by it. "
                f"Received: masks that keep {count} weights"
            )
        scores = {
            key: (kept[key] * (slope / flow)).numpy()
            for key, slope in slopes.items()
        }
        checks.finite(
            "The scores of 'synflow'",
            scores,
            f"the flow through the model leaves the range of {self.dtype}.",
        )
        return scores

    def _flow_of(
        self, kept: dict[str, tf.Tensor], values: dict[str, tf.Tensor]
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        def flow(kept: dict[str, tf.Tensor]) -> tf.Tensor:
            with substituted(self.variables, {**values, **kept}):
                outputs = call(self.model, self.x, training=False)
            return tf.add_n(
                [
                    tf.reduce_sum(tf.cast(out, self.dtype))
                    for out in keras.tree.flatten(outputs)
                ]
            )

        with linear_path(self.model), computing_in(self.model, self.dtype):
            return value_and_gradient(flow, kept)


def _prepare(
    model: keras.Model,
    *,
    data: Any = None,
    seed: int = 0,
    dtype: str = "float64",
) -> Callable[[Arrays], dict[str, np.ndarray]]:
    del seed
    return _Scorer(model, data, dtype, traced=True)


synflow.prepare = _prepare  # type: ignore[attr-defined]
synflow.iterations = 100  # type: ignore[attr-defined]


@contextlib.contextmanager
def linear_path(model: keras.Model) -> Iterator[None]:
    """Inside, the layers of ``model`` are linear in their inputs.

    Activations are the identity and normalizations over a sample keep their
    scale and offset only. Attributes of the layers are set for it and put
    back on the way out, so a model of any kind will do; no variable changes.
    """
    with contextlib.ExitStack() as undo:
        for layer in layers_of(model):
            if "call" in vars(layer):
                continue  # shared: met before
            if isinstance(layer, _LINEAR):
                undo.enter_context(replaced_call(layer, _identity))
            elif isinstance(layer, _AFFINE):
                undo.enter_context(replaced_call(layer, _affine(layer)))
            elif layer is not model and is_graph(layer):
                undo.enter_context(replaced_call(layer, _uncast(layer)))
                # A sequential model also casts before its call.
                undo.callback(setattr, layer, "autocast", layer.autocast)
                layer.autocast = False
            else:
                # A recurrent layer has its cell's activation as a property.
                activation = vars(layer).get("activation")
                if callable(activation) and not isinstance(
                    activation, keras.layers.Layer
                ):
                    undo.callback(setattr, layer, "activation", activation)
                    layer.activation = keras.activations.linear
        yield


def _identity(inputs: Any, *arguments: Any, **options: Any) -> Any:
    del arguments, options
    return inputs


def _affine(layer: Any) -> Callable[..., Any]:
    def call(inputs: Any, *arguments: Any, **options: Any) -> Any:
        del arguments, options
        given = layer.axis if isinstance(layer.axis, list | tuple) else None
        axes = {a % len(inputs.shape) for a in given or [layer.axis]}
        shape = [n if i in axes else 1 for i, n in enumerate(inputs.shape)]
        for name, combine in (("gamma", tf.multiply), ("scale", tf.multiply)):
            inputs = _combined(layer, name, combine, inputs, shape)
        return _combined(layer, "beta", tf.add, inputs, shape)

    return call


def _combined(
    layer: Any,
    name: str,
    combine: Callable[[Any, Any], Any],
    inputs: Any,
    shape: list[int],
) -> Any:
    parameter = getattr(layer, name, None)
    if not isinstance(parameter, keras.Variable):
        return inputs  # `scale` is a flag in most of these layers
    value = tf.cast(tf.convert_to_tensor(parameter), inputs.dtype)
    return combine(inputs, tf.reshape(value, shape))


def _uncast(layer: Any) -> Callable[..., Any]:
    """A nested model's graph, whose call would cast to its input's dtype."""
    function = keras.Function(layer.inputs, layer.outputs)

    def call(inputs: Any, *arguments: Any, **options: Any) -> Any:
        del arguments, options
        outputs = function(keras.tree.flatten(inputs))
        if isinstance(layer, keras.Sequential):
            return outputs[0]
        return keras.tree.pack_sequence_as(
            layer.output, keras.tree.flatten(outputs)
        )

    return call


def _ones(model: keras.Model, data: Any) -> Any:
    """One input of ones."""
    if data is not None:
        batch = next(
            read(data, needed_by="criterion='synflow'", labels=False, limit=1)
        )
        return keras.tree.map_structure(lambda a: tf.ones_like(a[:1]), batch.x)
    inputs = getattr(model, "inputs", None)
    if inputs:
        specs = [(tuple(i.shape), i.dtype) for i in inputs]
        if all(None not in shape[1:] for shape, _ in specs):
            ones = [tf.ones((1, *shape[1:]), dtype) for shape, dtype in specs]
            if isinstance(model, keras.Sequential):
                return ones[0]
            return keras.tree.pack_sequence_as(model.input, ones)
    else:
        known = (model.get_build_config() or {}).get("input_shape")
        if isinstance(known, tuple | list) and None not in known[1:]:
            return tf.ones((1, *known[1:]), keras.config.floatx())
    raise ValueError(
        "criterion='synflow' needs to know the shape of the model's input: "
        "give inputs of that shape as `data`. Received: data=None and a "
        f"model with the input shape {[i.shape for i in inputs or []]}"
    )
