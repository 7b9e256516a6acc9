"""ResNet-20, -32 and -56: the thin residual networks made for CIFAR."""

from __future__ import annotations

import keras

from tf_tickets.zoo.models.blocks import Blocks, Classifier, Initializer


def resnet20(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    affine: bool = True,
    bias: bool = True,
    classifier: Classifier = "dense",
    kernel_initializer: Initializer = "he_normal",
    weight_decay: float = 0.0,
    name: str = "resnet20",
) -> keras.Model:
    """ResNet-20 for CIFAR: 268,336 weights.

    Three stages of 16, 32 and 64 filters. Shortcuts have no parameters: where
    the shape changes they take every second pixel and pad the channels with
    zeros on both sides (option A). *Rare Gems* trains it with `affine=False,
    bias=False, classifier="conv"`.

    Args:
        input_shape: Height, width and channels of an image.
        classes: Number of logits.
        affine: Whether normalisation learns a scale and an offset.
        bias: Whether the classifier has a bias. The convolutions have none:
            the normalisation after them would cancel it.
        classifier: `"dense"`, or `"conv"` for a 1x1 convolution of the same
            size.
        kernel_initializer: Initializer of every kernel.
        weight_decay: Decay of every trainable parameter, as an L2 penalty of
            half that factor: what PyTorch's `SGD(weight_decay=...)` does.
        name: Name of the model.

    Returns:
        A functional model that returns logits.

    Raises:
        ValueError: If an option is out of its range.

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
    blocks = Blocks(
        affine=affine,
        bias=bias,
        kernel_initializer=kernel_initializer,
        weight_decay=weight_decay,
    )
    return _build(3, blocks, input_shape, classes, classifier, name)


def resnet32(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    affine: bool = True,
    bias: bool = True,
    classifier: Classifier = "dense",
    kernel_initializer: Initializer = "he_normal",
    weight_decay: float = 0.0,
    name: str = "resnet32",
) -> keras.Model:
    """ResNet-32 for CIFAR: 461,872 weights.

    Arguments, return value and errors are those of `resnet20`.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.resnet32(classes=100).output_shape
    (None, 100)
    """
    blocks = Blocks(
        affine=affine,
        bias=bias,
        kernel_initializer=kernel_initializer,
        weight_decay=weight_decay,
    )
    return _build(5, blocks, input_shape, classes, classifier, name)


def resnet56(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    affine: bool = True,
    bias: bool = True,
    classifier: Classifier = "dense",
    kernel_initializer: Initializer = "he_normal",
    weight_decay: float = 0.0,
    name: str = "resnet56",
) -> keras.Model:
    """ResNet-56 for CIFAR: 848,944 weights.

    Arguments, return value and errors are those of `resnet20`.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.resnet56(classes=100).output_shape
    (None, 100)
    """
    blocks = Blocks(
        affine=affine,
        bias=bias,
        kernel_initializer=kernel_initializer,
        weight_decay=weight_decay,
    )
    return _build(9, blocks, input_shape, classes, classifier, name)


def _build(
    depth: int,
    blocks: Blocks,
    input_shape: tuple[int, int, int],
    classes: int,
    classifier: Classifier,
    name: str,
) -> keras.Model:
    image = blocks.input(input_shape, classes)
    x = blocks.conv(image, 16, 3, name="stem_conv")
    x = blocks.norm_relu(x, name="stem")
    for stage, filters in enumerate((16, 32, 64), start=1):
        for block in range(1, depth + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            x = _block(
                blocks, x, filters, strides, f"stage{stage}_block{block}"
            )
    logits = blocks.classify(x, classes, classifier)
    return keras.Model(image, logits, name=name)


def _block(
    blocks: Blocks, x: keras.KerasTensor, filters: int, strides: int, name: str
) -> keras.KerasTensor:
    shortcut = x
    if strides > 1:
        shortcut = _shrink(x, filters, strides, f"{name}_shortcut")
    x = blocks.conv(x, filters, 3, strides=strides, name=f"{name}_conv1")
    x = blocks.norm_relu(x, name=f"{name}_conv1")
    x = blocks.conv(x, filters, 3, name=f"{name}_conv2")
    x = blocks.norm(x, name=f"{name}_conv2_bn")
    x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _shrink(
    x: keras.KerasTensor, filters: int, strides: int, name: str
) -> keras.KerasTensor:
    # Stock layers only, so that the model loads anywhere: pooling over one
    # pixel is subsampling, and a padding told that channels come first pads
    # the last two axes, of which the very last holds our channels.
    before = (filters - x.shape[-1]) // 2
    after = filters - x.shape[-1] - before
    x = keras.layers.MaxPooling2D(1, strides=strides, name=f"{name}_pool")(x)
    return keras.layers.ZeroPadding2D(
        ((0, 0), (before, after)),
        data_format="channels_first",
        name=f"{name}_pad",
    )(x)
