"""Figures show the numbers they are of: bars, lines, ticks and labels."""

import sys
from pathlib import Path

import numpy as np
import pytest

import tf_tickets as tt
from tf_tickets import analysis as A
from tf_tickets import figures
from tf_tickets.export.choosing import Latency
from tf_tickets.export.report import Report, WeightRow

pytest.importorskip("matplotlib")


def bars_of(axes):
    """``{name: (from, length, text beside it)}``."""
    names = [text.get_text() for text in axes.get_yticklabels()]
    texts = [text.get_text() for text in axes.texts]
    return {
        name: (bar.get_x(), pytest.approx(bar.get_width()), text)
        for name, bar, text in zip(names, axes.patches, texts, strict=True)
    }


def lines_of(axes):
    """``{label: points}`` of what the legend names, in its order."""
    found = {}
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
        line = handle[0] if isinstance(handle, tuple) else handle
        found[label] = np.asarray(line.get_xydata())
    return found


def ticks_of(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def written(thing, tmp_path):
    """The axes of its plot, which must also be a file."""
    axes = thing.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    return axes


MASKS = {"a/kernel": np.eye(4) > 0, "b/kernel": np.ones((2, 2), bool)}


@pytest.mark.parametrize(
    "ticket, of",
    [
        (tt.Ticket(MASKS), "weights"),
        (
            tt.structured.ChannelTicket(
                {key: mask.ravel() for key, mask in MASKS.items()}
            ),
            "channels",
        ),
    ],
)
def test_a_ticket_is_its_densities_and_their_whole(ticket, of, tmp_path):
    axes = written(ticket, tmp_path)
    assert bars_of(axes) == {
        "a/kernel": (0, 0.25, "0.25"),
        "b/kernel": (0, 1.0, "1"),
    }
    assert axes.yaxis_inverted(), "the first layer is at the top"
    [whole] = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert whole.get_xdata()[0] == 0.4
    assert ticks_of(axes.yaxis) == ["a/kernel", "b/kernel"]
    assert axes.get_xlabel() == f"density, 8 of 20 {of} kept"
    assert [t.get_text() for t in axes.get_legend().get_texts()] == [
        "all together: 0.4"
    ]


def history(*values, metric="val_accuracy", best=0.0):
    return [
        {
            "round": i + 1,
            "trained_sparsity": 1 - 0.5**i,
            "sparsity": 1 - 0.5 ** (i + 1),
            "loss": 1.0,
            "best_loss": 1.0,
            metric: value,
            f"best_{metric}": value + best,
        }
        for i, value in enumerate(values)
    ]


@pytest.fixture
def imp():
    return tt.callbacks.IterativeMagnitudePruning(
        target_sparsity=0.9, rounds=3, epochs_per_round=1
    )


def test_rounds_are_a_line_over_sparsity_under_a_dashed_dense_one(
    imp, tmp_path
):
    imp.history = history(0.9, 0.92, 0.8, best=0.01)
    axes = written(imp, tmp_path)
    lines = lines_of(axes)
    assert [*lines] == ["dense", "end of the round", "best of the round"]
    np.testing.assert_allclose(lines["dense"][:, 1], 0.9)
    np.testing.assert_allclose(
        lines["end of the round"], [(1, 0.9), (0.5, 0.92), (0.25, 0.8)]
    )
    np.testing.assert_allclose(
        lines["best of the round"][:, 1], [0.91, 0.93, 0.81]
    )
    [dense] = [one for one in axes.lines if one.get_label() == "dense"]
    assert dense.get_linestyle() == "--"
    assert axes.get_ylabel() == "val_accuracy"
    assert ticks_of(axes.xaxis) == ["0%", "50%", "75%"]
    assert axes.get_xscale() == "log" and axes.xaxis_inverted()


def test_rounds_are_drawn_by_the_metric_that_is_asked(imp):
    imp.history = history(0.5, 0.4, metric="my_loss")
    assert imp.plot(metric="loss").get_ylabel() == "loss"
    # Every round ended at its best: one line.
    assert [*lines_of(imp.plot(metric="my_loss"))] == [
        "dense",
        "end of the round",
    ]
    with pytest.raises(ValueError, match="`metric` must be .* 'my_loss'"):
        imp.plot(metric="val_accuracy")
    imp.history = []
    with pytest.raises(ValueError, match="before a round is done"):
        imp.plot()


def test_a_run_is_plotted_as_fit_leaves_it(imp, data):
    from tests.conftest import compiled, mlp

    compiled(model := mlp(hidden=8))
    model.fit(*data, epochs=imp.epochs, verbose=0, callbacks=[imp])
    axes = imp.plot()
    assert axes.get_ylabel() == "accuracy"
    np.testing.assert_allclose(
        lines_of(axes)["end of the round"][:, 1],
        [row["accuracy"] for row in imp.history],
    )


def test_seeds_are_a_mean_and_a_deviation():
    runs = {"one": {1.0: [0.8, 1.0], 0.1: [0.5, 0.7]}, "two": {0.1: 0.4}}
    axes = figures.over_sparsity(runs, "accuracy", dense=[0.8, 1.0])
    lines = lines_of(axes)
    np.testing.assert_allclose(lines["one"][:, 1], [0.9, 0.6])
    # Beside its place, so that whiskers of others are seen.
    np.testing.assert_allclose(lines["one"][:, 0], [1, 0.1], rtol=0.04)
    assert lines["one"][1, 0] != lines["two"][0, 0]
    np.testing.assert_allclose(lines["dense"][:, 1], 0.9)
    [band] = axes.patches
    assert band.get_height() == pytest.approx(2 * 0.1 * 2**0.5)
    np.testing.assert_allclose(lines["two"], [(0.1, 0.4)])
    [whiskers] = axes.containers[0][2]
    ends = [segment[:, 1] for segment in whiskers.get_segments()]
    std = 0.1 * 2**0.5
    np.testing.assert_allclose(
        ends, [(0.9 - std, 0.9 + std), (0.6 - std, 0.6 + std)]
    )


def test_long_names_leave_room_for_the_axes(tmp_path):
    runs = {f"{'some.module:' * 12}{i}": {0.5: 0.9} for i in range(6)}
    axes = figures.over_sparsity(runs, "accuracy", path=tmp_path / "long.png")
    figure = axes.figure
    assert axes.get_window_extent().width > 0.4 * figure.bbox.width


def test_labels_of_sparsities_stay_apart_and_tell_near_ones():
    rounds = {0.8**i: 0.9 for i in range(20)}
    axes = figures.over_sparsity({"t": rounds}, "accuracy")
    ticks = ticks_of(axes.xaxis)
    assert len(ticks) <= 10 and len(set(ticks)) == len(ticks)
    assert ticks[0] == "0%" and ticks[-1] == "98.6%"


def test_gradient_flow_is_bars_from_zero(tmp_path):
    flow = A.GradientFlow({"a": 3.0, "b": 0.004}, {"a": 2, "b": 9}, 3.0, 1.5)
    axes = written(flow, tmp_path)
    assert bars_of(axes) == {"a": (0, 3.0, "3"), "b": (0, 0.004, "0.004")}
    assert axes.get_xscale() == "linear" and axes.get_xlim()[0] == 0
    assert "gradient" in axes.get_xlabel()


def test_activations_are_shares_of_one(tmp_path):
    found = A.ActivationSparsity({"relu": 0.5, "swish": 0.0}, 0.25, 1e-3)
    axes = written(found, tmp_path)
    assert bars_of(axes) == {
        "relu": (0, 0.5, "50.0%"),
        "swish": (0, 0.0, "0.0%"),
    }
    assert axes.get_xlim() == (0, 1.1)


@pytest.mark.parametrize("space", ["weight space", "input space"])
def test_a_landscape_says_what_its_axes_and_colors_are(space, tmp_path):
    at = np.linspace(-0.5, 0.5, 5)
    losses = at[:, None] ** 2 + at**2
    losses[0, 0] = np.inf
    surface = A.LossSurface(at, at, losses, space)
    axes = written(surface, tmp_path)
    assert axes.get_title() == space
    assert axes.get_xlabel().startswith("first direction")
    assert axes.get_ylabel().startswith("second direction")
    assert axes.get_aspect() == 1
    assert axes.get_xlim() == axes.get_ylim() == (-0.5, 0.5)
    [_, colors] = axes.figure.axes
    assert colors.get_ylabel() == "loss"
    [model] = [line for line in axes.lines if line.get_marker() == "+"]
    np.testing.assert_array_equal(model.get_xydata(), [(0, 0)])


@pytest.mark.parametrize("size", [2, 3, 12, 35])
@pytest.mark.parametrize("labels", [False, True])
def test_distance_maps_have_whole_epochs(size, labels):
    epochs = [10 * i for i in range(size)] if labels else None
    axes = A.plot_mask_distances(np.zeros((size, size)), labels=epochs)
    for axis in (axes.xaxis, axes.yaxis):
        places, names = axis.get_ticklocs(), ticks_of(axis)
        assert len(names) <= 10 and places[0] == 0
        step = 10 if labels else 1
        assert names == [str(step * int(place)) for place in places]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "epoch")


def test_an_eigenvalue_settles_over_whole_products(tmp_path):
    top = A.TopEigenvalue(2.5, {}, 3, True, (1.0, 2.4, 2.5))
    axes = written(top, tmp_path)
    np.testing.assert_array_equal(
        axes.lines[0].get_xydata(), [(1, 1.0), (2, 2.4), (3, 2.5)]
    )
    axes.figure.draw_without_rendering()
    assert all(place == int(place) for place in axes.get_xticks())
    curve = A.LossCurve(np.array([-1.0, 1.0]), np.array([0.5, 0.7]), 2.0)
    axes = written(curve, tmp_path)
    np.testing.assert_array_equal(
        axes.lines[0].get_xydata(), [(-1, 0.5), (1, 0.7)]
    )
    assert axes.get_title() == "curvature 2" and axes.get_ylabel() == "loss"


def test_sanity_checks_are_points_means_and_the_threshold(tmp_path):
    report = A.SanityReport((0.9, 0.7), {"shuffle": (0.6, 0.5)}, (0, 1), 0.05)
    axes = written(report, tmp_path)
    points = [one.get_ydata() for one in axes.lines if one.get_marker() == "o"]
    np.testing.assert_array_equal(points, [(0.9, 0.7), (0.6, 0.5)])
    lines = lines_of(axes)
    assert lines["means below this fall"][:, 1] == pytest.approx(0.75)
    assert ticks_of(axes.xaxis) == ["ticket", "shuffle"]
    assert "passes" in axes.get_title()


def row(**sizes):
    return WeightRow("w", (10, 10), 0.5, 400, 150, 140.0, None, **sizes)


def around(median):
    return Latency(median, 0.9 * median, 1.2 * median, 9)


def test_a_report_has_the_bars_of_its_text(tmp_path):
    report = Report(
        Path("x"),
        "packed",
        [row(gzip_bytes=160), row(gzip_bytes=40)],
        2_000,
        dense_disk_bytes=5_000,
        latencies={
            1: {"dense": around(0.002), "export": around(0.001)},
            32: {"dense": around(0.004), "export": around(0.004)},
        },
        differences={1: 0.0, 32: 0.0},
    )
    size, speed = written(report, tmp_path)
    assert bars_of(size) == {
        "weights, dense": (0, 800, "800 B"),
        "weights, gzip": (0, 200, "200 B"),
        "weights, packed": (0, 300, "300 B"),
        "weights, floor": (0, 280, "280 B"),
        "on disk, dense": (0, 5_000, "5.0 kB"),
        "on disk, packed": (0, 2_000, "2.0 kB"),
    }
    assert bars_of(speed) == {
        "batch 1, dense": (0, 2.0, "2.00 ms"),
        "batch 1, packed": (0, 1.0, "1.00 ms"),
        "batch 32, dense": (0, 4.0, "4.00 ms"),
        "batch 32, packed": (0, 4.0, "4.00 ms"),
    }
    text = report.table()
    for axes in (size, speed):
        assert axes.get_xscale() == "linear" and axes.get_xlim()[0] == 0
        for _, _, number in bars_of(axes).values():
            assert number in text, "every number of the plot is in the text"
    assert size.get_title() == "size: 2.50x smaller"
    assert speed.get_title() == "batch 1: 2.00x faster\nbatch 32: no gain"
    [whiskers] = speed.containers[0][2]
    np.testing.assert_allclose(whiskers.get_segments()[1][:, 0], [0.9, 1.2])


def test_what_was_not_measured_has_no_bar(tmp_path):
    size, speed = written(Report(Path("x"), "auto", [row()], 2_000), tmp_path)
    assert [*bars_of(size)] == [
        "weights, dense",
        "weights, packed",
        "weights, floor",
        "on disk, auto",
    ]
    assert size.get_title() == "size: not compared"
    assert speed.get_title() == "latency: not measured" and not speed.patches


def test_every_plot_takes_axes_of_ones_own(imp):
    imp.history = history(0.9, 0.8)
    at = np.linspace(-1, 1, 3)
    for thing in (
        imp,
        tt.Ticket(MASKS),
        A.GradientFlow({"a": 1.0}, {"a": 1}, 1.0, 1.0),
        A.ActivationSparsity({"a": 1.0}, 1.0, 0.0),
        A.LossSurface(at, at, at[:, None] * at),
        A.LossCurve(at, at),
        A.TopEigenvalue(1.0, {}, 1, True, (1.0,)),
        A.SanityReport((1.0,), {"shuffle": (0.5,)}, (0,)),
    ):
        _, axes = figures.new_axes()
        assert thing.plot(axes=axes) is axes
        with pytest.raises(ValueError, match="`axes` must be matplotlib axes"):
            thing.plot(axes="here")
        with pytest.raises(ValueError, match="`path` must name an image file"):
            thing.plot(3)


def test_without_matplotlib_one_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install 'matplotlib"):
        tt.Ticket(MASKS).plot()


@pytest.mark.parametrize("kernel", [True, False])
def test_a_notebook_shows_what_is_drawn(kernel, monkeypatch):
    """Pyplot knows of it there, and of nothing elsewhere."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline")
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    if kernel:
        monkeypatch.setitem(sys.modules, "ipykernel", sys)
    pyplot.close("all")
    figure, _ = figures.new_axes()
    assert [pyplot.figure(n) for n in pyplot.get_fignums()] == [figure][:kernel]
    pyplot.close("all")
