"""What a person sees while something takes seconds, and that 0 is silent."""

import re

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests.conftest import compiled
from tests.gallery import mlp
from tf_tickets import progress

A = tt.analysis


def bars(text):
    """``[(heading, done, of)]``: the last state of each bar, uncolored."""
    text = re.sub(r"\x1b\[\d+m", "", text)
    found, heading = [], None
    for line in text.split("\n"):
        if "/" in line and "━" in line or "Unknown" in line:
            done, of = re.findall(r"(\d+)/(\d+|Unknown)", line)[-1]
            found.append((heading, done, of))
        elif line.strip():
            heading = line.strip()
    return found


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return compiled(mlp(hidden=8))


@pytest.fixture(scope="module")
def points():
    rng = np.random.default_rng(0)
    return rng.normal(size=(16, 8)).astype("float32"), np.arange(16) % 4


def small(points, **more):
    return {"data": points, "batch_size": 8, **more}


def trained(model):
    return float(np.abs(model.get_weights()[0]).sum())


# What takes seconds, the words above its bar, and how many steps it has.
LONG = {
    "synflow": (
        lambda m, d, v: tt.prune(
            m, 0.5, criterion="synflow", iterations=7, verbose=v
        ),
        "Drawing masks by synflow",
        7,
    ),
    "snip": (
        lambda m, d, v: tt.prune(
            m,
            0.5,
            criterion="snip",
            data=[(d[0][:8], d[1][:8]), (d[0][8:], d[1][8:])],
            verbose=v,
        ),
        "Reading the data",
        2,
    ),
    "reconstruct": (
        lambda m, d, v: tt.pruning.reconstruct(m, 0.5, data=d, verbose=v),
        "Reconstructing layers",
        2,
    ),
    "sanity_checks": (
        lambda m, d, v: A.sanity_checks(
            tt.prune(m, 0.5), m, train=trained, seeds=[0, 1], verbose=v
        ),
        "Sanity checks: the ticket and its controls",
        10,
    ),
    "loss_landscape": (
        lambda m, d, v: A.loss_landscape(m, **small(d), steps=3, verbose=v),
        "Loss landscape in weight space",
        9,
    ),
    "input_landscape": (
        lambda m, d, v: A.input_landscape(m, **small(d), steps=3, verbose=v),
        "Loss landscape in input space",
        9,
    ),
    "loss_along_eigenvector": (
        lambda m, d, v: A.loss_along_eigenvector(
            m,
            d,
            {m.weights[0].path: np.ones(m.weights[0].shape)},
            distances=[0.0, 0.1, 0.2],
            verbose=v,
        ),
        "Loss along a line",
        3,
    ),
    "linear_connectivity": (
        lambda m, d, v: A.linear_connectivity(
            m,
            {w.path: np.zeros(w.shape) for w in m.weights},
            d,
            test_data=d,
            points=3,
            verbose=v,
        ),
        "The line between two networks",
        6,
    ),
    "gradient_flow": (
        lambda m, d, v: A.gradient_flow(m, **small(d), verbose=v),
        "Reading the data",
        2,
    ),
    "activation_sparsity": (
        lambda m, d, v: A.activation_sparsity(m, **small(d), verbose=v),
        "Activations of the data",
        2,
    ),
    "rescale_initialization": (
        lambda m, d, v: tt.retraining.rescale_initialization(
            keras.models.clone_model(m),
            d,
            batch_size=4,
            iterations=3,
            loss="sparse_categorical_crossentropy",
            verbose=v,
        ),
        "Rescaling the initialization",
        3,
    ),
    "search by gradient": (
        lambda m, d, v: tt.pruning.search_densities(
            m,
            tt.prune(m, 0.5),
            method="gradient",
            data=d,
            steps=4,
            samples=1,
            verbose=v,
        ),
        "Descending the loss of random masks",
        4,
    ),
    "search by training": (
        lambda m, d, v: tt.pruning.search_densities(
            m,
            tt.prune(m, 0.5),
            method="ball",
            train=trained,
            candidates=3,
            verbose=v,
        ),
        "Training random tickets",
        4,
    ),
}


@pytest.mark.parametrize("name", LONG)
def test_a_bar_ends_complete_and_0_is_silent(name, model, points, capsys):
    run, heading, steps = LONG[name]
    run(model, points, 0)
    assert capsys.readouterr().out == ""
    run(model, points, 1)
    found = bars(capsys.readouterr().out)
    assert (heading, str(steps), str(steps)) in found, found


def test_a_search_that_ends_early_ends_complete_too(model, points, capsys):
    top = A.hessian_top_eigenvalue(
        model, points, tolerance=0.5, iterations=99, verbose=1
    )
    assert top.iterations < 99
    count = str(top.iterations)
    assert bars(capsys.readouterr().out) == [
        ("Power iteration on the Hessian", count, count)
    ]


def test_exports_show_what_they_measure(capsys, tmp_path):
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, name="one"),
            keras.layers.Dense(64, name="two"),
        ]
    )
    tt.prune(model, 0.98).apply(model)
    made = tt.export.saved_model(
        model, tmp_path / "a", format="sparse", batch_sizes=[1], verbose=1
    )
    tt.export.report(made, model, runs=5, batch_sizes=[1, 2], verbose=1)
    headings = [row[0] for row in bars(capsys.readouterr().out)]
    assert headings == [
        "Measuring which layers are faster sparse",
        "Measuring the sparse export",
    ]
    tt.export.saved_model(
        model, tmp_path / "b", format="sparse", batch_sizes=[1], verbose=0
    )
    tt.export.report(made, model, runs=5, batch_sizes=[1], verbose=0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "verbose, expected",
    [
        (1, ["Round 1/2", "Round 2/2", "The last ticket"]),
        (2, ["Round 1/2", "Round 2/2", "The last ticket"]),
        (0, []),
    ],
)
def test_rounds_stand_above_their_epochs(verbose, expected, points, capsys):
    model = compiled(mlp(hidden=8))
    imp = tt.callbacks.IterativeMagnitudePruning(
        target_sparsity=0.75, rounds=2, epochs_per_round=2
    )
    model.fit(*points, epochs=imp.epochs + 1, verbose=verbose, callbacks=[imp])
    lines = capsys.readouterr().out.splitlines()
    ours = ("Round", "The last", "Drawn")
    said = [line for line in lines if line.startswith(ours)]
    if not expected:
        assert lines == []
        return
    assert said == [*expected, f"Drawn: {imp.ticket!r}"]
    at = [lines.index(line) for line in expected]
    assert [lines[i + 1] for i in at] == ["Epoch 1/5", "Epoch 3/5", "Epoch 5/5"]
    text = "\n".join(lines)
    # The sparsity of the network that was trained, in Keras's own bar.
    assert "round: 2.0000" in text and "sparsity: 0.5000" in text


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock.monotonic)
    monkeypatch.setattr(progress, "_PATIENCE", 1.0)
    return clock


def work(clock, seconds, verbose, **options):
    with progress.shown(verbose), progress.bar("Work", 4, **options) as step:
        for _ in range(4):
            clock.now += seconds
            step()


def test_auto_waits_a_second(clock, capsys):
    work(clock, 0.2, "auto")
    assert capsys.readouterr().out == ""
    work(clock, 0.6, "auto")
    assert bars(capsys.readouterr().out) == [("Work", "4", "4")]
    work(clock, 0.0, "auto", at_once=True)
    assert capsys.readouterr().out.startswith("Work\n")


def test_2_is_one_line_at_the_end(clock, capsys):
    work(clock, 9.0, 2)
    heading, line = capsys.readouterr().out.splitlines()
    assert heading == "Work" and line.startswith("4/4 - ")


def test_a_bar_inside_a_bar_is_not_shown(capsys):
    with progress.shown(1), progress.bar("Outer", 2) as step:
        for _ in range(2):
            with progress.shown(1), progress.bar("Inner", 5) as inner:
                inner()
            step()
    assert bars(capsys.readouterr().out) == [("Outer", "2", "2")]


def test_a_bar_that_breaks_off_leaves_nothing_behind(capsys):
    with (
        pytest.raises(KeyboardInterrupt),
        progress.shown(1),
        progress.bar("Broken", 3) as step,
    ):
        step()
        raise KeyboardInterrupt
    assert capsys.readouterr().out.endswith("\n")
    with progress.shown(1), progress.bar("Next", 2) as step:
        step()
    assert bars(capsys.readouterr().out) == [("Next", "1", "1")]
    with progress.bar("Silent", 2) as step:
        step()
    assert capsys.readouterr().out == ""


def test_logs_go_where_keras_sends_its_own(capsys, monkeypatch):
    logged = []
    monkeypatch.setattr(progress.logging, "info", logged.append)
    keras.config.disable_interactive_logging()
    try:
        progress.say("Round 1/4")
    finally:
        keras.config.enable_interactive_logging()
    assert logged == ["Round 1/4"]
    assert capsys.readouterr().out == ""


def test_an_unknown_verbosity_is_refused(model):
    with pytest.raises(ValueError, match="`verbose` must be one of .*loud"):
        tt.prune(model, 0.5, verbose="loud")
