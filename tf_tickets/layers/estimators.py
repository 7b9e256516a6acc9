"""Straight-through estimators: masks forward, a gradient to scores backward.

All functions in this file are pure, take tensors by position only (a
``tf.custom_gradient`` function takes no keywords inside ``tf.function``) and
return a mask of zeros and ones in the dtype of the scores. With the mask m
multiplied into frozen weights w and g the gradient of the loss with respect to
the effective weights w ⊙ m, the mask itself gets the gradient w ⊙ g.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

Gradient = Callable[[tf.Tensor], object]


@tf.custom_gradient
def threshold(p: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
    r"""$m = 1[p > 1/2]$, $\partial m / \partial p := 1$.

    So the gradient of the scores is $w \odot g$, for scores on both sides of
    the threshold. The paper writes ≥; the code that its tables were made with,
    and this, prune a score of exactly one half.

    Args:
        p: Scores, meant to lie in [0, 1].

    Returns:
        The mask.

    Reference:
        Sreenivasan et al., "Rare Gems: Finding Lottery Tickets at
        Initialization", NeurIPS 2022, section 3; Bengio et al. 2013 for the
        estimator.

    Example:

    >>> threshold(tf.constant([0.2, 0.5, 0.9])).numpy().tolist()
    [0.0, 0.0, 1.0]
    """
    return tf.cast(p > 0.5, p.dtype), lambda upstream: upstream


@tf.custom_gradient
def top_k(s: tf.Tensor, kept: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
    r"""$m = 1[|s|$ among the $k$ largest$]$,
    $\partial m / \partial s := \mathrm{sign}(s)$.

    The estimator is the identity through the choice, and the absolute value in
    front of it has the gradient sign(s): so the gradient of the scores is
    $\mathrm{sign}(s) \odot w \odot g$. Ranking s itself with an identity
    gradient would be another algorithm.

    Args:
        s: Scores of either sign.
        kept: Boolean: which are chosen, as `tf_tickets.layers.ranking` finds
            them.

    Returns:
        The mask.

    Reference:
        Ramanujan et al., "What's Hidden in a Randomly Weighted Neural
        Network?", CVPR 2020, equations 4 and 5 (Edge-Popup).

    Example:

    >>> s = tf.constant([-3.0, 1.0, 2.0])
    >>> with tf.GradientTape() as tape:
    ...     tape.watch(s)
    ...     m = top_k(s, tf.constant([True, False, True]))
    >>> m.numpy().tolist(), tape.gradient(m, s).numpy().tolist()
    ([1.0, 0.0, 1.0], [-1.0, 1.0, 1.0])
    """
    return tf.cast(kept, s.dtype), lambda upstream: (
        tf.sign(s) * upstream,
        None,
    )


@tf.custom_gradient
def bernoulli(p: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
    r"""$m \sim \mathrm{Bernoulli}(p)$, $\partial m / \partial p := 1$.

    Randomised rounding: every score is the probability that its weight is
    kept.

    Args:
        p: Probabilities.
        seed: Two integers; equal seeds give equal masks.

    Returns:
        The mask.

    Reference:
        Sreenivasan et al. 2022, section 3 ("r can perform randomized
        rounding"); Zhou et al., "Deconstructing Lottery Tickets", NeurIPS
        2019.

    Example:

    >>> bernoulli(tf.constant([0.0, 1.0]), tf.constant([1, 2])).numpy().tolist()
    [0.0, 1.0]
    """
    drawn = tf.random.stateless_uniform(tf.shape(p), seed, dtype=p.dtype)
    return tf.cast(drawn < p, p.dtype), lambda upstream: (upstream, None)
