"""LeNet: the fully connected network of the first lottery tickets."""

from __future__ import annotations

import keras

from tf_tickets.zoo.models.blocks import Blocks, Initializer


def lenet_300_100(
    *,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 10,
    bias: bool = True,
    kernel_initializer: Initializer = "he_normal",
    weight_decay: float = 0.0,
    name: str = "lenet_300_100",
) -> keras.Model:
    """LeNet-300-100: 266,200 weights on 28x28 images.

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
        Frankle and Carbin, "The Lottery Ticket Hypothesis", ICLR 2019.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.lenet_300_100(bias=False).count_params()
    266200
    """
    blocks = Blocks(
        bias=bias,
        kernel_initializer=kernel_initializer,
        weight_decay=weight_decay,
    )
    image = blocks.input(input_shape, classes)
    x = keras.layers.Flatten(name="flatten")(image)
    x = blocks.dense(x, 300, name="dense1", activation="relu")
    x = blocks.dense(x, 100, name="dense2", activation="relu")
    logits = blocks.dense(x, classes, name="classifier")
    return keras.Model(image, logits, name=name)
