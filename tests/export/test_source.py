"""Names and numbers that are seldom seen go through an export unchanged."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests.export.conftest import prune_at_random
from tf_tickets import masking


def named():
    """Keras can call such a model and save it, though not `fit` it."""
    x = inputs = keras.Input((80,), name="eingäbe")
    x = keras.layers.Dense(600, name="größe", activation="relu")(x)
    x = keras.layers.BatchNormalization(name="_ ruhe")(x)
    x = keras.layers.Dense(70, name="层")(x)
    return prune_at_random(keras.Model(inputs, x, name="モデル"), 0.05)


@pytest.mark.parametrize(
    "format", ["dense", "packed", "sparse", "auto", "litert"]
)
def test_names_beyond_ascii_go_there_and_back(format, all_sparse, tmp_path):
    if format == "litert":
        pytest.importorskip("ai_edge_litert")
    model = named()
    names = [layer.name for layer in model.layers]
    x = np.random.default_rng(0).normal(size=(1, 80)).astype("float32")
    expected = model(x).numpy()
    made = tt.export.write(model, tmp_path / "größe 层", format=format)
    assert [layer.name for layer in model.layers] == names
    keys = ["größe/kernel", "层/kernel"]
    found = [row.key for row in made.rows if row.key.endswith("kernel")]
    assert found == keys
    tt.export.verify(made)
    assert "层/kernel" in tt.export.report(made).table()
    served = tt.export.FORMATS[format].load(made.path)
    outputs = np.asarray(served(x)).reshape(1, 70)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    if format != "litert":
        again = tt.export.unpack(made)
        folded = ["_ ruhe"] if format == "auto" else []
        assert [layer.name for layer in again.layers] == [
            name for name in names if name not in folded
        ]
        np.testing.assert_allclose(again(x), expected, rtol=1e-4, atol=1e-5)
        assert [*tt.export.load_sparse(made).masks] == keys


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("format", ["dense", "packed", "sparse"])
def test_kept_weights_of_any_size_stay_as_they_are(dtype, format, tmp_path):
    """Beyond the range of the next smaller type, and below its normal numbers.

    What computes with denormal numbers may take them for zero, TensorFlow's
    training does; what stores and masks them may not.
    """
    model = keras.Sequential(
        [
            keras.Input((80,), dtype=dtype),
            keras.layers.Dense(600, use_bias=False, dtype=dtype),
        ]
    )
    limits = np.finfo(dtype)
    rng = np.random.default_rng(0)
    value = rng.uniform(0.5, 1, (80, 600)).astype(dtype)
    value[:20] *= limits.max
    value[20:60] *= limits.tiny / 8
    (variable,) = model.weights
    variable.assign(value)
    ticket = tt.prune(model, 0.4)
    ticket.apply(model)
    masking.project(model)
    (mask,) = ticket.masks.values()
    # The oracle: 0.6 of the 48,000, the largest first.
    assert mask.sum() == 28_800
    assert value[mask].min() >= value[~mask].max()
    assert ((value[mask] < limits.tiny) & (value[mask] > 0)).sum() > 4000
    np.testing.assert_array_equal(variable.numpy(), np.where(mask, value, 0))
    ticket.save(tmp_path / "ticket")
    made = tt.export.saved_model(model, tmp_path / "m", format=format)
    for found in (
        tt.Ticket.load(tmp_path / "ticket"),
        tt.export.load_sparse(made),
    ):
        np.testing.assert_array_equal([*found.masks.values()][0], mask)
        (kept,) = found.weights.values()
        np.testing.assert_array_equal(kept[mask], value[mask])
    tt.release(model)
    assert tt.enforce_zeros(model).kept == 28_800
    loaded = tf.saved_model.load(made)
    eye = np.eye(80, dtype=dtype)
    np.testing.assert_array_equal(loaded.serve(eye), model(eye))
