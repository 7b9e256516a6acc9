"""Keep the zeros of a plain model at zero.

A mask sits in ``variable.constraint``: Keras calls a variable's constraint
inside the compiled training step, after every optimizer update, so the model
stays the model the user made. No layer is wrapped, cloned or renamed, a new
mask is an assignment, and `release` leaves no trace.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping

import keras
import numpy as np
import tensorflow as tf

from tf_tickets.selection import named_weights
from tf_tickets.tracing import retrace

# The types that TensorFlow multiplies so on every device.
_MULTIPLIED = ("float32", "float64")


class MaskConstraint(keras.constraints.Constraint):
    r"""$w \leftarrow m \odot c(w)$, with the layer's own constraint $c$.

    An optimizer with ``use_ema=True`` averages each update before the
    constraint sees it, and Keras later writes the averages into the model. So
    the average of the weight is masked in the same step.

    Args:
        mask: Boolean array of the weight's shape, `True` where it is kept.
        inner: The constraint that the variable had before, or `None`.
        average: Called when a step is traced; the variable that holds the
            weight's moving average, or `None`.
        dtype: How the mask is kept: `"bool"`, or the weight's own type, which
            saves the step a conversion.
    """

    def __init__(
        self,
        mask: np.ndarray,
        inner: Callable[..., tf.Tensor] | None = None,
        average: Callable[[], keras.Variable | None] = lambda: None,
        dtype: str = "bool",
    ) -> None:
        self.mask = tf.Variable(mask, trainable=False, dtype=dtype, name="mask")
        self.inner = inner
        self.average = average

    def __call__(self, w: tf.Tensor) -> tf.Tensor:
        average = self.average()
        if average is not None:
            _update(average.value, self.mask)
        if self.inner is not None:
            w = self.inner(w)
        return masked(w, self.mask)


def masked(w: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """``w`` where ``mask`` is true, +0.0 elsewhere, NaN and inf included.

    A plain product would leave -0.0 in the place of negative weights: equal to
    zero, but random sign bits that no compressor can remove.

    Args:
        w: A real tensor.
        mask: Boolean, or zeros and ones in the type of ``w``, which is faster
            where nothing is compiled.
    """
    w = tf.convert_to_tensor(w)
    if mask.dtype == w.dtype:
        return tf.math.multiply_no_nan(w, mask)
    return tf.where(mask, w, tf.zeros((), w.dtype))


def enforce(model: keras.Model, masks: Mapping[str, np.ndarray]) -> None:
    """Attach ``masks`` to the weights of ``model`` and zero what they prune.

    Weights that already have a mask get the new one by assignment, with no
    new trace of the training step.

    Args:
        model: A built Keras model.
        masks: ``{key: boolean array}``, keys as in
            `tf_tickets.prunable_weights`.
    """
    weights = named_weights(model)
    fresh = False
    with model.distribute_strategy.scope():
        for key, mask in masks.items():
            variable = weights[key]
            constraint = variable.constraint
            if isinstance(constraint, MaskConstraint):
                constraint.mask.assign(mask)
            else:
                dtype = str(variable.dtype)
                variable.constraint = MaskConstraint(
                    mask,
                    constraint,
                    _average_of(model, variable),
                    dtype if dtype in _MULTIPLIED else "bool",
                )
                fresh = True
    if fresh:
        retrace(model, "train")
        _warn_of_dense_updates(masks, weights)
    project(model)


def attached_masks(model: keras.Model) -> dict[str, np.ndarray]:
    """The masks that `enforce` attached, by key; empty if there are none."""
    return {
        key: constraint.mask.numpy().astype(bool)
        for key, variable in _masked_weights(model).items()
        if isinstance(constraint := variable.constraint, MaskConstraint)
    }


def project(model: keras.Model) -> None:
    """Zero the pruned weights now, wherever they were written from.

    ``set_weights``, ``load_weights`` and ``assign`` go past a constraint. The
    optimizer's moving averages of the weights are projected too.
    """
    for variable in _masked_weights(model).values():
        mask = variable.constraint.mask
        variable.assign(masked(variable.value, mask))
        average = _moving_average(model, variable)
        if average is not None:
            average.assign(masked(average.value, mask))


def release(model: keras.Model) -> None:
    """Stop enforcing masks: weights keep their values, and may change.

    Args:
        model: A model to which a ticket was applied. Without one this does
            nothing.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> tt.prune(model, sparsity=0.5).apply(model)
    >>> tt.release(model)
    >>> model.layers[0].kernel.constraint is None
    True
    """
    found = _masked_weights(model)
    for variable in found.values():
        variable.constraint = variable.constraint.inner
    if found:
        retrace(model, "train")


def _warn_of_dense_updates(
    masks: Mapping[str, np.ndarray], weights: Mapping[str, keras.Variable]
) -> None:
    layers = {k.rpartition("/")[0] for k in weights if "/lora_" in k}
    updated = [key for key in masks if key.rpartition("/")[0] in layers]
    if updated:
        warnings.warn(
            "A low-rank update is added to these weights and has no zeros: "
            "what the layer computes with is dense, and `model.save` merges "
            f"the update into the kernel. Received: {updated}",
            stacklevel=4,
        )


def _masked_weights(model: keras.Model) -> dict[str, keras.Variable]:
    return {
        key: variable
        for key, variable in named_weights(model).items()
        if isinstance(variable.constraint, MaskConstraint)
    }


def _average_of(
    model: keras.Model, variable: keras.Variable
) -> Callable[[], keras.Variable | None]:
    # The optimizer may be compiled in later, and the constraint must not
    # keep the model alive.
    reference = weakref.ref(model)

    def average() -> keras.Variable | None:
        owner = reference()
        return None if owner is None else _moving_average(owner, variable)

    return average


def _moving_average(
    model: keras.Model, variable: keras.Variable
) -> keras.Variable | None:
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    for one in getattr(optimizer, "optimizers", [optimizer]):
        # Keras has no public way from a weight to its average.
        averages = getattr(one, "_model_variables_moving_average", None)
        for tracked, average in zip(
            one._trainable_variables if averages else (),
            averages or (),
            strict=True,
        ):
            if tracked is variable:
                return average
    return None


def _update(variable: tf.Variable, mask: tf.Variable) -> None:
    """Mask an optimizer variable inside a step, on every replica."""
    if not tf.distribute.has_strategy():
        variable.assign(masked(variable, mask))
        return

    def on_each(
        strategy: tf.distribute.Strategy, v: tf.Variable, m: tf.Variable
    ) -> None:
        strategy.extended.update(
            v, lambda a, b: a.assign(masked(a, b)), args=(m,), group=False
        )

    context = tf.distribute.get_replica_context()
    if context is None:
        on_each(tf.distribute.get_strategy(), variable, mask)
    else:
        context.merge_call(on_each, args=(variable, mask))
