import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests import gallery
from tests.conftest import compiled, images, mlp
from tf_tickets.analysis import (
    input_landscape,
    loss_landscape,
)
from tf_tickets.analysis.landscape import _filter_normalized
from tf_tickets.loss.over_data import LossOverData
from tf_tickets.selection import named_weights


def test_every_filter_of_a_direction_has_the_length_of_the_models_filter():
    model = compiled(gallery.block())
    ticket = tt.prune(model, sparsity=0.5)
    ticket.apply(model)
    function = LossOverData(model, images(), needed_by="test")
    weights = function.weights()
    direction = _filter_normalized(function.random(0), weights, model)
    assert not any(k.endswith(("gamma", "beta", "bias")) for k in direction)
    for key, d in direction.items():
        w, d = weights[key].numpy(), d.numpy()
        axes = tuple(range(w.ndim - 1))
        np.testing.assert_allclose(
            np.sqrt((d**2).sum(axes)), np.sqrt((w**2).sum(axes)), rtol=1e-4
        )
        assert (d[~ticket.masks[key]] == 0).all()


@pytest.mark.parametrize(
    "layer, axes",
    [
        (keras.layers.Conv2D(1, 3), (0, 1, 2)),  # one filter, three channels
        (keras.layers.Conv2DTranspose(5, 3), (0, 1, 3)),
        (keras.layers.Conv2DTranspose(1, 3), (0, 1, 3)),
        (keras.layers.DepthwiseConv2D(3, depth_multiplier=2), (0, 1)),
        (keras.layers.DepthwiseConv2D(3), (0, 1)),
        (keras.layers.Conv2D(6, 3, groups=3), (0, 1, 2)),
        (keras.layers.EinsumDense("bijc,cde->bijde", (None, None, 2, 4)), (0,)),
    ],
    ids=lambda one: getattr(one, "name", ""),
)
def test_filters_are_what_makes_one_output_in_any_layer(layer, axes):
    """``axes``: of the kernel, those that are summed over for one output."""
    model = keras.Sequential([keras.Input((6, 6, 3)), layer])
    model.compile(loss="mse")
    x = images((6, 6, 3))[0]
    data = x, np.zeros_like(model(x))
    function = LossOverData(model, data, needed_by="test")
    weights = function.weights()
    [found] = _filter_normalized(function.random(0), weights, model).values()
    kernel = layer.kernel.numpy()
    np.testing.assert_allclose(
        np.sqrt((found.numpy() ** 2).sum(axes)),
        np.sqrt((kernel**2).sum(axes)),
        rtol=1e-4,
    )


def test_the_surface_is_the_loss_of_the_moved_weights(data):
    model = compiled(mlp())
    before = model.get_weights()
    surface = loss_landscape(model, data, span=0.5, steps=3, seed=4)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert surface.center == pytest.approx(
        model.evaluate(*data, verbose=0)[0], rel=1e-5
    )
    function = LossOverData(model, data, needed_by="test")
    first, second = (
        _filter_normalized(function.random(s), function.weights(), model)
        for s in (8, 9)
    )
    for key, variable in named_weights(model).items():
        if key in first:
            variable.assign(variable + 0.5 * first[key] - 0.5 * second[key])
    assert surface.losses[0, 2] == pytest.approx(
        model.evaluate(*data, verbose=0)[0], rel=1e-4
    )
    assert surface.area_below(np.inf) == 1
    assert surface.area_below(0) < 1


def test_the_input_landscape_rises_fastest_along_the_gradient(data):
    model = compiled(mlp(), "adam")
    model.fit(*data, epochs=5, verbose=0)
    seen = []
    surface = input_landscape(
        model,
        data,
        span=0.1,
        steps=3,
        on_point=lambda done, of: seen.append((done, of)),
    )
    assert surface.center == pytest.approx(
        model.evaluate(*data, verbose=0)[0], rel=1e-5
    )
    along, across = surface.losses[1, 2], surface.losses[2, 1]
    assert along > surface.center
    assert along - surface.center > abs(across - surface.center)
    assert seen[-1] == (9, 9)


def test_plots_are_files(data, tmp_path):
    pytest.importorskip("matplotlib")
    model = compiled(mlp())
    loss_landscape(model, data, steps=3).plot(tmp_path / "a.png")
    assert {p.stat().st_size > 1000 for p in tmp_path.iterdir()} == {True}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda m, d: loss_landscape(m, d, steps=4), "odd"),
        (lambda m, d: loss_landscape(m, d, span=0), "span"),
        (lambda m, d: input_landscape(m, d, steps=1), "odd"),
    ],
)
def test_bad_requests_get_one_clear_error(data, make, message):
    with pytest.raises(ValueError, match=message):
        make(compiled(mlp()), data)
