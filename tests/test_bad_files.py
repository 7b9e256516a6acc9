"""Runs that meet a full disk or a directory that is not theirs to write."""

import errno

import numpy as np
import pytest

import tf_tickets as tt
from tests.conftest import batches, compiled, mlp
from tf_tickets import archive
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
            tt.prune(model, 0.5).save(f"{place}.safetensors")
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
