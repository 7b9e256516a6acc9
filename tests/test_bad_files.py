"""Runs that meet a full disk or another process on their directory."""

import errno
import os
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import tf_tickets as tt
from tests.conftest import batches, compiled, mlp
from tf_tickets import archive
from tf_tickets.callbacks import lock
from tf_tickets.selection import named_weights


def test_a_full_disk_stops_a_run_that_can_go_on(data, tmp_path, monkeypatch):
    def imp():
        return tt.callbacks.IterativeMagnitudePruning(
            target_sparsity=0.5, rounds=2, epochs_per_round=1,
            directory=tmp_path / "run",
        )  # fmt: skip

    one = imp()
    real, calls = archive.write, []

    def write(*args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args)

    monkeypatch.setattr(archive, "write", write)
    with pytest.raises(OSError, match="No space left"):
        compiled(mlp()).fit(
            batches(*data), epochs=one.epochs, verbose=0, callbacks=[one]
        )
    monkeypatch.undo()
    two = imp()
    compiled(mlp()).fit(
        batches(*data), epochs=two.epochs, verbose=0, callbacks=[two]
    )
    assert two.ticket.sparsity == 0.5


def test_a_directory_that_cannot_be_written_stops_before_training(
    data, monkeypatch
):
    model = compiled(mlp())
    before = {k: v.numpy() for k, v in named_weights(model).items()}
    # No user, root included, can make a directory there.
    for place in ("/proc/tickets/run", "/proc/self/tickets"):
        with pytest.raises(OSError, match="/proc"):
            tt.prune(model, 0.5).save(f"{place}.npz")
        for callback in (
            tt.callbacks.IterativeMagnitudePruning(
                target_sparsity=0.5, epochs_per_round=1, directory=place
            ),
            tt.callbacks.GradualPruning(
                target_sparsity=0.5, end_step=2, directory=place
            ),
        ):
            with pytest.raises(OSError, match="/proc"):
                model.fit(batches(*data), verbose=0, callbacks=[callback])
        with pytest.raises(OSError, match="/proc"):
            tt.export.saved_model(model, place)
    for key, variable in named_weights(model).items():
        np.testing.assert_array_equal(variable.numpy(), before[key])


# Two processes on one directory.

HOLDER = """
    import sys, time
    from pathlib import Path
    import importlib.util
    spec = importlib.util.spec_from_file_location("lock", sys.argv[1])
    lock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lock)
    try:
        lock.acquire(Path(sys.argv[2]))
    except ValueError as error:
        print("refused:", error, flush=True)
    else:
        print("held", flush=True)
        time.sleep(float(sys.argv[3]))
"""


def holder(directory, seconds=60):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), lock.__file__,
         str(directory), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    return process, process.stdout.readline()


@pytest.mark.parametrize("kind", ["rounds", "epochs"])
def test_a_second_process_is_refused_until_the_first_is_killed(
    kind, data, tmp_path
):
    run = tmp_path / "run"
    run.mkdir()
    options = {"target_sparsity": 0.5, "directory": run}
    callback = (
        tt.callbacks.IterativeMagnitudePruning(epochs_per_round=1, **options)
        if kind == "rounds"
        else tt.callbacks.GradualPruning(end_step=2, frequency=1, **options)
    )
    model = compiled(mlp())
    first, said = holder(run)
    assert said == "held\n"
    for _ in range(2):
        with pytest.raises(ValueError, match="Another process.*Received: dir"):
            model.fit(batches(*data), verbose=0, callbacks=[callback])
    assert int(model.optimizer.iterations.numpy()) == 0
    first.kill()  # -9: nothing of its own can clean up
    first.wait()
    assert (run / "lock").exists()
    model.fit(batches(*data), verbose=0, callbacks=[callback])
    assert callback.ticket.sparsity == 0.5
    # It has let go: another process may go on.
    second, said = holder(run, 0)
    assert said == "held\n"
    second.wait()


def test_a_lock_is_taken_over_within_a_process_and_ends_with_it(tmp_path):
    lock.acquire(tmp_path)
    lock.acquire(tmp_path)  # as after an interrupted `fit`
    other, said = holder(tmp_path, 0)
    assert said.startswith("refused: Another process")
    other.wait()
    child = os.fork()
    if not child:
        try:
            lock.acquire(tmp_path)
        except ValueError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    lock.release(tmp_path)
    lock.release(tmp_path)
    other, said = holder(tmp_path, 0)
    assert said == "held\n"
    other.wait()


def test_fifty_kills_leave_no_stale_lock(tmp_path):
    started = time.monotonic()
    for _ in range(50):
        child = os.fork()
        if not child:
            lock.acquire(tmp_path)
            os.kill(os.getpid(), 9)
        os.waitpid(child, 0)
        lock.acquire(tmp_path)
        lock.release(tmp_path)
    assert time.monotonic() - started < 60
