"""Two worker processes end with the tickets and weights of one process."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests import distributed_worker
from tf_tickets import distribute

WORKER = Path(distributed_worker.__file__)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [str(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """``(first worker, second worker, one process alone)``."""
    folder = tmp_path_factory.mktemp("workers")
    ports = free_ports(2)
    root = str(WORKER.parent.parent)
    env = {**os.environ, "PYTHONPATH": root, "TF_CPP_MIN_LOG_LEVEL": "3"}
    env.pop("TF_CONFIG", None)
    outs = [folder / f"{name}.npz" for name in ("w0", "w1", "alone")]
    jobs = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(out), *ports],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, out in enumerate(outs[:2])
    ]
    try:
        # The third is this one, which has imported TensorFlow.
        distributed_worker.main(0, ports, str(outs[2]), alone=True)
        for job in jobs:
            text, _ = job.communicate(timeout=300)
            assert job.returncode == 0, text
    finally:
        for job in jobs:
            job.kill()
    return [dict(np.load(out)) for out in outs]


def test_workers_agree_on_every_mask_and_weight(runs):
    first, second, _ = runs
    assert set(first) == set(second)
    for name in first:
        if name not in ("imp/files", "refused"):
            np.testing.assert_array_equal(first[name], second[name], name)


def test_two_workers_equal_one_process_on_the_same_batches(runs):
    first, _, alone = runs
    masks = [name for name in alone if "/mask/" in name]
    masks = [name for name in masks if not name.startswith("snip")]
    # Two tickets of two tensors, a gem, the channels of one layer, movement.
    assert len(masks) == 4 + 2 + 1 + 2
    assert first["early_bird/epoch"] == alone["early_bird/epoch"]
    for name in masks:
        np.testing.assert_array_equal(first[name], alone[name], name)
    for name in alone:
        if name not in (*masks, "imp/files") and "snip" not in name:
            np.testing.assert_allclose(
                first[name], alone[name], rtol=1e-4, atol=1e-5, err_msg=name
            )


def test_pruned_weights_are_zero_on_every_worker(runs):
    for run in runs:
        kernels = [run["gradual/weight0"], run["gradual/weight2"]]
        zeros = sum(int((k == 0).sum()) for k in kernels)
        assert zeros == round(0.8 * 384)
        mask = run["imp/ticket1/mask/mlp/hidden/kernel"]
        for name in ("imp/weight0", "rewind/weight0"):
            assert (run[name][~mask] == 0).all()


def test_workers_that_score_on_other_data_take_the_masks_of_the_chief(runs):
    first, second, alone = runs
    # Once, although masks were drawn three times.
    assert [run["snip/warned"] for run in runs] == [1, 1, 0]
    assert not any(run["movement/warned"] for run in runs)
    kept = sum(run.sum() for name, run in first.items() if "snip/mask" in name)
    assert kept == round(0.3 * 384)
    for name in first:
        if name.startswith("snip/"):
            np.testing.assert_array_equal(first[name], second[name], name)


def test_workers_that_cannot_go_on_together_are_told_so(runs):
    for run in runs[:2]:
        epochs, shapes = run["refused"]
        assert "go on at different epochs" in epochs
        assert "mask other weights" in shapes and "Received" in shapes


def test_only_the_chief_writes_files(runs):
    first, second, alone = runs
    assert "ticket_02.safetensors" in first["imp/files"]
    assert list(first["imp/files"]) == list(alone["imp/files"])
    assert second["imp/files"].size == 0


def test_the_chief_is_the_first_worker_or_the_one_named_so():
    class Resolver:
        def __init__(self, task_type, task_id, chief=False):
            self.task_type, self.task_id = task_type, task_id
            self._jobs = {"worker": ["a:1", "b:1"]}
            if chief:
                self._jobs["chief"] = ["c:1"]

        def cluster_spec(self):
            return tf.train.ClusterSpec(self._jobs)

    class Strategy:
        def __init__(self, *arguments):
            self.cluster_resolver = Resolver(*arguments)

    chiefs = [
        distribute.is_chief(Strategy(*arguments))
        for arguments in [
            ("worker", 0),
            ("worker", 1),
            ("worker", 0, True),
            ("chief", 0, True),
        ]
    ]
    assert chiefs == [True, False, False, True]
    assert distribute.is_chief(tf.distribute.get_strategy())
