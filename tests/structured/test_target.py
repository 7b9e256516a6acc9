"""A target is reached, and not more than that."""

import importlib

import keras
import numpy as np
import pytest
from keras import layers

import tf_tickets as tt
from tests import gallery
from tests.conftest import outputs, settle
from tf_tickets.structured import ChannelTicket, shrink, target
from tf_tickets.zoo import models


def macs(model):
    """Counted anew, of the model as it is."""
    return tt.analysis.flops(model).macs


@pytest.mark.parametrize(
    ("name", "flops"), [("resnet20", 0.7), ("mobilenet_v2", 0.35)]
)
def test_a_target_of_flops_is_reached_from_below(name, flops):
    model = models.get(name)
    settle(model, batch=2)
    small, report = shrink(model, flops=flops, return_report=True)
    assert report.macs == (macs(model), macs(small))
    # The next channel less would have been too many.
    assert 0.97 * flops < macs(small) / macs(model) <= flops
    assert f"{macs(small):,}" in str(report)
    assert 0 < report.sparsity < 1 and not report.stops


@pytest.mark.parametrize("name", gallery.names("channels"))
def test_operations_are_counted_without_building(name):
    model = gallery.GALLERY[name]()
    settle(model)
    small, report = shrink(model, flops=0.6, return_report=True)
    assert report.macs == (macs(model), macs(small))


def test_a_ticket_is_drawn_anew_by_its_own_scores():
    model = gallery.resnet()
    x = settle(model)
    ticket = tt.structured.draw_channels(model, 0.1)
    small, report = shrink(model, ticket, flops=0.5, return_report=True)
    assert macs(small) <= 0.5 * macs(model)
    again = tt.structured.draw_channels(model, report.sparsity)
    np.testing.assert_array_equal(
        outputs(shrink(model, again), x), outputs(small, x)
    )


def wide():
    image = x = keras.Input((8, 8, 3))
    for width in (24, 20, 32):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.Conv2D(32, 3, padding="same", use_bias=False)(x)
    x = layers.Add()([x, layers.BatchNormalization()(y)])
    x = layers.Concatenate()([x, layers.Conv2D(8, 1)(x)])
    return keras.Model(image, layers.Dense(3)(layers.Flatten()(x)))


@pytest.mark.parametrize("round_to", [8, 4])
def test_channels_stay_in_multiples(round_to):
    model = wide()
    settle(model)
    small, report = shrink(
        model, flops=0.5, round_to=round_to, return_report=True
    )
    for before, after in report.layers.values():
        assert after == before or after % round_to == 0
    assert macs(small) <= 0.5 * macs(model)
    ticket = tt.structured.draw_channels(model, 0.5, coupled=True)
    free, plain = shrink(model, ticket, return_report=True)
    kept, rounded = shrink(model, ticket, round_to=round_to, return_report=True)
    for name, (before, after) in rounded.layers.items():
        fewest = plain.layers[name][1]
        # No more than needed come back.
        assert after == min(before, -(-fewest // round_to) * round_to)
    # The best come back: by hand, in a layer of its own.
    norm = next(
        x for x in model.layers if isinstance(x, layers.BatchNormalization)
    )
    count = rounded.layers[model.layers[1].name][1]
    best = np.sort(np.argsort(-np.abs(norm.gamma.numpy()))[:count])
    np.testing.assert_array_equal(
        kept.get_layer(norm.name).gamma, norm.gamma.numpy()[best]
    )


def test_a_target_of_time_is_reached_as_measured(monkeypatch):
    def latencies(model, small):
        # Time by the number of weights: what a quiet machine would say.
        return [
            target.Latency(x.count_params() * 1e-6, 0, 0, 1)
            for x in (model, small)
        ]

    monkeypatch.setattr(target, "latencies", latencies)  # while it searches
    report_of = importlib.import_module("tf_tickets.structured.shrink")
    monkeypatch.setattr(report_of, "latencies", latencies)
    model = wide()
    settle(model)
    small, report = shrink(model, latency=0.5, return_report=True)
    ratio = small.count_params() / model.count_params()
    assert 0.35 < ratio <= 0.5
    assert report.latency[1] / report.latency[0] == pytest.approx(ratio)
    assert "ms: " in str(report)


def test_time_is_measured_of_models_of_several_inputs():
    before, after = target.latencies(
        gallery.towers(), gallery.towers(), batch=2
    )
    assert before.median > 0 and after.runs == before.runs


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "Say which channels go"),
        ({"flops": 1.5}, "flops"),
        ({"latency": 0.0}, "latency"),
        ({"flops": 0.5, "latency": 0.5}, "not both"),
        ({"flops": 0.5, "round_to": 0}, "round_to"),
        ({"flops": 0.5, "weights": "start"}, "no weights to start from"),
        ({"flops": 1e-4}, "No ticket makes the network so cheap"),
        ({"flops": 0.5, "criterion": "best"}, "criterion"),
        (
            {"flops": 0.5, "channels": {"norm/gamma": np.ones(32)}},
            "needs the scores",
        ),
    ],
)
def test_bad_targets_are_one_clear_error(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        shrink(gallery.mlp(), **options)
    assert "Received: " in str(caught.value)


def test_open_sizes_have_no_operations_to_count():
    model = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(name="norm"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ]
    )
    with pytest.raises(ValueError, match="operations are not known"):
        shrink(model, flops=0.5)
    key = model.get_layer("norm").gamma.path
    _, report = shrink(
        model, ChannelTicket({key: [1, 0, 1, 1]}), return_report=True
    )
    assert report.macs is None and report.removed == 1
