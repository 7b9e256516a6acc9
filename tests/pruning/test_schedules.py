"""Schedules: closed forms, bounds, and the toolkit's own objects."""

import numpy as np
import pytest

from tf_tickets.pruning import Constant, Geometric, Polynomial
from tf_tickets.pruning.schedules import sparsity_at


@pytest.mark.parametrize("power", [1, 3])
def test_polynomial_is_zhu_and_guptas_equation(power):
    schedule = Polynomial(
        0.9, end_step=300, initial_sparsity=0.1, begin_step=100, power=power
    )
    for step in (100, 150, 299, 300):
        t = (step - 100) / 200
        expected = 0.9 + (0.1 - 0.9) * (1 - t) ** power
        assert schedule(step) == pytest.approx(expected)
    assert schedule(99) == 0
    assert schedule(10_000) == 0.9


def test_geometric_prunes_equal_fractions_of_what_is_left():
    schedule = Geometric(0.99, end_step=100)
    densities = np.array([1 - schedule(step) for step in range(101)])
    np.testing.assert_allclose(densities[1:] / densities[:-1], 0.01**0.01)
    assert schedule(100) == 0.99


def test_constant_begins_at_its_step():
    schedule = Constant(0.5, begin_step=3)
    assert [schedule(s) for s in (0, 2, 3, 9)] == [0, 0, 0.5, 0.5]


@pytest.mark.parametrize(
    "schedule",
    [Polynomial(0.9, end_step=50), Geometric(0.9, end_step=50)],
)
def test_sparsity_never_falls(schedule):
    values = [schedule(step) for step in range(60)]
    assert values == sorted(values)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constant(1.0),
        lambda: Constant(0.5, begin_step=-1),
        lambda: Polynomial(0.5, end_step=0),
        lambda: Polynomial(0.5, end_step=10, begin_step=10),
        lambda: Polynomial(0.5, end_step=10, initial_sparsity=0.6),
        lambda: Polynomial(0.5, end_step=10, power=0),
        lambda: Geometric(-0.5, end_step=10),
        lambda: sparsity_at(lambda step: (True, 0.5, 1), 0),
        lambda: sparsity_at(lambda step: "much", 0),
        lambda: sparsity_at(lambda step: 1.5, 0),
        lambda: sparsity_at(lambda step: np.ones(2), 0),
    ],
)
def test_bad_schedules_are_refused(make):
    with pytest.raises(ValueError, match="Received"):
        make()


def test_a_float32_sparsity_is_read_as_it_was_written():
    assert sparsity_at(lambda step: np.float32(0.9), 0) == 0.9
    assert sparsity_at(lambda step: (False, 0.9), 0) is None


def test_the_toolkits_schedules_are_taken_as_they_are():
    schedules = pytest.importorskip(
        "tensorflow_model_optimization.python.core.sparsity.keras."
        "pruning_schedule"
    )
    theirs = schedules.PolynomialDecay(
        initial_sparsity=0.2,
        final_sparsity=0.9,
        begin_step=10,
        end_step=110,
        frequency=20,
    )
    ours = Polynomial(0.9, end_step=110, initial_sparsity=0.2, begin_step=10)
    assert sparsity_at(theirs, 11) is None
    for step in (10, 30, 70, 110):
        assert sparsity_at(theirs, step) == pytest.approx(ours(step), abs=1e-6)
    constant = schedules.ConstantSparsity(0.9, begin_step=5, frequency=5)
    assert sparsity_at(constant, 5) == 0.9
    assert sparsity_at(constant, 6) is None
