"""ResNet-18, -34 and -50, with a stem for small images or for ImageNet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import keras

from tf_tickets.zoo.models.blocks import Blocks, Initializer

Stem: TypeAlias = Literal["auto", "cifar", "imagenet"]
_Block: TypeAlias = Callable[
    [Blocks, keras.KerasTensor, int, int, str], keras.KerasTensor
]


def resnet18(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    stem: Stem = "auto",
    affine: bool = True,
    bias: bool = True,
    kernel_initializer: Initializer = "he_normal",
    weight_decay: float = 0.0,
    name: str = "resnet18",
) -> keras.Model:
    """ResNet-18: 11,159,232 weights in convolutions, and the classifier.

    Two basic blocks in each of four stages of 64, 128, 256 and 512 filters;
    shortcuts that change the shape are 1x1 convolutions with normalisation.

    Args:
        input_shape: Height, width and channels of an image.
        classes: Number of logits.
        stem: `"cifar"`: a 3x3 convolution, no pooling. `"imagenet"`: a 7x7
            convolution of stride 2 and 3x3 max pooling of stride 2. `"auto"`:
            the first up to 64 pixels, the second above. *Rare Gems* prints
            the ImageNet stem for ResNet-50 and, for ResNet-18, an odd 3x3
            one with stride 2, padding 3 and max pooling.
        affine: Whether normalisation learns a scale and an offset.
        bias: Whether the classifier has a bias. The convolutions have none:
            the normalisation after them would cancel it.
        kernel_initializer: Initializer of every kernel.
        weight_decay: Decay of every trainable parameter, as an L2 penalty of
            half that factor: what PyTorch's `SGD(weight_decay=...)` does.
        name: Name of the model.

    Returns:
        A functional model that returns logits.

    Raises:
        ValueError: If an option is out of its range.

    Reference:
        He et al., "Deep Residual Learning", CVPR 2016; Sreenivasan et al.,
        "Rare Gems", NeurIPS 2022, Table 5.

    Example:

    >>> from tf_tickets.zoo import models
    >>> model = models.resnet18(input_shape=(64, 64, 3), classes=200)
    >>> model.get_layer("stage4_block2_conv2").output.shape
    (None, 8, 8, 512)
    """
    blocks = Blocks(
        affine=affine,
        bias=bias,
        kernel_initializer=kernel_initializer,
        weight_decay=weight_decay,
    )
    depths = (2, 2, 2, 2)
    return _build(_basic, depths, blocks, input_shape, classes, stem, name)


def resnet34(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    stem: Stem = "auto",
    affine: bool = True,
    bias: bool = True,
    kernel_initializer: Initializer = "he_normal",
    weight_decay: float = 0.0,
    name: str = "resnet34",
) -> keras.Model:
    """ResNet-34: 3, 4, 6 and 3 basic blocks.

    Arguments, return value and errors are those of `resnet18`.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.resnet34(classes=100).output_shape
    (None, 100)
    """
    blocks = Blocks(
        affine=affine,
        bias=bias,
        kernel_initializer=kernel_initializer,
        weight_decay=weight_decay,
    )
    depths = (3, 4, 6, 3)
    return _build(_basic, depths, blocks, input_shape, classes, stem, name)


def resnet50(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    stem: Stem = "auto",
    affine: bool = True,
    bias: bool = True,
    kernel_initializer: Initializer = "he_normal",
    weight_decay: float = 0.0,
    name: str = "resnet50",
) -> keras.Model:
    """ResNet-50: 3, 4, 6 and 3 bottleneck blocks, strides in the 3x3 layer.

    Arguments, return value and errors are those of `resnet18`. For weights
    trained on ImageNet see `keras.applications.ResNet50`.

    Example:

    >>> from tf_tickets.zoo import models
    >>> model = models.resnet50(input_shape=(224, 224, 3), classes=101)
    >>> model.get_layer("stage4_block3_conv3").output.shape
    (None, 7, 7, 2048)
    """
    blocks = Blocks(
        affine=affine,
        bias=bias,
        kernel_initializer=kernel_initializer,
        weight_decay=weight_decay,
    )
    depths = (3, 4, 6, 3)
    return _build(_bottleneck, depths, blocks, input_shape, classes, stem, name)


def _build(
    block: _Block,
    depths: tuple[int, ...],
    blocks: Blocks,
    input_shape: tuple[int, int, int],
    classes: int,
    stem: Stem,
    name: str,
) -> keras.Model:
    image = blocks.input(input_shape, classes)
    x = _stem(blocks, image, stem)
    for stage, depth in enumerate(depths, start=1):
        for index in range(1, depth + 1):
            strides = 2 if stage > 1 and index == 1 else 1
            x = block(
                blocks,
                x,
                32 * 2**stage,
                strides,
                f"stage{stage}_block{index}",
            )
    logits = blocks.classify(x, classes)
    return keras.Model(image, logits, name=name)


def _stem(
    blocks: Blocks, image: keras.KerasTensor, stem: Stem
) -> keras.KerasTensor:
    if stem not in ("auto", "cifar", "imagenet"):
        raise ValueError(
            '`stem` must be "auto", "cifar" or "imagenet". '
            f"Received: stem={stem!r}"
        )
    small = max(image.shape[1:3]) <= 64
    if stem == "cifar" or (stem == "auto" and small):
        x = blocks.conv(image, 64, 3, name="stem_conv")
        return blocks.norm_relu(x, name="stem")
    x = blocks.conv(image, 64, 7, strides=2, name="stem_conv")
    x = blocks.norm_relu(x, name="stem")
    # After a ReLU, padding with zeros is padding with minus infinity.
    x = keras.layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
    return keras.layers.MaxPooling2D(3, strides=2, name="stem_pool")(x)


def _basic(
    blocks: Blocks, x: keras.KerasTensor, filters: int, strides: int, name: str
) -> keras.KerasTensor:
    shortcut = _shortcut(blocks, x, filters, strides, name)
    x = blocks.conv(x, filters, 3, strides=strides, name=f"{name}_conv1")
    x = blocks.norm_relu(x, name=f"{name}_conv1")
    x = blocks.conv(x, filters, 3, name=f"{name}_conv2")
    x = blocks.norm(x, name=f"{name}_conv2_bn")
    x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _bottleneck(
    blocks: Blocks, x: keras.KerasTensor, filters: int, strides: int, name: str
) -> keras.KerasTensor:
    shortcut = _shortcut(blocks, x, 4 * filters, strides, name)
    x = blocks.conv(x, filters, 1, name=f"{name}_conv1")
    x = blocks.norm_relu(x, name=f"{name}_conv1")
    x = blocks.conv(x, filters, 3, strides=strides, name=f"{name}_conv2")
    x = blocks.norm_relu(x, name=f"{name}_conv2")
    x = blocks.conv(x, 4 * filters, 1, name=f"{name}_conv3")
    x = blocks.norm(x, name=f"{name}_conv3_bn")
    x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _shortcut(
    blocks: Blocks, x: keras.KerasTensor, filters: int, strides: int, name: str
) -> keras.KerasTensor:
    if strides == 1 and x.shape[-1] == filters:
        return x
    x = blocks.conv(
        x, filters, 1, strides=strides, name=f"{name}_shortcut_conv"
    )
    return blocks.norm(x, name=f"{name}_shortcut_bn")
