"""Blocks: the layers the networks are made of, under one set of options."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import keras

Classifier: TypeAlias = Literal["dense", "conv"]
Initializer: TypeAlias = str | keras.initializers.Initializer


@keras.saving.register_keras_serializable(package="tf_tickets")
class PerChannel(keras.initializers.Initializer):
    """Draws a depthwise kernel with the fan-in of one channel.

    Keras reads the fan-in of a depthwise kernel `(h, w, channels, 1)` as
    `h * w * channels`, though each output sees `h * w` inputs only: He's
    normal initialisation then comes out smaller by the square root of the
    number of channels. The kernel is drawn here as `(h, w, 1, channels)`,
    which has the right fan-in, and transposed.

    Args:
        initializer: The initializer to draw with.

    Example:

    >>> import keras
    >>> from tf_tickets.zoo.models.blocks import PerChannel
    >>> draw = PerChannel(keras.initializers.HeNormal(seed=0))
    >>> round(float(keras.ops.std(draw((3, 3, 512, 1)))) / (2 / 9) ** 0.5, 1)
    1.0
    """

    def __init__(self, initializer: Initializer) -> None:
        self.initializer = keras.initializers.get(initializer)

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Any:
        height, width, channels, multiplier = shape
        kernel = self.initializer(
            (height, width, multiplier, channels), dtype=dtype
        )
        return keras.ops.transpose(kernel, (0, 1, 3, 2))

    def get_config(self) -> dict[str, Any]:
        config = keras.saving.serialize_keras_object(self.initializer)
        return {"initializer": config}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PerChannel:
        stored = config["initializer"]
        return cls(keras.saving.deserialize_keras_object(stored))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """Layers with explicit names, sharing the options of one network.

    Strided convolutions pad both sides by half the kernel, as the published
    PyTorch networks do; Keras' `"same"` would pad the far side only and move
    the grid by one pixel. Normalisation has PyTorch's momentum and epsilon.

    Args:
        affine: Whether normalisation learns a scale and an offset.
        bias: Whether layers that no normalisation follows have a bias.
        kernel_initializer: Initializer of every kernel. An initializer with
            a fixed seed draws the same numbers for every kernel of a shape.
        weight_decay: Decay of every trainable parameter, put into the
            gradient as an L2 penalty of half that factor.
    """

    affine: bool = True
    bias: bool = True
    kernel_initializer: Initializer = "he_normal"
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight_decay < 1.0:
            raise ValueError(
                "`weight_decay` must be in [0, 1). "
                f"Received: weight_decay={self.weight_decay!r}"
            )
        keras.initializers.get(self.kernel_initializer)

    def input(self, shape: Sequence[int], classes: int) -> keras.KerasTensor:
        """Makes the image input, after checking the shapes at both ends."""
        if len(shape) != 3 or any(
            not isinstance(size, int) or size < 1 for size in shape
        ):
            raise ValueError(
                "`input_shape` must be three positive integers "
                f"(height, width, channels). Received: input_shape={shape!r}"
            )
        if not isinstance(classes, int) or classes < 1:
            raise ValueError(
                "`classes` must be a positive integer. "
                f"Received: classes={classes!r}"
            )
        return keras.Input(tuple(shape), name="image")

    def conv(
        self,
        x: keras.KerasTensor,
        filters: int,
        kernel_size: int,
        *,
        name: str,
        strides: int = 1,
        use_bias: bool = False,
    ) -> keras.KerasTensor:
        """Convolves, keeping the size up to the strides."""
        x, padding = self._pad(x, kernel_size, strides, name)
        return keras.layers.Conv2D(
            filters,
            kernel_size,
            strides=strides,
            padding=padding,
            use_bias=use_bias,
            kernel_initializer=self._initializer(),
            kernel_regularizer=self._decay(),
            bias_regularizer=self._decay(),
            name=name,
        )(x)

    def depthwise(
        self, x: keras.KerasTensor, *, name: str, strides: int = 1
    ) -> keras.KerasTensor:
        """Convolves each channel on its own, 3x3."""
        x, padding = self._pad(x, 3, strides, name)
        return keras.layers.DepthwiseConv2D(
            3,
            strides=strides,
            padding=padding,
            use_bias=False,
            depthwise_initializer=PerChannel(self._initializer()),
            depthwise_regularizer=self._decay(),
            name=name,
        )(x)

    def norm(self, x: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
        """Normalises over the batch."""
        return keras.layers.BatchNormalization(
            momentum=0.9,
            epsilon=1e-5,
            center=self.affine,
            scale=self.affine,
            beta_regularizer=self._decay() if self.affine else None,
            gamma_regularizer=self._decay() if self.affine else None,
            name=name,
        )(x)

    def norm_relu(
        self, x: keras.KerasTensor, *, name: str
    ) -> keras.KerasTensor:
        """Normalises over the batch and rectifies."""
        x = self.norm(x, name=f"{name}_bn")
        return keras.layers.ReLU(name=f"{name}_relu")(x)

    def dense(
        self,
        x: keras.KerasTensor,
        units: int,
        *,
        name: str,
        activation: str | None = None,
    ) -> keras.KerasTensor:
        """Connects every input with every unit."""
        return keras.layers.Dense(
            units,
            activation=activation,
            use_bias=self.bias,
            kernel_initializer=self._initializer(),
            kernel_regularizer=self._decay(),
            bias_regularizer=self._decay(),
            name=name,
        )(x)

    def classify(
        self, x: keras.KerasTensor, classes: int, kind: Classifier = "dense"
    ) -> keras.KerasTensor:
        """Averages over the image and returns logits."""
        if kind not in ("dense", "conv"):
            raise ValueError(
                '`classifier` must be "dense" or "conv". '
                f"Received: classifier={kind!r}"
            )
        pool = keras.layers.GlobalAveragePooling2D(
            keepdims=kind == "conv", name="average"
        )
        x = pool(x)
        if kind == "dense":
            return self.dense(x, classes, name="classifier")
        x = self.conv(x, classes, 1, name="classifier", use_bias=self.bias)
        return keras.layers.Flatten(name="logits")(x)

    def _pad(
        self, x: keras.KerasTensor, size: int, strides: int, name: str
    ) -> tuple[keras.KerasTensor, str]:
        if strides == 1 or size == 1:
            return x, "same"
        pad = keras.layers.ZeroPadding2D(size // 2, name=f"{name}_pad")
        return pad(x), "valid"

    def _initializer(self) -> keras.initializers.Initializer:
        # An unseeded initializer object keeps the seed it drew when it was
        # made: shared, it would start equal shapes with equal kernels.
        initializer = self.kernel_initializer
        if isinstance(initializer, keras.initializers.Initializer):
            return initializer.clone()
        return keras.initializers.get(initializer)

    def _decay(self) -> keras.regularizers.Regularizer | None:
        if not self.weight_decay:
            return None
        return keras.regularizers.L2(self.weight_decay / 2)
