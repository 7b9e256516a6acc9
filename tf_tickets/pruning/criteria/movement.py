"""Movement: which weights training moves away from zero."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import checks
from tf_tickets.masks import Arrays


def movement(
    model: keras.Model,
    masks: Arrays,
    *,
    data: Any = None,
    seed: int = 0,
    sums: Arrays | None = None,
) -> dict[str, np.ndarray]:
    r"""Score $-\sum_t w^{(t)} \cdot \partial L / \partial w^{(t)}$ of training.

    The sum goes over the training steps since the last drawing, with the
    gradients that the optimizer gets in them. Weights that training moves
    away from zero have positive scores, those that it shrinks negative ones,
    and those go first, however large they are: for finetuning, where sizes
    still tell of pretraining.

    `tf_tickets.callbacks.GradualPruning` and
    `tf_tickets.callbacks.IterativeMagnitudePruning` keep the sums, inside the
    training step; `tf_tickets.prune` alone sees no step and refuses.
    (The publication lets weights come back, whose scores go on; here what is
    pruned stays pruned.)

    Args:
        model: A built model.
        masks: ``{path: boolean array}``.
        data: Unused.
        seed: Unused.
        sums: ``{path: array}``: what the steps have added up to.

    Returns:
        ``{path: scores}``.

    Raises:
        ValueError: If there are no sums.

    Reference:
        Sanh et al., "Movement Pruning: Adaptive Sparsity by Fine-Tuning",
        NeurIPS 2020, equation 2.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> _ = model.layers[0].kernel.assign([[1.0], [-2.0]])
    >>> model.compile("sgd", "mse")
    >>> pruning = tt.callbacks.GradualPruning(
    ...     target_sparsity=0.5, end_step=2, every=2, criterion="movement")
    >>> x, y = np.ones((4, 2)), np.ones((4, 1))  # both should be larger
    >>> _ = model.fit(x, y, epochs=2, verbose=0, callbacks=[pruning])
    >>> next(iter(pruning.ticket.masks.values())).tolist()
    [[True], [False]]
    """
    del model, data, seed
    if sums is None:
        raise ValueError(
            "criterion='movement' scores the steps of a training: give it to "
            "GradualPruning or IterativeMagnitudePruning. "
            "Received: a drawing outside of training"
        )
    checks.mapping("sums", sums)
    checks.mapping("masks", masks)
    missing = [path for path in masks or () if path not in sums]
    if missing:
        raise ValueError(
            "`sums` must have every path of `masks`. "
            f"Received: none for {missing[:8]}"
        )
    return {path: np.asarray(sums[path]) for path in masks or ()}


def _each_step(weight: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """What one step adds."""
    return -weight * gradient


movement.each_step = _each_step  # type: ignore[attr-defined]
