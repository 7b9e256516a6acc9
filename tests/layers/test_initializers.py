"""Start values: sizes from the right fans, distributions, seeds."""

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tf_tickets.layers import Bernoulli, Beta, SignedConstant, Supermask
from tf_tickets.selection import values_of

LAYERS = {
    # layer, input shape, fan in and fan out of each kernel, by hand
    "dense": (lambda: keras.layers.Dense(5), (None, 7), [(7, 5)]),
    "conv": (
        lambda: keras.layers.Conv2D(6, (3, 2)),
        (None, 8, 8, 4),
        [(24, 36)],
    ),
    "grouped": (
        lambda: keras.layers.Conv2D(6, 3, groups=2),
        (None, 8, 8, 4),
        [(18, 54)],
    ),
    "depthwise": (
        lambda: keras.layers.DepthwiseConv2D(3, depth_multiplier=2),
        (None, 8, 8, 4),
        [(9, 72)],
    ),
    "separable": (
        lambda: keras.layers.SeparableConv1D(6, 3),
        (None, 8, 4),
        [(3, 12), (4, 6)],
    ),
    "transposed": (
        lambda: keras.layers.Conv1DTranspose(6, 3),
        (None, 8, 4),
        [(12, 18)],
    ),
    "einsum": (
        lambda: keras.layers.EinsumDense("abc,cde->abde", (None, 3, 5)),
        (None, 2, 8),
        [(8, 15)],
    ),
    "projection": (
        lambda: keras.layers.EinsumDense("abde,dec->abc", (None, 8)),
        (None, 2, 3, 5),
        [(15, 8)],
    ),
    "lstm": (lambda: keras.layers.LSTM(3), (None, 2, 5), [(5, 12), (3, 12)]),
}


def built(name, **options):
    make, shape, fans = LAYERS[name]
    layer = make()
    layer.build(shape)
    mask = Supermask(layer, **options)
    _, weights, scores = mask.ticket_parts()
    return [weights[key] for key in scores], list(scores.values()), fans


@pytest.mark.parametrize("name", LAYERS)
def test_signed_constants_have_the_size_of_the_layers_fan(name):
    kernels, _, fans = built(name)
    for kernel, (fan_in, _) in zip(kernels, fans, strict=True):
        size = np.sqrt(2 / fan_in)
        np.testing.assert_allclose(np.abs(kernel), size, rtol=1e-6)
        assert {-1, 1} == set(np.sign(kernel).ravel())


@pytest.mark.parametrize("name", LAYERS)
def test_the_bound_of_kaiming_scores_is_one_over_the_root_of_the_fan(name):
    _, scores, fans = built(name, mask="top_k", sparsity=0.5)
    for score, (fan_in, _) in zip(scores, fans, strict=True):
        top = np.abs(score).max()
        assert 0.5 / np.sqrt(fan_in) < top <= 1 / np.sqrt(fan_in)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"fan_mode": "fan_out"}, np.sqrt(2 / 36)),
        ({"fan_mode": "fan_avg"}, np.sqrt(2 / 30)),
        ({"gain": 1.0}, np.sqrt(1 / 24)),
        ({"density": 0.02}, np.sqrt(2 / (0.02 * 24))),
    ],
)
def test_fan_gain_and_density_scale_the_constant(options, expected):
    (kernel,), _, _ = built("conv", weights=SignedConstant(**options))
    np.testing.assert_allclose(np.abs(kernel), expected, rtol=1e-6)


def scores_of(scores, mask="threshold", **options):
    layer = keras.layers.Dense(200)
    layer.build((None, 200))
    made = Supermask(layer, scores=scores, mask=mask, **options)
    (values,) = values_of(made.scores).values()
    return values


@pytest.mark.parametrize(
    "scores, mean, variance",
    [
        ("uniform", 1 / 2, 1 / 12),
        ("constant", 1 / 2, 0),
        ("bernoulli", 1 / 2, 1 / 4),
        ("bimodal", 1 / 2, 1 / (4 * 1.2)),
        ("skew", 1 / 6, 5 / (36 * 7)),
        (Beta(2, 6), 1 / 4, 12 / (64 * 9)),
        (Bernoulli(0.1), 0.1, 0.09),
        ("zeros", 0, 0),
    ],
)
def test_score_distributions_have_their_moments(scores, mean, variance):
    values = scores_of(scores)
    assert values.mean() == pytest.approx(mean, abs=0.01)
    assert values.var() == pytest.approx(variance, abs=0.01)
    assert 0 <= values.min() and values.max() <= 1


def test_seeds_decide_and_differ_by_weight_and_purpose():
    def parts(seed):
        model = keras.Sequential(
            [keras.Input((20,))]
            + [keras.layers.Dense(20, use_bias=False) for _ in range(2)]
        )
        _, weights, scores = tt.supermask(
            model, seed=seed
        ).supermask.ticket_parts()
        return [*weights.values(), *scores.values()]

    first, again, other = parts(0), parts(0), parts(1)
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()
    assert (np.sign(first[0]) != np.sign(first[1])).any()
    assert (first[2] != first[3]).any()
    # Scores and signs are independent.
    kept = first[2] > 0.5
    assert abs(np.mean(np.sign(first[0])[kept])) < 0.2


def test_an_initializer_of_keras_draws_frozen_weights():
    (kernel,), _, _ = built("depthwise", weights="he_normal")
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / 9), rel=0.3)


def test_initializers_survive_serialization():
    for one in (SignedConstant("fan_avg", 1.5, 0.1, 3), Bernoulli(0.2, 3)):
        config = keras.initializers.serialize(one)
        copy = keras.initializers.get(config)
        np.testing.assert_array_equal(one((9, 9)), copy((9, 9)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: SignedConstant("fan"),
        lambda: SignedConstant(gain=0),
        lambda: SignedConstant(density=0),
        lambda: Bernoulli(2),
        lambda: Beta(0, 1),
        lambda: scores_of("unifrom"),
        lambda: scores_of(7),
        lambda: scores_of("kaiming_uniform"),
        lambda: scores_of("ones", weights="he"),
        lambda: scores_of(keras.initializers.Constant(1.5)),
        lambda: scores_of(keras.initializers.Constant(float("nan"))),
    ],
)
def test_bad_values_are_refused(make):
    with pytest.raises(ValueError, match="Received: "):
        make()
