r"""Train a small MobileNet, prune it for the browser, and look at it there.

    python examples/mobilenet_web.py            # digits, a few minutes
    python examples/mobilenet_web.py --noserve  # files only

A MobileNet learns the digits, enlarged and in three channels, and its 1x1
convolutions are pruned as it goes on learning. It is rewritten so that XNNPACK
computes it sparsely, exported as two LiteRT files, the dense network before
pruning and the sparse one, and both files classify the test images. At the end
a page shows them side by side; the browser needs nothing but the page.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from harness import Progress

import tf_tickets as tt
from tf_tickets.zoo import datasets

FLAGS = flags.FLAGS
flags.DEFINE_float("sparsity", 0.8, "Of the 1x1 convolutions.", 0.67, 0.99)
flags.DEFINE_integer("epochs", 15, "Of the dense network.", 1)
flags.DEFINE_integer("pruning_epochs", 15, "More, with pruning.", 1)
flags.DEFINE_integer("size", 64, "Of the images; even.", 32)
flags.DEFINE_float("width", 0.5, "Of the network; 1 is MobileNet's own.", 0.1)
flags.DEFINE_enum(
    "scope", "layer", ["layer", "global"], "How the zeros are spread."
)
flags.DEFINE_integer("blocks", 9, "Of the network, from its first on.", 1, 9)
flags.DEFINE_bool("serve", True, "Serve the page at the end.")
flags.DEFINE_integer("port", 8000, "Where.")
flags.DEFINE_string("output_dir", "runs/mobilenet_web", "For the files.")
flags.DEFINE_integer("seed", 0, "Of weights and batches.")

# ``(channels, stride)`` of MobileNet's blocks.
BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 3,
)


def network(size: int, width: float, blocks: int) -> keras.Model:
    """MobileNet as Keras has it: layers of stride 2 pad below and right."""
    layers = keras.layers

    def normalized(x: keras.KerasTensor) -> keras.KerasTensor:
        return layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.9)(x))

    x = inputs = keras.Input((size, size, 3))
    first = int(32 * width)
    x = layers.Conv2D(
        first, 3, strides=2, padding="same", use_bias=False, name="stem"
    )(x)
    x = normalized(x)
    for i, (channels, stride) in enumerate(BLOCKS[:blocks]):
        x = layers.DepthwiseConv2D(
            3,
            strides=stride,
            padding="same",
            use_bias=False,
            name=f"depthwise{i}",
        )(x)
        x = normalized(x)
        x = layers.Conv2D(
            int(channels * width), 1, use_bias=False, name=f"pointwise{i}"
        )(x)
        x = normalized(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(10, name="head")(x), name="mobile")
    model.compile(
        keras.optimizers.Adam(2e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def enlarged(part: tf.data.Dataset, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of three channels and ``size`` pixels, from 0 to 1, and labels."""
    examples = list(part.as_numpy_iterator())
    images = np.concatenate([images for images, _ in examples])
    labels = np.concatenate([labels for _, labels in examples])
    images = (images - images.min()) / np.ptp(images)
    large = keras.ops.image.resize(images, (size, size), "bilinear")
    return np.repeat(np.asarray(large), 3, axis=-1), labels


def accuracy_of(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Of a LiteRT file, by its interpreter."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    target = interpreter.get_output_details()[0]["index"]
    right = 0
    for image, label in zip(images, labels, strict=True):
        interpreter.set_tensor(source, image[None])
        interpreter.invoke()
        right += int(interpreter.get_tensor(target).argmax() == label)
    return right / len(labels)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.ERROR)  # TensorFlow's remarks on exporting
    output = Path(FLAGS.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(FLAGS.seed)
    data = datasets.load("digits", batch_size=1)
    (train, train_labels), (test, test_labels) = (
        enlarged(part, FLAGS.size) for part in (data.train, data.test)
    )

    print(f"Train a MobileNet of width {FLAGS.width} on {len(train)} digits")
    model = network(FLAGS.size, FLAGS.width, FLAGS.blocks)
    fit = {"batch_size": 64, "verbose": 0}
    model.fit(
        train,
        train_labels,
        epochs=FLAGS.epochs,
        callbacks=[Progress("dense")],
        **fit,
    )
    sides = {"dense": keras.models.clone_model(model)}
    sides["dense"].set_weights(model.get_weights())

    print(f"Prune its 1x1 convolutions to {FLAGS.sparsity:.0%} zeros")
    policy = tt.export.xnnpack_policy(FLAGS.sparsity, scope=FLAGS.scope)
    steps = -(-len(train) // fit["batch_size"]) * FLAGS.pruning_epochs
    pruning = tt.callbacks.GradualPruning(
        **policy, end_step=max(1, 2 * steps // 3), every=max(1, steps // 60)
    )
    model.optimizer.learning_rate = 1e-3
    model.fit(
        train,
        train_labels,
        epochs=FLAGS.pruning_epochs,
        callbacks=[pruning, Progress("sparse")],
        **fit,
    )

    flops = tt.analysis.flops(model)
    left = flops.masked_macs / flops.macs
    print(f"\n{left:.1%} of the multiplications are left")

    sides["sparse"], report = tt.export.for_xnnpack(model, return_report=True)
    print(f"\nRewritten:\n{report}\n")
    off = np.abs(
        model.predict(test[:64], verbose=0)
        - sides["sparse"].predict(test[:64], verbose=0)
    ).max()
    print(f"outputs differ by {off:.1e} after it")
    site = {"shape": list(test.shape[1:]), "labels": test_labels.tolist()}
    for name, one in sides.items():
        made = tt.export.litert(
            one, output / f"{name}.tflite", sparse=name == "sparse", verbose=0
        )
        site[name] = {
            "bytes": made.disk_bytes,
            "accuracy": accuracy_of(made.path, test, test_labels),
        }
        here = made.latencies[1]["export"].median
        print(
            f"{name}: {100 * site[name]['accuracy']:.1f} % of the test images, "
            f"{made.disk_bytes:,} bytes, {1e3 * here:.2f} ms on this machine"
        )
    print(tt.export.sparse_inference(output / "sparse.tflite"))
    (output / "site.json").write_text(json.dumps(site))
    test.astype("float32").tofile(output / "images.bin")

    sys.path.insert(0, str(Path(__file__).parent / "web"))
    command = f"python examples/web/serve.py {output}"
    if not FLAGS.serve:
        print(f"\nTo look at it: {command}")
        return
    import serve

    with serve.server(output, FLAGS.port) as running:
        print(f"\nhttp://localhost:{running.server_port}/  (Ctrl-C ends it)")
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            print(f"\nAgain: {command}")


if __name__ == "__main__":
    app.run(main)
