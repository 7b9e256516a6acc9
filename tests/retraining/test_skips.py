import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests import gallery
from tests.conftest import ZerosHold, compiled, difference, images
from tests.retraining.conftest import train_a_little
from tf_tickets import masking
from tf_tickets.retraining import (
    AnnealSkips,
    inject_skip_connections,
    merge_skip_connections,
)
from tf_tickets.retraining.skips import find_sites
from tf_tickets.selection import named_weights
from tf_tickets.zoo import models


def test_a_branch_is_the_normalized_1x1_convolution_of_the_input():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(
                3, 3, strides=2, padding="same", use_bias=False, name="conv"
            ),
            keras.layers.BatchNormalization(epsilon=1e-3, name="norm"),
        ]
    )
    deeper = inject_skip_connections(model, filters="conv", scale=0.02)
    x = images((6, 6, 2))[0]
    branch = deeper(x, training=True).numpy() - model(x, training=True).numpy()
    total = 0.02 * x[:, ::2, ::2].sum(-1)  # the same for every output channel
    expected = (total - total.mean()) / np.sqrt(total.var() + 1e-5)
    np.testing.assert_allclose(
        branch, np.repeat(expected[..., None], 3, -1), atol=1e-5
    )


def test_epsilon_decides_how_much_of_the_branch_arrives():
    """With the defaults, 0.25 of it at a deviation of 8; Keras' own: 0.025."""
    x = 8 * images((4, 4, 1), count=512)[0]
    x /= x.std() / 8
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Conv2D(1, 3, padding="same", name="conv"),
            keras.layers.BatchNormalization(),
        ]
    )
    for epsilon, share in ((1e-5, 0.25), (1e-3, 0.025)):
        deeper = inject_skip_connections(model, filters="conv", epsilon=epsilon)
        branch = deeper(x, training=True) - model(x, training=True)
        assert float(np.std(branch)) == pytest.approx(share, rel=0.03)


@pytest.mark.parametrize("training", [False, True])
def test_a_skip_with_zero_weight_changes_nothing(training):
    model = gallery.block()
    deeper = inject_skip_connections(model, scale=0.0)
    x = images()[0]
    assert difference(model, deeper, x, training=training) == 0


def test_the_identity_form_adds_the_input():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(
                2, 3, padding="same", activation="relu", name="conv"
            ),
        ],
        name="chain",
    )
    deeper, report = inject_skip_connections(
        model, branch="identity", filters="conv", return_report=True
    )
    x = images((6, 6, 2))[0]
    linear = keras.ops.conv(x, model.layers[0].kernel, padding="same")
    np.testing.assert_allclose(
        deeper(x), np.maximum(linear.numpy() + x, 0), atol=1e-5
    )
    assert report.added == 0
    assert dict(report.branches) == {"conv": "identity"}


def test_masks_weights_and_keys_stay():
    model = gallery.block()
    ticket = tt.prune(model, sparsity=0.8)
    ticket.apply(model)
    deeper, report = inject_skip_connections(model, return_report=True)
    masks = masking.attached_masks(deeper)
    assert list(masks) == list(ticket.masks)
    for key, mask in masks.items():
        np.testing.assert_array_equal(mask, ticket.masks[key])
    fresh = inject_skip_connections(gallery.block())
    ticket.apply(fresh)
    for key, variable in named_weights(model).items():
        np.testing.assert_array_equal(
            variable.numpy(), named_weights(fresh)[key].numpy()
        )
    assert dict(report.branches) == {"conv1": "conv", "conv2": "conv"}
    assert report.refused == {"stem": "it reads the model's input"}


def test_what_is_added_is_counted():
    model = gallery.block()
    ticket = tt.prune(model, sparsity=0.8)
    ticket.apply(model)
    _, report = inject_skip_connections(model, return_report=True)
    added = 4 * 6 + 2 * 6 + 6 * 6 + 2 * 6
    size = 27 * 4 + 24 + 36 * 6 + 54 * 6 + 18
    assert (report.added, report.size) == (added, size)
    assert report.kept == ticket.kept
    assert report.sparsity == pytest.approx(ticket.sparsity)
    assert report.sparsity_with_skips == pytest.approx(
        1 - (ticket.kept + added) / (size + added)
    )
    assert f"{added} parameters" in str(report)


def test_resnet18_gets_the_papers_branches():
    """Two in each basic block: 1,220,608 weights, 10.9 % of all in convs."""
    sites, refused = find_sites(models.resnet18(), None)
    branches = [s.input_shape[-1] * s.conv.filters for s in sites]
    assert (len(sites), sum(branches)) == (16, 1_220_608)
    assert list(refused) == ["stem_conv"]


def test_a_ticket_trains_on_with_branches():
    model = compiled(gallery.block(), "adam")
    ticket = tt.prune(model, sparsity=0.8)
    deeper = inject_skip_connections(model)
    ticket.apply(deeper)
    hold = ZerosHold(ticket.masks)
    x, y = images()
    branch = deeper.get_layer("conv2_skip_conv").kernel
    before = branch.numpy()
    deeper.fit(x, y, batch_size=8, verbose=0, callbacks=[hold])
    assert hold.checked == 2 * len(ticket.masks)
    assert (branch.numpy() != before).all()


def test_what_gets_no_branch_is_named():
    x = i = keras.Input((12, 12, 4))
    shared = keras.layers.Conv2D(4, 3, padding="same", name="shared")
    x = keras.layers.Conv2D(4, 3, padding="same", name="first")(x)
    x = shared(shared(x))
    x = keras.layers.Conv2D(4, 3, name="valid")(x)
    x = keras.layers.Conv2D(4, 1, name="pointwise")(x)
    x = keras.layers.Conv2D(4, 3, padding="same", name="good")(x)
    _, report = inject_skip_connections(keras.Model(i, x), return_report=True)
    assert list(report.branches) == ["good"]
    assert {k: v.split(" (")[0] for k, v in report.refused.items()} == {
        "first": "it reads the model's input",
        "shared": "it is shared between several places",
        "valid": "its output is smaller than its input",
    }


@pytest.mark.parametrize(
    "model, options, message",
    [
        (gallery.block, {"branch": "1x1"}, "'conv' or 'identity'"),
        (gallery.block, {"epsilon": 0}, "epsilon"),
        (gallery.block, {"filters": "none"}, "matches no prunable weight"),
        (
            lambda: keras.Sequential(
                [keras.Input((4,)), keras.layers.Dense(2)]
            ),
            {},
            "no spatial convolution",
        ),
        (
            lambda: keras.Sequential([keras.layers.Dense(2)]),
            {},
            "in its `call`",
        ),
    ],
)
def test_bad_requests_get_one_clear_error(model, options, message):
    with pytest.raises(ValueError, match=message):
        inject_skip_connections(model(), **options)


def test_one_step_at_a_usual_rate_replaces_the_tiny_fill():
    """A normalized kernel this small has huge gradients: docs say so."""
    x, y = images()
    growth = {}
    for scale in (1e-4, 0.1):
        deeper = inject_skip_connections(gallery.block(), scale=scale)
        kernel = deeper.get_layer("conv2_skip_conv").kernel
        before = np.linalg.norm(kernel.numpy())
        train_a_little(deeper, x, y, steps=1)
        growth[scale] = np.linalg.norm(kernel.numpy()) / before
    assert growth[1e-4] > 50
    assert growth[0.1] < 1.5


@pytest.mark.parametrize("branch", ["conv", "identity"])
def test_a_temporary_branch_adds_its_share(branch):
    model = gallery.block()
    options = {"branch": branch, "scale": 0.3, "filters": "conv1"}
    whole = inject_skip_connections(model, **options)
    gated = inject_skip_connections(model, temporary=True, **options)
    x = images(model.input_shape[1:])[0]
    # What follows the addition bends it, so look at the addition.
    plain, added, part = (
        keras.Model(one.input, one.get_layer(name).output)(x).numpy()
        for one, name in (
            (model, "conv1_bn"),
            (whole, "conv1_skip_add"),
            (gated, "conv1_skip_add"),
        )
    )
    np.testing.assert_array_equal(part, added)
    gated.get_layer("conv1_skip_share").share.assign(0.25)
    [part] = [
        keras.Model(gated.input, gated.get_layer("conv1_skip_add").output)(x)
    ]
    np.testing.assert_allclose(
        part, plain + 0.25 * (added - plain), rtol=1e-4, atol=1e-5
    )


def test_annealed_branches_leave_the_network_that_there_was(tmp_path):
    model = gallery.block()
    ticket = tt.prune(model, 0.5)
    ticket.apply(model)
    deeper = compiled(
        inject_skip_connections(model, scale=0.1, temporary=True),
        "sgd",
        jit_compile=True,
    )
    x, y = images(model.input_shape[1:])
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            share = self.model.get_layer("conv2_skip_share").share
            seen.append(float(share.numpy()))

    deeper.fit(
        x, y, epochs=5, verbose=0,
        callbacks=[AnnealSkips(3, start_epoch=1), Watch()],
    )  # fmt: skip
    assert seen == [1.0, 1.0, 0.5, 0.0, 0.0]
    deeper.save(tmp_path / "deeper.keras")
    deeper = keras.saving.load_model(tmp_path / "deeper.keras")
    ticket.apply(deeper, weights="keep")
    plain, report = merge_skip_connections(deeper, return_report=True)
    assert difference(deeper, plain, x) == 0
    assert [one.name for one in plain.layers] == [
        one.name for one in model.layers
    ]
    assert masking.attached_masks(plain).keys() == ticket.masks.keys()
    assert tt.Ticket.from_model(plain).kept == ticket.kept
    for before, after, _ in report.kernels.values():
        assert before == after


def test_half_a_branch_is_merged_as_it_is():
    model = gallery.block()
    deeper = inject_skip_connections(model, scale=0.3, temporary=True)
    x, y = images(model.input_shape[1:])
    train_a_little(deeper, x, y)
    for layer in deeper.layers:
        if layer.name.endswith("_share"):
            layer.share.assign(0.5)
    merged = merge_skip_connections(deeper)
    expected = deeper(x).numpy()
    np.testing.assert_allclose(
        merged(x), expected, atol=2e-5 * np.abs(expected).max()
    )


def test_skips_that_cannot_be_annealed_are_refused():
    x, y = images()
    model = compiled(inject_skip_connections(gallery.block()))
    with pytest.raises(ValueError, match="no temporary skip connection"):
        model.fit(x, y, epochs=4, verbose=0, callbacks=[AnnealSkips(2)])
    model = compiled(inject_skip_connections(gallery.block(), temporary=True))
    with pytest.raises(ValueError, match="go on after `end_epoch`"):
        model.fit(x, y, epochs=2, verbose=0, callbacks=[AnnealSkips(2)])
