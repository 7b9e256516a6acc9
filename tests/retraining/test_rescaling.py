import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests import gallery
from tests.conftest import batches, compiled, difference, images, mlp
from tf_tickets.retraining import Rescaling, rescale_initialization
from tf_tickets.selection import named_weights

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def linear(inputs=3):
    return keras.Sequential(
        [keras.Input((inputs,)), keras.layers.Dense(1, use_bias=False)]
    )


@pytest.mark.parametrize(
    "optimizer, clip, size",
    [("sgd", 1e6, 1.0), ("adam", 1e6, 1.0), ("sgd", None, 0.3)],
)
def test_the_factors_are_those_of_the_published_algorithm(
    optimizer, clip, size
):
    """Written out in NumPy for one tensor and a squared loss.

    Once with the default clipping, where some slopes are above 1.
    """

    def norm_of(g):
        return np.sqrt((g**2).sum()) if optimizer == "sgd" else np.abs(g).sum()

    def first_step(g):
        return g / norm_of(g) if optimizer == "sgd" else np.sign(g)

    rng = np.random.default_rng(0)
    x = size * rng.normal(size=(12, 3))
    y = x @ np.array([[1.0], [-2.0], [0.5]])
    model = linear()
    start = np.array([[2.0], [3.0], [-2.0]])
    model.layers[0].kernel.assign(start)
    eta, rate = 0.5, 0.05
    slope = x[:8].T @ (x[:8] @ start - y[:8]) / 4
    gamma = 0.9 * norm_of(slope)  # in sight from above
    rescaling = rescale_initialization(
        model,
        (x.astype("float32"), y.astype("float32")),
        iterations=12,
        step_size=eta,
        gradient_norm=gamma,
        optimizer=optimizer,
        learning_rate=rate,
        batch_size=4,
        loss="mse",
        **({} if clip is None else {"clip": clip}),
    )

    parts = [(x[i : i + 4], y[i : i + 4]) for i in (0, 4, 8)] * 20
    feed = iter(parts)

    def gradient(w, x, y):
        return 2 * x.T @ (x @ w - y) / len(x)

    alpha, second, kinds, losses, sizes = 1.0, 0.0, [], [], []
    first = {True: 0.0, False: 0.0}
    steps = {True: 0, False: 0}
    for _ in range(12):
        (xa, ya), (xb, yb) = next(feed), next(feed)
        xs, ys = np.vstack([xa, xb]), np.vstack([ya, yb])
        w = alpha * start
        g = gradient(w, xs, ys)
        constrained = bool(norm_of(g) > gamma)
        if constrained:
            hessian = 2 * xs.T @ xs / len(xs)
            slope_at_w = hessian @ first_step(g)
        else:
            xc, yc = next(feed)
            xs, ys = np.vstack([xa, xc]), np.vstack([ya, yc])
            stepped = w - eta * first_step(g)
            slope_at_w = gradient(stepped, xs, ys) / eta
            losses.append(((xs @ stepped - ys) ** 2).mean())
        # The published form of the chain rule: (g . w) |w0| / |w|.
        slope = (slope_at_w * w).sum() * np.sqrt((start**2).sum())
        slope = slope / np.sqrt((w**2).sum())
        sizes.append(abs(slope))
        slope = np.clip(slope, -(clip or 1.0), clip or 1.0)
        steps[constrained] += 1
        first[constrained] = 0.9 * first[constrained] + 0.1 * slope
        second = 0.999 * second + 0.001 * slope**2
        mean = first[constrained] / (1 - 0.9 ** steps[constrained])
        spread = second / (1 - 0.999 ** sum(steps.values()))
        alpha = max(alpha - rate * mean / (np.sqrt(spread) + 1e-8), 0.01)
        kinds.append(constrained)
    (learned,) = rescaling.scales.values()
    assert learned == pytest.approx(alpha, abs=1e-4)
    assert [row["constrained"] for row in rescaling.history] == kinds
    found = [r["loss_after"] for r in rescaling.history if "loss_after" in r]
    assert found == pytest.approx(losses, rel=1e-3)
    assert set(kinds) == {True, False}  # both kinds were seen
    if clip is None:  # so that another limit would be another result
        assert min(sizes) < 0.9 and max(sizes) > 1.5, sizes
    np.testing.assert_allclose(
        model.layers[0].kernel.numpy(), alpha * start, rtol=1e-3
    )


def loss_after_a_step(model, ticket, train, held):
    """One masked, normalized gradient step; then the loss on other data."""
    start = model.get_weights()
    named = named_weights(model)
    keys = [k for k, v in named.items() if v.trainable]
    with tf.GradientTape() as tape:
        loss = CROSS_ENTROPY(train[1], model(train[0], training=True))
    slopes = [
        s.numpy() * ticket.masks.get(k, True)
        for k, s in zip(
            keys,
            tape.gradient(loss, [named[k].value for k in keys]),
            strict=True,
        )
    ]
    norm = np.sqrt(sum((s**2).sum() for s in slopes))
    for key, slope in zip(keys, slopes, strict=True):
        named[key].assign(named[key] - 0.1 * slope / norm)
    after = float(CROSS_ENTROPY(held[1], model(held[0], training=True)))
    model.set_weights(start)
    return after


@pytest.mark.parametrize("seed", range(5))
def test_the_first_step_lowers_the_loss_further_on_held_out_data(seed):
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(512, 8)).astype("float32")
    y = (x @ rng.normal(size=(8, 4))).argmax(1)
    model = mlp(64)
    ticket = tt.prune(model, sparsity=0.8)
    ticket.apply(model)
    model.get_layer("drop").rate = 0.0
    train, held = (x[:256], y[:256]), (x[256:], y[256:])
    plain = loss_after_a_step(model, ticket, train, held)
    rescale_initialization(
        model, train, iterations=60, loss=CROSS_ENTROPY, batch_size=64
    )
    assert loss_after_a_step(model, ticket, train, held) < plain - 0.01


def test_pruned_weights_never_leak_into_the_look_ahead():
    """The factors are those of the network without what is pruned."""
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(96, 6)).astype("float32")
    y = rng.integers(0, 3, 96)

    def net(inputs, hidden):
        return keras.Sequential(
            [
                keras.Input((inputs,)),
                keras.layers.Dense(hidden, "tanh", use_bias=False, name="a"),
                keras.layers.Dense(3, use_bias=False, name="b"),
            ],
            name="net",
        )

    big, small = net(6, 10), net(4, 5)
    first, second = np.zeros((6, 10), bool), np.zeros((10, 3), bool)
    first[:4, :5] = True
    second[:5] = True
    masks = {"net/a/kernel": first, "net/b/kernel": second}
    ticket = tt.Ticket(
        masks, {k: v.numpy() for k, v in named_weights(big).items()}
    )
    small.get_layer("a").kernel.assign(big.get_layer("a").kernel[:4, :5])
    small.get_layer("b").kernel.assign(big.get_layer("b").kernel[:5])
    options = {
        "iterations": 20,
        "step_size": 1.0,
        "batch_size": 16,
        "loss": CROSS_ENTROPY,
    }
    for optimizer in ("sgd", "adam"):
        options |= {"optimizer": optimizer, "gradient_norm": 100.0}
        whole = net(6, 10)
        masked = rescale_initialization(whole, (x, y), ticket=ticket, **options)
        part = net(4, 5)
        part.set_weights(small.get_weights())
        compact = rescale_initialization(part, (x[:, :4], y), **options)
        assert list(masked.scales.values()) == pytest.approx(
            list(compact.scales.values()), abs=1e-4
        )
        for key, mask in masks.items():
            assert (named_weights(whole)[key].numpy()[~mask] == 0).all()


def test_linear_scaling_is_absorbed_by_batch_normalization():
    model = gallery.block()
    x = images()[0]
    before = model(x, training=True).numpy()
    Rescaling({"conv1/kernel": 0.3, "conv2/kernel": 7.0}).apply(model)
    np.testing.assert_allclose(model(x, training=True), before, atol=2e-2)
    Rescaling({"head/kernel": 7.0}).apply(model)
    assert np.abs(model(x, training=True) - before).max() > 0.1


def test_scale_one_changes_nothing():
    model, same = gallery.block(), gallery.block()
    same.set_weights(model.get_weights())
    Rescaling(dict.fromkeys(named_weights(same), 1.0)).apply(same)
    assert difference(model, same, images()[0]) == 0


def test_only_trainable_weights_change_and_only_by_their_factor(data):
    model = compiled(mlp(), "adam")
    x, y = data
    before = {k: v.numpy() for k, v in named_weights(model).items()}
    seeds = model.get_layer("drop").seed_generator.state.numpy()
    seen = []
    rescaling = rescale_initialization(
        model, batches(x, y), iterations=5, on_iteration=seen.append
    )
    after = {k: v.numpy() for k, v in named_weights(model).items()}
    for key, value in before.items():
        np.testing.assert_allclose(
            after[key], value * rescaling.scales.get(key, 1.0), rtol=1e-5
        )
    # Biases and offsets begin at zero, statistics are not trained.
    assert [k.split("/", 1)[1] for k in rescaling.scales] == [
        "hidden/kernel",
        "norm/gamma",
        "head/kernel",
    ]
    assert [row["iteration"] for row in seen] == [1, 2, 3, 4, 5]
    assert seen == list(rescaling.history)
    assert model.get_layer("drop").rate == 0.2
    np.testing.assert_array_equal(
        model.get_layer("drop").seed_generator.state.numpy(), seeds
    )


def test_the_rescaled_ticket_has_the_same_masks(data):
    model = compiled(mlp())
    ticket = tt.prune(model, sparsity=0.75)
    rescaling = rescale_initialization(model, data, ticket=ticket, iterations=3)
    scaled = rescaling.ticket(ticket)
    for key, mask in ticket.masks.items():
        np.testing.assert_array_equal(mask, scaled.masks[key])
        np.testing.assert_allclose(
            named_weights(model)[key].numpy(),
            np.where(mask, scaled.weights[key], 0),
            rtol=1e-6,
        )
    assert scaled.metadata["rescaled"] == dict(rescaling.scales)
    scaled.apply(model)


def test_xla_learns_the_same_factors(data):
    model = compiled(mlp())
    start = model.get_weights()
    learned = []
    for jit in (False, True):
        model.set_weights(start)
        rescaling = rescale_initialization(
            model, data, iterations=4, batch_size=16, jit_compile=jit
        )
        learned.append(list(rescaling.scales.values()))
    assert learned[0] == pytest.approx(learned[1], abs=1e-3)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"iterations": 0}, "iterations"),
        ({"iterations": True}, "iterations"),
        ({"step_size": 0.0}, "step_size"),
        ({"gradient_norm": -1.0}, "gradient_norm"),
        ({"optimizer": "rmsprop"}, "'sgd' or 'adam'"),
        ({"loss": None}, "needs a loss"),
        ({"data": None}, "data=None"),
        ({"data": np.ones((8, 8), "float32")}, "needs labels"),
    ],
)
def test_bad_requests_get_one_clear_error(data, options, message):
    given = {"data": data, "loss": CROSS_ENTROPY, **options}
    with pytest.raises(ValueError, match=message):
        rescale_initialization(mlp(), given.pop("data"), **given)


def test_a_loss_that_overflows_is_said_and_changes_nothing(data):
    model = mlp()
    before = model.get_weights()
    x, y = data
    with pytest.raises(ValueError, match="not finite"):
        rescale_initialization(
            model, (x * np.nan, y), iterations=2, loss=CROSS_ENTROPY
        )
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="not in the model"):
        Rescaling({"other/kernel": 2.0}).apply(model)
