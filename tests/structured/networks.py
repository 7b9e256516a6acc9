"""Small networks with every way in which channels depend on each other."""

import keras
import numpy as np
from keras import layers

from tf_tickets.network.channels import follow, owners
from tf_tickets.network.graph import trace
from tf_tickets.selection import layers_of, named_weights


def conv_bn(x, filters, size=3, stride=1, relu=True, **options):
    x = layers.Conv2D(
        filters, size, stride, padding="same", use_bias=False, **options
    )(x)
    x = layers.BatchNormalization()(x)
    return layers.ReLU()(x) if relu else x


def concatenating():
    """Dense blocks: each layer reads all that were before it."""
    image = keras.Input((8, 8, 3))
    x = conv_bn(image, 6)
    for _ in range(3):
        y = layers.BatchNormalization()(x)
        y = layers.Conv2D(4, 3, padding="same")(layers.ReLU()(y))
        x = layers.Concatenate()([x, y])
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Flatten()(layers.AveragePooling2D(2)(x))
    return keras.Model(image, layers.Dense(5)(x))


def unet():
    """Down, up by transposed convolutions, skips joined by concatenation."""
    image = keras.Input((16, 16, 2))
    one = conv_bn(image, 6)
    two = conv_bn(layers.MaxPooling2D(2)(one), 8)
    three = conv_bn(layers.MaxPooling2D(2)(two), 10)
    x = layers.Conv2DTranspose(8, 2, 2)(three)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = conv_bn(layers.Concatenate()([x, two]), 8)
    x = layers.Conv2DTranspose(6, 3, 2, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = conv_bn(layers.Concatenate()([x, one]), 6)
    return keras.Model(image, layers.Conv2D(3, 1)(x))


def nested():
    """A model within a sequential one within a functional one, used twice."""
    inner_in = keras.Input((8, 8, 6))
    inner = keras.Model(inner_in, conv_bn(inner_in, 6), name="inner")
    middle = keras.Sequential(
        [
            keras.Input((8, 8, 6)),
            inner,
            layers.Conv2D(6, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
        ],
        name="middle",
    )
    image = keras.Input((8, 8, 3))
    x = conv_bn(image, 6)
    x = layers.Add()([x, middle(x)])
    x = middle(x)
    x = layers.GlobalMaxPooling2D()(x)
    return keras.Model(image, {"logits": layers.Dense(4, name="head")(x)})


def assorted():
    """Depthwise, separable, grouped, gated, reshaped, on bare operations."""
    image = keras.Input((8, 8, 3))
    x = conv_bn(image, 8)
    x = layers.DepthwiseConv2D(
        3, padding="same", depth_multiplier=2, use_bias=False
    )(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.SeparableConv2D(12, 3, padding="same", use_bias=False)(x)
    x = layers.PReLU(shared_axes=[1, 2], alpha_initializer="ones")(
        layers.BatchNormalization()(x)
    )
    x = conv_bn(x, 12, groups=3)
    x = conv_bn(x, 12, groups=12)
    gate = layers.GlobalAveragePooling2D()(x)
    gate = layers.Reshape((1, 1, 12))(gate)
    gate = layers.Dense(12, activation="sigmoid")(
        layers.Dense(4, activation="relu")(gate)
    )
    x = layers.Multiply()([x, gate]) * 2.0
    x = layers.ZeroPadding2D(1)(layers.Dropout(0.5)(x))
    x = layers.Permute((2, 1, 3))(layers.UpSampling2D(2)(x))
    x = keras.ops.mean(x, axis=[1, 2])
    return keras.Model(image, layers.Dense(3)(x))


def sequential():
    """Convolutions in one dimension, flattened."""
    return keras.Sequential(
        [
            keras.Input((12, 3)),
            layers.Conv1D(8, 3, use_bias=False, name="one"),
            layers.BatchNormalization(name="one_bn"),
            layers.Activation("relu"),
            layers.ZeroPadding1D(1),
            layers.Conv1D(6, 3, use_bias=False, name="two"),
            layers.BatchNormalization(name="two_bn"),
            layers.LeakyReLU(),
            layers.Flatten(),
            layers.Dense(8, use_bias=False, name="dense"),
            layers.BatchNormalization(name="dense_bn"),
            layers.ReLU(),
            layers.Dense(2, name="head"),
        ]
    )


def random_graph(seed):
    """A graph of random joints; activations are zero at zero."""
    rng = np.random.default_rng(seed)
    image = keras.Input((8, 8, 3))
    pool = [
        layers.BatchNormalization()(layers.Conv2D(6, 3, padding="same")(image))
    ]
    for _ in range(10):
        x = pool[rng.integers(len(pool))]
        kind = rng.integers(8)
        size = x.shape[-1]
        if kind == 0:
            x = layers.Conv2D(
                int(rng.integers(4, 9)), 3, padding="same", use_bias=False
            )(x)
            x = layers.BatchNormalization()(x)
        elif kind == 1:
            x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
            x = layers.BatchNormalization()(x)
        elif kind == 2:
            same = [t for t in pool if t.shape[-1] == size]
            x = layers.Add()([x, same[rng.integers(len(same))]])
        elif kind == 3:
            x = layers.Concatenate()([x, pool[rng.integers(len(pool))]])
        elif kind == 4:
            x = layers.Activation(["relu", "silu", "tanh"][rng.integers(3)])(x)
        elif kind == 5:
            gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
            gate = layers.Dense(size, activation="sigmoid")(gate)
            x = layers.Multiply()([x, gate])
        elif kind == 6:
            x = layers.Conv2DTranspose(
                int(rng.integers(4, 9)), 3, padding="same", use_bias=False
            )(x)
            x = layers.BatchNormalization()(x)
        else:
            x = keras.ops.maximum(x, x * 0.5)
        pool.append(x)
    x = layers.Concatenate()([layers.GlobalMaxPooling2D()(t) for t in pool])
    return keras.Model(image, layers.Dense(4)(x))


NETWORKS = {
    f.__name__: f for f in (concatenating, unet, nested, assorted, sequential)
}


def settle(model, seed=0, batch=4):
    """Random statistics, scales and offsets under which signals survive.

    Returns a batch of inputs.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, *model.input_shape[1:]))
    for layer in layers_of(model):
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0
    model(x, training=True)  # statistics of this batch
    for weight in named_weights(model).values():
        if weight.name in ("gamma", "alpha"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif weight.name in ("beta", "bias"):
            weight.assign(rng.normal(size=weight.shape) * 0.2)
    return x


def coupled_masks(model, sparsity, seed=0):
    """``{scale: mask}`` that agree wherever channels are tied."""
    channels = follow(trace(model))
    rng = np.random.default_rng(seed)
    going = rng.random(channels.size) < sparsity
    for entry in channels.layers.values():
        if entry.made is not None:  # no layer may lose all
            going[channels.roots(entry.made)[0]] = False
    return {
        key: ~going[channels.roots(atoms)]
        for key, atoms in owners(channels, model).items()
        if key.rpartition("/")[2].startswith("gamma")
    }


def zeroed(model, masks):
    """Zero scale and offset of the pruned channels, in the model itself."""
    weights = named_weights(model)
    for key, mask in masks.items():
        for name in (key, "beta".join(key.rsplit("gamma", 1))):
            weights[name].assign(np.where(mask, weights[name], 0))


def outputs(model, x):
    return np.concatenate(
        [
            np.asarray(y).reshape(len(x), -1)
            for y in keras.tree.flatten(model(x, training=False))
        ],
        axis=1,
    )
