"""Time of drawing masks, per weight, against sorting and partitioning.

    python -m benchmarks.selection

``keep_largest`` and the draws around it give masks with an exact count;
`numpy.partition` and the sorts only order the scores, which is less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app

from benchmarks import script, timing
from tf_tickets import masking
from tf_tickets.pruning import keep_largest
from tf_tickets.pruning.prune import draw_masks
from tf_tickets.pruning.scopes import Pool
from tf_tickets.pruning.topk import select

FLAGS = script.define(
    __name__,
    weights=(25_000_000, "How many scores."),
    tensors=(20, "In how many tensors they lie."),
    sparsity=(0.9, "Of the masks."),
    rounds=(30, "Timed rounds of what is fast."),
    slow_rounds=(3, "Timed rounds of TensorFlow's."),
)

OURS = "keep_largest"
Sides = dict[str, Callable[[], object]]


def main(argv: Sequence[str]) -> None:
    """Time the fast ways in many rounds and the slow ones in few."""
    del argv
    # Not a power of two, and enough to sample before partitioning.
    size = 600_000 if FLAGS.smoke else FLAGS.weights
    layers = square_layers(size, FLAGS.tensors)
    scores = {
        layer.kernel.path: np.abs(layer.kernel.numpy())
        for layer in layers.layers
    }
    flat = np.concatenate([s.ravel() for s in scores.values()])
    keep = round((1 - FLAGS.sparsity) * flat.size)
    rounds, slow_rounds = (
        (2, 1) if FLAGS.smoke else (FLAGS.rounds, FLAGS.slow_rounds)
    )
    fast = timing.interleaved(
        fast_sides(flat, keep) | draw_sides(layers, scores, keep),
        rounds=rounds,
    )
    slow = timing.interleaved(
        slow_sides(flat, keep), rounds=slow_rounds, warmup=1
    )
    case = f"{flat.size / 1e6:.1f} M weights"
    script.report(
        "selection",
        [
            timing.compare(times, name, OURS, case=case)
            for times in (fast, slow)
            for name in times
            if times is fast or name != OURS
        ],
        unit="ns per weight",
        per_unit=1e-9 * flat.size,
        output=FLAGS.output,
        notes={"sparsity": FLAGS.sparsity, "tensors": FLAGS.tensors},
    )


def square_layers(size: int, tensors: int) -> keras.Sequential:
    """A model of ``tensors`` square kernels with about ``size`` weights."""
    width = max(round((size / tensors) ** 0.5), 1)
    return keras.Sequential(
        [
            keras.Input((width,)),
            *(
                keras.layers.Dense(width, use_bias=False, name=f"square_{i}")
                for i in range(tensors)
            ),
        ]
    )


def fast_sides(flat: np.ndarray, keep: int) -> Sides:
    """Selection on one array of scores."""
    drop = flat.size - keep
    # Scores as they are when a mask is drawn again at the sparsity it has.
    tied = np.where(keep_largest(flat, keep), flat, -np.inf)
    return {
        OURS: lambda: keep_largest(flat, keep),
        f"{OURS}, threshold among ties": lambda: keep_largest(tied, keep),
        "np.partition": lambda: np.partition(flat, drop),
        "np.partition, threshold among ties": lambda: np.partition(tied, drop),
        "np.sort": lambda: np.sort(flat),
    }


def draw_sides(
    model: keras.Model, scores: dict[str, np.ndarray], keep: int
) -> Sides:
    """All that a global magnitude draw over several tensors does."""
    pools = [Pool(tuple(scores), keep)]
    dense = {path: np.ones(s.shape, bool) for path, s in scores.items()}
    # The masks of an earlier round, twice as dense.
    earlier = select(scores, [Pool(tuple(scores), 2 * keep)], dense)
    masked = keras.models.clone_model(model)
    masked.set_weights(model.get_weights())
    for old, new in zip(model.weights, masked.weights, strict=True):
        masking.enforce(masked, {new.path: earlier[old.path]})

    def draw(one: keras.Model) -> Any:
        return draw_masks(
            one, FLAGS.sparsity, criterion="magnitude", scope="global"
        )

    return {
        "select, from dense": lambda: select(scores, pools, dense),
        "select, under masks": lambda: select(scores, pools, earlier),
        "whole draw, from dense": lambda: draw(model),
        "whole draw, under masks": lambda: draw(masked),
    }


def slow_sides(flat: np.ndarray, keep: int) -> Sides:
    """TensorFlow's sorts, and the one side to compare them with."""
    tensor = tf.constant(flat)
    return {
        OURS: lambda: keep_largest(flat, keep),
        "tf.sort": lambda: tf.sort(tensor).numpy(),
        "tf.math.top_k, of the kept": lambda: tf.math.top_k(
            tensor, keep, sorted=False
        )[0].numpy(),
        "tf.math.top_k, of all (as tfmot)": lambda: tf.math.top_k(
            tensor, flat.size
        )[0].numpy(),
    }


if __name__ == "__main__":
    app.run(main)
