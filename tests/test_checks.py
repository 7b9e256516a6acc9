"""One sentence for each option that is wrong; NumPy's numbers are numbers."""

import functools
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


def test_a_choice_is_known_by_its_options():
    """The same word for the same choice, another for another."""

    def by(offset):
        return lambda x: x + offset

    partial = functools.partial
    other = [
        "sparsity",
        checks.sparsity,
        partial(checks.sparsity, name="a"),
        partial(checks.sparsity, name="b"),
        partial(checks.number, "a", interval="[0, 1)"),
        partial(checks.number, "a", interval="[0, 2)"),
        by(1),
        by(2),
        lambda x: x - 1,
        lambda x: (lambda y: y + 1)(x),
        lambda x: (lambda y: y + 2)(x),
        lambda x, y=3: x,
        tt.pruning.smart_ratio("v1"),
        tt.pruning.smart_ratio("v1", linear_density=0.5),
    ]
    words = [checks.word_for(one) for one in other[1:]]
    assert len(set(words)) == len(words)
    assert words[0] == checks.word_for("sparsity")
    assert checks.word_for(by(1)) == words[5]
    arrays = [partial(checks.sparsity, data=np.ones(n)) for n in (3, 4)]
    assert {checks.word_for(one) for one in arrays} == {"sparsity"}
    assert " at 0x" not in "".join(words)


def test_a_run_with_other_options_of_a_criterion_is_another(tmp_path):
    x = np.ones((8, 4))

    def run(**options):
        criterion = functools.partial(tt.pruning.snip, **options)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
        model.compile("sgd", "mse")
        pruning = tt.callbacks.GradualPruning(
            target_sparsity=0.5, end_step=1, every=1, criterion=criterion,
            data=(x, x), directory=tmp_path,
        )  # fmt: skip
        model.fit(x, x, verbose=0, callbacks=[pruning])

    run(training=True)
    with pytest.raises(ValueError, match="holds a run with other arguments"):
        run(training=False)
