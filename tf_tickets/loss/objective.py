"""A model's loss as a function of weights that are not the model's own.

What would the loss be with other weights: masked, perturbed, a few steps
further? And its gradient there, and its curvature? The weights are substituted
inside ``keras.StatelessScope``, so nothing is assigned and nothing has to be
restored: moving statistics, random seeds and metrics stay as they are.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Sized,
)
from typing import Any

import keras
import tensorflow as tf

from tf_tickets import progress
from tf_tickets.loss.batches import Batch, batches
from tf_tickets.masking import masked
from tf_tickets.selection import layers_of, named_weights

Tensors = dict[str, tf.Tensor]
Loss = str | Callable[[Any, Any], Any]


class Objective:
    r"""$L(w)$ on one batch, with its derivatives, at any values $w$.

    The values are tensors by the keys of the model's weights; a weight that
    is not among them has the model's own value.

    Args:
        model: A built model; only read.
        needed_by: What asks for the loss, for error messages.
        loss: `None` for the loss that the model is compiled with, added and
            regularization losses included; or a Keras loss, its name or a
            callable ``(y_true, y_pred)``, whose mean is taken.
        training: Whether the model runs as in training: batch statistics in
            normalization, dropout active. `False` by default.
        transform: ``(y_pred) -> y_pred`` between the model and its loss;
            `None` for nothing.

    Raises:
        ValueError: If the model is not compiled and there is no ``loss``.

    Example:

    >>> model = keras.Sequential(
    ...     [keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.compile(loss="mse")
    >>> loss = Objective(model, needed_by="the example")
    >>> [key] = loss.trainable()
    >>> at = {key: tf.constant([[3.0]])}  # L = w² for x = 1, y = 0
    >>> batch = Batch(tf.ones((1, 1)), tf.zeros((1, 1)))
    >>> float(loss(at, batch))
    9.0
    >>> loss.gradient(at, [key], batch)[key].numpy().tolist()
    [[6.0]]
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        needed_by: str,
        loss: Loss | None = None,
        training: bool = False,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.model = model
        self.needed_by = needed_by
        self.variables = named_weights(model)
        self.training = training
        self.transform = transform
        self.loss = None if loss is None else keras.losses.get(loss)
        own = type(model).compute_loss is not keras.Model.compute_loss
        compiled = getattr(model, "compiled", False)
        compiled_loss = getattr(model, "loss", None) if compiled else None
        if self.loss is None and not (own or compiled_loss or model.losses):
            raise ValueError(
                f"{needed_by} needs a loss: compile the model with one or "
                f"give `loss`. Received: model={model.name!r}, "
                + ("compiled without a loss" if compiled else "not compiled")
            )
        self.needs_labels = bool(self.loss or compiled_loss)

    def __call__(self, values: Mapping[str, tf.Tensor], batch: Batch) -> Any:
        """The loss, a scalar tensor, at ``values`` of the named weights."""
        with substituted(self.variables, values):
            y_pred = call(self.model, batch.x, self.training)
            if self.transform is not None:
                y_pred = self.transform(y_pred)
            if self.loss is not None:
                value = self.loss(batch.y, y_pred)
            else:
                options = {"training": self.training}
                accepted = inspect.signature(self.model.compute_loss).parameters
                if "training" not in accepted and not _takes_any(accepted):
                    options = {}
                value = self.model.compute_loss(
                    x=batch.x,
                    y=batch.y,
                    y_pred=y_pred,
                    sample_weight=batch.sample_weight,
                    **options,
                )
        return tf.reduce_mean(value)

    def gradient(
        self, values: Tensors, keys: Sequence[str], batch: Batch
    ) -> Tensors:
        r"""$\partial L / \partial w$ for the weights named by ``keys``."""
        return self.value_and_gradient(values, keys, batch)[1]

    def value_and_gradient(
        self, values: Tensors, keys: Sequence[str], batch: Batch
    ) -> tuple[tf.Tensor, Tensors]:
        r"""$L$ and $\partial L / \partial w$, in one pass."""
        return value_and_gradient(
            lambda w: self({**values, **w}, batch),
            {key: values[key] for key in keys},
        )

    def hessian_product(
        self,
        values: Tensors,
        keys: Sequence[str],
        vector: Tensors,
        batch: Batch,
    ) -> Tensors:
        r"""$H v$ over the weights named by ``keys``.

        That is $\nabla_w (v^T \nabla_w L)$: two passes of the tape; the Hessian
        itself is never built.
        """

        def along(w: Tensors) -> tf.Tensor:
            slopes = self.gradient({**values, **w}, keys, batch)
            return tf.add_n(
                [tf.reduce_sum(slopes[key] * vector[key]) for key in keys]
            )

        return value_and_gradient(along, {key: values[key] for key in keys})[1]

    def batches(
        self, data: Any, *, batch_size: int = 256, limit: int | None = None
    ) -> Iterator[Batch]:
        """``data`` batch by batch, with the labels that the loss needs.

        Args:
            data: See `tf_tickets.loss.batches.batches`.
            batch_size: Samples in a batch where arrays are cut into batches.
            limit: Read at most this many batches; `None` for all.
        """
        return batches(
            data,
            needed_by=self.needed_by,
            batch_size=batch_size,
            limit=limit,
            labels=self.needs_labels,
        )

    def values(self, masks: Mapping[str, Any]) -> Tensors:
        """The model's weights under ``masks``, at least in float32."""
        tensors = {}
        for key, variable in self.variables.items():
            value = tf.convert_to_tensor(variable)
            if value.dtype in (tf.float16, tf.bfloat16):
                value = tf.cast(value, tf.float32)
            if key in masks:
                value = masked(value, tf.convert_to_tensor(masks[key]))
            tensors[key] = value
        return tensors

    def trainable(self) -> list[str]:
        """Keys of the weights that training would change."""
        ids = {id(v) for v in self.model.trainable_variables}
        return [k for k, v in self.variables.items() if id(v) in ids]


def value_and_gradient(
    function: Callable[[Any], tf.Tensor], at: Any
) -> tuple[tf.Tensor, Any]:
    r"""$f(x)$ and $\partial f / \partial x$.

    Args:
        function: Of one argument; returns a scalar tensor.
        at: The argument: a tensor or a nest of tensors.

    Returns:
        ``(value, gradient)``, the gradient in the structure of ``at``, dense,
        and zero where the value does not depend on it.

    Example:

    >>> value, slope = value_and_gradient(lambda x: x**2, tf.constant(3.0))
    >>> float(value), float(slope)
    (9.0, 6.0)
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(at)
        value = function(at)
    slopes = tape.gradient(
        value, at, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    # An embedding's gradient is a sparse one.
    return value, tf.nest.map_structure(
        lambda slope, x: tf.reshape(tf.convert_to_tensor(slope), x.shape),
        slopes,
        at,
    )


def compiled(
    function: Callable[..., Any], jit_compile: bool, *, often: bool = False
) -> Any:
    """``function`` compiled by XLA, traced if it is called often, or as it is.

    A batch or two are scored sooner eagerly than a graph of them is traced.
    """
    if jit_compile or often:
        return tf.function(function, jit_compile=jit_compile)
    return function


def mean_over(
    batches: Iterable[Batch], function: Callable[[Batch], Tensors]
) -> Tensors:
    """Mean over all samples of what ``function`` finds on each batch.

    Args:
        batches: At least one.
        function: ``batch -> {key: mean over the batch}``.

    Returns:
        ``{key: mean}``.
    """
    total, sums = 0, None
    count = len(batches) if isinstance(batches, Sized) else None
    with progress.bar("Reading the data", count, unit="batch") as step:
        for batch in batches:
            total += batch.size
            parts = {k: batch.size * t for k, t in function(batch).items()}
            sums = (
                parts
                if sums is None
                else {key: sums[key] + part for key, part in parts.items()}
            )
            step()
    return {key: part / total for key, part in (sums or {}).items()}


@contextlib.contextmanager
def substituted(
    variables: Mapping[str, keras.Variable], values: Mapping[str, tf.Tensor]
) -> Iterator[None]:
    """Inside, each variable reads as its tensor of ``values``, in its dtype.

    Every variable is substituted: a regularizer asks the scope alone.
    """
    with keras.StatelessScope(collect_losses=True) as scope:
        for key, variable in variables.items():
            value = values[key] if key in values else variable.value
            # The constructor of the scope would cast to the variable's dtype.
            scope.add_update((variable, value))
        yield


def call(model: keras.Model, x: Any, training: bool) -> Any:
    """``model(x)``, with ``training`` where the model takes it."""
    accepted = inspect.signature(model.call).parameters
    if "training" in accepted or _takes_any(accepted):
        return model(x, training=training)
    return model(x)


@contextlib.contextmanager
def computing_in(
    model: keras.Model, dtype: str | None = None
) -> Iterator[None]:
    """Inside, the layers of ``model`` compute in ``dtype``.

    Mixed precision loses scores: the gradients of a loss that no one scales
    underflow in float16. The dtype policies are put back on the way out;
    quantized layers keep theirs.

    Args:
        model: A built model.
        dtype: `None` for float32 in place of half precision only.
    """
    half = ("float16", "bfloat16")
    with contextlib.ExitStack() as undo:
        for layer in layers_of(model):
            policy = layer.dtype_policy
            if (
                isinstance(policy, keras.dtype_policies.DTypePolicyMap)
                or policy.quantization_mode is not None
                or "float" not in str(policy.compute_dtype)
                or (dtype is None and policy.compute_dtype not in half)
            ):
                continue
            undo.callback(setattr, layer, "dtype_policy", policy)
            layer.dtype_policy = keras.DTypePolicy(dtype or "float32")
        yield


def _takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(
        p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()
    )
