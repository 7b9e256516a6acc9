"""SNIP, GraSP and ProsPr against brute force, on models of every kind."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests.conftest import batches, compiled, mlp
from tests.pruning.kinds import KINDS, X, Y, only_read
from tf_tickets.pruning import grasp, prospr, snip

CRITERIA = {"snip": snip, "grasp": grasp, "prospr": prospr}
SIZES = (3, 4, 2)


# The oracle: a 3-4-2 tanh classifier in NumPy. Complex steps make its
# gradient exact without any differentiation rule.
def numpy_loss(w, x, y, temperature=1.0):
    first, bias, last = np.split(w, [12, 16])
    hidden = np.tanh(x @ first.reshape(3, 4) + bias)
    z = hidden @ last.reshape(4, 2) / temperature
    normalizer = np.log(np.exp(z).sum(1))
    return (normalizer - z[np.arange(len(y)), y]).mean()


def numpy_gradient(w, *data, **options):
    step = 1e-30
    return np.array(
        [
            numpy_loss(w + 1j * step * unit, *data, **options).imag / step
            for unit in np.eye(w.size)
        ]
    )


def difference(function, w, step=1e-5):
    return np.array(
        [
            (function(w + step * e) - function(w - step * e)) / (2 * step)
            for e in np.eye(w.size)
        ]
    )


def tiny_net(dtype):
    """The same net in Keras, its weights as one vector, data."""
    model = keras.Sequential(
        [
            keras.Input((3,), dtype=dtype),
            keras.layers.Dense(4, activation="tanh", dtype=dtype),
            keras.layers.Dense(2, use_bias=False, dtype=dtype),
        ]
    )
    rng = np.random.default_rng(5)
    w = rng.normal(size=24)
    first, bias, last = np.split(w, [12, 16])
    model.set_weights([first.reshape(3, 4), bias, last.reshape(4, 2)])
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(True, dtype=dtype)
    )
    return model, w, (rng.normal(size=(8, 3)), rng.integers(0, 2, 8))


@pytest.fixture
def tiny():
    return tiny_net("float64")


def kernels(vector):
    return np.r_[vector[:12], vector[16:]]


def flat(scores):
    return np.concatenate([s.ravel() for s in scores.values()])


def all_true(model):
    return {
        k: np.ones(v.shape, bool) for k, v in tt.prunable_weights(model).items()
    }


def test_snip_is_the_slope_of_the_loss_in_the_mask(tiny):
    model, w, data = tiny
    slope = difference(lambda c: numpy_loss(c * w, *data), np.ones(24))
    scores = snip(model, all_true(model), data=data)
    np.testing.assert_allclose(flat(scores), np.abs(kernels(slope)), rtol=1e-6)


def test_snip_scores_the_masked_model(tiny):
    model, w, data = tiny
    masks = all_true(model)
    first, last = masks
    masks[first][0] = False
    m = np.ones(24)
    m[:4] = 0
    slope = difference(lambda c: numpy_loss(c * w * m, *data), np.ones(24))
    scores = snip(model, masks, data=data)
    np.testing.assert_allclose(
        flat(scores), np.abs(kernels(slope)), rtol=1e-6, atol=1e-12
    )


@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_grasp_is_weight_times_hessian_times_gradient(tiny, temperature):
    model, w, data = tiny
    slope = functools.partial(numpy_gradient, temperature=temperature)
    g = slope(w, *data)
    frozen = np.zeros(24)  # the bias is not among the weights that are scored
    frozen[12:16] = 1
    g = np.where(frozen, 0, g)
    hessian = difference(lambda v: slope(v, *data), w)
    scores = grasp(model, all_true(model), data=data, temperature=temperature)
    np.testing.assert_allclose(
        flat(scores), kernels(w * (hessian @ g)), rtol=1e-5, atol=1e-14
    )


def test_temperature_means_the_same_for_probabilities_and_logits(tiny):
    model, w, data = tiny
    expected = flat(grasp(model, all_true(model), data=data))
    model.layers[-1].activation = keras.activations.softmax
    model.compile(loss="sparse_categorical_crossentropy")
    scores = flat(grasp(model, all_true(model), data=data))
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_prospr_is_the_slope_through_two_steps_of_training(tiny, momentum):
    model, w, (x, y) = tiny
    parts = [(x[:3], y[:3]), (x[3:6], y[3:6]), (x[6:], y[6:])]

    def after_training(c):
        v, velocity = c * w, 0.0
        for part in parts[:2]:
            velocity = momentum * velocity + numpy_gradient(v, *part)
            v = v - 0.3 * velocity
        return numpy_loss(v, *parts[2])

    slope = difference(after_training, np.ones(24))
    options = dict(data=parts, steps=2, learning_rate=0.3, momentum=momentum)
    scores = prospr(model, all_true(model), **options)
    np.testing.assert_allclose(flat(scores), np.abs(kernels(slope)), rtol=1e-6)
    # Without the Hessians it is another number, so the test can tell.
    other = flat(prospr(model, all_true(model), **options, first_order=True))
    assert not np.allclose(other, flat(scores), rtol=1e-2)


def test_prospr_trains_under_the_mask(tiny):
    model, w, (x, y) = tiny
    masks = all_true(model)
    m = np.ones(24)
    m[:4] = 0
    masks[next(iter(masks))][0] = False

    def after_training(c):
        v = c * w * m
        for _ in range(2):
            v = v - 0.3 * m * numpy_gradient(v, x, y)
        return numpy_loss(v, x, y)

    scores = prospr(
        model, masks, data=(x, y), steps=2, learning_rate=0.3, momentum=0.0
    )
    slope = difference(after_training, np.ones(24))
    np.testing.assert_allclose(
        flat(scores), np.abs(kernels(slope)), rtol=1e-6, atol=1e-12
    )


def test_regularisation_counts():
    model, w, (x, y) = tiny_net("float32")
    model.layers[0].kernel.regularizer = keras.regularizers.L2(0.1)
    slope = difference(
        lambda c: numpy_loss(c * w, x, y) + 0.1 * ((c * w)[:12] ** 2).sum(),
        np.ones(24),
    )
    scores = snip(model, all_true(model), data=(x, y))
    np.testing.assert_allclose(flat(scores), np.abs(kernels(slope)), rtol=1e-4)


def test_losses_that_layers_add_count():
    model, w, (x, y) = tiny_net("float32")
    model.layers[0].activity_regularizer = keras.regularizers.L2(0.1)
    # Before 3.13 Keras adds the samples up, now it takes their mean.
    samples = 1 if keras.version() < "3.13" else len(x)

    def loss(c):
        hidden = np.tanh(x @ (c * w)[:12].reshape(3, 4) + w[12:16])
        return numpy_loss(c * w, x, y) + 0.1 * (hidden**2).sum() / samples

    slope = difference(loss, np.ones(24))
    scores = snip(model, all_true(model), data=(x, y))
    np.testing.assert_allclose(flat(scores), np.abs(kernels(slope)), rtol=1e-4)
    assert len(model.losses) <= 1


@pytest.mark.parametrize("criterion", ["snip", "grasp"])
def test_batches_cut_otherwise_score_the_same(tiny, criterion):
    model, _, (x, y) = tiny
    score = functools.partial(CRITERIA[criterion], model, all_true(model))
    whole = flat(score(data=(x, y)))
    uneven = [(x[:5], y[:5]), (x[5:], y[5:])]
    for data, options in [
        ((x, y), {"batch_size": 3}),
        (uneven, {}),
        (tf.data.Dataset.from_tensor_slices((x, y)).batch(4), {}),
        (batches(x, y, 4).repeat(), {"batches": 2}),
    ]:
        np.testing.assert_allclose(
            flat(score(data=data, **options)), whole, rtol=1e-9, atol=1e-18
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_model_of_any_kind_is_scored_and_only_read(criterion, kind):
    model, data = KINDS[kind]()
    options = {"learning_rate": 0.01} if criterion == "prospr" else {}
    with only_read(model):
        ticket = tt.prune(
            model,
            0.5,
            criterion=functools.partial(CRITERIA[criterion], **options),
            data=data,
        )
    assert ticket.kept == round(ticket.size / 2)
    assert ticket.metadata["criterion"] == criterion
    for key, scores in ticket.scores.items():
        assert np.isfinite(scores).all()
        assert scores.dtype == np.float32
        assert np.count_nonzero(scores), key
    ticket.apply(model)
    model.fit(*data, verbose=0)  # and it still trains
    assert tt.Ticket.from_model(model).kept <= ticket.kept


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("kind", ["sequential", "functional"])
def test_xla_scores_what_eager_does(criterion, kind):
    model, data = KINDS[kind]()
    score = functools.partial(CRITERIA[criterion], model, all_true(model))
    options = {"data": data}
    if criterion == "prospr":
        options |= {"learning_rate": 0.01, "steps": 2}
    if kind == "functional":
        options["training"] = False  # XLA draws other dropout
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.moving_mean.assign(layer.moving_mean + 0.1)
    else:
        options["training"] = False
    with only_read(model):
        compiled_scores = flat(score(**options, jit_compile=True))
    eager = flat(score(**options))
    np.testing.assert_allclose(
        compiled_scores, eager, rtol=1e-3, atol=1e-5 * np.abs(eager).max()
    )


def test_half_precision_does_not_lose_small_scores():
    keras.mixed_precision.set_global_policy("mixed_float16")
    model = compiled(mlp())
    for layer in (model.get_layer("hidden"), model.get_layer("head")):
        layer.kernel.assign(layer.kernel * 1e-3)
    half = flat(grasp(model, all_true(model), data=(X, Y), training=False))
    keras.mixed_precision.set_global_policy("float32")
    twin = compiled(mlp())
    twin.set_weights(model.get_weights())
    full = flat(grasp(twin, all_true(twin), data=(X, Y), training=False))
    np.testing.assert_allclose(half, full, rtol=1e-5)


def test_weights_in_half_precision_have_scores_in_single():
    keras.config.set_dtype_policy("bfloat16")
    model = compiled(mlp())
    scores = grasp(model, all_true(model), data=(X, Y), training=False)
    keras.config.set_dtype_policy("float32")
    twin = compiled(mlp())
    twin.set_weights([np.asarray(v, "float32") for v in model.weights])
    full = grasp(twin, all_true(twin), data=(X, Y), training=False)
    np.testing.assert_allclose(flat(scores), flat(full), rtol=1e-5)
    keras.config.set_dtype_policy("bfloat16")
    ticket = tt.prune(model, 0.5, criterion="synflow", iterations=2)
    assert ticket.kept == 192


def test_a_loss_of_your_own_needs_no_compile(tiny):
    model, w, (x, y) = tiny
    bare = keras.models.clone_model(model)
    bare.set_weights(model.get_weights())
    expected = flat(snip(model, all_true(model), data=(x, y)))

    def loss(y_true, z):
        return keras.losses.sparse_categorical_crossentropy(
            y_true, z, from_logits=True
        )

    scores = flat(snip(bare, all_true(bare), data=(x, y), loss=loss))
    np.testing.assert_allclose(scores, expected, rtol=1e-9)


def test_training_mode_sees_batch_statistics():
    model = compiled(mlp())
    shifted = X + 5.0
    inference = flat(snip(model, all_true(model), data=(shifted, Y)))
    training = flat(
        snip(model, all_true(model), data=(shifted, Y), training=True)
    )
    assert not np.allclose(inference, training)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "scores on data.*data=None"),
        (X, "needs labels.*inputs alone"),
        ([X, X], "needs labels"),
        ((X, Y[:-1]), r"one length.*\(12, 8\), \(11,\)"),
        ([], "at least one batch"),
        (batches(X, Y, 4).repeat(), "endless"),
        (iter([(X, Y)]), "read only once"),
        (3.0, "arrays .x, y.*float"),
        ([(X, Y, Y, Y)], "a batch of 4 parts"),
    ],
)
def test_bad_data_is_one_clear_error(criterion, data, message):
    if criterion == "prospr" and message == "endless":
        return  # it takes as many batches as it has steps
    with pytest.raises(ValueError, match=message):
        tt.prune(compiled(mlp()), 0.5, criterion=criterion, data=data)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_model_without_a_loss_is_one_clear_error(criterion):
    model = mlp()
    with pytest.raises(ValueError, match="compile.*mlp.*not compiled"):
        tt.prune(model, 0.5, criterion=criterion, data=(X, Y))
    model.compile("sgd")
    with pytest.raises(ValueError, match="compiled without a loss"):
        tt.prune(model, 0.5, criterion=criterion, data=(X, Y))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_broken_numbers_are_one_clear_error(criterion):
    bad = X.copy()
    bad[3, 3] = np.nan
    with pytest.raises(ValueError, match=f"scores of '{criterion}' are not"):
        tt.prune(compiled(mlp()), 0.5, criterion=criterion, data=(bad, Y))


@pytest.mark.parametrize(
    ("criterion", "options", "message"),
    [
        (grasp, {"temperature": 0}, "temperature=0"),
        (prospr, {"steps": 0}, "steps=0"),
        (prospr, {"learning_rate": 0.0}, "learning_rate=0.0"),
        (prospr, {"momentum": 1.0}, "momentum=1.0"),
        (prospr, {"learning_rate": 1e30}, "Lower `learning_rate`"),
        (snip, {"batch_size": 0}, "batch_size=0"),
        (snip, {"batches": 0}, "batches=0"),
    ],
)
def test_an_option_out_of_range_is_one_clear_error(criterion, options, message):
    model = compiled(mlp())
    with only_read(model), pytest.raises(ValueError, match=message):
        criterion(model, all_true(model), data=(X, Y), **options)
