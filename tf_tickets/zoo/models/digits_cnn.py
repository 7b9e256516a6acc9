"""A convolutional network for the 8x8 digits: real training in seconds."""

from __future__ import annotations

import keras

from tf_tickets.zoo.models.blocks import Blocks, Initializer


def digits_cnn(
    *,
    input_shape: tuple[int, int, int] = (8, 8, 1),
    classes: int = 10,
    affine: bool = True,
    bias: bool = True,
    kernel_initializer: Initializer = "he_normal",
    weight_decay: float = 0.0,
    name: str = "digits_cnn",
) -> keras.Model:
    """Two normalised convolutions and a dense layer: 61,280 weights.

    The weights by layer, on 8x8x1 images: 288, 18,432, 40,960 and 1,600.
    Small enough to draw a ticket on two CPU cores while one looks on, and
    with everything the methods ask for: convolutions, scaled normalisation,
    a dense layer wide enough to be pruned hard.

    Args:
        input_shape: Height, width and channels of an image.
        classes: Number of logits.
        affine: Whether normalisation learns a scale and an offset.
        bias: Whether the dense layers have biases. The convolutions have
            none: the normalisation after them would cancel it.
        kernel_initializer: Initializer of every kernel.
        weight_decay: Decay of every trainable parameter, as an L2 penalty of
            half that factor: what PyTorch's `SGD(weight_decay=...)` does.
        name: Name of the model.

    Returns:
        A functional model that returns logits.

    Raises:
        ValueError: If an option is out of its range.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.digits_cnn(affine=False, bias=False).count_params() - 2 * 96
    61280
    """
    blocks = Blocks(
        affine=affine,
        bias=bias,
        kernel_initializer=kernel_initializer,
        weight_decay=weight_decay,
    )
    image = x = blocks.input(input_shape, classes)
    for index, filters in enumerate((32, 64), start=1):
        x = blocks.conv(x, filters, 3, name=f"conv{index}")
        x = blocks.norm_relu(x, name=f"conv{index}")
        x = keras.layers.MaxPooling2D(2, padding="same", name=f"pool{index}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = blocks.dense(x, 160, name="dense", activation="relu")
    logits = blocks.dense(x, classes, name="classifier")
    return keras.Model(image, logits, name=name)
