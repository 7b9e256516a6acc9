"""One gallery of small models: every kind that the library has to work on.

An entry is a function that makes a fresh, built model that is not compiled;
its tags say what is in it:

    @pytest.mark.parametrize("name", gallery.names("vector"))
    def test_of_every_kind(name):
        model = gallery.GALLERY[name]()
        x = gallery.inputs(model)

Models with the tag `"vector"` map eight numbers to four, like the `data` of
`conftest`. Sizes are parameters where a test needs larger ones. The
benchmarks show the same models, so nothing here needs pytest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import layers

Entry: TypeAlias = Callable[..., keras.Model]

GALLERY: dict[str, Entry] = {}
TAGS: dict[str, frozenset[str]] = {}

VOCABULARY = 50


def tagged(*tags: str) -> Callable[[Entry], Entry]:
    """Puts a function into the gallery."""

    def put(make: Entry) -> Entry:
        GALLERY[make.__name__] = make
        TAGS[make.__name__] = frozenset(tags)
        return make

    return put


def names(*tags: str, without: tuple[str, ...] = ()) -> list[str]:
    """Names of the entries with all of these tags and none of those."""
    return [
        name
        for name, own in TAGS.items()
        if own.issuperset(tags) and own.isdisjoint(without)
    ]


def inputs(model: keras.Model, count: int = 8, seed: int = 0) -> Any:
    """Random inputs in the structure that a model takes.

    Args:
        model: Any built model with one input, or a functional one.
        count: How many examples.
        seed: Of the numbers.
    """
    rng = np.random.default_rng(seed)

    def draw(one: Any) -> np.ndarray:
        shape = (count, *(size or 5 for size in one.shape[1:]))
        if one.dtype == "string":
            words = np.array(["a lottery ticket", "ticket"])
            return np.resize(words, shape)
        if "int" in one.dtype:
            if one.name == "padding_mask":
                return np.ones(shape, one.dtype)
            high = 1 if one.name == "segment_ids" else VOCABULARY
            return rng.integers(0, high, shape).astype(one.dtype)
        return rng.normal(size=shape).astype("float32")

    if isinstance(model, keras.Sequential):
        return draw(model.inputs[0])
    if hasattr(model, "inputs"):
        return keras.tree.map_structure(draw, model.input)
    shape = model.get_build_config()["input_shape"]
    return draw(keras.KerasTensor(tuple(shape), "float32"))


# How layers are put together.


@tagged("sequential", "dense", "normalized", "vector")
def mlp(hidden: int = 32, **dense: Any) -> keras.Model:
    """A hidden layer, normalization and dropout."""
    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(hidden, name="hidden", **dense),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.Dropout(0.2, seed=1, name="drop"),
            layers.Dense(4, name="head"),
        ],
        name="mlp",
    )


@tagged("sequential", "dense")
def stack(
    module: ModuleType = keras, *, width: int = 32, depth: int = 2
) -> Any:
    """Square layers and a head, by ``keras`` or ``tf_keras``."""
    return module.Sequential(
        [
            module.Input((width,)),
            *(
                module.layers.Dense(width, activation="relu")
                for _ in range(depth)
            ),
            module.layers.Dense(10),
        ]
    )


@tagged("sequential", "dense")
def tiny(
    outputs: int = 3, use_bias: bool = True, dtype: Any = None
) -> keras.Model:
    """Small and smooth enough for a whole Hessian, or for NumPy.

    Args:
        outputs: Units of the last layer.
        use_bias: Whether the last layer adds one.
        dtype: Of inputs and layers.
    """
    return keras.Sequential(
        [
            keras.Input((3,), dtype=dtype),
            layers.Dense(4, activation="tanh", name="one", dtype=dtype),
            layers.Dense(outputs, use_bias=use_bias, name="two", dtype=dtype),
        ],
        name="tiny",
    )


@tagged("sequential", "convolutional", "normalized")
def sequential() -> keras.Model:
    """Convolutions, plain and separable, in a chain."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.SeparableConv2D(8, 3),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(4),
        ]
    )


@tagged("functional", "convolutional", "normalized")
def functional() -> keras.Model:
    """A branch, depthwise and transposed convolutions."""
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same")(image)
    x = layers.BatchNormalization()(x)
    y = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Add()([x, y])
    x = layers.Conv2DTranspose(4, 3)(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(4)(x))


@tagged("functional", "nested", "dense", "vector")
def nested() -> keras.Model:
    """Models in models, whose layers have the same names."""

    def block(name: str) -> keras.Model:
        x = keras.Input((16,))
        y = layers.Dense(16, activation="relu", name="one")(x)
        return keras.Model(x, layers.Dense(16, name="two")(y), name=name)

    inner = keras.Sequential([keras.Input((16,)), block("left")], name="inner")
    x = keras.Input((8,))
    y = layers.Dense(16)(x)
    y = layers.Add()([inner(y), block("right")(y)])
    return keras.Model(x, layers.Dense(4)(y))


@tagged("functional", "nested", "shared", "dense", "normalized", "vector")
def nested_twice() -> keras.Model:
    """A model in a model, called twice, with statistics of its own."""
    inner = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(8, activation="relu"),
            layers.BatchNormalization(),
        ],
        name="inner",
    )
    x = keras.Input((8,))
    return keras.Model(x, layers.Dense(4)(inner(inner(x))))


@tagged("functional", "shared", "dense", "vector")
def shared() -> keras.Model:
    """A layer that is called three times, on its own output too."""
    layer = layers.Dense(8, activation="tanh", name="shared")
    x = keras.Input((8,))
    y = layers.Add()([layer(x), layer(layer(x))])
    return keras.Model(x, layers.Dense(4, name="head")(y))


@tagged("functional", "shared", "dense", "multi-input")
def towers() -> keras.Model:
    """A list of two inputs that share a layer."""
    tower = layers.Dense(16, activation="relu")
    left, right = keras.Input((8,)), keras.Input((8,))
    x = layers.Concatenate()([tower(left), tower(right)])
    return keras.Model([left, right], layers.Dense(4)(x))


@tagged(
    "functional",
    "nested",
    "shared",
    "dense",
    "normalized",
    "multi-input",
    "multi-output",
    "dictionaries",
)
def pairs(
    features: int = 8, width: int = 6, outputs: int = 4, code: bool = False
) -> keras.Model:
    """Dictionaries of two inputs and two outputs around a shared model.

    With ``code``, what the two inputs are joined to is an output, too.
    """
    a = keras.Input((features,), name="a")
    b = keras.Input((features,), name="b")
    inner = keras.Sequential(
        [
            keras.Input((features,)),
            layers.Dense(width, activation="gelu", use_bias=False),
            layers.LayerNormalization(),
        ],
        name="inner",
    )
    joined = layers.Add()([inner(a), inner(b)])
    x = layers.BatchNormalization()(joined)
    x = layers.Dropout(0.3, seed=2)(x)
    made = {
        "class": layers.Dense(outputs, name="class")(x),
        "size": layers.Dense(1, name="size")(layers.ReLU()(x)),
    }
    if code:
        made["code"] = joined
    return keras.Model({"a": a, "b": b}, made, name="pairs")


@tagged(
    "functional",
    "convolutional",
    "multi-input",
    "multi-output",
    "dictionaries",
)
def several() -> keras.Model:
    """Dictionaries of inputs of two ranks, and of outputs."""
    image = keras.Input((8, 8, 3), name="image")
    numbers = keras.Input((8,), name="numbers")
    x = layers.Flatten()(layers.Conv2D(8, 3)(image))
    x = layers.Concatenate()([x, layers.Dense(8)(numbers)])
    outputs = {
        "label": layers.Dense(4, name="label")(x),
        "score": layers.Dense(1, name="score")(x),
    }
    return keras.Model({"image": image, "numbers": numbers}, outputs)


@keras.saving.register_keras_serializable(package="gallery")
class Subclassed(keras.Model):
    """A model that is a class: layers in attributes and in a list.

    The first layer of the list is called twice.

    Args:
        width: Of all layers but the last.
        outputs: Units of the last layer.
        attention: Whether the last layer sees its input through attention.
    """

    def __init__(
        self,
        width: int = 12,
        outputs: int = 4,
        attention: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.width, self.outputs = width, outputs
        self.attends = attention
        self.stem = layers.Dense(width, activation="relu", name="stem")
        self.norm = layers.BatchNormalization(name="norm")
        self.blocks = [
            layers.Dense(width, name=f"block{index}") for index in range(2)
        ]
        if attention:
            self.attention = layers.MultiHeadAttention(2, 8, name="attention")
        self.head = layers.Dense(outputs, name="head")

    def call(self, x: Any, training: bool | None = None) -> Any:
        x = self.norm(self.stem(x), training=training)
        for block in (*self.blocks, self.blocks[0]):
            x = x + keras.ops.relu(block(x))
        return self.head(self.attention(x, x) if self.attends else x)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "width": self.width,
            "outputs": self.outputs,
            "attention": self.attends,
        }


@tagged("subclassed", "shared", "dense", "normalized", "vector")
def subclassed(features: int = 8, **sizes: Any) -> keras.Model:
    """A class of layers."""
    model = Subclassed(name="subclassed", **sizes)
    model(keras.ops.zeros((1, features)))
    return model


@tagged("subclassed", "shared", "dense", "normalized", "attention")
def subclassed_attention() -> keras.Model:
    """A class of layers, with attention."""
    model = Subclassed(width=16, attention=True)
    model(keras.ops.zeros((1, 5, 8)))
    return model


@keras.saving.register_keras_serializable(package="gallery")
class Around(keras.Model):
    """A class around a whole model, as a task of KerasHub is around its body.

    No configuration says how to make it again.

    Args:
        body: The model.
    """

    def __init__(self, body: keras.Model, **options: Any) -> None:
        super().__init__(**options)
        self.body = body
        self.head = layers.Dense(
            4, activation="softmax", kernel_regularizer="l2", name="head"
        )

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.head(keras.ops.relu(self.body(x, training=training)))


@tagged("subclassed", "nested", "dense", "normalized", "vector")
def around(hidden: int = 32) -> keras.Model:
    """A class around a model, with probabilities and a regularizer."""
    model = Around(mlp(hidden))
    model(keras.ops.zeros((1, 8)))
    return model


@keras.saving.register_keras_serializable(package="gallery")
class Projection(layers.Layer):
    """A layer whose weight has a name of its own.

    Args:
        units: Number of outputs.
    """

    def __init__(self, units: int, **options: Any) -> None:
        super().__init__(**options)
        self.units = units

    def build(self, shape: tuple[int, ...]) -> None:
        self.mixing = self.add_weight(
            shape=(shape[-1], self.units), name="mixing"
        )

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(x, self.mixing)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="gallery")
class Fixed(layers.Layer):
    """A layer whose activations are fixed in its code."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.dense = layers.Dense(4, activation="relu", name="inner")
        self.relu = layers.ReLU()

    def build(self, shape: tuple[int, ...]) -> None:
        self.dense.build(shape)

    def call(self, x: Any) -> Any:
        return self.relu(self.dense(x) - 0.1)


@tagged("sequential", "custom", "vector")
def custom() -> keras.Model:
    """Layers that Keras does not know."""
    return keras.Sequential(
        [keras.Input((8,)), Projection(32), layers.ReLU(), Projection(4)]
    )


# What is in the layers.


@tagged("sequential", "convolutional", "normalized", "vector")
def convolutional() -> keras.Model:
    """Every kind of convolution, on vectors."""
    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.Reshape((4, 2, 1)),
            layers.Conv2D(6, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, padding="same"),
            layers.SeparableConv2D(4, 3, padding="same"),
            layers.Conv2DTranspose(3, 3, padding="same"),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.1, seed=0),
            layers.Dense(4),
        ]
    )


@tagged("sequential", "convolutional", "normalized")
def smooth() -> keras.Model:
    """Rescaled pixels, swish, a bounded ReLU, probabilities; hardly a bias."""
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Rescaling(1 / 127.5, offset=-1.0),
            layers.Conv2D(4, 3, activation="swish", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(max_value=6.0),
            layers.DepthwiseConv2D(3, padding="same", use_bias=False),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(4, activation="softmax", use_bias=False),
        ]
    )


@tagged("sequential", "convolutional", "normalized", "wide")
def convolutions() -> keras.Model:
    """Strides, dilations, windows; kernels wide enough to be sparse."""
    return keras.Sequential(
        [
            keras.Input((16, 16, 8)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Conv2D(32, (4, 3), padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.Conv2D(40, 5, strides=2, padding="same"),
            layers.DepthwiseConv2D(3),
            layers.Conv2D(36, 3, dilation_rate=2, padding="same"),
            layers.Conv2D(128, 1, strides=2, activation="relu"),
            layers.Conv2DTranspose(16, 3),
            layers.SeparableConv2D(24, 3),
            layers.Reshape((-1, 24)),
            layers.Conv1D(200, 1),
            layers.Conv1D(32, 3),
            layers.GlobalAveragePooling1D(),
        ],
        name="convolutions",
    )


@tagged("functional", "attention", "normalized", "vector")
def attention() -> keras.Model:
    """Self-attention with a shortcut."""
    x = inputs = keras.Input((8,))
    x = layers.Dense(6)(layers.Reshape((4, 2))(x))
    y = layers.MultiHeadAttention(2, 3)(x, x)
    x = layers.LayerNormalization()(x + y)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(4)(x))


@keras.saving.register_keras_serializable("tests")
class Encoder(layers.Layer):
    """A block of a transformer as KerasHub writes them.

    Its layers are made as it is built, and the size of a head is computed from
    the number of heads.
    """

    def __init__(
        self,
        intermediate_dim: int,
        num_heads: int,
        activation: Any = "gelu",
        dropout: float = 0.0,
        normalize_first: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.intermediate_dim = intermediate_dim
        self.num_heads = num_heads
        self.activation = keras.activations.get(activation)
        self.dropout = dropout
        self.normalize_first = normalize_first

    def build(self, input_shape: Any) -> None:
        width = input_shape[-1]
        self._attention = layers.MultiHeadAttention(
            self.num_heads, width // self.num_heads, name="attention"
        )
        self._attention.build(input_shape, input_shape)
        self._intermediate = layers.Dense(
            self.intermediate_dim, self.activation, name="intermediate"
        )
        self._intermediate.build(input_shape)
        self._output = layers.Dense(width, name="output")
        self._output.build((*input_shape[:-1], self.intermediate_dim))
        self._norms = []
        for name in ("attention_norm", "output_norm"):
            norm = layers.LayerNormalization(name=name)
            norm.build(input_shape)
            self._norms.append(norm)
        self._dropout = layers.Dropout(self.dropout)

    def call(self, x: Any, padding_mask: Any = None) -> Any:
        mask = None
        if padding_mask is not None:
            mask = keras.ops.cast(padding_mask, "bool")[:, None, :]
        first, second = self._norms
        y = first(x) if self.normalize_first else x
        y = self._attention(query=y, value=y, attention_mask=mask)
        x = self._dropout(y) + x
        x = x if self.normalize_first else first(x)
        y = second(x) if self.normalize_first else x
        y = self._output(self._intermediate(y))
        x = self._dropout(y) + x
        return x if self.normalize_first else second(x)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "num_heads": self.num_heads,
            "activation": keras.activations.serialize(self.activation),
            "dropout": self.dropout,
            "normalize_first": self.normalize_first,
        }


@keras.saving.register_keras_serializable("tests")
class Decoder(layers.Layer):
    """A block as Llama's: heads that share keys, a gated width, RMS norms."""

    def __init__(
        self,
        intermediate_dim: int,
        query_heads: int,
        key_value_heads: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.intermediate_dim = intermediate_dim
        self.query_heads = query_heads
        self.key_value_heads = key_value_heads

    def build(self, input_shape: Any) -> None:
        width = input_shape[-1]
        self.attention = layers.GroupQueryAttention(
            width // self.query_heads,
            self.query_heads,
            self.key_value_heads,
            use_bias=False,
            name="attention",
        )
        self.gate = layers.Dense(
            self.intermediate_dim, use_bias=False, name="gate"
        )
        self.up = layers.Dense(self.intermediate_dim, use_bias=False, name="up")
        self.down = layers.Dense(width, use_bias=False, name="down")
        self.norms = [
            layers.RMSNormalization(name=name) for name in ("first", "second")
        ]
        self.attention.build(input_shape, input_shape)
        for layer in (self.gate, self.up, *self.norms):
            layer.build(input_shape)
        self.down.build((*input_shape[:-1], self.intermediate_dim))

    def call(self, x: Any) -> Any:
        y = self.norms[0](x)
        x = x + self.attention(y, y, use_causal_mask=True)
        y = self.norms[1](x)
        return x + self.down(keras.ops.silu(self.gate(y)) * self.up(y))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "query_heads": self.query_heads,
            "key_value_heads": self.key_value_heads,
        }


@tagged("blocks")
def bert(
    width: int = 16,
    heads: int = 4,
    inner: int = 24,
    depth: int = 2,
    words: int = VOCABULARY,
    length: int | None = None,
    classes: int = 4,
    **options: Any,
) -> keras.Model:
    """Tokens, positions, blocks of a class of one's own, a head."""
    tokens = keras.Input((length,), dtype="int32", name="token_ids")
    mask = keras.Input((length,), dtype="int32", name="padding_mask")
    x = layers.Embedding(words, width, name="token_embedding")(tokens)
    x = layers.LayerNormalization(name="embeddings_norm")(x)
    for i in range(depth):
        block = Encoder(inner, heads, name=f"block_{i}", **options)
        x = block(x, padding_mask=mask)
    pooled = layers.Dense(width, "tanh", name="pooled")(x[:, 0, :])
    y = layers.Dense(classes, name="logits")(pooled)
    return keras.Model({"token_ids": tokens, "padding_mask": mask}, y)


@tagged("blocks")
def gpt() -> keras.Model:
    """As `bert`, normalized first: each block adds to what it reads."""
    return bert(normalize_first=True, activation=_gelu)


@keras.saving.register_keras_serializable("tests")
def _gelu(x: Any) -> Any:
    return keras.activations.gelu(x, approximate=True)


@tagged("blocks")
def llama() -> keras.Model:
    """Heads that share keys and values, gated widths."""
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(VOCABULARY, 16, name="token_embedding")(tokens)
    for i in range(2):
        x = Decoder(24, 4, 2, name=f"block_{i}")(x)
    return keras.Model(tokens, layers.Dense(4, name="logits")(x))


@tagged("functional", "attention", "recurrent", "normalized", "wide")
def sequences() -> keras.Model:
    """Attention, `EinsumDense` and a GRU, wide enough to be sparse."""
    inputs = keras.Input((6, 64), name="sequence")
    x = layers.MultiHeadAttention(4, 16, name="attention")(inputs, inputs)
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.EinsumDense("abc,cd->abd", (6, 96), name="einsum")(x)
    x = layers.Dense(70, activation="gelu", name="each")(x)
    x = layers.GRU(48, name="gru")(x)
    return keras.Model(inputs, x, name="sequences")


@tagged("sequential", "recurrent", "vector")
def recurrent() -> keras.Model:
    """Masked steps, an LSTM in both directions, a GRU."""
    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.Reshape((4, 2)),
            layers.Masking(),
            layers.Bidirectional(layers.LSTM(5, return_sequences=True)),
            layers.GRU(4),
            layers.Dense(4),
        ]
    )


def _steps(
    *stack: layers.Layer, shape: tuple[int, ...] = (6, 8)
) -> keras.Model:
    head = [layers.Flatten(), layers.Dense(4)]
    return keras.Sequential([keras.Input(shape), *stack, *head])


@tagged("sequential", "recurrent")
def lstm() -> keras.Model:
    """One LSTM."""
    return _steps(layers.LSTM(8))


@tagged("sequential", "recurrent")
def gru() -> keras.Model:
    """One GRU."""
    return _steps(layers.GRU(8))


@tagged("sequential", "recurrent")
def bidirectional() -> keras.Model:
    """An LSTM in both directions, and a plain recurrent layer."""
    return _steps(
        layers.Bidirectional(layers.LSTM(8, return_sequences=True)),
        layers.SimpleRNN(8),
    )


@tagged("sequential", "recurrent")
def cells() -> keras.Model:
    """A recurrent layer over a stack of cells."""
    return _steps(layers.RNN([layers.LSTMCell(8), layers.GRUCell(8)]))


@tagged("sequential", "recurrent", "convolutional")
def conv_lstm() -> keras.Model:
    """An LSTM of convolutions."""
    layer = layers.ConvLSTM2D(4, 3, padding="same")
    return _steps(layer, shape=(3, 6, 6, 2))


@tagged("sequential", "convolutional")
def distributed() -> keras.Model:
    """A convolution at every step of a sequence."""
    layer = layers.TimeDistributed(layers.Conv1D(4, 3))
    return _steps(layer, shape=(3, 6, 2))


@tagged("functional", "embedding", "text")
def text() -> keras.Model:
    """Words, looked up in a vocabulary, embedded."""
    words = keras.Input((1,), dtype="string", name="text")
    x = layers.TextVectorization(
        vocabulary=["lottery", "ticket"], output_sequence_length=4, name="words"
    )(words)
    x = layers.Embedding(4, 64, name="embed")(x)
    x = layers.Flatten(name="flat")(x)
    return keras.Model(words, layers.Dense(80, name="head")(x), name="text")


# How channels depend on each other.


def conv_bn(
    x: Any,
    filters: int,
    size: int = 3,
    stride: int = 1,
    relu: bool = True,
    **options: Any,
) -> Any:
    """A convolution, normalized."""
    x = layers.Conv2D(
        filters, size, stride, padding="same", use_bias=False, **options
    )(x)
    x = layers.BatchNormalization()(x)
    return layers.ReLU()(x) if relu else x


@tagged("functional", "convolutional", "normalized")
def resnet(
    module: ModuleType = keras,
    *,
    size: int = 8,
    width: int = 4,
    blocks: int = 1,
) -> Any:
    """A CIFAR ResNet with ``6 * blocks + 2`` layers.

    Args:
        module: ``keras`` or ``tf_keras``.
        size: Height and width of the images.
        width: Channels of the first stage.
        blocks: Residual blocks in each of the three stages.

    Returns:
        A model of ``module``.
    """
    layers = module.layers

    def convolve(x: Any, channels: int, stride: int, kernel: int = 3) -> Any:
        x = layers.Conv2D(
            channels, kernel, stride, padding="same", use_bias=False
        )(x)
        return layers.BatchNormalization()(x)

    image = module.Input((size, size, 3))
    x = layers.ReLU()(convolve(image, width, 1))
    for stage in range(3):
        for block in range(blocks):
            channels = width * 2**stage
            stride = 2 if stage and not block else 1
            y = layers.ReLU()(convolve(x, channels, stride))
            y = convolve(y, channels, 1)
            if stride > 1:
                x = convolve(x, channels, stride, kernel=1)
            x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return module.Model(image, layers.Dense(10)(x))


@tagged("functional", "convolutional", "normalized")
def preactivated(widths: tuple[int, ...] = (4, 6)) -> keras.Model:
    """Bottlenecks that normalize the residual stream, two to each width."""

    def convolve(x: Any, filters: int, size: int, stride: int = 1) -> Any:
        x = layers.ReLU()(layers.BatchNormalization()(x))
        return layers.Conv2D(
            filters, size, stride, padding="same", use_bias=False
        )(x)

    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(image)
    for width in widths:
        for index in range(2):
            y = convolve(x, width, 1)
            y = convolve(y, width, 3, stride=1 if index else 2)
            y = convolve(y, 2 * width, 1)
            if not index:
                x = layers.Conv2D(2 * width, 1, 2, use_bias=False)(x)
            x = layers.Add()([x, y])
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(3)(x))


@tagged("functional", "convolutional", "normalized")
def block(activation: Any = "relu") -> keras.Model:
    """A stem and one basic block, with strides and padding as in ResNets."""
    image = keras.Input((8, 8, 3), name="image")
    plain = functools.partial(layers.Conv2D, use_bias=False)
    x = plain(4, 3, padding="same", name="stem")(image)
    x = layers.Activation(activation, name="stem_act")(x)
    shortcut = layers.Conv2D(6, 1, strides=2, name="shortcut")(x)
    x = layers.ZeroPadding2D(1, name="conv1_pad")(x)
    x = plain(6, 3, strides=2, name="conv1")(x)
    x = layers.BatchNormalization(momentum=0.9, name="conv1_bn")(x)
    x = layers.ReLU(name="conv1_relu")(x)
    x = plain(6, 3, padding="same", name="conv2")(x)
    x = layers.BatchNormalization(momentum=0.9, name="conv2_bn")(x)
    x = layers.Add(name="add")([x, shortcut])
    x = layers.ReLU(name="relu")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(3, name="head")(x), name="net")


@tagged("functional", "convolutional", "normalized", "channels")
def concatenating() -> keras.Model:
    """Dense blocks: each layer reads all that were before it."""
    image = keras.Input((8, 8, 3))
    x = conv_bn(image, 6)
    for _ in range(3):
        y = layers.BatchNormalization()(x)
        y = layers.Conv2D(4, 3, padding="same")(layers.ReLU()(y))
        x = layers.Concatenate()([x, y])
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Flatten()(layers.AveragePooling2D(2)(x))
    return keras.Model(image, layers.Dense(5)(x))


@tagged("functional", "convolutional", "normalized", "channels")
def unet() -> keras.Model:
    """Down, up by transposed convolutions, skips joined by concatenation."""
    image = keras.Input((16, 16, 2))
    one = conv_bn(image, 6)
    two = conv_bn(layers.MaxPooling2D(2)(one), 8)
    three = conv_bn(layers.MaxPooling2D(2)(two), 10)
    x = layers.Conv2DTranspose(8, 2, 2)(three)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = conv_bn(layers.Concatenate()([x, two]), 8)
    x = layers.Conv2DTranspose(6, 3, 2, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = conv_bn(layers.Concatenate()([x, one]), 6)
    return keras.Model(image, layers.Conv2D(3, 1)(x))


@tagged(
    "functional", "nested", "shared", "convolutional", "normalized", "channels"
)
def nested_images() -> keras.Model:
    """A model within a sequential one within a functional one, used twice."""
    inner_in = keras.Input((8, 8, 6))
    inner = keras.Model(inner_in, conv_bn(inner_in, 6), name="inner")
    middle = keras.Sequential(
        [
            keras.Input((8, 8, 6)),
            inner,
            layers.Conv2D(6, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
        ],
        name="middle",
    )
    image = keras.Input((8, 8, 3))
    x = conv_bn(image, 6)
    x = layers.Add()([x, middle(x)])
    x = middle(x)
    x = layers.GlobalMaxPooling2D()(x)
    return keras.Model(image, {"logits": layers.Dense(4, name="head")(x)})


@tagged("functional", "convolutional", "normalized", "channels")
def assorted() -> keras.Model:
    """Depthwise, separable, grouped, gated, reshaped, on bare operations."""
    image = keras.Input((8, 8, 3))
    x = conv_bn(image, 8)
    x = layers.DepthwiseConv2D(
        3, padding="same", depth_multiplier=2, use_bias=False
    )(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.SeparableConv2D(12, 3, padding="same", use_bias=False)(x)
    x = layers.PReLU(shared_axes=[1, 2], alpha_initializer="ones")(
        layers.BatchNormalization()(x)
    )
    x = conv_bn(x, 12, groups=3)
    x = conv_bn(x, 12, groups=12)
    gate = layers.GlobalAveragePooling2D()(x)
    gate = layers.Reshape((1, 1, 12))(gate)
    gate = layers.Dense(12, activation="sigmoid")(
        layers.Dense(4, activation="relu")(gate)
    )
    x = layers.Multiply()([x, gate]) * 2.0
    x = layers.ZeroPadding2D(1)(layers.Dropout(0.5)(x))
    x = layers.Permute((2, 1, 3))(layers.UpSampling2D(2)(x))
    x = keras.ops.mean(x, axis=[1, 2])
    return keras.Model(image, layers.Dense(3)(x))


@tagged("sequential", "convolutional", "normalized", "channels")
def chain() -> keras.Model:
    """Convolutions in one dimension, flattened."""
    return keras.Sequential(
        [
            keras.Input((12, 3)),
            layers.Conv1D(8, 3, use_bias=False, name="one"),
            layers.BatchNormalization(name="one_bn"),
            layers.Activation("relu"),
            layers.ZeroPadding1D(1),
            layers.Conv1D(6, 3, use_bias=False, name="two"),
            layers.BatchNormalization(name="two_bn"),
            layers.LeakyReLU(),
            layers.Conv1D(6, 3, use_bias=False, name="three"),
            layers.BatchNormalization(name="three_bn"),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(8, use_bias=False, name="dense"),
            layers.BatchNormalization(name="dense_bn"),
            layers.ReLU(),
            layers.Dense(2, name="head"),
        ]
    )


@tagged("functional", "convolutional", "normalized")
def random_graph(seed: int = 0) -> keras.Model:
    """A graph of random joints; activations are zero at zero."""
    rng = np.random.default_rng(seed)
    image = keras.Input((8, 8, 3))
    pool = [
        layers.BatchNormalization()(layers.Conv2D(6, 3, padding="same")(image))
    ]
    for _ in range(10):
        x = pool[rng.integers(len(pool))]
        kind = rng.integers(8)
        size = x.shape[-1]
        if kind == 0:
            x = layers.Conv2D(
                int(rng.integers(4, 9)), 3, padding="same", use_bias=False
            )(x)
            x = layers.BatchNormalization()(x)
        elif kind == 1:
            x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
            x = layers.BatchNormalization()(x)
        elif kind == 2:
            same = [t for t in pool if t.shape[-1] == size]
            x = layers.Add()([x, same[rng.integers(len(same))]])
        elif kind == 3:
            x = layers.Concatenate()([x, pool[rng.integers(len(pool))]])
        elif kind == 4:
            x = layers.Activation(["relu", "silu", "tanh"][rng.integers(3)])(x)
        elif kind == 5:
            gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
            gate = layers.Dense(size, activation="sigmoid")(gate)
            x = layers.Multiply()([x, gate])
        elif kind == 6:
            x = layers.Conv2DTranspose(
                int(rng.integers(4, 9)), 3, padding="same", use_bias=False
            )(x)
            x = layers.BatchNormalization()(x)
        else:
            x = keras.ops.maximum(x, x * 0.5)
        pool.append(x)
    x = layers.Concatenate()([layers.GlobalMaxPooling2D()(t) for t in pool])
    return keras.Model(image, layers.Dense(4)(x))


# What was done to a model.


@tagged("sequential", "dense", "mixed precision", "wide")
def mixed(policy: str = "mixed_bfloat16") -> keras.Model:
    """Layers that compute in 16 bits."""
    return keras.Sequential(
        [
            keras.Input((80,)),
            layers.Dense(300, activation="relu", dtype=policy),
            layers.Dense(60, dtype=policy),
        ],
        name="mixed",
    )


@tagged("sequential", "convolutional", "normalized", "lora")
def lora() -> keras.Model:
    """A low-rank update beside the last kernel."""
    model = sequential()
    model.layers[-1].enable_lora(2)
    return model


@tagged("sequential", "dense", "quantized")
def int8(
    features: int = 8, units: tuple[int, ...] = (16, 4), density: float = 1.0
) -> keras.Model:
    """A model in int8, that of so many weights are not zero."""
    model = keras.Sequential(
        [
            keras.Input((features,)),
            *(layers.Dense(size, activation="relu") for size in units[:-1]),
            layers.Dense(units[-1]),
        ],
        name="int8",
    )
    rng = np.random.default_rng(0)
    for layer in model.layers:
        kept = rng.random(layer.kernel.shape) < density
        layer.kernel.assign(layer.kernel * kept)
        layer.bias.assign(0.1 * rng.random(layer.bias.shape))
    model.quantize("int8")
    return model


@tagged("sequential", "convolutional", "normalized", "quantized")
def int8_partly() -> keras.Model:
    """A model whose last layer is in int8."""
    model = sequential()
    model.layers[-1].quantize("int8")
    return model


@tagged("sequential", "convolutional", "normalized", "zeros")
def sparse_already() -> keras.Model:
    """Every third weight is zero, and no mask says so."""
    model = sequential()
    for variable in model.trainable_variables:
        value = variable.numpy()
        value.ravel()[::3] = 0
        variable.assign(value)
    return model


# Models of other packages, with random weights.

APPLICATIONS: dict[str, dict[str, Any]] = {
    "MobileNet": {"alpha": 0.25},
    "MobileNetV2": {"alpha": 0.35},
    "MobileNetV3Small": {},
    "EfficientNetB0": {},
    "EfficientNetV2B0": {},
    # At 32 pixels its last sixteen blocks see one pixel: where a batch has no
    # variance there, the gradients of the normalizations overflow float32.
    "DenseNet121": {"size": 64},
    "ResNet50": {},
    "ResNet50V2": {},
    "VGG16": {},
    "Xception": {"size": 71},
    "InceptionV3": {"size": 75},
    "ConvNeXtTiny": {},
}


def _application(name: str) -> Entry:
    def make(size: int = 32, **options: Any) -> keras.Model:
        return getattr(keras.applications, name)(
            weights=None,
            include_top=False,
            pooling="avg",
            input_shape=(size, size, 3),
            **options,
        )

    entry = functools.partial(make, **APPLICATIONS[name])
    entry.__name__ = name  # type: ignore[attr-defined]
    return entry


for _name in APPLICATIONS:
    tagged("functional", "convolutional", "application")(_application(_name))

_TEXT = {"hidden_dim": 16, "intermediate_dim": 32, "num_layers": 2}
HUB: dict[str, dict[str, Any]] = {
    "BertBackbone": {**_TEXT, "num_heads": 2, "max_sequence_length": 8},
    "GPT2Backbone": {**_TEXT, "num_heads": 2, "max_sequence_length": 8},
    "LlamaBackbone": {
        **_TEXT,
        "num_query_heads": 2,
        "num_key_value_heads": 1,
    },
    "ViTBackbone": {
        "image_shape": (16, 16, 3),
        "patch_size": 8,
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 16,
        "mlp_dim": 32,
    },
}


def _hub(name: str) -> Entry:
    def make(**options: Any) -> keras.Model:
        import keras_hub

        if "image_shape" not in options:
            options["vocabulary_size"] = VOCABULARY
        return getattr(keras_hub.models, name)(**options)

    entry = functools.partial(make, **HUB[name])
    entry.__name__ = name  # type: ignore[attr-defined]
    return entry


for _name in HUB:
    tagged("functional", "attention", "normalized", "hub")(_hub(_name))
