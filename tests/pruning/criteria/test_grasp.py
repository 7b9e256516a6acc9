"""GraSP against a Hessian by differences of the gradient."""

import functools

import keras
import numpy as np
import pytest

from tests.pruning.criteria.oracle import (
    all_true,
    difference,
    flat,
    kernels,
    numpy_gradient,
)
from tf_tickets.pruning import grasp


@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_grasp_is_weight_times_hessian_times_gradient(tiny, temperature):
    model, w, data = tiny
    slope = functools.partial(numpy_gradient, temperature=temperature)
    g = slope(w, *data)
    frozen = np.zeros(24)  # the bias is not among the weights that are scored
    frozen[12:16] = 1
    g = np.where(frozen, 0, g)
    hessian = difference(lambda v: slope(v, *data), w)
    scores = grasp(model, all_true(model), data=data, temperature=temperature)
    np.testing.assert_allclose(
        flat(scores), kernels(w * (hessian @ g)), rtol=1e-5, atol=1e-14
    )


def test_temperature_means_the_same_for_probabilities_and_logits(tiny):
    model, w, data = tiny
    expected = flat(grasp(model, all_true(model), data=data))
    model.layers[-1].activation = keras.activations.softmax
    model.compile(loss="sparse_categorical_crossentropy")
    scores = flat(grasp(model, all_true(model), data=data))
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
