"""What every network shares: options, layers, and a name in the registry."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, ParamSpec, TypeAlias, TypeVar

import keras

from tf_tickets import checks

Classifier: TypeAlias = Literal["dense", "conv"]
Initializer: TypeAlias = str | keras.initializers.Initializer
Shape: TypeAlias = tuple[int, int, int]
Tensor: TypeAlias = keras.KerasTensor

_Options = ParamSpec("_Options")
_B = TypeVar("_B", bound="Blocks")

NETWORKS: dict[str, Callable[..., keras.Model]] = {}
"""``{name: function that builds a network}``; `network` puts them in."""


def names() -> tuple[str, ...]:
    """The names that `get` knows.

    Example:

    >>> from tf_tickets.zoo import models
    >>> "resnet20" in models.names()
    True
    """
    return tuple(NETWORKS)


def get(
    network: str | Callable[..., keras.Model], /, **options: Any
) -> keras.Model:
    """Builds a network by its name.

    Args:
        network: One of `names()`, or a function that makes a network.
        **options: Keyword arguments of that function.

    Returns:
        A functional model that returns logits, if the zoo's; else what the
        function returns.

    Raises:
        ValueError: If there is no such name, or the network has no such
            option.

    Example:

    >>> from tf_tickets.zoo import models
    >>> models.get("resnet20", input_shape=(8, 8, 1)).output_shape
    (None, 10)
    """
    if not callable(network):
        checks.choice("network", network, NETWORKS)
        network = NETWORKS[network]
    known = inspect.signature(network).parameters
    unknown = sorted(set(options) - set(known))
    if unknown and all(p.kind is not p.VAR_KEYWORD for p in known.values()):
        raise ValueError(
            f"The options of {getattr(network, '__name__', network)!r} are "
            f"{', '.join(known)}. Received: {', '.join(unknown)}"
        )
    return network(**options)


def network(
    options: Callable[_Options, _B],
) -> Callable[
    [Callable[[_B, Tensor], Tensor]],
    Callable[_Options, keras.Model],
]:
    """Makes a function from an image to logits a network of the zoo.

    What is decorated gets blocks and an image. What comes of it has the
    options of the blocks as parameters, says so in its signature and its
    docstring, returns a model, and has a name that `get` knows.

    Args:
        options: The class of the blocks: `Blocks` or a subclass, whose fields
            are the options.

    Returns:
        A decorator.
    """

    def decorate(
        body: Callable[[_B, Tensor], Tensor],
    ) -> Callable[_Options, keras.Model]:
        @functools.wraps(body)
        def made(
            *args: _Options.args, **kwargs: _Options.kwargs
        ) -> keras.Model:
            blocks = options(*args, **kwargs)
            image = keras.Input(blocks.input_shape, name="image")
            logits = body(blocks, image)
            return keras.Model(image, logits, name=blocks.name or body.__name__)

        types = typing.get_type_hints(options)
        made.__annotations__ = {**types, "return": keras.Model}
        made.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                parameter.replace(annotation=types[name])
                for name, parameter in inspect.signature(
                    options
                ).parameters.items()
            ],
            return_annotation=keras.Model,
        )
        made.__doc__ = _described(body.__doc__ or "", options)
        NETWORKS[body.__name__] = made
        return made

    return decorate


def _described(text: str, options: Any) -> str:
    """A network's docstring with the options of its blocks in it."""
    arguments: dict[str, str] = {}
    for base in reversed(inspect.getmro(options)):
        _, _, own = inspect.cleandoc(base.__doc__ or "").partition("Args:\n")
        arguments |= re.findall(r"^    (\w+):(.*(?:\n {8}.*)*)", own, re.M)
    lines = [
        "Args:",
        *(
            f"    {name}:{arguments[name]}"
            for name in inspect.signature(options).parameters
        ),
        "",
        "Returns:",
        "    A functional model that returns logits.",
        "",
        "Raises:",
        "    ValueError: If an option is out of its range.",
        "",
        "",
    ]
    text = inspect.cleandoc(text)
    place = re.search(r"^(Reference|Example):$", text, re.MULTILINE)
    at = place.start() if place else len(text)
    return text[:at] + "\n".join(lines) + text[at:]


@keras.saving.register_keras_serializable(package="tf_tickets")
class PerChannel(keras.initializers.Initializer):
    """Draws a depthwise kernel with the fan-in of one channel.

    Keras reads the fan-in of a depthwise kernel `(h, w, channels, 1)` as
    `h * w * channels`, though each output sees `h * w` inputs only: He's
    normal initialization then comes out smaller by the square root of the
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
    """Layers with explicit names under the options that all networks have.

    Strided convolutions pad both sides by half the kernel, as the published
    PyTorch networks do; Keras' `"same"` would pad the far side only and move
    the grid by one pixel.

    Args:
        input_shape: Height, width and channels of an image.
        classes: Number of logits.
        bias: Whether the layers have biases.
        kernel_initializer: Initializer of every kernel; depthwise kernels get
            the fan-in of one channel, as in PyTorch. Frankle and Carbin use
            `"glorot_normal"`. An initializer with a fixed seed draws the same
            numbers for every kernel of a shape.
        weight_decay: Decay of every trainable parameter, as an L2 penalty of
            half that factor: what PyTorch's `SGD(weight_decay=...)` does.
        name: Name of the model; `None` takes the name of the network.

    Raises:
        ValueError: If an option is out of its range.
    """

    input_shape: Shape = (32, 32, 3)
    classes: int = 10
    bias: bool = True
    kernel_initializer: Initializer = "he_normal"
    weight_decay: float = 0.0
    name: str | None = None

    # What the numbers of the input shape are.
    axes: ClassVar[tuple[str, ...]] = ("height", "width", "channels")

    def __post_init__(self) -> None:
        try:
            shape = tuple(
                checks.whole("input_shape", size)
                for size, _ in zip(self.input_shape, self.axes, strict=True)
            )
        except (TypeError, ValueError):
            raise ValueError(
                f"`input_shape` must be {len(self.axes)} positive whole "
                f"numbers ({', '.join(self.axes)}). "
                f"Received: input_shape={self.input_shape!r}"
            ) from None
        object.__setattr__(self, "input_shape", shape)
        classes = checks.whole("classes", self.classes)
        object.__setattr__(self, "classes", classes)
        checks.number("weight_decay", self.weight_decay, "[0, 1)")
        keras.initializers.get(self.kernel_initializer)

    def conv(
        self,
        x: Tensor,
        filters: int,
        kernel_size: int,
        *,
        name: str,
        strides: int = 1,
        use_bias: bool = False,
    ) -> Tensor:
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

    def depthwise(self, x: Tensor, *, name: str, strides: int = 1) -> Tensor:
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

    def dense(
        self,
        x: Tensor,
        units: int,
        *,
        name: str,
        activation: str | None = None,
    ) -> Tensor:
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

    def _pad(
        self, x: Tensor, size: int, strides: int, name: str
    ) -> tuple[Tensor, str]:
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormalizedBlocks(Blocks):
    """Blocks of networks that normalize over the batch.

    Normalization has PyTorch's momentum and epsilon.

    Args:
        bias: Whether dense layers and the classifier have biases. The
            convolutions have none: the normalization after them would cancel
            it.
        affine: Whether normalization learns a scale and an offset.
        **options: Those of `Blocks`.
    """

    affine: bool = True

    def norm(self, x: Tensor, *, name: str) -> Tensor:
        """Normalizes over the batch."""
        decay = self._decay() if self.affine else None
        return keras.layers.BatchNormalization(
            momentum=0.9,
            epsilon=1e-5,
            center=self.affine,
            scale=self.affine,
            beta_regularizer=decay,
            gamma_regularizer=decay,
            name=name,
        )(x)

    def norm_relu(self, x: Tensor, *, name: str) -> Tensor:
        """Normalizes over the batch and rectifies."""
        x = self.norm(x, name=f"{name}_bn")
        return keras.layers.ReLU(name=f"{name}_relu")(x)

    def classify(self, x: Tensor) -> Tensor:
        """Averages over the image and returns logits."""
        x = keras.layers.GlobalAveragePooling2D(name="average")(x)
        return self.dense(x, self.classes, name="classifier")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierBlocks(NormalizedBlocks):
    """Blocks of networks whose last layer may be a convolution.

    Args:
        classifier: `"dense"`, or `"conv"` for a 1x1 convolution of the same
            size, as in the tables of *Rare Gems*.
        **options: Those of `NormalizedBlocks`.
    """

    classifier: Classifier = "dense"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice(
            "classifier", self.classifier, typing.get_args(Classifier)
        )

    def classify(self, x: Tensor) -> Tensor:
        """Averages over the image and returns logits."""
        if self.classifier == "dense":
            return super().classify(x)
        x = keras.layers.GlobalAveragePooling2D(keepdims=True, name="average")(
            x
        )
        x = self.conv(x, self.classes, 1, name="classifier", use_bias=self.bias)
        return keras.layers.Flatten(name="logits")(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceBlocks(NormalizedBlocks):
    """Normalized blocks that convolve along one axis.

    Args:
        input_shape: Length and channels of a sequence.
        **options: Those of `NormalizedBlocks`.
    """

    input_shape: Any = (40, 1)

    axes: ClassVar[tuple[str, ...]] = ("length", "channels")

    def conv(
        self,
        x: Tensor,
        filters: int,
        kernel_size: int,
        *,
        name: str,
        strides: int = 1,
        use_bias: bool = False,
    ) -> Tensor:
        """Convolves, keeping the length up to the strides."""
        padding = "same"
        if strides > 1 and kernel_size > 1:
            pad = keras.layers.ZeroPadding1D(
                kernel_size // 2, name=f"{name}_pad"
            )
            x, padding = pad(x), "valid"
        return keras.layers.Conv1D(
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

    def classify(self, x: Tensor) -> Tensor:
        """Averages over the sequence and returns logits."""
        x = keras.layers.GlobalAveragePooling1D(name="average")(x)
        return self.dense(x, self.classes, name="classifier")
