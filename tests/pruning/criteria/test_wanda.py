"""Wanda against NumPy: products of weights and inputs, ranked by output."""

import functools

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests import gallery
from tests.conftest import batches, compiled, only_read
from tests.pruning.conftest import KINDS
from tests.pruning.criteria.oracle import all_true
from tf_tickets.pruning import wanda


def images():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            keras.layers.Conv2D(5, 3, strides=2, name="conv"),
            keras.layers.ReLU(name="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(4, name="head"),
        ],
        name="images",
    )
    return model, gallery.inputs(model, count=10)


def products(model, x):
    """The oracle: window by window."""
    conv, head = (model.get_layer(n).kernel.numpy() for n in ("conv", "head"))
    squares = np.zeros((3, 3, 3))
    for i in (0, 2):
        for j in (0, 2):
            squares += (x[:, i : i + 3, j : j + 3] ** 2).sum(0)
    inside = keras.Model(model.inputs[0], model.get_layer("relu").output)
    h = inside(x).numpy().reshape(len(x), -1)
    return {
        "images/conv/kernel": np.abs(conv) * np.sqrt(squares)[..., None],
        "images/head/kernel": np.abs(head) * np.linalg.norm(h, axis=0)[:, None],
    }


def test_scores_are_weights_times_the_norms_of_inputs():
    model, x = images()
    expected = products(model, x)
    with only_read(model):
        whole = wanda(model, all_true(model), data=x, ranked="none")
    cut = wanda(model, all_true(model), data=x, ranked="none", batch_size=3)
    for path, score in expected.items():
        np.testing.assert_allclose(whole[path], score, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(cut[path], score, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_every_output_keeps_its_best(scope):
    model, x = images()
    expected = products(model, x)
    ticket = tt.prune(
        model, 2 / 3, criterion="wanda", scope=scope, data=batches(x, x, 5)
    )
    head = ticket.masks["images/head/kernel"]
    conv = ticket.masks["images/conv/kernel"].reshape(27, 5)
    assert (conv.sum(0) == 9).all()
    # 20 inputs: a third is 6.67, so that some outputs keep one more.
    assert set(head.sum(0)) == {6, 7} and head.sum() == 27
    for mask, path in ((conv, "conv"), (head, "head")):
        score = expected[f"images/{path}/kernel"].reshape(mask.shape)
        for column in range(mask.shape[1]):
            kept = mask[:, column]
            assert score[kept, column].min() > score[~kept, column].max()


def test_n_of_m_are_the_best_of_their_inputs():
    model, x = images()
    ticket = tt.prune(
        model, criterion="wanda", pattern="2:4", filters="head", data=x
    )
    score = products(model, x)["images/head/kernel"].reshape(5, 4, 4)
    order = np.argsort(-score, axis=1)[:, :2]
    expected = np.zeros(score.shape, bool)
    np.put_along_axis(expected, order, True, axis=1)
    [mask] = ticket.masks.values()
    np.testing.assert_array_equal(mask.reshape(5, 4, 4), expected)


def test_inputs_are_those_of_the_masked_model():
    model, x = images()
    conv = np.random.default_rng(0).random((3, 3, 3, 5)) < 0.5
    masks = {**all_true(model), "images/conv/kernel": conv}
    found = wanda(model, masks, data=x, ranked="none")["images/head/kernel"]
    tt.Ticket({"images/conv/kernel": conv}).apply(model, weights="keep")
    np.testing.assert_allclose(
        found, products(model, x)["images/head/kernel"], rtol=1e-4, atol=1e-6
    )
    again = tt.prune(model, 0.75, criterion="wanda", data=x, iterations=3)
    assert again.kept == round(0.25 * again.size)


@pytest.mark.parametrize("kind", [*KINDS, "hub"])
def test_a_model_of_any_kind_is_scored_and_only_read(kind):
    if kind == "hub":
        model = compiled(gallery.subclassed_attention())
        data = np.random.default_rng(0).normal(size=(12, 5, 8))
    else:
        model, (data, _) = KINDS[kind]()
        data = [data]
    with only_read(model):
        ticket = tt.prune(model, 0.5, criterion="wanda", data=data)
    assert ticket.kept == round(ticket.size / 2)
    for scores in ticket.scores.values():
        assert scores.dtype == np.float32 and np.isfinite(scores).all()
        assert 0 <= scores.min() and scores.max() < 1


def test_in_training(data):
    model = compiled(gallery.mlp())
    pruning = tt.callbacks.GradualPruning(
        target_sparsity=0.5, end_step=4, every=2, criterion="wanda", data=data
    )
    model.fit(batches(*data), epochs=2, verbose=0, callbacks=[pruning])
    assert pruning.ticket.sparsity == 0.5
    with pytest.raises(ValueError, match="criterion='wanda' scores on data"):
        pruning = tt.callbacks.GradualPruning(
            target_sparsity=0.5, end_step=4, criterion="wanda"
        )
        model.fit(batches(*data), verbose=0, callbacks=[pruning])


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (gallery.mlp, {"data": None}, "criterion='wanda' scores on data"),
        (gallery.mlp, {"data": []}, "at least one batch"),
        (gallery.mlp, {"ranked": "layer"}, "`ranked` must be"),
        (gallery.mlp, {"batch_size": 0}, "`batch_size`"),
        (gallery.mlp, {"data": np.full((2, 8), np.inf)}, "must be finite"),
        (gallery.recurrent, {}, "no rule says what a LSTMCell multiplies"),
    ],
)
def test_bad_input_is_one_clear_error(make, options, message):
    options = {"data": np.ones((2, 8), "float32"), **options}
    data = options.pop("data")
    model = make()
    with only_read(model), pytest.raises(ValueError, match=message):
        tt.prune(
            model,
            0.5,
            criterion=functools.partial(wanda, **options),
            data=data,
        )
