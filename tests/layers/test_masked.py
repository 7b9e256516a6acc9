"""A layer under a fixed mask: pruned weights take no part, the rest train."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests.conftest import batches, compiled, mlp, two_replicas
from tests.gallery import GALLERY
from tf_tickets.layers import Masked

MASK = np.array([[1, 0], [0, 1], [1, 1]], bool)
X = np.array([[1.0, 2.0, -1.0], [0.5, -1.0, 2.0]], np.float32)


def masks_of(model, density=0.3):
    rng = np.random.default_rng(0)
    return {
        key: rng.random(tuple(kernel.shape)) < density
        for key, kernel in tt.prunable_weights(model).items()
    }


def test_outputs_and_gradients_equal_the_ones_by_hand():
    layer = keras.layers.Dense(2, use_bias=False)
    masked = Masked(layer, masks=MASK)
    with tf.GradientTape() as tape:
        outputs = masked(X)
        loss = tf.reduce_sum(outputs**2) / 2
    w = layer.kernel.numpy()
    np.testing.assert_allclose(outputs, X @ (w * MASK), rtol=1e-6)
    gradient = tape.gradient(loss, layer.kernel.value).numpy()
    np.testing.assert_allclose(gradient, X.T @ X @ (w * MASK) * MASK, rtol=1e-5)
    assert (gradient[~MASK] == 0).all()


@pytest.mark.parametrize(
    "name, jit_compile",
    [("subclassed", True), ("convolutional", False), ("attention", False)],
)
def test_a_masked_model_trains_as_the_plain_one_under_the_ticket(
    name, jit_compile, data
):
    model, twin = GALLERY[name](), GALLERY[name]()
    twin.set_weights(model.get_weights())
    masks = masks_of(model)
    ticket = tt.Ticket(masks)
    ticket.apply(twin, weights="keep")
    inputs = keras.Input((8,))
    wrapped = keras.Model(inputs, Masked(model, masks=masks)(inputs))
    for one in (wrapped, twin):
        compiled(one, keras.optimizers.SGD(0.1), jit_compile=jit_compile)
        one.fit(batches(*data), epochs=2, verbose=0)
    np.testing.assert_allclose(
        wrapped(data[0]),
        twin(data[0]),
        rtol=1e-3,
        atol=1e-4,
    )


def test_slots_of_the_optimizer_stay_zero_where_weights_are_pruned(data):
    model = mlp()
    masks = masks_of(model)
    inputs = keras.Input((8,))
    wrapped = keras.Model(inputs, Masked(model, masks=masks)(inputs))
    compiled(wrapped, keras.optimizers.SGD(0.1, momentum=0.9))
    wrapped.fit(batches(*data), verbose=0)
    slots = {tuple(v.shape): v for v in wrapped.optimizer.variables}
    for mask in masks.values():
        momentum = slots[mask.shape].numpy()
        assert (momentum[~mask] == 0).all() and (momentum[mask] != 0).any()


def test_two_replicas_and_mixed_precision(data):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    with two_replicas().scope():
        model = mlp()
        start = model.get_weights()
        masks = masks_of(model)
        inputs = keras.Input((8,))
        wrapped = keras.Model(inputs, Masked(model, masks=masks)(inputs))
        compiled(wrapped, keras.optimizers.SGD(0.1))
    wrapped.fit(batches(*data), verbose=0)
    for key, variable in tt.prunable_weights(model).items():
        before = next(v for v in start if v.shape == tuple(variable.shape))
        changed = variable.numpy() != before
        assert variable.dtype == "float32"
        assert changed[masks[key]].any() and not changed[~masks[key]].any()


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_files_hold_the_masks(suffix, data, tmp_path):
    def build(**options):
        return keras.Sequential(
            [
                keras.Input((8,)),
                Masked(keras.layers.Dense(6), **options),
                keras.layers.ReLU(),
                Masked(mlp_head(), filters="kernel"),
            ]
        )

    def mlp_head():
        return keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])

    mask = np.arange(48).reshape(8, 6) % 3 == 0
    model = build(masks=mask)
    path = str(tmp_path / f"model{suffix}")
    if suffix == ".keras":
        model.save(path)
        copy = keras.models.load_model(path)
    else:
        model.save_weights(path)
        copy = build()
        copy.load_weights(path)
    (found,) = copy.layers[0].masks.values()
    np.testing.assert_array_equal(found, mask)
    np.testing.assert_array_equal(model(data[0]), copy(data[0]))


def test_a_new_mask_needs_no_new_trace(data):
    traces = []

    def loss(y, logits):
        traces.append(1)
        return keras.losses.sparse_categorical_crossentropy(
            y, logits, from_logits=True
        )

    model = keras.Sequential([keras.Input((8,)), Masked(keras.layers.Dense(4))])
    model.compile("sgd", loss)
    model.fit(batches(*data), verbose=0)
    count = len(traces)
    model.layers[0].set_masks(np.zeros((8, 4)))
    model.fit(batches(*data), verbose=0)
    assert len(traces) == count
    outputs = model.predict(data[0], verbose=0)
    assert (outputs == outputs[0]).all()  # the bias alone


@pytest.mark.parametrize(
    "make",
    [
        lambda: Masked("dense"),
        lambda: Masked(mlp(), masks=MASK),
        lambda: Masked(mlp(), masks={"mlp/hidden/kernel": MASK}),
        lambda: Masked(mlp(), masks={"nowhere": MASK}),
        lambda: Masked(mlp(), filters="nowhere"),
        lambda: Masked(keras.layers.Dense(2), masks=MASK * 0.5)(X),
        lambda: Masked(keras.layers.Dense(2)).masks,
        lambda: Masked(keras.layers.ReLU())(X),
    ],
)
def test_masks_that_do_not_fit_are_refused(make):
    with pytest.raises(ValueError, match="Received: "):
        make()
