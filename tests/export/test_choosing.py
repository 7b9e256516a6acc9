"""What is faster is decided by measurement, at every batch size."""

import functools
import time

import keras
import numpy as np
import pytest

from tests.export.conftest import prune_at_random
from tf_tickets.export import choosing
from tf_tickets.export.choosing import difference
from tf_tickets.export.source import Source
from tf_tickets.timing import Latency, interleaved


def test_sides_take_turns_and_turn_about():
    calls = []
    sides = {name: functools.partial(calls.append, name) for name in "abc"}
    times = interleaved(sides, rounds=6, warmup=3)
    assert "".join(calls) == 3 * "abcbcacab"
    latency = Latency.of(times["a"])
    assert latency.runs == times["b"].wall.size == times["c"].cpu.size == 6
    assert latency.low <= latency.median <= latency.high


def test_a_limit_of_time_leaves_five_rounds():
    calls = []
    interleaved(
        {"a": lambda: calls.append(time.sleep(0.01))}, rounds=50, seconds=0.02
    )
    assert len(calls) == 2 + 5
    calls.clear()
    interleaved({"a": lambda: calls.append("a")}, rounds=9, seconds=60)
    assert len(calls) == 2 + 9


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1.0, -4.0], [1.0, -3.0], 0.25),
        ([0.0, 0.0], [0.0, 0.5], 0.5),
        ([np.nan, np.inf], [np.nan, np.inf], 0.0),
        ([1.0, 2.0], [np.nan, 2.0], np.inf),
        ([np.nan, 2.0], [1.0, 2.0], np.inf),
        ([np.inf, 2.0], [-np.inf, 2.0], np.inf),
        ([], [], 0.0),
    ],
)
def test_outputs_that_are_no_numbers_differ(one, other, expected):
    assert difference([np.array(one)], [np.array(other)]) == expected


def latency(median):
    return Latency(median, median, median, 9)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({1: (0.5, 0.8), 32: (0.5, 0.4)}, "csr"),  # the mean ratio decides
        ({1: (0.9, 0.8), 32: (0.9, 0.4)}, "gather"),
        ({1: (0.1, 0.8), 32: (1.1, 0.9)}, "gather"),  # it must win at each
        ({1: (0.97, 0.96), 32: (0.5, 0.5)}, "dense"),  # that is noise
        ({1: (2.0, 2.0), 32: (0.1, 0.1)}, "dense"),
    ],
)
def test_a_method_is_chosen_if_it_wins_at_every_batch_size(
    times, expected, monkeypatch
):
    model = keras.Sequential([keras.Input((80,)), keras.layers.Dense(100)])
    prune_at_random(model, 0.05)
    kernel = model.layers[0].kernel
    kernel.assign(kernel * ([0.0, 1.0] * 50))  # so that columns are gone
    measured = []

    def timed(functions, *_):
        for function in functions.values():
            function()
        batch = (32, 1)[len(measured)]
        measured.append(set(functions))
        found = dict(zip(("csr", "gather"), times[batch], strict=True))
        return {k: latency(found.get(k, 1.0)) for k in functions}

    monkeypatch.setattr(choosing, "_latencies", timed)
    source = Source.of(model)
    choices, results = choosing.choose(source, (1, 32))
    assert measured[0] == {"dense", "csr", "gather"}
    (result,) = results.values()
    assert result.method == expected
    assert [c.method.name for c in choices.values()] == (
        [expected] if expected != "dense" else []
    )
    assert result.medians()["32"]["csr"] == times[32][0]


@pytest.mark.parametrize(
    ("units", "density"), [(100, 0.4), (40, 0.1)], ids=["dense", "small"]
)
def test_what_never_won_is_not_measured(units, density):
    model = keras.Sequential([keras.Input((80,)), keras.layers.Dense(units)])
    assert not choosing.sites_of(Source.of(prune_at_random(model, density)), 1)


def test_a_kernel_of_two_layers_stays_dense():
    inputs = keras.Input((80,))
    one, other = keras.layers.Dense(80), keras.layers.Dense(80)
    model = keras.Model(inputs, other(one(inputs)))
    prune_at_random(model, 0.05)
    assert len(choosing.sites_of(Source.of(model), 1)) == 2
    # Tied weights, as some users write them.
    vars(other)["_kernel"] = one._kernel
    assert not choosing.sites_of(Source.of(model), 1)
