"""Selection inside a step: to the weight, whatever the scores."""

import numpy as np
import pytest
import tensorflow as tf

from tf_tickets.layers.ranking import largest

RNG = np.random.default_rng(0)
SCORES = {
    "normal": lambda n: RNG.normal(size=n),
    "uniform": lambda n: RNG.random(n),
    "long tail": lambda n: RNG.standard_cauchy(n) ** 3,
    "tiny": lambda n: RNG.normal(size=n) * 1e-38,
    "half zero": lambda n: np.where(RNG.random(n) < 0.5, 0, RNG.random(n)),
    "all equal": lambda n: np.full(n, -0.3),
    "all zero": lambda n: np.zeros(n),
    "two values": lambda n: np.where(RNG.random(n) < 0.5, 0.0, 1.0),
    "few values": lambda n: RNG.integers(-3, 4, n),
    "clipped": lambda n: RNG.beta(0.1, 0.1, n).clip(0.2, 0.8),
    "infinite": lambda n: np.where(RNG.random(n) < 0.1, np.inf, RNG.random(n)),
}


def by_sorting(score, keep):
    """The first ``keep`` in a stable order of falling absolute value."""
    return first(order_of(score), keep).reshape(score.shape)


def order_of(score):
    return np.argsort(-np.abs(score.ravel()), kind="stable")


def first(order, keep):
    mask = np.zeros(order.size, bool)
    mask[order[:keep]] = True
    return mask


@pytest.fixture(scope="module", params=[False, True], ids=["graph", "xla"])
def choose(request):
    """`largest` over tensors of three shapes, compiled once for all cases."""
    shapes = [(7, 11), (1,), (5, 4, 30, 2)]

    def build(pools):
        return tf.function(
            lambda scores, keep: largest(scores, keep, pools),
            jit_compile=request.param,
        )

    return shapes, build([[0], [1], [2]]), build([[1, 0, 2]])


@pytest.mark.parametrize("kind", SCORES)
def test_each_tensor_keeps_exactly_its_first_largest(choose, kind):
    shapes, per_layer, _ = choose
    scores = [
        SCORES[kind](int(np.prod(s))).reshape(s).astype("float32")
        for s in shapes
    ]
    for keep in ([0, 0, 0], [77, 1, 1200], [1, 0, 1199], [38, 1, 17]):
        masks = per_layer(scores, tf.constant(keep))
        for score, mask, k in zip(scores, masks, keep, strict=True):
            np.testing.assert_array_equal(mask, by_sorting(score, k))


@pytest.mark.parametrize("kind", SCORES)
def test_a_pool_ranks_its_tensors_together(choose, kind):
    shapes, _, pooled = choose
    scores = [
        SCORES[kind](int(np.prod(s))).reshape(s).astype("float32")
        for s in shapes
    ]
    flat = np.concatenate([scores[i].ravel() for i in (1, 0, 2)])
    for keep in (0, 1, 13, 640, 1277, 1278):
        masks = pooled(scores, tf.constant([keep]))
        found = np.concatenate([masks[i].numpy().ravel() for i in (1, 0, 2)])
        np.testing.assert_array_equal(found, by_sorting(flat, keep))


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_many_scores_are_ranked_by_way_of_a_sample(jit_compile):
    sizes = (200_000, 90_000)
    assert sum(sizes) > 1 << 18
    per_layer = tf.function(
        lambda scores, keep: largest(scores, keep, [[0], [1]]),
        jit_compile=jit_compile,
    )
    pooled = tf.function(
        lambda scores, keep: largest(scores, keep, [[0, 1]]),
        jit_compile=jit_compile,
    )
    for kind in ("normal", "long tail", "half zero", "all equal", "infinite"):
        scores = [SCORES[kind](n).astype("float32") for n in sizes]
        # A sample at a fixed stride that says the wrong thing.
        scores[0][::61] = 0.0
        orders = [order_of(score) for score in scores]
        of_all = order_of(np.concatenate(scores))
        for keep in ([0, 90_000], [1, 89_999], [4_000, 45_000]):
            masks = per_layer(scores, tf.constant(keep))
            for order, mask, k in zip(orders, masks, keep, strict=True):
                assert (mask.numpy() == first(order, k)).all(), kind
            masks = pooled(scores, tf.constant([sum(keep)]))
            found = np.concatenate([m.numpy() for m in masks])
            assert (found == first(of_all, sum(keep))).all(), kind


def test_a_count_that_changes_needs_no_new_trace():
    traces = []

    @tf.function
    def choose(scores, keep):
        traces.append(1)
        return largest([scores], keep, [[0]])[0]

    scores = tf.constant(SCORES["normal"](50).astype("float32"))
    for keep in range(51):
        assert choose(scores, tf.constant([keep])).numpy().sum() == keep
    assert len(traces) == 1
