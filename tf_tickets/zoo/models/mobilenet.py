"""MobileNet V1 and V2 in the forms used on CIFAR."""

from __future__ import annotations

import keras

from tf_tickets.zoo.models.blocks import Blocks, Initializer

# Filters and strides of each depthwise-separable block.
_V1 = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *(((512, 1),) * 5),
    (1024, 2),
    (1024, 1),
)

# Expansion, filters, number of blocks, strides of the first of them.
_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v1(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    affine: bool = True,
    bias: bool = True,
    kernel_initializer: Initializer = "he_normal",
    weight_decay: float = 0.0,
    name: str = "mobilenet_v1",
) -> keras.Model:
    """MobileNet for CIFAR: a stem of stride 1 and thirteen separable blocks.

    3,195,328 weights.

    Args:
        input_shape: Height, width and channels of an image.
        classes: Number of logits.
        affine: Whether normalisation learns a scale and an offset.
        bias: Whether the classifier has a bias. The convolutions have none:
            the normalisation after them would cancel it.
        kernel_initializer: Initializer of every kernel. Depthwise kernels
            get the fan-in of one channel, as in PyTorch.
        weight_decay: Decay of every trainable parameter, as an L2 penalty of
            half that factor: what PyTorch's `SGD(weight_decay=...)` does.
        name: Name of the model.

    Returns:
        A functional model that returns logits.

    Raises:
        ValueError: If an option is out of its range.

    Reference:
        Howard et al., "MobileNets", 2017.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.mobilenet_v1(input_shape=(64, 64, 3), classes=200).output_shape
    (None, 200)
    """
    blocks = Blocks(
        affine=affine,
        bias=bias,
        kernel_initializer=kernel_initializer,
        weight_decay=weight_decay,
    )
    image = blocks.input(input_shape, classes)
    x = blocks.conv(image, 32, 3, name="stem_conv")
    x = blocks.norm_relu(x, name="stem")
    for index, (filters, strides) in enumerate(_V1, start=1):
        x = blocks.depthwise(x, strides=strides, name=f"block{index}_depthwise")
        x = blocks.norm_relu(x, name=f"block{index}_depthwise")
        x = blocks.conv(x, filters, 1, name=f"block{index}_conv")
        x = blocks.norm_relu(x, name=f"block{index}_conv")
    logits = blocks.classify(x, classes)
    return keras.Model(image, logits, name=name)


def mobilenet_v2(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    affine: bool = True,
    bias: bool = True,
    kernel_initializer: Initializer = "he_normal",
    weight_decay: float = 0.0,
    name: str = "mobilenet_v2",
) -> keras.Model:
    """MobileNet-V2 for CIFAR: 2,261,824 weights.

    The seventeen inverted residual blocks of *Rare Gems*' table: ReLU in
    place of ReLU6, strides of 1 in the stem and in the first two stages, an
    expansion even where it expands by 1, and, in blocks that keep the size
    but change the channels, a 1x1 convolution as the shortcut (58,240 of the
    weights, which the table leaves out; the implementation it names has
    them). *Rare Gems* trains it with `affine=False, bias=False`. Arguments,
    return value and errors are those of `mobilenet_v1`.

    Reference:
        Sreenivasan et al., "Rare Gems", NeurIPS 2022, Table 7; Sandler et
        al., "MobileNetV2", CVPR 2018.

    Example:

    >>> from tf_tickets.zoo import models
    >>> model = models.mobilenet_v2()
    >>> model.get_layer("block17_project_conv").output.shape
    (None, 4, 4, 320)
    """
    blocks = Blocks(
        affine=affine,
        bias=bias,
        kernel_initializer=kernel_initializer,
        weight_decay=weight_decay,
    )
    image = blocks.input(input_shape, classes)
    x = blocks.conv(image, 32, 3, name="stem_conv")
    x = blocks.norm_relu(x, name="stem")
    index = 0
    for expansion, filters, depth, strides in _V2:
        for block in range(depth):
            index += 1
            x = _inverted(
                blocks,
                x,
                expansion,
                filters,
                strides if block == 0 else 1,
                f"block{index}",
            )
    x = blocks.conv(x, 1280, 1, name="head_conv")
    x = blocks.norm_relu(x, name="head")
    logits = blocks.classify(x, classes)
    return keras.Model(image, logits, name=name)


def _inverted(
    blocks: Blocks,
    x: keras.KerasTensor,
    expansion: int,
    filters: int,
    strides: int,
    name: str,
) -> keras.KerasTensor:
    shortcut = x
    channels = x.shape[-1]
    x = blocks.conv(x, channels * expansion, 1, name=f"{name}_expand_conv")
    x = blocks.norm_relu(x, name=f"{name}_expand")
    x = blocks.depthwise(x, strides=strides, name=f"{name}_depthwise")
    x = blocks.norm_relu(x, name=f"{name}_depthwise")
    x = blocks.conv(x, filters, 1, name=f"{name}_project_conv")
    x = blocks.norm(x, name=f"{name}_project_bn")
    if strides > 1:
        return x
    if channels != filters:
        shortcut = blocks.conv(
            shortcut, filters, 1, name=f"{name}_shortcut_conv"
        )
        shortcut = blocks.norm(shortcut, name=f"{name}_shortcut_bn")
    return keras.layers.Add(name=f"{name}_add")([x, shortcut])
