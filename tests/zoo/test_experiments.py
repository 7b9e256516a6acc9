"""Experiments are directories: idempotent, resumable, and survive kills."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import tf_tickets as tt
from tf_tickets.callbacks import lock
from tf_tickets.zoo import experiments
from tf_tickets.zoo.experiments import Experiment

ROOT = Path(__file__).parents[2]
QUICK = {"density": 0.1, "epochs": 1}


def one(method="magnitude", seed=0, **options):
    return Experiment(method=method, seed=seed, **{**QUICK, **options})


def whole(found, unit):
    """Everything a result must say, and the ticket beside it."""
    assert found["digest"] == unit.digest
    assert 0 <= found["test_accuracy"] <= 1 and np.isfinite(found["test_loss"])
    assert found["density"] == pytest.approx(unit.density, abs=1e-5)
    return True


@pytest.mark.parametrize(
    "options, digest",
    [
        ({"method": "imp", "density": 0.1, "seed": 0}, "a35c9243"),
        (
            {"method": "dense", "density": 1, "seed": 3, "epochs": 2},
            "f67a752d",
        ),
    ],
)
def test_identities_are_the_same_in_every_release(options, digest):
    """A change here makes people's finished runs strangers."""
    unit = Experiment(**options)
    assert unit.digest.startswith(digest)
    assert unit.name.endswith(digest)
    same = {**options, "rounds": None, "model": "digits_cnn"}
    assert Experiment(**same).digest == unit.digest
    assert Experiment(**{**options, "seed": 9}).digest != unit.digest


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "magic"}, "method='magic'"),
        ({"density": 0}, "density=0"),
        ({"density": float("nan")}, "density=nan"),
        ({"method": "dense"}, "density 1"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": None}, "seed=None"),
        ({"epochs": 0}, "epochs=0"),
        ({"rounds": 1.5}, "rounds=1.5"),
        ({"model": "resnet20"}, "model='resnet20'"),
    ],
)
def test_bad_experiments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Experiment(**{"method": "imp", "density": 0.1, "seed": 0, **options})
    with pytest.raises(ValueError, match="one twice"):
        experiments.run([one(), one()], "nowhere")
    with pytest.raises(ValueError, match="workers=-1"):
        experiments.run([], "nowhere", workers=-1)


@pytest.mark.parametrize("method", ["imp", "gradual", "snip"])
def test_a_run_ends_with_its_result_and_is_not_repeated(
    method, tmp_path, monkeypatch
):
    unit = one(method, rounds=2 if method == "imp" else None)
    assert unit.result(tmp_path) is None
    found = unit.run(tmp_path)
    assert whole(found, unit) and unit.result(tmp_path) == found
    ticket = tt.Ticket.load(tmp_path / "ticket.npz")
    assert ticket.kept == 6128
    monkeypatch.setattr(experiments.experiment, "Task", None)  # no training
    assert unit.run(tmp_path) == found
    with pytest.raises(ValueError, match="another experiment.*seed"):
        one(method, seed=1).run(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ValueError, match=r"result\.json.*not the result"):
        unit.run(tmp_path)


def test_a_run_is_a_function_of_its_identity(tmp_path):
    first, second = (one("random").run(tmp_path / n) for n in "ab")
    differ = {k for k in first if first[k] != second[k]}
    assert differ <= {"seconds"}


def kill_one(directory, killed, name):
    """Kill -9 whoever is first found to work on the unit ``name``."""
    path = directory / name / "lock"
    while not killed:
        try:
            pid = int(path.read_text().rstrip("\n") or "none")
        except (OSError, ValueError):
            time.sleep(0.01)
            continue
        time.sleep(0.3)  # let it get somewhere
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)


def survives(run, tmp_path):
    units = [one(seed=seed) for seed in range(3)]
    killed = []
    killer = threading.Thread(
        target=kill_one, args=(tmp_path, killed, units[1].name), daemon=True
    )
    killer.start()
    found = run(units, tmp_path)
    killer.join(10)
    assert len(killed) == 1 and killed[0] != os.getpid()
    assert all(whole(f, unit) for f, unit in zip(found, units, strict=True))
    # The one that took over is another process.
    assert int((tmp_path / units[1].name / "lock").read_text()) != killed[0]
    assert experiments.results(tmp_path) == sorted(
        found, key=lambda f: f["experiment"]["seed"]
    )
    assert not list(tmp_path.glob("*/.result.json.*"))
    return units, found


def test_a_killed_process_is_started_again(tmp_path):
    units, found = survives(
        lambda units, path: experiments.run(units, path, workers=2), tmp_path
    )
    started = time.monotonic()
    assert experiments.run(units, tmp_path, workers=2) == found
    assert time.monotonic() - started < 1  # no process was started


def test_a_killed_ray_worker_is_started_again(tmp_path):
    ray = pytest.importorskip("ray")
    # Tests may not use the network that Ray would ask how it is used.
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
    )
    try:
        survives(experiments.run_on_ray, tmp_path)
    finally:
        ray.shutdown()


def test_failures_are_told_after_all_others_are_done(tmp_path):
    good, held = one(seed=0), one(seed=1)
    place = tmp_path / held.name
    place.mkdir()
    lock.acquire(place)  # by this process, not by the one that will try
    try:
        with pytest.raises(
            RuntimeError, match=r"(?s)1 of 2 .*-s1-.*Another process"
        ) as raised:
            experiments.run([held, good], tmp_path, workers=1)
    finally:
        lock.release(place)
    assert "Traceback" not in str(raised.value)
    assert whole(good.result(tmp_path / good.name), good)


def test_the_example_runs(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "examples/experiments.py"),
            "--smoke",
            "--workers=0",
            f"--output_dir={tmp_path}",
        ],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "2 runs" in done.stdout and "magnitude" in done.stdout
    for path in tmp_path.glob("*/result.json"):
        assert json.loads(path.read_text())["epochs"] == 1
