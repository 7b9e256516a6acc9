"""Networks that are one chain of layers: LeNet, Conv-2 to Conv-6, VGG."""

from __future__ import annotations

import dataclasses

import keras

from tf_tickets.zoo.models.blocks import (
    Blocks,
    ClassifierBlocks,
    NormalizedBlocks,
    Shape,
    Tensor,
    network,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _MnistBlocks(Blocks):
    """Blocks for the images of MNIST."""

    input_shape: Shape = (28, 28, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _DigitsBlocks(NormalizedBlocks):
    """Blocks for the images of the digits."""

    input_shape: Shape = (8, 8, 1)


@network(_MnistBlocks)
def lenet_300_100(blocks: Blocks, image: Tensor) -> Tensor:
    """LeNet-300-100: 266,200 weights on 28x28 images.

    Reference:
        Frankle and Carbin, "The Lottery Ticket Hypothesis", ICLR 2019.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.lenet_300_100(bias=False).count_params()
    266200
    """
    x = keras.layers.Flatten(name="flatten")(image)
    x = blocks.dense(x, 300, name="dense1", activation="relu")
    x = blocks.dense(x, 100, name="dense2", activation="relu")
    return blocks.dense(x, blocks.classes, name="classifier")


@network(Blocks)
def conv2(blocks: Blocks, image: Tensor) -> Tensor:
    """Conv-2: two convolutions of 64, then 256, 256 and the classes.

    4,300,992 weights on 32x32x3 images, 38,592 of them in convolutions. No
    normalization.

    Reference:
        Frankle and Carbin, "The Lottery Ticket Hypothesis", ICLR 2019,
        figure 2.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.conv2(bias=False).count_params()
    4300992
    """
    return _conv(blocks, image, (64,))


@network(Blocks)
def conv4(blocks: Blocks, image: Tensor) -> Tensor:
    """Conv-4: two convolutions of 64, two of 128, then 256, 256, classes.

    2,425,024 weights on 32x32x3 images, 259,776 of them in convolutions. The
    reference is that of `conv2`.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.conv4(bias=False).count_params()
    2425024
    """
    return _conv(blocks, image, (64, 128))


@network(Blocks)
def conv6(blocks: Blocks, image: Tensor) -> Tensor:
    """Conv-6: two convolutions of 64, 128 and 256, then 256, 256, classes.

    2,261,184 weights on 32x32x3 images, 1,144,512 of them in convolutions
    (the paper's 1.1 million). The total of 1.7 million often quoted for this
    network does not follow from the layers it lists. The reference is that
    of `conv2`.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.conv6(bias=False).count_params()
    2261184
    """
    return _conv(blocks, image, (64, 128, 256))


def _conv(blocks: Blocks, x: Tensor, widths: tuple[int, ...]) -> Tensor:
    for stage, filters in enumerate(widths, start=1):
        for conv in (2 * stage - 1, 2 * stage):
            x = blocks.conv(
                x, filters, 3, name=f"conv{conv}", use_bias=blocks.bias
            )
            x = keras.layers.ReLU(name=f"conv{conv}_relu")(x)
        x = _pool(x, stage)
    x = keras.layers.Flatten(name="flatten")(x)
    x = blocks.dense(x, 256, name="dense1", activation="relu")
    x = blocks.dense(x, 256, name="dense2", activation="relu")
    return blocks.dense(x, blocks.classes, name="classifier")


@network(_DigitsBlocks)
def digits_cnn(blocks: NormalizedBlocks, image: Tensor) -> Tensor:
    """Two normalized convolutions and a dense layer: 61,280 weights.

    The weights by layer, on 8x8x1 images: 288, 18,432, 40,960 and 1,600.
    Small enough to draw a ticket on two CPU cores in minutes, and with
    everything the methods ask for: convolutions, scaled normalization,
    a dense layer wide enough to be pruned hard.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.digits_cnn(affine=False, bias=False).count_params() - 2 * 96
    61280
    """
    x = image
    for index, filters in enumerate((32, 64), start=1):
        x = blocks.conv(x, filters, 3, name=f"conv{index}")
        x = blocks.norm_relu(x, name=f"conv{index}")
        x = _pool(x, index)
    x = keras.layers.Flatten(name="flatten")(x)
    x = blocks.dense(x, 160, name="dense", activation="relu")
    return blocks.dense(x, blocks.classes, name="classifier")


@network(ClassifierBlocks)
def vgg16(blocks: ClassifierBlocks, image: Tensor) -> Tensor:
    """VGG-16 without its two wide dense layers: 14 layers, 14,715,584 weights.

    Thirteen 3x3 convolutions, each with batch normalization and ReLU, max
    pooling after layers 2, 4, 7, 10 and 13, and one classifier of 512 inputs.
    *Rare Gems* trains it with `affine=False, bias=False, classifier="conv"`.

    Reference:
        Sreenivasan et al., "Rare Gems", NeurIPS 2022, Table 6; Simonyan and
        Zisserman, "Very Deep Convolutional Networks", 2014.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.vgg16(classes=100).output_shape
    (None, 100)
    """
    x, layer = image, 0
    stages = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    for stage, (filters, depth) in enumerate(stages, start=1):
        for _ in range(depth):
            layer += 1
            x = blocks.conv(x, filters, 3, name=f"conv{layer}")
            x = blocks.norm_relu(x, name=f"conv{layer}")
        x = _pool(x, stage)
    return blocks.classify(x)


def _pool(x: Tensor, stage: int) -> Tensor:
    # "same" changes nothing for even sizes and lets tiny images through.
    return keras.layers.MaxPooling2D(2, padding="same", name=f"pool{stage}")(x)
