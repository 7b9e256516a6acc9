"""Models of all kinds, pruned at random; sparse methods without measuring."""

import keras
import numpy as np
import pytest

from tf_tickets.export import choosing
from tf_tickets.export.kernels import Choice, methods_for
from tf_tickets.selection import prunable_weights


def prune_at_random(model, density, seed=0):
    """Zero weights at random; the rest, and the statistics, are not alike."""
    rng = np.random.default_rng(seed)
    prunable = prunable_weights(model)
    for variable in model.weights:
        value = keras.ops.convert_to_numpy(variable)
        if any(variable is one for one in prunable.values()):
            value = np.where(rng.random(value.shape) < density, value, 0)
        elif "float" in str(value.dtype):
            value = value + 0.1 * rng.random(value.shape)
        variable.assign(value)
    return model


def choose_all(prefer=()):
    """Like `choosing.choose`, but each layer takes a method unmeasured."""

    def choose(source, batch_sizes):
        choices = {}
        for site in choosing.sites_of(source, max(batch_sizes)):
            methods = methods_for(site.layer, site.kernel)
            names = [name for name in prefer if name in methods] or [*methods]
            choices[site.key] = Choice(site.layer, methods[names[0]])
        return choices, {}

    return choose


@pytest.fixture
def all_sparse(monkeypatch):
    """Every layer that can be sparse is; also a whole that is slower."""
    from tf_tickets.export import savedmodel

    monkeypatch.setattr(choosing, "choose", choose_all())
    monkeypatch.setattr(savedmodel, "_slower_than_dense", lambda *_: {})


class Subclassed(keras.Model):
    """Layers held as attributes and in a list, one of them used twice."""

    def __init__(self):
        super().__init__(name="subclassed")
        self.first = keras.layers.Dense(64, activation="relu", name="first")
        self.shared = [keras.layers.Dense(64, name="shared")]
        self.last = keras.layers.Dense(5, name="last")

    def call(self, inputs, training=False):
        x = self.shared[0](self.first(inputs))
        return self.last(self.shared[0](x))


def subclassed():
    model = Subclassed()
    model(np.zeros((2, 80), "float32"))
    return model


def nested():
    """A functional model in a functional model, several ins and outs."""
    inner_in = keras.Input((80,), name="inner_in")
    inner = keras.Model(
        inner_in,
        keras.layers.Dense(64, activation="relu", name="inner_dense")(inner_in),
        name="inner",
    )
    a = keras.Input((80,), name="a")
    b = keras.Input((80,), name="b")
    joined = keras.layers.Concatenate(name="join")([inner(a), inner(b)])
    return keras.Model(
        {"a": a, "b": b},
        {
            "logits": keras.layers.Dense(100, name="logits")(joined),
            "code": joined,
        },
        name="nested",
    )


def convolutions():
    layers = keras.layers
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


def sequences():
    layers = keras.layers
    inputs = keras.Input((6, 64), name="sequence")
    x = layers.MultiHeadAttention(4, 16, name="attention")(inputs, inputs)
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.EinsumDense("abc,cd->abd", (6, 96), name="einsum")(x)
    x = layers.Dense(70, activation="gelu", name="each")(x)
    x = layers.GRU(48, name="gru")(x)
    return keras.Model(inputs, x, name="sequences")


def text():
    layers = keras.layers
    inputs = keras.Input((1,), dtype="string", name="text")
    x = layers.TextVectorization(
        vocabulary=["lottery", "ticket"], output_sequence_length=4, name="words"
    )(inputs)
    x = layers.Embedding(4, 64, name="embed")(x)
    x = layers.Flatten(name="flat")(x)
    return keras.Model(inputs, layers.Dense(80, name="head")(x), name="text")


def mixed():
    policy = "mixed_bfloat16"
    return keras.Sequential(
        [
            keras.Input((80,)),
            keras.layers.Dense(300, activation="relu", dtype=policy),
            keras.layers.Dense(60, dtype=policy),
        ],
        name="mixed",
    )


def quantized():
    model = keras.Sequential(
        [
            keras.Input((80,)),
            keras.layers.Dense(400, activation="relu"),
            keras.layers.Dense(100),
        ],
        name="quantized",
    )
    prune_at_random(model, 0.05)
    model.quantize("int8")
    return model


MODELS = {
    function.__name__: function
    for function in (
        subclassed,
        nested,
        convolutions,
        sequences,
        text,
        mixed,
        quantized,
    )
}


def inputs_for(name, model, batch, seed=0):
    rng = np.random.default_rng(seed)
    if name == "text":
        return np.array([["a lottery ticket"], ["ticket"]] * batch)[:batch]
    if name == "nested":
        return {k: rng.normal(size=(batch, 80)).astype("float32") for k in "ab"}
    shape = (80,) if name == "subclassed" else model.input_shape[1:]
    return rng.normal(size=(batch, *shape)).astype("float32")


def close(a, b, tolerance=1e-5):
    """Equal to ``tolerance`` of the largest output."""
    for one, other in zip(
        keras.tree.flatten(a), keras.tree.flatten(b), strict=True
    ):
        one = np.asarray(one, "float64")
        other = np.asarray(other, "float64")
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max()
