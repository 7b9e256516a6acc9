"""Models of every kind for criteria, and a check that they were only read."""

import contextlib

import keras
import numpy as np

from tests import gallery
from tests.conftest import compiled
from tests.gallery import mlp

X = np.random.default_rng(0).normal(size=(12, 8)).astype("float32")
Y = np.arange(12) % 4


def functional():
    model = gallery.pairs()
    model.compile(
        "sgd",
        {
            "class": keras.losses.SparseCategoricalCrossentropy(True),
            "size": "mse",
        },
        loss_weights={"class": 1.0, "size": 0.5},
        metrics={"class": ["accuracy"]},
    )
    return model, ({"a": X, "b": -X}, {"class": Y, "size": X[:, :1]})


def subclassed():
    model = gallery.around()
    model.compile("adam", "sparse_categorical_crossentropy")
    return model, (X, Y)


def convolutional():
    model = gallery.smooth()
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model, (gallery.inputs(model, 12, seed=1), Y)


def sequential():
    return compiled(mlp()), (X, Y)


def mixed():
    keras.mixed_precision.set_global_policy("mixed_float16")
    return sequential()


KINDS = {
    "sequential": sequential,
    "functional": functional,
    "subclassed": subclassed,
    "convolutional": convolutional,
    "mixed_float16": mixed,
}


def state(model):
    layers = list(model._flatten_layers())
    return {
        "variables": [np.array(v) for v in model.variables],
        "metrics": [np.array(v) for v in model.metrics_variables],
        "policies": [layer.dtype_policy.name for layer in layers],
        "activations": [getattr(x, "activation", None) for x in layers],
        "calls": ["call" in vars(layer) for layer in layers],
        "autocast": [layer.autocast for layer in layers],
        "constraints": [v.constraint for v in model.variables],
    }


@contextlib.contextmanager
def only_read(model, metrics=True):
    """``metrics=False`` for what trains on the way: it counts in metrics."""
    before = state(model)
    yield
    after = state(model)
    for name in ("variables", "metrics") if metrics else ("variables",):
        # Building a loss of several outputs adds its trackers at the front.
        pairs = zip(before[name][::-1], after[name][::-1], strict=False)
        for old, new in pairs:
            np.testing.assert_array_equal(old, new)
    assert len(before["variables"]) == len(after["variables"])
    for name in ("policies", "activations", "calls", "autocast", "constraints"):
        assert before[name] == after[name], name
