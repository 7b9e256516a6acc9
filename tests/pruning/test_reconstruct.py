"""Reconstruction against an Optimal Brain Surgeon in plain NumPy."""

import functools
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests import gallery
from tests.conftest import ZerosHold, batches, compiled, only_read
from tf_tickets.pruning import reconstruct
from tf_tickets.zoo import datasets


def related(count, size, seed=0):
    """Inputs that hang together, as those inside a network do."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(count, size)) @ rng.normal(size=(size, size))
    ).astype("float32")


def dense(rows, columns, seed=0):
    model = keras.Sequential(
        [keras.Input((rows,)), keras.layers.Dense(columns, name="only")]
    )
    weight = np.random.default_rng(seed).normal(size=(rows, columns))
    model.layers[0].kernel.assign(weight)
    return model


def surgeon(weight, x, chosen, damping):
    """The oracle: every step with an inverse of its own.

    Rows go in order. The inverse is that of the Hessian of the rows that are
    not done; a pruned weight is divided by its diagonal, and moves them all.
    """
    w = weight.astype(np.float64)
    h = x.astype(np.float64).T @ x.astype(np.float64)
    h += damping * np.mean(np.diag(h)) * np.eye(len(h))
    mask = np.ones(w.shape, bool)
    for i in range(len(w)):
        left = np.linalg.inv(h[i:, i:])
        part = chosen(i, w, lambda j: np.linalg.inv(h[j:, j:])[0, 0])
        if part is not None:
            mask[i : i + len(part)] = part
        for j in np.flatnonzero(~mask[i]):
            w[i:, j] -= w[i, j] / left[0, 0] * left[:, 0]
            w[i, j] = 0
    return mask, w


def largest_of_blocks(block, keep, i, w, inverse):
    if i % block:
        return None
    part = w[i : i + block]
    scores = part**2 / np.array([[inverse(i + k)] for k in range(len(part))])
    count = keep[i // block]
    order = np.argsort(-scores.ravel(), kind="stable")[:count]
    mask = np.zeros(part.size, bool)
    mask[order] = True
    return mask.reshape(part.shape)


def two_of_four(i, w, inverse):
    if i % 4:
        return None
    part = w[i : i + 4]
    scores = part**2 / np.array([[inverse(i + k)] for k in range(len(part))])
    mask = np.zeros(part.shape, bool)
    for column in range(part.shape[1]):
        mask[np.argsort(-scores[:, column], kind="stable")[:2], column] = True
    return mask


CASES = {
    "in one block": (
        {"sparsity": 0.5},
        functools.partial(largest_of_blocks, 128, [30]),
    ),
    "in blocks": (
        {"sparsity": 0.5, "block": 4},
        functools.partial(largest_of_blocks, 4, [12, 12, 6]),
    ),
    "2:4, ragged": ({"pattern": "2:4", "block": 6}, two_of_four),
}


@pytest.mark.parametrize("case", CASES)
def test_a_tiny_layer_is_what_a_brute_force_surgeon_leaves(case):
    options, chosen = CASES[case]
    model, x = dense(10, 6), related(40, 10)
    with only_read(model):
        ticket = reconstruct(model, data=x, damping=0.03, refine=0, **options)
    [(path, mask)] = ticket.masks.items()
    expected_mask, expected = surgeon(
        model.layers[0].kernel.numpy(), x, chosen, 0.03
    )
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_allclose(ticket.weights[path], expected, atol=2e-4)
    assert (ticket.weights[path][~mask] == 0).all()


@pytest.mark.parametrize("pattern", [(2, 3), "rows", "columns"])
def test_whole_groups_are_chosen_first_and_swept_then(pattern):
    model, x = dense(10, 6), related(40, 10)
    ticket = reconstruct(model, 0.5, data=x, pattern=pattern, refine=0)
    weight = model.layers[0].kernel.numpy().astype(np.float64)
    h = x.astype(np.float64).T @ x
    inverse = np.linalg.inv(h + 0.01 * np.mean(np.diag(h)) * np.eye(10))
    scores = weight**2 / np.diag(inverse)[:, None]
    [(path, mask)] = ticket.masks.items()
    height, width = {"rows": (1, 6), "columns": (10, 1)}.get(pattern, pattern)
    blocks = scores.reshape(10 // height, height, 6 // width, width)
    means = blocks.mean((1, 3))
    kept = means >= np.sort(means.ravel())[-(means.size // 2)]
    expected = np.repeat(np.repeat(kept, height, 0), width, 1)
    np.testing.assert_array_equal(mask, expected)
    again, values = surgeon(
        weight, x, lambda i, w, inverse: expected[i : i + 1], 0.01
    )
    np.testing.assert_allclose(ticket.weights[path], values, atol=2e-4)


@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_refined_weights_are_the_best_that_the_masks_allow(pattern):
    model, x = dense(10, 6), related(40, 10)
    x[:, 3] = 0
    sparsity = 0.5 if pattern is None else None
    options = {"data": x, "pattern": pattern}
    plain = reconstruct(model, sparsity, refine=0, **options)
    some = reconstruct(model, sparsity, refine=3, **options)
    ticket = reconstruct(model, sparsity, refine=60, **options)
    [(path, mask)] = ticket.masks.items()
    assert plain.hamming_distance(ticket) == 0
    # By hand: the normal equations of each output, of its kept rows alone.
    w = model.layers[0].kernel.numpy().astype(np.float64)
    h = x.astype(np.float64).T @ x
    h += 0.01 * np.mean(np.diag(h)[np.diag(h) > 0]) * np.eye(10)
    expected = np.zeros_like(w)
    for j in range(6):
        kept = mask[:, j]
        expected[kept, j] = np.linalg.solve(
            h[np.ix_(kept, kept)], h[kept] @ w[:, j]
        )
    np.testing.assert_allclose(ticket.weights[path], expected, atol=1e-4)
    errors = [
        one.metadata["errors"][path]["reconstructed"]
        for one in (ticket, some, plain)
    ]
    assert errors[0] < errors[1] < errors[2]


def test_each_layer_sees_what_the_pruned_layers_before_make(data):
    model = gallery.mlp()
    x = related(50, 8)
    ticket = reconstruct(model, 0.6, data=x)
    errors = ticket.metadata["errors"]
    assert [path.split("/")[1] for path in errors] == ["hidden", "head"]
    old = model.get_layer("head").kernel.numpy().astype(np.float64)
    ticket.apply(model)
    inside = keras.Model(model.inputs[0], model.get_layer("drop").output)
    h = inside(x).numpy().astype(np.float64)
    new = model.get_layer("head").kernel.numpy()
    mask = ticket.masks["mlp/head/kernel"]
    smallest = np.abs(old) < np.sort(np.abs(old).ravel())[-mask.sum()]
    for name, moved in {
        "reconstructed": new,
        "masked": old * mask,
        "magnitude": np.where(smallest, 0, old),
    }.items():
        error = ((h @ (old - moved)) ** 2).sum() / ((h @ old) ** 2).sum()
        np.testing.assert_allclose(
            errors["mlp/head/kernel"][name], error, rtol=1e-4
        )


KINDS = gallery.names("vector", without=("recurrent", "custom", "around"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_keeps_the_exact_count(kind):
    model = gallery.GALLERY[kind]()
    x = gallery.inputs(model, count=12)
    with only_read(model):
        ticket = reconstruct(model, 0.6, data=x, scope="erk")
    expected = tt.prune(model, 0.6, scope="erk")
    assert {p: m.sum() for p, m in ticket.masks.items()} == {
        p: m.sum() for p, m in expected.masks.items()
    }
    ticket.apply(model)
    compiled(model).fit(x, np.arange(12) % 4, verbose=0)
    assert tt.Ticket.from_model(model).hamming_distance(ticket) == 0


class Parts(keras.layers.Layer):
    """A block of a GPT: layers that only its attributes know."""

    def __init__(self, width, **options):
        super().__init__(**options)
        self.attention = keras.layers.MultiHeadAttention(2, width // 2)
        self.parts = [
            keras.layers.LayerNormalization(),
            keras.layers.Dense(2 * width, activation="gelu"),
            keras.layers.Dense(width),
        ]

    def build(self, shape):
        self.attention.build(shape, shape)
        for part in self.parts:
            part.build(shape)
            shape = part.compute_output_shape(shape)

    def call(self, x):
        y = x + self.attention(x, x, use_causal_mask=True)
        for part in self.parts:
            y = part(y)
        return x + y


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "bfloat16"])
def test_attention_inside_custom_layers_in_any_precision(policy, monkeypatch):
    keras.mixed_precision.set_global_policy(policy)
    tokens = keras.Input((6,), dtype="int32")
    x = keras.layers.Embedding(20, 16)(tokens)
    for _ in range(2):
        x = Parts(16)(x)
    model = keras.Model(tokens, keras.layers.Dense(20)(x))
    data = np.random.default_rng(0).integers(0, 20, (16, 6))
    passes = []
    # The function has the name of its module.
    work = sys.modules[reconstruct.__module__]._Work
    whole = work.hessian
    monkeypatch.setattr(
        work,
        "hessian",
        lambda self, stage: passes.append(len(stage)) or whole(self, stage),
    )
    with only_read(model):
        ticket = reconstruct(model, pattern="2:4", data=data)
    assert passes == [3, 1, 1, 1] * 2 + [1]  # query, key and value share one
    for path, mask in ticket.masks.items():
        new = ticket.weights[path]
        assert new.dtype == tt.prunable_weights(model)[path].numpy().dtype
        assert (np.asarray(new, "float32")[~mask] == 0).all()
    errors = ticket.metadata["errors"].values()
    better = [e["reconstructed"] < e["magnitude"] for e in errors]
    assert sum(better) >= len(better) - 1
    before = np.asarray(model(data), "float32")
    ticket.apply(model)
    assert np.isfinite(np.asarray(model(data), "float32")).all()
    assert not np.array_equal(np.asarray(model(data), "float32"), before)


@pytest.fixture(scope="module")
def digits():
    keras.utils.set_random_seed(0)
    data = datasets.load("digits", seed=0)
    x, y = (np.concatenate(parts) for parts in zip(*data.train, strict=True))
    test = [np.concatenate(parts) for parts in zip(*data.test, strict=True)]
    model = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            keras.layers.Flatten(),
            keras.layers.Dense(96, activation="relu"),
            keras.layers.Dense(96, activation="relu"),
            keras.layers.Dense(96, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    compiled(model, "adam").fit(x, y, epochs=15, verbose=0)
    return model, x, test


@pytest.mark.parametrize("sparsity", [0.6, 0.8])
def test_what_reconstruction_keeps_and_what_others_do(digits, sparsity):
    """The order of the publications, on images that were never seen."""
    model, x, test = digits
    start = model.get_weights()

    def loss(ticket):
        model.set_weights(start)
        ticket.apply(model)
        found, _ = model.evaluate(*test, verbose=0)
        tt.release(model)
        model.set_weights(start)
        return found

    options = {"scope": "layer", "data": x[:512]}
    made = reconstruct(model, sparsity, data=x[:512])
    wanda = tt.prune(model, sparsity, criterion="wanda", **options)
    assert loss(made) < loss(wanda) < loss(tt.prune(model, sparsity, **options))
    bound = {0.6: 0.5, 0.8: 0.8}[sparsity]
    for path, error in made.metadata["errors"].items():
        assert error["reconstructed"] <= bound * error["magnitude"], path


def test_masks_in_force_stay_and_lose_their_part(data):
    model = dense(8, 8)
    tt.prune(model, 0.5, criterion="random", seed=3).apply(model)
    before = tt.Ticket.from_model(model)
    ticket = reconstruct(model, 0.75, data=related(30, 8))
    assert ticket.kept == 16
    for path, mask in ticket.masks.items():
        assert not (mask & ~before.masks[path]).any()
    with pytest.raises(ValueError, match="below the current sparsity"):
        reconstruct(model, 0.25, data=related(30, 8))


def test_a_weight_without_an_input_goes_first_or_stays_as_it_was():
    x = related(30, 8)
    x[:, [2, 5]] = 0
    for sparsity, gone in ((0.125, False), (0.25, True)):
        model = dense(8, 8)
        [(path, mask)] = (
            ticket := reconstruct(model, sparsity, data=x)
        ).masks.items()
        assert mask[[0, 1, 3, 4, 6, 7]].all()
        dead = mask[[2, 5]]
        kept = ticket.weights[path][[2, 5]][dead]
        old = model.layers[0].kernel.numpy()[[2, 5]][dead]
        np.testing.assert_array_equal(kept, old)
        assert dead.sum() == (0 if gone else 8)
        assert ticket.metadata["errors"][path]["reconstructed"] < 1e-12


def test_a_ticket_is_saved_and_trained_as_others_are(tmp_path, data):
    model = compiled(gallery.mlp())
    ticket = reconstruct(model, scope={"hidden": 0.75}, data=batches(*data))
    assert ticket.metadata["source"] == "reconstruct"
    assert ticket.densities() == {
        "mlp/hidden/kernel": 0.25,
        "mlp/head/kernel": 1.0,
    }
    ticket.save(tmp_path / "ticket")
    again = tt.Ticket.load(tmp_path / "ticket")
    assert again.metadata["errors"].keys() == ticket.masks.keys()
    again.apply(model)
    watch = ZerosHold(again.masks)
    model.fit(*data, verbose=0, callbacks=[watch])
    assert watch.checked
    for path, value in again.weights.items():
        np.testing.assert_array_equal(value, ticket.weights[path])


X = np.ones((4, 8), "float32")


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (gallery.mlp, {"data": None}, "reconstruct scores on data"),
        (gallery.mlp, {"data": []}, "at least one batch"),
        (gallery.mlp, {"scope": "global"}, "cannot be ranked together"),
        (gallery.mlp, {"scope": "no such"}, "`scope` must be one of"),
        (gallery.mlp, {"sparsity": 1.0}, r"number in \[0, 1\)"),
        (gallery.mlp, {"damping": 0.0}, "`damping` must be a positive"),
        (gallery.mlp, {"refine": -1}, "`refine` must be a whole number"),
        (gallery.mlp, {"block": 0}, "`block` must be a whole number"),
        (gallery.mlp, {"pattern": "8:16"}, "prunes nothing of mlp/hidden"),
        (gallery.mlp, {"pattern": "1:4"}, "has the sparsity 0.75"),
        (gallery.mlp, {"data": X * np.nan}, "must be finite.*hidden"),
        (gallery.recurrent, {}, "no rule says what a LSTMCell multiplies"),
        (
            gallery.lora,
            {"data": np.ones((2, 8, 8, 3), "float32")},
            "a low-rank update is added to it",
        ),
    ],
)
def test_bad_input_is_one_clear_error(make, options, message):
    model = make()
    with only_read(model), pytest.raises(ValueError, match=message):
        reconstruct(model, **{"sparsity": 0.5, "data": X, **options})


class Silent(keras.Model):
    """Two dense layers, of which one is never called, the other in a loop."""

    def __init__(self):
        super().__init__()
        self.used = keras.layers.Dense(8, name="used")
        self.other = keras.layers.Dense(8, name="other")
        self.used.build((None, 8))
        self.other.build((None, 8))

    def call(self, x):
        return tf.while_loop(
            lambda i, y: i < 2, lambda i, y: (i + 1, self.used(y)), (0, x)
        )[1]


def test_layers_out_of_sight_are_named():
    model = Silent()
    model(X)
    with pytest.raises(ValueError, match="other/kernel: its layer was never"):
        reconstruct(model, 0.5, data=X)
    traced = keras.layers.TimeDistributed(keras.layers.Dense(3))
    model = keras.Sequential([keras.Input((4, 8)), traced])
    data = np.ones((2, 4, 8), "float32")
    assert reconstruct(model, 0.5, data=data).kept == 12


@pytest.mark.parametrize("name", gallery.names("hub"))
def test_backbones_of_keras_hub(name):
    pytest.importorskip("keras_hub")
    model = gallery.GALLERY[name]()
    x = [gallery.inputs(model, count=8)]
    with only_read(model):
        wanda = tt.prune(model, 0.5, criterion="wanda", scope="layer", data=x)
        ticket = reconstruct(model, pattern="2:4", data=x)
    assert wanda.masks.keys() == ticket.masks.keys()
    assert ticket.metadata["errors"].keys() == ticket.masks.keys()
    ticket.apply(model)
