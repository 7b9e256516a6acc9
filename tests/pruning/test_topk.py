"""Selection keeps exactly what was asked, under any ties."""

import numpy as np
import pytest

from tf_tickets.pruning import keep_largest


def oracle(scores, keep):
    """Sort by score, then by index; written without the library."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    mask = np.zeros(len(scores), bool)
    mask[order[:keep]] = True
    return mask


@pytest.mark.parametrize("keep", [0, 1, 7, 499, 500])
@pytest.mark.parametrize("kind", ["distinct", "equal", "zeros", "few_values"])
def test_keeps_the_largest_and_of_equal_ones_the_first(kind, keep):
    rng = np.random.default_rng(0)
    scores = {
        "distinct": rng.normal(size=500),
        "equal": np.full(500, 3.0),
        "zeros": np.where(rng.random(500) < 0.4, 0, rng.random(500)),
        "few_values": rng.integers(0, 3, 500).astype(float),
    }[kind]
    mask = keep_largest(scores.astype(np.float32), keep)
    assert mask.sum() == keep
    np.testing.assert_array_equal(mask, oracle(scores.astype("f4"), keep))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("fraction", [1e-5, 0.014, 0.5, 0.99999])
@pytest.mark.parametrize("kind", ["distinct", "equal", "zeros", "inactive"])
def test_large_inputs_agree_with_a_stable_sort(kind, fraction, dtype):
    # Large enough for the sampled bracket.
    n = 400_000
    rng = np.random.default_rng(1)
    scores = np.abs(rng.normal(size=n))
    if kind == "equal":
        scores[:] = 1
    elif kind == "zeros":
        scores[rng.random(n) < 0.4] = 0
    elif kind == "inactive":
        scores[rng.random(n) < 0.9] = -np.inf
    scores = scores.astype(dtype)
    keep = int(n * fraction)
    expected = np.zeros(n, bool)
    expected[np.argsort(-scores, kind="stable")[:keep]] = True
    np.testing.assert_array_equal(keep_largest(scores, keep), expected)


def test_an_adversarial_order_cannot_fool_the_sample():
    # The sample's positions are fixed, so put the large scores elsewhere.
    n = 400_000
    picks = np.random.default_rng(0).integers(0, n, 1 << 17)
    scores = np.arange(n, dtype=np.float32)
    scores[picks] = -1
    mask = keep_largest(scores, 1000)
    assert mask.sum() == 1000
    assert scores[mask].min() > scores[~mask].max()


@pytest.mark.parametrize("scores", [[1.0], [0.0], [-1.0]])
def test_one_element(scores):
    assert keep_largest(np.array(scores), 1).tolist() == [True]
    assert keep_largest(np.array(scores), 0).tolist() == [False]


@pytest.mark.parametrize("keep", [-1, 4])
def test_an_impossible_count_is_refused(keep):
    with pytest.raises(ValueError, match=f"Received: keep={keep}"):
        keep_largest(np.ones(3), keep)
