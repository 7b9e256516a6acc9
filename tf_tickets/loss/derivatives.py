"""Derivatives of an objective with respect to a model's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tf_tickets.loss.batches import Batch
from tf_tickets.loss.objective import Objective, Tensors

_ZERO = tf.UnconnectedGradients.ZERO


def gradient(
    objective: Objective, values: Tensors, keys: list[str], batch: Batch
) -> list[tf.Tensor]:
    r"""$\partial L / \partial w$ for the weights named by ``keys``."""
    wanted = [values[key] for key in keys]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(wanted)
        loss = objective(values, batch)
    return _dense(
        tape.gradient(loss, wanted, unconnected_gradients=_ZERO), wanted
    )


def hessian_product(
    objective: Objective,
    values: Tensors,
    keys: list[str],
    vector: list[tf.Tensor],
    batch: Batch,
) -> list[tf.Tensor]:
    r"""$H v$ over the weights named by ``keys``: $\nabla_w (v^T \nabla_w L)$.

    Two passes of the tape; the Hessian itself is never built.
    """
    wanted = [values[key] for key in keys]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(wanted)
        slopes = gradient(objective, values, keys, batch)
        product = tf.add_n(
            [tf.reduce_sum(g * v) for g, v in zip(slopes, vector, strict=True)]
        )
    return _dense(
        tape.gradient(product, wanted, unconnected_gradients=_ZERO), wanted
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
    parts: Iterable[tuple[int, list[tf.Tensor]]],
) -> list[tf.Tensor]:
    """Mean over all samples of ``(samples, means over a batch)``."""
    total, sums = 0, None
    for size, tensors in parts:
        total += size
        scaled = [size * t for t in tensors]
        if sums is None:
            sums = scaled
        else:
            sums = [a + b for a, b in zip(sums, scaled, strict=True)]
    return [t / total for t in sums or []]


def finite(
    scores: Mapping[str, np.ndarray], criterion: str, advice: str = ""
) -> dict[str, np.ndarray]:
    """``scores``, or an error if one of them is NaN or infinite."""
    broken = [k for k, s in scores.items() if not np.isfinite(s).all()]
    if broken:
        raise ValueError(
            f"The scores of {criterion!r} are not finite: does the data hold "
            f"NaN, or has the loss overflowed?{advice} Received: NaN or "
            f"infinity in {broken}"
        )
    return dict(scores)


def _dense(gradients: list[Any], like: list[tf.Tensor]) -> list[tf.Tensor]:
    # An embedding's gradient is a sparse one.
    return [
        tf.reshape(tf.convert_to_tensor(g), w.shape)
        for g, w in zip(gradients, like, strict=True)
    ]
