"""Trials start from one state, and the model ends in it."""

import numpy as np
import pytest

import tf_tickets as tt
from tests.conftest import batches, compiled, mlp, only_read
from tf_tickets.loss.trials import trials


def test_each_trial_starts_anew_and_nothing_is_left(data):
    model = compiled(mlp(), "adam")
    model.fit(batches(*data), epochs=1, verbose=0)
    tickets = [tt.prune(model, sparsity) for sparsity in (0.5, 0.75)]
    slots = [np.array(v) for v in model.optimizer.variables]
    seen = []

    def train(model):
        assert int(model.optimizer.iterations) == 4
        masks = tt.masking.attached_masks(model)
        seen.append(sum(int(m.sum()) for m in masks.values()))
        history = model.fit(batches(*data), epochs=1, verbose=0).history
        return history["loss"][0]

    with only_read(model, metrics=False), trials(model) as run:
        first = run(tickets[0], train, 1)
        other = run(tickets[1], train, 1)
        again = run(tickets[0], train, 1)
        assert first == again != other
        assert seen == [192, 96, 192]
    assert not tt.masking.attached_masks(model)
    for old, new in zip(slots, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_failed_trial_leaves_nothing_either(data):
    model = compiled(mlp())
    tt.prune(model, 0.5).apply(model)
    ticket = tt.prune(model, 0.75)
    with (
        only_read(model, metrics=False),
        pytest.raises(ValueError, match="finite number.*'good'"),
        trials(model) as run,
    ):
        run(ticket, lambda model: "good", 0)
    assert tt.Ticket.from_model(model).sparsity == 0.5
