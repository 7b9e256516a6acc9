"""Each normalization takes its own channels of a stream that keeps more."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_tickets as tt
from tests import gallery
from tests.conftest import batches, compiled, outputs, settle
from tf_tickets.layers import SelectChannels
from tf_tickets.selection import layers_of, named_weights
from tf_tickets.structured import (
    ChannelTicket,
    remove_dead_channels,
    shrink,
    target,
)


def masks_of_its_own(model, sparsity=0.5, seed=0):
    """A mask for each normalization; none asks what others do."""
    rng = np.random.default_rng(seed)
    return {
        key: rng.permutation(scale.shape[0]) >= round(sparsity * scale.shape[0])
        for key, scale in named_weights(model).items()
        if scale.name == "gamma"
    }


def held(model, masks, x):
    """What the model says with these scales and offsets at zero, in NumPy."""
    before = model.get_weights()
    weights = named_weights(model)
    for key, mask in masks.items():
        for name in (key, "beta".join(key.rsplit("gamma", 1))):
            weights[name].assign(np.array(weights[name]) * mask)
    found = outputs(model, x)
    model.set_weights(before)
    return found


def selections(model):
    return [x for x in layers_of(model) if isinstance(x, SelectChannels)]


def scales(model):
    return {
        one.name: one.gamma.shape[0]
        for one in layers_of(model)
        if isinstance(one, layers.BatchNormalization)
    }


NETWORKS = ("preactivated", "concatenating", "nested_images", "assorted")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_choice_of_channels_is_exact(name, float64):
    model = gallery.GALLERY[name]()
    x = settle(model)
    for seed in range(2):
        masks = masks_of_its_own(model, seed=seed)
        expected = held(model, masks, x)
        small, report = shrink(model, masks, select=True, return_report=True)
        np.testing.assert_allclose(
            outputs(small, x), expected, rtol=0, atol=1e-9
        )
        union, other = shrink(model, masks, return_report=True)
        assert report.macs[1] <= other.macs[1]
        assert report.macs[1] == tt.analysis.flops(small).macs
        assert type(small) is type(model) and report.held <= other.held
        assert not selections(union)


def test_each_normalization_keeps_its_own_channels_and_no_more():
    model = gallery.preactivated()
    settle(model)
    masks = masks_of_its_own(model)
    small, report = shrink(model, masks, select=True, return_report=True)
    expected = {key.split("/")[0]: int(m.sum()) for key, m in masks.items()}
    assert scales(small) == expected
    # The four that read the residual stream, and the last one.
    assert len(selections(small)) == 5
    for one in selections(small):
        norm = one.name.removesuffix("_select")
        assert report.layers[one.name][1] == expected[norm]
        assert one.output.shape[-1] == expected[norm] < one.input.shape[-1]
    # Without them the stream's normalizations keep what any of them needs.
    union = scales(shrink(model, masks))
    assert sum(union.values()) > sum(expected.values())


def by_hand(widths, sparsity):
    """Multiply-accumulates of `gallery.preactivated` as the published code
    leaves it: the stream is whole, each normalization takes what it keeps."""

    def kept(channels):
        return channels - round(sparsity * channels)

    stream, pixels = 8, 64
    total = pixels * 9 * 3 * stream
    for width in widths:
        for index in range(2):
            one = kept(stream) * kept(width) * pixels
            pixels //= 1 if index else 4
            total += one + 9 * kept(width) * kept(width) * pixels
            total += kept(width) * 2 * width * pixels
            if not index:
                total += stream * 2 * width * pixels
            stream = 2 * width
    return total + kept(stream) * 3


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5])
def test_operations_are_those_of_the_published_code(sparsity):
    widths = (8, 16)
    model = gallery.preactivated(widths)
    masks = {}
    for key, scale in named_weights(model).items():
        if scale.name == "gamma":
            size, place = scale.shape[0], np.arange(scale.shape[0])
            kept = size - round(sparsity * size)
            # Two readers of one stream: between them they keep it whole.
            first = len(masks) % 2
            masks[key] = place < kept if first else place >= size - kept
    small, report = shrink(model, masks, select=True, return_report=True)
    assert report.macs == (by_hand(widths, 0), by_hand(widths, sparsity))
    assert bool(selections(small)) == bool(sparsity)


def test_what_is_small_trains_saves_loads_and_is_served(tmp_path):
    model = compiled(gallery.preactivated((4,)), "adam")
    x = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("float32")
    y = (x.mean(axis=(1, 2, 3)) > 0).astype("int32")
    model.fit(batches(x, y), verbose=0)
    small = shrink(
        model, masks_of_its_own(model), select=True, inherit_optimizer=True
    )
    assert int(small.optimizer.iterations) == 2
    losses = small.fit(batches(x, y), epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    expected = outputs(small, x)
    small.save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(outputs(again, x), expected)
    np.testing.assert_allclose(
        outputs(tt.export.fold(small), x), expected, atol=1e-5
    )
    tt.export.saved_model(small, tmp_path / "served", format="packed")
    served = tf.saved_model.load(tmp_path / "served")
    np.testing.assert_allclose(served.serve(x), expected, atol=1e-5)
    tt.export.litert(small, tmp_path / "small.tflite")
    lite = tf.lite.Interpreter(str(tmp_path / "small.tflite"))
    lite.allocate_tensors()
    lite.set_tensor(lite.get_input_details()[0]["index"], x[:1])
    lite.invoke()
    np.testing.assert_allclose(
        lite.get_tensor(lite.get_output_details()[0]["index"]),
        expected[:1],
        atol=1e-4,
    )


@pytest.mark.parametrize("select", [False, True])
def test_what_has_selections_shrinks_again(select, float64):
    model = gallery.preactivated((8, 12))
    x = settle(model)
    small = shrink(model, masks_of_its_own(model, 0.3), select=True)
    masks = masks_of_its_own(small, 0.3, seed=1)
    expected = held(small, masks, x)
    smaller, report = shrink(small, masks, select=select, return_report=True)
    np.testing.assert_allclose(outputs(smaller, x), expected, atol=1e-9)
    # What a selection takes is its own: no second one is needed.
    assert len(selections(smaller)) == len(selections(small))
    assert sum(scales(smaller).values()) == sum(m.sum() for m in masks.values())
    assert not report.held


def test_dead_channels_leave_through_a_selection(float64):
    model = gallery.preactivated()
    x = settle(model)
    small = shrink(model, masks_of_its_own(model, 0.25), select=True)
    head = small.layers[-1]  # it hears half of what is selected last
    rows = np.arange(head.kernel.shape[0]) % 2 == 0
    head.kernel.assign(head.kernel * rows[:, None])
    expected = outputs(small, x)
    less = remove_dead_channels(small)
    np.testing.assert_allclose(outputs(less, x), expected, atol=1e-9)
    assert len(selections(less)[-1].indices) == rows.sum()


def test_the_first_normalization_takes_channels_of_the_input(float64):
    model = keras.Sequential(
        [
            keras.Input((6, 5)),
            layers.BatchNormalization(name="norm"),
            layers.Conv1D(4, 3, padding="same"),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    x = settle(model)
    masks = {model.get_layer("norm").gamma.path: [1, 0, 0, 1, 1]}
    expected = held(model, {k: np.array(m) for k, m in masks.items()}, x)
    assert not selections(shrink(model, masks))
    small = shrink(model, masks, select=True)
    assert selections(small)[0].indices == (0, 3, 4)
    np.testing.assert_allclose(outputs(small, x), expected, atol=1e-9)
    assert small.get_layer("norm").gamma.shape == (3,)


def test_a_selection_that_would_take_all_is_left_out():
    """Behind a block that adds nothing is nothing to choose."""
    model = gallery.resnet()  # normalized behind every convolution
    settle(model)
    masks = masks_of_its_own(model)
    small, report = shrink(model, masks, select=True, return_report=True)
    union, other = shrink(model, masks, return_report=True)
    assert not selections(small) and report == other
    assert [v.shape for v in small.weights] == [v.shape for v in union.weights]


@pytest.mark.parametrize(("multiple", "widths"), [(1, (8,)), (4, (8, 16))])
def test_a_target_is_reached_with_each_mask_for_itself(multiple, widths):
    model = gallery.preactivated(widths)
    x = settle(model)
    small, report = shrink(
        model, flops=0.5, round_to=multiple, select=True, return_report=True
    )
    assert report.macs[1] <= 0.5 * report.macs[0]
    assert report.macs[1] == tt.analysis.flops(small).macs
    assert selections(small)
    for before, after in report.layers.values():
        assert after == before or after % multiple == 0
    if multiple == 1:
        draw = target.ranking(model, None, "auto", select=True)
        ticket = draw(report.sparsity)
        np.testing.assert_allclose(
            outputs(small, x), held(model, ticket.masks, x), atol=1e-5
        )


def test_names_that_are_taken_are_not_taken_again():
    image = keras.Input((4,))
    x = layers.Dense(6, name="norm_select")(image)
    y = layers.Dense(6)(layers.BatchNormalization(name="norm")(x))
    model = keras.Model(image, layers.Dense(2)(layers.Add()([x, y])))
    key = model.get_layer("norm").gamma.path
    small = shrink(model, {key: [1, 1, 0, 1, 0, 1]}, select=True)
    assert [x.name for x in selections(small)] == ["norm_select_again"]


def test_a_selection_rounds_nothing():
    keras.config.set_dtype_policy("float64")
    model = gallery.preactivated()
    keras.config.set_dtype_policy("float32")
    x = settle(model)
    masks = masks_of_its_own(model)
    small = shrink(model, masks, select=True)
    assert {one.compute_dtype for one in selections(small)} == {"float64"}
    np.testing.assert_allclose(
        outputs(small, x), held(model, masks, x), rtol=0, atol=1e-9
    )


def test_start_weights_of_a_ticket_go_through_selections():
    model = gallery.preactivated()
    x = settle(model)
    ticket = tt.structured.draw_channels(model, 0.4)
    expected = held(model, ticket.masks, x)
    for weight in model.trainable_weights:
        weight.assign(weight * 0.5)
    small = shrink(model, ticket, weights="start", select=True)
    assert isinstance(ticket, ChannelTicket)
    np.testing.assert_allclose(outputs(small, x), expected, atol=1e-5)
