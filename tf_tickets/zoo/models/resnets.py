"""Residual networks: made for CIFAR, wide, ImageNet's, for sequences."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable
from typing import Literal, TypeAlias

import keras

from tf_tickets import checks
from tf_tickets.zoo.models.blocks import (
    ClassifierBlocks,
    NormalizedBlocks,
    SequenceBlocks,
    Tensor,
    network,
)

Stem: TypeAlias = Literal["auto", "cifar", "imagenet"]

# Of blocks, the input, filters, strides and a name, makes the output.
_Part: TypeAlias = Callable[[NormalizedBlocks, Tensor, int, int, str], Tensor]


@network(ClassifierBlocks)
def resnet20(blocks: ClassifierBlocks, image: Tensor) -> Tensor:
    """ResNet-20 for CIFAR: 268,336 weights.

    Three stages of 16, 32 and 64 filters. Shortcuts have no parameters: where
    the shape changes they take every second pixel and pad the channels with
    zeros on both sides (option A). *Rare Gems* trains it with `affine=False,
    bias=False, classifier="conv"`.

    Reference:
        He et al., "Deep Residual Learning", CVPR 2016, section 4.2;
        Sreenivasan et al., "Rare Gems", NeurIPS 2022, Table 5.

    Example:

    >>> from tf_tickets.zoo import models
    >>> model = models.resnet20()
    >>> model.count_params() - sum(
    ...     w.shape[0] for w in model.non_trainable_weights)
    269722
    """
    return _thin(blocks, image, 3)


@network(ClassifierBlocks)
def resnet32(blocks: ClassifierBlocks, image: Tensor) -> Tensor:
    """ResNet-32 for CIFAR: 461,872 weights; see `resnet20`.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.resnet32(classes=100).output_shape
    (None, 100)
    """
    return _thin(blocks, image, 5)


@network(ClassifierBlocks)
def resnet56(blocks: ClassifierBlocks, image: Tensor) -> Tensor:
    """ResNet-56 for CIFAR: 848,944 weights; see `resnet20`.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.resnet56(classes=100).output_shape
    (None, 100)
    """
    return _thin(blocks, image, 9)


@network(NormalizedBlocks)
def wide_resnet_28_2(blocks: NormalizedBlocks, image: Tensor) -> Tensor:
    """WideResNet-28-2: 1,463,984 weights.

    Three stages of four pre-activation blocks with 32, 64 and 128 filters;
    shortcuts that change the shape are 1x1 convolutions. *Rare Gems* trains
    it with `affine=False, bias=False`.

    Reference:
        Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016;
        Sreenivasan et al., "Rare Gems", NeurIPS 2022, Table 5.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.wide_resnet_28_2().get_layer("final_relu").output.shape
    (None, 8, 8, 128)
    """
    x = blocks.conv(image, 16, 3, name="stem_conv")
    x = _stages(blocks, x, _preactivated, (32, 64, 128), (4, 4, 4))
    x = blocks.norm_relu(x, name="final")
    return blocks.classify(x)


@network(NormalizedBlocks)
def preresnet101(blocks: NormalizedBlocks, image: Tensor) -> Tensor:
    """Pre-activation ResNet-101 for CIFAR, of the Early-Bird paper.

    Three stages of eleven bottleneck blocks with 16, 32 and 64 filters, four
    times as many at their ends; shortcuts that change the shape are 1x1
    convolutions of what came in, without normalization. 1,039,280 weights.

    Reference:
        He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016;
        You et al., "Drawing Early-Bird Tickets", ICLR 2020.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.preresnet101().get_layer("final_relu").output.shape
    (None, 8, 8, 256)
    """
    return _preresnet(blocks, image, 11)


@network(NormalizedBlocks)
def preresnet29(blocks: NormalizedBlocks, image: Tensor) -> Tensor:
    """Pre-activation ResNet-29 for CIFAR: `preresnet101` with three blocks.

    Three stages of three bottleneck blocks with 16, 32 and 64 filters, four
    times as many at their ends. 308,144 weights.

    Reference:
        He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.preresnet29().get_layer("final_relu").output.shape
    (None, 8, 8, 256)
    """
    return _preresnet(blocks, image, 3)


def _preresnet(blocks: NormalizedBlocks, image: Tensor, depth: int) -> Tensor:
    x = blocks.conv(image, 16, 3, name="stem_conv")
    x = _stages(blocks, x, _prebottleneck, (16, 32, 64), (depth,) * 3)
    x = blocks.norm_relu(x, name="final")
    return blocks.classify(x)


@network(SequenceBlocks)
def resnet1d(blocks: SequenceBlocks, sequence: Tensor) -> Tensor:
    """ResNet-20 along one axis, for MNIST-1D: 92,336 weights.

    Three stages of three basic blocks with 16, 32 and 64 filters of width 3;
    shortcuts that change the shape are convolutions of width 1 with
    normalization. As deep as the networks of the papers, and small enough for
    two CPU cores.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.resnet1d(input_shape=(40, 1)).output_shape
    (None, 10)
    """
    x = blocks.conv(sequence, 16, 3, name="stem_conv")
    x = blocks.norm_relu(x, name="stem")
    x = _stages(blocks, x, _basic, (16, 32, 64), (3, 3, 3))
    return blocks.classify(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StemBlocks(NormalizedBlocks):
    """Blocks of networks with a stem for small images or for ImageNet.

    Args:
        stem: `"cifar"`: a 3x3 convolution, no pooling. `"imagenet"`: a 7x7
            convolution of stride 2 and 3x3 max pooling of stride 2. `"auto"`:
            the first up to 64 pixels, the second above. *Rare Gems* prints
            the ImageNet stem for ResNet-50 and, for ResNet-18, an odd 3x3
            one with stride 2, padding 3 and max pooling.
        **options: Those of `NormalizedBlocks`.
    """

    stem: Stem = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("stem", self.stem, typing.get_args(Stem))


@network(StemBlocks)
def resnet18(blocks: StemBlocks, image: Tensor) -> Tensor:
    """ResNet-18: 11,159,232 weights in convolutions, and the classifier.

    Two basic blocks in each of four stages of 64, 128, 256 and 512 filters;
    shortcuts that change the shape are 1x1 convolutions with normalization.

    Reference:
        He et al., "Deep Residual Learning", CVPR 2016; Sreenivasan et al.,
        "Rare Gems", NeurIPS 2022, Table 5.

    Example:

    >>> from tf_tickets.zoo import models
    >>> model = models.resnet18(input_shape=(64, 64, 3), classes=200)
    >>> model.get_layer("stage4_block2_conv2").output.shape
    (None, 8, 8, 512)
    """
    return _wide(blocks, image, _basic, (2, 2, 2, 2))


@network(StemBlocks)
def resnet34(blocks: StemBlocks, image: Tensor) -> Tensor:
    """ResNet-34: 3, 4, 6 and 3 basic blocks; see `resnet18`.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.resnet34(classes=100).output_shape
    (None, 100)
    """
    return _wide(blocks, image, _basic, (3, 4, 6, 3))


@network(StemBlocks)
def resnet50(blocks: StemBlocks, image: Tensor) -> Tensor:
    """ResNet-50: 3, 4, 6 and 3 bottleneck blocks, strides in the 3x3 layer.

    Otherwise as `resnet18`. For weights trained on ImageNet see
    `keras.applications.ResNet50`.

    Example:

    >>> from tf_tickets.zoo import models
    >>> model = models.resnet50(input_shape=(224, 224, 3), classes=101)
    >>> model.get_layer("stage4_block3_conv3").output.shape
    (None, 7, 7, 2048)
    """
    return _wide(blocks, image, _bottleneck, (3, 4, 6, 3))


def _thin(blocks: NormalizedBlocks, image: Tensor, depth: int) -> Tensor:
    x = blocks.conv(image, 16, 3, name="stem_conv")
    x = blocks.norm_relu(x, name="stem")
    part = functools.partial(_basic, shortcut=_subsample)
    x = _stages(blocks, x, part, (16, 32, 64), (depth,) * 3)
    return blocks.classify(x)


def _wide(
    blocks: StemBlocks, image: Tensor, part: _Part, depths: tuple[int, ...]
) -> Tensor:
    small = max(image.shape[1:3]) <= 64
    if blocks.stem == "cifar" or (blocks.stem == "auto" and small):
        x = blocks.conv(image, 64, 3, name="stem_conv")
        x = blocks.norm_relu(x, name="stem")
    else:
        x = blocks.conv(image, 64, 7, strides=2, name="stem_conv")
        x = blocks.norm_relu(x, name="stem")
        # After a ReLU, padding with zeros is padding with minus infinity.
        x = keras.layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
        x = keras.layers.MaxPooling2D(3, strides=2, name="stem_pool")(x)
    x = _stages(blocks, x, part, (64, 128, 256, 512), depths)
    return blocks.classify(x)


def _stages(
    blocks: NormalizedBlocks,
    x: Tensor,
    part: _Part,
    widths: tuple[int, ...],
    depths: tuple[int, ...],
) -> Tensor:
    """Blocks of every stage; all but the first stage begin with strides."""
    for stage, filters in enumerate(widths, start=1):
        for index in range(1, depths[stage - 1] + 1):
            strides = 2 if stage > 1 and index == 1 else 1
            x = part(blocks, x, filters, strides, f"stage{stage}_block{index}")
    return x


def _project(
    blocks: NormalizedBlocks, x: Tensor, filters: int, strides: int, name: str
) -> Tensor:
    """A shortcut that is a convolution where it has to change the shape."""
    if strides == 1 and x.shape[-1] == filters:
        return x
    x = blocks.conv(
        x, filters, 1, strides=strides, name=f"{name}_shortcut_conv"
    )
    return blocks.norm(x, name=f"{name}_shortcut_bn")


def _subsample(
    blocks: NormalizedBlocks, x: Tensor, filters: int, strides: int, name: str
) -> Tensor:
    """A shortcut without parameters."""
    if strides == 1:
        return x
    # Stock layers only, so that the model loads anywhere: pooling over one
    # pixel is subsampling, and a padding told that channels come first pads
    # the last two axes, of which the very last holds our channels.
    before = (filters - x.shape[-1]) // 2
    after = filters - x.shape[-1] - before
    pool = keras.layers.MaxPooling2D(
        1, strides=strides, name=f"{name}_shortcut_pool"
    )
    pad = keras.layers.ZeroPadding2D(
        ((0, 0), (before, after)),
        data_format="channels_first",
        name=f"{name}_shortcut_pad",
    )
    return pad(pool(x))


def _basic(
    blocks: NormalizedBlocks,
    x: Tensor,
    filters: int,
    strides: int,
    name: str,
    *,
    shortcut: _Part = _project,
) -> Tensor:
    """Two 3x3 convolutions."""
    carried = shortcut(blocks, x, filters, strides, name)
    x = blocks.conv(x, filters, 3, strides=strides, name=f"{name}_conv1")
    x = blocks.norm_relu(x, name=f"{name}_conv1")
    x = blocks.conv(x, filters, 3, name=f"{name}_conv2")
    return _joined(blocks, x, carried, name, last="conv2")


def _bottleneck(
    blocks: NormalizedBlocks, x: Tensor, filters: int, strides: int, name: str
) -> Tensor:
    """A 3x3 convolution between two 1x1 ones."""
    carried = _project(blocks, x, 4 * filters, strides, name)
    x = blocks.conv(x, filters, 1, name=f"{name}_conv1")
    x = blocks.norm_relu(x, name=f"{name}_conv1")
    x = blocks.conv(x, filters, 3, strides=strides, name=f"{name}_conv2")
    x = blocks.norm_relu(x, name=f"{name}_conv2")
    x = blocks.conv(x, 4 * filters, 1, name=f"{name}_conv3")
    return _joined(blocks, x, carried, name, last="conv3")


def _joined(
    blocks: NormalizedBlocks,
    x: Tensor,
    shortcut: Tensor,
    name: str,
    *,
    last: str,
) -> Tensor:
    x = blocks.norm(x, name=f"{name}_{last}_bn")
    x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _preactivated(
    blocks: NormalizedBlocks, x: Tensor, filters: int, strides: int, name: str
) -> Tensor:
    """Two 3x3 convolutions, each after its normalization and activation."""
    shortcut = x
    x = blocks.norm_relu(x, name=f"{name}_conv1")
    if shortcut.shape[-1] != filters or strides > 1:
        # The shortcut branches off after the activation only where it must
        # be a convolution; elsewhere it carries the block's raw input.
        shortcut = blocks.conv(
            x, filters, 1, strides=strides, name=f"{name}_shortcut_conv"
        )
    x = blocks.conv(x, filters, 3, strides=strides, name=f"{name}_conv1")
    x = blocks.norm_relu(x, name=f"{name}_conv2")
    x = blocks.conv(x, filters, 3, name=f"{name}_conv2")
    return keras.layers.Add(name=f"{name}_add")([x, shortcut])


def _prebottleneck(
    blocks: NormalizedBlocks, x: Tensor, filters: int, strides: int, name: str
) -> Tensor:
    """A 3x3 convolution between two 1x1 ones, all after their activation."""
    shortcut = x
    if shortcut.shape[-1] != 4 * filters or strides > 1:
        shortcut = blocks.conv(
            x, 4 * filters, 1, strides=strides, name=f"{name}_shortcut_conv"
        )
    x = blocks.norm_relu(x, name=f"{name}_conv1")
    x = blocks.conv(x, filters, 1, name=f"{name}_conv1")
    x = blocks.norm_relu(x, name=f"{name}_conv2")
    x = blocks.conv(x, filters, 3, strides=strides, name=f"{name}_conv2")
    x = blocks.norm_relu(x, name=f"{name}_conv3")
    x = blocks.conv(x, 4 * filters, 1, name=f"{name}_conv3")
    return keras.layers.Add(name=f"{name}_add")([x, shortcut])
