r"""Random graphs over every kind of layer: what shrinks says the same.

    python -m benchmarks.fuzz_channels --graphs=500 --progress=fuzz.jsonl

The graphs are those of `tests/stress/graphs.py`, of which `make test` checks a
few. Of each seed one graph is built, channels of it pruned at random, and
`shrink` (with and without selections, and once more of what it made),
`ChannelTicket.apply`, `remove_dead_channels` and `tt.export.fold` are held
against the graph itself, in float64 to 1e-9 of the largest output (blocks,
which TensorFlow cannot pool in float64, in float32 to 1e-4); and no channel may
go that something unknown reads. Each graph becomes a line of the progress file;
the same command goes on where it was.
"""

from __future__ import annotations

import collections
import dataclasses
import gc
import json
import os
from pathlib import Path
from typing import Any

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_integer("graphs", 500, "How many graphs.", 1)
flags.DEFINE_integer("seed", 0, "Of the first graph.")
flags.DEFINE_string("progress", None, "JSON lines, one for each graph.")


def main(argv: list[str]) -> None:
    del argv
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    progress = None if FLAGS.progress is None else Path(FLAGS.progress)
    rows: list[dict[str, Any]] = []
    if progress is not None and progress.exists():
        rows = [json.loads(line) for line in progress.read_text().splitlines()]
    done = {row["seed"] for row in rows}
    for seed in range(FLAGS.seed, FLAGS.seed + FLAGS.graphs):
        if seed in done:
            continue
        rows.append(one(seed))
        if rows[-1].get("fault"):
            print(rows[-1]["fault"])
        if progress is not None:
            with progress.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
        if len(rows) % 50 == 0:
            print(summary(rows), flush=True)
    print(summary(rows))
    if any(row.get("fault") for row in rows):
        raise SystemExit("There are faults.")


def one(seed: int) -> dict[str, Any]:
    """One graph, as a line."""
    import keras

    from tests.stress.graphs import Wrong, check

    try:
        return dataclasses.asdict(check(seed))
    except Wrong as error:
        return {"seed": seed, "fault": str(error)}
    finally:
        keras.backend.clear_session()
        gc.collect()


def summary(rows: list[dict[str, Any]]) -> str:
    """All graphs so far, in a line for the numbers and one for the kinds."""
    total: collections.Counter[str] = collections.Counter()
    kinds: collections.Counter[str] = collections.Counter()
    worst = 0.0
    for row in rows:
        for name in (
            "pruned",
            "removed",
            "selects",
            "dead",
            "folded",
            "compared",
        ):
            total[name] += int(row.get(name, 0))
        kinds.update(row.get("kinds", ()))
        worst = max(worst, row.get("worst", 0.0))
    faults = sum(bool(row.get("fault")) for row in rows)
    return (
        f"{len(rows)} graphs of {len(kinds)} kinds of operations: "
        f"{total['removed']} of {total['pruned']} pruned channels went, "
        f"{total['selects']} selections put in "
        f"({total['compared']} graphs compared with `apply`), "
        f"{total['dead']} dead channels, {total['folded']} normalizations "
        f"folded, {faults} faults, largest difference {worst:.1e}"
    )


if __name__ == "__main__":
    app.run(main)
