"""Block floating point: what is rounded, how, and that it ends."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_tickets as tt
from tests.conftest import batches, compiled, mlp, two_replicas
from tf_tickets.callbacks import LowPrecision, low_precision
from tf_tickets.callbacks.low_precision import block_floating_point


def rounded_by_hand(x, u, axis, bits):
    """Block floating point in NumPy float64."""
    x = x.astype(np.float64)
    axes = axis if isinstance(axis, tuple) else (axis,)
    others = tuple(i for i in range(x.ndim) if i not in axes)
    largest = np.abs(x).max(axis=others, keepdims=True)
    with np.errstate(divide="ignore"):
        exponent = np.floor(np.log2(largest))
    step = np.where(largest > 0, 2.0 ** (exponent - (bits - 2)), 1.0)
    limit = 2 ** (bits - 1) - 1
    return np.clip(np.floor(x / step + u), -limit, limit) * step


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("axis", [0, 2, (0, 2), None])
def test_rounding_equals_numpy(axis, bits):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4, 5)) * 10.0 ** rng.integers(-3, 4, (3, 1, 5))
    x[0, 0] = [0, 1, -1, 0.5, 2]
    x = x.astype(np.float32)
    seed = tf.constant([3, 4])
    noise = tf.random.stateless_uniform(x.shape, seed).numpy()
    np.testing.assert_array_equal(
        block_floating_point(tf.constant(x), seed, axis, bits),
        rounded_by_hand(x, noise, axis, bits).astype(np.float32),
    )


def test_rounding_has_the_right_mean():
    x = tf.constant(np.random.default_rng(0).uniform(-1, 1, 64), tf.float32)
    x = tf.concat([x, [1.5]], 0)  # so that nothing meets the limit
    rounded = tf.function(lambda i: block_floating_point(x, [0, i], None, 5))
    draws = [rounded(i).numpy() for i in tf.range(2000)]
    step = 2.0 ** (0 - 3)
    error = np.mean(draws, 0) - x.numpy()
    assert np.abs(error).max() < 5 * step / 2 / np.sqrt(2000)
    assert len(np.unique(draws)) <= 2 * (2**4)


def test_rounding_leaves_zeros_and_empty_blocks():
    x = tf.constant([[0.0, 0.0], [0.0, 1.0]])
    result = block_floating_point(x, tf.constant([1, 1]), 0, 8).numpy()
    np.testing.assert_array_equal(result, x)


def conv_net(**options):
    return compiled(
        keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(8, 3, use_bias=False, name="one"),
                layers.BatchNormalization(name="norm"),
                layers.ReLU(),
                layers.DepthwiseConv2D(3, name="deep"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(4, name="head"),
            ]
        ),
        keras.optimizers.SGD(0.05, momentum=0.9),
        **options,
    )


def levels(kernel, axis):
    """How many bits the blocks of a kernel need, sign included."""
    blocks = np.moveaxis(np.asarray(kernel, np.float64), axis, 0)
    blocks = blocks.reshape(len(blocks), -1)
    needed = 0
    for block in blocks[blocks.any(1)]:
        exponent = np.floor(np.log2(np.abs(block).max()))
        for bits in range(2, 25):
            whole = block / 2.0 ** (exponent - (bits - 2))
            if (whole == np.round(whole)).all():
                break
        needed = max(needed, bits)
    return needed


def test_low_precision_trains_and_ends():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8, 8, 1)).astype("float32")
    y = (x.mean((1, 2, 3)) > 0).astype(int)
    model = conv_net(jit_compile=False)
    before = {id(layer): vars(layer).get("call") for layer in model.layers}
    with low_precision(model, bits=8):
        history = model.fit(x, y, epochs=6, verbose=0, batch_size=16)
        assert levels(model.get_layer("one").kernel, 3) <= 8
        assert levels(model.get_layer("deep").kernel, 2) <= 8
        assert levels(model.get_layer("head").kernel, 1) > 8
        assert levels(model.get_layer("norm").gamma, 0) > 8
        outputs = model.layers[0](x)
        assert levels(outputs, 0) <= 8
    loss = history.history["loss"]
    assert np.isfinite(loss).all() and loss[-1] < loss[0]
    assert {id(c): vars(c).get("call") for c in model.layers} == before
    assert "apply" not in vars(model.optimizer)
    assert all(v.constraint is None for v in model.trainable_variables)
    assert levels(model.layers[0](x), 0) > 8
    model.fit(x, y, epochs=1, verbose=0)
    assert levels(model.get_layer("one").kernel, 3) > 8


def test_gradients_and_errors_are_rounded():
    model = conv_net(run_eagerly=True)
    model.build((None, 8, 8, 1))
    seen = {}
    apply = model.optimizer.apply

    def spy(grads, variables=None, **kwargs):
        for g, v in zip(grads, variables, strict=True):
            seen[v.path.split("/", 1)[1]] = np.asarray(g)
        return apply(grads, variables, **kwargs)

    model.optimizer.apply = spy
    x = np.random.default_rng(0).normal(size=(8, 8, 8, 1)).astype("float32")
    with low_precision(model, bits=6):
        model.fit(x, np.arange(8) % 4, verbose=0)
        # The errors that come back into a layer's output.
        layer = model.get_layer("one")
        with tf.GradientTape() as tape:
            inputs = tf.constant(x)
            outputs = layer(inputs)
            weights = tf.random.normal(outputs.shape, seed=1)
            loss = tf.reduce_sum(outputs * weights)
        [error] = tape.gradient(loss, [layer.kernel.value])
    assert levels(seen["one/kernel"], 3) <= 6
    assert levels(seen["deep/kernel"], 2) <= 6
    assert levels(seen["head/kernel"], 1) > 6
    # The kernel's gradient is that of rounded errors, which differ.
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(inputs) * weights)
    [exact] = tape.gradient(loss, [layer.kernel.value])
    assert 0 < np.abs(error - exact).max() < 0.1 * np.abs(exact).max()


def test_the_published_scheme_rounds_all_that_is_trained():
    """And of outputs those of dense layers and convolutions alone."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 8, 8, 1)).astype("float32")
    y = (x.mean((1, 2, 3)) > 0).astype(int)
    model = conv_net()
    with low_precision(model, bits=6, scheme="published"):
        history = model.fit(x, y, epochs=4, verbose=0, batch_size=16)
        axes = {"one": 3, "deep": 2, "head": 1}
        for name, axis in axes.items():
            assert levels(model.get_layer(name).kernel, axis) <= 6
        vectors = [v for v in model.trainable_variables if len(v.shape) == 1]
        assert len(vectors) == 4  # γ, β and two biases
        for vector in vectors:
            assert levels(vector, 0) <= 6
            assert levels(vector.numpy()[None], 0) > 6  # each for itself
        slots = model.optimizer.variables[2:]
        assert len(slots) == len(model.trainable_variables)
        for slot, variable in zip(
            slots, model.trainable_variables, strict=True
        ):
            name = variable.path.split("/")[1]
            axis = axes[name] if len(slot.shape) > 1 else 0
            assert slot.numpy().any() and levels(slot, axis) <= 6
        value = x
        for layer in model.layers:
            value = layer(value)
            is_rounded = layer.name in ("one", "deep")
            assert (levels(value, 0) <= 6) == is_rounded, layer.name
    loss = history.history["loss"]
    assert np.isfinite(loss).all() and loss[-1] < loss[0]
    assert "apply" not in vars(model.optimizer)
    assert all(v.constraint is None for v in model.trainable_variables)
    model.fit(x, y, verbose=0)
    assert levels(model.optimizer.variables[2], 3) > 6


def test_averages_are_kept_whole_and_replicas_stay_equal(data):
    with two_replicas().scope():
        model = compiled(
            mlp(16),
            keras.optimizers.SGD(
                0.1, momentum=0.9, use_ema=True, ema_momentum=0.9
            ),
        )
    model.fit(
        batches(*data), epochs=2, verbose=0,
        callbacks=[LowPrecision(bits=6, scheme="published")],
    )  # fmt: skip
    kernel = model.get_layer("hidden").kernel
    average, momentum = (
        next(
            v
            for v in model.optimizer.variables
            if v.shape == kernel.shape and v.name.endswith(ending)
        )
        for ending in ("average", "momentum")
    )
    assert levels(momentum, 1) <= 6 < levels(average, 1)
    for variable in (momentum, kernel):
        copies = model.distribute_strategy.experimental_local_results(
            variable.value
        )
        np.testing.assert_array_equal(copies[0], copies[1])


def test_low_precision_keeps_masks_and_restores_constraints(data):
    model = compiled(mlp(16), keras.optimizers.SGD(0.1))
    ticket = tt.prune(model, sparsity=0.5)
    ticket.apply(model)
    kernel = model.get_layer("hidden").kernel
    constraint = kernel.constraint
    model.fit(
        batches(*data), epochs=2, verbose=0, callbacks=[LowPrecision(bits=8)]
    )
    assert kernel.constraint is constraint
    assert (kernel.numpy()[~ticket.masks[kernel.path]] == 0).all()
    assert levels(kernel, 1) <= 8


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_masks_made_in_the_same_fit_stay(first, before, data):
    """Whichever callback comes first, with or without a mask before."""
    model = compiled(mlp(16), keras.optimizers.SGD(0.1))
    kernels = list(tt.prunable_weights(model).values())
    own = keras.constraints.Constraint()  # changes nothing
    kernels[0].constraint = own
    if before:
        tt.prune(model, 0.25).apply(model)
    seen = []

    class Seen(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            masks = tt.masking.attached_masks(self.model).values()
            seen.append(sum(int(m.sum()) for m in masks))
            assert levels(kernels[0], 1) <= 8

    pruning = tt.callbacks.GradualPruning(target_sparsity=0.75, end_step=6)
    callbacks = [LowPrecision(), pruning]
    model.fit(
        batches(*data), epochs=2, verbose=0,
        callbacks=[*(callbacks if first else callbacks[::-1]), Seen()],
    )  # fmt: skip
    assert seen[-1] == 48
    for _ in range(2):
        assert sum(int((k.numpy() != 0).sum()) for k in kernels) == 48
        assert kernels[0].constraint.inner is own
        assert kernels[1].constraint.inner is None
        model.fit(batches(*data), verbose=0)
    assert levels(kernels[0], 1) > 8
    tt.release(model)
    assert kernels[0].constraint is own and kernels[1].constraint is None


def test_what_is_released_or_nested_in_the_block_ends_in_full_precision():
    model = conv_net()
    kernel = model.get_layer("one").kernel
    tt.prune(model, 0.5).apply(model)
    with low_precision(model):
        tt.release(model)
        with low_precision(model, bits=4):
            pass
        assert kernel.constraint is not None
        assert "call" in vars(model.get_layer("one"))
    assert kernel.constraint is None
    assert "call" not in vars(model.get_layer("one"))
    assert "apply" not in vars(model.optimizer)


def test_low_precision_ends_with_an_exception():
    model = conv_net()
    with pytest.raises(KeyError), low_precision(model):
        raise KeyError
    assert "call" not in vars(model.layers[0])
    assert model.layers[0].kernel.constraint is None


@pytest.mark.parametrize("bits", [1, 17, 8.0, True])
def test_bad_bits_are_one_clear_error(bits):
    with pytest.raises(ValueError, match="bits.*Received"):
        with low_precision(conv_net(), bits=bits):
            pass


def test_low_precision_needs_a_compiled_model():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="built and compiled.*Received"):
        with low_precision(model):
            pass
