r"""Prune a trained transformer without training it again.

    python examples/prune_transformer.py     # up to an hour: --steps
    python examples/prune_transformer.py --smoke

A small GPT learns the sources of Python's standard library, character by
character. Its blocks are then pruned in one go, to 50, 60 and 70 % and to two
of every four: by magnitude, by Wanda, and by reconstruction, layer after layer
on a hundred lines of text. Beside them stands a network of the same shape that
was sparse from its first step (RigL), and took a whole training.

What is told: bits per character on files that no one has seen, the time that
pruning (or training) took, and the bytes of the packed export. The output
directory gets `results.csv`, `errors.csv` with every layer's output error, and
a plot.
"""

from __future__ import annotations

import math
import shutil
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import app, flags, logging
from harness import Progress, write_csv

import tf_tickets as tt
from tf_tickets.figures import over_sparsity

FLAGS = flags.FLAGS
flags.DEFINE_integer("steps", 1500, "Training steps.", 1)
flags.DEFINE_integer("width", 128, "Numbers for each character.", 8)
flags.DEFINE_integer("depth", 4, "Blocks.", 1)
flags.DEFINE_integer("calibration", 128, "Lines of text to prune by.", 1)
flags.DEFINE_multi_enum(
    "method",
    ["magnitude", "wanda", "reconstruct", "rigl"],
    ["magnitude", "wanda", "reconstruct", "rigl"],
    "May be given several times.",
)
flags.DEFINE_list("sparsities", ["0.5", "0.6", "0.7", "2:4"], "Or N:M.")
flags.DEFINE_string("output_dir", "runs/prune_transformer", "For the results.")
flags.DEFINE_integer("seed", 0, "Of weights and batches.")
flags.DEFINE_bool("smoke", False, "Some seconds: shows only that it runs.")

CONTEXT, BATCH = 128, 32
# Every tenth file is held out.
HELD_OUT = 10


def characters(size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The library's sources as numbers below 128, to train on and held out."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    parts = [
        np.frombuffer(path.read_bytes(), np.uint8) for path in files[:size]
    ]
    parts = [np.minimum(part, 127) for part in parts]
    return (
        np.concatenate([p for i, p in enumerate(parts) if i % HELD_OUT]),
        np.concatenate(parts[::HELD_OUT]),
    )


def lines(text: np.ndarray, count: int, seed: int) -> tuple[Any, Any]:
    """So many stretches of the text, and what follows each character."""
    starts = np.random.default_rng(seed).integers(
        0, len(text) - CONTEXT - 1, count
    )
    found = text[starts[:, None] + np.arange(CONTEXT + 1)].astype("int32")
    return found[:, :-1], found[:, 1:]


class Block(keras.layers.Layer):
    """Attention and two dense layers, each beside a shortcut.

    Args:
        width: Numbers for each character.
    """

    def __init__(self, width: int, **options: Any) -> None:
        super().__init__(**options)
        self.width = width
        layers = keras.layers
        self.first = layers.LayerNormalization(name="first")
        self.attention = layers.MultiHeadAttention(
            4, width // 4, name="attention"
        )
        self.second = layers.LayerNormalization(name="second")
        self.wide = layers.Dense(4 * width, activation="gelu", name="wide")
        self.narrow = layers.Dense(width, name="narrow")

    def build(self, shape: tuple[int, ...]) -> None:
        self.first.build(shape)
        self.attention.build(shape, shape)
        self.second.build(shape)
        self.wide.build(shape)
        self.narrow.build((*shape[:-1], 4 * self.width))

    def call(self, x: Any) -> Any:
        y = self.first(x)
        x = x + self.attention(y, y, use_causal_mask=True)
        return x + self.narrow(self.wide(self.second(x)))


def network(width: int, depth: int) -> keras.Model:
    """A GPT of characters, compiled."""
    tokens = keras.Input((CONTEXT,), dtype="int32")
    places = keras.ops.arange(CONTEXT)
    x = keras.layers.Embedding(128, width, name="characters")(tokens)
    x = x + keras.layers.Embedding(CONTEXT, width, name="places")(places)
    for index in range(depth):
        x = Block(width, name=f"block{index}")(x)
    x = keras.layers.LayerNormalization(name="last")(x)
    model = keras.Model(tokens, keras.layers.Dense(128, name="head")(x))
    rate = keras.optimizers.schedules.CosineDecay(
        1e-4, FLAGS.steps, warmup_target=2e-3, warmup_steps=FLAGS.steps // 20
    )
    model.compile(
        keras.optimizers.Adam(rate, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def trained(
    text: np.ndarray, callbacks: list[keras.callbacks.Callback]
) -> tuple[keras.Model, float]:
    """A network after its training, and the seconds that took."""
    keras.utils.set_random_seed(FLAGS.seed)
    model = network(FLAGS.width, FLAGS.depth)
    x, y = lines(text, FLAGS.steps * BATCH, FLAGS.seed)
    epochs = min(10, FLAGS.steps)
    started = time.monotonic()
    model.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=epochs,
        steps_per_epoch=FLAGS.steps // epochs,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )
    return model, time.monotonic() - started


def bits(model: keras.Model, held_out: tuple[Any, Any]) -> float:
    """Per character, on text that was never trained on."""
    return float(model.evaluate(*held_out, verbose=0)) / math.log(2)


def packed_bytes(model: keras.Model, directory: Path) -> int:
    """Of the packed export."""
    path = directory / "packed"
    shutil.rmtree(path, ignore_errors=True)
    return tt.export.write(model, path, format="packed", verbose=0).disk_bytes


def asked(text: str) -> dict[str, Any]:
    """A sparsity, or a pattern that says its own."""
    return {"pattern": text} if ":" in text else {"sparsity": float(text)}


def one_shot(method: str) -> Callable[..., tt.Ticket]:
    """How a trained model is pruned."""

    def draw(model: keras.Model, text: str, data: Any) -> tt.Ticket:
        options: dict[str, Any] = {**asked(text), "filters": "block"}
        if method == "reconstruct":
            return tt.pruning.reconstruct(model, data=data, **options)
        return tt.prune(
            model, criterion=method, scope="layer", data=data, **options
        )

    return draw


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # TensorFlow's remarks on saving
    if FLAGS.smoke:
        FLAGS.steps, FLAGS.width, FLAGS.depth = 4, 16, 1
        FLAGS.calibration = 8
    output = Path(FLAGS.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    text, rest = characters(20 if FLAGS.smoke else None)
    held_out = lines(rest, 16 if FLAGS.smoke else 1024, 1)
    calibration, _ = lines(text, FLAGS.calibration, 2)
    print(f"{len(text):,} characters to train on, {len(rest):,} held out")

    model, seconds = trained(text, [Progress("dense")])
    dense = model.get_weights()
    rows: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []

    def tell(
        model: keras.Model, method: str, sparsity: str, seconds: float
    ) -> None:
        rows.append(
            {
                "method": method,
                "sparsity": sparsity,
                "bits_per_character": round(bits(model, held_out), 4),
                "seconds": round(seconds, 1),
                "packed_bytes": packed_bytes(model, output),
            }
        )
        print("  ".join(f"{value:>14}" for value in rows[-1].values()))

    tell(model, "dense", "0", seconds)
    for sparsity in FLAGS.sparsities:
        for method in FLAGS.method:
            if method == "rigl":
                continue
            tt.release(model)
            model.set_weights(dense)
            started = time.monotonic()
            ticket = one_shot(method)(model, sparsity, calibration)
            seconds = time.monotonic() - started
            ticket.apply(model)
            tell(model, method, sparsity, seconds)
            errors += [
                {"sparsity": sparsity, "weight": path, **found}
                for path, found in ticket.metadata.get("errors", {}).items()
            ]
    if "rigl" in FLAGS.method:
        for sparsity in FLAGS.sparsities:
            rigl = tt.callbacks.DynamicSparseTraining(
                "rigl", filters="block", **asked(sparsity)
            )
            sparse, seconds = trained(text, [rigl, Progress("RigL")])
            tell(sparse, "rigl", sparsity, seconds)

    write_csv(output / "results.csv", rows)
    runs: dict[str, dict[float, float]] = {}
    for row in rows[1:]:
        if ":" not in row["sparsity"]:
            points = runs.setdefault(row["method"], {})
            points[1 - float(row["sparsity"])] = row["bits_per_character"]
    over_sparsity(
        runs,
        "bits per character",
        output / "bits.png",
        dense=rows[0]["bits_per_character"],
    )
    if errors:
        write_csv(output / "errors.csv", errors)
        print("\nOutput error of a layer, reconstruction against magnitude:")
        for sparsity in FLAGS.sparsities:
            shares = [
                row["reconstructed"] / row["magnitude"]
                for row in errors
                if row["sparsity"] == sparsity
            ]
            print(
                f"  {sparsity}: {min(shares):.2f} to {max(shares):.2f} times, "
                f"median {np.median(shares):.2f}"
            )
    print(f"\nSee {output}.")


if __name__ == "__main__":
    app.run(main)
