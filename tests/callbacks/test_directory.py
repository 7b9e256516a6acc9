"""One training in a directory at a time."""

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

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests.callbacks.conftest import KINDS, drawing
from tests.conftest import DieAt, batches, compiled, mlp
from tf_tickets.callbacks.directory import hold

C = tt.callbacks

# The other side knows only the file's name.

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
    for _ in range(5):  # forks of a process as large as this one take long
        child = os.fork()
        if not child:
            lock = hold(tmp_path)
            if not lock.is_locked:
                os._exit(1)
            os.kill(os.getpid(), 9)
        status = os.waitpid(child, 0)[1]
        assert os.waitstatus_to_exitcode(status) == -9  # it held
        lock = hold(tmp_path)
        assert lock.is_locked
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
