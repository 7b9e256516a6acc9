import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests.analysis.conftest import tiny
from tf_tickets.analysis import (
    hessian_top_eigenvalue,
    loss_along_eigenvector,
)
from tf_tickets.selection import named_weights


def full_hessian(x, y, weights):
    """The Hessian of the tiny network, one flat vector of weights in float64.

    Written without Keras and differentiated by differences of the gradient.
    """
    shapes = [w.shape for w in weights]
    sizes = [w.size for w in weights]
    flat = np.concatenate([w.ravel() for w in weights]).astype("float64")

    def gradient(vector):
        parts = np.split(vector, np.cumsum(sizes)[:-1])
        w1, b1, w2, b2 = (
            p.reshape(s) for p, s in zip(parts, shapes, strict=True)
        )
        h = np.tanh(x @ w1 + b1)
        z = h @ w2 + b2
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        dz = (p - np.eye(3)[y]) / len(x)
        dh = dz @ w2.T * (1 - h**2)
        return np.concatenate(
            [
                (x.T @ dh).ravel(),
                dh.sum(0),
                (h.T @ dz).ravel(),
                dz.sum(0),
            ]
        )

    step = 1e-5
    columns = [
        (gradient(flat + step * e) - gradient(flat - step * e)) / (2 * step)
        for e in np.eye(flat.size)
    ]
    hessian = np.array(columns)
    return (hessian + hessian.T) / 2


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_it_is_the_eigenvalue_of_the_full_hessian(points, sparsity):
    """Under a mask, of the Hessian of the kept weights."""
    x, y = points
    model = tiny()
    kept = np.ones(sum(w.size for w in model.get_weights()), bool)
    if sparsity:
        ticket = tt.prune(model, sparsity=sparsity)
        ticket.apply(model)
        kept = np.concatenate(
            [
                ticket.masks.get(k, np.ones(v.shape, bool)).ravel()
                for k, v in named_weights(model).items()
            ]
        )
        assert not kept.all()
    hessian = full_hessian(x.astype("float64"), y, model.get_weights())
    values, vectors = np.linalg.eigh(hessian[np.ix_(kept, kept)])
    top = hessian_top_eigenvalue(
        model, (x, y), iterations=1000, tolerance=1e-7, batch_size=7
    )
    largest = np.abs(values).argmax()
    assert top.value == pytest.approx(values[largest], rel=1e-3)
    found = np.concatenate([v.ravel() for v in top.vector.values()])
    assert (found[~kept] == 0).all()
    assert abs(found[kept] @ vectors[:, largest]) > 0.999


def test_the_algebraic_one_is_the_greatest_where_the_curvature_is_negative():
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(2, use_bias=False, name="d")]
    )

    def saddle(y_true, y_pred):
        return keras.ops.sum(
            y_pred**2 * np.array([1.0, -3.0], "float32"), axis=-1
        )

    data = np.array([[1.0, 0.0], [0.0, 0.5]]), np.zeros((2, 2))
    options = {"loss": saddle, "iterations": 500, "tolerance": 1e-7}
    # Each sample reads one row of the kernel; the mean is over two samples.
    by_size = hessian_top_eigenvalue(model, data, **options)
    assert by_size.value == pytest.approx(-3.0, rel=1e-3)
    top = hessian_top_eigenvalue(model, data, which="algebraic", **options)
    assert top.value == pytest.approx(1.0, rel=1e-3)


def test_the_loss_along_the_eigenvector_bends_by_the_eigenvalue(points):
    model = tiny()
    top = hessian_top_eigenvalue(model, points, iterations=500, tolerance=1e-7)
    before = model.get_weights()
    curve = loss_along_eigenvector(
        model, points, top, distances=[-0.05, 0.0, 0.05]
    )
    left, middle, right = curve.losses
    bend = (left - 2 * middle + right) / 0.05**2
    assert bend == pytest.approx(top.value, rel=0.05)
    assert middle == pytest.approx(model.evaluate(*points, verbose=0)[0], 1e-5)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_plots_are_files(points, tmp_path):
    pytest.importorskip("matplotlib")
    model = tiny()
    top = hessian_top_eigenvalue(model, points)
    top.plot(tmp_path / "top.png")
    curve = loss_along_eigenvector(model, points, top, distances=[-0.1, 0, 0.1])
    curve.plot(tmp_path / "curve.png")
    assert {p.stat().st_size > 1000 for p in tmp_path.iterdir()} == {True}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"iterations": 0}, "iterations"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"which": "last"}, "'magnitude' or 'algebraic'"),
        ({"only": "some"}, "'all' or 'prunable'"),
    ],
)
def test_bad_requests_get_one_clear_error(points, options, message):
    with pytest.raises(ValueError, match=message):
        hessian_top_eigenvalue(tiny(), points, **options)


def test_other_errors_say_what_is_wrong(points):
    with pytest.raises(ValueError, match="not finite"):
        hessian_top_eigenvalue(tiny(), (points[0] * np.nan, points[1]))
    with pytest.raises(ValueError, match="one of this model's weights"):
        loss_along_eigenvector(tiny(), points, {"other": np.ones(3)})
