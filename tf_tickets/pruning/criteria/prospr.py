"""ProsPr: meta-gradients through the first steps of training."""

from __future__ import annotations

from itertools import cycle, islice
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import checks
from tf_tickets.loss.batches import Batch
from tf_tickets.loss.objective import (
    Loss,
    Objective,
    Tensors,
    compiled,
    computing_in,
)
from tf_tickets.masks import Arrays


def prospr(
    model: keras.Model,
    masks: Arrays,
    *,
    data: Any = None,
    seed: int = 0,
    steps: int = 3,
    learning_rate: float = 0.5,
    momentum: float = 0.9,
    first_order: bool = False,
    loss: Loss | None = None,
    training: bool = True,
    batch_size: int = 256,
    jit_compile: bool = False,
) -> dict[str, np.ndarray]:
    r"""Score $|\partial L(w_M) / \partial c|$ at $c = 1$: prospect pruning.

    The weights start at $w_0 = c \odot w$ and take $M$ steps of SGD on one
    batch each, $b_{i+1} = \mu b_i + \nabla L_i(w_i)$ and
    $w_{i+1} = w_i - \alpha b_{i+1}$; the loss that is differentiated is that
    of the next batch. All trainable weights take the steps, those in ``masks``
    have scores, and pruned weights stay at zero throughout.

    The meta-gradient is exact and is found by the adjoint recursion, with
    $\lambda$ of the weights and $\beta$ of the momentum:
    $\beta_i' = \beta_{i+1} - \alpha \lambda_{i+1}$,
    $\lambda_i = \lambda_{i+1} + H_i \beta_i'$, $\beta_i = \mu \beta_i'$,
    from $\lambda_M = \nabla L_M(w_M)$, $\beta_M = 0$, to the score
    $|w \odot \lambda_0|$. One Hessian-vector product is alive at a time, so
    that memory grows with ``steps`` by one copy of the weights and not by the
    activations of a step. Dropout draws the same units in every step.

    Args:
        model: A built and compiled model, only read.
        masks: ``{path: boolean array}``; the masked model is trained.
        data: See `tf_tickets.loss.batches.batches`; ``steps + 1`` batches are
            used, from the start again if there are fewer.
        seed: Unused.
        steps: $M$; 3 by default. This and the next two are the values of the
            example in the published code's README, whose function has no
            defaults; they suit its networks and need not suit yours.
        learning_rate: $\alpha$ of the inner steps; 0.5 by default.
        momentum: $\mu$ of the inner steps; 0.9 by default.
        first_order: Leave the Hessians out: $|w \odot \nabla L_M(w_M)|$.
        loss: Instead of the compiled loss.
        training: `True`, the default, steps as in training, as published;
            `False` with the moving statistics of normalization and without
            dropout.
        batch_size: Samples in a batch where arrays are cut into batches; 256
            by default.
        jit_compile: Compile gradient and Hessian-vector product with XLA.

    Returns:
        ``{path: scores}``.

    Raises:
        ValueError: If there is no loss, no data or no labels, an option is out
            of range, or the inner steps diverge.

    Reference:
        Alizadeh et al., "Prospect Pruning: Finding Trainable Weights at
        Initialization using Meta-Gradients", ICLR 2022, section 3; compared
        with Gem-Miner in Sreenivasan et al., "Rare Gems", 2022, table 2.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([
    ...     keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> _ = model.layers[0].kernel.assign([[4.0]])
    >>> model.compile(loss="mse")  # L = w², w₃ = 0.2³ w, dL/dc = 2 w₃²
    >>> path = model.layers[0].kernel.path
    >>> data = np.array([[1.0]]), np.array([[0.0]])
    >>> scores = tt.pruning.prospr(model, {path: np.ones((1, 1), bool)},
    ...     data=data, learning_rate=0.4, momentum=0.0)
    >>> round(scores[path].item(), 6)
    0.002048
    """
    del seed
    steps = checks.whole("steps", steps)
    learning_rate = checks.number("learning_rate", learning_rate, "(0, inf)")
    momentum = checks.number("momentum", momentum, "[0, 1)")
    objective = Objective(
        model, needed_by="criterion='prospr'", loss=loss, training=training
    )
    found = objective.batches(data, batch_size=batch_size, limit=steps + 1)
    used = list(islice(cycle(found), steps + 1))
    keys = list(dict.fromkeys([*masks, *objective.trainable()]))
    start = objective.values(masks)
    with computing_in(model):
        adjoint = _meta_gradient(
            objective,
            start,
            keys,
            {k: tf.constant(np.asarray(m)) for k, m in masks.items()},
            used,
            learning_rate=learning_rate,
            momentum=momentum,
            first_order=first_order,
            jit_compile=jit_compile,
        )
    scores = {k: np.abs((start[k] * adjoint[k]).numpy()) for k in masks}
    checks.finite(
        "The scores of 'prospr'",
        scores,
        "does the data hold NaN, or have the inner steps diverged? Lower "
        "`learning_rate`.",
    )
    return scores


prospr.needs_data = True  # type: ignore[attr-defined]


prospr.needs_data = True  # type: ignore[attr-defined]


def _meta_gradient(
    objective: Objective,
    start: Tensors,
    keys: list[str],
    masks: Tensors,
    used: list[Batch],
    *,
    learning_rate: float,
    momentum: float,
    first_order: bool,
    jit_compile: bool,
) -> Tensors:
    """``{key: d L(w_M) / d w_0}``."""
    slope = compiled(objective.gradient, jit_compile)
    curvature = compiled(objective.hessian_product, jit_compile)
    # Frozen weights in `masks` have scores and take no steps; a pruned
    # position takes none either. Both are a zero of the step's mask.
    trained = set(objective.trainable())
    moves = {
        k: tf.cast(
            masks.get(k, tf.ones_like(start[k], tf.bool))
            if k in trained
            else tf.zeros_like(start[k], tf.bool),
            start[k].dtype,
        )
        for k in keys
    }
    path, w = [], dict(start)
    velocity = {k: tf.zeros_like(start[k]) for k in keys}
    for batch in used[:-1]:
        path.append(w)
        slopes = slope(w, keys, batch)
        velocity = {
            k: momentum * velocity[k] + moves[k] * slopes[k] for k in keys
        }
        w = {**w, **{k: w[k] - learning_rate * velocity[k] for k in keys}}
    adjoint = slope(w, keys, used[-1])
    if first_order:
        return adjoint
    momentum_adjoint = {k: tf.zeros_like(start[k]) for k in keys}
    for w, batch in zip(reversed(path), reversed(used[:-1]), strict=True):
        inner = {
            k: momentum_adjoint[k] - learning_rate * adjoint[k] for k in keys
        }
        bent = curvature(w, keys, {k: moves[k] * inner[k] for k in keys}, batch)
        adjoint = {k: adjoint[k] + bent[k] for k in keys}
        momentum_adjoint = {k: momentum * inner[k] for k in keys}
    return adjoint
