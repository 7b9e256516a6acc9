"""What an export is worth: bytes, load time, memory, latency.

For a 4096x4096 dense layer and for networks, by density: bytes on disk over
the entropy floor; load time and latency of every format against the dense
export, in turns. And for convolutions of several sizes, the sparse methods
against the dense one.

    python -m benchmarks.export                  # everything, tens of minutes
    python -m benchmarks.export --part=dense
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import app, logging

import tf_tickets as tt
from benchmarks import script, timing
from tf_tickets.export import choosing
from tf_tickets.export.coding import entropy_floor
from tf_tickets.export.kernels import methods_for
from tf_tickets.export.report import bytes_of, read_manifest
from tf_tickets.selection import prunable_weights
from tf_tickets.zoo import models

FLAGS = script.define(
    __name__,
    part=(
        ("dense", "networks", "convolutions", "load", "memory"),
        "What to measure; may be given more than once.",
    ),
    networks=(["vgg16", "resnet20"], "Of the zoo."),
    densities=(["0.1", "0.014", "0.005"], "To prune to."),
    batch_sizes=(["1", "32"], "To serve."),
    rounds=(40, "Timed runs."),
)

Rows = list[timing.Row]


def prune_at_random(model: keras.Model, density: float) -> None:
    """Random masks: the hardest case, with no structure to exploit."""
    rng = np.random.default_rng(0)
    for variable in prunable_weights(model).values():
        value = rng.normal(0, 0.05, variable.shape)
        kept = rng.random(value.shape) < density
        variable.assign(np.where(kept, value, 0))


def wide(units: int) -> keras.Model:
    return keras.Sequential(
        [keras.Input((units,)), keras.layers.Dense(units)], name="wide"
    )


def bytes_row(path: Path, model: keras.Model) -> str:
    """Bytes of an export, and over the entropy floor of its weights."""
    floor = sum(
        entropy_floor(w.size, int(np.count_nonzero(w)))
        for w in model.get_weights()
    )
    data = bytes_of(path / "variables")
    whole = bytes_of(path)
    return f"{whole:,} bytes; weights {data:,}, {data / floor:.3f} of the floor"


def latencies(
    case: str,
    build: Callable[[], keras.Model],
    notes: dict[str, str],
    batch_sizes: list[int],
) -> Rows:
    """Every format against the dense export, at every density."""
    rows: Rows = []
    for density in [float(d) for d in FLAGS.densities]:
        model = build()
        prune_at_random(model, density)
        with tempfile.TemporaryDirectory() as directory:
            paths = {
                format: tt.export.saved_model(
                    model,
                    Path(directory) / format,
                    format=format,
                    batch_sizes=batch_sizes,
                ).path
                for format in ("dense", "packed", "auto")
            }
            served = {f: tf.saved_model.load(p) for f, p in paths.items()}
            notes[f"{case}, density {density}, dense"] = bytes_row(
                paths["dense"], model
            )
            notes[f"{case}, density {density}, packed"] = bytes_row(
                paths["packed"], model
            )
            used = [
                r["method"]
                for r in read_manifest(paths["auto"])["weights"]
                if r["prunable"]
            ]
            notes[f"{case}, density {density}, methods of auto"] = ", ".join(
                f"{used.count(m)} {m}" for m in sorted(set(used))
            )
            for batch in batch_sizes:
                x = tf.random.normal((batch, *model.input_shape[1:]))
                times = timing.interleaved(
                    {
                        f: lambda one=one, x=x: one.serve(x).numpy()
                        for f, one in served.items()
                    },
                    rounds=FLAGS.rounds,
                )
                rows += [
                    timing.compare(
                        times,
                        format,
                        "dense",
                        case=f"{case}, density {density}, batch {batch}",
                    )
                    for format in ("packed", "auto")
                ]
    return rows


def convolutions(smoke: bool) -> Rows:
    """Each sparse method of a convolution against the dense one."""
    sizes = [(3, 64, 32), (3, 128, 16), (3, 256, 8), (3, 512, 4), (1, 512, 7)]
    rows: Rows = []
    for window, channels, pixels in sizes[:1] if smoke else sizes:
        for density in [float(d) for d in FLAGS.densities]:
            layer = keras.layers.Conv2D(channels, window, padding="same")
            layer.build((None, pixels, pixels, channels))
            rng = np.random.default_rng(0)
            kernel = rng.normal(size=layer.kernel.shape).astype("float32")
            kernel *= rng.random(kernel.shape) < density
            layer.kernel.assign(kernel)
            shape = (1.0, [pixels, pixels, channels])
            site = choosing.Site("kernel", layer, [shape], kernel)
            methods = methods_for(layer, kernel)
            for batch in (1, 32):
                sides = choosing.callers(site, methods, batch)
                times = timing.interleaved(sides, rounds=FLAGS.rounds)
                case = (
                    f"{window}x{window}, {channels} channels, {pixels}x"
                    f"{pixels} pixels, density {density}, batch {batch}"
                )
                rows += [
                    timing.compare(times, name, "dense", case=case)
                    for name in methods
                ]
    return rows


def loads(smoke: bool) -> Rows:
    """Time to load packed against dense, at 25 million weights."""
    builds: Mapping[str, Callable[[], keras.Model]] = {
        "one dense layer": lambda: wide(128 if smoke else 5000),
        "ResNet50": lambda: keras.applications.ResNet50(
            weights=None, input_shape=(32, 32, 3), classes=1000
        ),
    }
    rows: Rows = []
    for case, build in list(builds.items())[: 1 if smoke else None]:
        model = build()
        for density in [float(d) for d in FLAGS.densities]:
            prune_at_random(model, density)
            with tempfile.TemporaryDirectory() as directory:
                sides = {}
                for format in ("dense", "packed"):
                    path = tt.export.saved_model(
                        model, Path(directory) / format, format=format
                    )
                    sides[format] = lambda p=path: tf.saved_model.load(p)
                times = timing.interleaved(sides, rounds=min(FLAGS.rounds, 7))
            rows.append(
                timing.compare(
                    times,
                    "packed",
                    "dense",
                    case=f"load {case}, density {density}",
                )
            )
    return rows


_MEMORY = """
import sys
from benchmarks import export
print(export.peak_of(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
"""


def peak_of(format: str, units: int, density: float) -> float:
    """Growth of peak memory by an export, over the bytes of the model."""
    small = wide(64)
    model = wide(units)
    prune_at_random(model, density)
    with tempfile.TemporaryDirectory() as directory:
        # What TensorFlow itself needs for a first export does not count.
        tt.export.saved_model(small, Path(directory) / "s", format="packed")
        # The peak so far is of making the model: forget it (Linux).
        Path("/proc/self/clear_refs").write_text("5")
        before = _kilobytes("VmRSS")
        tt.export.saved_model(model, Path(directory) / "m", format=format)
    return 1 + (_kilobytes("VmHWM") - before) * 1024 / (4 * units * units)


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith(field))


def memory(smoke: bool, notes: dict[str, str]) -> None:
    """Peak memory of exports, each in a process of its own."""
    for format in ("dense", "packed", "auto"):
        for density in ("0.5", "0.014"):
            done = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    _MEMORY,
                    format,
                    "256" if smoke else "5000",
                    density,
                ],
                capture_output=True,
                text=True,
                check=True,
            )
            peak = float(done.stdout.split()[-1])
            notes[f"peak memory, {format}, density {density}"] = (
                f"{peak:.2f} of the model at most, itself included"
            )


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # TensorFlow's remarks on saving
    notes: dict[str, str] = {}
    rows: Rows = []
    batch_sizes = [int(b) for b in FLAGS.batch_sizes]
    if FLAGS.smoke:
        FLAGS.rounds = 2
        FLAGS.densities = FLAGS.densities[-1:]
        batch_sizes = batch_sizes[:1]
    if "dense" in FLAGS.part:
        units = 256 if FLAGS.smoke else 4096
        rows += latencies("wide", lambda: wide(units), notes, batch_sizes)
    if "networks" in FLAGS.part:
        for name in FLAGS.networks[-1:] if FLAGS.smoke else FLAGS.networks:
            rows += latencies(
                name, lambda n=name: models.get(n), notes, batch_sizes
            )
    if "convolutions" in FLAGS.part:
        rows += convolutions(FLAGS.smoke)
    if "load" in FLAGS.part:
        rows += loads(FLAGS.smoke)
    if "memory" in FLAGS.part:
        memory(FLAGS.smoke, notes)
    script.report("export", rows, output=FLAGS.output, notes=notes)


if __name__ == "__main__":
    app.run(main)
