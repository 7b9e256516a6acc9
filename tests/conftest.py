"""Seeds, two logical CPUs, small models and a small real task for all tests."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import pytest
import tensorflow as tf

# Must come before TensorFlow starts: distribution is tested on two of them.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)


@pytest.fixture(autouse=True)
def _fresh_seed():
    keras.utils.set_random_seed(0)
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.fixture
def data():
    """Sixty-four points in eight dimensions, four classes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8)).astype("float32")
    return x, (x @ rng.normal(size=(8, 4))).argmax(1)


def mlp(hidden=32, **dense):
    """A fresh 8-hidden-4 classifier with normalisation and dropout."""
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(hidden, name="hidden", **dense),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.ReLU(name="relu"),
            keras.layers.Dropout(0.2, seed=1, name="drop"),
            keras.layers.Dense(4, name="head"),
        ],
        name="mlp",
    )


def compiled(model, optimizer="sgd", **options):
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **options,
    )
    return model


def batches(x, y, size=16):
    """A dataset in fixed order, with no autotuner to wait for."""
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(
        size, drop_remainder=True
    )
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    return dataset.with_options(options)


class ZerosHold(keras.callbacks.Callback):
    """Fail at the first batch after which a pruned weight is not zero."""

    def __init__(self, masks):
        super().__init__()
        self.masks = masks
        self.checked = 0

    def on_train_batch_end(self, batch, logs=None):
        from tf_tickets.selection import named_weights

        weights = named_weights(self.model)
        for path, mask in self.masks.items():
            value = weights[path].numpy()
            assert (value[~mask] == 0).all(), f"{path} after batch {batch}"
            assert (value[mask] != 0).any()
            self.checked += 1


class DieAt(keras.callbacks.Callback):
    """An interrupt when the epoch of this index begins; `None` is never."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt
