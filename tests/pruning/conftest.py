"""Models of every kind for criteria, compiled, and data for each."""

import keras

from tests import gallery
from tests.conftest import POINTS, compiled

X, Y = POINTS


def mlp():
    return compiled(gallery.mlp()), POINTS


def pairs():
    """Two losses with weights, and a metric."""
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


def around():
    model = gallery.around()
    model.compile("adam", "sparse_categorical_crossentropy")
    return model, POINTS


def smooth():
    model = gallery.smooth()
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model, (gallery.inputs(model, count=12, seed=1), Y)


def mixed_float16():
    keras.mixed_precision.set_global_policy("mixed_float16")
    return mlp()


KINDS = {
    make.__name__: make for make in (mlp, pairs, around, smooth, mixed_float16)
}
