r"""Half of a transformer's heads and widths, found in four ways.

    python examples/heads.py            # digits, about 2 minutes

A small transformer reads the rows of a digit as tokens. Half of its heads and
half of the inner width of its blocks go: those of small magnitude, those that
the loss feels least, random ones, and in four cuts while it trains on. What is
left is a smaller model, which is trained a little longer and timed beside the
dense one.

The output directory gets `results.csv` and the smaller models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from harness import write_csv
from keras import layers
from sklearn.datasets import load_digits

import tf_tickets as tt
from tf_tickets.timing import interleaved

WIDTH, HEADS, INNER = 64, 8, 256
WAYS = ["magnitude", "taylor", "random"]

FLAGS = flags.FLAGS
flags.DEFINE_integer("epochs", 30, "Epochs of the dense model.")
flags.DEFINE_integer("finetune_epochs", 8, "Epochs of what is left.")
flags.DEFINE_float("sparsity", 0.5, "Share of heads and widths that go.")
flags.DEFINE_list("seeds", ["0", "1", "2"], "One run for each.")
flags.DEFINE_list("ways", WAYS, "To choose what goes at once.")
flags.DEFINE_integer("depth", 2, "Blocks.")
flags.DEFINE_integer("timing_rounds", 50, "Timed calls of each model.")
flags.DEFINE_string("output_dir", "out/heads", "Where results go.")


@keras.saving.register_keras_serializable("examples")
class Block(layers.Layer):
    """Attention and two dense layers, each added to what it reads."""

    def __init__(self, heads: int, inner: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.heads = heads
        self.inner = inner

    def build(self, shape: Any) -> None:
        width = shape[-1]
        self.attention = layers.MultiHeadAttention(
            self.heads, width // self.heads, name="attention"
        )
        self.wide = layers.Dense(self.inner, activation="gelu", name="wide")
        self.narrow = layers.Dense(width, name="narrow")
        self.norms = [
            layers.LayerNormalization(name=name) for name in ("one", "two")
        ]
        self.attention.build(shape, shape)
        self.narrow.build((*shape[:-1], self.inner))
        for layer in (self.wide, *self.norms):
            layer.build(shape)

    def call(self, x: Any) -> Any:
        y = self.norms[0](x)
        x = x + self.attention(y, y)
        return x + self.narrow(self.wide(self.norms[1](x)))

    def get_config(self) -> dict[str, Any]:
        own = {"heads": self.heads, "inner": self.inner}
        return {**super().get_config(), **own}


def transformer() -> keras.Model:
    """The rows of an image as tokens, places added, blocks, a head."""
    rows = keras.Input((8, 8), name="rows")
    x = layers.Dense(WIDTH, name="tokens")(rows)
    places = layers.Embedding(8, WIDTH, name="places")
    x = x + places(np.arange(8)[None])
    for i in range(FLAGS.depth):
        x = Block(HEADS, INNER, name=f"block_{i}")(x)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(rows, layers.Dense(10, name="logits")(x))


def compiled(model: keras.Model, rate: float) -> keras.Model:
    """Ready to train."""
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def accuracy(model: keras.Model, data: Any) -> float:
    """In percent."""
    return 100 * float(model.evaluate(*data, verbose=0)[1])


def runner(model: keras.Model, x: np.ndarray) -> Any:
    """One call of a traced model."""
    infer = tf.function(lambda: model(x, training=False))
    return lambda: infer().numpy()


def run(seed: int, train: Any, test: Any) -> list[dict[str, Any]]:
    """One row for each way."""
    keras.utils.set_random_seed(seed)
    dense = compiled(transformer(), 1e-3)
    dense.fit(*train, batch_size=64, epochs=FLAGS.epochs, verbose=0)
    start = dense.get_weights()
    options = {"batch_size": 64, "verbose": 0}
    models = {"dense": dense}
    cut = {"dense": accuracy(dense, test)}
    for way in FLAGS.ways:
        ticket = tt.structured.draw_groups(
            dense, FLAGS.sparsity, criterion=way, data=train, seed=seed
        )
        models[way] = tt.structured.shrink(dense, ticket)
        cut[way] = accuracy(compiled(models[way], 5e-4), test)
        models[way].fit(*train, epochs=FLAGS.finetune_epochs, **options)
    # The same epochs, in which the groups go in four cuts.
    epochs = FLAGS.finetune_epochs
    pruning = tt.callbacks.GroupPruning(
        FLAGS.sparsity,
        cuts=min(4, max(epochs - 1, 1)),
        criterion="taylor",
        data=train,
    )
    gradual = keras.models.clone_model(dense)
    gradual.set_weights(start)
    compiled(gradual, 5e-4).fit(
        *train, epochs=max(epochs, 2), callbacks=[pruning], **options
    )
    models["taylor, in cuts"] = compiled(
        tt.structured.shrink(gradual, pruning.ticket), 5e-4
    )
    final = {way: accuracy(model, test) for way, model in models.items()}
    x = np.repeat(test[0], 4, axis=0)[:512]
    times = interleaved(
        {way: runner(model, x) for way, model in models.items()},
        rounds=FLAGS.timing_rounds,
    )
    output = Path(FLAGS.output_dir)
    for way in FLAGS.ways:
        models[way].save(output / f"{way}.keras")
    return [
        {
            "way": way,
            "seed": seed,
            "cut": cut.get(way, float("nan")),
            "final": final[way],
            "parameters": models[way].count_params(),
            "ms": 1e3 * float(np.median(times[way].wall)),
        }
        for way in models
    ]


def main(argv: Sequence[str]) -> None:
    del argv
    digits = load_digits()
    x = (digits.images / 16).astype("float32")
    order = np.random.default_rng(0).permutation(len(x))
    fit, rest = order[:1200], order[1200:]
    train, test = (x[fit], digits.target[fit]), (x[rest], digits.target[rest])
    output = Path(FLAGS.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in FLAGS.seeds:
        rows += run(int(seed), train, test)
    write_csv(output / "results.csv", rows)
    print("| way | cut | after training | parameters | ms |")
    print("|---|---:|---:|---:|---:|")
    for way in dict.fromkeys(row["way"] for row in rows):
        mine = [row for row in rows if row["way"] == way]
        mean = {
            key: np.mean([row[key] for row in mine])
            for key in ("cut", "final", "parameters", "ms")
        }
        print(
            f"| {way} | {mean['cut']:.1f} | {mean['final']:.1f} | "
            f"{mean['parameters']:.0f} | {mean['ms']:.2f} |"
        )


if __name__ == "__main__":
    app.run(main)
