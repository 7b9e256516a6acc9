"""What every criterion must hold, the library's own and a stranger's."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests.conftest import batches, compiled, mlp, only_read
from tests.pruning.conftest import KINDS, X, Y
from tests.pruning.criteria.oracle import all_true, flat
from tf_tickets.pruning import criteria, grasp, prospr, snip

CRITERIA = {"snip": snip, "grasp": grasp, "prospr": prospr}


@pytest.mark.parametrize("criterion", ["snip", "grasp"])
def test_batches_cut_otherwise_score_the_same(tiny, criterion):
    model, _, (x, y) = tiny
    score = functools.partial(CRITERIA[criterion], model, all_true(model))
    whole = flat(score(data=(x, y)))
    uneven = [(x[:5], y[:5]), (x[5:], y[5:])]
    for data, options in [
        ((x, y), {"batch_size": 3}),
        (uneven, {}),
        (tf.data.Dataset.from_tensor_slices((x, y)).batch(4), {}),
        (batches(x, y, 4).repeat(), {"batches": 2}),
    ]:
        np.testing.assert_allclose(
            flat(score(data=data, **options)), whole, rtol=1e-9, atol=1e-18
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_model_of_any_kind_is_scored_and_only_read(criterion, kind):
    model, data = KINDS[kind]()
    options = {"learning_rate": 0.01} if criterion == "prospr" else {}
    with only_read(model):
        ticket = tt.prune(
            model,
            0.5,
            criterion=functools.partial(CRITERIA[criterion], **options),
            data=data,
        )
    assert ticket.kept == round(ticket.size / 2)
    shown = "(learning_rate=0.01)" if options else ""
    assert ticket.metadata["criterion"] == f"{criterion}{shown}"
    for key, scores in ticket.scores.items():
        assert np.isfinite(scores).all()
        assert scores.dtype == np.float32
        assert np.count_nonzero(scores), key
    ticket.apply(model)
    model.run_eagerly = True
    model.fit(*data, verbose=0)  # and it still trains
    assert tt.Ticket.from_model(model).kept <= ticket.kept


@pytest.mark.parametrize(
    ("kind", "criterion"),
    [*(("mlp", criterion) for criterion in CRITERIA), ("pairs", "snip")],
)
def test_xla_scores_what_eager_does(criterion, kind):
    model, data = KINDS[kind]()
    score = functools.partial(CRITERIA[criterion], model, all_true(model))
    options = {"data": data, "training": False}  # XLA draws other dropout
    if criterion == "prospr":
        options |= {"learning_rate": 0.01, "steps": 2}
    if kind == "pairs":
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.moving_mean.assign(layer.moving_mean + 0.1)
    with only_read(model):
        compiled_scores = flat(score(**options, jit_compile=True))
    eager = flat(score(**options))
    np.testing.assert_allclose(
        compiled_scores, eager, rtol=1e-3, atol=1e-5 * np.abs(eager).max()
    )


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "scores on data.*data=None"),
        (X, "needs labels.*inputs alone"),
        ([X, X], "needs labels"),
        ((X, Y[:-1]), r"one length.*\(12, 8\), \(11,\)"),
        ([], "at least one batch"),
        (batches(X, Y, 4).repeat(), "endless"),
        (iter([(X, Y)]), "read only once"),
        (3.0, "arrays .x, y.*float"),
        ([(X, Y, Y, Y)], "a batch of 4 parts"),
    ],
)
def test_bad_data_is_one_clear_error(criterion, data, message):
    if criterion == "prospr" and message == "endless":
        return  # it takes as many batches as it has steps
    with pytest.raises(ValueError, match=message):
        tt.prune(compiled(mlp()), 0.5, criterion=criterion, data=data)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_model_without_a_loss_is_one_clear_error(criterion):
    model = mlp()
    with pytest.raises(ValueError, match="compile.*mlp.*not compiled"):
        tt.prune(model, 0.5, criterion=criterion, data=(X, Y))
    model.compile("sgd")
    with pytest.raises(ValueError, match="compiled without a loss"):
        tt.prune(model, 0.5, criterion=criterion, data=(X, Y))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_broken_numbers_are_one_clear_error(criterion):
    bad = X.copy()
    bad[3, 3] = np.nan
    with pytest.raises(ValueError, match=f"'{criterion}' must be finite"):
        tt.prune(compiled(mlp()), 0.5, criterion=criterion, data=(bad, Y))


@pytest.mark.parametrize(
    ("criterion", "options", "message"),
    [
        (grasp, {"temperature": 0}, "temperature=0"),
        (prospr, {"steps": 0}, "steps=0"),
        (prospr, {"learning_rate": 0.0}, "learning_rate=0.0"),
        (prospr, {"momentum": 1.0}, "momentum=1.0"),
        (prospr, {"learning_rate": 1e30}, "Lower `learning_rate`"),
        (snip, {"batch_size": 0}, "batch_size=0"),
        (snip, {"batches": 0}, "batches=0"),
    ],
)
def test_an_option_out_of_range_is_one_clear_error(criterion, options, message):
    model = compiled(mlp())
    with only_read(model), pytest.raises(ValueError, match=message):
        criterion(model, all_true(model), data=(X, Y), **options)


def test_what_a_partial_sets_stays_set():
    model = compiled(mlp())
    own = tt.prune(model, 0.5, criterion="snip", data=(X[:4], Y[:4]))
    bound = functools.partial(snip, data=(X[:4], Y[:4]))
    for other in (None, (X, Y)):
        found = tt.prune(model, 0.5, criterion=bound, data=other)
        assert found.hamming_distance(own) == 0
    assert tt.prune(model, 0.5, criterion="snip", data=(X, Y)).hamming_distance(
        own
    )
    seeded = functools.partial(criteria.random, seed=5)
    expected = tt.prune(model, 0.5, criterion="random", seed=5)
    found = tt.prune(model, 0.5, criterion=seeded)
    assert found.hamming_distance(expected) == 0


def test_a_criterion_says_whether_it_needs_data():
    needy = {name for name in criteria.CRITERIA if criteria.needs_data(name)}
    assert needy == {"snip", "grasp", "prospr", "wanda"}
    for name in set(criteria.CRITERIA) - needy - {"movement"}:
        tt.prune(compiled(mlp()), 0.5, criterion=name, iterations=1)
    assert not criteria.needs_data(functools.partial(snip, data=(X, Y)))
    assert criteria.needs_data(functools.partial(snip, training=True))
    with pytest.raises(ValueError, match="criterion='no such'"):
        criteria.needs_data("no such")


def outermost(model, masks, *, data, seed):
    """A stranger's criterion: weights far from zero and early go last."""
    assert data == "theirs" and seed == 7
    sizes = criteria.magnitude(model, masks)
    return {path: 1 / (1 + size) for path, size in sizes.items()}


@pytest.mark.parametrize("by", ["name", "callable"])
def test_a_strangers_criterion_works_by_name_and_as_a_callable(by, monkeypatch):
    monkeypatch.setitem(tt.pruning.CRITERIA, "outermost", outermost)
    ticket = tt.prune(
        mlp(),
        0.75,
        criterion="outermost" if by == "name" else outermost,
        data="theirs",
        seed=7,
    )
    kept = np.concatenate(
        [np.abs(ticket.weights[k])[m] for k, m in ticket.masks.items()]
    )
    gone = np.concatenate(
        [np.abs(ticket.weights[k])[~m] for k, m in ticket.masks.items()]
    )
    assert kept.size == 96 and kept.max() <= gone.min()
    assert ticket.metadata["criterion"] == "outermost"
    again = tt.prune(
        mlp(), 0.75, criterion=outermost, data="theirs", seed=7, iterations=3
    )
    assert again.kept == 96


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_scores_are_of_the_weights_that_were_asked_for(change):
    def partly(model, masks, *, data, seed):
        scores = criteria.magnitude(model, masks)
        if change == "missing":
            scores.popitem()
        else:
            scores["elsewhere"] = np.ones(3)
        return scores

    with pytest.raises(ValueError, match="for every path"):
        tt.prune(mlp(), 0.5, criterion=partly)


def test_work_is_prepared_once_for_all_drawings():
    done = []

    def counted(model, masks, *, data, seed, power):
        return counted.prepare(model, data=data, seed=seed, power=power)(masks)

    def prepare(model, *, data, seed, power):
        done.append("prepared")

        def score(masks):
            done.append("scored")
            sizes = criteria.magnitude(model, masks)
            return {path: size**power for path, size in sizes.items()}

        return score

    counted.prepare, counted.iterations = prepare, 3
    bound = functools.partial(counted, power=2)
    model = mlp()
    ticket = tt.prune(model, 0.75, criterion=bound)
    assert done == ["prepared"] + 3 * ["scored"]
    assert ticket.hamming_distance(tt.prune(model, 0.75)) == 0
