"""Measure what is missing, and make the page of what was found."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import app, flags

from benchmarks import script
from benchmarks.claims import run
from benchmarks.claims.claims import CLAIMS, MEASURED, everything

FLAGS = script.define(
    __name__,
    rows=("benchmarks/results/claims.jsonl", "File of what was found."),
    page=("docs/results.md", "Page that is made of it; empty for none."),
    workers=(0, "Processes; 0 measures in this one.", 0),
    measure=(True, "Whether to measure what is missing, or only the page."),
)
flags.DEFINE_multi_enum(
    "claim",
    [],
    [*CLAIMS],
    "What to test; everything by default. May be given twice.",
    flag_values=FLAGS,
)
flags.DEFINE_multi_enum(
    "task",
    [*MEASURED],
    [*MEASURED],
    "Network and data to measure on.",
    flag_values=FLAGS,
)


def main(argv: Sequence[str]) -> None:
    """Measure, then make the page."""
    del argv
    whole = True
    if FLAGS.measure:
        whole = run.run(
            lambda rows: everything(rows, FLAGS.claim, FLAGS.task),
            FLAGS.rows,
            workers=FLAGS.workers,
        )
    if FLAGS.page:
        from benchmarks.claims import page

        page.make(FLAGS.rows, FLAGS.page)
    sys.exit(0 if whole else 1)


if __name__ == "__main__":
    app.run(main)
