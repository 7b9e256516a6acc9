"""Small networks, each of which differs from a fitting one in one thing.

What `tf_tickets.export.sparse_inference` says of their files is compared with
what LiteRT computes of them in WebAssembly: ``python -m benchmarks.web
--part=variants``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tf_tickets as tt

layers = keras.layers
Part = Callable[[Any], Any]


def relu6(x: Any) -> Any:
    return layers.ReLU(6.0)(x)


def stem(
    x: Any,
    *,
    padding: Any = 1,
    window: int = 3,
    strides: int = 2,
    filters: int = 32,
    **options: Any,
) -> Any:
    """The first convolution; ``padding`` in numbers comes as its own layer."""
    own = padding if isinstance(padding, str) else "valid"
    if not isinstance(padding, str) and padding != 0:
        x = layers.ZeroPadding2D(padding)(x)
    return layers.Conv2D(
        filters, window, strides=strides, padding=own, **options
    )(x)


def depthwise(
    x: Any,
    *,
    padding: Any = 1,
    window: int = 3,
    strides: int = 2,
    **options: Any,
) -> Any:
    own = padding if isinstance(padding, str) else "valid"
    if not isinstance(padding, str) and padding != 0:
        x = layers.ZeroPadding2D(padding)(x)
    return layers.DepthwiseConv2D(
        window, strides=strides, padding=own, **options
    )(x)


def pooled(x: Any) -> Any:
    return layers.Dense(10)(layers.GlobalAveragePooling2D()(x))


def network(
    *,
    size: int = 64,
    channels: int = 3,
    begin: Part = stem,
    step: Part = depthwise,
    middle: Part = lambda x: x,
    act: Part = relu6,
    end: Part = pooled,
    width: int = 128,
    zeros: float = 0.9,
) -> keras.Model:
    """A network that XNNPACK computes sparsely, if nothing is changed."""
    x = inputs = keras.Input((size, size, channels))
    x = act(begin(x))
    x = act(layers.Conv2D(width, 1)(x))
    x = act(step(x))
    x = middle(x)
    for _ in range(3):
        x = act(layers.Conv2D(width, 1)(x))
    model = keras.Model(inputs, end(x))
    return pruned(model, zeros)


def pruned(
    model: keras.Model, zeros: float, *, heads: bool = False, seed: int = 0
) -> keras.Model:
    """Random zeros in the 1x1 kernels; no bias, no statistic is trivial.

    Args:
        model: A model, which is changed.
        zeros: Which fraction of each kernel.
        heads: Also those of dense layers.
        seed: Of all that is random.
    """
    chosen = tt.export.xnnpack_policy(0.9, heads=heads)["filters"]
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        value = np.asarray(variable.numpy())
        if chosen(variable.path, variable):
            order = rng.permutation(value.size).reshape(value.shape)
            kept = order >= round(zeros * value.size)
            value = value * kept / max(1 - zeros, 0.05) ** 0.5
        elif variable.name in ("bias", "beta", "moving_mean"):
            value = 0.1 * rng.normal(size=value.shape)
        elif variable.name in ("gamma", "moving_variance"):
            value = 1 + 0.1 * rng.random(value.shape)
        variable.assign(value)
    return model


def _squeeze(gate: Part) -> Part:
    def part(x: Any) -> Any:
        y = layers.GlobalAveragePooling2D(keepdims=True)(x)
        y = relu6(layers.Conv2D(32, 1)(y))
        y = gate(layers.Conv2D(x.shape[-1], 1)(y))
        return layers.Multiply()([x, y])

    return part


def _branch(join: Part) -> Part:
    return lambda x: join([x, layers.Conv2D(x.shape[-1], 1)(x)])


def _two_outputs(x: Any) -> Any:
    return [layers.Conv2D(16, 1)(x), pooled(x)]


def _pooled_and_map(x: Any) -> Any:
    return [x, pooled(x)]


def _convolution_head(x: Any) -> Any:
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    return layers.Flatten()(layers.Conv2D(10, 1)(x))


def _closed_head(x: Any) -> Any:
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Conv2D(10, 1)(x)
    return layers.GlobalAveragePooling2D()(x)


def _big_head(x: Any) -> Any:
    return layers.Dense(4000)(layers.GlobalAveragePooling2D()(x))


def _two_layers(x: Any) -> Any:
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Activation("hard_swish")(layers.Conv2D(64, 1)(x))
    return layers.Flatten()(layers.Conv2D(10, 1)(x))


def _padv2(x: Any) -> Any:
    x = tf.raw_ops.PadV2(
        input=x,
        paddings=[[0, 0], [1, 1], [1, 1], [0, 0]],
        constant_values=tf.constant(0.0),
    )
    return x


def _odd_padv2(x: Any) -> Any:
    shape = (x.shape[1] + 2, x.shape[2] + 2, x.shape[3])
    x = layers.Lambda(_padv2, output_shape=shape)(x)
    return depthwise(x, padding=0)


def _act(name: str) -> Part:
    return lambda x: layers.Activation(name)(x)


def _resize(x: Any) -> Any:
    return layers.UpSampling2D(2, interpolation="bilinear")(x)


def _nearest(x: Any) -> Any:
    return layers.UpSampling2D(2)(x)


VARIANTS: dict[str, Callable[[], keras.Model]] = {
    "as it should be": network,
    # How it begins.
    "stem `same`, even": lambda: network(
        begin=lambda x: stem(x, padding="same")
    ),
    "stem `same`, odd": lambda: network(
        size=65, begin=lambda x: stem(x, padding="same")
    ),
    "stem padded by 1, odd": lambda: network(size=65),
    "stem padded below": lambda: network(
        begin=lambda x: stem(x, padding=((0, 1), (0, 1)))
    ),
    "stem padded above": lambda: network(
        begin=lambda x: stem(x, padding=((1, 0), (1, 0)))
    ),
    "stem not padded": lambda: network(begin=lambda x: stem(x, padding=0)),
    "stem padded by 2": lambda: network(begin=lambda x: stem(x, padding=2)),
    "stem of stride 1": lambda: network(
        size=32, begin=lambda x: stem(x, strides=1, padding="same")
    ),
    "stem 5x5": lambda: network(begin=lambda x: stem(x, window=5, padding=2)),
    "stem 1x1": lambda: network(
        size=32, begin=lambda x: stem(x, window=1, strides=1, padding=0)
    ),
    "stem on 1 channel": lambda: network(channels=1),
    "stem on 4 channels": lambda: network(channels=4),
    "image scaled before": lambda: network(
        begin=lambda x: stem(layers.Rescaling(1 / 127, offset=-1.0)(x))
    ),
    "image turned before": lambda: network(
        begin=lambda x: stem(keras.ops.flip(x, axis=(1, 2)))
    ),
    # Depthwise layers.
    "depthwise `same`, even": lambda: network(
        step=lambda x: depthwise(x, padding="same")
    ),
    "depthwise `same`, odd": lambda: network(
        size=66, step=lambda x: depthwise(x, padding="same")
    ),
    "depthwise padded by 1, odd": lambda: network(size=66),
    "depthwise padded by PADV2, odd": lambda: network(size=66, step=_odd_padv2),
    "depthwise padded below": lambda: network(
        step=lambda x: depthwise(x, padding=((0, 1), (0, 1)))
    ),
    "depthwise not padded": lambda: network(
        step=lambda x: depthwise(x, padding=0)
    ),
    "depthwise `same`, stride 1": lambda: network(
        step=lambda x: depthwise(x, padding="same", strides=1), size=32
    ),
    "depthwise padded by 1, stride 1": lambda: network(
        step=lambda x: depthwise(x, strides=1), size=32
    ),
    "depthwise 5x5 padded by 2": lambda: network(
        step=lambda x: depthwise(x, window=5, padding=2)
    ),
    "depthwise 5x5 `same`, stride 1": lambda: network(
        step=lambda x: depthwise(x, window=5, padding="same", strides=1),
        size=32,
    ),
    "depthwise 5x5 padded by 1 and 2": lambda: network(
        step=lambda x: depthwise(x, window=5, padding=((1, 2), (1, 2)))
    ),
    "depthwise 7x7 padded by 3": lambda: network(
        step=lambda x: depthwise(x, window=7, padding=3)
    ),
    "depthwise of stride 4": lambda: network(
        step=lambda x: depthwise(x, strides=4)
    ),
    "depthwise dilated": lambda: network(
        size=32,
        step=lambda x: depthwise(x, strides=1, padding="same", dilation_rate=2),
    ),
    "depthwise of multiplier 2": lambda: network(
        step=lambda x: depthwise(x, depth_multiplier=2)
    ),
    # What stands inside.
    "1x1 of stride 2": lambda: network(
        middle=lambda x: layers.Conv2D(128, 1, strides=2)(x)
    ),
    "3x3 convolution inside": lambda: network(
        middle=lambda x: layers.Conv2D(128, 3, padding="same")(x)
    ),
    "1x1 in groups": lambda: network(
        middle=lambda x: layers.Conv2D(128, 1, groups=2)(x)
    ),
    "sum with a branch": lambda: network(middle=_branch(layers.Add())),
    "product with a branch": lambda: network(middle=_branch(layers.Multiply())),
    "difference of a branch": lambda: network(
        middle=_branch(layers.Subtract())
    ),
    "joined channels": lambda: network(middle=_branch(layers.Concatenate())),
    "batch normalization": lambda: network(
        middle=lambda x: relu6(
            layers.BatchNormalization()(layers.Conv2D(128, 1)(x))
        )
    ),
    "batch normalization before": lambda: network(
        middle=lambda x: relu6(layers.BatchNormalization()(x))
    ),
    "max pooling": lambda: network(middle=layers.MaxPooling2D(2)),
    "average pooling": lambda: network(middle=layers.AveragePooling2D(2)),
    "bilinear upsampling": lambda: network(middle=_resize, size=32),
    "nearest upsampling": lambda: network(middle=_nearest, size=32),
    "gate by a sigmoid": lambda: network(middle=_squeeze(_act("sigmoid"))),
    "gate by a hard sigmoid": lambda: network(
        middle=_squeeze(_act("hard_sigmoid"))
    ),
    "times a number": lambda: network(middle=lambda x: relu6(relu6(x) * 2.5)),
    # Activations.
    "ReLU": lambda: network(act=_act("relu")),
    "hard swish": lambda: network(act=_act("hard_swish")),
    "swish": lambda: network(act=_act("silu")),
    "GELU": lambda: network(act=_act("gelu")),
    "ELU": lambda: network(act=_act("elu")),
    "leaky ReLU": lambda: network(act=layers.LeakyReLU(0.1)),
    "tanh": lambda: network(act=_act("tanh")),
    "limit of 1": lambda: network(act=lambda x: layers.ReLU(1.0)(x)),
    "softplus": lambda: network(act=_act("softplus")),
    "hard sigmoid": lambda: network(act=_act("hard_sigmoid")),
    # How it ends.
    "pooling keeps axes": lambda: network(
        end=lambda x: layers.Flatten()(
            layers.GlobalAveragePooling2D(keepdims=True)(x)
        )
    ),
    "largest in place of mean": lambda: network(
        end=lambda x: layers.Dense(10)(layers.GlobalMaxPooling2D()(x))
    ),
    "flattened": lambda: network(
        end=lambda x: layers.Dense(10)(layers.Flatten()(x)), width=64
    ),
    "ends in a 1x1 on one pixel": lambda: network(end=_convolution_head),
    "ends in two 1x1 on one pixel": lambda: network(end=_two_layers),
    "1x1 on one pixel, then a mean": lambda: network(end=_closed_head),
    "large dense head": lambda: network(end=_big_head),
    "a map as second output": lambda: network(end=_two_outputs),
    "read inside and outside": lambda: network(end=_pooled_and_map),
    "depth to space": lambda: network(
        end=lambda x: layers.Lambda(
            lambda y: tf.nn.depth_to_space(y, 2),
            output_shape=(2 * x.shape[1], 2 * x.shape[2], x.shape[3] // 4),
        )(x)
    ),
    # How many zeros.
    "60 % zeros": lambda: network(zeros=0.6),
    "66 % zeros": lambda: network(zeros=0.66),
    "67 % zeros": lambda: network(zeros=0.67),
    "80 % zeros": lambda: network(zeros=0.8),
    "20 % zeros": lambda: network(zeros=0.2),
}
