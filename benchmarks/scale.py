"""Memory and time of what is done with a model, as models grow.

    python -m benchmarks.scale

Every measurement is a process of its own: it builds a stack of dense layers,
notes how much memory it has, does one thing once and tells how much more there
was at most and how much stays. Memory is counted in models, the bytes of all
weights: +1.0 is a second copy of the model. Times are of a first call; those of
the processor do not count what other processes took.

What TensorFlow has freed it keeps for itself, and it counts as if it stayed.

Before the first measurement of a size as much memory as it may take is touched
once, so that a virtual machine has it from its host.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from absl import app

import tf_tickets as tt
from benchmarks import script
from benchmarks.selection import square_layers

FLAGS = script.define(
    __name__,
    weights=(["10", "100", "250", "1000"], "Sizes, in millions of weights."),
    what=([], "Measurements, all of `MEASURES` if none is named."),
    tensors=(20, "In how many tensors the weights lie."),
    sparsity=(0.9, "Of the masks."),
    dtype=("float32", "Of the weights."),
    rounds=(3, "Of iterative pruning."),
    single=(False, "Print one row as JSON, in this process."),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        weights: Of the model, in millions.
        what: Was done.
        seconds: It took.
        cpu: Seconds of the processor, over all threads.
        peak: Memory at most, over what there was before, in models.
        stays: Memory after it, over what there was before, in models.
        kept: Kept weights of the ticket, where there is one.
    """

    weights: float
    what: str
    seconds: float
    cpu: float
    peak: float
    stays: float
    kept: int | None


Work = Callable[[], Any]
"""What is measured; it returns what is to stay in memory."""


def prune(model: keras.Model, place: pathlib.Path) -> Work:
    """Global magnitude, with the start weights."""
    del place
    return lambda: drawn(model)


def prune_masks(model: keras.Model, place: pathlib.Path) -> Work:
    """Global magnitude, masks alone."""
    del place
    return lambda: drawn(model, weights=False)


def apply(model: keras.Model, place: pathlib.Path) -> Work:
    """Start weights and masks into the model."""
    del place
    ticket = drawn(model)
    return lambda: ticket.apply(model)


def save(model: keras.Model, place: pathlib.Path) -> Work:
    """A ticket with weights to a file."""
    ticket = drawn(model)
    return lambda: ticket.save(place / "ticket")


def load(model: keras.Model, place: pathlib.Path) -> Work:
    """A ticket with weights from a file."""
    drawn(model).save(place / "ticket")
    return lambda: tt.Ticket.load(place / "ticket")


def snapshot(model: keras.Model, place: pathlib.Path) -> Work:
    """The state of training: here the weights alone."""
    del place
    return lambda: tt.Snapshot.take(model)


def packed(model: keras.Model, place: pathlib.Path) -> Work:
    """A pruned model as a packed SavedModel."""
    drawn(model).apply(model)
    tt.release(model)
    return lambda: tt.export.saved_model(model, place / "out", format="packed")


def fit(model: keras.Model, place: pathlib.Path) -> Work:
    """Two dense training steps, to compare with."""
    del place
    return lambda: trained(model, 2)


def fit_xla(model: keras.Model, place: pathlib.Path) -> Work:
    """The same with XLA."""
    del place
    return lambda: trained(model, 2, jit_compile=True)


def imp(
    model: keras.Model, place: pathlib.Path, jit_compile: bool = False
) -> Work:
    """Iterative pruning with its rewind point, a step each round."""
    del place

    def run() -> tt.callbacks.IterativeMagnitudePruning:
        callback = tt.callbacks.IterativeMagnitudePruning(
            target_sparsity=FLAGS.sparsity,
            rounds=FLAGS.rounds,
            epochs_per_round=1,
        )
        trained(model, callback.epochs, callback, jit_compile=jit_compile)
        return callback

    return run


def imp_xla(model: keras.Model, place: pathlib.Path) -> Work:
    """The same with XLA, where masks take a byte a weight."""
    return imp(model, place, jit_compile=True)


MEASURES: dict[str, Callable[[keras.Model, pathlib.Path], Work]] = {
    "prune": prune,
    "prune, weights=False": prune_masks,
    "apply": apply,
    "save": save,
    "load": load,
    "snapshot": snapshot,
    "export, packed": packed,
    "fit, dense": fit,
    "fit, dense, XLA": fit_xla,
    "imp": imp,
    "imp, XLA": imp_xla,
}


def main(argv: Sequence[str]) -> None:
    """Measure in processes of their own, and print and keep the table."""
    del argv
    if FLAGS.single:
        row = measure(float(FLAGS.weights[0]), FLAGS.what[0])
        print(json.dumps(dataclasses.asdict(row)))
        return
    rows = []
    for size in ["0.02"] if FLAGS.smoke else FLAGS.weights:
        if not FLAGS.smoke:
            subprocess.run(
                [sys.executable, "-c", _TOUCH, str(4 * float(size))],
                check=True,
            )
        for what in FLAGS.what or MEASURES:
            if FLAGS.smoke:
                rows.append(measure(float(size), what))
                continue
            rows.append(apart(size, what))
            print(rows[-1], file=sys.stderr, flush=True)
    notes = {
        **script.describe_machine(),
        "tensors": FLAGS.tensors,
        "sparsity": FLAGS.sparsity,
        "dtype": FLAGS.dtype,
        "rounds of imp": FLAGS.rounds,
    }
    print(table(rows))
    print()
    for name, value in notes.items():
        print(f"{name}: {value}")
    if FLAGS.output is not None:
        pathlib.Path(FLAGS.output).write_text(
            json.dumps(
                {
                    "benchmark": "scale",
                    "notes": notes,
                    "rows": [dataclasses.asdict(row) for row in rows],
                },
                indent=2,
            )
            + "\n"
        )


# Three models, or most of what is free.
_TOUCH = """
import sys
import numpy as np
free = next(
    int(line.split()[1]) * 1024
    for line in open("/proc/meminfo")
    if line.startswith("MemAvailable")
)
size = min(3 * float(sys.argv[1]) * 1e6, 0.8 * free)
np.ones(int(size) // 8)
"""


def apart(size: str, what: str) -> Row:
    """A measurement in a process of its own."""
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.scale", "--single"),
            *(f"--weights={size}", f'--what="{what}"'),
            f"--tensors={FLAGS.tensors}",
            f"--sparsity={FLAGS.sparsity}",
            f"--dtype={FLAGS.dtype}",
            f"--rounds={FLAGS.rounds}",
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Row(**json.loads(ran.stdout.splitlines()[-1]))


def measure(size: float, what: str) -> Row:
    """Build the model, do one thing, and look at the memory."""
    keras.config.set_dtype_policy(FLAGS.dtype)
    try:
        model = square_layers(round(1e6 * size), FLAGS.tensors)
    finally:
        keras.config.set_dtype_policy("float32")
    weights = sum(int(np.prod(w.shape)) for w in model.weights)
    one = weights * np.dtype(model.weights[0].numpy().dtype).itemsize
    with tempfile.TemporaryDirectory(dir=".") as place:
        work = MEASURES[what](model, pathlib.Path(place))
        with watched() as memory:
            start, cpu = time.perf_counter(), time.process_time()
            result = work()
            seconds = time.perf_counter() - start
            cpu = time.process_time() - cpu
    result = getattr(result, "ticket", result)
    return Row(
        weights / 1e6,
        what,
        seconds,
        cpu,
        memory["peak"] / one,
        memory["stays"] / one,
        result.kept if isinstance(result, tt.Ticket) else None,
    )


def drawn(model: keras.Model, **options: Any) -> tt.Ticket:
    """The ticket of a global magnitude draw."""
    return tt.prune(model, FLAGS.sparsity, verbose=0, **options)


def trained(
    model: keras.Model, epochs: int, *callbacks: Any, jit_compile: bool = False
) -> keras.Model:
    """One step an epoch, with plain SGD, which has no slots."""
    width = model.input_shape[-1]
    x = np.full((2, width), 1e-3, "float32")
    model.compile(keras.optimizers.SGD(1e-6), "mse", jit_compile=jit_compile)
    model.fit(x, x, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return model


@contextlib.contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Bytes of memory in the block, over those before it: peak and after."""
    found: dict[str, float] = {}
    _trim()
    # Sets the peak back to the present; Linux alone has this.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    yield found
    found["peak"] = _status("VmHWM") - before
    _trim()
    found["stays"] = _status("VmRSS") - before


def _trim() -> None:
    """Give back what is free, or it hides what is taken next."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def _status(name: str) -> float:
    text = pathlib.Path("/proc/self/status").read_text()
    return 1024 * float(text.partition(f"{name}:")[2].split()[0])


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| weights | what | seconds | CPU seconds | CPU ns a weight | peak "
        "| stays |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.weights:.0f} M | {row.what} | {row.seconds:.2f} "
            f"| {row.cpu:.2f} | {1e3 * row.cpu / row.weights:.1f} "
            f"| {row.peak:+.2f} | {row.stays:+.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
