"""Only what was measured is called best."""

import platform
from pathlib import Path

import pytest

import tf_tickets as tt
from tf_tickets.export.places import PLACES
from tf_tickets.timing import Latency


def report(path, dense, export):
    times = {
        "dense": Latency(dense, dense, dense, 9),
        "export": Latency(export, export, export, 9),
    }
    return tt.export.Report(Path(path), "litert", [], 1, latencies={1: times})


@pytest.mark.parametrize(
    ("machine", "place"), [("x86_64", "server x86"), ("aarch64", "ARM")]
)
def test_the_machine_it_runs_on_is_the_only_one_measured(
    machine, place, monkeypatch
):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    # The machine was twice as slow while the first was measured.
    reports = [report("a", 4e-3, 3e-3), report("b", 2e-3, 2e-3)]
    found = tt.export.best_files(reports)
    assert [*found] == [*PLACES]
    assert found[place].path == Path("a")
    for other in {*PLACES} - {place}:
        assert found[other].path is None
        assert "to measure" in found[other].why


def test_what_was_measured_elsewhere_counts(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    reports = [report("a", 1.0, 1.0), report("b", 1.0, 2.0)]
    found = tt.export.best_files(
        reports, measured={"browser": {"a": 2e-3, "b": 1e-3}}
    )
    assert found["browser"].path == Path("b")
    assert str(found["browser"]) == "b: 1.00 ms of 2 files measured there"
    assert found["server x86"].path is None is found["ARM"].path


def test_bad_input_is_one_clear_error():
    one = report("a", 1.0, 1.0)
    with pytest.raises(ValueError, match="`reports` must be"):
        tt.export.best_files([])
    with pytest.raises(ValueError, match="`measured` must be"):
        tt.export.best_files([one], measured={"toaster": {"a": 1.0}})
    with pytest.raises(ValueError, match="`measured` must be"):
        tt.export.best_files([one], measured={"browser": {"b": 1.0}})
