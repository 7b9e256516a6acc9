"""`prune`: exact masks from real models, and one error for bad input."""

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests.conftest import mlp
from tf_tickets.pruning import CRITERIA, SCOPES, criteria

SPARSITIES = [0.0, 0.5, 0.9, 0.99]


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_every_combination_keeps_the_exact_count(criterion, scope, sparsity):
    model = mlp()
    before = [w.copy() for w in model.get_weights()]
    ticket = tt.prune(model, sparsity, criterion=criterion, scope=scope, seed=3)
    assert ticket.kept == round((1 - sparsity) * (8 * 32 + 32 * 4))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)  # the model is only read


def test_magnitude_keeps_the_largest_weights_of_all_tensors():
    model = mlp()
    ticket = tt.prune(model, sparsity=0.75)
    values = np.concatenate(
        [np.abs(ticket.weights[p]).ravel() for p in ticket.masks]
    )
    kept = np.concatenate([m.ravel() for m in ticket.masks.values()])
    assert kept.sum() == 96
    assert values[kept].min() >= values[~kept].max()


def test_equal_weights_and_exact_zeros_do_not_change_the_count():
    model = mlp()
    hidden, head = model.get_layer("hidden"), model.get_layer("head")
    hidden.kernel.assign(np.full((8, 32), 0.5))
    zeros = np.random.default_rng(0).random((32, 4)) < 0.4
    head.kernel.assign(np.where(zeros, 0, 0.5))
    for sparsity in (0.1, 0.5, 0.83):
        ticket = tt.prune(model, sparsity)
        assert ticket.kept == round((1 - sparsity) * 384)


def test_random_masks_differ_by_seed_and_repeat_with_it():
    model = mlp()

    def masks(seed):
        ticket = tt.prune(model, 0.5, criterion="random", seed=seed)
        return np.concatenate([m.ravel() for m in ticket.masks.values()])

    np.testing.assert_array_equal(masks(1), masks(1))
    assert 0.3 < (masks(1) != masks(2)).mean() < 0.7


def test_what_is_pruned_stays_pruned():
    model = mlp()
    first = tt.prune(model, 0.5, criterion="random", seed=1)
    first.apply(model)
    for criterion in ("magnitude", "random"):
        second = tt.prune(model, 0.8, criterion=criterion, seed=2)
        for path, mask in second.masks.items():
            assert not (mask & ~first.masks[path]).any()


def test_iterations_reach_the_target_through_nested_masks():
    model = mlp()
    calls = []

    def anti_magnitude(model, masks, *, data, seed):
        calls.append(sum(int(m.sum()) for m in masks.values()))
        return {p: -v for p, v in criteria.magnitude(model, masks).items()}

    ticket = tt.prune(model, 0.75, criterion=anti_magnitude, iterations=2)
    assert calls == [384, 192]
    assert ticket.kept == 96


def test_a_criterion_needs_the_shape_of_its_weight():
    with pytest.raises(ValueError, match="must have its shape"):
        tt.prune(
            mlp(),
            0.5,
            criterion=lambda model, masks, **_: dict.fromkeys(
                masks, np.ones(3)
            ),
        )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sparsity": 1.0}, "Received: sparsity=1.0"),
        ({"sparsity": "0.9"}, "Received: sparsity='0.9'"),
        ({"sparsity": None}, "Received: sparsity=None"),
        ({"sparsity": 0.5, "criterion": "size"}, "Received: criterion='size'"),
        ({"sparsity": 0.5, "scope": "net"}, "Received: scope='net'"),
        ({"sparsity": 0.5, "filters": "conv"}, "Received: filters='conv'"),
        ({"sparsity": 0.5, "filters": "("}, "not a regular expression"),
        ({"sparsity": 0.5, "iterations": 0}, "Received: iterations=0"),
        ({"scope": {"conv": 0.5}}, "matches no prunable weight"),
    ],
)
def test_bad_arguments_get_one_clear_error(options, message):
    with pytest.raises(ValueError, match=message):
        tt.prune(mlp(), **options)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(broken):
    model = mlp()
    kernel = np.ones((8, 32))
    kernel[0, 0] = broken
    model.get_layer("hidden").kernel.assign(kernel)
    with pytest.raises(ValueError, match="hidden/kernel"):
        tt.prune(model, 0.5)


def test_a_model_with_nothing_to_prune_is_refused():
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.BatchNormalization()]
    )
    with pytest.raises(ValueError, match="no prunable weights"):
        tt.prune(model, 0.5)
    with pytest.raises(ValueError, match="no weights yet"):
        tt.prune(keras.Sequential([keras.layers.Dense(3)]), 0.5)


def test_the_registries_name_callables():
    assert {"magnitude", "random"} <= set(CRITERIA)
    assert {"layer", "erk"} <= set(SCOPES)
    assert all(callable(c) for c in [*CRITERIA.values(), *SCOPES.values()])
