"""Sparsity follows the schedule to the weight, in one fit or after kills."""

import functools

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests.conftest import ZerosHold, batches, compiled, mlp
from tf_tickets.callbacks import GradualPruning
from tf_tickets.pruning import Constant, Polynomial, snip


def test_gradual_pruning_follows_its_schedule_to_the_weight(data):
    class Seen(keras.callbacks.Callback):
        kept = []

        def on_train_batch_end(self, batch, logs=None):
            kernels = tt.prunable_weights(self.model).values()
            self.kept.append(sum(int((k.numpy() != 0).sum()) for k in kernels))

    model, seen = compiled(mlp(), "adam"), Seen()
    seen.kept = []
    pruning = GradualPruning(
        target_sparsity=0.9, begin_step=2, end_step=10, every=2
    )
    model.fit(batches(*data), epochs=3, verbose=0, callbacks=[pruning, seen])
    schedule = Polynomial(0.9, end_step=10, begin_step=2)
    expected = [
        round((1 - schedule(step - step % 2)) * 384) for step in range(1, 13)
    ]
    assert seen.kept == expected
    assert pruning.ticket.kept == round(0.1 * 384)
    pruning.ticket.apply(model)
    model.fit(
        batches(*data), verbose=0, callbacks=[ZerosHold(pruning.ticket.masks)]
    )


@pytest.mark.parametrize(
    ("scope", "jit_compile"),
    [("global", True), ("layer", False), ("erk", False)],
)
def test_gradual_masks_are_nested_and_share_one_trace(scope, jit_compile, data):
    traces, masks = [], []

    def loss(y, logits):
        traces.append(1)
        return keras.losses.sparse_categorical_crossentropy(
            y, logits, from_logits=True
        )

    class Masks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            masks.append(
                {
                    p: v.numpy() != 0
                    for p, v in tt.prunable_weights(self.model).items()
                }
            )

    model = mlp()
    model.compile("adam", loss, jit_compile=jit_compile)
    model.fit(
        batches(*data), epochs=2, verbose=0,
        callbacks=[
            GradualPruning(
                Polynomial(0.9, end_step=8), every=1, scope=scope
            ),
            Masks(),
        ],
    )  # fmt: skip
    for wide, narrow in zip(masks, masks[1:], strict=False):
        assert not any((narrow[p] & ~wide[p]).any() for p in wide)
    one_fit = len(traces)
    fresh = mlp()
    fresh.compile("adam", loss, jit_compile=jit_compile)
    traces.clear()
    fresh.fit(batches(*data), verbose=0)
    assert len(traces) == one_fit


def test_a_toolkit_schedule_keeps_its_own_rhythm(data):
    schedules = pytest.importorskip(
        "tensorflow_model_optimization.python.core.sparsity.keras."
        "pruning_schedule"
    )
    schedule = schedules.PolynomialDecay(0.0, 0.9, 2, 10, frequency=4)
    model = compiled(mlp())
    pruning = GradualPruning(schedule)
    model.fit(batches(*data), epochs=3, verbose=0, callbacks=[pruning])
    assert pruning.ticket.kept == round(0.1 * 384)


def test_a_second_fit_goes_on_where_the_first_ended_if_asked_to(data):
    model = compiled(mlp())
    pruning = GradualPruning(
        target_sparsity=0.5, end_step=8, every=1, count_from="optimizer"
    )
    with (
        pytest.warns(UserWarning, match="ends at step 4 .* goes on to step 8"),
        pytest.warns(UserWarning, match="ended at step 4 .* reached 0.5"),
    ):
        model.fit(batches(*data), verbose=0, callbacks=[pruning])
    halfway = pruning.ticket.sparsity
    assert 0.3 < halfway < 0.5
    model.fit(batches(*data), verbose=0, callbacks=[pruning])
    assert pruning.ticket.sparsity == 0.5


def test_several_steps_a_call_still_meet_the_schedule(data):
    model = compiled(mlp(), steps_per_execution=3)
    pruning = GradualPruning(target_sparsity=0.5, end_step=7, every=7)
    model.fit(batches(*data, 8), verbose=0, callbacks=[pruning])
    assert pruning.ticket.sparsity == 0.5


class Densities(keras.callbacks.Callback):
    """Kept weights of all kernels after each step."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def on_train_batch_end(self, batch, logs=None):
        kernels = tt.prunable_weights(self.model).values()
        self.kept.append(sum(int((k.numpy() != 0).sum()) for k in kernels))


def test_a_trained_model_is_pruned_as_gently_as_a_new_one(data):
    model, seen = compiled(mlp(), "adam"), Densities()
    model.fit(batches(*data), epochs=5, verbose=0)
    pruning = GradualPruning(target_sparsity=0.75, end_step=12, every=1)
    # Keras counts epochs on; what is pruned counts from here all the same.
    model.fit(
        batches(*data), initial_epoch=5, epochs=8, verbose=0,
        callbacks=[pruning, seen],
    )  # fmt: skip
    steps = np.arange(1, 13)
    expected = 384 * (0.25 + 0.75 * (1 - steps / 12) ** 3)
    assert np.abs(np.array(seen.kept) - expected).max() <= 0.5


@pytest.mark.parametrize(
    "begin, end, every, epochs, drawn_at",
    [
        (0, 10, 8, 3, [8, 10]),  # the end lies between two drawings
        (3, 11, 4, 3, [7, 11]),  # the rhythm counts from the first step
        (2, 9, 100, 3, [9]),
        (0, 8, None, 3, [1, 2, 3, 4, 5, 6, 7, 8]),
        (2, 48, None, 12, list(range(4, 49, 2))),
    ],
)
def test_the_last_drawing_is_at_the_end_whatever_the_rhythm(
    begin, end, every, epochs, drawn_at, data
):
    model, seen = compiled(mlp(), "adam"), Densities()
    pruning = GradualPruning(
        target_sparsity=0.8, begin_step=begin, end_step=end, every=every
    )
    model.fit(
        batches(*data), epochs=epochs, verbose=0, callbacks=[pruning, seen]
    )
    climb = Polynomial(0.8, end_step=end, begin_step=begin)
    asked = [
        climb(max([at for at in drawn_at if at <= step], default=0))
        for step in range(1, 4 * epochs + 1)
    ]
    assert seen.kept == [round((1 - sparsity) * 384) for sparsity in asked]
    assert pruning.ticket.kept == 77  # of 76.8


class Rhythm:
    """As the toolkit's schedules; the end is between two drawings."""

    begin_step, end_step, final_sparsity = 0, 6, 0.8

    def __call__(self, step):
        return step % 4 == 0 and step <= 6, 0.8 * min(step / 6, 1)


@pytest.mark.parametrize(
    "schedule",
    [
        Rhythm(),
        # With no end that it could tell, drawn last before its last rise.
        lambda step: 0.8 if step == 8 else 0.1,
        Constant(0.8, begin_step=9),
    ],
)
def test_any_schedule_that_is_missed_is_said(schedule, data):
    model = compiled(mlp())
    pruning = GradualPruning(schedule, every=5)
    with pytest.warns(UserWarning, match="ended at step 8 .*reached 0.8"):
        model.fit(batches(*data), epochs=2, verbose=0, callbacks=[pruning])


@pytest.mark.parametrize("size", [23, 25, 44, 50])
def test_a_target_that_is_met_is_met_however_it_rounds(size):
    """Sizes and targets at which counts round down, up, and to even."""
    x = np.ones((4, size), np.float32)
    for target in (0.5, 0.7, 0.9):
        model = keras.Sequential(
            [keras.Input((size,)), keras.layers.Dense(1, name="one")]
        )
        model.compile("sgd", "mse", run_eagerly=True)
        tt.prune(model, target).apply(model)
        pruning = GradualPruning(target_sparsity=target, end_step=1)
        model.fit(x, x[:, :1], verbose=0, callbacks=[pruning])
        assert pruning.ticket.kept == round((1 - target) * size)


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "Give a `schedule`"),
        ({"schedule": Constant(0.5), "target_sparsity": 0.5}, "Give a"),
        ({"target_sparsity": 0.5}, "end_step=None"),
        ({"target_sparsity": 1.5, "end_step": 3}, "target_sparsity=1.5"),
        ({"schedule": 0.5}, "callable"),
        ({"schedule": Constant(0.5), "every": 0}, "every=0"),
        ({"schedule": Constant(0.5), "count_from": "x"}, "count_from='x'"),
        ({"schedule": Constant(0.5), "scope": {"a": 0.5}}, "mapping"),
        ({"schedule": Constant(0.5), "scope": "net"}, "scope='net'"),
        ({"schedule": Constant(0.5), "criterion": "x"}, "criterion='x'"),
    ],
)
def test_bad_gradual_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GradualPruning(**options)


def test_gradual_pruning_of_a_sparser_model_is_refused(data):
    model = compiled(mlp())
    tt.prune(model, 0.9).apply(model)
    with pytest.raises(ValueError, match="sparser than the schedule"):
        model.fit(
            batches(*data), verbose=0,
            callbacks=[GradualPruning(target_sparsity=0.5, end_step=4)],
        )  # fmt: skip


@pytest.mark.parametrize("kept_by", ["directory", "both", "backup"])
def test_gradual_pruning_goes_on_after_a_kill(kept_by, data, tmp_path):
    def run(name, die_at=None):
        class Die(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                if int(self.model.optimizer.iterations.numpy()) == die_at:
                    raise KeyboardInterrupt

        keras.utils.set_random_seed(3)
        # Other names in every process, and 38.4 weights to keep of 192.
        model = compiled(
            keras.Sequential(
                [
                    keras.Input((8,)),
                    keras.layers.Dense(16, activation="relu"),
                    keras.layers.Dense(4),
                ]
            ),
            keras.optimizers.SGD(0.1, momentum=0.9),
            run_eagerly=True,  # a few steps of five runs
        )
        model.optimizer.build(model.trainable_variables)
        model.optimizer.iterations.assign(100)
        pruning = GradualPruning(
            target_sparsity=0.8,
            end_step=10,
            every=1,
            directory=None if kept_by == "backup" else tmp_path / name,
        )
        others = (
            [keras.callbacks.BackupAndRestore(tmp_path / f"{name}.backup")]
            if kept_by != "directory"
            else []
        )
        try:
            history = model.fit(
                batches(*data), epochs=5, verbose=0,
                callbacks=[*others, pruning, Die()],
            )  # fmt: skip
        except KeyboardInterrupt:
            return None
        return history.epoch, pruning.ticket

    assert run("killed", die_at=102) is None
    assert run("killed", die_at=109) is None
    assert run("killed", die_at=117) is None  # the target is reached
    epochs, resumed = run("killed")
    assert epochs == [4]
    _, whole = run("whole")
    assert whole.kept == resumed.kept == 38
    for mine, other in zip(
        whole.masks.values(), resumed.masks.values(), strict=True
    ):
        np.testing.assert_array_equal(mine, other)
    for mine, other in zip(
        whole.weights.values(), resumed.weights.values(), strict=True
    ):
        np.testing.assert_array_equal(mine, other)


def test_a_criterion_scores_on_the_data_it_is_given(data):
    def fit(**options):
        keras.utils.set_random_seed(4)
        model = compiled(mlp())
        pruning = GradualPruning(
            target_sparsity=0.8, end_step=8, every=2, **options
        )
        model.fit(batches(*data), epochs=3, verbose=0, callbacks=[pruning])
        return pruning.ticket

    given = fit(criterion="snip", data=data)
    preset = fit(criterion=functools.partial(snip, data=data))
    assert given.hamming_distance(preset) == 0
    assert given.hamming_distance(fit()) > 0


@pytest.mark.parametrize("criterion", ["snip", "grasp", "prospr"])
def test_data_that_is_missing_is_said_before_training(criterion, data):
    model = compiled(mlp())
    pruning = GradualPruning(
        target_sparsity=0.8, begin_step=100, end_step=200, criterion=criterion
    )
    with pytest.raises(ValueError, match=f"criterion='{criterion}' scores on"):
        model.fit(batches(*data), verbose=0, callbacks=[pruning])
    assert int(model.optimizer.iterations) == 0
