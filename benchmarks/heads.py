"""Time of a transformer without half its heads and half its widths.

A BERT-like network, dense and without half of the heads and half of the inner
width of its blocks, served as a SavedModel each, in turns in one process. Its
outputs are compared with those of the dense network in which the same groups
are zero, and it is trained a step, saved and loaded.

    python -m benchmarks.heads
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app

import tf_tickets as tt
from benchmarks import script, timing

FLAGS = script.define(
    __name__,
    model=(
        ("local", "hub"),
        "A network of a local class, or KerasHub's BertBackbone; may be given "
        "twice.",
    ),
    batches=(["1", "32"], "Examples in a batch."),
    width=(256, "Of the residual stream; a block is four times as wide."),
    length=(128, "Tokens of an example."),
    rounds=(60, "Timed runs of each side."),
)
SMALL = {"width": 16, "heads": 4, "inner": 32, "depth": 2}


def build(name: str) -> keras.Model:
    """The dense network: of 512, it has the sizes of the small BERT."""
    width = FLAGS.width
    sizes = {"width": width, "heads": 8, "inner": 4 * width, "depth": 4}
    if FLAGS.smoke:
        sizes = SMALL
    if name == "hub":
        import keras_hub

        return keras_hub.models.BertBackbone(
            vocabulary_size=1000,
            num_layers=sizes["depth"],
            num_heads=sizes["heads"],
            hidden_dim=sizes["width"],
            intermediate_dim=sizes["inner"],
            max_sequence_length=FLAGS.length,
        )
    from tests import gallery

    return gallery.bert(**sizes, words=1000)


def tokens(model: keras.Model, batch: int) -> dict[str, tf.Tensor]:
    """Random ones, none of them padded."""
    rng = np.random.default_rng(0)
    shape = (batch, FLAGS.length)
    values = {
        "token_ids": rng.integers(0, 1000, shape),
        "padding_mask": np.ones(shape),
        "segment_ids": np.zeros(shape),
    }
    return {name: tf.constant(values[name], tf.int32) for name in model.input}


def flat(outputs: Any) -> np.ndarray:
    """All numbers that a model returns."""
    arrays = [np.ravel(x) for x in keras.tree.flatten(outputs)]
    return np.concatenate(arrays)


def served(model: keras.Model, directory: pathlib.Path, name: str) -> Any:
    """What the exported model answers."""
    tt.export.saved_model(model, directory / name, format="dense")
    loaded = tf.saved_model.load(str(directory / name))
    return loaded.signatures["serving_default"], loaded


def runner(
    model: keras.Model, signature: Any, batch: int
) -> Callable[[], object]:
    """One request."""
    x = tokens(model, batch)
    return lambda: [y.numpy() for y in signature(**x).values()]


def trains(model: keras.Model) -> bool:
    """Whether a step of training changes what it answers."""
    x = tokens(model, 4)
    y = [np.zeros(z.shape) for z in keras.tree.flatten(model(x))]
    before = flat(model(x))
    head = keras.Model(model.input, keras.tree.flatten(model.output))
    head.compile("adam", "mse")
    head.fit(x, y, verbose=0)
    return bool(np.abs(flat(model(x)) - before).max() > 1e-4)


def measure(name: str) -> tuple[list[timing.Row], dict[str, Any]]:
    """Rows by batch, and what else there is to say."""
    keras.utils.set_random_seed(0)
    dense = build(name)
    ticket = tt.structured.draw_groups(dense, 0.5, groups=("heads", "widths"))
    small = tt.structured.shrink(dense, ticket)
    notes: dict[str, Any] = {}
    rows = []
    with tempfile.TemporaryDirectory() as text:
        directory = pathlib.Path(text)
        models = {"dense": dense, "shrunk": small}
        sides = {
            side: served(model, directory, side)
            for side, model in models.items()
        }
        for batch in FLAGS.batches:
            times = timing.interleaved(
                {
                    side: runner(models[side], signature, int(batch))
                    for side, (signature, _) in sides.items()
                },
                rounds=2 if FLAGS.smoke else FLAGS.rounds,
            )
            case = f"{name}, batch {batch}"
            rows += [
                timing.compare(times, side, "dense", case=case)
                for side in models
            ]
            notes[f"{case}: times faster"] = round(1 / rows[-1].ratio, 2)
        x = tokens(dense, 4)
        ticket.apply(dense, weights="keep")
        difference = np.abs(flat(dense(x)) - flat(small(x))).max()
        notes[f"{name}: largest difference"] = float(difference)
        small.save(directory / "small.keras")
        loaded = keras.models.load_model(directory / "small.keras")
        same = np.abs(flat(loaded(x)) - flat(small(x))).max()
        notes[f"{name}: largest difference when loaded"] = float(same)
        notes[f"{name}: trains"] = trains(loaded)
        notes[f"{name}: parameters"] = [
            model.count_params() for model in models.values()
        ]
    return rows, notes


def main(argv: Sequence[str]) -> None:
    del argv
    if "hub" in FLAGS.model:
        script.need("keras_hub", "hub")
    rows: list[timing.Row] = []
    notes: dict[str, Any] = {"length": FLAGS.length}
    for name in FLAGS.model:
        found, told = measure(name)
        rows += found
        notes |= told
    script.report("heads", rows, output=FLAGS.output, notes=notes)


if __name__ == "__main__":
    app.run(main)
