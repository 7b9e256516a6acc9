"""Keep the zeros of a plain model at zero.

A mask sits in ``variable.constraint``: Keras calls a variable's constraint
inside the compiled training step, after every optimizer update, so the model
stays the model the user made. No layer is wrapped, cloned or renamed, a new
mask is an assignment, and `release` leaves no trace.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import checks
from tf_tickets.distribute import agreed
from tf_tickets.selection import named_weights
from tf_tickets.tracing import living, retrace

# The types that TensorFlow multiplies so on every device.
_MULTIPLIED = ("float32", "float64")
# What Keras calls the weights of a low-rank update.
_LORA = "/lora_"


class MaskConstraint(keras.constraints.Constraint):
    r"""$w \leftarrow m \odot c(w)$, with the layer's own constraint $c$.

    An optimizer with ``use_ema=True`` averages each update before the
    constraint sees it, and Keras later writes the averages into the model. So
    the averages of the weight are masked in the same step.

    Args:
        mask: Boolean array of the weight's shape, `True` where it is kept.
        inner: The constraint that the variable had before, or `None`.
        variable: The weight, or `None` for one that no optimizer averages.
        dtype: How the mask is kept: `"bool"`, or the weight's own type, which
            saves the step a conversion.
    """

    def __init__(
        self,
        mask: np.ndarray | tf.Tensor,
        inner: Callable[..., tf.Tensor] | None = None,
        variable: keras.Variable | None = None,
        dtype: str = "bool",
    ) -> None:
        # Cast there: NumPy would make a copy in between.
        mask = tf.cast(mask, dtype)
        self.mask = tf.Variable(mask, trainable=False, name="mask")
        self.inner = inner
        # The variable holds the constraint: no circle.
        self.variable = None if variable is None else weakref.ref(variable)

    def __call__(self, w: tf.Tensor) -> tf.Tensor:
        variable = None if self.variable is None else self.variable()
        if variable is not None:
            _look_for_optimizers()
            for average in _averages(variable):
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


def enforce(
    model: keras.Model,
    masks: Mapping[str, np.ndarray],
    *,
    others: Literal["keep", "release"] = "keep",
) -> Mapping[str, np.ndarray]:
    """Attach ``masks`` to the weights of ``model`` and zero what they prune.

    Weights that already have a mask get the new one by assignment, with no
    new trace of the training step. Every model that holds one of the weights
    keeps its zeros from then on.

    Args:
        model: A built Keras model.
        masks: ``{key: boolean array}``, keys as in
            `tf_tickets.prunable_weights`.
        others: What becomes of the masks on other weights of the model.

    Returns:
        The masks that hold now: ``masks``, or where several hosts train and do
        not all have the same, those of the chief.
    """
    weights = named_weights(model)
    masks = agreed(model.distribute_strategy, masks)
    fresh = False
    if others == "release":
        fresh = _detach(
            variable
            for key, variable in _masked_weights(model).items()
            if key not in masks
        )
    with model.distribute_strategy.scope():
        for key, mask in masks.items():
            variable = weights[key]
            constraint = variable.constraint
            if isinstance(constraint, MaskConstraint):
                constraint.mask.assign(tf.cast(mask, constraint.mask.dtype))
            else:
                variable.constraint = MaskConstraint(
                    mask, constraint, variable, _held_as(variable, model)
                )
                fresh = True
    if fresh:
        retrace(model, "train")
        _seen.clear()
        _enforced.add(model)
    project(model)
    return masks


def _held_as(variable: keras.Variable, model: keras.Model) -> str:
    """The type of a mask: a byte a weight where that costs the step nothing.

    XLA fuses the choice into the update; without it, a product is faster.
    """
    dtype = str(variable.dtype)
    fused = getattr(model, "compiled", False) and model.jit_compile
    return dtype if dtype in _MULTIPLIED and not fused else "bool"


def attached_masks(model: keras.Model) -> dict[str, np.ndarray]:
    """The masks that `enforce` attached, by key; empty if there are none."""
    return {
        # Converted from what the mask holds, without a copy of that.
        key: np.array(tf.convert_to_tensor(constraint.mask), bool)
        for key, variable in _masked_weights(model).items()
        if isinstance(constraint := variable.constraint, MaskConstraint)
    }


def project(model: keras.Model) -> None:
    """Zero the pruned weights now, wherever they were written from.

    ``set_weights``, ``load_weights`` and ``assign`` go past a constraint. The
    optimizers' moving averages of the weights are projected too.
    """
    _know_optimizers([getattr(model, "optimizer", None)])
    _warn_of_dense_updates(model)
    for variable in model.weights:
        if not isinstance(variable.constraint, MaskConstraint):
            continue
        # A product would flush the smallest weights that are kept to zero.
        mask = tf.cast(variable.constraint.mask, "bool")
        variable.assign(masked(variable.value, mask))
        for average in _averages(variable):
            average.assign(masked(average.value, mask))


def warn_of_written(model: keras.Model) -> None:
    """Warn of weights that were written past their masks and are dense.

    Nobody is told when ``load_weights`` or ``assign`` writes a weight. So this
    is asked wherever such weights are read or put right.
    """
    dense = [
        key
        for key, variable in _masked_weights(model).items()
        if bool(
            tf.reduce_any(
                tf.cast(variable.value, "bool")
                & ~tf.cast(variable.constraint.mask, "bool")
            )
        )
    ]
    if dense:
        checks.warn(
            "These weights are not zero where their masks prune: load_weights, "
            "set_weights or assign has written them past the masks, and what "
            "was computed since is another network's. Zeros come back with the "
            "next training step or export, and at once with ticket.apply(model,"
            f" weights='keep'). Received: {', '.join(dense[:8])}"
            + (", ..." if len(dense) > 8 else "")
        )


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
    if _detach(_masked_weights(model).values()):
        retrace(model, "train")


def _detach(variables: Iterable[keras.Variable]) -> bool:
    """Take masks off; whether there was one."""
    found = False
    for variable in variables:
        variable.constraint = variable.constraint.inner
        found = True
    return found


def _warn_of_dense_updates(model: keras.Model) -> None:
    paths = [variable.path for variable in model.weights]
    layers = {path.rpartition("/")[0] for path in paths if _LORA in path}
    if not layers:
        return
    updated = [
        key
        for key in _masked_weights(model)
        if key.rpartition("/")[0] in layers
    ]
    if updated:
        checks.warn(
            "A low-rank update is added to these weights and has no zeros: "
            "what the layer computes with is dense, and `model.save` merges "
            "the update into the kernel. Apply the ticket again after the "
            f"merge. Received: {updated}"
        )


def _masked_weights(model: keras.Model) -> dict[str, keras.Variable]:
    return {
        key: variable
        for key, variable in named_weights(model).items()
        if isinstance(variable.constraint, MaskConstraint)
    }


# Optimizers that average weights. A variable does not know them, and there
# may be several: that of an outer model, or a second one in a training step.
_averaging: weakref.WeakSet[keras.optimizers.Optimizer] = weakref.WeakSet()
_seen: weakref.WeakSet[tf.Graph] = weakref.WeakSet()
_enforced: weakref.WeakSet[keras.Model] = weakref.WeakSet()


def _look_for_optimizers() -> None:
    """Look once a trace: what is compiled later is traced later.

    Eager steps have one graph for all: there it is once after `enforce`, and
    then the optimizers of models that got masks, which cost nothing to ask.
    """
    graph = tf.compat.v1.get_default_graph()
    if tf.executing_eagerly():
        _know_optimizers(getattr(m, "optimizer", None) for m in _enforced)
    if graph not in _seen:
        _seen.add(graph)
        _know_optimizers(living(keras.optimizers.Optimizer))


def _know_optimizers(found: Iterable[Any]) -> None:
    for one in found:
        inner = getattr(one, "inner_optimizer", one)
        for optimizer in getattr(inner, "optimizers", [inner]):
            if getattr(optimizer, "use_ema", False):
                _averaging.add(optimizer)


def _averages(variable: keras.Variable) -> list[keras.Variable]:
    """What optimizers keep as the moving average of a weight."""
    return [
        average
        for optimizer in _averaging
        # Keras has no public way from a weight to its average.
        for tracked, average in zip(
            getattr(optimizer, "_trainable_variables", ()),
            getattr(optimizer, "_model_variables_moving_average", ()),
            strict=False,  # an optimizer that is not built yet
        )
        if tracked is variable
    ]


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
