"""Every kind of model goes through every operation; see docs/models.md."""

import keras
import numpy as np
import pytest

import tf_tickets as tt
from benchmarks import model_matrix
from benchmarks.model_kinds import KINDS
from tests.conftest import batches, compiled, mlp

# What is quick; the script runs the others.
FAST = [
    "sequential",
    "nested, names repeated",
    "subclassed, with attention",
    "one layer shared by two inputs",
    "dictionaries of inputs and outputs",
    "custom layer, kernel named otherwise",
    "the same without `filters`",
    "Bidirectional LSTM, then SimpleRNN",
    "ConvLSTM2D",
    "zeros in its weights, no masks",
    '`model.quantize("int8")`',
    "one layer in int8",
]


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("name", FAST)
def test_every_operation_works_on(name):
    result = model_matrix.run(KINDS[name])
    assert result.good, result.outcomes
    assert bool(result.prunable) == (not KINDS[name].known)


def test_a_model_of_kerashub_works():
    pytest.importorskip("keras_hub")
    result = model_matrix.run(KINDS["BertBackbone"])
    assert result.good, result.outcomes


def test_a_wrong_result_is_seen(monkeypatch):
    """The matrix fails when masks do not hold."""
    monkeypatch.setattr(
        tt.masking, "masked", lambda w, mask: keras.ops.convert_to_tensor(w)
    )
    outcomes = model_matrix.run(KINDS["sequential"]).outcomes
    assert "has lost zeros" in outcomes["prune, apply"]
    assert outcomes["fit"] == model_matrix.UNTRIED


def test_lora_is_dense_and_says_so(data, tmp_path):
    model = mlp()
    model.get_layer("head").enable_lora(2)
    ticket = tt.prune(model, 0.75)
    with pytest.warns(UserWarning, match="low-rank update.*head/kernel"):
        ticket.apply(model)
    compiled(model).fit(batches(*data), verbose=0)
    head = model.get_layer("head")
    mask = ticket.masks["mlp/head/kernel"]
    assert (head._kernel.numpy()[~mask] == 0).all()
    # What the layer computes with, and what a file of it holds, is dense.
    assert np.count_nonzero(np.asarray(head.kernel)) > mask.sum()
    model.save(tmp_path / "model.keras")
    merged = keras.models.load_model(tmp_path / "model.keras")
    assert np.count_nonzero(merged.get_layer("head").kernel) > mask.sum()


def test_quantizing_keeps_the_zeros_of_a_ticket():
    model = mlp()
    ticket = tt.prune(model, 0.75)
    ticket.apply(model)
    model.quantize("int8")
    kernel = np.asarray(model.get_layer("hidden")._kernel)
    assert kernel.dtype == np.int8
    assert not kernel[~ticket.masks["mlp/hidden/kernel"]].any()
    with pytest.raises(ValueError, match="quantize it after pruning"):
        tt.prune(model, 0.9)
