import re

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests import gallery
from tests.conftest import ZerosHold, compiled, difference, images, mlp
from tf_tickets import masking
from tf_tickets.network.copier import Copier
from tf_tickets.retraining import (
    LabelSmoothing,
    inject_skip_connections,
    replace_activations,
    spend,
)
from tf_tickets.selection import layers_of, named_weights

OPTIONS = {"rescale": {"iterations": 3, "batch_size": 4}}


@pytest.fixture
def drawn():
    # Two steps take less time than their trace.
    adam = keras.optimizers.Adam(2e-3)
    model = compiled(gallery.block(), adam, run_eagerly=True)
    return model, tt.prune(model, sparsity=0.8), images()


def test_the_papers_set_applies_everything_and_no_mask_changes(drawn):
    model, ticket, data = drawn
    before = [w.copy() for w in model.get_weights()]
    better, report = spend(
        ticket, model, data=data, options=OPTIONS, return_report=True
    )
    assert report.tweaks == ("activations", "skips", "rescale", "labels")
    hold = ZerosHold(ticket.masks)
    better.fit(*data, batch_size=8, verbose=0, callbacks=[hold])
    for key, mask in masking.attached_masks(better).items():
        np.testing.assert_array_equal(mask, ticket.masks[key])
        np.testing.assert_array_equal(mask, report.ticket.masks[key])
    assert hold.checked == 2 * len(ticket.masks)
    assert isinstance(better.loss, LabelSmoothing)
    assert better.loss.from_logits
    assert better.get_layer("relu").activation is keras.activations.silu
    assert better.get_layer("conv2_skip_conv") is not None
    assert set(report.rescaling.scales) > {"conv1/kernel", "conv1_bn/gamma"}
    assert float(better.optimizer.learning_rate) == pytest.approx(2e-3)
    # The model that was given is as it was.
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not masking.attached_masks(model)
    assert report.added_parameters == report.skips.added == 84
    assert report.sparsity < ticket.sparsity
    assert "84 parameters added" in str(report)


def test_the_reported_ticket_is_where_training_began(drawn):
    model, ticket, data = drawn
    better, report = spend(
        ticket, model, data=data, options=OPTIONS, return_report=True
    )
    start = {k: v.numpy() for k, v in named_weights(better).items()}
    better.fit(*data, batch_size=8, verbose=0)
    report.ticket.apply(better)
    for key, variable in named_weights(better).items():
        np.testing.assert_allclose(variable.numpy(), start[key], rtol=1e-6)
    for key, scale in report.rescaling.scales.items():
        if key in ticket.weights:
            np.testing.assert_allclose(
                report.ticket.weights[key],
                ticket.weights[key] * scale,
                rtol=1e-5,
            )


@pytest.mark.parametrize("tweak", ["activations", "skips", "rescale", "labels"])
def test_each_tweak_alone_leaves_the_others_out(drawn, tweak):
    model, ticket, data = drawn
    options = OPTIONS if tweak == "rescale" else None
    better, report = spend(
        ticket, model, tweak, data=data, options=options, return_report=True
    )
    plain = gallery.block()
    ticket.apply(plain)
    x = data[0]
    same = difference(plain, better, x) == 0
    assert same == (tweak == "labels")
    assert isinstance(better.loss, LabelSmoothing) == (tweak == "labels")
    assert (report.skips is not None) == (tweak == "skips")
    assert (report.activations is not None) == (tweak == "activations")
    assert (report.rescaling is not None) == (tweak == "rescale")


@pytest.mark.parametrize(
    "tweaks", ["activations", "skips", "architecture", "labels", "paper"]
)
def test_a_model_is_copied_once_for_all_tweaks(drawn, monkeypatch, tweaks):
    model, ticket, data = drawn
    copied = []
    copy = Copier.copy

    def counted(self, model):
        copied.append(model)
        return copy(self, model)

    monkeypatch.setattr(Copier, "copy", counted)
    options = OPTIONS if tweaks == "paper" else None
    spend(ticket, model, tweaks, data=data, options=options)
    assert copied == [model]


def branched():
    """Fused activations, a nested model, a shared layer, a user's layer."""
    x = image = keras.Input((8, 8, 3))
    relu = {"padding": "same", "activation": "relu"}
    x = keras.layers.Conv2D(4, 3, name="stem", **relu)(x)
    inner = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            keras.layers.Conv2D(4, 3, name="conv", **relu),
            keras.layers.Conv2D(4, 3, padding="same", name="bare"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.ReLU(name="relu"),
        ],
        name="inner",
    )
    x = keras.ops.relu(inner(x) - 0.1)
    shared = keras.layers.Conv2D(4, 3, name="shared", **relu)
    x = shared(shared(x))
    x = keras.layers.DepthwiseConv2D(3, name="depthwise", **relu)(x)
    x = keras.layers.Conv2D(6, 5, strides=2, name="strided", **relu)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = gallery.Fixed(name="fixed")(x)
    return keras.Model(image, keras.layers.Dense(3, name="head")(x))


@pytest.mark.parametrize("make", [gallery.block, branched])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "skips": {"branch": "identity", "scale": 0.1},
            "activations": {"activation": "mish", "temporary": True},
        },
    ],
    ids=["defaults", "options"],
)
def test_one_copy_is_what_one_tweak_after_another_makes(make, options):
    model = compiled(make())
    for variable in model.variables:  # statistics and offsets of their own
        variable.assign(keras.random.uniform(variable.shape, 0.1, 1.0))
    ticket = tt.prune(model, sparsity=0.8)
    better, report = spend(
        ticket, model, "architecture", options=options, return_report=True
    )
    deeper, skips = inject_skip_connections(
        model, return_report=True, **options.get("skips", {})
    )
    smooth, exchange = replace_activations(
        deeper, return_report=True, **options.get("activations", {})
    )
    ticket.renamed(model, skips.keys).apply(smooth)

    def named(model):
        # What a user's layer makes inside itself is numbered as it comes.
        return [re.sub(r"_\d+$", "", x.name) for x in layers_of(model)]

    assert named(better) == named(smooth)
    assert [type(x) for x in layers_of(better)] == [
        type(x) for x in layers_of(smooth)
    ]
    once, twice = named_weights(better), named_weights(smooth)
    assert list(once) == list(twice)
    for key, variable in once.items():
        np.testing.assert_array_equal(variable.numpy(), twice[key].numpy())
        assert variable.trainable == twice[key].trainable
    masks, expected = (masking.attached_masks(m) for m in (better, smooth))
    assert list(masks) == list(expected)
    for key, mask in masks.items():
        np.testing.assert_array_equal(mask, expected[key])
    x = images()[0]
    for training in (False, True):
        assert difference(better, smooth, x, training=training) == 0

    def places(report):
        return sorted(re.sub(r"_\d+$", "", p) for p in report.replaced)

    assert places(report.activations) == places(exchange)
    assert report.activations.unsaved == exchange.unsaved
    assert report.activations.skipped == exchange.skipped
    # Both reports say what became of the keys of the model that was given.
    assert report.activations.keys == report.skips.keys == skips.keys
    assert report.skips == skips


def test_an_activation_that_moves_behind_a_branch_is_exchanged():
    model = compiled(branched())
    better, report = spend(
        tt.prune(model, sparsity=0.5),
        model,
        "architecture",
        return_report=True,
    )
    assert better.get_layer("strided").activation is keras.activations.linear
    moved = better.get_layer("strided_skip_activation")
    assert moved.activation is keras.activations.silu
    assert "strided_skip_activation.activation" in report.activations.replaced
    assert "shared.activation" in report.activations.replaced


def test_sets_are_the_papers():
    assert tt.retraining.TWEAKS == {
        "architecture": ("activations", "skips"),
        "recipe": ("rescale", "labels"),
        "paper": ("activations", "skips", "rescale", "labels"),
    }


def test_a_ticket_of_a_model_with_other_layer_numbers_is_spent():
    def numbered():
        return keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(3, 3, padding="same", activation="relu"),
                keras.layers.Conv2D(3, 3, padding="same", activation="relu"),
                keras.layers.Flatten(),
                keras.layers.Dense(3),
            ]
        )

    model, other = numbered(), numbered()
    ticket = tt.prune(model, sparsity=0.5)
    assert set(ticket.masks).isdisjoint(named_weights(other))
    better, report = spend(ticket, other, "architecture", return_report=True)
    old, new = list(ticket.masks.values()), report.ticket.masks
    held = masking.attached_masks(better)
    assert list(held) == list(new)
    for one, other_mask in zip(old, held.values(), strict=True):
        np.testing.assert_array_equal(one, other_mask)
    report.ticket.apply(better)


def test_a_ticket_without_start_weights_masks_what_the_model_has(drawn):
    model, ticket, _ = drawn
    better = spend(tt.Ticket(ticket.masks), model, "labels")
    for key, mask in ticket.masks.items():
        np.testing.assert_array_equal(
            named_weights(better)[key].numpy(),
            np.where(mask, named_weights(model)[key].numpy(), 0),
        )


def test_rekeying_keeps_every_array():
    model = mlp()
    ticket = tt.prune(model, sparsity=0.5, criterion="magnitude")
    keys = {key: f"new/{key}" for key in named_weights(model)}
    moved = ticket.renamed(model, keys)
    assert list(moved.masks) == [f"new/{k}" for k in ticket.masks]
    for key, value in ticket.weights.items():
        np.testing.assert_array_equal(moved.weights[f"new/{key}"], value)
    for key, value in ticket.scores.items():
        np.testing.assert_array_equal(moved.scores[f"new/{key}"], value)


@pytest.mark.parametrize(
    "tweaks, options, message",
    [
        ("all", {}, "Tweaks are"),
        (["skips", "swish"], {}, r"Received: \['swish'\]"),
        ("rescale", {}, "needs `data`"),
        ("skips", {"options": {"labels": {"alpha": 0.2}}}, "for the tweaks"),
        ("labels", {"options": {"labels": {"alpha": 2.0}}}, "alpha"),
        ("skips", {"options": {"skips": {"branch": "1x1"}}}, "'identity'"),
        (
            "activations",
            {"options": {"activations": {"replaces": ["tanh"]}}},
            "No activation to exchange",
        ),
    ],
)
def test_bad_requests_get_one_clear_error(drawn, tweaks, options, message):
    model, ticket, _ = drawn
    with pytest.raises(ValueError, match=message):
        spend(ticket, model, tweaks, **options)


def test_models_that_cannot_be_spent_so_are_refused_with_the_reason():
    dense = compiled(mlp())
    ticket = tt.prune(dense, sparsity=0.5)
    with pytest.raises(ValueError, match="no spatial convolution"):
        spend(ticket, dense, "skips")
    with pytest.raises(ValueError, match="compile the model first"):
        spend(ticket, mlp(), "labels")
    dense.compile("sgd", "mse")
    with pytest.raises(ValueError, match="cross-entropy of Keras"):
        spend(ticket, dense, "labels")

    mine = gallery.subclassed()
    with pytest.raises(ValueError, match="use the tweaks one by one"):
        spend(tt.prune(mine, sparsity=0.5), mine, "activations")


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_spends_and_keeps_zeros(policy):
    keras.mixed_precision.set_global_policy(policy)
    model = compiled(gallery.block(), keras.optimizers.SGD(0.05))
    ticket = tt.prune(model, sparsity=0.8)
    data = images()
    better = spend(ticket, model, data=data, options=OPTIONS)
    assert better.get_layer("conv2_skip_conv").compute_dtype == policy[6:]
    hold = ZerosHold(ticket.masks)
    history = better.fit(*data, batch_size=8, verbose=0, callbacks=[hold])
    assert hold.checked and np.isfinite(history.history["loss"]).all()
    for key, mask in masking.attached_masks(better).items():
        np.testing.assert_array_equal(mask, ticket.masks[key])
