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


@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
def test_gradual_masks_are_nested_and_share_one_trace(scope, data):
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
    model.compile("adam", loss, jit_compile=True)
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
    fresh.compile("adam", loss, jit_compile=True)
    traces.clear()
    fresh.fit(batches(*data), epochs=2, verbose=0)
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


def test_a_second_fit_goes_on_where_the_first_ended(data):
    model = compiled(mlp())
    pruning = GradualPruning(target_sparsity=0.5, end_step=8, every=1)
    with pytest.warns(UserWarning, match="before the schedule's end"):
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


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "Give a `schedule`"),
        ({"schedule": Constant(0.5), "target_sparsity": 0.5}, "Give a"),
        ({"target_sparsity": 0.5}, "end_step=None"),
        ({"target_sparsity": 1.5, "end_step": 3}, "target_sparsity=1.5"),
        ({"schedule": 0.5}, "callable"),
        ({"schedule": Constant(0.5), "every": 0}, "every=0"),
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


@pytest.mark.parametrize("backup", [False, True])
def test_gradual_pruning_goes_on_after_a_kill(backup, data, tmp_path):
    def run(name, die_at=None):
        class Die(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                if int(self.model.optimizer.iterations.numpy()) == die_at:
                    raise KeyboardInterrupt

        keras.utils.set_random_seed(3)
        model = compiled(mlp(), "adam")
        pruning = GradualPruning(
            target_sparsity=0.9,
            end_step=14,
            every=1,
            directory=tmp_path / name,
        )
        others = (
            [keras.callbacks.BackupAndRestore(tmp_path / f"{name}.backup")]
            if backup
            else []
        )
        try:
            history = model.fit(
                batches(*data), epochs=4, verbose=0,
                callbacks=[*others, pruning, Die()],
            )  # fmt: skip
        except KeyboardInterrupt:
            return None
        return history.epoch, pruning.ticket

    assert run("killed", die_at=2) is None
    assert run("killed", die_at=9) is None
    epochs, resumed = run("killed")
    assert epochs == [2, 3]
    _, whole = run("whole")
    assert resumed.hamming_distance(whole) == 0
    for path, weight in whole.weights.items():
        np.testing.assert_array_equal(weight, resumed.weights[path])


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
