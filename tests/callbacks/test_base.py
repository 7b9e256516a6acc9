"""Guards, what is undone, steps, and directories that one training holds."""

import contextlib
import errno
import fcntl
import gc
import multiprocessing
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import warnings

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests.conftest import DieAt, batches, compiled, mlp
from tf_tickets.callbacks.base import (
    StepCounter,
    TicketCallback,
    history_row,
    hold,
)

C = tt.callbacks


def drawing(kind, directory=None):
    """``(model, callback)``: each callback that can be resumed."""
    if kind == "freezing":
        model = compiled(tt.supermask(mlp()), keras.optimizers.SGD(0.1))
        return model, C.IterativeFreezing(0.5, every=1, directory=directory)
    model = compiled(mlp(), keras.optimizers.SGD(0.1, momentum=0.9))
    return model, {
        "rounds": lambda: C.IterativeMagnitudePruning(
            target_sparsity=0.5,
            rounds=2,
            epochs_per_round=2,
            directory=directory,
        ),
        "gradual": lambda: C.GradualPruning(
            target_sparsity=0.5, end_step=12, every=1, directory=directory
        ),
        "early_bird": lambda: C.EarlyBird(
            [0.5], stop=False, epsilon=1.0, window=2, directory=directory
        ),
    }[kind]()


KINDS = ["rounds", "gradual", "freezing", "early_bird"]


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


@pytest.mark.parametrize("kind", KINDS)
def test_an_ended_interrupt_lets_nobody_into_the_next_training(
    kind, data, tmp_path
):
    """Of a new model, too: a cell that makes it is run a second time."""
    held, seen = [], []
    model, callback = drawing(kind, tmp_path)
    try:
        model.fit(
            batches(*data), epochs=4, verbose=0,
            callbacks=[callback, DieAt(2)],
        )  # fmt: skip
    except KeyboardInterrupt as interrupt:
        held.append(interrupt)
    model, callback = drawing(kind, tmp_path)

    def look(epoch, logs):
        held.clear()
        gc.collect()
        seen.append(other_process(tmp_path))

    look = keras.callbacks.LambdaCallback(on_epoch_begin=look)
    model.fit(batches(*data), epochs=4, verbose=0, callbacks=[callback, look])
    assert seen == ["refused"] * 2
    assert other_process(tmp_path) == "held"


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


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, "enforce"])
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


def test_a_row_has_the_last_and_the_best_of_every_metric():
    row = history_row(
        [
            {"loss": 3.0, "val_accuracy": 0.2},
            {"loss": 1.0, "val_accuracy": 0.9},
            {"loss": 2.0, "val_accuracy": 0.5},
        ]
    )
    assert row == {
        "loss": 2.0,
        "best_loss": 1.0,
        "val_accuracy": 0.5,
        "best_val_accuracy": 0.9,
    }


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
    for _ in range(2):
        again, said = run()
        assert len(said) == 1, said
        assert str(tmp_path / "run") in said[0] and "another" in said[0]
        for one, other in zip(weights, again, strict=True):
            np.testing.assert_array_equal(one, other)
    _, said = run(epochs=5)  # rounds that are done are done; others go on
    assert len(said) == (kind == "rounds")


# One training in a directory. The other side knows only the file's name.

HOLDER = """
    import sys, time
    import filelock
    lock = filelock.FileLock(sys.argv[1] + "/lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        print("refused", flush=True)
    else:
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
"""


def holder(directory, seconds=60):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER),
         str(directory), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    return process, process.stdout.readline().strip()


def other_process(directory):
    process, said = holder(directory, 0)
    process.wait()
    return said


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_process_is_refused_until_the_first_is_killed(
    kind, data, tmp_path
):
    run = tmp_path / "run"
    run.mkdir()
    model, callback = drawing(kind, run)
    first, said = holder(run)
    assert said == "held"
    for _ in range(2):
        with pytest.raises(ValueError, match="Another process.*Received: dir"):
            model.fit(batches(*data), epochs=4, verbose=0, callbacks=[callback])
    assert int(model.optimizer.iterations.numpy()) == 0
    first.kill()  # -9: nothing of its own can clean up
    first.wait()
    assert (run / "lock").exists()
    held = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: held.append(other_process(run))
    )
    model.fit(batches(*data), epochs=4, verbose=0, callbacks=[callback, watch])
    assert held == ["refused"] * 4
    assert (run / "lock").read_text() == f"{os.getpid()}\n"
    # It has let go: another process may go on.
    assert other_process(run) == "held"


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_is_refused_lets_go(kind, data, tmp_path):
    """Whatever the reason that is met when it begins."""
    _, callback = drawing(kind, tmp_path)
    model = keras.Sequential([keras.Input((8,)), keras.layers.ReLU()])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="Received"):
        model.fit(data[0], data[0], epochs=4, verbose=0, callbacks=[callback])
    tmp_path.joinpath("lock").touch()
    assert other_process(tmp_path) == "held"


def test_after_an_interrupt_the_same_thread_goes_on(data, tmp_path):
    model, interrupted = drawing("rounds", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            batches(*data), epochs=4, verbose=0,
            callbacks=[interrupted, DieAt(3)],
        )  # fmt: skip
    _, again = drawing("rounds", tmp_path)
    model.fit(batches(*data), epochs=4, verbose=0, callbacks=[again])
    assert again.ticket.sparsity == 0.5
    assert other_process(tmp_path) == "held"
    del interrupted  # which still thinks that it holds the directory


def test_the_lock_goes_with_the_last_trace_of_an_interrupt(data, tmp_path):
    model, interrupted = drawing("rounds", tmp_path)
    try:
        model.fit(
            batches(*data), epochs=4, verbose=0,
            callbacks=[interrupted, DieAt(3)],
        )  # fmt: skip
    except KeyboardInterrupt:
        assert other_process(tmp_path) == "refused"
    assert other_process(tmp_path) == "held"


def test_another_thread_is_refused(tmp_path):
    lock = hold(tmp_path)
    said = []

    def other():
        try:
            hold(tmp_path)
        except ValueError as error:
            said.append(str(error))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(said) == 1 and str(tmp_path) in said[0]
    lock.release()


def test_a_copy_of_the_directory_lets_nobody_in(tmp_path):
    lock = hold(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert other_process(tmp_path / "run") == "refused"
    assert other_process(tmp_path / "copy") == "held"
    lock.release()


def test_a_lock_is_taken_again_within_a_thread_and_never_by_a_child(tmp_path):
    first = hold(tmp_path)
    second = hold(tmp_path)
    child = os.fork()
    if not child:
        try:
            hold(tmp_path)
        except ValueError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert other_process(tmp_path) == "refused"
    second.release()
    assert other_process(tmp_path) == "held"
    first.release()  # nothing is left to release


def test_kills_leave_no_stale_lock(tmp_path):
    for _ in range(50):
        child = os.fork()
        if not child:
            lock = hold(tmp_path)
            os.kill(os.getpid(), 9)
        os.waitpid(child, 0)
        lock = hold(tmp_path)
        lock.release()


def test_workers_that_outlive_a_killed_process_hold_nothing(tmp_path):
    """As those that load data: nobody tells them that it was killed."""
    script = """
        import multiprocessing, sys, time
        import filelock
        lock = filelock.FileLock(sys.argv[1] + "/lock")
        lock.acquire()
        pool = multiprocessing.get_context("fork").Pool(2)
        pool.map(abs, [1, 2])
        print(*[p.pid for p in multiprocessing.active_children()], flush=True)
        time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    workers = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.wait()
    try:
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker, 0)  # it lives
        hold(tmp_path).release()
    finally:
        for worker in workers:
            os.kill(worker, 9)


# No user, root included, can make a directory there.
@pytest.mark.parametrize("place", ["/proc/tickets/run", "/proc/self/tickets"])
def test_a_directory_that_cannot_be_written_stops_before_training(place, data):
    model = compiled(mlp())
    before = model.get_weights()
    for callback in (
        C.IterativeMagnitudePruning(
            target_sparsity=0.5, epochs_per_round=1, directory=place
        ),
        C.GradualPruning(target_sparsity=0.5, end_step=2, directory=place),
    ):
        with pytest.raises(OSError, match="/proc"):
            model.fit(batches(*data), verbose=0, callbacks=[callback])
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_file_system_without_locks_holds_nothing(tmp_path, monkeypatch):
    def missing(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", missing)
    lock = hold(tmp_path)
    assert not lock.is_locked
    lock.release()


def test_of_several_processes_at_once_one_gets_in(tmp_path):
    """The number in the file is for people; the kernel decides."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    go = context.Event()

    def contend():
        go.wait()
        try:
            lock = hold(tmp_path)
        except ValueError:
            queue.put("refused")
        else:
            queue.put("held")
            done.wait()
            lock.release()

    done = context.Event()
    children = [context.Process(target=contend) for _ in range(4)]
    for child in children:
        child.start()
    go.set()
    said = sorted(queue.get(timeout=60) for _ in children)
    done.set()
    for child in children:
        child.join()
    assert said == ["held", "refused", "refused", "refused"]


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
