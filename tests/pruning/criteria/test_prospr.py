"""ProsPr against the slope of the loss after some steps of training."""

import numpy as np
import pytest

from tests.pruning.criteria.oracle import (
    all_true,
    difference,
    flat,
    kernels,
    numpy_gradient,
    numpy_loss,
)
from tf_tickets.pruning import prospr


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_prospr_is_the_slope_through_two_steps_of_training(tiny, momentum):
    model, w, (x, y) = tiny
    parts = [(x[:3], y[:3]), (x[3:6], y[3:6]), (x[6:], y[6:])]

    def after_training(c):
        v, velocity = c * w, 0.0
        for part in parts[:2]:
            velocity = momentum * velocity + numpy_gradient(v, *part)
            v = v - 0.3 * velocity
        return numpy_loss(v, *parts[2])

    slope = difference(after_training, np.ones(24))
    options = dict(data=parts, steps=2, learning_rate=0.3, momentum=momentum)
    scores = prospr(model, all_true(model), **options)
    np.testing.assert_allclose(flat(scores), np.abs(kernels(slope)), rtol=1e-6)
    # Without the Hessians it is another number, so the test can tell.
    other = flat(prospr(model, all_true(model), **options, first_order=True))
    assert not np.allclose(other, flat(scores), rtol=1e-2)


def test_prospr_trains_under_the_mask(tiny):
    model, w, (x, y) = tiny
    masks = all_true(model)
    m = np.ones(24)
    m[:4] = 0
    masks[next(iter(masks))][0] = False

    def after_training(c):
        v = c * w * m
        for _ in range(2):
            v = v - 0.3 * m * numpy_gradient(v, x, y)
        return numpy_loss(v, x, y)

    scores = prospr(
        model, masks, data=(x, y), steps=2, learning_rate=0.3, momentum=0.0
    )
    slope = difference(after_training, np.ones(24))
    np.testing.assert_allclose(
        flat(scores), np.abs(kernels(slope)), rtol=1e-6, atol=1e-12
    )
