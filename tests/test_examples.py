"""The examples run from a shell and leave what they promise.

Each is the real script on the real digits, with few epochs: what it finds
means nothing here, but every column must be there and every share a share.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

RUNS = {
    "imp_cifar": (
        ["--rounds=2", "--target_sparsity=0.8", "--epochs=2"],
        ["accuracy.png", "saved_model"],
    ),
    "gem_miner": (
        [
            "--epochs=5",
            "--finetune_epochs=1",
            "--density=0.2",
            "--method=gem_miner",
            "--method=edge_popup_all",
            "--method=snip",
        ],
        ["accuracy.png", "sanity.png", "gem.safetensors"],
    ),
    "early_bird": (
        [
            "--epochs=8",
            "--epsilon=1.0",
            "--sparsities=0.5",
            "--other_epochs=1",
            "--timing_rounds=2",
        ],
        [],
    ),
    "spend_ticket": (
        [
            "--epochs=6",
            "--sparsities=0.5",
            "--rescale_iterations=2",
            "--kinds=ticket",
        ],
        ["summary.csv", "accuracy.png", "landscape_vanilla.png"],
    ),
    "export_and_serve": (
        ["--units=64", "--rounds=1", "--epochs_per_round=1", "--sparsity=0.8"],
        [],
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_an_example_runs(name, tmp_path):
    arguments, files = RUNS[name]
    output = tmp_path / "out"
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / f"examples/{name}.py"),
            *arguments,
            f"--output_dir={output}",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for file in files:
        assert (output / file).exists(), file
    for path in output.glob("*.csv"):
        with path.open() as lines:
            rows = list(csv.DictReader(lines))
        assert rows, path
        for row in rows:
            for column, value in row.items():
                if column in ("accuracy", "before", "after", "density"):
                    assert 0 <= float(value) <= 1, (path, column)
