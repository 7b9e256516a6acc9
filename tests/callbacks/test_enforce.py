"""A ticket's zeros hold, whatever other callbacks write."""

import keras
import pytest

import tf_tickets as tt
from tests.conftest import batches, compiled, mlp
from tf_tickets.callbacks import EnforceTicket
from tf_tickets.selection import named_weights


def test_enforce_ticket_applies_and_repairs(data):
    model = compiled(mlp(), "adam")
    ticket = tt.prune(model, 0.75)
    dense = model.get_weights()

    class Careless(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.set_weights(dense)

    model.fit(
        batches(*data), epochs=2, verbose=0,
        callbacks=[Careless(), EnforceTicket(ticket)],
    )  # fmt: skip
    for path, mask in ticket.masks.items():
        value = named_weights(model)[path].numpy()
        assert (value[~mask] == 0).all()


def test_enforce_ticket_needs_a_ticket_or_a_mask(data):
    model = compiled(mlp())
    with pytest.raises(ValueError, match="no mask to enforce"):
        model.fit(batches(*data), verbose=0, callbacks=[EnforceTicket()])
    with pytest.raises(ValueError, match="must be a tf_tickets.Ticket"):
        EnforceTicket("ticket.safetensors")
    with pytest.raises(ValueError, match="Received: weights='init'"):
        EnforceTicket(weights="init")
    with pytest.raises(ValueError, match="do not fit"):
        ticket = tt.prune(mlp(hidden=16), 0.5)
        model.fit(batches(*data), verbose=0, callbacks=[EnforceTicket(ticket)])
