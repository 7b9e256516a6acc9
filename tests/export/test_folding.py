"""A folded model predicts what the model does."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_tickets as tt
from tests import gallery
from tests.conftest import batches, compiled, outputs, settle
from tests.export.conftest import close
from tf_tickets import masking
from tf_tickets.export import fold
from tf_tickets.export.report import read_manifest
from tf_tickets.selection import layers_of
from tf_tickets.zoo import models as zoo


def check(model, x=None, tolerance=1e-5):
    """Folded and as it is: the same outputs. Returns model and report."""
    x = settle(model) if x is None else x
    before = [np.array(w) for w in model.get_weights()]
    folded, report = fold(model, return_report=True)
    close(model(x, training=False), folded(x, training=False), tolerance)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)  # only read
    norms = [x for x in layers_of(folded) if is_norm(x)]
    assert len(norms) == len(report.kept)
    return folded, report


def is_norm(layer):
    return isinstance(layer, layers.BatchNormalization)


# The others of the zoo are of the same blocks, and larger.
ZOO = ["digits_cnn", "vgg16", "mobilenet_v1", "mobilenet_v2", "resnet20"]
ZOO += ["resnet1d"]


@pytest.mark.parametrize("name", ZOO)
def test_every_normalization_behind_a_kernel_goes(name):
    folded, report = check(zoo.get(name))
    assert report.folded and not report.kept
    assert not any(is_norm(layer) for layer in folded.layers)


def test_what_stands_before_an_activation_of_a_shared_sum_is_kept():
    _, report = check(gallery.preactivated())
    # One that begins each of four blocks, and the last.
    assert report.folded and len(report.kept) == 5


def test_a_network_of_keras_applications(float64):
    # With random weights float32 tells little: outputs differ from those in
    # float64 by a quarter, folded or not.
    _, report = check(gallery.GALLERY["EfficientNetB0"](), tolerance=1e-9)
    assert report.folded and not report.kept


@pytest.mark.parametrize(
    "name", gallery.names("channels", "normalized", without=("application",))
)
def test_every_kind_of_layer(name):
    _, report = check(gallery.GALLERY[name]())
    assert report.folded


@pytest.mark.parametrize("seed", range(4))
def test_random_graphs(seed):
    check(gallery.random_graph(seed))


def model_of(*parts, shape=(6, 6, 4)):
    return keras.Sequential([keras.Input(shape), *parts])


def norm(**options):
    return layers.BatchNormalization(name="norm", **options)


BEFORE = {
    "dense": lambda: layers.Dense(3),
    "convolution": lambda: layers.Conv2D(3, 3, use_bias=False),
    "strides": lambda: layers.Conv2D(3, 2, strides=2),
    "one pixel": lambda: layers.Conv2D(3, 1, padding="same"),
    "groups": lambda: layers.Conv2D(6, 3, groups=2),
    "depthwise": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
    "transposed": lambda: layers.Conv2DTranspose(3, 1),
}


@pytest.mark.parametrize("kind", BEFORE)
def test_a_normalization_before_a_layer_that_does_not_pad(kind):
    model = model_of(layers.ReLU(), norm(), layers.Dropout(0.5), BEFORE[kind]())
    _, report = check(model)
    assert report.folded == {"norm": model.layers[-1].name}


def test_several_normalizations_around_one_layer():
    model = model_of(
        norm(),
        layers.Dense(5),
        *(layers.BatchNormalization(scale=i == 1) for i in range(2)),
    )
    folded, report = check(model)
    assert len(report.folded) == 3 and len(folded.layers) == 1


def test_what_comes_with_a_kernel_of_two_parts():
    model = model_of(
        layers.SeparableConv2D(5, 3, use_bias=False), norm(), layers.ReLU()
    )
    _, report = check(model)
    assert report.folded == {"norm": model.layers[0].name}


class Own(layers.BatchNormalization):
    """A class of the user's, which may compute something else."""


def shared_layer():
    x = keras.Input((4,))
    conv = layers.Dense(4, name="conv")
    y = layers.BatchNormalization(name="norm")(conv(x))
    return keras.Model(x, conv(y))


def shared_norm():
    x = keras.Input((4,))
    one = norm()
    return keras.Model(x, one(layers.Dense(4)(one(layers.Dense(4)(x)))))


def two_readers():
    x = keras.Input((4,))
    y = layers.Dense(4)(x)
    return keras.Model(x, layers.Add()([y, norm()(y)]))


def also_output():
    x = keras.Input((4,))
    y = layers.Dense(4)(x)
    return keras.Model(x, [y, norm()(y)])


def training():
    x = keras.Input((4,))
    return keras.Model(x, norm()(layers.Dense(4)(x), training=True))


STAYS = {
    "the activation of conv stands": lambda: model_of(
        layers.Conv2D(3, 3, activation="relu", name="conv"), norm()
    ),
    "conv after it pads with zeros": lambda: model_of(
        layers.ReLU(),
        norm(),
        layers.Conv2D(3, 3, padding="same", name="conv"),
    ),
    "another axis": lambda: model_of(layers.Dense(4), norm(axis=1)),
    "conv .* is called in several": shared_layer,
    "it is called in several": shared_norm,
    "another layer reads": two_readers,
    "is an output too": also_output,
    "training=True": training,
    "an input of the model": lambda: model_of(norm()),
    "class of its own": lambda: model_of(layers.Dense(3), Own(name="norm")),
    "no kernel to take it over": lambda: model_of(
        layers.LayerNormalization(), norm()
    ),
    "computes in bfloat16": lambda: model_of(
        layers.Dense(3, dtype="mixed_bfloat16"), norm()
    ),
    "another layer holds it": lambda: model_of(layers.TimeDistributed(norm())),
}


@pytest.mark.parametrize("why", STAYS)
def test_a_normalization_that_cannot_go_stays_and_says_why(why):
    model = STAYS[why]()
    if "training" in why:  # whose outputs change its own statistics
        folded, report = fold(model, return_report=True)
    else:
        folded, report = check(model, tolerance=0)
    assert not report.folded
    (reason,) = report.kept.values()
    assert re.search(why, reason)
    assert len([x for x in layers_of(folded) if is_norm(x)]) == 1


def test_other_weights_of_a_quantized_or_adapted_layer_stay():
    model = model_of(layers.Dense(8, name="dense"), norm())
    settle(model)
    model.layers[0].enable_lora(2)
    _, report = check(model, np.ones((2, 6, 6, 4)), tolerance=0)
    assert "another kind" in report.kept["norm"]


def test_a_mask_on_a_kernel_stays_in_force():
    model = gallery.block()
    x = settle(model)
    tt.structured.ChannelTicket({"conv1_bn/gamma": [1, 0, 1, 1, 0, 1]}).apply(
        model, weights="keep"
    )
    tt.prune(model, 0.5, filters="conv2/").apply(model, weights="keep")
    folded, _ = check(model, x)
    masks = masking.attached_masks(folded)
    assert (
        set(masks) == {"conv2/kernel"} and masks["conv2/kernel"].mean() == 0.5
    )
    np.testing.assert_array_equal(
        folded.get_layer("conv2").kernel.numpy() != 0, masks["conv2/kernel"]
    )


def test_a_mask_on_a_bias_says_nothing_about_a_folded_one():
    model = model_of(layers.Dense(4, name="dense"), norm(), shape=(3,))
    x = settle(model)
    held = model.get_layer("dense")
    kept = np.array([1, 0, 1, 1], bool)
    masking.enforce(
        model,
        {held.kernel.path: np.tile(kept, (3, 1)), held.bias.path: kept},
    )
    folded, _ = check(model, x)
    (dense,) = folded.layers
    assert set(masking.attached_masks(folded)) == {dense.kernel.path}
    assert not dense.kernel.numpy()[:, 1].any() and dense.bias.numpy()[1] != 0


def test_a_trained_model_is_folded_with_its_settings(data):
    model = compiled(gallery.mlp())
    model.fit(batches(*data), epochs=2, verbose=0)
    folded = fold(model)
    close(outputs(model, data[0]), outputs(folded, data[0]))
    assert type(folded) is keras.Sequential
    np.testing.assert_allclose(
        folded.evaluate(*data, verbose=0),
        model.evaluate(*data, verbose=0),
        rtol=1e-4,
    )


def test_a_subclassed_model_is_refused():
    with pytest.raises(ValueError, match="cannot be seen"):
        fold(gallery.subclassed())


@pytest.mark.parametrize("format", ["auto", "litert", "packed"])
def test_exports_fold(format, tmp_path):
    model = zoo.digits_cnn()
    x = settle(model).astype("float32")[:1]
    options = {} if format != "packed" else {"fold": True}
    made = tt.export.write(model, tmp_path / "m", format=format, **options)
    assert any("2 of 2 batch normal" in note for note in made.notes)
    assert not any("moving" in row.key for row in made.rows)
    served = tt.export.FORMATS[format].load(made)
    close(model(x), served(x), 1e-4)
    keeps = tt.export.write(model, tmp_path / "k", format=format, fold=False)
    assert not any("folded" in note for note in keeps.notes)
    assert any("moving" in row.key for row in keeps.rows)


def test_what_cannot_be_seen_or_shared_is_exported_as_it_is(tmp_path):
    model = gallery.subclassed()
    made = tt.export.saved_model(model, tmp_path / "m", format="auto")
    assert any("stay" in note for note in made.notes)
    model = gallery.mlp()
    made = tt.export.saved_model(
        model,
        tmp_path / "n",
        format="auto",
        endpoints={"features": lambda x: model.layers[0](x)},
    )
    assert any("other endpoints" in note for note in made.notes)


def test_an_unpacked_export_is_the_folded_model(tmp_path):
    model = zoo.digits_cnn()
    x = settle(model)
    made = tt.export.saved_model(model, tmp_path / "m", format="auto")
    again = tt.export.unpack(made)
    close(model(x), again(x))
    assert not any(is_norm(layer) for layer in again.layers)
    assert read_manifest(made)["notes"] == made.notes
    assert tf.io.gfile.exists(str(made.path))
