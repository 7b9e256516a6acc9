"""What blocks are worth to LiteRT on a dense layer, on this machine.

A dense layer is pruned by blocks of four inputs, and without a pattern, and
converted. LiteRT computes it sparsely where at least nine tenths of its zeros
lie in such blocks. Every file takes its turns with the dense one in LiteRT's
own interpreter, one thread, and its outputs are compared with Keras's. With
`--output` the tables between the two marks of that page are replaced.

    python -m benchmarks.blocks --output=docs/patterns.md
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import app

import tf_tickets as tt
from benchmarks import script, timing
from tf_tickets.export.report import bytes_of

FLAGS = script.define(
    __name__,
    output=(None, "Page whose tables to replace."),
    size=(1536, "Inputs and outputs of the layer.", 8),
    sparsities=(["0.8", "0.9", "0.95"], "To prune to."),
    rounds=(1000, "Timed runs."),
)

DENSE = "dense"
PATTERNS: dict[str, Any] = {"blocks (4, 1)": (4, 1), "no pattern": None}


# How many runs in a row a file has in its turn: the first finds the caches
# full of other files, as in a program that does something else, too.
CASES = {"once in a turn": 1, "20 times in a row": 20}


def repeated(
    run: Callable[[], np.ndarray], count: int
) -> Callable[[], np.ndarray]:
    """``run``, so many times."""

    def several() -> np.ndarray:
        for _ in range(count - 1):
            run()
        return run()

    return several


def interpreted(path: Path, x: np.ndarray) -> Callable[[], np.ndarray]:
    """One run of a file on ``x``, by the interpreter alone."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    [into], [out] = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )
    interpreter.set_tensor(into["index"], x)

    def run() -> np.ndarray:
        interpreter.invoke()
        found: np.ndarray = interpreter.get_tensor(out["index"])
        return found

    return run


def main(argv: Sequence[str]) -> None:
    """Prune, convert, time in turns."""
    del argv
    size = 64 if FLAGS.smoke else FLAGS.size
    rounds = 3 if FLAGS.smoke else FLAGS.rounds
    x = np.random.default_rng(0).normal(size=(1, size)).astype("float32")
    runs: dict[str, Callable[[], np.ndarray]] = {}
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as directory:

        def add(name: str, sparsity: float, pattern: Any) -> None:
            keras.utils.set_random_seed(0)
            model = keras.Sequential(
                [keras.Input((size,)), keras.layers.Dense(size)]
            )
            if sparsity:
                tt.prune(model, sparsity, pattern=pattern).apply(model)
            path = Path(directory) / f"{len(runs)}.tflite"
            tt.export.litert(model, path, verbose=0)
            runs[name] = interpreted(path, x)
            sizes[name] = bytes_of(path)
            np.testing.assert_allclose(
                runs[name](), model(x), rtol=1e-3, atol=1e-3
            )

        add(DENSE, 0.0, None)
        for text in FLAGS.sparsities:
            for name, pattern in PATTERNS.items():
                add(f"{float(text):.0%}, {name}", float(text), pattern)
    rows = []
    for case, count in CASES.items():
        times = timing.interleaved(
            {name: repeated(run, count) for name, run in runs.items()},
            rounds=max(rounds // count, 3),
        )
        rows += [
            timing.compare(
                {
                    side: timing.Times(one.wall / count, one.cpu / count)
                    for side, one in times.items()
                },
                name,
                DENSE,
                case=case,
                label=f"{name}, {sizes[name]:,} B",
            )
            for name in runs
        ]
    text = f"A dense layer of {size}×{size}, batch 1, one thread:\n\n"
    text += timing.table(rows, unit="µs", per_unit=1e-6) + "\n"
    print(text)
    if FLAGS.output is not None:
        script.replace_tables(FLAGS.output, text)


if __name__ == "__main__":
    app.run(main)
