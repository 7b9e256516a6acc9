"""A tiny classifier twice: in NumPy, as an oracle, and in Keras."""

import keras
import numpy as np

import tf_tickets as tt
from tests import gallery


# The oracle: a 3-4-2 tanh classifier in NumPy. Complex steps make its
# gradient exact without any differentiation rule.
def numpy_loss(w, x, y, temperature=1.0):
    first, bias, last = np.split(w, [12, 16])
    hidden = np.tanh(x @ first.reshape(3, 4) + bias)
    z = hidden @ last.reshape(4, 2) / temperature
    normalizer = np.log(np.exp(z).sum(1))
    return (normalizer - z[np.arange(len(y)), y]).mean()


def numpy_gradient(w, *data, **options):
    step = 1e-30
    return np.array(
        [
            numpy_loss(w + 1j * step * unit, *data, **options).imag / step
            for unit in np.eye(w.size)
        ]
    )


def difference(function, w, step=1e-5):
    return np.array(
        [
            (function(w + step * e) - function(w - step * e)) / (2 * step)
            for e in np.eye(w.size)
        ]
    )


def tiny_net(dtype):
    """The same net in Keras, its weights as one vector, data."""
    model = gallery.tiny(outputs=2, use_bias=False, dtype=dtype)
    rng = np.random.default_rng(5)
    w = rng.normal(size=24)
    first, bias, last = np.split(w, [12, 16])
    model.set_weights([first.reshape(3, 4), bias, last.reshape(4, 2)])
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(True, dtype=dtype)
    )
    return model, w, (rng.normal(size=(8, 3)), rng.integers(0, 2, 8))


def kernels(vector):
    return np.r_[vector[:12], vector[16:]]


def flat(scores):
    return np.concatenate([np.ravel(s) for s in scores.values()])


def all_true(model):
    return {
        k: np.ones(v.shape, bool) for k, v in tt.prunable_weights(model).items()
    }
