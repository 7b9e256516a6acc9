"""Wide residual networks."""

from __future__ import annotations

import keras

from tf_tickets.zoo.models.blocks import Blocks, Initializer


def wide_resnet_28_2(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    affine: bool = True,
    bias: bool = True,
    kernel_initializer: Initializer = "he_normal",
    weight_decay: float = 0.0,
    name: str = "wide_resnet_28_2",
) -> keras.Model:
    """WideResNet-28-2: 1,463,984 weights.

    Three stages of four pre-activation blocks with 32, 64 and 128 filters;
    shortcuts that change the shape are 1x1 convolutions. *Rare Gems* trains
    it with `affine=False, bias=False`.

    Args:
        input_shape: Height, width and channels of an image.
        classes: Number of logits.
        affine: Whether normalisation learns a scale and an offset.
        bias: Whether the classifier has a bias. The convolutions have none.
        kernel_initializer: Initializer of every kernel.
        weight_decay: Decay of every trainable parameter, as an L2 penalty of
            half that factor: what PyTorch's `SGD(weight_decay=...)` does.
        name: Name of the model.

    Returns:
        A functional model that returns logits.

    Raises:
        ValueError: If an option is out of its range.

    Reference:
        Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016;
        Sreenivasan et al., "Rare Gems", NeurIPS 2022, Table 5.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.wide_resnet_28_2().get_layer("final_relu").output.shape
    (None, 8, 8, 128)
    """
    blocks = Blocks(
        affine=affine,
        bias=bias,
        kernel_initializer=kernel_initializer,
        weight_decay=weight_decay,
    )
    image = blocks.input(input_shape, classes)
    x = blocks.conv(image, 16, 3, name="stem_conv")
    for stage, filters in enumerate((32, 64, 128), start=1):
        for block in range(1, 5):
            strides = 2 if stage > 1 and block == 1 else 1
            x = _block(
                blocks, x, filters, strides, f"stage{stage}_block{block}"
            )
    x = blocks.norm_relu(x, name="final")
    logits = blocks.classify(x, classes)
    return keras.Model(image, logits, name=name)


def _block(
    blocks: Blocks, x: keras.KerasTensor, filters: int, strides: int, name: str
) -> keras.KerasTensor:
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
