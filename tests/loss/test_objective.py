"""The loss of other weights, seen through the scores it gives."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests.conftest import POINTS, compiled, mlp
from tests.pruning.criteria.oracle import (
    all_true,
    difference,
    flat,
    kernels,
    numpy_gradient,
    numpy_loss,
    tiny_net,
)
from tf_tickets.loss.batches import Batch
from tf_tickets.loss.objective import Objective, mean_over, value_and_gradient
from tf_tickets.pruning import grasp, snip


def test_regularization_counts():
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


def test_half_precision_does_not_lose_small_scores():
    keras.mixed_precision.set_global_policy("mixed_float16")
    model = compiled(mlp())
    for layer in (model.get_layer("hidden"), model.get_layer("head")):
        layer.kernel.assign(layer.kernel * 1e-3)
    half = flat(grasp(model, all_true(model), data=POINTS, training=False))
    keras.mixed_precision.set_global_policy("float32")
    twin = compiled(mlp())
    twin.set_weights(model.get_weights())
    full = flat(grasp(twin, all_true(twin), data=POINTS, training=False))
    np.testing.assert_allclose(half, full, rtol=1e-5)


def test_weights_in_half_precision_have_scores_in_single():
    keras.config.set_dtype_policy("bfloat16")
    model = compiled(mlp())
    scores = grasp(model, all_true(model), data=POINTS, training=False)
    keras.config.set_dtype_policy("float32")
    twin = compiled(mlp())
    twin.set_weights([np.asarray(v, "float32") for v in model.weights])
    full = grasp(twin, all_true(twin), data=POINTS, training=False)
    np.testing.assert_allclose(flat(scores), flat(full), rtol=1e-5)
    keras.config.set_dtype_policy("bfloat16")
    ticket = tt.prune(model, 0.5, criterion="synflow", iterations=2)
    assert ticket.kept == 192


def test_a_loss_of_your_own_needs_no_compile():
    model, w, (x, y) = tiny_net("float64")
    bare = keras.models.clone_model(model)
    bare.set_weights(model.get_weights())
    expected = flat(snip(model, all_true(model), data=(x, y)))

    def loss(y_true, z):
        return keras.losses.sparse_categorical_crossentropy(
            y_true, z, from_logits=True
        )

    scores = flat(snip(bare, all_true(bare), data=(x, y), loss=loss))
    np.testing.assert_allclose(scores, expected, rtol=1e-9)


def test_the_gradient_is_dense_and_zero_where_nothing_depends_on_it():
    table = tf.constant(np.ones((5, 2), "float32"))
    value, slopes = value_and_gradient(
        lambda at: tf.reduce_sum(3 * tf.gather(at["table"], [1, 1, 4])),
        {"table": table, "idle": tf.ones(3)},
    )
    assert float(value) == 18
    expected = np.zeros((5, 2))
    expected[1], expected[4] = 6, 3
    np.testing.assert_array_equal(slopes["table"].numpy(), expected)
    assert isinstance(slopes["table"], tf.Tensor)
    np.testing.assert_array_equal(slopes["idle"].numpy(), np.zeros(3))


def test_gradient_and_hessian_product_against_differences():
    model, w, (x, y) = tiny_net("float64")
    objective = Objective(model, needed_by="test")
    values = objective.values({})
    keys = objective.trainable()
    batch = Batch(tf.constant(x), tf.constant(y))
    loss, slopes = objective.value_and_gradient(values, keys, batch)
    assert float(loss) == pytest.approx(numpy_loss(w, x, y))
    np.testing.assert_allclose(flat(slopes), numpy_gradient(w, x, y))
    v = np.random.default_rng(1).normal(size=24)
    first, bias, last = np.split(v, [12, 16])
    parts = first.reshape(3, 4), bias, last.reshape(4, 2)
    vector = dict(zip(keys, map(tf.constant, parts), strict=True))
    product = objective.hessian_product(values, keys, vector, batch)
    step = 1e-5
    expected = numpy_gradient(w + step * v, x, y) - numpy_gradient(
        w - step * v, x, y
    )
    np.testing.assert_allclose(
        flat(product), expected / (2 * step), rtol=1e-6, atol=1e-9
    )


def test_a_mean_counts_samples_and_not_batches():
    parts = [np.array([1.0, 2.0, 3.0]), np.array([10.0])]
    mean = mean_over(
        [Batch(tf.constant(part)) for part in parts],
        lambda batch: {"a": tf.reduce_mean(batch.x)},
    )
    assert float(mean["a"]) == 4.0
