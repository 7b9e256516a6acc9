"""Conv-2, Conv-4 and Conv-6: small VGG-like networks without normalisation."""

from __future__ import annotations

import keras

from tf_tickets.zoo.models.blocks import Blocks, Initializer


def conv2(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    bias: bool = True,
    kernel_initializer: Initializer = "he_normal",
    weight_decay: float = 0.0,
    name: str = "conv2",
) -> keras.Model:
    """Conv-2: two convolutions of 64, then 256, 256 and the classes.

    4,300,992 weights on 32x32x3 images, 38,592 of them in convolutions.

    Args:
        input_shape: Height, width and channels of an image.
        classes: Number of logits.
        bias: Whether the layers have biases.
        kernel_initializer: Initializer of every kernel. Frankle and Carbin
            use `"glorot_normal"`.
        weight_decay: Decay of every trainable parameter, as an L2 penalty of
            half that factor: what PyTorch's `SGD(weight_decay=...)` does.
        name: Name of the model.

    Returns:
        A functional model that returns logits.

    Raises:
        ValueError: If an option is out of its range.

    Reference:
        Frankle and Carbin, "The Lottery Ticket Hypothesis", ICLR 2019,
        figure 2.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.conv2(bias=False).count_params()
    4300992
    """
    blocks = Blocks(
        bias=bias,
        kernel_initializer=kernel_initializer,
        weight_decay=weight_decay,
    )
    return _build((64,), blocks, input_shape, classes, name)


def conv4(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    bias: bool = True,
    kernel_initializer: Initializer = "he_normal",
    weight_decay: float = 0.0,
    name: str = "conv4",
) -> keras.Model:
    """Conv-4: two convolutions of 64, two of 128, then 256, 256, classes.

    2,425,024 weights on 32x32x3 images, 259,776 of them in convolutions.
    Arguments, return value and errors are those of `conv2`.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.conv4(bias=False).count_params()
    2425024
    """
    blocks = Blocks(
        bias=bias,
        kernel_initializer=kernel_initializer,
        weight_decay=weight_decay,
    )
    return _build((64, 128), blocks, input_shape, classes, name)


def conv6(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    bias: bool = True,
    kernel_initializer: Initializer = "he_normal",
    weight_decay: float = 0.0,
    name: str = "conv6",
) -> keras.Model:
    """Conv-6: two convolutions of 64, 128 and 256, then 256, 256, classes.

    2,261,184 weights on 32x32x3 images, 1,144,512 of them in convolutions
    (the paper's 1.1 million). The total of 1.7 million often quoted for this
    network does not follow from the layers it lists. Arguments, return value
    and errors are those of `conv2`.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.conv6(bias=False).count_params()
    2261184
    """
    blocks = Blocks(
        bias=bias,
        kernel_initializer=kernel_initializer,
        weight_decay=weight_decay,
    )
    return _build((64, 128, 256), blocks, input_shape, classes, name)


def _build(
    widths: tuple[int, ...],
    blocks: Blocks,
    input_shape: tuple[int, int, int],
    classes: int,
    name: str,
) -> keras.Model:
    image = x = blocks.input(input_shape, classes)
    for stage, filters in enumerate(widths, start=1):
        for conv in (2 * stage - 1, 2 * stage):
            x = blocks.conv(
                x, filters, 3, name=f"conv{conv}", use_bias=blocks.bias
            )
            x = keras.layers.ReLU(name=f"conv{conv}_relu")(x)
        # "same" changes nothing for even sizes and lets tiny images through.
        x = keras.layers.MaxPooling2D(2, padding="same", name=f"pool{stage}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = blocks.dense(x, 256, name="dense1", activation="relu")
    x = blocks.dense(x, 256, name="dense2", activation="relu")
    logits = blocks.dense(x, classes, name="classifier")
    return keras.Model(image, logits, name=name)
