import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests import gallery
from tests.analysis.conftest import tiny
from tests.conftest import DieAt, batches, compiled, mlp, only_read
from tf_tickets.analysis import (
    ConnectivityCurve,
    instability,
    linear_connectivity,
)
from tf_tickets.selection import named_weights, values_of


def by_hand(x, y, weights):
    """Loss and error of the tiny network, without Keras, in float64."""
    w1, b1, w2, b2 = (w.astype("float64") for w in weights)
    z = np.tanh(x.astype("float64") @ w1 + b1) @ w2 + b2
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return -np.log(p[np.arange(len(y)), y]).mean(), (z.argmax(1) != y).mean()


def far(model, seed, size=3.0):
    """A network with weights of its own."""
    rng = np.random.default_rng(seed)
    model.set_weights(
        [size * rng.normal(size=w.shape) for w in model.get_weights()]
    )
    return model


def test_it_is_loss_and_error_of_every_network_on_the_line(points):
    first, second = far(tiny(), 1), far(tiny(), 2)
    test = (points[0][::-1] * 1.3, points[1])
    with only_read(first), only_read(second):
        curve = linear_connectivity(
            first, second, points, test_data=test, points=7, batch_size=6
        )
    np.testing.assert_allclose(curve.positions, np.arange(7) / 6)
    ends = first.get_weights(), second.get_weights()
    for prefix, (x, y) in (("", points), ("test_", test)):
        wanted = np.array(
            [
                by_hand(
                    x, y, [a + t * (b - a) for a, b in zip(*ends, strict=True)]
                )
                for t in curve.positions
            ]
        )
        for name, values in zip(("loss", "error"), wanted.T, strict=True):
            np.testing.assert_allclose(
                curve.curves[prefix + name], values, rtol=1e-5, atol=1e-7
            )
            assert curve.barriers[prefix + name] == pytest.approx(
                values.max() - (values[0] + values[-1]) / 2, abs=1e-6
            )
    assert curve.barrier == curve.barriers["test_error"]
    assert curve.is_stable == (curve.barrier < 0.02)


def test_a_convex_loss_has_no_barrier_between_equally_good_networks(points):
    """The greatest value on a line of a convex function is at an end."""

    def linear(seed):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
        return far(compiled(model), seed)

    curve = linear_connectivity(linear(0), linear(1), points)
    losses = curve.curves["loss"]
    assert losses.max() == max(losses[0], losses[-1])
    assert curve.barriers["loss"] == pytest.approx(
        abs(losses[0] - losses[-1]) / 2
    )


def test_a_network_with_its_units_in_another_order_lies_beyond_a_barrier():
    """It computes the same, and what lies between computes something else."""
    model = compiled(mlp(hidden=32), "adam")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 8)).astype("float32")
    y = np.abs(x[:, :4]).argmax(1)
    model.fit(batches(x, y, 32), epochs=15, verbose=0)
    other = compiled(mlp(hidden=32))
    order = np.random.default_rng(0).permutation(32)
    for (key, value), variable in zip(
        values_of(named_weights(model)).items(), other.weights, strict=True
    ):
        if "head/kernel" in key:
            value = value[order]
        elif value.shape[-1] == 32:
            value = value[..., order]
        variable.assign(value)
    curve = linear_connectivity(model, other, (x, y))
    errors = curve.curves["error"]
    assert errors[0] == errors[-1]
    assert curve.barrier > 0.05 and not curve.is_stable


def test_the_other_end_may_be_a_snapshot_or_weights(points):
    first, second = far(tiny(), 1), far(tiny(), 2)
    wanted = linear_connectivity(first, second, points, points=3).curves
    values = values_of(named_weights(second))
    for end in (tt.Snapshot.take(second), values):
        found = linear_connectivity(first, end, points, points=3).curves
        for name in wanted:
            np.testing.assert_array_equal(found[name], wanted[name])


def test_one_hot_labels_and_an_error_of_ones_own(points):
    x, y = points
    first, second = (far(gallery.tiny(), seed) for seed in (1, 2))
    options = {
        "points": 3,
        "loss": keras.losses.CategoricalCrossentropy(from_logits=True),
    }
    hot = np.eye(3, dtype="float32")[y]
    curve = linear_connectivity(first, second, (x, hot), **options)
    for model, error in zip(
        (first, second), curve.curves["error"][[0, -1]], strict=True
    ):
        assert error == pytest.approx(by_hand(x, y, model.get_weights())[1])
    soft = 0.9 * hot + 0.05
    assert [
        *linear_connectivity(first, second, (x, soft), **options).curves
    ] == ["loss"]
    top_two = linear_connectivity(
        first,
        second,
        (x, hot),
        error=lambda y, z: (
            1 - keras.metrics.top_k_categorical_accuracy(y, z, 2)
        ),
        **options,
    )
    less = curve.curves["error"] - top_two.curves["error"]
    assert (less >= 0).all() and less.any()


def trained(model, data, seed, epochs=3):
    ordered = tt.data.shuffled(data, seed=seed).batch(16)
    options = tf.data.Options()
    options.autotune.enabled = False
    model.fit(ordered.with_options(options), epochs=epochs, verbose=0)


def test_instability_is_the_barrier_between_two_copies(data):
    """As two copies made and trained by hand; the model stays as it was."""
    model = compiled(mlp(), keras.optimizers.SGD(0.5, momentum=0.9))
    tt.prune(model, sparsity=0.5).apply(model)
    trained(model, data, 7, 1)
    start = tt.Snapshot.take(model)
    copies = []
    for seed in (3, 5):
        trained(model, data, seed)
        copies.append(values_of(named_weights(model)))
        start.restore(model)
    with only_read(model, metrics=False):
        slots = [v.numpy() for v in model.optimizer.variables]
        curve = instability(
            model,
            lambda model, seed: trained(model, data, seed),
            data,
            seeds=(3, 5),
            points=5,
        )
        for slot, variable in zip(
            slots, model.optimizer.variables, strict=True
        ):
            np.testing.assert_array_equal(slot, variable)
    ends = [compiled(mlp()) for _ in copies]
    for end, copy in zip(ends, copies, strict=True):
        for variable, value in zip(end.weights, copy.values(), strict=True):
            variable.assign(value)
    wanted = linear_connectivity(*ends, data, points=5)
    for name, values in wanted.curves.items():
        np.testing.assert_allclose(curve.curves[name], values, rtol=1e-5)
    assert curve.barriers["loss"] > 0


def test_the_model_is_put_back_after_an_interrupt(data):
    model = compiled(mlp())

    def broken(model, seed):
        model.fit(batches(*data), epochs=2, verbose=0, callbacks=[DieAt(1)])

    with only_read(model, metrics=False):
        with pytest.raises(KeyboardInterrupt):
            instability(model, broken, data)
    assert not int(model.optimizer.iterations)


def test_a_training_that_compiles_begins_anew_each_time(data):
    model = compiled(mlp())
    steps = []

    def train(model, seed):
        compiled(model, "adam")
        trained(model, data, seed, 1)
        steps.append(int(model.optimizer.iterations))

    with only_read(model, metrics=False):
        instability(model, train, data, points=3)
    assert steps == [4, 4]


def test_the_plot_shows_the_errors_over_their_ends(tmp_path):
    pytest.importorskip("matplotlib")
    at = np.array([0.0, 0.5, 1.0])
    curve = ConnectivityCurve(
        at,
        {
            "loss": at,
            "error": np.array([0.1, 0.2, 0.1]),
            "test_loss": at,
            "test_error": np.array([0.1, 0.4, 0.2]),
        },
    )
    axes = curve.plot(tmp_path / "line.png")
    assert (tmp_path / "line.png").read_bytes()[:4] == b"\x89PNG"
    handles, labels = axes.get_legend_handles_labels()
    assert labels == ["error, barrier 0.1", "test error, barrier 0.25"]
    np.testing.assert_allclose(handles[1].get_ydata(), [0.1, 0.4, 0.2])
    dashed = [one for one in axes.lines if one.get_linestyle() == "--"]
    np.testing.assert_allclose(dashed[1].get_ydata(), [0.1, 0.2])
    assert axes.get_ylabel() == "error"
    only = ConnectivityCurve(at, {"loss": at})
    assert only.plot().get_ylabel() == "loss"
    with pytest.raises(ValueError, match="give linear_connectivity an `error`"):
        _ = only.is_stable


@pytest.mark.parametrize(
    "options, message",
    [
        ({"points": 2}, "points"),
        ({"error": 0.1}, "function of"),
        ({"seeds": (1,)}, "must be two"),
        ({"train": 1}, "function of"),
        ({"train": lambda model, seed: None}, "ended with the same weights"),
    ],
)
def test_bad_requests_get_one_clear_error(points, options, message):
    options = {"train": lambda model, seed: far(model, seed), **options}
    with pytest.raises(ValueError, match=message):
        instability(tiny(), options.pop("train"), points, **options)


def test_ends_that_are_no_pair_are_refused(points, data):
    model = tiny()
    for second, message in (
        (model, "two networks"),
        (mlp(), "do not fit"),
        ({}, "every weight of the first"),
        (3, "must be a Keras model"),
        (far(tiny(), 0, np.nan), "has training diverged"),
    ):
        with pytest.raises(ValueError, match=message):
            linear_connectivity(model, second, points)
