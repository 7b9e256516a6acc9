import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests.conftest import ZerosHold, compiled, mlp
from tests.retraining.networks import block_net, difference, images
from tf_tickets import masking
from tf_tickets.retraining import LabelSmoothing, spend
from tf_tickets.selection import named_weights

OPTIONS = {"rescale": {"iterations": 3, "batch_size": 4}}


@pytest.fixture
def drawn():
    model = compiled(block_net(), keras.optimizers.Adam(2e-3))
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
    plain = block_net()
    ticket.apply(plain)
    x = data[0]
    same = difference(plain, better, x) == 0
    assert same == (tweak == "labels")
    assert isinstance(better.loss, LabelSmoothing) == (tweak == "labels")
    assert (report.skips is not None) == (tweak == "skips")
    assert (report.activations is not None) == (tweak == "activations")
    assert (report.rescaling is not None) == (tweak == "rescale")


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

    class Mine(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(4)

        def call(self, x):
            return self.dense(x)

    mine = Mine()
    mine(np.ones((1, 4), "float32"))
    with pytest.raises(ValueError, match="use the tweaks one by one"):
        spend(tt.prune(mine, sparsity=0.5), mine, "activations")


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_spends_and_keeps_zeros(policy):
    keras.mixed_precision.set_global_policy(policy)
    model = compiled(block_net(), keras.optimizers.SGD(0.05))
    ticket = tt.prune(model, sparsity=0.8)
    data = images()
    better = spend(ticket, model, data=data, options=OPTIONS)
    assert better.get_layer("conv2_skip_conv").compute_dtype == policy[6:]
    hold = ZerosHold(ticket.masks)
    history = better.fit(*data, batch_size=8, verbose=0, callbacks=[hold])
    assert hold.checked and np.isfinite(history.history["loss"]).all()
    for key, mask in masking.attached_masks(better).items():
        np.testing.assert_array_equal(mask, ticket.masks[key])
