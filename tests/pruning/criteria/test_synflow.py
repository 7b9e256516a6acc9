"""SynFlow: conservation, deep nets, and models of every kind."""

import functools

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests import gallery
from tests.conftest import compiled, mlp, only_read
from tests.pruning.conftest import KINDS
from tests.pruning.criteria.oracle import all_true
from tf_tickets.pruning import synflow


def dense_net(widths, activation="relu", **options):
    return keras.Sequential(
        [
            keras.Input((widths[0],)),
            *(
                keras.layers.Dense(
                    n, activation=activation, use_bias=False, **options
                )
                for n in widths[1:]
            ),
        ]
    )


def layer_sums(scores):
    return np.array([s.sum(dtype=np.float64) for s in scores.values()])


@pytest.mark.parametrize("activation", ["relu", "swish", "relu6", "softmax"])
def test_scores_equal_the_products_of_absolute_matrices(activation):
    model = dense_net((5, 7, 3), activation)
    first, last = (np.abs(w).astype(np.float64) for w in model.get_weights())
    into, out = np.ones(5) @ first, last @ np.ones(3)
    total = into @ out
    scores = list(synflow(model, all_true(model)).values())
    np.testing.assert_allclose(scores[0], first * out / total, rtol=1e-12)
    np.testing.assert_allclose(
        scores[1], into[:, None] * last / total, rtol=1e-12
    )


def test_what_enters_a_neuron_leaves_it():
    """Tanaka et al., theorem 1: neuron-wise conservation."""
    model = dense_net((6, 9, 8, 4))
    scores = list(synflow(model, all_true(model)).values())
    for before, after in zip(scores, scores[1:], strict=False):
        np.testing.assert_allclose(before.sum(0), after.sum(1), rtol=1e-12)


def residual(x, width, name):
    y = keras.layers.Conv2D(
        width, 3, padding="same", use_bias=False, name=f"{name}a"
    )(x)
    y = keras.layers.BatchNormalization()(y)
    y = keras.layers.Activation("gelu")(y)
    return y


def test_every_layer_conserves_the_flow():
    """Tanaka et al., theorem 2: all cuts of the network carry the same."""
    inputs = keras.Input((8, 8, 3))
    x = residual(inputs, 4, "one")
    x = keras.layers.MaxPooling2D()(x)
    x = residual(x, 6, "two")
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.LayerNormalization()(x)
    x = keras.layers.Dense(5, use_bias=False, activation="softmax")(x)
    model = keras.Model(inputs, x)
    # Trained models too: signs of γ and statistics are not those of a start.
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(-2 * layer.gamma)
            layer.moving_mean.assign(layer.moving_mean + 3.0)
            layer.moving_variance.assign(layer.moving_variance * 4.0)
    masks = all_true(model)
    np.testing.assert_allclose(layer_sums(synflow(model, masks)), 1, rtol=1e-9)
    ticket = tt.prune(model, 0.8, criterion="synflow", iterations=5)
    pruned = synflow(model, ticket.masks)
    np.testing.assert_allclose(layer_sums(pruned), 1, rtol=1e-9)


def test_two_paths_share_what_one_layer_carries():
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, use_bias=False, name="stem")(inputs)
    y = keras.layers.Dense(8, use_bias=False, name="branch")(x)
    x = keras.layers.Add()([x, y])
    model = keras.Model(
        inputs, keras.layers.Dense(3, use_bias=False, name="head")(x)
    )
    scores = synflow(model, all_true(model))
    stem, branch, head = layer_sums(scores)
    assert stem == pytest.approx(1) and head == pytest.approx(1)
    assert 0.05 < branch < 0.95


def deep_dense():
    return dense_net((64,) * 51)


def deep_nested():
    blocks = [
        keras.Sequential(
            [
                keras.Input((64,)),
                *(keras.layers.Dense(64, use_bias=False) for _ in range(10)),
            ]
        )
        for _ in range(5)
    ]
    inputs = keras.Input((64,))
    x = inputs
    for block in blocks:
        x = keras.layers.ReLU()(block(x))
    return keras.Model(inputs, x)


def deep_residual():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(16, 3, padding="same", use_bias=False)(inputs)
    for _ in range(24):
        y = x
        for _ in range(2):
            y = keras.layers.Conv2D(16, 3, padding="same", use_bias=False)(y)
            y = keras.layers.BatchNormalization()(y)
            y = keras.layers.ReLU()(y)
        x = keras.layers.Add()([x, y])
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x))


@pytest.mark.parametrize(
    ("build", "iterations"), [(deep_dense, None), (deep_residual, 20)]
)
def test_fifty_layers_at_a_density_of_a_thousandth_do_not_collapse(
    build, iterations
):
    model = build()
    assert len(tt.prunable_weights(model)) == 50
    with only_read(model):
        ticket = tt.prune(
            model, 0.999, criterion="synflow", iterations=iterations
        )
    assert ticket.kept == round(0.001 * ticket.size)
    for scores in ticket.scores.values():
        assert np.isfinite(scores).all()
    # Something flows from the input to the output still.
    last = synflow(model, ticket.masks)
    assert layer_sums(last)[0] == pytest.approx(1)
    if build is not deep_residual:  # there the skips carry it, if need be
        assert min(ticket.densities().values()) > 0


def test_nested_models_score_as_their_flat_twin():
    nested, plain = deep_nested(), deep_dense()
    plain.set_weights([10 * w for w in nested.get_weights()])
    nested.set_weights(plain.get_weights())
    for one, other in zip(
        synflow(nested, all_true(nested)).values(),
        synflow(plain, all_true(plain)).values(),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_float32_would_lose_the_flow_of_a_deep_net():
    """The test above can fail: what it asks for needs float64."""
    model = dense_net((64,) * 51)
    for layer in model.layers:
        layer.kernel.assign(layer.kernel * 10)
    with pytest.raises(ValueError, match="leaves the range of float32"):
        synflow(model, all_true(model), dtype="float32")
    scores = synflow(model, all_true(model))
    np.testing.assert_allclose(layer_sums(scores), 1, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_any_kind_is_scored_and_only_read(kind):
    model, data = KINDS[kind]()
    with only_read(model):
        ticket = tt.prune(model, 0.5, criterion="synflow", iterations=3)
    assert ticket.kept == round(ticket.size / 2)
    for scores in ticket.scores.values():
        assert np.isfinite(scores).all() and (scores >= 0).all()
    assert min(ticket.densities().values()) > 0
    ticket.apply(model)
    model.fit(*data, verbose=0)


def test_attention_and_recurrent_layers_are_scored():
    inputs = keras.Input((5, 6))
    x = keras.layers.MultiHeadAttention(2, 3, use_bias=False)(inputs, inputs)
    x = keras.layers.Bidirectional(keras.layers.LSTM(4, return_sequences=True))(
        keras.layers.Add()([inputs, x])
    )
    x = keras.layers.SimpleRNN(3)(x)
    model = keras.Model(inputs, x)
    with only_read(model):
        scores = synflow(model, all_true(model))
    assert len(scores) == 10
    for score in scores.values():
        assert np.isfinite(score).all() and (score > -1e-12).all()


def test_an_error_while_scoring_leaves_the_model_as_it_was():
    class Broken(keras.layers.Layer):
        broken = False

        def call(self, x):
            if self.broken:
                raise RuntimeError("broken")
            return x

    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, activation="tanh"),
            keras.layers.ReLU(),
            Broken(),
        ]
    )
    model.layers[-1].broken = True
    with only_read(model), pytest.raises(RuntimeError, match="broken"):
        synflow(model, all_true(model))


def test_it_is_drawn_in_a_hundred_steps_unless_told_otherwise():
    assert synflow.iterations == 100
    model = dense_net((4, 5, 3))
    calls = []

    def counting(model, masks, *, data, seed, dtype):
        calls.append(masks)
        return synflow(model, masks, data=data, seed=seed, dtype=dtype)

    counting.iterations = synflow.iterations
    tt.prune(model, 0.5, criterion=functools.partial(counting, dtype="float64"))
    assert len(calls) == 100
    counts = [sum(int(m.sum()) for m in masks.values()) for masks in calls]
    assert counts == sorted(counts, reverse=True) and counts[0] == 35


def test_scores_of_a_shared_trace_are_those_of_single_calls():
    model = gallery.smooth()
    shared = tt.prune(model, 0.9, criterion="synflow", iterations=7)
    option = functools.partial(synflow, dtype="float32")
    single = tt.prune(model, 0.9, criterion="synflow", iterations=1)
    assert shared.hamming_distance(single) > 0

    def alone(*arguments, **options):
        return synflow(*arguments, **options)

    other = tt.prune(model, 0.9, criterion=alone, iterations=7)
    for key, scores in shared.scores.items():
        np.testing.assert_allclose(
            other.scores[key], scores, rtol=1e-9, atol=1e-15
        )
    half = tt.prune(model, 0.9, criterion=option, iterations=7)
    assert {s.dtype for s in half.scores.values()} == {np.dtype("float32")}
    assert half.metadata["criterion"] == "synflow(dtype='float32')"


def test_a_shape_that_is_not_known_comes_from_the_data():
    inputs = keras.Input((None, None, 2))
    x = keras.layers.Conv2D(3, 3, use_bias=False)(inputs)
    model = keras.Model(inputs, keras.layers.GlobalMaxPooling2D()(x))
    with pytest.raises(ValueError, match="shape of the model's input"):
        synflow(model, all_true(model))
    scores = synflow(model, all_true(model), data=np.zeros((5, 6, 6, 2)))
    np.testing.assert_allclose(layer_sums(scores), 1)


def test_no_flow_at_all_is_one_clear_error():
    model = dense_net((4, 5, 3))
    masks = all_true(model)
    next(iter(masks.values()))[:] = False
    with pytest.raises(ValueError, match="No flow is left.*keep 15 weights"):
        synflow(model, masks)


def test_compiled_or_not_the_scores_are_the_same():
    plain, ready = mlp(), compiled(mlp())
    ready.set_weights(plain.get_weights())
    for one, other in zip(
        synflow(plain, all_true(plain)).values(),
        synflow(ready, all_true(ready)).values(),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
