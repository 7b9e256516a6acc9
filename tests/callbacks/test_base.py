"""Guards, what is undone, steps, and directories that a run ends in."""

import contextlib
import gc
import warnings

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests.callbacks.conftest import KINDS, drawing
from tests.conftest import DieAt, batches, compiled, mlp
from tf_tickets.callbacks.base import StepCounter, TicketCallback

C = tt.callbacks


class Changes(TicketCallback):
    """Changes something for the time of training."""

    def __init__(self, fails=None):
        super().__init__()
        self.fails = fails
        self.said = []

    def begin(self):
        self._undo.callback(self.said.append, "undone")
        self.said.append("changed")
        self._fail("begin")

    def epoch_end(self, epoch, logs):
        self._fail("epoch_end")

    def end(self):
        self.said.append("end")
        self._fail("end")

    def _fail(self, where):
        if self.fails == where:
            raise RuntimeError(where)


@pytest.mark.parametrize("fails", [None, "begin", "epoch_end", "end"])
def test_what_is_changed_is_undone_when_training_ends(fails, data):
    callback = Changes(fails)
    with pytest.raises(RuntimeError) if fails else contextlib.nullcontext():
        compiled(mlp()).fit(batches(*data), verbose=0, callbacks=[callback])
    ended = ["end"] if fails in (None, "end") else []
    assert callback.said == ["changed", *ended, "undone"]


def test_what_an_interrupt_left_is_undone_when_the_next_training_begins(data):
    model, callback = compiled(mlp()), Changes()
    with pytest.raises(KeyboardInterrupt) as traceback:
        model.fit(batches(*data), verbose=0, callbacks=[callback, DieAt(0)])
    assert callback.said == ["changed"]
    model.fit(batches(*data), verbose=0, callbacks=[callback])
    assert callback.said[1:] == ["undone", "changed", "end", "undone"]
    del traceback


def test_what_an_interrupt_left_is_undone_with_its_last_trace(data):
    model, callback, held = compiled(mlp()), Changes(), []

    def fit(*others):
        return model.fit(
            batches(*data), verbose=0, callbacks=[callback, *others]
        )

    try:
        fit(DieAt(0))
    except KeyboardInterrupt as interrupt:
        held.append(interrupt)  # as a notebook does
        assert callback.said == ["changed"]
    later = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: held.clear()
    )
    # Its end comes while the next training runs, and touches it not.
    fit(later)
    assert callback.said == ["changed", "undone", "changed", "end", "undone"]
    with contextlib.suppress(KeyboardInterrupt):
        fit(DieAt(0))
    assert callback.said[5:] == ["changed", "undone"]


# ``(callback, whether its change holds)`` of each that changes the model.
CHANGED = {
    "LowPrecision": (
        lambda: C.LowPrecision(),
        lambda model: "call" in vars(model.get_layer("hidden")),
    ),
    "EarlyBird": (
        lambda: C.EarlyBird([0.5], stop=False, slimming=0.01),
        lambda model: model.get_layer("norm").gamma.regularizer is not None,
    ),
    "LowPrecision in a round": (
        lambda: C.IterativeMagnitudePruning(
            target_sparsity=0.5,
            epochs_per_round=3,
            round_callbacks=[C.LowPrecision()],
        ),
        lambda model: "call" in vars(model.get_layer("hidden")),
    ),
}


@pytest.mark.filterwarnings("ignore:Training ended")
@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("name", CHANGED)
def test_what_an_interrupt_left_takes_no_change_of_the_next_along(
    name, part, data
):
    """Its traceback is kept, as a notebook does, and goes in mid-training."""
    make, holds = CHANGED[name]
    model = compiled(mlp())
    first = model
    if part:  # the interrupted training was that of a model around this one
        first = compiled(keras.Sequential([keras.Input((8,)), model]))
    held, seen = [], []

    def look(epoch, logs):
        held.clear()
        gc.collect()
        seen.append(holds(model))

    try:
        first.fit(
            batches(*data), epochs=3, verbose=0, callbacks=[make(), DieAt(1)]
        )
    except KeyboardInterrupt as interrupt:
        held.append(interrupt)
        assert holds(model) or part
    model.fit(
        batches(*data), epochs=3, verbose=0,
        callbacks=[
            make(),
            keras.callbacks.LambdaCallback(on_epoch_begin=look),
        ],
    )  # fmt: skip
    assert seen == [True] * 3
    assert not holds(model)


def test_trainings_that_are_still_running_are_left_alone(data):
    """A training inside one, and one in a loop of a person's own."""
    model, outer, inner = compiled(mlp()), Changes(), Changes()
    within = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: model.fit(
            batches(*data), verbose=0, callbacks=[inner]
        )
    )
    ended = ["changed", "end", "undone"]
    model.fit(batches(*data), verbose=0, callbacks=[outer, within])
    assert outer.said == inner.said == ended

    loop = keras.callbacks.CallbackList([outer], model=model)
    loop.on_train_begin()
    model.fit(batches(*data), verbose=0, callbacks=[inner])
    assert outer.said == [*ended, "changed"]
    loop.on_train_end()
    assert outer.said == [*ended, *ended]


def test_a_list_that_is_given_to_fit_again_begins_anew(data):
    """All that its interrupt left is undone before anything is changed."""
    model, said = compiled(mlp()), []

    class Says(Changes):
        def __init__(self):
            super().__init__()
            self.said = said

    die = DieAt(0)
    again = keras.callbacks.CallbackList(
        [Says(), Says(), die], add_history=True, model=model
    )
    with pytest.raises(KeyboardInterrupt) as traceback:
        model.fit(batches(*data), verbose=0, callbacks=again)
    said.clear()
    die.epoch = None
    model.fit(batches(*data), verbose=0, callbacks=again)
    assert said == ["undone"] * 2 + ["changed"] * 2 + ["end", "undone"] * 2
    del traceback


@pytest.mark.parametrize(
    ("kind", "validated"),
    [
        *((kind, False) for kind in (*KINDS, "enforce")),
        ("rounds", True),
        ("enforce", True),
    ],
)
def test_data_without_a_batch_is_an_error(kind, validated, data):
    if kind == "enforce":
        model = compiled(mlp())
        callback = C.EnforceTicket(tt.prune(model, 0.5))
    else:
        model, callback = drawing(kind)
    with (
        pytest.warns(UserWarning, match="ran out of data"),
        pytest.raises(ValueError, match="had no batch.*in epoch 0"),
    ):
        model.fit(
            batches(*data).take(0),
            validation_data=batches(*data) if validated else None,
            epochs=4,
            verbose=0,
            callbacks=[callback],
        )


def test_callbacks_that_count_no_steps_do_not_wait_for_them():
    """Keras runs every step to its end if one callback overrides this."""
    plain = keras.callbacks.Callback.on_train_batch_end
    waiting = {
        name
        for name in C.__all__
        if isinstance(getattr(C, name), type)
        and getattr(C, name).on_train_batch_end is not plain
    }
    assert waiting == {
        "DynamicSparseTraining",
        "GradualPruning",
        "IterativeMagnitudePruning",
        "Rewind",
    }


def test_steps_are_counted_across_calls_and_epochs():
    steps, seen = StepCounter(10), []
    # Seven batches in calls of three, twice.
    for _ in range(2):
        steps.new_epoch()
        for batch in (2, 5, 6):
            seen.append(list(steps.advance(batch)))
    assert seen == [
        [11, 12, 13], [14, 15, 16], [17],
        [18, 19, 20], [21, 22, 23], [24],
    ]  # fmt: skip
    assert steps.step == 24


@pytest.mark.filterwarnings("ignore:Training ended")
@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_after_an_interrupted_resumed_one_starts_at_its_own_epoch(
    kind, data, tmp_path
):
    for die_at in (2, 3):
        model, callback = drawing(kind, tmp_path)
        with pytest.raises(KeyboardInterrupt):
            model.fit(
                batches(*data), epochs=4, verbose=0,
                callbacks=[callback, DieAt(die_at)],
            )  # fmt: skip
    assert model.fit(batches(*data), epochs=2, verbose=0).epoch == [0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_directory_says_that_the_model_gets_its_state(
    kind, data, tmp_path
):
    def run(epochs=4):
        model, callback = drawing(kind, tmp_path / "run")
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            model.fit(
                batches(*data), epochs=epochs, verbose=0, callbacks=[callback]
            )
        said = [str(w.message) for w in found]
        return model.get_weights(), [one for one in said if "finished" in one]

    weights, said = run()
    assert not said
    again, said = run()
    assert len(said) == 1, said
    assert str(tmp_path / "run") in said[0] and "another" in said[0]
    for one, other in zip(weights, again, strict=True):
        np.testing.assert_array_equal(one, other)
    _, said = run(epochs=5)  # rounds that are done are done; others go on
    assert len(said) == (kind == "rounds")


def test_masks_are_put_right_before_a_callback_looks(data):
    """Weights that another callback writes past the constraint."""
    model, seen = compiled(mlp()), []
    ticket = tt.prune(model, 0.75)
    dense = model.get_weights()

    class Looks(TicketCallback):
        keeps_masks = True

        def epoch_end(self, epoch, logs):
            kernel = self.model.get_layer("hidden").kernel
            mask = ticket.masks[kernel.path]
            seen.append((kernel.numpy()[~mask] == 0).all())

    careless = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: model.set_weights(dense)
    )
    ticket.apply(model)
    model.fit(
        batches(*data), epochs=2, verbose=0, callbacks=[careless, Looks()]
    )
    assert seen == [True, True]
    assert np.count_nonzero(dense[0]) == dense[0].size
