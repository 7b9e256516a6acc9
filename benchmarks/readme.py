"""What the first block of the README gains, run as it stands there.

    python -m benchmarks.readme

For each seed: the test accuracy of its network, dense and as the ticket that
the block draws and trains, both trained for the same epochs; then the bytes and
milliseconds of what it exports, against a dense export.
"""

from __future__ import annotations

import os
import pathlib
import re
import tempfile
from typing import Any

import keras
import numpy as np
from absl import app, logging

import tf_tickets as tt
from benchmarks import script

FLAGS = script.define(__name__, seeds=(5, "How many."))

README = pathlib.Path(__file__).parents[1] / "README.md"


def block() -> str:
    """The first Python block of the README."""
    return re.findall(
        r"^```python\n(.*?)^```", README.read_text(), re.M | re.S
    )[0]


def run(code: str, seed: int) -> dict[str, Any]:
    """The names that a block leaves behind, drawn with a seed."""
    seeded, count = re.subn(r"(set_random_seed)\(\d+\)", rf"\1({seed})", code)
    if count != 1:
        raise ValueError("The block must set one seed.")
    session: dict[str, Any] = {"__name__": "readme"}
    exec(seeded, session)
    return session


def main(argv: list[str]) -> None:
    del argv
    code = block()
    dense_code, _, rest = code.partition("imp = ")
    [*_, epochs] = re.findall(r" epochs=(\d+)", rest)
    if FLAGS.smoke:
        code = re.sub(r"(epochs\w*)=\d+", r"\1=1", code)
        epochs = 1
    keras.config.disable_interactive_logging()  # what the block's `fit` shows
    logging.set_verbosity(logging.WARNING)
    found: dict[str, list[float]] = {"dense": [], "ticket": []}
    for seed in range(1 if FLAGS.smoke else FLAGS.seeds):
        with tempfile.TemporaryDirectory() as directory:
            os.chdir(directory)
            for name, part in (("dense", dense_code), ("ticket", code)):
                session = run(part, seed)
                model, digits = session["model"], session["digits"]
                if name == "dense":
                    model.fit(digits.train, epochs=int(epochs))
                scores = model.evaluate(digits.test, return_dict=True)
                found[name].append(scores["accuracy"])
            report = tt.export.report("served", model, verbose=0)
            os.chdir(README.parent)
    print(report)
    for name, values in found.items():
        print(
            f"{name}: {np.mean(values):.2%} of the test images "
            f"({', '.join(f'{value:.2%}' for value in values)})"
        )


if __name__ == "__main__":
    app.run(main)
