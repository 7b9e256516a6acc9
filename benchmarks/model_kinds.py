"""Small models of every kind that Keras can build, with inputs for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

BATCH = 4
STEPS = 2

Inputs = Any


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        group: Heading of its part of the table.
        name: Its own name.
        build: Makes ``(model, inputs)``: a built model that is not compiled,
            and as many examples as `STEPS` batches hold.
        filters: As in `tf_tickets.prunable_weights`.
        known: ``{operation: part of a message}``: what an operation must say
            that cannot work on this kind.
        note: What a user should know.
    """

    group: str
    name: str
    build: Callable[[], tuple[keras.Model, Inputs]]
    filters: Any = None
    known: Mapping[str, str] = dataclasses.field(default_factory=dict)
    note: str = ""


def noise(*shape: int) -> np.ndarray:
    """Normal numbers, one row an example."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(BATCH * STEPS, *shape)).astype("float32")


def tokens(length: int, vocabulary: int = 50) -> np.ndarray:
    """Random token numbers."""
    rng = np.random.default_rng(0)
    return rng.integers(0, vocabulary, (BATCH * STEPS, length)).astype("int32")


# Every way to put layers together.


def _sequential() -> tuple[keras.Model, Inputs]:
    layers = [
        keras.Input((8, 8, 3)),
        keras.layers.Conv2D(8, 3, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.SeparableConv2D(8, 3),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(4),
    ]
    return keras.Sequential(layers), noise(8, 8, 3)


def _functional() -> tuple[keras.Model, Inputs]:
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, padding="same")(image)
    x = keras.layers.BatchNormalization()(x)
    y = keras.layers.DepthwiseConv2D(3, padding="same")(x)
    x = keras.layers.Add()([x, y])
    x = keras.layers.Conv2DTranspose(4, 3)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(4)(x)), noise(8, 8, 3)


def _nested() -> tuple[keras.Model, Inputs]:
    def block(name: str) -> keras.Model:
        x = keras.Input((16,))
        y = keras.layers.Dense(16, activation="relu", name="one")(x)
        return keras.Model(x, keras.layers.Dense(16, name="two")(y), name=name)

    inner = keras.Sequential([keras.Input((16,)), block("left")], name="inner")
    x = keras.Input((8,))
    y = keras.layers.Dense(16)(x)
    y = keras.layers.Add()([inner(y), block("right")(y)])
    return keras.Model(x, keras.layers.Dense(4)(y)), noise(8)


@keras.saving.register_keras_serializable(package="tf_tickets_benchmarks")
class Subclassed(keras.Model):
    """A model that is a class, its layers in an attribute and in a list."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stem = keras.layers.Dense(16, activation="relu")
        self.blocks = [keras.layers.Dense(16) for _ in range(2)]
        self.attention = keras.layers.MultiHeadAttention(2, 8)
        self.head = keras.layers.Dense(4)

    def call(self, x: Any, training: bool | None = None) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            x = x + keras.ops.relu(block(x))
        return self.head(self.attention(x, x))


def _subclassed() -> tuple[keras.Model, Inputs]:
    model, x = Subclassed(), noise(5, 8)
    model(x[:1])
    return model, x


def _shared() -> tuple[keras.Model, Inputs]:
    tower = keras.layers.Dense(16, activation="relu")
    left, right = keras.Input((8,)), keras.Input((8,))
    x = keras.layers.Concatenate()([tower(left), tower(right)])
    model = keras.Model([left, right], keras.layers.Dense(4)(x))
    return model, [noise(8), noise(8)[::-1].copy()]


def _several() -> tuple[keras.Model, Inputs]:
    image = keras.Input((8, 8, 3), name="image")
    numbers = keras.Input((8,), name="numbers")
    x = keras.layers.Flatten()(keras.layers.Conv2D(8, 3)(image))
    x = keras.layers.Concatenate()([x, keras.layers.Dense(8)(numbers)])
    outputs = {
        "label": keras.layers.Dense(4, name="label")(x),
        "score": keras.layers.Dense(1, name="score")(x),
    }
    model = keras.Model({"image": image, "numbers": numbers}, outputs)
    return model, {"image": noise(8, 8, 3), "numbers": noise(8)}


@keras.saving.register_keras_serializable(package="tf_tickets_benchmarks")
class Projection(keras.layers.Layer):
    """A layer whose weight has a name of its own."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape: tuple[int, ...]) -> None:
        self.mixing = self.add_weight(
            shape=(shape[-1], self.units), name="mixing"
        )

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(x, self.mixing)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


def _custom() -> tuple[keras.Model, Inputs]:
    model = keras.Sequential(
        [keras.Input((8,)), Projection(32), keras.layers.ReLU(), Projection(4)]
    )
    return model, noise(8)


# Recurrent layers.


def _recurrent(
    *layers: Callable[[], keras.layers.Layer], shape: tuple[int, ...] = (6, 8)
) -> Callable[[], tuple[keras.Model, Inputs]]:
    def build() -> tuple[keras.Model, Inputs]:
        stack = [layer() for layer in layers]
        head = [keras.layers.Flatten(), keras.layers.Dense(4)]
        return keras.Sequential([keras.Input(shape), *stack, *head]), noise(
            *shape
        )

    return build


# What Keras does to a model after it was built.


def _lora() -> tuple[keras.Model, Inputs]:
    model, x = _sequential()
    model.layers[-1].enable_lora(2)
    return model, x


def _int8() -> tuple[keras.Model, Inputs]:
    layers = [keras.layers.Dense(16), keras.layers.Dense(4)]
    model = keras.Sequential([keras.Input((8,)), *layers])
    model.quantize("int8")
    return model, noise(8)


def _int8_partly() -> tuple[keras.Model, Inputs]:
    model, x = _sequential()
    model.layers[-1].quantize("int8")
    return model, x


def _sparse_already() -> tuple[keras.Model, Inputs]:
    model, x = _sequential()
    for layer in model.layers:
        for variable in layer.trainable_variables:
            value = variable.numpy()
            value.ravel()[::3] = 0
            variable.assign(value)
    return model, x


# Models of other packages.


def _application(
    name: str, size: int = 32, **options: Any
) -> Callable[[], tuple[keras.Model, Inputs]]:
    def build() -> tuple[keras.Model, Inputs]:
        body = getattr(keras.applications, name)(
            weights=None,
            include_top=False,
            pooling="avg",
            input_shape=(size, size, 3),
            **options,
        )
        return body, noise(size, size, 3)

    return build


_TRANSFORMER = {
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
}


def _text(
    name: str, **options: Any
) -> Callable[[], tuple[keras.Model, Inputs]]:
    def build() -> tuple[keras.Model, Inputs]:
        import keras_hub

        model = getattr(keras_hub.models, name)(vocabulary_size=50, **options)
        x = {
            key: tokens(8) if key == "token_ids" else np.ones_like(tokens(8))
            for key in model.input
        }
        if "segment_ids" in x:
            x["segment_ids"] *= 0
        return model, x

    return build


def _vision() -> tuple[keras.Model, Inputs]:
    import keras_hub

    model = keras_hub.models.ViTBackbone(
        image_shape=(16, 16, 3),
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
    )
    return model, noise(16, 16, 3)


def _nothing_to_prune(message: str) -> dict[str, str]:
    return dict.fromkeys(("prune, apply", "IMP, rewind"), message)


def _all() -> list[Kind]:
    layers = keras.layers
    built, after = "How it is built", "What was done to it before"
    recurrent, hub = "Recurrent", "KerasHub, random weights"
    applications = "`keras.applications`, random weights, no top"
    return [
        Kind(built, "sequential", _sequential),
        Kind(built, "functional", _functional),
        Kind(built, "nested, names repeated", _nested),
        Kind(built, "subclassed, with attention", _subclassed),
        Kind(built, "one layer shared by two inputs", _shared),
        Kind(built, "dictionaries of inputs and outputs", _several),
        Kind(
            built,
            "custom layer, kernel named otherwise",
            _custom,
            filters="mixing",
            note='`filters="mixing"`',
        ),
        Kind(
            built,
            "the same without `filters`",
            _custom,
            known=_nothing_to_prune("Name your own weights with `filters`"),
        ),
        Kind(recurrent, "LSTM", _recurrent(lambda: layers.LSTM(8))),
        Kind(recurrent, "GRU", _recurrent(lambda: layers.GRU(8))),
        Kind(
            recurrent,
            "Bidirectional LSTM, then SimpleRNN",
            _recurrent(
                lambda: layers.Bidirectional(
                    layers.LSTM(8, return_sequences=True)
                ),
                lambda: layers.SimpleRNN(8),
            ),
        ),
        Kind(
            recurrent,
            "RNN over stacked cells",
            _recurrent(
                lambda: layers.RNN([layers.LSTMCell(8), layers.GRUCell(8)])
            ),
        ),
        Kind(
            recurrent,
            "ConvLSTM2D",
            _recurrent(
                lambda: layers.ConvLSTM2D(4, 3, padding="same"),
                shape=(3, 6, 6, 2),
            ),
        ),
        Kind(
            recurrent,
            "TimeDistributed convolution",
            _recurrent(
                lambda: layers.TimeDistributed(layers.Conv1D(4, 3)),
                shape=(3, 6, 2),
            ),
        ),
        Kind(
            after,
            "zeros in its weights, no masks",
            _sparse_already,
            note="old zeros go first; they count as weights until pruned",
        ),
        Kind(
            after,
            "`layer.enable_lora`",
            _lora,
            known={".keras": "zeros of the file"},
            note="saving merges a dense update: see *LoRA* below",
        ),
        Kind(
            after,
            '`model.quantize("int8")`',
            _int8,
            known=_nothing_to_prune("quantize it after pruning"),
            note="quantize after pruning: see *int8* below",
        ),
        Kind(
            after,
            "one layer in int8",
            _int8_partly,
            note="the float kernels are pruned, the int8 kernel is not",
        ),
        *(
            Kind(applications, name, _application(name, **options))
            for name, options in _APPLICATIONS.items()
        ),
        Kind(
            hub,
            "BertBackbone",
            _text("BertBackbone", **_TRANSFORMER, max_sequence_length=8),
        ),
        Kind(
            hub,
            "GPT2Backbone",
            _text("GPT2Backbone", **_TRANSFORMER, max_sequence_length=8),
        ),
        Kind(
            hub,
            "LlamaBackbone",
            _text(
                "LlamaBackbone",
                num_layers=2,
                num_query_heads=2,
                num_key_value_heads=1,
                hidden_dim=16,
                intermediate_dim=32,
            ),
        ),
        Kind(hub, "ViTBackbone", _vision),
    ]


_APPLICATIONS: Mapping[str, Mapping[str, Any]] = {
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

KINDS = {kind.name: kind for kind in _all()}
