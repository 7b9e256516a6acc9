import re

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests import gallery
from tests.conftest import ZerosHold, compiled, difference, images, mlp
from tf_tickets import masking
from tf_tickets.retraining import (
    AnnealActivations,
    TemporaryActivation,
    replace_activations,
)
from tf_tickets.selection import named_weights


def swish(x):
    return x / (1 + np.exp(-x))


class Rectified(keras.Model):
    def __init__(self, relu_layer=False):
        super().__init__(name="mine")
        self.one = keras.layers.Dense(8, activation="relu", name="one")
        self.two = keras.layers.Dense(4, name="two")
        self.relu = keras.layers.ReLU(name="act") if relu_layer else None

    def call(self, x):
        x = self.two(self.one(x))
        return x if self.relu is None else self.relu(x)


def everywhere():
    """Every form of a ReLU, shared and nested layers among them."""
    x = i = keras.Input((4,))
    shared = keras.layers.Dense(4, activation=keras.ops.relu, name="shared")
    inner = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(4, activation="relu", name="dense"),
            keras.layers.ReLU(6, name="six"),
        ],
        name="inner",
    )
    x = inner(shared(shared(x)))
    x = keras.ops.relu(x - 0.1)
    x = keras.activations.relu(x - 0.1)
    x = keras.layers.Activation("relu", name="act")(x)
    x = keras.layers.ReLU(name="last")(x)
    x = gallery.Fixed(name="fixed")(x)
    x = keras.layers.Reshape((2, 2))(x)
    x = keras.layers.LSTM(3, activation="relu", name="lstm")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    return keras.Model(i, x, name="everywhere")


def test_swapping_relu_for_relu_changes_nothing():
    model = everywhere()
    tt.prune(model, sparsity=0.5).apply(model)
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    same = replace_activations(model, "relu")
    assert difference(model, same, x) == 0
    old, new = masking.attached_masks(model), masking.attached_masks(same)
    assert len(old) == 5
    for one, other in zip(old.values(), new.values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_form_of_relu_is_found(tmp_path):
    model = everywhere()
    smooth, report = replace_activations(model, return_report=True)
    assert report.activation == "silu"
    places = [re.sub(r"_\d+$", "", p) for p in report.replaced]
    assert sorted(places) == [
        "act.activation",
        "dense.activation",
        "fixed.relu",
        "fixed/inner.activation",
        "last",
        "lstm.activation",
        "re_lu",
        "relu",
        "shared.activation",
        "six",
    ]
    assert report.unsaved == ("fixed",)
    smooth.save(tmp_path / "smooth.keras")
    back = keras.models.load_model(tmp_path / "smooth.keras")
    assert back.get_layer("shared").activation is keras.activations.silu
    assert back.get_layer("fixed").dense.activation is keras.activations.relu
    # Another copy has the layer as it is, and not as its code makes it.
    bent = replace_activations(smooth, "tanh", replaces=["silu"])
    fixed = bent.get_layer("fixed")
    assert fixed.dense.activation is keras.activations.tanh
    assert fixed.relu.activation is keras.activations.tanh


def test_two_activations_of_one_layer_are_named_in_order():
    model = keras.Sequential(
        [
            keras.Input((2, 2)),
            keras.layers.GRU(
                3, "relu", recurrent_activation="relu", name="gru"
            ),
        ]
    )
    _, report = replace_activations(model, "tanh", return_report=True)
    assert report.replaced == ("gru.activation", "gru.recurrent_activation")


def test_values_are_those_of_the_formula():
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(6, activation="relu")]
    )
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    kernel = model.layers[0].kernel.numpy()
    np.testing.assert_allclose(
        replace_activations(model, "swish")(x), swish(x @ kernel), atol=1e-5
    )
    np.testing.assert_allclose(model(x), np.maximum(x @ kernel, 0), atol=1e-5)
    z = x @ kernel
    np.testing.assert_allclose(
        replace_activations(model, "mish")(x),
        z * np.tanh(np.log1p(np.exp(z))),
        atol=1e-5,
    )


def test_a_ticket_trains_on_with_the_new_activation():
    model = compiled(gallery.block(), "adam")
    ticket = tt.prune(model, sparsity=0.8)
    smooth = replace_activations(model, "mish")
    assert list(named_weights(smooth)) == list(named_weights(model))
    ticket.apply(smooth)
    for key, value in ticket.weights.items():
        kept = ticket.masks.get(key, np.ones(value.shape, bool))
        np.testing.assert_array_equal(
            named_weights(smooth)[key].numpy(), np.where(kept, value, 0)
        )
    hold = ZerosHold(ticket.masks)
    x, y = images()
    smooth.fit(x, y, batch_size=8, verbose=0, callbacks=[hold])
    assert hold.checked == 2 * len(ticket.masks)
    for key, mask in masking.attached_masks(smooth).items():
        np.testing.assert_array_equal(mask, ticket.masks[key])


def test_compilation_and_frozen_weights_are_kept():
    model = compiled(mlp(), keras.optimizers.Adam(3e-3))
    model.get_layer("hidden").trainable = False
    smooth = replace_activations(model)
    assert len(smooth.trainable_variables) == len(model.trainable_variables)
    assert float(smooth.optimizer.learning_rate) == pytest.approx(3e-3)
    assert smooth.optimizer is not model.optimizer
    assert type(smooth) is keras.Sequential
    assert smooth.get_layer("relu").activation is keras.activations.silu


def test_the_new_activation_is_saved_with_the_model(tmp_path):
    smooth = replace_activations(gallery.block(), "swish", temporary=True)
    smooth.save(tmp_path / "smooth.keras")
    back = keras.models.load_model(tmp_path / "smooth.keras")
    assert difference(smooth, back, images()[0]) < 1e-6
    assert isinstance(back.get_layer("relu").activation, TemporaryActivation)


def test_subclassed_models_change_in_place_or_say_why_not():
    x = np.random.default_rng(0).normal(size=(8, 8)).astype("float32")
    model = compiled(Rectified(), "sgd")
    model.fit(x, np.zeros(8), verbose=0)
    with pytest.raises(ValueError, match="in_place=True"):
        replace_activations(model)
    before = model.predict(x, verbose=0)
    assert replace_activations(model, in_place=True) is model
    after = model.predict(x, verbose=0)
    hidden = swish(x @ model.one.kernel.numpy() + model.one.bias.numpy())
    expected = hidden @ model.two.kernel.numpy() + model.two.bias.numpy()
    np.testing.assert_allclose(after, expected, atol=1e-5)
    assert np.abs(after - before).max() > 1e-3

    early = replace_activations(Rectified(relu_layer=True), in_place=True)
    early(x)  # built only now: its ReLU layer could still be exchanged
    assert early.relu.activation is keras.activations.silu
    assert early.one.activation is keras.activations.silu

    other = Rectified(relu_layer=True)
    other(x)
    with pytest.warns(UserWarning, match="an Activation layer could"):
        _, report = replace_activations(
            other, in_place=True, return_report=True
        )
    assert report.replaced == ("one.activation",)
    assert list(report.skipped) == ["mine.relu"]


def test_a_relu_with_options_is_left_and_named():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(4),
            keras.layers.ReLU(negative_slope=0.1, name="leaky"),
            keras.layers.ReLU(name="plain"),
        ]
    )
    with pytest.warns(UserWarning, match="negative_slope=0.1"):
        _, report = replace_activations(model, return_report=True)
    assert report.replaced == ("plain",)


@pytest.mark.parametrize(
    "model, activation, message",
    [
        (lambda: mlp(), "swoosh", "must be the name of a Keras activation"),
        (lambda: mlp(), keras.layers.PReLU(), "with weights"),
        (lambda: mlp(), lambda x: x, "that Keras can save"),
        (
            lambda: keras.Sequential(
                [keras.Input((4,)), keras.layers.Dense(2, "tanh")]
            ),
            "swish",
            r"No activation to exchange.*\['tanh'\]",
        ),
        (
            lambda: keras.Sequential([keras.layers.Dense(2)]),
            "swish",
            "known input shape",
        ),
    ],
)
def test_what_cannot_be_done_is_said(model, activation, message):
    with pytest.raises(ValueError, match=message):
        replace_activations(model(), activation)


def test_temporary_activations_lead_back_to_the_original(data):
    x, y = data
    model = compiled(mlp())
    smooth = compiled(replace_activations(model, temporary=True), "sgd")
    blend = smooth.get_layer("relu").activation
    smooth.predict(x, verbose=0)
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(float(blend.share.numpy()))
            z = np.linspace(-3, 3, 7, dtype="float32")
            np.testing.assert_allclose(
                blend(z),
                seen[-1] * swish(z) + (1 - seen[-1]) * np.maximum(z, 0),
                atol=1e-6,
            )

    smooth.fit(
        x,
        y,
        epochs=5,
        verbose=0,
        callbacks=[AnnealActivations(4), Watch()],
    )
    assert seen == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert smooth.get_layer("relu").activation is keras.activations.relu
    plain = compiled(mlp())
    plain.set_weights(smooth.get_weights())
    assert difference(plain, smooth, x) == 0
    blend.share.assign(1.0)  # nothing that was traced reads it any more
    np.testing.assert_allclose(
        smooth.predict(x, verbose=0), plain.predict(x, verbose=0), atol=1e-6
    )


def test_annealing_that_cannot_end_is_refused(data):
    model = compiled(replace_activations(mlp(), temporary=True))
    with pytest.raises(ValueError, match="go on after `end_epoch`"):
        model.fit(*data, epochs=4, verbose=0, callbacks=[AnnealActivations(4)])
    with pytest.raises(ValueError, match="no temporary activation"):
        compiled(mlp()).fit(
            *data, epochs=4, verbose=0, callbacks=[AnnealActivations(2)]
        )
    with pytest.raises(ValueError, match="`end_epoch`.*at least 3"):
        AnnealActivations(2, start_epoch=2)
    with pytest.raises(ValueError, match="`start_epoch`.*at least 0"):
        AnnealActivations(2, start_epoch=-1)
    with pytest.raises(ValueError, match=r"`share`.*\[0, 1\]"):
        TemporaryActivation("swish", share=2.0)
