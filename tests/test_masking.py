"""Zeros are exactly zero after every step, whatever trains the model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests.conftest import ZerosHold, batches, compiled, mlp, two_replicas
from tf_tickets import masking
from tf_tickets.selection import named_weights

OPTIMIZERS = {
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "nesterov": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "decay": lambda: keras.optimizers.SGD(0.1, weight_decay=0.1),
    "clipnorm": lambda: keras.optimizers.SGD(0.1, 0.9, clipnorm=0.1),
    "global_clipnorm": lambda: keras.optimizers.Adam(global_clipnorm=0.1),
    "accumulation": lambda: keras.optimizers.Adam(
        0.01, gradient_accumulation_steps=2
    ),
    "ema": lambda: keras.optimizers.SGD(0.1, 0.9, use_ema=True),
    "ema_overwrite": lambda: keras.optimizers.Adam(
        use_ema=True, ema_overwrite_frequency=2
    ),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01, momentum=0.9),
    "lion": lambda: keras.optimizers.Lion(0.01),
}
COMPILE = {
    "xla": {"jit_compile": True},
    "several_steps": {"steps_per_execution": 2},
    "eager": {"run_eagerly": True},
}


def assert_zeros(model, ticket):
    weights = named_weights(model)
    for path, mask in ticket.masks.items():
        value = weights[path].numpy()
        assert (value[~mask] == 0).all()
        assert (value[mask] != 0).all()
        # +0.0, not -0.0: what is pruned must compress.
        assert not np.signbit(value[~mask]).any()


def train_with_ticket(model, data, callbacks=(), epochs=2, **options):
    ticket = tt.prune(model, sparsity=0.75)
    ticket.apply(model)
    watch = ZerosHold(ticket.masks)
    model.fit(
        batches(*data).repeat(),
        epochs=epochs,
        steps_per_epoch=4,  # of one iterator: replicas are slow to make one
        verbose=0,
        callbacks=[watch, *callbacks],
        **options,
    )
    assert watch.checked
    assert_zeros(model, ticket)
    return ticket


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_zeros_hold_under_every_optimizer(optimizer, data):
    train_with_ticket(compiled(mlp(), OPTIMIZERS[optimizer]()), data)


@pytest.mark.parametrize("options", COMPILE)
@pytest.mark.parametrize("optimizer", ["ema", "accumulation"])
def test_zeros_hold_however_the_step_is_compiled(optimizer, options, data):
    model = compiled(mlp(), OPTIMIZERS[optimizer](), **COMPILE[options])
    train_with_ticket(model, data)


# Each pair of two occurs.
@pytest.mark.parametrize(
    ("policy", "optimizer", "jit_compile"),
    [
        ("mixed_bfloat16", "momentum", True),
        ("mixed_bfloat16", "ema", False),
        ("mixed_float16", "momentum", False),
        ("mixed_float16", "ema", True),
    ],
)
def test_zeros_hold_in_mixed_precision(policy, optimizer, jit_compile, data):
    keras.mixed_precision.set_global_policy(policy)
    model = compiled(mlp(), OPTIMIZERS[optimizer](), jit_compile=jit_compile)
    train_with_ticket(model, data)


@pytest.mark.parametrize(
    ("strategy", "swap_on_epoch"),
    [("none", False), ("none", True), ("mirrored", True)],
)
def test_zeros_hold_when_averages_are_swapped_in(strategy, swap_on_epoch, data):
    scope = two_replicas().scope if strategy == "mirrored" else tf.init_scope
    with scope():
        model = compiled(mlp(), OPTIMIZERS["ema"]())

    class Evaluated(keras.callbacks.Callback):
        """Looks at the weights that validation sees."""

        seen = 0

        def on_test_batch_end(self, batch, logs=None):
            assert_zeros(self.model, ticket)
            Evaluated.seen += 1

    ticket = tt.prune(model, sparsity=0.75)
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=swap_on_epoch)
    callbacks = [swap, Evaluated()]
    train_with_ticket(
        model, data, callbacks, epochs=3, validation_data=batches(*data)
    )
    assert Evaluated.seen


@pytest.mark.parametrize(
    # Keras itself cannot trace ema_overwrite_frequency and gradient
    # accumulation under this strategy, with or without a mask.
    "optimizer",
    ["adamw", "ema", "clipnorm"],
)
def test_zeros_hold_on_two_replicas(optimizer, data):
    strategy = two_replicas()
    with strategy.scope():
        model = compiled(mlp(), OPTIMIZERS[optimizer]())
    ticket = train_with_ticket(model, data)
    for path, variable in named_weights(model).items():
        if path in ticket.masks:
            copies = strategy.experimental_local_results(variable.value)
            assert len(copies) == 2
            for copy in copies:
                assert (copy.numpy()[~ticket.masks[path]] == 0).all()


def test_a_layers_own_constraint_still_applies(data):
    model = compiled(
        mlp(kernel_constraint=keras.constraints.MaxNorm(0.5)),
        keras.optimizers.SGD(1.0),
    )
    before = model.get_layer("hidden").kernel.constraint
    train_with_ticket(model, data)
    norms = np.linalg.norm(model.get_layer("hidden").kernel.numpy(), axis=0)
    assert norms.max() <= 0.5 + 1e-6
    tt.release(model)
    assert model.get_layer("hidden").kernel.constraint is before


def test_zeros_hold_in_a_custom_training_loop(data):
    model, optimizer = mlp(), keras.optimizers.Adam(0.01)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    ticket = tt.prune(model, sparsity=0.75)
    ticket.apply(model)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        gradients = tape.gradient(value, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)

    for x, y in batches(*data):
        step(x, y)
        assert_zeros(model, ticket)


def test_a_step_traced_before_the_ticket_is_traced_again(data):
    model = compiled(mlp(), "adam")
    model.fit(batches(*data), verbose=0)
    train_with_ticket(model, data)


def test_release_lets_the_weights_go_and_leaves_no_trace(data):
    model = compiled(mlp(), "adam")
    config = model.get_config()
    names = [v.path for v in model.variables]
    ticket = train_with_ticket(model, data)
    tt.release(model)
    assert all(v.constraint is None for v in model.weights)
    assert model.get_config() == config
    assert [v.path for v in model.variables] == names
    model.fit(batches(*data), verbose=0)
    kernel = model.get_layer("hidden").kernel
    revived = kernel.numpy()[~ticket.masks[kernel.path]]
    assert (revived != 0).any()
    tt.release(model)  # nothing to release is no error


def test_project_repairs_what_went_past_the_constraint(data):
    model = compiled(mlp())
    weights = model.get_weights()
    ticket = tt.prune(model, sparsity=0.75)
    ticket.apply(model)
    model.set_weights(weights)
    masking.project(model)
    assert_zeros(model, ticket)


def test_pruned_weights_that_turn_nan_become_zero():
    value = tf.constant([np.nan, np.inf, -1.0, 2.0])
    mask = tf.constant([False, False, False, True])
    result = masking.masked(value, mask).numpy()
    np.testing.assert_array_equal(result, [0, 0, 0, 2])
    assert not np.signbit(result).any()


@pytest.mark.parametrize("jit_compile", [True, False])
def test_a_mask_is_a_byte_a_weight_where_it_costs_no_time(jit_compile, data):
    model = compiled(mlp(), jit_compile=jit_compile)
    ticket = tt.prune(model, 0.5)
    ticket.apply(model)
    held = {
        w.constraint.mask.dtype for w in tt.prunable_weights(model).values()
    }
    assert held == {tf.bool if jit_compile else tf.float32}
    model.fit(batches(*data), verbose=0)
    assert_zeros(model, ticket)


def test_a_new_mask_needs_no_new_trace(data):
    traces = []

    def counting_loss(y, logits):
        traces.append(1)
        return keras.losses.sparse_categorical_crossentropy(
            y, logits, from_logits=True
        )

    model = mlp()
    model.compile("adam", counting_loss)
    tt.prune(model, sparsity=0.5).apply(model)
    model.fit(batches(*data), verbose=0)
    before = len(traces)
    tt.prune(model, sparsity=0.75).apply(model, weights="keep")
    model.fit(batches(*data), verbose=0)
    assert len(traces) == before > 0


def encoder_and_models():
    """One layer of weights in three models, with a head each."""
    encoder = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(16, name="h")], name="encoder"
    )
    inputs = keras.Input((8,))
    outer, sibling = (
        keras.Model(inputs, keras.layers.Dense(4, name=name)(encoder(inputs)))
        for name in ("outer", "sibling")
    )
    return encoder, outer, sibling


def averaging():
    return keras.optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=2)


@pytest.mark.parametrize("optimizer", [lambda: "adam", averaging])
def test_masks_of_a_submodel_reach_every_traced_model_around_it(
    optimizer, data
):
    encoder, outer, sibling = encoder_and_models()
    for model in (outer, sibling):
        compiled(model, optimizer()).fit(batches(*data), verbose=0)
    ticket = tt.prune(encoder, sparsity=0.75)
    ticket.apply(encoder)
    for model in (outer, sibling):
        model.fit(batches(*data), verbose=0)
        assert_zeros(encoder, ticket)
    # The other way: off where they were not put on.
    tt.release(sibling)
    outer.fit(batches(*data), verbose=0)
    kernel = encoder.layers[0].kernel
    assert (kernel.numpy()[~ticket.masks[kernel.path]] != 0).any()


@pytest.mark.parametrize("options", [{}, {"jit_compile": True}])
def test_averages_of_an_optimizer_compiled_later_hold_no_pruned_weight(
    options, data
):
    encoder, outer, _ = encoder_and_models()
    ticket = tt.prune(encoder, sparsity=0.75)
    ticket.apply(encoder)
    optimizer = keras.optimizers.Adam(0.01, use_ema=True)
    compiled(outer, optimizer, **options).fit(batches(*data), verbose=0)
    assert_zeros(encoder, ticket)  # Keras has written the averages there


def test_averages_of_a_second_optimizer_hold_no_pruned_weight(data):
    class Two(keras.Sequential):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            variables = self.trainable_variables
            gradients = tape.gradient(loss, variables)
            self.second.apply(gradients, variables)
            return {"loss": loss}

    model = Two(mlp().layers)
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.second = averaging()
    ticket = tt.prune(model, sparsity=0.75)
    ticket.apply(model)
    model.fit(batches(*data), verbose=0)
    assert_zeros(model, ticket)


@pytest.mark.parametrize("weights", ["start", "keep"])
def test_a_ticket_leaves_none_of_the_masks_before_it(weights, data):
    model = compiled(mlp(), "adam")
    everywhere = tt.prune(model, 0.9)
    hidden = tt.prune(model, 0.5, filters="hidden")
    everywhere.apply(model)
    model.fit(batches(*data), verbose=0)
    hidden.apply(model, weights=weights)
    head = model.get_layer("head").kernel
    assert head.constraint is None
    assert [*masking.attached_masks(model)] == [*hidden.masks]
    before = np.count_nonzero(head)
    assert (before == 128) == (weights == "start")
    model.fit(batches(*data), verbose=0)
    assert np.count_nonzero(head) > before or before == 128


def test_the_smallest_weights_that_are_kept_stay():
    model = mlp()
    kernel = model.get_layer("hidden").kernel
    tiny = np.full((8, 32), 1e-40, "float32")
    kernel.assign(tiny)
    ticket = tt.prune(model, 0.5, filters="hidden")
    ticket.apply(model)
    assert np.count_nonzero(kernel.numpy()) == 128
    assert tt.Ticket.from_model(model).kept == 128


def test_a_low_rank_update_after_the_ticket_is_told_of_at_the_next_look():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)])
    tt.prune(model, 0.5).apply(model)
    model.layers[0].enable_lora(2)
    with pytest.warns(UserWarning, match="low-rank update"):
        masking.project(model)
