"""A SavedModel serves the ticket in a process without tf_tickets."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests.conftest import batches, compiled, mlp


def test_a_process_without_the_library_serves_the_same_zeros(data, tmp_path):
    model = compiled(mlp())
    ticket = tt.prune(model, 0.75)
    ticket.apply(model)
    model.fit(batches(*data), verbose=0)
    path = tt.export.saved_model(model, tmp_path / "served")
    assert [p.name for p in tmp_path.iterdir()] == ["served"]
    np.save(tmp_path / "x.npy", data[0])
    script = f"""
        import sys
        import numpy as np, tensorflow as tf
        model = tf.saved_model.load({str(path)!r})
        x = np.load({str(tmp_path / "x.npy")!r})
        signature = model.signatures["serving_default"]
        assert len(signature.structured_input_signature[1]) == 1
        np.save({str(tmp_path / "y.npy")!r}, model.serve(x))
        model.serve(x[:1])  # another batch size
        print(*sorted(
            int((v.numpy() == 0).sum()) for v in model.kept
            if len(v.shape) == 2))
        assert "tf_tickets" not in sys.modules
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    zeros = sorted(int((~m).sum()) for m in ticket.masks.values())
    assert [int(n) for n in done.stdout.split()] == zeros
    np.testing.assert_allclose(
        np.load(tmp_path / "y.npy"), model(data[0]), rtol=1e-5, atol=1e-6
    )


def test_what_went_past_the_mask_is_not_exported(tmp_path):
    model = mlp()
    weights = model.get_weights()
    tt.prune(model, 0.75).apply(model)
    model.set_weights(weights)
    tt.export.saved_model(model, tmp_path / "m")
    assert tt.Ticket.from_model(model).sparsity == 0.75
    assert (model.get_layer("hidden").kernel.numpy() == 0).any()


def test_bad_requests_write_nothing(tmp_path, monkeypatch):
    model = mlp()
    with pytest.raises(ValueError, match="Received: format='zip'"):
        tt.export.saved_model(model, tmp_path / "m", format="zip")
    (tmp_path / "here").mkdir()
    with pytest.raises(FileExistsError, match="here"):
        tt.export.saved_model(model, tmp_path / "here")

    def full_disk(module, path, **_):
        Path(path).mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        tt.export.saved_model(model, tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["here"]
