"""Models of every kind for criteria, and a check that they were only read."""

import contextlib

import keras
import numpy as np

from tests.conftest import compiled, mlp

X = np.random.default_rng(0).normal(size=(12, 8)).astype("float32")
Y = np.arange(12) % 4


def functional():
    """A branch, a nested model with a shared layer, two inputs, two outputs."""
    a, b = keras.Input((8,), name="a"), keras.Input((8,), name="b")
    inner = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(6, activation="gelu", use_bias=False),
            keras.layers.LayerNormalization(),
        ],
        name="inner",
    )
    joined = keras.layers.Add()([inner(a), inner(b)])
    norm = keras.layers.BatchNormalization()(joined)
    drop = keras.layers.Dropout(0.3, seed=2)(norm)
    outputs = {
        "class": keras.layers.Dense(4, name="class")(drop),
        "size": keras.layers.Dense(1, name="size")(keras.layers.ReLU()(drop)),
    }
    model = keras.Model({"a": a, "b": b}, outputs)
    model.compile(
        "sgd",
        {
            "class": keras.losses.SparseCategoricalCrossentropy(True),
            "size": "mse",
        },
        loss_weights={"class": 1.0, "size": 0.5},
        metrics={"class": ["accuracy"]},
    )
    data = {"a": X, "b": -X}, {"class": Y, "size": X[:, :1]}
    return model, data


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.body = mlp()
        self.head = keras.layers.Dense(
            4, activation="softmax", kernel_regularizer="l2"
        )

    def call(self, x):
        return self.head(keras.ops.relu(self.body(x)))


def subclassed():
    model = Own()
    model(X)
    model.compile("adam", "sparse_categorical_crossentropy")
    return model, (X, Y)


def convolutional():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Rescaling(1 / 127.5, offset=-1.0),
            keras.layers.Conv2D(4, 3, activation="swish", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(max_value=6.0),
            keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(4, activation="softmax", use_bias=False),
        ]
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    x = np.random.default_rng(1).normal(size=(12, 6, 6, 2)).astype("float32")
    return model, (x, Y)


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
