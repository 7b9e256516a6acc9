"""Small networks that the tests of this folder share."""

import keras
import numpy as np


def block_net(activation="relu"):
    """A stem, one basic block with strides and padding as in ResNets."""
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3, padding="same", use_bias=False, name="stem")(
        image
    )
    x = keras.layers.Activation(activation, name="stem_act")(x)
    shortcut = keras.layers.Conv2D(6, 1, strides=2, name="shortcut")(x)
    x = keras.layers.ZeroPadding2D(1, name="conv1_pad")(x)
    x = keras.layers.Conv2D(6, 3, strides=2, use_bias=False, name="conv1")(x)
    x = keras.layers.BatchNormalization(momentum=0.9, name="conv1_bn")(x)
    x = keras.layers.ReLU(name="conv1_relu")(x)
    x = keras.layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv2")(
        x
    )
    x = keras.layers.BatchNormalization(momentum=0.9, name="conv2_bn")(x)
    x = keras.layers.Add(name="add")([x, shortcut])
    x = keras.layers.ReLU(name="relu")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, keras.layers.Dense(3, name="head")(x), name="net")


@keras.saving.register_keras_serializable(package="tests")
class Fixed(keras.layers.Layer):
    """A user's layer whose activations are fixed in its code."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = keras.layers.Dense(4, activation="relu", name="inner")
        self.relu = keras.layers.ReLU()

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.relu(self.dense(x) - 0.1)


def images(shape=(8, 8, 3), count=16, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, *shape)).astype("float32")
    return x, rng.integers(0, 3, count)


def difference(one, other, x, **options):
    return float(
        np.abs(one(x, **options).numpy() - other(x, **options).numpy()).max()
    )


def train_a_little(model, x, y, steps=3):
    """So that normalization has statistics and scales of its own."""
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    for _ in range(steps):
        model.train_on_batch(x, y)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cross_entropy(y, logits, alpha, spread):
    """Of labels smoothed by hand, for each sample."""
    classes = logits.shape[-1]
    if spread == "others":
        q = np.full(logits.shape, alpha / (classes - 1))
        q[np.arange(len(y)), y] = 1 - alpha
    else:
        q = np.full(logits.shape, alpha / classes)
        q[np.arange(len(y)), y] += 1 - alpha
    return -(q * np.log(softmax(logits))).sum(-1)
