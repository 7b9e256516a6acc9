"""Time of a shrunk network against the dense one, and what its FLOPs promise.

Half of the channels of every layer go. Networks take turns in one process; a
ratio of times is to be read beside the ratio of FLOPs, which is in the notes:
the gain in time over the gain in FLOPs says how much of the saving arrives.
The mode `served` predicts with and without normalizations folded
(`tf_tickets.export.fold`), as the exports `auto` and `litert` do, all four in
turns. The mode `convolution` times the 3x3 convolutions of ResNet-20 alone,
which says what bounds the network.

    python -m benchmarks.shrink
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app

import tf_tickets as tt
from benchmarks import networks, script, timing
from tf_tickets.zoo import models

FLAGS = script.define(
    __name__,
    network=(
        ("resnet20", "vgg16", "mobilenet_v2"),
        "What to shrink; may be given more than once.",
    ),
    mode=(
        ("inference", "served", "training", "convolution"),
        "What to time; may be given more than once.",
    ),
    jit_compile=script.JIT_COMPILE,
    sparsity=(0.5, "Share of the channels of each layer that go."),
    rounds=(50, "Timed runs of each side."),
    batch=(128, "Images in a batch."),
)


def build(name: str, *, smoke: bool) -> keras.Model:
    """The dense network."""
    if smoke or name == "resnet20":
        return networks.build("resnet20", smoke=smoke)
    return models.get(name)


def shrunk(model: keras.Model, sparsity: float) -> keras.Model:
    """``model`` without that share of the channels of every layer.

    Layers whose channels can only go together lose the same ones, so every
    scale is given the same scores by position.
    """
    masks = {}
    for key, variable in tt.selection.named_weights(model).items():
        if variable.name == "gamma":
            channels = variable.shape[0]
            # Spread evenly: one in two, for a sparsity of a half.
            steps = np.floor(np.arange(channels + 1) * (1 - sparsity))
            masks[key] = np.diff(steps) > 0
    return tt.structured.shrink(model, masks)


def side(
    model: keras.Model, mode: str, *, jit_compile: bool, batch: int
) -> Callable[[], object]:
    """One run of what is timed."""
    if mode == "training":
        networks.compile_for_training(keras, model, jit_compile=jit_compile)
        data = networks.random_batches(model.input_shape[1:], batch)
        return lambda: model.fit(data, steps_per_epoch=4, verbose=0)
    x = tf.random.normal((batch, *model.input_shape[1:]), seed=0)
    infer = tf.function(
        lambda: model(x, training=False), jit_compile=jit_compile
    )
    return lambda: infer().numpy()


def measure(
    name: str, mode: str, jit_compile: bool
) -> tuple[timing.Row, timing.Row, dict[str, Any]]:
    """The dense row, the shrunk row, and the gains."""
    dense = build(name, smoke=FLAGS.smoke)
    small = shrunk(dense, FLAGS.sparsity)
    times = timing.interleaved(
        {
            which: side(model, mode, jit_compile=jit_compile, batch=FLAGS.batch)
            for which, model in (("dense", dense), ("shrunk", small))
        },
        rounds=2 if FLAGS.smoke else FLAGS.rounds,
    )
    case = f"{name}, {mode}{', XLA' if jit_compile else ''}"
    rows = [
        timing.compare(times, which, "dense", case=case)
        for which in ("dense", "shrunk")
    ]
    promised = tt.analysis.flops(dense).macs / tt.analysis.flops(small).macs
    gain = 1 / rows[1].ratio
    notes = {
        f"{case}: gain in FLOPs": round(promised, 3),
        f"{case}: gain in time": round(gain, 3),
        f"{case}: time over FLOPs": round(gain / promised, 3),
    }
    return rows[0], rows[1], notes


def served(
    name: str, jit_compile: bool
) -> tuple[list[timing.Row], dict[str, Any]]:
    """Dense and shrunk, as they are and folded, and the gains."""
    dense = build(name, smoke=FLAGS.smoke)
    small = shrunk(dense, FLAGS.sparsity)
    sides = {
        "dense": dense,
        "dense, folded": tt.export.fold(dense),
        "shrunk": small,
        "shrunk, folded": tt.export.fold(small),
    }
    times = timing.interleaved(
        {
            which: side(
                model, "inference", jit_compile=jit_compile, batch=FLAGS.batch
            )
            for which, model in sides.items()
        },
        rounds=2 if FLAGS.smoke else FLAGS.rounds,
    )
    case = f"{name}, served{', XLA' if jit_compile else ''}"
    rows = [timing.compare(times, which, "dense", case=case) for which in sides]
    alike = timing.compare(times, "shrunk, folded", "dense, folded", case=case)
    promised = tt.analysis.flops(dense).macs / tt.analysis.flops(small).macs
    notes = {
        f"{case}: gain in FLOPs": round(promised, 3),
        f"{case}: gain of folding dense": round(1 / rows[1].ratio, 3),
        f"{case}: gain shrunk": round(1 / rows[2].ratio, 3),
        f"{case}: gain shrunk and folded": round(1 / rows[3].ratio, 3),
        f"{case}: time over FLOPs": round(1 / rows[3].ratio / promised, 3),
        f"{case}: both folded, time over FLOPs": round(
            1 / alike.ratio / promised, 3
        ),
    }
    return [*rows, alike], notes


def convolutions() -> list[timing.Row]:
    """3x3 convolutions with all their channels and with half of them."""
    rows = []
    stages = [(32, 16), (16, 32), (8, 64)]
    for pixels, channels in stages[:1] if FLAGS.smoke else stages:
        sides = {}
        for which, count in (("dense", channels), ("shrunk", channels // 2)):
            x = tf.random.normal((FLAGS.batch, pixels, pixels, count))
            kernel = tf.Variable(tf.random.normal((3, 3, count, count)))
            run = tf.function(
                lambda x=x, kernel=kernel: tf.nn.conv2d(x, kernel, 1, "SAME")
            )
            sides[which] = lambda run=run: run().numpy()
        times = timing.interleaved(
            sides, rounds=2 if FLAGS.smoke else FLAGS.rounds
        )
        case = f"3x3, {channels} to {channels // 2} channels, {pixels} pixels"
        rows.append(timing.compare(times, "shrunk", "dense", case=case))
    return rows


def main(argv: Sequence[str]) -> None:
    del argv
    rows: list[timing.Row] = []
    notes: dict[str, Any] = {
        "sparsity": FLAGS.sparsity,
        "batch": FLAGS.batch,
    }
    modes = [m for m in FLAGS.mode if m not in ("convolution", "served")]
    for name in FLAGS.network:
        for mode in modes:
            for jit_compile in FLAGS.jit_compile:
                dense, small, found = measure(name, mode, jit_compile == "true")
                rows += [dense, small]
                notes |= found
        if "served" in FLAGS.mode:
            for jit_compile in FLAGS.jit_compile:
                more, found = served(name, jit_compile == "true")
                rows += more
                notes |= found
    if "convolution" in FLAGS.mode:
        rows += convolutions()
    script.report("shrink", rows, output=FLAGS.output, notes=notes)


if __name__ == "__main__":
    app.run(main)
