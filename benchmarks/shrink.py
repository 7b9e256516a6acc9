"""Time of a shrunk network against the dense one, and what its FLOPs promise.

Half of the channels of every layer go. Networks take turns in one process; a
ratio of times is to be read beside the ratio of FLOPs, which is in the notes:
the gain in time over the gain in FLOPs says how much of the saving arrives.
The mode `served` predicts with and without normalizations folded
(`tf_tickets.export.fold`), as the exports `auto` and `litert` do, all four in
turns. The mode `selection` has masks at random, each normalization its own, and
sets what `select=True` makes of them beside what a residual stream keeps for
all its readers, and two other ways to select channels beside the one that is
used: a matrix product and a 1x1 convolution. The mode `convolution` times the
3x3 convolutions of ResNet-20 alone, which says what bounds the network.

    python -m benchmarks.shrink
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from absl import app

import tf_tickets as tt
from benchmarks import networks, script, timing
from tests import gallery
from tf_tickets.layers import SelectChannels
from tf_tickets.zoo import models

FLAGS = script.define(
    __name__,
    network=(
        ("resnet20", "vgg16", "mobilenet_v2"),
        "What to shrink; may be given more than once.",
    ),
    mode=(
        ("inference", "served", "training", "selection", "convolution"),
        "What to time; may be given more than once.",
    ),
    jit_compile=script.JIT_COMPILE,
    sparsity=(0.5, "Share of the channels of each layer that go."),
    round_to=(1, "Every layer keeps a multiple of so many channels."),
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
    return tt.structured.shrink(model, masks, round_to=FLAGS.round_to)


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


# Networks that normalize the residual stream in front of every block.
PREACTIVATED = ("preresnet101", "wide_resnet_28_2")


def _matrix(layer: SelectChannels, x: Any) -> np.ndarray:
    dtype = keras.backend.standardize_dtype(x.dtype)
    matrix = np.zeros((x.shape[-1], len(layer.indices)), dtype)
    matrix[list(layer.indices), np.arange(len(layer.indices))] = 1
    return matrix


# Other ways to select channels than the layer's own.
WAYS: dict[str, Callable[..., Any]] = {
    "product": lambda layer, x: keras.ops.matmul(x, _matrix(layer, x)),
    "1x1": lambda layer, x: keras.ops.conv(
        x, _matrix(layer, x)[None, None], padding="valid"
    ),
}


def selection(
    name: str, jit_compile: bool
) -> tuple[list[timing.Row], dict[str, Any]]:
    """Masks at random: the whole stream, its union, and selections."""
    dense = gallery.preactivated() if FLAGS.smoke else models.get(name)
    rng = np.random.default_rng(0)
    masks = {}
    for key, variable in tt.selection.named_weights(dense).items():
        if variable.name == "gamma":
            count = variable.shape[0]
            order = rng.permutation(count)
            masks[key] = order >= round(FLAGS.sparsity * count)
    small = {
        "union": tt.structured.shrink(dense, masks),
        "select": tt.structured.shrink(dense, masks, select=True),
    }
    run = functools.partial(
        side, mode="inference", jit_compile=jit_compile, batch=FLAGS.batch
    )
    sides = {"dense": run(dense)}
    sides |= {which: run(model) for which, model in small.items()}
    for which, way in WAYS.items():
        sides[which] = run(small["select"])
        with mock.patch.object(SelectChannels, "call", way):
            sides[which]()  # traced with it
    times = timing.interleaved(sides, rounds=2 if FLAGS.smoke else FLAGS.rounds)
    case = f"{name}, selection{', XLA' if jit_compile else ''}"
    rows = [timing.compare(times, which, "dense", case=case) for which in sides]
    macs = tt.analysis.flops(dense).macs
    notes: dict[str, Any] = {}
    for row in rows[1:]:
        model = small["union" if row.name == "union" else "select"]
        promised = macs / tt.analysis.flops(model).macs
        notes[f"{case}, {row.name}: gain in FLOPs"] = round(promised, 3)
        notes[f"{case}, {row.name}: gain in time"] = round(1 / row.ratio, 3)
    return rows, notes


def convolutions() -> list[timing.Row]:
    """3x3 convolutions with all their channels and with half of them."""
    rows = []
    stages = [(32, 16), (16, 32), (8, 64)]
    stages = stages[:1] if FLAGS.smoke else stages
    cases = [(one, jit) for jit in FLAGS.jit_compile for one in stages]
    for (pixels, channels), jit_compile in cases:
        sides = {}
        for which, count in (("dense", channels), ("shrunk", channels // 2)):
            x = tf.random.normal((FLAGS.batch, pixels, pixels, count))
            kernel = tf.Variable(tf.random.normal((3, 3, count, count)))
            run = tf.function(
                lambda x=x, kernel=kernel: tf.nn.conv2d(x, kernel, 1, "SAME"),
                jit_compile=jit_compile == "true",
            )
            sides[which] = lambda run=run: run().numpy()
        times = timing.interleaved(
            sides, rounds=2 if FLAGS.smoke else FLAGS.rounds
        )
        case = f"3x3, {channels} to {channels // 2} channels, {pixels} pixels"
        case += ", XLA" if jit_compile == "true" else ""
        rows.append(timing.compare(times, "shrunk", "dense", case=case))
    return rows


def main(argv: Sequence[str]) -> None:
    del argv
    rows: list[timing.Row] = []
    notes: dict[str, Any] = {
        "sparsity": FLAGS.sparsity,
        "batch": FLAGS.batch,
    }
    alone = ("convolution", "selection", "served")
    modes = [m for m in FLAGS.mode if m not in alone]
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
    if "selection" in FLAGS.mode:
        for name in PREACTIVATED[-1:] if FLAGS.smoke else PREACTIVATED:
            for jit_compile in FLAGS.jit_compile:
                more, found = selection(name, jit_compile == "true")
                rows += more
                notes |= found
    if "convolution" in FLAGS.mode:
        rows += convolutions()
    script.report("shrink", rows, output=FLAGS.output, notes=notes)


if __name__ == "__main__":
    app.run(main)
