"""Values and gradients of the estimators, against hand-derived NumPy ones."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tf_tickets.layers import estimators

W = np.array([[1.0, -2.0], [3.0, 4.0], [-5.0, 6.0]], np.float32)
X = np.array([[1.0, 2.0, -1.0], [0.5, -1.0, 2.0]], np.float32)
Y = np.array([[1.0, 0.0], [2.0, -1.0]], np.float32)
JIT = pytest.mark.parametrize("jit_compile", [False, True])


def miner_of(scores, **options):
    """One dense layer with weights W and given scores."""
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, use_bias=False)]
    )
    model.layers[0].kernel.assign(W)
    miner = tt.supermask(model, weights="keep", **options)
    (variable,) = miner.trainable_weights
    variable.assign(scores)
    return miner, variable


def gradient(miner, variable, jit_compile):
    @tf.function(jit_compile=jit_compile)
    def step():
        with tf.GradientTape() as tape:
            error = miner(X, training=True) - Y
            loss = tf.reduce_sum(error**2) / 2
        return tape.gradient(loss, variable.value)

    return step().numpy()


def by_hand(mask):
    """dL/d(effective weights) of L = Σ(xW_eff − y)² / 2."""
    return X.T @ (X @ (W * mask) - Y)


@JIT
def test_threshold_gradient_is_the_weight_times_the_upstream(jit_compile):
    p = np.array([[0.2, 0.9], [0.5, 0.50001], [1.0, 0.0]], np.float32)
    mask = np.array([[0, 1], [0, 1], [1, 0]])  # ½ itself is pruned
    miner, variable = miner_of(p)
    found = gradient(miner, variable, jit_compile)
    # On pruned positions too: that is how a weight comes back.
    np.testing.assert_allclose(found, W * by_hand(mask), rtol=1e-6)
    np.testing.assert_allclose(miner(X), X @ (W * mask), rtol=1e-6)


@JIT
def test_frozen_scores_get_no_gradient(jit_compile):
    p = np.full((3, 2), 0.9, np.float32)
    q = np.array([[1, 0], [1, 1], [0, 1]], bool)
    miner, variable = miner_of(p)
    (key,) = miner.supermask.scores
    miner.supermask.freeze({key: q})
    found = gradient(miner, variable, jit_compile)
    np.testing.assert_allclose(found, W * q * by_hand(q), rtol=1e-6)
    assert (found[~q] == 0).all()


@JIT
def test_edge_popup_gradient_is_sign_weight_upstream(jit_compile):
    s = np.array([[-0.9, 0.1], [0.2, -0.8], [0.7, -0.3]], np.float32)
    mask = np.array([[1, 0], [0, 1], [1, 0]])  # the three largest |s|
    miner, variable = miner_of(s, mask="top_k", sparsity=0.5)
    found = gradient(miner, variable, jit_compile)
    np.testing.assert_allclose(found, np.sign(s) * W * by_hand(mask), rtol=1e-6)
    np.testing.assert_allclose(miner(X), X @ (W * mask), rtol=1e-6)


@JIT
def test_random_masks_keep_each_weight_with_its_probability(jit_compile):
    p = tf.constant(np.repeat([0.0, 0.25, 0.75, 1.0], 20_000), tf.float32)

    @tf.function(jit_compile=jit_compile)
    def draw(seed):
        with tf.GradientTape() as tape:
            tape.watch(p)
            m = estimators.bernoulli(p, seed)
            value = tf.reduce_sum(m * 3.0)
        return m, tape.gradient(value, p)

    m, g = draw(tf.constant([1, 2]))
    shares = m.numpy().reshape(4, -1).mean(1)
    np.testing.assert_allclose(shares, [0, 0.25, 0.75, 1], atol=0.02)
    assert shares[0] == 0 and shares[3] == 1
    np.testing.assert_array_equal(g, np.full(80_000, 3.0))
    np.testing.assert_array_equal(m, draw(tf.constant([1, 2]))[0])
    assert (m.numpy() != draw(tf.constant([1, 3]))[0].numpy()).any()


def test_random_masks_change_in_training_and_rest_in_inference():
    miner, _ = miner_of(np.full((3, 2), 0.6, np.float32), mask="random")
    draws = {miner(X, training=True).numpy().tobytes() for _ in range(8)}
    assert len(draws) > 1
    np.testing.assert_allclose(miner(X), X @ W, rtol=1e-6)


@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_the_penalty_is_a_sum_over_every_score(penalty, data):
    p = np.array([[0.2, 0.9], [0.5, 0.6], [1.0, 0.0]], np.float32)
    miner, variable = miner_of(p, score_penalty=0.01, penalty=penalty)
    miner.compile(keras.optimizers.SGD(1.0), "mse")
    (key,) = miner.supermask.scores
    miner.supermask.freeze({key: np.zeros((3, 2), bool)})  # no other gradient
    loss = miner.train_on_batch(X, np.zeros((2, 2)))
    total = np.sum(p**2 if penalty == "l2" else p)
    assert loss == pytest.approx(0.01 * total)
    step = 0.02 * p if penalty == "l2" else 0.01 * np.sign(p)
    np.testing.assert_allclose(variable, p - step, rtol=1e-6)


def test_scores_are_projected_in_the_step():
    miner, variable = miner_of(np.full((3, 2), 0.6, np.float32))
    miner.compile(keras.optimizers.SGD(100.0), "mse")
    miner.train_on_batch(X, Y)
    assert set(np.unique(variable)) == {0.0, 1.0}


def test_top_k_scores_are_not_projected():
    miner, variable = miner_of(
        np.full((3, 2), 0.6, np.float32), mask="top_k", sparsity=0.5
    )
    miner.compile(keras.optimizers.SGD(100.0), "mse")
    miner.train_on_batch(X, Y)
    assert np.abs(variable).max() > 1
