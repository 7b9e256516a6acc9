"""The sparsity in the logs is that of the zeros that are there."""

import keras
import numpy as np

import tf_tickets as tt
from tests.conftest import batches, compiled, mlp
from tf_tickets.callbacks import EnforceTicket, SparsityLogger


def test_the_logger_counts_the_zeros_that_are_there(data, tmp_path):
    model = compiled(mlp())
    tt.prune(model, 0.75, scope="layer").apply(model)
    tt.release(model)
    kernel = np.ones((8, 32))
    kernel[:, 8:] = 0
    model.get_layer("hidden").kernel.assign(kernel)
    tensorboard = keras.callbacks.TensorBoard(tmp_path)
    history = model.fit(
        batches(*data),
        verbose=0,
        callbacks=[
            EnforceTicket(tt.Ticket.from_model(model)),
            SparsityLogger(per_layer=True),
            tensorboard,
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        ],
    ).history
    assert history["sparsity"] == [0.75]
    assert history["sparsity/mlp/hidden/kernel"] == [0.75]
    assert "sparsity" in (tmp_path / "log.csv").read_text()
    events = b"".join(
        p.read_bytes() for p in tmp_path.rglob("events*") if p.is_file()
    )
    assert b"epoch_sparsity" in events
