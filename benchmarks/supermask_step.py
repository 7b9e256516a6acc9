"""Time of a step that trains scores against the dense step that trains weights.

For a convolutional network and a parameter-bound MLP, with and without
``jit_compile``: a Gem-Miner step with its penalty against the dense step; the
same with a penalty that is steered in the step; and an Edge-Popup step, which
selects its k largest scores anew in every step, against the same step with a
mask that stays; beside it one that selects by sorting. All take turns in one
process.

    python -m benchmarks.supermask_step
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from absl import app

import tf_tickets as tt
from benchmarks import networks, script, timing
from tf_tickets.layers import ranking, steering

FLAGS = script.define(
    __name__,
    network=script.NETWORK,
    jit_compile=script.JIT_COMPILE,
    scope=(("layer", "global"), "Of top-k masks; may be given twice."),
    sparsity=(0.98, "Of top-k masks."),
    rounds=(50, "Timed steps of each side."),
    sort=(True, "Time selection by sorting beside it."),
    image_batch=(64, "Batch size of the ResNet."),
    mlp_batch=(128, "Batch size of the MLP."),
)

DENSE, THRESHOLD, STEERED = "dense", "threshold", "threshold, λ steered"

Largest = Callable[..., list[tf.Tensor]]


def main(argv: Sequence[str]) -> None:
    """Time every network with every setting of ``jit_compile``."""
    del argv
    rows: list[timing.Row] = []
    for name in FLAGS.network:
        for setting in FLAGS.jit_compile:
            keras.utils.clear_session()
            rows += time_network(name, setting == "true")
    script.report(
        "supermask_step",
        rows,
        output=FLAGS.output,
        notes={"sparsity": FLAGS.sparsity},
    )


def time_network(name: str, jit_compile: bool) -> list[timing.Row]:
    """The rows of one network."""
    model = networks.build(name, smoke=FLAGS.smoke)
    batch_size = FLAGS.image_batch if name == "resnet20" else FLAGS.mlp_batch
    batches = networks.random_batches(
        model.input_shape[1:], 4 if FLAGS.smoke else batch_size
    )

    def step(model: keras.Model, largest: Largest | None = None) -> Any:
        networks.compile_for_training(keras, model, jit_compile=jit_compile)
        run = networks.step_of(model, batches)
        if largest is None:
            return run
        # The first call traces, with this way to select.
        original, ranking.largest = ranking.largest, largest
        try:
            run()
        finally:
            ranking.largest = original
        return run

    def edge_popup(scope: str) -> keras.Model:
        return tt.supermask(
            model, mask="top_k", sparsity=FLAGS.sparsity, scope=scope
        )

    steps = {
        DENSE: step(networks.build(name, smoke=FLAGS.smoke)),
        THRESHOLD: step(tt.supermask(model, score_penalty=1e-4)),
        STEERED: step(steered(model)),
    }
    pairs = [(THRESHOLD, DENSE), (STEERED, THRESHOLD)]
    masks: dict[str, list[tf.Variable]] = {}  # a traced step keeps none alive
    for scope in FLAGS.scope:
        selected, fixed, sort = (
            f"top-k, {scope}",
            f"fixed mask, {scope}",
            f"top-k by sorting, {scope}",
        )
        steps[selected] = step(edge_popup(scope))
        still = edge_popup(scope)
        masks[scope] = [
            tf.Variable(mask, trainable=False)
            for mask in still.supermask.masks().values()
        ]
        steps[fixed] = step(still, chosen_once(masks[scope]))
        pairs.append((selected, fixed))
        if FLAGS.sort:
            steps[sort] = step(edge_popup(scope), by_sorting)
            pairs.append((sort, fixed))
    times = timing.interleaved(steps, rounds=3 if FLAGS.smoke else FLAGS.rounds)
    case = f"{name}, {'XLA' if jit_compile else 'no XLA'}"
    return [timing.compare(times, *pair, case=case) for pair in pairs]


def steered(model: keras.Model) -> keras.Model:
    """A miner as it is while `IterativeFreezing` steers its penalty."""
    miner = tt.supermask(model)
    helm = steering.Helm(miner, [miner.supermask])
    helm.start(density=0.5, goal=0.5)
    helm.aim(goal=0.5, then=0.4, speed=0.25, steps=1000)
    return miner


def chosen_once(masks: Sequence[tf.Variable]) -> Largest:
    """Selects ``masks``, whatever the scores: no selection at all."""
    return lambda scores, keep, pools: [mask.value() for mask in masks]


def by_sorting(
    scores: Sequence[tf.Tensor], keep: tf.Tensor, pools: ranking.Pools
) -> list[tf.Tensor]:
    """The same masks, but for ties, with a sort of every pool."""
    masks: list[Any] = [None] * len(scores)
    for p, pool in enumerate(pools):
        sizes = tf.concat(
            [tf.reshape(tf.abs(scores[i]), [-1]) for i in pool], 0
        )
        ordered = tf.sort(sizes, direction="DESCENDING")
        threshold = tf.gather(ordered, keep[p] - 1)
        for i in pool:
            masks[i] = tf.abs(scores[i]) >= threshold
    return masks


if __name__ == "__main__":
    app.run(main)
