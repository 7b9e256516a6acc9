r"""Draw a ticket, ship it in every format, and serve each in a new process.

    python examples/export_and_serve.py     # digits, two to three minutes

A wide network is pruned to one weight in a hundred by three rounds of
iterative magnitude pruning. The ticket is exported densely, packed, sparse,
automatically and, if ai-edge-litert is installed, as a LiteRT file. A process
that does not import tf_tickets loads each SavedModel, classifies the test
images and compares with the Keras model. At the end stands the report: bytes
and milliseconds, and where nothing was gained.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
from absl import app, flags, logging
from harness import Progress

import tf_tickets as tt
from tf_tickets.zoo import datasets

FLAGS = flags.FLAGS
flags.DEFINE_float("sparsity", 0.99, "Of the ticket.", 0.0, 0.999)
flags.DEFINE_integer("units", 1536, "Width of the two hidden layers.", 1)
flags.DEFINE_integer("rounds", 3, "Rounds of pruning.", 1)
flags.DEFINE_integer("epochs_per_round", 5, "Epochs of each.", 1)
flags.DEFINE_list("batch_sizes", ["1", "32"], "At which to measure.")
flags.DEFINE_float("seconds", 2.0, "For measuring, at each of them.", 0.0)
flags.DEFINE_string("output_dir", "runs/export_and_serve", "Emptied first.")
flags.DEFINE_integer("seed", 0, "Seed of weights and batches.")

FORMATS = ("dense", "packed", "sparse", "auto")

# What a user of the export runs; nothing of tf_tickets is in it.
CLIENT = """
import sys
import numpy as np
import tensorflow as tf

images, expected = (np.load(path) for path in sys.argv[1:3])
for path in sys.argv[3:]:
    served = tf.saved_model.load(path)
    logits = served.serve(tf.constant(images)).numpy()
    difference = np.abs(logits - expected).max() / np.abs(expected).max()
    print(f"  {path}: outputs differ by {difference:.1e}")
    assert difference <= 1e-5
assert "tf_tickets" not in sys.modules
"""


def network(data: datasets.Dataset, units: int) -> keras.Model:
    """Two wide layers: what a sparse product is for."""
    model = keras.Sequential(
        [
            keras.Input(data.input_shape),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(units, activation="relu", name="hidden1"),
            keras.layers.Dense(units, activation="relu", name="hidden2"),
            keras.layers.Dense(data.classes, name="head"),
        ],
        name="wide",
    )
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def draw(data: datasets.Dataset) -> keras.Model:
    """The model, trained with the ticket that iterative pruning found."""
    model = network(data, FLAGS.units)
    imp = tt.callbacks.IterativeMagnitudePruning(
        target_sparsity=FLAGS.sparsity,
        rounds=FLAGS.rounds,
        epochs_per_round=FLAGS.epochs_per_round,
    )
    model.fit(
        data.train,
        validation_data=data.validation,
        epochs=imp.epochs,
        shuffle=False,
        verbose=0,
        callbacks=[imp, Progress("IMP")],
    )
    print(imp.ticket)
    accuracy = model.evaluate(data.test, verbose=0, return_dict=True)
    print(f"test accuracy {accuracy['accuracy']:.4f}")
    return model


def serve(model: keras.Model, images: np.ndarray, directory: Path) -> None:
    """Run the client on every SavedModel in ``directory``."""
    files = [directory / "images.npy", directory / "expected.npy"]
    np.save(files[0], images)
    np.save(files[1], model.predict(images, verbose=0))
    subprocess.run(
        [
            sys.executable,
            "-c",
            CLIENT,
            *files,
            *(directory / format for format in FORMATS),
        ],
        check=True,
    )


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # TensorFlow's remarks on saving
    keras.utils.set_random_seed(FLAGS.seed)
    batch_sizes = tuple(int(size) for size in FLAGS.batch_sizes)
    directory = Path(FLAGS.output_dir)
    shutil.rmtree(directory, ignore_errors=True)
    data = datasets.load("digits", batch_size=64, seed=FLAGS.seed)
    model = draw(data)

    print("exporting")
    for format in FORMATS:
        tt.export.saved_model(
            model, directory / format, format=format, batch_sizes=batch_sizes
        )
    images = np.concatenate([x.numpy() for x, _ in data.test])
    print("serving, in a process of its own")
    serve(model, images, directory)

    for format in FORMATS:
        report = tt.export.report(
            directory / format,
            model,
            batch_sizes=batch_sizes,
            seconds=FLAGS.seconds,
        )
        print(f"\n{format}\n{report}")
        report.plot(directory / f"{format}.png")
    try:
        found = tt.export.litert(model, directory / "ticket.tflite")
    except ImportError as error:
        print(f"\nno LiteRT file: {error}")
    else:
        print(f"\nLiteRT\n{found}")


if __name__ == "__main__":
    app.run(main)
