"""Several small cuts in one training end where one draw would begin."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_tickets as tt
from tests import gallery
from tests.conftest import compiled
from tf_tickets import masking


def tokens(count=12):
    rng = np.random.default_rng(0)
    words = rng.integers(0, gallery.VOCABULARY, (count, 6)).astype("int32")
    x = {"token_ids": words, "padding_mask": np.ones_like(words)}
    return x, rng.integers(0, 4, count)


def test_cuts_are_nested_exact_and_zero_after_every_step():
    model = compiled(gallery.bert(depth=1, dropout=0.1), "adam")
    x, y = tokens()
    pruning = tt.callbacks.GroupPruning(
        {"heads": 0.5, "widths": 0.75},
        cuts=3,
        every=2,
        criterion="taylor",
        data=(x, y),
    )
    before = dict.fromkeys(range(8), 0)

    class Counts(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            kernel = model.get_layer("block_0")._intermediate.kernel.numpy()
            before[self.epoch] = int((~kernel.any(0)).sum())

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

    model.fit(
        x, y, batch_size=4, epochs=8, verbose=0, callbacks=[pruning, Counts()]
    )
    assert list(pruning.tickets) == [1, 3, 5]
    assert list(before.values()) == [0, 6, 6, 12, 12, 18, 18, 18]
    first, second, last = pruning.tickets.values()
    for one, other in ((first, second), (second, last)):
        for key, mask in other.masks.items():
            assert not (mask & ~one.masks[key]).any()
    assert pruning.ticket is last
    small = tt.structured.shrink(model, last)
    np.testing.assert_allclose(model(x), small(x), atol=1e-5)
    assert small.get_layer("block_0")._attention.num_heads == 2


def test_errors_come_before_training():
    model = compiled(gallery.bert(depth=1))
    x, y = tokens()

    def fit(**options):
        pruning = tt.callbacks.GroupPruning(0.5, **options)
        model.fit(x, y, epochs=3, verbose=0, callbacks=[pruning])

    with pytest.raises(ValueError, match="No epoch is left"):
        fit(cuts=3)
    with pytest.raises(ValueError, match="data=None"):
        fit(cuts=1, criterion="taylor")
    with pytest.raises(ValueError, match="no such groups"):
        fit(cuts=1, groups=["blocks"])
    with pytest.raises(ValueError, match="cuts"):
        fit(cuts=0)


def attended():
    x = inputs = keras.Input((6, 8))
    y = layers.MultiHeadAttention(4, 2, dropout=0.2, name="attention")(x, x)
    x = layers.LayerNormalization(name="norm")(x + y)
    y = layers.Dense(12, "relu", name="wide")(x)
    y = layers.Dropout(0.2)(y)
    x = x + layers.Dense(8, name="narrow")(y)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(x))


def test_a_run_that_died_ends_like_one_that_lived(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 6, 8)), rng.integers(0, 4, 12)
    data = tt.data.shuffled((x, y), seed=0).batch(6)
    options = tf.data.Options()
    options.autotune.enabled = False
    data = data.with_options(options)

    class Die(keras.callbacks.Callback):
        def __init__(self, at):
            super().__init__()
            self.at = at

        def on_train_batch_begin(self, batch, logs=None):
            if (self.epoch, batch) == self.at:
                raise KeyboardInterrupt

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

    def run(name, die_at=None):
        keras.utils.set_random_seed(1)
        # A few steps of five runs take less time than five traces.
        sgd = keras.optimizers.SGD(0.1, momentum=0.9)
        model = compiled(attended(), sgd, run_eagerly=True)
        # What is pruned before is pruned after.
        ticket = tt.prune(model, 0.2)
        ticket.apply(model)
        pruning = tt.callbacks.GroupPruning(
            {"heads": 0.5, "widths": 0.75},
            cuts=3,
            criterion="taylor",
            data=(x, y),
            directory=tmp_path / name,
        )
        try:
            history = model.fit(
                data, epochs=5, verbose=0, callbacks=[pruning, Die(die_at)]
            )
        except KeyboardInterrupt:
            return None
        return model, pruning, history.epoch

    # Before the first cut, between two, and after the last.
    for die_at in ((0, 1), (2, 1), (4, 0)):
        assert run("killed", die_at) is None
    resumed, pruning, epochs = run("killed")
    assert epochs == [4]
    whole, expected, _ = run("whole")
    assert list(pruning.tickets) == list(expected.tickets) == [1, 2, 3]
    assert pruning.ticket is pruning.tickets[3]
    for one, other in zip(
        pruning.tickets.values(), expected.tickets.values(), strict=True
    ):
        for mine, theirs in (
            (one.masks, other.masks),
            (one.scores, other.scores),
            (one.weights, other.weights),
        ):
            for a, b in zip(mine.values(), theirs.values(), strict=True):
                np.testing.assert_array_equal(a, b)
    for a, b in zip(resumed.variables, whole.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(
        masking.attached_masks(resumed).values(),
        masking.attached_masks(whole).values(),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(
        resumed.optimizer.variables, whole.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(a, b)
