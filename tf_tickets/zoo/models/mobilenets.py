"""MobileNet V1 and V2 in the forms used on CIFAR."""

from __future__ import annotations

import keras

from tf_tickets.zoo.models.blocks import NormalizedBlocks, Tensor, network

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


@network(NormalizedBlocks)
def mobilenet_v1(blocks: NormalizedBlocks, image: Tensor) -> Tensor:
    """MobileNet for CIFAR: a stem of stride 1 and thirteen separable blocks.

    3,195,328 weights.

    Reference:
        Howard et al., "MobileNets", 2017.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.mobilenet_v1(input_shape=(64, 64, 3), classes=200).output_shape
    (None, 200)
    """
    x = blocks.conv(image, 32, 3, name="stem_conv")
    x = blocks.norm_relu(x, name="stem")
    for index, (filters, strides) in enumerate(_V1, start=1):
        x = _depthwise(blocks, x, strides, f"block{index}")
        x = blocks.conv(x, filters, 1, name=f"block{index}_conv")
        x = blocks.norm_relu(x, name=f"block{index}_conv")
    return blocks.classify(x)


@network(NormalizedBlocks)
def mobilenet_v2(blocks: NormalizedBlocks, image: Tensor) -> Tensor:
    """MobileNet-V2 for CIFAR: 2,261,824 weights.

    The seventeen inverted residual blocks of *Rare Gems*' table: ReLU in
    place of ReLU6, strides of 1 in the stem and in the first two stages, an
    expansion even where it expands by 1, and, in blocks that keep the size
    but change the channels, a 1x1 convolution as the shortcut (58,240 of the
    weights, which the table leaves out; the implementation it names has
    them). *Rare Gems* trains it with `affine=False, bias=False`.

    Reference:
        Sreenivasan et al., "Rare Gems", NeurIPS 2022, Table 7; Sandler et
        al., "MobileNetV2", CVPR 2018.

    Example:

    >>> from tf_tickets.zoo import models
    >>> model = models.mobilenet_v2()
    >>> model.get_layer("block17_project_conv").output.shape
    (None, 4, 4, 320)
    """
    x = blocks.conv(image, 32, 3, name="stem_conv")
    x = blocks.norm_relu(x, name="stem")
    index = 0
    for expansion, filters, depth, first in _V2:
        for strides in (first, *(1,) * (depth - 1)):
            index += 1
            name = f"block{index}"
            x = _inverted(blocks, x, expansion, filters, strides, name)
    x = blocks.conv(x, 1280, 1, name="head_conv")
    x = blocks.norm_relu(x, name="head")
    return blocks.classify(x)


def _inverted(
    blocks: NormalizedBlocks,
    x: Tensor,
    expansion: int,
    filters: int,
    strides: int,
    name: str,
) -> Tensor:
    shortcut = x
    channels = x.shape[-1]
    x = blocks.conv(x, channels * expansion, 1, name=f"{name}_expand_conv")
    x = blocks.norm_relu(x, name=f"{name}_expand")
    x = _depthwise(blocks, x, strides, name)
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


def _depthwise(
    blocks: NormalizedBlocks, x: Tensor, strides: int, name: str
) -> Tensor:
    x = blocks.depthwise(x, strides=strides, name=f"{name}_depthwise")
    return blocks.norm_relu(x, name=f"{name}_depthwise")
