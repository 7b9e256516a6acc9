"""Zero activations counted by hand, gradients of kept weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests import gallery
from tests.analysis.conftest import tiny
from tests.conftest import compiled, images, mlp
from tf_tickets.analysis import activation_sparsity, gradient_flow
from tf_tickets.retraining import replace_activations


def test_activation_sparsity_is_the_count_by_hand():
    x = i = keras.Input((3,))
    inner = keras.Sequential(
        [keras.Input((3,)), keras.layers.Activation("relu", name="nested")]
    )
    x = keras.layers.Dense(
        3, activation="relu", kernel_initializer="identity", name="dense"
    )(x)
    x = inner(x - 1.0)
    x = keras.ops.relu(x - 1.0)
    x = keras.layers.ReLU(name="layer")(x)
    model = keras.Model(i, keras.layers.Dense(2, name="linear")(x))
    batch = np.array([[-1.0, 0.5, 1.5], [2.5, 3.5, -2.0]], "float32")
    found = activation_sparsity(model, batch, threshold=0.0)
    shares = list(found.layers.values())
    #  relu(x): 0 .5 1.5 / 2.5 3.5 0; -1: 0 0 .5 / 1.5 2.5 0; -1: 0 0 0 / .5 ..
    assert shares == pytest.approx([2 / 6, 3 / 6, 4 / 6, 4 / 6])
    assert found.total == pytest.approx(13 / 24)
    assert list(found.layers)[0] == "dense"
    assert "linear" not in found.layers
    assert model.get_layer("dense").activation is keras.activations.relu
    assert "call" not in vars(model.get_layer("layer"))


def test_swish_has_hardly_any_zeros_where_relu_has_tens_of_percent():
    """The gap of Table A1."""
    model = gallery.block()
    x = images(count=64)[0]
    relu = activation_sparsity(model, x)
    swish = activation_sparsity(replace_activations(model, "swish"), x)
    assert list(relu.layers) == list(swish.layers)
    assert all(share > 0.2 for share in relu.layers.values())
    assert all(share < 0.05 for share in swish.layers.values())
    assert relu.threshold == 1e-2, "that of the published code"


def test_a_subclassed_model_is_looked_into():
    class Mine(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(8, "relu", name="dense")
            self.relu = keras.layers.ReLU(name="relu")

        def call(self, x):
            return self.relu(self.dense(x) - 0.5)

    model = Mine()
    model(np.ones((2, 4), "float32"))
    found = activation_sparsity(model, images((4,))[0])
    assert list(found.layers) == ["dense", "relu"]
    assert found.layers["relu"] > found.layers["dense"] > 0


def test_gradient_flow_counts_kept_weights_only(points):
    x, y = points
    model = tiny()
    ticket = tt.prune(model, sparsity=0.5)
    ticket.apply(model)
    with tf.GradientTape() as tape:
        loss = model.loss(y, model(x, training=True))
    kernels = [model.layers[0].kernel, model.layers[1].kernel]
    slopes = tape.gradient(loss, [k.value for k in kernels])
    kept = [
        np.where(m, s.numpy(), 0)
        for m, s in zip(ticket.masks.values(), slopes, strict=True)
    ]
    flow = gradient_flow(model, points)
    norms = [np.sqrt((k**2).sum()) for k in kept]
    assert list(flow.layers.values()) == pytest.approx(norms, rel=1e-4)
    assert flow.effective == pytest.approx(np.mean(norms), rel=1e-4)
    assert flow.norm == pytest.approx(np.hypot(*norms), rel=1e-4)
    assert sum(flow.kept.values()) == ticket.kept
    assert gradient_flow(model, points, order=1).norm == pytest.approx(
        sum(np.abs(k).sum() for k in kept), rel=1e-4
    )


def test_plots_are_files(data, points, tmp_path):
    pytest.importorskip("matplotlib")
    activation_sparsity(compiled(mlp()), data[0]).plot(tmp_path / "a.png")
    gradient_flow(tiny(), points).plot(tmp_path / "b.png")
    assert {p.stat().st_size > 1000 for p in tmp_path.iterdir()} == {True}


def test_bad_requests_get_one_clear_error(data, points):
    with pytest.raises(ValueError, match="order"):
        gradient_flow(tiny(), points, order=3)
    with pytest.raises(ValueError, match="threshold"):
        activation_sparsity(compiled(mlp()), data[0], threshold=-1)
    silent = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="no activations"):
        activation_sparsity(silent, data[0])
