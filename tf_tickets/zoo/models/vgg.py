"""VGG-16 in the form of the lottery-ticket papers."""

from __future__ import annotations

import keras

from tf_tickets.zoo.models.blocks import Blocks, Classifier, Initializer

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def vgg16(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    affine: bool = True,
    bias: bool = True,
    classifier: Classifier = "dense",
    kernel_initializer: Initializer = "he_normal",
    weight_decay: float = 0.0,
    name: str = "vgg16",
) -> keras.Model:
    """VGG-16 without its two wide dense layers: 14 layers, 14,715,584 weights.

    Thirteen 3x3 convolutions, each with batch normalisation and ReLU, max
    pooling after layers 2, 4, 7, 10 and 13, and one classifier of 512 inputs.
    *Rare Gems* trains it with `affine=False, bias=False, classifier="conv"`.

    Args:
        input_shape: Height, width and channels of an image.
        classes: Number of logits.
        affine: Whether normalisation learns a scale and an offset.
        bias: Whether the classifier has a bias. The convolutions have none:
            the normalisation after them would cancel it.
        classifier: `"dense"`, or `"conv"` for a 1x1 convolution of the same
            size, as in the table of the paper.
        kernel_initializer: Initializer of every kernel.
        weight_decay: Decay of every trainable parameter, as an L2 penalty of
            half that factor: what PyTorch's `SGD(weight_decay=...)` does.
        name: Name of the model.

    Returns:
        A functional model that returns logits.

    Raises:
        ValueError: If an option is out of its range.

    Reference:
        Sreenivasan et al., "Rare Gems", NeurIPS 2022, Table 6; Simonyan and
        Zisserman, "Very Deep Convolutional Networks", 2014.

    Example:

    >>> from tf_tickets.zoo import models
    >>> model = models.vgg16(classes=100)
    >>> model.output_shape
    (None, 100)
    """
    blocks = Blocks(
        affine=affine,
        bias=bias,
        kernel_initializer=kernel_initializer,
        weight_decay=weight_decay,
    )
    image = x = blocks.input(input_shape, classes)
    layer = 0
    for stage, (filters, depth) in enumerate(_STAGES, start=1):
        for _ in range(depth):
            layer += 1
            x = blocks.conv(x, filters, 3, name=f"conv{layer}")
            x = blocks.norm_relu(x, name=f"conv{layer}")
        # "same" changes nothing for even sizes and lets tiny images through.
        x = keras.layers.MaxPooling2D(2, padding="same", name=f"pool{stage}")(x)
    logits = blocks.classify(x, classes, classifier)
    return keras.Model(image, logits, name=name)
