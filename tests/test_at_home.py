"""Models as people write them, through the steps of the README.

They are those of the guides and examples of keras.io, made small and changed
only where the documentation of this library says so.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tf_tickets as tt
from tests.conftest import ZerosHold
from tf_tickets.selection import named_weights

RNG = np.random.default_rng(0)
WORDS = np.array(["good", "bad", "fine", "poor"])


def numbers(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype("float32")


def whole(high: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, high, shape).astype("int32")


# --- text classification with a transformer ----------------------------------


@keras.saving.register_keras_serializable(package="at_home")
class TransformerBlock(layers.Layer):
    def __init__(self, embed_dim, num_heads, ff_dim, rate=0.1, **kwargs):
        super().__init__(**kwargs)
        self.arguments = (embed_dim, num_heads, ff_dim, rate)
        self.att = layers.MultiHeadAttention(num_heads, embed_dim)
        self.ffn = keras.Sequential(
            [layers.Dense(ff_dim, activation="relu"), layers.Dense(embed_dim)]
        )
        self.layernorm1 = layers.LayerNormalization(epsilon=1e-6)
        self.layernorm2 = layers.LayerNormalization(epsilon=1e-6)
        self.dropout1 = layers.Dropout(rate)
        self.dropout2 = layers.Dropout(rate)

    def call(self, inputs, training=None):
        attended = self.dropout1(self.att(inputs, inputs), training=training)
        out = self.layernorm1(inputs + attended)
        again = self.dropout2(self.ffn(out), training=training)
        return self.layernorm2(out + again)

    def get_config(self):
        names = ("embed_dim", "num_heads", "ff_dim", "rate")
        given = dict(zip(names, self.arguments, strict=True))
        return {**super().get_config(), **given}


@keras.saving.register_keras_serializable(package="at_home")
class TokenAndPositionEmbedding(layers.Layer):
    def __init__(self, maxlen, vocab_size, embed_dim, **kwargs):
        super().__init__(**kwargs)
        self.arguments = (maxlen, vocab_size, embed_dim)
        self.token_emb = layers.Embedding(vocab_size, embed_dim)
        self.pos_emb = layers.Embedding(maxlen, embed_dim)

    def call(self, x):
        positions = ops.arange(0, ops.shape(x)[-1], 1)
        return self.token_emb(x) + self.pos_emb(positions)

    def get_config(self):
        names = ("maxlen", "vocab_size", "embed_dim")
        given = dict(zip(names, self.arguments, strict=True))
        return {**super().get_config(), **given}


def transformer():
    inputs = layers.Input(shape=(6,))
    x = TokenAndPositionEmbedding(6, 20, 8)(inputs)
    x = TransformerBlock(8, 2, 16)(x)
    x = layers.GlobalAveragePooling1D()(x)
    x = layers.Dropout(0.1)(x)
    x = layers.Dense(10, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(2, activation="softmax")(x))


# --- image segmentation with a U-Net -----------------------------------------


def u_net():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same")(inputs)
    x = layers.BatchNormalization()(x)
    x = previous = layers.Activation("relu")(x)
    x = layers.Activation("relu")(x)
    x = layers.SeparableConv2D(12, 3, padding="same")(x)
    x = layers.BatchNormalization()(x)
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    residual = layers.Conv2D(12, 1, strides=2, padding="same")(previous)
    x = previous = layers.add([x, residual])
    for filters in (12, 8):
        x = layers.Activation("relu")(x)
        x = layers.Conv2DTranspose(filters, 3, padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.UpSampling2D(2)(x)
        residual = layers.UpSampling2D(2)(previous)
        residual = layers.Conv2D(filters, 1, padding="same")(residual)
        x = previous = layers.add([x, residual])
    outputs = layers.Conv2D(3, 3, activation="softmax", padding="same")(x)
    return keras.Model(inputs, outputs)


# --- a variational autoencoder with a training step of its own ---------------


@keras.saving.register_keras_serializable(package="at_home")
class Sampling(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, inputs):
        mean, log_var = inputs
        shape = (ops.shape(mean)[0], ops.shape(mean)[1])
        epsilon = keras.random.normal(shape=shape, seed=self.seed_generator)
        return mean + ops.exp(0.5 * log_var) * epsilon


@keras.saving.register_keras_serializable(package="at_home")
class VAE(keras.Model):
    def __init__(self, encoder, decoder, **kwargs):
        super().__init__(**kwargs)
        self.encoder = encoder
        self.decoder = decoder
        self.total_loss_tracker = keras.metrics.Mean(name="total_loss")

    @property
    def metrics(self):
        return [self.total_loss_tracker]

    def call(self, inputs):
        return self.decoder(self.encoder(inputs)[0])

    def train_step(self, data):
        with tf.GradientTape() as tape:
            mean, log_var, z = self.encoder(data)
            error = ops.mean(ops.square(data - self.decoder(z)))
            divergence = 1 + log_var - ops.square(mean) - ops.exp(log_var)
            loss = error - 0.5 * ops.mean(divergence)
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(
            zip(gradients, self.trainable_weights, strict=True)
        )
        self.total_loss_tracker.update_state(loss)
        return {"loss": self.total_loss_tracker.result()}

    def get_config(self):
        parts = {"encoder": self.encoder, "decoder": self.decoder}
        saved = {
            k: keras.saving.serialize_keras_object(v) for k, v in parts.items()
        }
        return {**super().get_config(), **saved}

    @classmethod
    def from_config(cls, config):
        for name in ("encoder", "decoder"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)


def vae():
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, activation="relu", strides=2, padding="same")(
        inputs
    )
    x = layers.Dense(8, activation="relu")(layers.Flatten()(x))
    mean = layers.Dense(2, name="z_mean")(x)
    log_var = layers.Dense(2, name="z_log_var")(x)
    encoder = keras.Model(
        inputs, [mean, log_var, Sampling()([mean, log_var])], name="encoder"
    )
    latent = keras.Input((2,))
    x = layers.Dense(4 * 4 * 4, activation="relu")(latent)
    x = layers.Reshape((4, 4, 4))(x)
    x = layers.Conv2DTranspose(
        1, 3, activation="sigmoid", strides=2, padding="same"
    )(x)
    return VAE(encoder, keras.Model(latent, x, name="decoder"))


# --- Siamese networks with a contrastive loss --------------------------------


@keras.saving.register_keras_serializable(package="at_home")
def euclidean_distance(vects):
    x, y = vects
    total = ops.sum(ops.square(x - y), axis=1, keepdims=True)
    return ops.sqrt(ops.maximum(total, keras.backend.epsilon()))


@keras.saving.register_keras_serializable(package="at_home")
def contrastive_loss(y_true, y_pred):
    margin = ops.square(ops.maximum(1 - y_pred, 0))
    y_true = ops.cast(y_true, y_pred.dtype)
    return ops.mean((1 - y_true) * ops.square(y_pred) + y_true * margin)


def siamese():
    inputs = keras.Input((8, 8, 1))
    x = layers.BatchNormalization()(inputs)
    x = layers.Conv2D(4, (5, 5), activation="tanh")(x)
    x = layers.AveragePooling2D(pool_size=(2, 2))(x)
    x = layers.BatchNormalization()(layers.Flatten()(x))
    tower = keras.Model(inputs, layers.Dense(10, activation="tanh")(x))
    left, right = keras.Input((8, 8, 1)), keras.Input((8, 8, 1))
    merged = layers.Lambda(euclidean_distance, output_shape=(1,))(
        [tower(left), tower(right)]
    )
    normal = layers.BatchNormalization()(merged)
    output = layers.Dense(1, activation="sigmoid")(normal)
    return keras.Model([left, right], output)


# --- structured data: lookups and numbers, several inputs by name ------------


def structured():
    inputs = {
        "thal": keras.Input((1,), name="thal", dtype="string"),
        "vessels": keras.Input((1,), name="vessels", dtype="int64"),
        "age": keras.Input((1,), name="age"),
    }
    words = layers.StringLookup(vocabulary=list(WORDS), output_mode="one_hot")
    counts = layers.IntegerLookup(vocabulary=[1, 2, 3], output_mode="one_hot")
    age = layers.Normalization(axis=-1)
    age.adapt(numbers(16, 1) * 7 + 40)
    x = layers.concatenate(
        [
            words(inputs["thal"]),
            counts(inputs["vessels"]),
            age(inputs["age"]),
        ]
    )
    x = layers.Dropout(0.5)(layers.Dense(32, activation="relu")(x))
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))


# --- raw text in, a score out ------------------------------------------------


def raw_text():
    vectorize = layers.TextVectorization(
        max_tokens=20, output_mode="int", output_sequence_length=6
    )
    vectorize.adapt([" ".join(WORDS)])
    inputs = keras.Input(shape=(1,), dtype="string")
    x = layers.Embedding(21, 8)(vectorize(inputs))
    x = layers.Dropout(0.5)(x)
    x = layers.Conv1D(8, 3, padding="valid", activation="relu")(x)
    x = layers.GlobalMaxPooling1D()(x)
    x = layers.Dense(8, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))


# --- several inputs and outputs by name, a loss for each ---------------------


def several():
    title = keras.Input(shape=(None,), name="title")
    body = keras.Input(shape=(None,), name="body")
    tags = keras.Input(shape=(4,), name="tags")
    titles = layers.LSTM(8)(layers.Embedding(20, 8)(title))
    bodies = layers.LSTM(6)(layers.Embedding(20, 8)(body))
    x = layers.concatenate([titles, bodies, tags])
    return keras.Model(
        inputs=[title, body, tags],
        outputs={
            "priority": layers.Dense(1, name="priority")(x),
            "department": layers.Dense(4, name="department")(x),
        },
    )


# --- classes -----------------------------------------------------------------


@keras.saving.register_keras_serializable(package="at_home")
class WideDeep(keras.Model):
    """A class that takes a dictionary."""

    def __init__(self, units=16, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden1 = layers.Dense(units, activation="relu")
        self.hidden2 = layers.Dense(units, activation="relu")
        self.head = layers.Dense(1)

    def call(self, inputs, training=False):
        deep = self.hidden2(self.hidden1(inputs["deep"]))
        return self.head(ops.concatenate([inputs["wide"], deep], axis=-1))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def deferred():
    """No input shape until there are data."""
    return keras.Sequential(
        [
            layers.Dense(16, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(2),
        ]
    )


def bidirectional():
    inputs = keras.Input(shape=(None,), dtype="int32")
    x = layers.Embedding(20, 8)(inputs)
    x = layers.Bidirectional(layers.LSTM(6, return_sequences=True))(x)
    x = layers.GRU(6)(x)
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))


# --- image classification with a vision transformer --------------------------


@keras.saving.register_keras_serializable(package="at_home")
class Patches(layers.Layer):
    def __init__(self, patch_size, **kwargs):
        super().__init__(**kwargs)
        self.patch_size = patch_size

    def call(self, images):
        _, height, width, channels = images.shape
        size = self.patch_size
        patches = keras.ops.image.extract_patches(images, size=size)
        return ops.reshape(
            patches,
            (-1, (height // size) * (width // size), size * size * channels),
        )

    def get_config(self):
        return {**super().get_config(), "patch_size": self.patch_size}


@keras.saving.register_keras_serializable(package="at_home")
class PatchEncoder(layers.Layer):
    def __init__(self, num_patches, projection_dim, **kwargs):
        super().__init__(**kwargs)
        self.num_patches, self.projection_dim = num_patches, projection_dim
        self.projection = layers.Dense(units=projection_dim)
        self.position_embedding = layers.Embedding(num_patches, projection_dim)

    def call(self, patch):
        positions = ops.expand_dims(ops.arange(0, self.num_patches, 1), axis=0)
        return self.projection(patch) + self.position_embedding(positions)

    def get_config(self):
        own = {
            "num_patches": self.num_patches,
            "projection_dim": self.projection_dim,
        }
        return {**super().get_config(), **own}


def vision_transformer():
    inputs = keras.Input((8, 8, 3))
    augmented = keras.Sequential([layers.RandomFlip("horizontal")])(inputs)
    encoded = PatchEncoder(4, 8)(Patches(4)(augmented))
    x1 = layers.LayerNormalization(epsilon=1e-6)(encoded)
    attention = layers.MultiHeadAttention(2, 8, dropout=0.1)(x1, x1)
    x2 = layers.Add()([attention, encoded])
    x3 = layers.LayerNormalization(epsilon=1e-6)(x2)
    x3 = layers.Dense(16, activation=keras.activations.gelu)(x3)
    encoded = layers.Add()([layers.Dense(8)(x3), x2])
    x = layers.Flatten()(layers.LayerNormalization(epsilon=1e-6)(encoded))
    return keras.Model(inputs, layers.Dense(4)(layers.Dropout(0.5)(x)))


# --- two models and two optimizers -------------------------------------------


class GAN(keras.Model):
    def __init__(self, discriminator, generator, latent_dim):
        super().__init__()
        self.discriminator = discriminator
        self.generator = generator
        self.latent_dim = latent_dim
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, latent):
        return self.generator(latent)

    def compile(self, d_optimizer, g_optimizer, loss_fn):
        super().compile()
        self.d_optimizer = d_optimizer
        self.g_optimizer = g_optimizer
        self.loss_fn = loss_fn

    def train_step(self, real):
        count = ops.shape(real)[0]
        shape = (count, self.latent_dim)
        latent = keras.random.normal(shape, seed=self.seed_generator)
        both = ops.concatenate([self.generator(latent), real], axis=0)
        labels = ops.concatenate([ops.ones((count, 1)), ops.zeros((count, 1))])
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(labels, self.discriminator(both))
        weights = self.discriminator.trainable_weights
        self.d_optimizer.apply_gradients(
            zip(tape.gradient(d_loss, weights), weights, strict=True)
        )
        with tf.GradientTape() as tape:
            judged = self.discriminator(self.generator(latent))
            g_loss = self.loss_fn(ops.zeros((count, 1)), judged)
        weights = self.generator.trainable_weights
        self.g_optimizer.apply_gradients(
            zip(tape.gradient(g_loss, weights), weights, strict=True)
        )
        return {"d_loss": d_loss, "g_loss": g_loss}


def gan():
    discriminator = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(6, 3, strides=2, padding="same"),
            layers.LeakyReLU(negative_slope=0.2),
            layers.GlobalMaxPooling2D(),
            layers.Dense(1),
        ],
        name="discriminator",
    )
    generator = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(4 * 4 * 4),
            layers.LeakyReLU(negative_slope=0.2),
            layers.Reshape((4, 4, 4)),
            layers.Conv2DTranspose(4, 4, strides=2, padding="same"),
            layers.LeakyReLU(negative_slope=0.2),
            layers.Conv2D(1, 5, padding="same", activation="sigmoid"),
        ],
        name="generator",
    )
    model = GAN(discriminator, generator, 6)
    model.compile(
        keras.optimizers.Adam(3e-4),
        keras.optimizers.Adam(3e-4),
        keras.losses.BinaryCrossentropy(from_logits=True),
    )
    # As docs/models.md says: a class must have been called.
    model.build((None, 6))
    return model


# --- metric learning ---------------------------------------------------------


@keras.saving.register_keras_serializable(package="at_home")
class EmbeddingModel(keras.Model):
    """A functional model whose class has a training step and a loss."""

    def train_step(self, data):
        anchors, positives = data[:, 0], data[:, 1]
        with tf.GradientTape() as tape:
            one = self(anchors, training=True)
            other = self(positives, training=True)
            similarities = ops.einsum("ae,pe->ap", one, other) / 0.2
            loss = self.compute_loss(y=ops.arange(8), y_pred=similarities)
        weights = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}


def metric_learning():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, strides=2, activation="relu")(inputs)
    x = layers.Conv2D(8, 2, activation="relu")(x)
    x = layers.Dense(8, activation=None)(layers.GlobalAveragePooling2D()(x))
    x = layers.UnitNormalization()(x)
    return EmbeddingModel(inputs, x)


# --- the steps ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, and what its example does with it.

    Attributes:
        make: The model.
        x: Inputs, by structure.
        y: Targets; `None` where its training takes none.
        compile: What `compile` is given; `None` where the model has done it.
        inference: What it predicts from, where that is not ``x``.
        signature: The `input_signature`, where sizes are left open.
        litert: Why a LiteRT file is refused; empty where it is written.
        is_graph: Whether the calls inside can be seen.
        saves: Whether the class can be saved as a `.keras` file.
        slow: Whether tracing it takes long, so that it is exported less often.
    """

    make: Callable[[], keras.Model]
    x: Any
    y: Any = None
    compile: dict[str, Any] | None = None
    inference: Any = None
    signature: Any = None
    litert: str = ""
    is_graph: bool = True
    saves: bool = True
    slow: bool = False


LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
PROBABILITY = {"loss": "binary_crossentropy", "metrics": ["accuracy"]}
OPEN = {
    "title": tf.TensorSpec((None, 5), "int32"),
    "body": tf.TensorSpec((None, 7), "int32"),
    "tags": tf.TensorSpec((None, 4), "float32"),
}

CASES = {
    "transformer": Case(
        transformer,
        # Its input layer says float, as in the example.
        whole(20, 16, 6).astype("float32"),
        whole(2, 16),
        {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]},
        slow=True,
    ),
    "u_net": Case(
        u_net,
        numbers(16, 8, 8, 3),
        whole(3, 16, 8, 8, 1),
        {"loss": "sparse_categorical_crossentropy"},
        slow=True,
    ),
    "vae": Case(vae, numbers(16, 8, 8, 1), compile={}, is_graph=False),
    "siamese": Case(
        siamese,
        (numbers(16, 8, 8, 1), numbers(16, 8, 8, 1)),
        whole(2, 16),
        {"loss": contrastive_loss, "metrics": ["accuracy"]},
        slow=True,
    ),
    "structured": Case(
        structured,
        {
            "thal": RNG.choice(WORDS, (16, 1)),
            "vessels": whole(4, 16, 1).astype("int64"),
            "age": numbers(16, 1) * 7 + 40,
        },
        whole(2, 16),
        PROBABILITY,
        litert="LookupTableFindV2",
    ),
    "raw_text": Case(
        raw_text,
        RNG.choice(WORDS, (16, 1)),
        whole(2, 16),
        PROBABILITY,
        litert="LookupTableFindV2",
    ),
    "several": Case(
        several,
        {
            "title": whole(20, 16, 5),
            "body": whole(20, 16, 7),
            "tags": numbers(16, 4),
        },
        {"priority": whole(2, 16), "department": numbers(16, 4)},
        {
            "loss": {
                "priority": keras.losses.BinaryCrossentropy(from_logits=True),
                "department": "mse",
            },
            "loss_weights": {"priority": 1.0, "department": 0.2},
        },
        signature=[OPEN],
    ),
    "wide_and_deep": Case(
        WideDeep,
        {"wide": numbers(16, 3), "deep": numbers(16, 5)},
        numbers(16, 1),
        {"loss": "mse"},
        is_graph=False,
    ),
    "deferred": Case(deferred, numbers(16, 6), numbers(16, 2), {"loss": "mse"}),
    "bidirectional": Case(
        bidirectional,
        whole(20, 16, 5),
        whole(2, 16),
        PROBABILITY,
        signature=[tf.TensorSpec((None, 5), "int32")],
        slow=True,
    ),
    "vision_transformer": Case(
        vision_transformer,
        numbers(16, 8, 8, 3),
        whole(4, 16),
        {"loss": LOGITS, "metrics": ["accuracy"]},
        slow=True,
    ),
    "gan": Case(
        gan,
        numbers(16, 8, 8, 1),
        inference=numbers(16, 6),
        is_graph=False,
        saves=False,
    ),
    "metric_learning": Case(
        metric_learning,
        numbers(16, 2, 8, 8, 3),
        compile={"loss": LOGITS},
        inference=numbers(16, 8, 8, 3),
    ),
}


def outputs(made: Any) -> list[np.ndarray]:
    return [np.asarray(one) for one in keras.tree.flatten(made)]


def close(found: Any, expected: Any, **tolerance: float) -> None:
    pairs = zip(outputs(found), outputs(expected), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, **{"atol": 1e-5, **tolerance})


@pytest.mark.parametrize("name", CASES)
def test_the_steps_of_the_readme(name, tmp_path):
    case = CASES[name]
    model = case.make()
    if case.compile is not None:
        model.compile("adam", **case.compile)
    given = case.x if case.inference is None else case.inference
    x = keras.tree.map_structure(tf.constant, given)
    if not model.built:
        model(x)  # the README: a model without an input shape sees a batch
    data = tf.data.Dataset.from_tensor_slices(
        case.x if case.y is None else (case.x, case.y)
    ).batch(8)
    options = tf.data.Options()
    options.autotune.enabled = False
    data = data.with_options(options)
    if isinstance(x, tuple):
        x = list(x)

    # Draw.
    start = [variable.numpy() for variable in model.trainable_variables]
    imp = tt.callbacks.IterativeMagnitudePruning(
        target_sparsity=0.5, rounds=2, epochs_per_round=1, criterion="lamp"
    )
    model.fit(data, epochs=imp.epochs, verbose=0, callbacks=[imp])
    size = sum(v.numpy().size for v in tt.prunable_weights(model).values())
    assert abs(imp.ticket.kept - 0.5 * size) <= 0.5
    masks = {
        id(named_weights(model)[k]): m for k, m in imp.ticket.masks.items()
    }
    for variable, value in zip(model.trainable_variables, start, strict=True):
        mask = masks.get(id(variable), True)
        np.testing.assert_array_equal(variable, np.where(mask, value, 0))

    # Train it, pruning on.
    gradual = tt.callbacks.GradualPruning(
        target_sparsity=0.75, end_step=2, criterion="lamp"
    )
    model.fit(
        data,
        verbose=0,
        callbacks=[gradual, ZerosHold(imp.ticket.masks)],
    )
    ticket = gradual.ticket
    assert abs(ticket.kept - 0.25 * size) <= 0.5
    trained = outputs(predict(model, x))

    # Keep it: the ticket, and the model.
    ticket.save(tmp_path / "ticket")
    for variable in model.trainable_variables:
        variable.assign(variable + 1)
    tt.Ticket.load(tmp_path / "ticket").apply(model)
    close(predict(model, x), trained, atol=0)
    if case.saves:
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        again = tt.enforce_zeros(loaded)
        assert again.kept == ticket.kept
        assert again.hamming_distance(ticket) == 0
        assert tt.analysis.mask_distance_matrix([ticket, again]).sum() == 0
        close(predict(loaded, x), trained)

    # Strip it, count it.
    tt.release(model)
    assert all(v.constraint is None for v in model.trainable_variables)
    if case.is_graph:
        shape = keras.tree.map_structure(lambda v: tuple(v.shape[1:]), x)
        assert tt.analysis.flops(model, input_shape=shape).macs > 0
    else:
        with pytest.raises(ValueError, match="calls inside a subclassed"):
            tt.analysis.flops(model)

    # Ship it.
    how = {"input_signature": case.signature}
    for format in ["auto"] if case.slow else ["packed", "auto"]:
        made = tt.export.saved_model(
            model, tmp_path / format, format=format, batch_sizes=(2,), **how
        )
        served = tf.saved_model.load(made)  # hold it: TensorFlow does not
        close(served.serve(x), trained)
    if case.is_graph:
        assert any(row.flops for row in made.rows)
    if not case.slow:
        found = tt.export.report(made, model, batch_sizes=(2,), runs=1, **how)
        assert found.latencies[2] and found.differences[2] < 1e-4
    path = tmp_path / "model.tflite"
    if case.litert:
        with pytest.raises(ValueError, match="no kernels") as refused:
            tt.export.write(model, path, format="litert", **how)
        assert case.litert in str(refused.value)
    else:
        tt.export.write(model, path, format="litert", **how)
        run = tt.export.FORMATS["litert"].load(path)
        one = keras.tree.map_structure(lambda v: v[:1], x)
        by_shape = {y.shape: y for y in outputs(run(one))}
        for y in outputs(predict(model, one)):
            np.testing.assert_allclose(by_shape[y.shape], y, atol=1e-4)
    if case.signature:
        with pytest.raises(ValueError, match="give `input_signature`"):
            tt.export.report(made, model)


def predict(model: keras.Model, x: Any) -> Any:
    """What a model predicts; left alone, augmentation would train."""
    return model(x) if isinstance(model, GAN) else model(x, training=False)


# --- what nobody is told otherwise -------------------------------------------


def two_layers() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(16, activation="relu", name="hidden"),
            layers.Dense(4, name="head"),
        ]
    )


def test_what_is_served_does_not_train(tmp_path):
    """Augmentation trains by default, and with it all that comes after."""
    inputs = keras.Input((4, 4, 3))
    x = layers.RandomFlip("horizontal_and_vertical", seed=1)(inputs)
    x = layers.Flatten()(x)
    model = keras.Model(inputs, layers.Dense(4)(layers.Dropout(0.5)(x)))
    part = keras.Model(inputs, x)
    x = tf.constant(numbers(8, 4, 4, 3))
    for format in ("dense", "packed"):
        path = tmp_path / format
        tt.export.saved_model(
            model, path, format=format, endpoints={"part": part}
        )
        served = tf.saved_model.load(path)
        close(served.serve(x), model(x, training=False), atol=1e-6)
        close(served.part(x), part(x, training=False), atol=1e-6)


def test_a_lookup_without_unknown_words_is_exported_and_not_measured(
    tmp_path, monkeypatch
):
    inputs = keras.Input((1,), dtype="string")
    lookup = layers.StringLookup(vocabulary=list(WORDS), num_oov_indices=0)
    x = layers.Embedding(4, 64)(lookup(inputs))
    x = layers.Dense(128, name="wide")(layers.Flatten()(x))
    model = keras.Model(inputs, x)
    tt.prune(model, 0.95).apply(model)
    x = tf.constant([["good"], ["poor"]])
    # Whatever this machine is faster at: a sparse kernel is chosen.
    monkeypatch.setattr("tf_tickets.export.choosing.NOISE", -1e9, raising=True)
    made = tt.export.saved_model(model, tmp_path / "m", format="auto")
    served = tf.saved_model.load(made)
    close(served.serve(x), model(x))
    assert any("served densely, cannot be measured" in n for n in made.notes)
    with pytest.raises(ValueError, match="refuses the inputs that latency"):
        tt.export.report(made, model, batch_sizes=(1,))


def test_an_export_says_which_layers_are_all_zero(tmp_path, recwarn):
    model = two_layers()
    tt.export.saved_model(model, tmp_path / "whole")
    assert not [w for w in recwarn if "No weight is kept" in str(w.message)]
    model.get_layer("hidden").kernel.assign(np.zeros((8, 16)))
    with pytest.warns(UserWarning, match="1 of 2 tensors.*hidden/kernel"):
        made = tt.export.saved_model(
            model, tmp_path / "packed", format="packed"
        )
    recwarn.clear()
    tt.export.report(made, model, batch_sizes=(1,), runs=1)
    assert not recwarn.list


def test_weights_written_past_a_mask_are_told_of_and_put_right(
    tmp_path, recwarn
):
    model = two_layers()
    model.save_weights(tmp_path / "dense.weights.h5")
    model.compile("sgd", "mse")
    ticket = tt.prune(model, 0.75)
    ticket.apply(model)
    x, y = numbers(8, 8), numbers(8, 4)
    sparse = model.evaluate(x, y, verbose=0)
    how = {
        "callback": lambda: model.fit(
            x, y, verbose=0, callbacks=[tt.callbacks.EnforceTicket()]
        ),
        "ticket": lambda: tt.Ticket.from_model(model),
        "export": lambda: tt.export.saved_model(model, tmp_path / "model"),
    }
    for name, act in how.items():
        recwarn.clear()
        ticket.apply(model)
        model.load_weights(tmp_path / "dense.weights.h5")
        with pytest.warns(UserWarning, match="written them past") as told:
            act()
        assert len(told) == 1 and "head/kernel" in str(told[0].message), name
        assert __file__ in (told[0].filename, __file__)
        if name != "ticket":  # which only reads
            assert tt.Ticket.from_model(model).kept == ticket.kept
            kernels = [model.layers[0].kernel, model.layers[1].kernel]
            kept = sum(np.count_nonzero(kernel) for kernel in kernels)
            assert kept == ticket.kept
    # Before the first batch of `evaluate` and `predict`, too.
    for ask in (model.evaluate, model.predict):
        ticket.apply(model)
        model.load_weights(tmp_path / "dense.weights.h5")
        given = (x, y) if ask == model.evaluate else (x,)
        found = ask(*given, verbose=0, callbacks=[tt.callbacks.EnforceTicket()])
        expected = sparse if ask == model.evaluate else model(x)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_branches_laid_twice_have_names_of_their_own():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            layers.Conv2D(4, 3, padding="same", name="one"),
            layers.Conv2D(4, 3, padding="same", name="two"),
            layers.BatchNormalization(name="norm"),
            layers.Conv2D(4, 3, padding="same", name="two_2"),
        ]
    )
    once = tt.retraining.inject_skip_connections(model, filters="two/", scale=1)
    twice = tt.retraining.inject_skip_connections(once, scale=1)
    names = [layer.name for layer in twice.layers]
    assert len(set(names)) == len(names)
    assert {"two_skip_add", "two_2_skip_add", "two_2_2_skip_add"} <= {*names}
    x = numbers(2, 6, 6, 3)
    merged = tt.retraining.merge_skip_connections(twice)
    merged = tt.retraining.merge_skip_connections(merged)
    assert not [one for one in merged.layers if "skip" in one.name]
    close(merged(x), twice(x), atol=1e-4)


def test_tickets_from_before_and_after_loading_can_be_compared(tmp_path):
    model = keras.Sequential([layers.Dense(8), layers.Dense(8)])
    model(numbers(2, 8))
    one = tt.prune(model, 0.5)
    one.apply(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    other = tt.enforce_zeros(loaded)
    assert one.hamming_distance(other) == other.hamming_distance(one) == 0
    # Masks alone, under the paths of another process.
    bare = tt.Ticket(
        {f"sequential/dense_{i}/kernel": m for i, m in enumerate(
            one.shuffle(1).masks.values())}
    )  # fmt: skip
    direct = one.hamming_distance(one.shuffle(1))
    assert one.hamming_distance(bare) == direct > 0
    with pytest.raises(ValueError, match="cover different weights. Received"):
        one.hamming_distance(tt.prune(two_layers(), 0.5))


# --- tuners ------------------------------------------------------------------


def tuned(hp: Any) -> keras.Model:
    model = two_layers()
    model.compile("sgd", "mse")
    return model


def trial(hp: Any, model: keras.Model, train: Any, val: Any, callbacks: Any):
    """As docs/other_callbacks.md has it."""
    imp = tt.callbacks.IterativeMagnitudePruning(
        target_sparsity=hp.Float("sparsity", 0.5, 0.75, step=0.25),
        rounds=2,
        epochs_per_round=1,
    )
    model.fit(train, epochs=imp.epochs, verbose=0, callbacks=[imp])
    return model.fit(
        train, epochs=2, verbose=0, validation_data=val, callbacks=callbacks
    )


@pytest.mark.parametrize("tuner", ["keras_tuner", "loop"])
def test_the_best_model_of_a_tuner_is_what_was_scored(tuner, tmp_path):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(32, 8)).astype("float32")
    train = val = tf.data.Dataset.from_tensor_slices(
        (x, x @ rng.normal(size=(8, 4)).astype("float32"))
    ).batch(16)
    if tuner == "keras_tuner":
        keras_tuner = pytest.importorskip("keras_tuner")

        class Sparse(keras_tuner.HyperModel):
            def build(self, hp):
                return tuned(hp)

            def fit(self, hp, model, train, val, **kwargs):
                return trial(hp, model, train, val, kwargs["callbacks"])

        search = keras_tuner.GridSearch(
            Sparse(), "val_loss", max_trials=2, directory=tmp_path
        )
        search.search(train, val, verbose=0)
        (best,) = search.get_best_models(1)
        (found,) = search.oracle.get_best_trials(1)
        score, sparsity = found.score, found.hyperparameters.get("sparsity")
    else:
        trials = []
        for number, chosen in enumerate((0.5, 0.75)):

            class Chosen:
                def Float(self, name, *range, _chosen=chosen, **options):
                    return _chosen

            path = tmp_path / f"{number}.weights.h5"
            keep = keras.callbacks.ModelCheckpoint(
                path, "val_loss", save_best_only=True, save_weights_only=True
            )
            history = trial(Chosen(), tuned(None), train, val, [keep])
            trials.append((min(history.history["val_loss"]), chosen, path))
        score, sparsity, path = min(trials)
        best = tuned(None)
        best.load_weights(path)
    assert best.evaluate(val, verbose=0) == pytest.approx(score, rel=1e-5)
    assert tt.enforce_zeros(best).sparsity == sparsity
