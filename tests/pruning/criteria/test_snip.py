"""SNIP against the slope of the loss in the mask."""

import numpy as np

from tests.conftest import compiled, mlp
from tests.pruning.conftest import X, Y
from tests.pruning.criteria.oracle import (
    all_true,
    difference,
    flat,
    kernels,
    numpy_loss,
)
from tf_tickets.pruning import snip


def test_snip_is_the_slope_of_the_loss_in_the_mask(tiny):
    model, w, data = tiny
    slope = difference(lambda c: numpy_loss(c * w, *data), np.ones(24))
    scores = snip(model, all_true(model), data=data)
    np.testing.assert_allclose(flat(scores), np.abs(kernels(slope)), rtol=1e-6)


def test_snip_scores_the_masked_model(tiny):
    model, w, data = tiny
    masks = all_true(model)
    first, last = masks
    masks[first][0] = False
    m = np.ones(24)
    m[:4] = 0
    slope = difference(lambda c: numpy_loss(c * w * m, *data), np.ones(24))
    scores = snip(model, masks, data=data)
    np.testing.assert_allclose(
        flat(scores), np.abs(kernels(slope)), rtol=1e-6, atol=1e-12
    )


def test_training_mode_sees_batch_statistics():
    model = compiled(mlp())
    shifted = X + 5.0
    inference = flat(snip(model, all_true(model), data=(shifted, Y)))
    training = flat(
        snip(model, all_true(model), data=(shifted, Y), training=True)
    )
    assert not np.allclose(inference, training)
