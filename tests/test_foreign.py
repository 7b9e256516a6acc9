"""Tickets from other frameworks' weights, and back; real tfmot."""

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests.conftest import ZerosHold, batches, compiled, mlp


def twin():
    """`conftest.mlp` in tf_keras: the same layer names."""
    import tf_keras

    return tf_keras.Sequential(
        [
            tf_keras.layers.Input((8,)),
            tf_keras.layers.Dense(32, name="hidden"),
            tf_keras.layers.BatchNormalization(name="norm"),
            tf_keras.layers.ReLU(name="relu"),
            tf_keras.layers.Dropout(0.2, seed=1, name="drop"),
            tf_keras.layers.Dense(4, name="head"),
        ]
    )


@pytest.fixture(scope="module")
def stripped():
    """A tf_keras model that the toolkit has pruned, trained and stripped."""
    tfmot = pytest.importorskip("tensorflow_model_optimization")
    import tf_keras

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 8)), rng.integers(0, 4, 64)
    api = tfmot.sparsity.keras
    wrapped = api.prune_low_magnitude(
        twin(), api.ConstantSparsity(0.75, begin_step=0, frequency=1)
    )
    wrapped.compile(
        "sgd", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    wrapped.fit(x, y, verbose=0, callbacks=[api.UpdatePruningStep()])
    with pytest.raises(ValueError, match="strip_pruning"):
        tt.Ticket.from_weights(wrapped.weights)
    return api.strip_pruning(wrapped)


def test_a_stripped_model_is_a_ticket_for_keras_3(stripped, data):
    ticket = tt.Ticket.from_weights(stripped.weights)
    zeros = {
        w.name.removesuffix(":0"): int((w.numpy() == 0).sum())
        for w in stripped.weights
        if "kernel" in w.name
    }
    assert zeros == {"hidden/kernel": 192, "head/kernel": 96}
    assert ticket.kept == 384 - 288 and ticket.sparsity == 0.75
    model = compiled(mlp(), "adam")
    ticket.apply(model)
    np.testing.assert_allclose(
        model(data[0], training=False), stripped(data[0]), atol=1e-5
    )
    masks = {f"mlp/{path}": mask for path, mask in ticket.masks.items()}
    model.fit(batches(*data), verbose=0, callbacks=[ZerosHold(masks)])
    # And back, trained: the same outputs and zeros there.
    values = tt.Ticket.from_model(model).to_weights(like=stripped.weights)
    for variable, value in zip(stripped.weights, values.values(), strict=True):
        variable.assign(value)
    np.testing.assert_allclose(
        stripped(data[0]), model(data[0], training=False), atol=1e-5
    )
    again = tt.Ticket.from_weights(stripped.weights)
    assert again.hamming_distance(ticket) == 0


def test_from_weights_and_to_weights_are_inverse(tmp_path):
    model = mlp()
    ticket = tt.prune(model, 0.6)
    values = ticket.to_weights()
    again = tt.Ticket.from_weights(values)
    assert again.hamming_distance(ticket) == 0
    again.save(tmp_path / "ticket.safetensors")
    for path, value in (
        tt.Ticket.load(tmp_path / "ticket.safetensors").to_weights().items()
    ):
        np.testing.assert_array_equal(value, values[path])
    # Keras 3 variables are weights with names, too.
    ticket.apply(model)
    assert tt.Ticket.from_weights(model.weights).masks.keys() == (
        ticket.masks.keys()
    )


def test_names_decide_before_the_order():
    """Two equal layers, listed the other way round, inside other models."""
    first, second = np.eye(4), 2 * np.eye(4)
    ticket = tt.Ticket.from_weights({"b/kernel": first, "a/kernel": second})
    x = keras.Input((4,))
    layers = [keras.layers.Dense(4, use_bias=False, name=n) for n in "ab"]
    inner = keras.Sequential([keras.Input((4,)), *layers], name="inner")
    model = keras.Model(x, inner(x))
    ticket.apply(model)
    np.testing.assert_array_equal(layers[0].kernel, second)
    np.testing.assert_array_equal(layers[1].kernel, first)


def test_filters_choose_among_arrays():
    weights = {"table/embeddings": np.eye(4), "head/kernel:0": np.eye(4)}
    assert set(tt.Ticket.from_weights(weights).masks) == {"head/kernel"}
    chosen = tt.Ticket.from_weights(weights, filters="table")
    assert set(chosen.masks) == {"table/embeddings"}


@pytest.mark.parametrize(
    "weights, message",
    [
        ({}, "must be"),
        ("model.h5", "must be"),
        (None, "must be"),
        (3, "must be"),
        ([np.eye(3)], "must be"),
        ({3: np.eye(3)}, "must be"),
        ({"a/kernel": "x"}, "arrays of numbers"),
        ({"a/kernel": [[1.0], [1.0, 2.0]]}, "arrays of numbers"),
        ({"a/kernel": None}, "arrays of numbers"),
        ({"a/bias": np.ones(3)}, "no prunable weights"),
    ],
)
def test_what_is_no_weights_is_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        tt.Ticket.from_weights(weights)


def test_weights_that_do_not_fit_are_refused():
    ticket = tt.Ticket.from_weights({"a/kernel": np.eye(4)})
    with pytest.raises(ValueError, match="do not fit"):
        ticket.to_weights(like={"a/kernel": np.ones((4, 5))})
    with pytest.raises(ValueError, match="does not have all"):
        ticket.to_weights(like={"a/kernel": np.eye(4), "a/bias": np.ones(4)})
    with pytest.raises(ValueError, match="no start weights"):
        tt.Ticket({"a/kernel": np.eye(4)}).to_weights()


C = tt.callbacks


@pytest.mark.parametrize(
    "name, use",
    [
        ("prune", lambda m, p: tt.prune(m, 0.5)),
        ("flops", lambda m, p: tt.analysis.flops(m)),
        ("export", lambda m, p: tt.export.saved_model(m, p)),
        ("litert", lambda m, p: tt.export.litert(m, p)),
        ("snapshot", lambda m, p: tt.Snapshot.take(m)),
        ("supermask", lambda m, p: tt.supermask(m)),
        ("apply", lambda m, p: tt.prune(mlp(), 0.5).apply(m)),
        *(
            (
                type(callback).__name__,
                lambda m, p, c=callback: m.fit(
                    np.ones((4, 8)), np.zeros(4), verbose=0, callbacks=[c]
                ),
            )
            for callback in (
                C.IterativeMagnitudePruning(
                    target_sparsity=0.5, epochs_per_round=1
                ),
                C.GradualPruning(target_sparsity=0.5, end_step=1),
                C.SparsityLogger(),
            )
        ),
    ],
)
def test_a_tf_keras_model_is_refused_in_one_sentence(name, use, tmp_path):
    pytest.importorskip("tf_keras")
    model = twin()
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match=r"tf_keras \(Keras 2\): build it"):
        use(model, tmp_path / "m")
    assert not any(tmp_path.iterdir())


def test_what_the_refusal_of_tf_keras_advises_works():
    pytest.importorskip("tf_keras")
    ticket = tt.Ticket.from_weights(twin().weights)
    ticket.apply(mlp())
