"""A snapshot is the whole training state."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests.conftest import batches, compiled, mlp
from tf_tickets import Snapshot


def state(model):
    return [
        v.numpy().copy() for v in [*model.variables, *model.optimizer.variables]
    ]


def assert_same(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left, right)


OPTIMIZERS = {
    "ema": lambda: keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True),
    "schedule": lambda: keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(0.1, 10)
    ),
    "accumulation": lambda: keras.optimizers.Adam(
        gradient_accumulation_steps=2
    ),
}


@pytest.mark.parametrize(
    ("optimizer", "policy"),
    [
        ("ema", "float32"),
        ("schedule", "float32"),
        ("accumulation", "float32"),
        ("accumulation", "mixed_float16"),  # whose scale has steps of its own
    ],
)
def test_restore_puts_everything_back_and_training_repeats(
    optimizer, policy, data
):
    keras.mixed_precision.set_global_policy(policy)
    model = compiled(mlp(), OPTIMIZERS[optimizer]())
    model.fit(batches(*data), verbose=0)
    snapshot = tt.Snapshot.take(model)
    before = state(model)
    model.fit(batches(*data), epochs=2, verbose=0)  # dropout draws seeds
    after = state(model)
    assert any((x != y).any() for x, y in zip(before, after, strict=True))
    snapshot.restore(model)
    assert_same(state(model), before)
    model.fit(batches(*data), epochs=2, verbose=0)
    assert_same(state(model), after)


def test_a_snapshot_before_the_first_step_holds_the_slots(data):
    model = compiled(mlp(), "adam")
    snapshot = tt.Snapshot.take(model)
    assert len(snapshot.optimizer) == 2 + 2 * len(model.trainable_variables)
    model.fit(batches(*data), verbose=0)
    snapshot.restore(model)
    assert all(
        not v.numpy().any()
        for v in model.optimizer.variables
        if v.name != "learning_rate"
    )


def test_restore_under_a_mask_gives_mask_times_snapshot(data):
    model = compiled(mlp())
    snapshot = tt.Snapshot.take(model)
    ticket = tt.prune(model, 0.75)
    ticket.apply(model)
    model.fit(batches(*data), verbose=0)
    snapshot.restore(model)
    for key, value in snapshot.weights_of(model).items():
        found = tt.Ticket.from_model(model).weights[key]
        expected = value * ticket.masks.get(key, 1)
        np.testing.assert_array_equal(found, expected)


def test_the_schedule_alone_goes_back(data):
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 100)
    model = compiled(mlp(), keras.optimizers.SGD(schedule, momentum=0.9))
    snapshot = tt.Snapshot.take(model)
    model.fit(batches(*data), verbose=0)
    before = state(model)
    snapshot.restore_schedule(model)
    assert int(model.optimizer.iterations.numpy()) == 0
    changed = [
        v.name
        for v, old in zip(
            [*model.variables, *model.optimizer.variables],
            before,
            strict=True,
        )
        if (v.numpy() != old).any()
    ]
    assert changed == ["iteration"]


def test_save_and_load(data, tmp_path):
    model = compiled(mlp(), "adam")
    model.fit(batches(*data), verbose=0)
    snapshot = tt.Snapshot.take(model)
    snapshot.save(tmp_path / "s.safetensors", {"note": 1})
    loaded, metadata = tt.Snapshot.load(tmp_path / "s.safetensors")
    assert metadata == {"note": 1}
    before = state(model)
    model.fit(batches(*data), verbose=0)
    loaded.restore(model)
    assert_same(state(model), before)


def test_a_snapshot_of_another_model_changes_nothing(data):
    model = compiled(mlp(), "adam")
    before = state(model)
    other = tt.Snapshot.take(compiled(mlp(hidden=16), "adam"))
    with pytest.raises(ValueError, match="do not fit"):
        other.restore(model)
    optimizer = tt.Snapshot.take(compiled(mlp(), "rmsprop"))
    with pytest.raises(ValueError, match="do not fit"):
        optimizer.restore(model)
    assert_same(
        state(model)[: len(model.variables)], before[: len(model.variables)]
    )


class OwnHead(keras.Sequential):
    """The head has an optimizer of its own, which somebody holds."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        variables = self.trainable_variables
        gradients = tape.gradient(loss, variables)
        self.optimizer.apply(gradients[:-2], variables[:-2])
        self.second().apply(gradients[-2:], variables[-2:])
        return {"loss": loss}


def two(held="attribute"):
    model = OwnHead(mlp(hidden=8).layers)
    model.build((None, 8))
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        "sparse_categorical_crossentropy",
        run_eagerly=True,
    )
    optimizer = keras.optimizers.Adagrad(0.1, initial_accumulator_value=0.3)
    if held == "attribute":
        model.of_the_head = optimizer
    elif held == "list":
        model.more = [optimizer]
    elif held == "dictionary":
        model.more = {"head": optimizer}
    model.second = lambda: optimizer
    return model


@pytest.mark.parametrize("held", ["attribute", "list", "dictionary"])
def test_a_second_optimizer_goes_back_too(held, data, tmp_path):
    def trained(model):
        model.fit(batches(*data), verbose=0)
        return [v.numpy() for v in model.variables]

    def check(ones, others):
        for one, other in zip(ones, others, strict=True):
            np.testing.assert_array_equal(one, other)

    model = two(held)
    start = Snapshot.take(model)  # it has no slots yet
    first = trained(model)
    later = Snapshot.take(model)
    second = trained(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "An optimizer|A second")
        start.restore(model)
        check(trained(model), first)
        later.restore(model)
        check(trained(model), second)
        later.save(tmp_path / "later")
        model = two(held)  # another process: it has none again
        Snapshot.load(tmp_path / "later")[0].restore(model)
        check(trained(model), second)
    later.restore_schedule(model)
    assert int(model.second().iterations) == 4


def test_a_second_optimizer_that_cannot_be_found_is_told_of(data):
    model = two(held="nowhere")
    start = Snapshot.take(model)
    model.fit(batches(*data), verbose=0)
    with pytest.warns(UserWarning, match="no attribute.*Received: Adagrad"):
        start.restore(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "An optimizer|A second")
        start.restore(model)  # once is enough
        # One that is compiled no more takes no steps.
        again = two()
        again.fit(batches(*data), verbose=0)
        old = again.optimizer
        again.compile("sgd", "sparse_categorical_crossentropy")
        Snapshot.take(again).restore(again)
    assert int(old.iterations) == 4
