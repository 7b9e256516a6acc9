"""Selection keeps exactly what was asked, under any ties."""

import ml_dtypes
import numpy as np
import pytest

from tf_tickets.pruning import keep_largest, topk
from tf_tickets.pruning.scopes import Pool
from tf_tickets.pruning.topk import select


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


def several(kind, dtype, rng):
    """Scores of tensors of many sizes, an empty one among them."""
    shapes = {"a": (300, 700), "b": (0, 3), "c": (7,), "d": (150, 40, 50)}
    scores = {}
    for path, shape in shapes.items():
        one = np.abs(rng.normal(size=shape)) * 1000
        if kind == "equal":
            one = np.ones(shape)
        elif kind == "few_values":
            one = rng.integers(0, 3, shape)
        elif kind == "infinite":
            one = np.where(rng.random(shape) < 0.3, -np.inf, one)
        scores[path] = one.astype(dtype)
    return scores


def by_sorting(scores, active, keep):
    """All in one array: sort by score, then by index."""
    flat = np.concatenate([s.ravel() for s in scores.values()])
    may = np.concatenate([m.ravel() for m in active.values()])
    order = np.argsort(-flat.astype("float64"), kind="stable")
    mask = np.zeros(flat.size, bool)
    mask[order[may[order]][:keep]] = True
    ends = np.cumsum([s.size for s in scores.values()])[:-1]
    return {
        path: part.reshape(scores[path].shape)
        for path, part in zip(scores, np.split(mask, ends), strict=True)
    }


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "masked"])
@pytest.mark.parametrize(
    "kind,dtype",
    [
        ("distinct", "float32"),
        ("distinct", "int32"),
        ("distinct", "float16"),
        ("equal", "float32"),
        ("few_values", "float32"),
        ("few_values", "int8"),
        ("infinite", "float64"),
    ],
)
def test_tensors_together_agree_with_one_stable_sort(kind, dtype, dense):
    rng = np.random.default_rng(3)
    scores = several(kind, dtype, rng)
    active = {
        path: np.ones(s.shape, bool) if dense else rng.random(s.shape) < 0.4
        for path, s in scores.items()
    }
    count = sum(int(m.sum()) for m in active.values())
    for keep in (0, 1, 5, count // 10, count // 2, count - 3, count):
        masks = select(scores, [Pool(tuple(scores), keep)], active)
        expected = by_sorting(scores, active, keep)
        for path, mask in masks.items():
            np.testing.assert_array_equal(mask, expected[path], str(keep))


def test_types_are_compared_as_numbers():
    rng = np.random.default_rng(4)
    scores = several("few_values", "float32", rng)
    scores["a"] = scores["a"].astype("float64") + 1e-12
    scores["d"] = scores["d"].astype(ml_dtypes.bfloat16)
    active = {path: np.ones(s.shape, bool) for path, s in scores.items()}
    keep = 200_000
    masks = select(scores, [Pool(tuple(scores), keep)], active)
    expected = by_sorting(scores, active, keep)
    for path, mask in masks.items():
        np.testing.assert_array_equal(mask, expected[path])


@pytest.mark.parametrize("bracket", [(0, 1), (4000, 4001), (7, 7)])
def test_a_sample_that_misleads_costs_only_time(bracket, monkeypatch):
    low, high = map(np.float32, bracket)
    monkeypatch.setattr(topk, "_bracket", lambda *_: (low, high))
    scores = several("distinct", "float32", np.random.default_rng(5))
    active = {path: s > 1 for path, s in scores.items()}
    masks = select(scores, [Pool(tuple(scores), 100_000)], active)
    for path, mask in by_sorting(scores, active, 100_000).items():
        np.testing.assert_array_equal(masks[path], mask)


@pytest.mark.parametrize("keep", [0, 100, 510_007])
def test_a_score_that_is_no_number_is_met_wherever_it_lies(keep):
    scores = several("distinct", "float32", np.random.default_rng(6))
    scores["d"][149, 39, 49] = np.nan
    active = {path: np.ones(s.shape, bool) for path, s in scores.items()}
    with pytest.raises(ValueError, match="Received: NaN in d"):
        select(scores, [Pool(tuple(scores), keep)], active)


def test_more_than_there_is_cannot_be_kept():
    scores = several("distinct", "float32", np.random.default_rng(7))
    active = {path: np.ones(s.shape, bool) for path, s in scores.items()}
    active["a"][:] = False
    with pytest.raises(ValueError, match="Received: keep=300008"):
        select(scores, [Pool(tuple(scores), 300_008)], active)


def test_a_floor_holds_in_every_tensor_and_the_rest_is_the_best():
    rng = np.random.default_rng(8)
    scores = several("distinct", "float32", rng)
    scores["c"][:] = np.arange(7) / 100  # the smallest of all
    active = {path: np.ones(s.shape, bool) for path, s in scores.items()}
    masks = select(scores, [Pool(tuple(scores), 50_000, 4)], active)
    assert masks["c"].tolist() == [False] * 3 + [True] * 4
    others = {path: s for path, s in scores.items() if path != "c"}
    allowed = {path: active[path] for path in others}
    expected = by_sorting(others, allowed, 49_996)
    for path, mask in expected.items():
        np.testing.assert_array_equal(masks[path], mask)
