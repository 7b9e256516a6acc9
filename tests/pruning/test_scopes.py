"""Budgets: every scope's counts add up to the request, to the weight."""

import numpy as np
import pytest

from tf_tickets.pruning import scopes

SHAPES = {
    "stem": (3, 3, 3, 16),
    "block": (3, 3, 16, 64),
    "wide": (256, 512),
    "head": (64, 10),
    "one": (1, 1),
}
SIZES = {path: int(np.prod(shape)) for path, shape in SHAPES.items()}


def erk_by_bisection(shapes, density):
    """ERK from its definition: find ε with Σ min(1, ε rₗ) nₗ = d N."""
    raw = {p: sum(s) / np.prod(s) for p, s in shapes.items()}
    size = {p: float(np.prod(s)) for p, s in shapes.items()}
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        total = sum(min(1, middle * raw[p]) * size[p] for p in shapes)
        low, high = (
            (middle, high)
            if total < density * sum(size.values())
            else (low, middle)
        )
    return {p: min(1, low * raw[p]) for p in shapes}


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 0.986, 0.9999])
@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
def test_counts_add_up_to_the_request(scope, sparsity):
    found = scopes.pools(scope, SHAPES, sparsity, SIZES)
    assert sorted(p for pool in found for p in pool.paths) == sorted(SHAPES)
    assert sum(pool.keep for pool in found) == round(
        (1 - sparsity) * sum(SIZES.values())
    )
    for pool in found:
        assert 0 <= pool.keep <= sum(SIZES[p] for p in pool.paths)


@pytest.mark.parametrize("density", [0.001, 0.05, 0.3, 0.8, 1.0])
def test_erk_solves_its_equation(density):
    expected = erk_by_bisection(SHAPES, density)
    for path, found in scopes.erk(SHAPES, density).items():
        assert found == pytest.approx(expected[path], rel=1e-6)


def test_layer_scope_gives_each_tensor_its_share_within_one_weight():
    for pool in scopes.pools("layer", SHAPES, 0.9, SIZES):
        assert abs(pool.keep - 0.1 * SIZES[pool.paths[0]]) < 1


def test_counts_never_exceed_what_is_left_of_a_tensor():
    capacity = {**SIZES, "wide": 10, "head": 0}
    found = {
        pool.paths[0]: pool.keep
        for pool in scopes.pools("layer", SHAPES, 0.95, capacity)
    }
    assert found["wide"] <= 10 and found["head"] == 0
    assert sum(found.values()) == round(0.05 * sum(SIZES.values()))


def test_a_mapping_says_it_for_each_tensor_and_leaves_the_others():
    mapping = {"stem": 0.5, "wide|head": 0.9}
    found = {
        pool.paths[0]: pool.keep
        for pool in scopes.pools(mapping, SHAPES, None, SIZES)
    }
    assert found == {
        "stem": 216,
        "block": SIZES["block"],
        "wide": 13107,
        "head": 64,
        "one": 1,
    }


def test_a_callable_decides():
    def last_dense(shapes, density):
        rest = sum(SIZES.values()) - SIZES["head"]
        share = (density * sum(SIZES.values()) - SIZES["head"]) / rest
        return {p: 1.0 if p == "head" else share for p in shapes}

    found = {
        pool.paths[0]: pool.keep
        for pool in scopes.pools(last_dense, SHAPES, 0.9, SIZES)
    }
    assert found["head"] == 640
    assert sum(found.values()) == round(0.1 * sum(SIZES.values()))


@pytest.mark.parametrize(
    "scope, sparsity, message",
    [
        ("glob", 0.5, "`scope` must be one of"),
        ("global", 1.0, r"in \[0, 1\)"),
        ("global", -0.1, r"in \[0, 1\)"),
        ("global", None, r"in \[0, 1\)"),
        ("global", True, r"in \[0, 1\)"),
        ("global", float("nan"), r"in \[0, 1\)"),
        ({"nothing": 0.5}, None, "matches no prunable weight"),
        ({"stem": 1.5}, None, r"scope\['stem'\]"),
        ({}, None, "mapping is empty"),
        ({"stem": 0.5}, 0.5, "as well"),
        (lambda s, d: {"stem": d}, 0.5, "missing or unknown"),
        (lambda s, d: dict.fromkeys(s, 0.9), 0.5, "must add up"),
    ],
)
def test_bad_requests_are_refused(scope, sparsity, message):
    with pytest.raises(
        ValueError, match=f"(?s){message}.*Received|Received.*{message}"
    ):
        scopes.pools(scope, SHAPES, sparsity, SIZES)


@pytest.mark.parametrize("scope", ["global", "layer", {"wide": 0.1}])
def test_a_target_below_the_present_sparsity_is_refused(scope):
    sparsity = None if isinstance(scope, dict) else 0.1
    capacity = {p: n // 10 for p, n in SIZES.items()}
    with pytest.raises(ValueError, match="below the current sparsity"):
        scopes.pools(scope, SHAPES, sparsity, capacity)
