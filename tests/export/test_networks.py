"""Real networks, pruned at random: equal outputs, and as small as promised."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests.export.conftest import close, prune_at_random
from tf_tickets.export.coding import entropy_floor
from tf_tickets.export.report import bytes_of, read_manifest
from tf_tickets.zoo import models as zoo

applications = keras.applications
# Dense layers, a chain, shortcuts, depthwise beside pointwise convolutions.
NETWORKS = {
    "lenet_300_100": lambda: zoo.lenet_300_100(),
    "digits_cnn": lambda: zoo.digits_cnn(),
    "resnet20": lambda: zoo.resnet20(),
    "MobileNet": lambda: applications.MobileNet(
        weights=None, input_shape=(32, 32, 3), classes=10, alpha=0.5
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_served_to_five_digits(name, all_sparse, tmp_path):
    model = prune_at_random(NETWORKS[name](), 0.05)
    path = tt.export.saved_model(model, tmp_path / "m", format="auto")
    served = tf.saved_model.load(path).signatures["serving_default"]
    for batch in (1, 7, 32):
        rng = np.random.default_rng(batch)
        x = tf.constant(
            rng.normal(size=(batch, *model.input_shape[1:])), tf.float32
        )
        close(next(iter(served(x).values())), model(x))
    methods = {row["method"] for row in read_manifest(path)["weights"]}
    assert methods - {"dense"}


@pytest.mark.parametrize(
    ("name", "densities"), [("vgg16", (0.014,)), ("wide", (0.2, 0.014))]
)
def test_packed_networks_are_close_to_the_entropy(name, densities, tmp_path):
    if name == "wide":
        model = keras.Sequential(
            [keras.Input((2048,)), keras.layers.Dense(4096)]
        )
    else:
        model = zoo.vgg16()
    start = [np.array(w) for w in model.get_weights()]
    dense = tt.export.saved_model(model, tmp_path / "dense").path
    for density in densities:
        model.set_weights(start)
        prune_at_random(model, density)
        path = tt.export.saved_model(
            model, tmp_path / f"{density}", format="packed"
        ).path
        weights = model.get_weights()
        floor = sum(
            entropy_floor(w.size, int(np.count_nonzero(w))) for w in weights
        )
        data = bytes_of(path / "variables")
        # A checkpoint describes each of its tensors, in a few hundred bytes.
        assert data <= 1.1 * floor + 20_000
        # The rest is the graph, which a dense export has too.
        graph = bytes_of(dense / "saved_model.pb")
        rest = bytes_of(path) - data
        assert rest <= graph + 50_000


@pytest.mark.parametrize("units", [16, 100, 400])
def test_packed_is_never_larger_than_dense(units, tmp_path):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(units)])

    def size(format):
        path = tmp_path / f"{format}{density}"
        return bytes_of(tt.export.saved_model(model, path, format=format))

    for density in (1.0, 0.9, 0.5, 0.05, 0.0):
        prune_at_random(model, density)
        if density == 1.0:
            dense = size("dense")  # so large whatever the values
        # Names of temporary functions differ by a few digits.
        assert size("packed") <= dense + 64
