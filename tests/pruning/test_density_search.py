"""Searched densities: the gradient by hand, the budget to the weight."""

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests.conftest import compiled, mlp, only_read
from tests.pruning.conftest import X, Y
from tf_tickets.loss.batches import Batch
from tf_tickets.loss.objective import Objective
from tf_tickets.pruning import search_densities
from tf_tickets.pruning.density_search import BernoulliLoss


def split_model(noise=3.0):
    """One branch carries the answer, the other adds noise to it."""
    a, b = keras.Input((16,), name="a"), keras.Input((16,), name="b")
    useful = keras.layers.Dense(1, use_bias=False, name="useful")
    noisy = keras.layers.Dense(1, use_bias=False, name="noisy")
    model = keras.Model([a, b], keras.layers.Add()([useful(a), noisy(b)]))
    useful.kernel.assign(np.ones((16, 1)))
    noisy.kernel.assign(noise * np.ones((16, 1)))
    model.compile(loss="mse")
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(64, 16)).astype("float32") for _ in range(2)]
    return model, (x, x[0].sum(1, keepdims=True))


def test_the_gradient_is_that_of_equation_one():
    """Straight-through, for given draws, by hand: L = mean (x·(w∘m) − y)²."""
    model, ((a, b), y) = split_model()
    keys = list(tt.prunable_weights(model))
    objective = Objective(model, needed_by="test")
    loss = BernoulliLoss(objective, keys, [Batch((a, b), y)], seed=3)
    drawn = {}

    def recorded(values, batch):
        drawn.update({k: np.array(v) for k, v in values.items()})
        return objective.__class__.__call__(objective, values, batch)

    loss.objective = recorded
    loss.objective.model = model
    density = dict(zip(keys, (0.5, 0.25), strict=True))
    loss._slope = loss._slope_of  # untraced, to see what was drawn
    value, slopes = loss.slope(density, 0)
    weights = dict(zip(keys, (1.0, 3.0), strict=True))
    error = a @ drawn[keys[0]] + b @ drawn[keys[1]] - y
    assert value == pytest.approx((error**2).mean(), rel=1e-5)
    for key, x in zip(keys, (a, b), strict=True):
        assert set(np.unique(drawn[key])) <= {0, weights[key]}
        by_hand = (2 * error * (x @ np.full((16, 1), weights[key]))).mean()
        assert slopes[key] == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_descent_moves_the_budget_to_where_it_helps(jit_compile):
    model, data = split_model()
    keys = list(tt.prunable_weights(model))
    start = dict.fromkeys(keys, 0.5)
    with only_read(model):
        found = search_densities(
            model,
            start,
            method="gradient",
            data=data,
            steps=60,
            jit_compile=jit_compile,
        )
    useful, noisy = found.densities.values()
    assert useful > 0.8 and noisy < 0.2
    assert sum(found.counts.values()) == 16  # the budget, to the weight
    assert found.best < found.start and len(found.history) == 60
    ticket = tt.prune(model, scope=found.sparsities, criterion="random")
    assert ticket.densities() == pytest.approx(found.densities)


def test_the_ball_is_searched_by_loss_or_by_training():
    model, data = split_model()
    start = tt.prune(model, 0.5, criterion="random", scope="layer")
    by_loss = search_densities(
        model, start, method="ball", data=data, radius=1.0, candidates=5
    )
    losses = [row["loss"] for row in by_loss.history]
    assert len(losses) == 6 and by_loss.best == min(losses)
    assert by_loss.best < by_loss.start == losses[0]

    seen = []

    def train(model):
        kernel = model.get_layer("useful").kernel.numpy()
        assert (kernel == 0).any()  # the ticket is in force
        model.fit(*data, verbose=0)
        seen.append(int((kernel != 0).sum()))
        return seen[-1]

    model.compile("sgd", "mse")
    model.fit(*data, verbose=0)  # there is optimizer state to put back
    with only_read(model, metrics=False):
        by_training = search_densities(
            model, start, method="ball", train=train, radius=1.0, candidates=5
        )
    assert by_training.best == max(seen) and by_training.start == 8
    assert {sum(f.counts.values()) for f in (by_loss, by_training)} == {16}


def test_a_tensor_does_not_die_on_the_way():
    model = compiled(mlp())
    start = tt.prune(model, 0.95, criterion="random", scope="erk")
    found = search_densities(
        model,
        start,
        method="gradient",
        data=(X, Y),
        steps=20,
        learning_rate=0.5,
    )
    assert min(found.counts.values()) >= 1
    assert sum(found.counts.values()) == start.kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "grid"}, "method='grid'"),
        ({"method": "gradient"}, "descends a loss on data"),
        ({"method": "ball"}, "needs `train`"),
        ({"method": "gradient", "data": 1, "train": max}, "`train` is for"),
        ({"method": "ball", "train": max, "radius": 0}, "radius=0"),
        ({"method": "ball", "train": max, "candidates": 0}, "candidates=0"),
        ({"method": "ball", "train": lambda m: None}, "finite number.*None"),
        ({"method": "ball", "data": X}, "needs labels"),
    ],
)
def test_a_bad_search_is_one_clear_error(options, message):
    model = compiled(mlp())
    start = tt.prune(model, 0.5)
    with (
        only_read(model, metrics=False),
        pytest.raises(ValueError, match=message),
    ):
        search_densities(model, start, **options)


def test_a_start_of_another_model_is_one_clear_error():
    model = compiled(mlp())
    with pytest.raises(ValueError, match="nowhere"):
        search_densities(model, {"nowhere": 0.5}, method="ball", train=max)
    with pytest.raises(ValueError, match="densities in"):
        key = next(iter(tt.prunable_weights(model)))
        search_densities(model, {key: 0.0}, method="ball", train=max)
