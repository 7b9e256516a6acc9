"""One sentence for each option that is wrong; NumPy's numbers are numbers."""

import json

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests.conftest import compiled, mlp
from tf_tickets import checks


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers_of_python_and_numpy_are_the_same(value):
    assert checks.whole("every", value) == 3
    assert type(checks.whole("every", value)) is int


@pytest.mark.parametrize("value", [0, -1, 2.0, True, np.bool_(True), "3", None])
def test_what_is_no_count_is_named(value):
    with pytest.raises(ValueError, match="`every` must be a whole number of"):
        checks.whole("every", value)


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1)", [0, 0.5, np.float32(0.25)], [1, -0.1, np.nan]),
        ("(0, 1]", [1, 0.5], [0, 1.1]),
        ("(0, inf)", [1e-9, 7, np.int64(2)], [0, np.inf, -1]),
        ("[0, inf)", [0, 3.5], [-1e-9, np.inf]),
        ("(-inf, inf)", [-3, 0.0], [np.nan, np.inf]),
    ],
)
def test_an_interval_includes_its_square_brackets_only(
    interval, inside, outside
):
    for value in inside:
        assert checks.number("rate", value, interval) == value
        assert type(checks.number("rate", value, interval)) is float
    for value in [*outside, True, "0.5", None, np.zeros(2)]:
        with pytest.raises(ValueError, match="`rate` must be .* Received: "):
            checks.number("rate", value, interval)


def test_a_sparsity_says_what_it_is():
    assert checks.sparsity(np.float64(0.9)) == 0.9
    with pytest.raises(ValueError, match="weights that become zero.*=1.0"):
        checks.sparsity(1.0, "target_sparsity")


def test_a_word_is_one_of_the_known_ones():
    checks.choice("weights", "keep", ("start", "keep"))
    checks.choice("rewind", None, ("weights", None))
    with pytest.raises(ValueError, match="'start' or 'keep'. Received"):
        checks.choice("weights", "keeps", ("start", "keep"))
    with pytest.raises(ValueError, match=r"one of \['a', 'b', 'c'\]"):
        checks.choice("which", np.zeros(3), ("a", "b", "c"))


def test_arrays_that_are_not_finite_are_named():
    checks.finite("Scores", {"a": np.ones(2), "b": np.arange(3)}, "why?")
    broken = {f"{i}/kernel": np.array([1, np.nan]) for i in range(7)}
    with pytest.raises(
        ValueError,
        match="Scores must be finite: why.*in 7 tensors: 0/k",
    ):
        checks.finite("Scores", {"fine": np.ones(1), **broken}, "why?")
    with pytest.raises(ValueError, match="in 1 tensors: a$"):
        half = keras.ops.convert_to_numpy(
            keras.ops.array([np.inf], dtype="bfloat16")
        )
        checks.finite("Scores", {"a": half}, "why?")


def test_numbers_of_numpy_are_as_good_as_those_of_python(data):
    one, half = np.int64(1), np.float32(0.5)
    assert repr(tt.pruning.Polynomial(half, end_step=one)) == repr(
        tt.pruning.Polynomial(0.5, end_step=1)
    )
    assert repr(tt.pruning.Geometric(half, end_step=one)) == repr(
        tt.pruning.Geometric(0.5, end_step=1)
    )
    assert repr(tt.pruning.Constant(half, begin_step=one)) == repr(
        tt.pruning.Constant(0.5, begin_step=1)
    )
    for kind in ("SignedConstant", "Bernoulli", "Beta"):
        drawn = getattr(tt.layers, kind)
        arguments = (one, half) if kind == "Beta" else ()
        config = json.dumps(drawn(*arguments, seed=one).get_config())
        assert drawn.from_config(json.loads(config)).seed == 1
    miner = tt.supermask(
        mlp(), seed=one, score_penalty=half, mask="top_k", sparsity=half
    )
    json.dumps(miner.layers[0].get_config()["seed"])
    with tt.callbacks.low_precision(
        compiled(mlp()), bits=np.int64(8), seed=one
    ):
        pass
    flow = tt.analysis.gradient_flow(compiled(mlp()), data, order=one)
    assert flow.norm > 0
    checks.choice("order", np.int64(2), (1, 2))
    with pytest.raises(ValueError, match="`order`"):
        checks.choice("order", np.float64(2), ("1", "2"))
