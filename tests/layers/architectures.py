"""Small models of every kind that a mask has to reach into."""

import keras
import tensorflow as tf
from keras import layers


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = layers.Dense(12, activation="relu")
        self.norm = layers.BatchNormalization()
        self.head = layers.Dense(4)

    def call(self, inputs, training=None):
        return self.head(self.norm(self.hidden(inputs), training=training))


def subclassed():
    model = Subclassed(name="subclassed")
    model(keras.ops.zeros((1, 8)))
    return model


def nested():
    inner = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(8, activation="relu"),
            layers.BatchNormalization(),
        ],
        name="inner",
    )
    inputs = keras.Input((8,))
    return keras.Model(inputs, layers.Dense(4)(inner(inner(inputs))))


def shared():
    layer = layers.Dense(8, activation="tanh", name="shared")
    inputs = keras.Input((8,))
    x = layers.Add()([layer(inputs), layer(layer(inputs))])
    return keras.Model(inputs, layers.Dense(4, name="head")(x))


def convolutional():
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


def attention():
    inputs = keras.Input((8,))
    x = layers.Dense(6)(layers.Reshape((4, 2))(inputs))
    y = layers.MultiHeadAttention(2, 3)(x, x)
    x = layers.LayerNormalization()(x + y)
    return keras.Model(
        inputs, layers.Dense(4)(layers.GlobalAveragePooling1D()(x))
    )


def recurrent():
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


ARCHITECTURES = {
    f.__name__: f
    for f in (
        subclassed,
        nested,
        shared,
        convolutional,
        attention,
        recurrent,
    )
}


def two_replicas():
    """A strategy over two logical CPUs that does not share a process badly.

    TensorFlow numbers the collectives of every MirroredStrategy anew, so the
    default reduction fails in the second strategy of a process whose
    gradients have another size, whatever the model.
    """
    return tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()
    )
