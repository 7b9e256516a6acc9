"""The loss over data: of all samples, in the kept weights, once traced."""

import numpy as np
import pytest

import tf_tickets as tt
from tests.analysis.conftest import tiny
from tests.conftest import compiled, mlp
from tf_tickets.loss.over_data import LossOverData, inner, moved, scaled


def test_it_is_the_loss_of_evaluate_however_the_data_is_cut(data):
    model = compiled(mlp())
    expected = model.evaluate(*data, verbose=0)[0]
    for size in (64, 10):
        function = LossOverData(model, data, needed_by="test", batch_size=size)
        assert function.value(function.weights()) == pytest.approx(
            expected, rel=1e-5
        )


def test_slope_and_product_stay_in_the_kept_weights(data):
    model = tiny()  # smooth, so that differences say what derivatives are
    some = data[0][:, :3], data[1] % 3
    ticket = tt.prune(model, 0.5)
    function = LossOverData(
        model, some, needed_by="test", ticket=ticket, batch_size=10
    )
    at = function.weights()
    direction = function.random(0)
    for vector in (
        direction,
        function.slope(at),
        function.product(at, direction),
    ):
        for key, mask in ticket.masks.items():
            assert (vector[key].numpy()[~mask] == 0).all()
            assert np.count_nonzero(vector[key].numpy()[mask])
    # Central differences of the slope along the direction.
    step = 1e-2
    ahead, behind = (
        function.slope(moved(at, scaled(direction, sign * step)))
        for sign in (1, -1)
    )
    bend = inner(direction, ahead) - inner(direction, behind)
    assert inner(direction, function.product(at, direction)) == pytest.approx(
        bend / (2 * step), rel=2e-2
    )


def test_new_weights_take_no_new_trace(data):
    model = compiled(mlp())
    traces = []

    def loss(y_true, y_pred):
        traces.append(1)
        return (y_pred - 1.0) ** 2

    function = LossOverData(model, data, needed_by="test", loss=loss)
    first = function.value(function.weights())
    seen = len(traces)
    model.get_layer("head").bias.assign([1.0, 2.0, 3.0, 4.0])
    assert function.value(function.weights()) != first
    assert len(traces) == seen


def test_only_prunable_weights_on_request(data):
    model = compiled(mlp())
    function = LossOverData(model, data, needed_by="test", only="prunable")
    assert function.keys == list(tt.prunable_weights(model))
    with pytest.raises(ValueError, match="`only` must be 'all' or"):
        LossOverData(model, data, needed_by="test", only="some")
    model.trainable = False
    with pytest.raises(ValueError, match="test needs trainable weights"):
        LossOverData(model, data, needed_by="test")
