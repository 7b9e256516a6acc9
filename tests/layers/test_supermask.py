"""Scores train and nothing else does, in every kind of model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests.conftest import batches, compiled, mlp, outputs, two_replicas
from tests.gallery import GALLERY
from tf_tickets.layers import Supermask
from tf_tickets.selection import named_weights, prunable_weights, values_of

# Every way of putting layers together, and every kind of layer; by XLA, which
# takes no dynamic shapes, where an operation is more than a product.
KINDS = (
    "subclassed",
    "nested_twice",
    "shared",
    "convolutional",
    "attention",
    "recurrent",
)
MASKS = {
    "threshold": {},
    "random": {"mask": "random"},
    "top_k": {"mask": "top_k", "sparsity": 0.7},
    "global top_k": {"mask": "top_k", "sparsity": 0.7, "scope": "global"},
}
SGD = {"learning_rate": 0.5, "momentum": 0.9}


def mined(model, data, *, epochs=2, run_eagerly=False, **options):
    miner = tt.supermask(model, score_penalty=1e-4, **options)
    compiled(miner, keras.optimizers.SGD(**SGD), run_eagerly=run_eagerly)
    # Of one iterator: replicas are slow to make one.
    steps = batches(*data).repeat()
    miner.fit(steps, epochs=epochs, steps_per_epoch=4, verbose=0)
    return miner


@pytest.mark.parametrize(
    "name, jit_compile",
    [(name, name in KINDS[3:]) for name in KINDS],
)
def test_only_scores_train_and_the_ticket_is_the_same_model(
    name, jit_compile, data
):
    model = GALLERY[name]()
    before = model.get_weights()
    trainable = [v.path for v in model.trainable_weights]
    miner = tt.supermask(model)
    kernels = prunable_weights(model)
    assert [tuple(v.shape) for v in miner.trainable_weights] == [
        tuple(v.shape) for v in kernels.values()
    ]
    _, frozen, scores = miner.supermask.ticket_parts()
    compiled(miner, keras.optimizers.SGD(**SGD), jit_compile=jit_compile)
    miner.fit(batches(*data), epochs=2, verbose=0)
    ticket = tt.Ticket.from_supermask(miner)
    statistics = 0
    for key, value in frozen.items():
        if "moving" in key:
            statistics += 1
            assert (ticket.weights[key] != value).any(), key
        else:
            np.testing.assert_array_equal(ticket.weights[key], value, key)
    assert statistics == sum("moving" in key for key in named_weights(model))
    for key in kernels:
        assert (ticket.scores[key] != scores[key]).any()
        np.testing.assert_array_equal(
            ticket.masks[key], ticket.scores[key] > 0.5
        )
    # The model has lent its computation, nothing more.
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [v.path for v in model.trainable_weights] == trainable
    ticket.apply(model)
    np.testing.assert_allclose(
        outputs(model, data[0]), outputs(miner, data[0]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "kind, policy",
    [
        ("threshold", "mixed_bfloat16"),
        ("threshold", "mixed_float16"),
        ("random", "mixed_bfloat16"),
        ("global top_k", "mixed_bfloat16"),
    ],
)
def test_mixed_precision_keeps_scores_and_weights_whole(kind, policy, data):
    keras.mixed_precision.set_global_policy(policy)
    model = mlp()
    miner = mined(model, data, **MASKS[kind])
    _, weights, scores = miner.supermask.ticket_parts()
    for key, score in scores.items():
        assert score.dtype == weights[key].dtype == np.float32
        # Values that a half float cannot hold: nothing was rounded to one.
        assert (score.astype(np.float16) != score).any()
    assert miner(data[0]).dtype == policy.removeprefix("mixed_")


@pytest.mark.parametrize("kind", MASKS)
def test_two_replicas_train_as_one(kind, data):
    def model():
        return keras.Sequential(
            [
                keras.Input((8,)),
                keras.layers.Dense(16, activation="relu"),
                keras.layers.Dense(4),
            ]
        )

    strategy = two_replicas()
    with strategy.scope():
        double = mined(model(), data, **MASKS[kind])
    found = []
    for score in double.trainable_weights:
        copies = strategy.experimental_local_results(score.value)
        np.testing.assert_array_equal(copies[0], copies[1])
        found.append(copies[0])
    if kind != "random":
        single = mined(model(), data, **MASKS[kind])
        for one, two in zip(single.trainable_weights, found, strict=True):
            np.testing.assert_allclose(one, two, atol=1e-5)


def test_statistics_and_seeds_move_on_two_replicas(data):
    with two_replicas().scope():
        model = mlp()
        miner = tt.supermask(model)
        start = values_of(miner.supermask.state.copies)
        compiled(miner, keras.optimizers.SGD(**SGD))
    miner.fit(batches(*data), verbose=0)
    end = values_of(miner.supermask.state.copies)
    moved = {
        key.split("/")[-1] for key in end if (end[key] != start[key]).any()
    }
    assert moved == {"moving_mean", "moving_variance", "seed_generator_state"}


@pytest.mark.parametrize(
    "name, kind, suffix",
    [
        *(("subclassed", kind, ".keras") for kind in MASKS),
        ("convolutional", "threshold", ".keras"),
        ("subclassed", "top_k", ".weights.h5"),
    ],
)
def test_files_hold_scores_masks_weights_and_statistics(
    name, kind, suffix, data, tmp_path
):
    model = GALLERY[name]()
    miner = mined(model, data, epochs=1, run_eagerly=True, **MASKS[kind])
    key = next(iter(miner.supermask.scores))
    if "top_k" in kind:
        miner.supermask.set_sparsity(0.9)
    else:
        miner.supermask.freeze(
            {key: np.arange(model.weights[0].shape[-1]) % 2 == 0}
        )
    path = str(tmp_path / f"miner{suffix}")
    if suffix == ".keras":
        miner.save(path)
        copy = keras.models.load_model(path)
    else:
        miner.save_weights(path)
        copy = tt.supermask(
            GALLERY[name](),
            score_penalty=1e-4,
            **{**MASKS[kind], "seed": 5},
        )
        copy.load_weights(path)
    np.testing.assert_array_equal(
        outputs(miner, data[0]), outputs(copy, data[0])
    )
    for a, b in zip(
        miner.supermask.ticket_parts(),
        copy.supermask.ticket_parts(),
        strict=True,
    ):
        for x, y in zip(a.values(), b.values(), strict=True):
            np.testing.assert_array_equal(x, y)
    assert copy.supermask.density() == miner.supermask.density()
    # A copy trains as it would have.
    if (name, kind) == ("subclassed", "threshold"):
        for one in (miner, copy):
            compiled(one, keras.optimizers.SGD(0.1))
            one.fit(batches(*data), verbose=0)
        for a, b in zip(
            miner.trainable_weights, copy.trainable_weights, strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_options_survive_serialization():
    options = {
        "scores": tt.layers.Beta(2, 3, seed=1),
        "weights": tt.layers.SignedConstant(density=0.3),
        "mask": "random",
        "score_penalty": 0.5,
        "penalty": "l1",
        "filters": ["hidden", lambda path, variable: False or "head" in path],
        "seed": 7,
    }
    mask = Supermask(mlp(), name="mine", **options)
    copy = Supermask.from_config(mask.get_config())
    assert copy.name == "mine"
    for name in ("mask", "score_penalty", "penalty", "seed"):
        assert getattr(copy.options, name) == options[name]
    for one, two in zip(mask.ticket_parts(), copy.ticket_parts(), strict=True):
        for (key, a), b in zip(one.items(), two.values(), strict=True):
            if "kernel" in key:
                np.testing.assert_array_equal(a, b)


def test_layers_of_a_users_model_can_be_wrapped_one_by_one(data, tmp_path):
    def build(wrap):
        return keras.Sequential(
            [
                keras.Input((8,)),
                keras.layers.Reshape((4, 2)),
                wrap(keras.layers.Conv1D(6, 3, use_bias=False)),
                keras.layers.BatchNormalization(scale=False, center=False),
                keras.layers.ReLU(),
                keras.layers.Flatten(),
                wrap(keras.layers.Dense(4, activation="relu")),
                wrap(keras.layers.Dense(4)),
            ]
        )

    miner = compiled(build(Supermask), keras.optimizers.SGD(0.5))
    assert len(miner.trainable_weights) == 3
    miner.fit(
        batches(*data),
        epochs=3,
        verbose=0,
        callbacks=[
            tt.callbacks.IterativeFreezing(target_sparsity=0.5, every=1)
        ],
    )
    plain = build(lambda layer: layer)
    for which in ("frozen", "effective"):
        ticket = tt.Ticket.from_supermask(miner, which)
        if which == "frozen":
            assert ticket.kept == round(0.5 * ticket.size)
    ticket.apply(plain)
    np.testing.assert_allclose(
        plain.predict(data[0], verbose=0),
        miner.predict(data[0], verbose=0),
        rtol=1e-4,
        atol=1e-5,
    )
    miner.save(tmp_path / "m.keras")
    copy = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(
        outputs(copy, data[0]), outputs(miner, data[0])
    )


def test_layers_of_one_path_keep_tickets_of_their_own():
    def dense():
        layer = keras.layers.Dense(3, name="same")
        layer.build((None, 3))
        return Supermask(layer, seed=np.random.randint(100))

    model = keras.Sequential([keras.Input((3,)), dense(), dense()])
    ticket = tt.Ticket.from_supermask(model)
    assert list(ticket.masks) == ["same/kernel", "same/kernel#1"]
    assert len(ticket.weights) == 4


def test_one_model_serves_several_supermasks(data):
    model = mlp()
    first, second = mined(model, data), mined(model, data)
    apart = mined(mlp(), data)
    for a, b, c in zip(
        first.trainable_weights,
        second.trainable_weights,
        apart.trainable_weights,
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)
        np.testing.assert_allclose(a, c, atol=1e-6)


def test_keep_mines_in_the_weights_that_the_model_has(data):
    model = compiled(mlp(), "adam")
    model.fit(batches(*data), epochs=2, verbose=0)
    values = values_of(named_weights(model))
    ticket = tt.Ticket.from_supermask(mined(model, data, weights="keep"))
    for key, value in values.items():
        if "moving" not in key:
            np.testing.assert_array_equal(ticket.weights[key], value)


def test_filters_leave_the_other_weights_dense(data):
    model = mlp()
    miner = mined(model, data, filters="hidden", weights="keep")
    ticket = tt.Ticket.from_supermask(miner)
    assert list(ticket.masks) == ["mlp/hidden/kernel"]
    ticket.apply(model)
    np.testing.assert_allclose(
        model.predict(data[0], verbose=0),
        miner.predict(data[0], verbose=0),
        rtol=1e-5,
        atol=1e-6,
    )


def test_losses_of_the_layer_count_and_weight_decay_does_not():
    def dense(decay):
        model = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(
                    3,
                    kernel_initializer="ones",
                    kernel_regularizer=keras.regularizers.L2(decay),
                    activity_regularizer=keras.regularizers.L2(0.25),
                ),
            ]
        )
        model.compile("sgd", "mse")
        return model

    model = dense(1.0)
    miner = tt.supermask(model, weights="keep", scores="ones")
    miner.compile("sgd", "mse")
    x = np.ones((2, 4), "float32")
    y = model.predict(x, verbose=0)
    # 0.25 · Σ 4² over three units, for each sample; before 3.13 Keras adds
    # the samples up, now it takes their mean.
    activity = dense(0.0).evaluate(x, y, verbose=0)
    assert activity in (12.0, 24.0)
    assert miner.evaluate(x, y, verbose=0) == pytest.approx(activity)


def test_a_supermask_of_a_supermask_model_and_a_stateless_call_work(data):
    miner = tt.supermask(mlp())
    x = data[0].astype("float32")
    outputs, states = miner.stateless_call(
        [tf.ones_like(v.value) for v in miner.trainable_variables],
        [v.value for v in miner.non_trainable_variables],
        x,
        training=True,
    )
    kept_all = tt.supermask(mlp(), scores="ones")
    for target, source in zip(
        kept_all.non_trainable_variables,
        miner.non_trainable_variables,
        strict=True,
    ):
        target.assign(source)
    np.testing.assert_allclose(outputs, kept_all(x, training=True), atol=1e-5)
    moved = [
        v.path
        for v, state in zip(miner.non_trainable_variables, states, strict=True)
        if (np.array(v) != np.array(state)).any()
    ]
    assert len(moved) == 3  # mean, variance and seed, handed back


def test_a_miner_can_be_exported(data, tmp_path):
    miner = mined(mlp(), data)
    miner.export(str(tmp_path / "saved"), verbose=False)
    restored = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(
        restored.serve(tf.constant(data[0])), miner(data[0]), atol=1e-5
    )


def test_a_new_mask_needs_no_new_trace(data):
    traces = []

    def loss(y, logits):
        traces.append(1)
        return keras.losses.sparse_categorical_crossentropy(
            y, logits, from_logits=True
        )

    for options in MASKS.values():
        traces.clear()
        miner = tt.supermask(mlp(), **options)
        miner.compile("sgd", loss)
        miner.fit(batches(*data), verbose=0)
        count = len(traces)
        if "sparsity" in options:
            miner.supermask.set_sparsity(0.9)
        else:
            mask = {
                k: np.zeros(v.shape) for k, v in miner.supermask.scores.items()
            }
            miner.supermask.freeze({k: m > 0 for k, m in mask.items()})
        miner.fit(batches(*data), verbose=0)
        assert len(traces) == count > 0


def test_a_layer_that_is_built_later_works_like_one_that_is(data):
    late = keras.Sequential([Supermask(keras.layers.Dense(4), name="late")])
    with pytest.raises(ValueError, match="not built"):
        late.layers[0].masks()
    compiled(late, keras.optimizers.SGD(0.5))
    late.fit(batches(*data), verbose=0)
    assert 0.2 < late.layers[0].density() < 0.8


@pytest.mark.parametrize(
    "options",
    [
        {"mask": "topk"},
        {"mask": "top_k"},
        {"mask": "top_k", "sparsity": 1.0},
        {"mask": "top_k", "sparsity": 0.5, "scope": "tensor"},
        {"sparsity": 0.5},
        {"scores": "normal"},
        {"scores": "kaiming_uniform"},
        {"weights": "constant_signed"},
        {"weights": None},
        {"score_penalty": -1.0},
        {"score_penalty": float("nan")},
        {"score_penalty": "1e-4"},
        {"penalty": "l0"},
        {"filters": "nothing_like_it"},
        {"seed": 0.5},
    ],
    ids=str,
)
def test_bad_options_are_refused_before_anything_is_made(options):
    with pytest.raises(ValueError, match="Received: "):
        tt.supermask(mlp(), **options)


def test_models_that_cannot_be_mined_are_refused():
    with pytest.raises(ValueError, match="no prunable weights"):
        tt.supermask(
            keras.Sequential(
                [keras.Input((2,)), keras.layers.BatchNormalization()]
            )
        )
    with pytest.raises(ValueError, match="build it first"):
        tt.supermask(keras.Sequential([keras.layers.Dense(2)]))
    with pytest.raises(ValueError, match="a Keras layer or model"):
        tt.supermask("model")
    with pytest.raises(ValueError, match="no supermask"):
        tt.Ticket.from_supermask(mlp())


def test_tickets_that_make_no_sense_are_refused():
    model = mlp()
    with pytest.raises(ValueError, match="keeps no weight"):
        tt.Ticket.from_supermask(tt.supermask(model, scores="zeros"))
    edge_popup = tt.supermask(model, mask="top_k", sparsity=0.5)
    with pytest.raises(ValueError, match="'effective' one"):
        tt.Ticket.from_supermask(edge_popup, "frozen")
    with pytest.raises(ValueError, match="Received: mask='all'"):
        tt.Ticket.from_supermask(tt.supermask(model), "all")
