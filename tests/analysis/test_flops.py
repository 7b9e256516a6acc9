"""Operations equal counts by hand."""

import keras
import numpy as np
import pytest
from keras import layers

import tf_tickets as tt
from tf_tickets.analysis import TrainingLedger, flops
from tf_tickets.selection import named_weights
from tf_tickets.zoo import models


def test_resnet20_by_hand():
    # 3x3 kernels: positions x 9 x in x out. The shortcuts only pad.
    stem = 32 * 32 * 9 * 3 * 16
    first = 6 * 32 * 32 * 9 * 16 * 16
    second = 16 * 16 * 9 * (16 * 32 + 5 * 32 * 32)
    third = 8 * 8 * 9 * (32 * 64 + 5 * 64 * 64)
    report = flops(models.resnet20())
    assert stem + first + second + third + 64 * 10 == 40_551_040
    assert report.macs == 40_551_040
    assert report.forward == 81_102_080 and report.training == 243_306_240
    assert not report.uncounted


def test_vgg16_by_hand():
    plan = [  # (image side, in, out)
        (32, 3, 64), (32, 64, 64),
        (16, 64, 128), (16, 128, 128),
        (8, 128, 256), (8, 256, 256), (8, 256, 256),
        (4, 256, 512), (4, 512, 512), (4, 512, 512),
        (2, 512, 512), (2, 512, 512), (2, 512, 512),
    ]  # fmt: skip
    convolutions = sum(s * s * 9 * i * o for s, i, o in plan)
    assert convolutions == 313_196_544
    assert flops(models.vgg16()).macs == convolutions + 512 * 10


def test_mobilenet_v2_by_hand():
    """The network for 224 pixels, whose paper says 300 million."""
    side, channels = 112, 32
    total = side**2 * 27 * 32
    plan = [  # (expansion, out, repeats, stride): table 2 of the paper
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
        (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ]  # fmt: skip
    for expansion, out, repeats, stride in plan:
        for i in range(repeats):
            wide = channels * expansion
            if expansion > 1:
                total += side**2 * channels * wide
            side //= stride if i == 0 else 1
            total += side**2 * 9 * wide + side**2 * wide * out
            channels = out
    total += side**2 * 320 * 1280 + 1280 * 1000
    model = keras.applications.MobileNetV2(weights=None)
    assert flops(model).macs == total == 300_774_272


def test_every_kind_of_layer_by_hand():
    image = keras.Input((8, 8, 4))
    x = layers.Conv2D(6, 3, strides=2, padding="same", groups=2)(image)
    x = layers.Conv2DTranspose(5, 3, strides=2, padding="same")(x)
    x = layers.SeparableConv2D(7, 3, depth_multiplier=2)(x)
    x = layers.DepthwiseConv2D(3)(x)
    x = layers.Reshape((16, 7))(x)
    x = layers.Conv1D(3, 5)(layers.BatchNormalization()(x))
    x = layers.EinsumDense("abc,cd->abd", (12, 9))(x)
    x = layers.EinsumDense("...c,cd->...d", 2)(x)
    x = layers.Dense(11)(x)
    shared = layers.Dense(11)
    x = shared(shared(x))
    report = flops(keras.Model(image, x))
    by_hand = [
        4 * 4 * 9 * 2 * 6,
        4 * 4 * 9 * 6 * 5,
        6 * 6 * (9 * 5 * 2 + 10 * 7),
        4 * 4 * 9 * 7,
        12 * 5 * 7 * 3,
        12 * 3 * 9,
        12 * 9 * 2,
        12 * 2 * 11,
        2 * 12 * 11 * 11,
    ]
    assert [row.macs for row in report.layers] == by_hand
    assert report.macs == report.masked_macs == sum(by_hand)
    assert "total" in str(report)


def test_channels_first_counts_alike():
    first = keras.Sequential(
        [
            keras.Input((3, 8, 8)),
            layers.Conv2D(4, 3, data_format="channels_first"),
        ]
    )
    assert flops(first).macs == 6 * 6 * 9 * 3 * 4


def test_masked_operations_follow_the_weights_and_the_positions():
    model = models.resnet20(input_shape=(16, 16, 3))
    ticket = tt.prune(model, sparsity=0.9)
    report = flops(model, masks=ticket.masks)
    assert report.macs == report_of(model, lambda key, v: v.size)
    expected = report_of(model, lambda key, v: ticket.masks[key].sum())
    assert report.masked_macs == expected < report.macs
    assert flops(model).masked_macs == flops(model).macs
    ticket.apply(model)
    assert flops(model).masked_macs == expected


def report_of(model, weigh):
    total = 0
    for key, variable in tt.prunable_weights(model).items():
        layer = next(
            la for la in model.layers if getattr(la, "kernel", 0) is variable
        )
        positions = int(np.prod(layer.output.shape[1:-1]))
        total += positions * int(weigh(key, variable.numpy()))
    return total


def test_half_the_channels_are_a_quarter_of_the_operations():
    model = models.vgg16()
    masks = {
        key: np.arange(weight.shape[0]) % 2 == 0
        for key, weight in named_weights(model).items()
        if weight.name == "gamma"
    }
    small = tt.structured.shrink(model, masks)
    dense, shrunk = flops(model), flops(small)
    first = 32 * 32 * 27 * 64  # the image keeps its channels
    head = 512 * 10
    assert shrunk.macs == (dense.macs - first - head) // 4 + (first + head) // 2


def test_the_ledger_adds_up():
    wide = keras.Sequential([keras.Input((10,)), layers.Dense(10)])
    thin = keras.Sequential([keras.Input((10,)), layers.Dense(5)])
    ledger = TrainingLedger(wide, epochs=20, samples=100)
    ledger.add("search", wide, epochs=4, bits=8)
    ledger.add("retrain", flops(thin), epochs=16)
    step = 3 * 2 * 100
    assert ledger.dense.total == 20 * 100 * step
    assert ledger.total == (4 * 100 + 16 * 50) * step
    assert ledger.saving == 2000 / 1200
    assert "1.67 times less" in str(ledger) and "search" in str(ledger)


@pytest.mark.parametrize(
    "options",
    [{"epochs": 0}, {"epochs": 1.5}, {"epochs": 1, "samples": True}],
)
def test_a_ledger_counts_in_whole_numbers(options):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="whole number.* Received: "):
        TrainingLedger(model, **{"samples": 10, **options})
    ledger = TrainingLedger(model, epochs=np.int64(2), samples=10)
    with pytest.raises(ValueError, match="`bits` .* Received: "):
        ledger.add("search", model, epochs=1, bits=0)


def test_what_is_only_called_like_a_known_layer_is_not_counted():
    class Conv2D(layers.Conv2D):
        pass

    image = keras.Input((6, 6, 3))
    x = Conv2D(4, 3, name="own")(image)
    x = layers.SpectralNormalization(layers.Dense(2), name="wrapped")(x)
    report = flops(keras.Model(image, x))
    assert report.macs == 0
    assert report.uncounted == (
        "own (Conv2D)",
        "wrapped (SpectralNormalization)",
    )


def test_open_sizes_need_an_input_shape():
    model = keras.Sequential(
        [keras.Input((None, None, 3)), layers.Conv2D(4, 3)]
    )
    with pytest.raises(ValueError, match="give `input_shape`. Received"):
        flops(model)
    assert flops(model, input_shape=(8, 8, 3)).macs == 36 * 27 * 4
    with pytest.raises(ValueError, match="one input.* Received"):
        flops(model, input_shape=(8, 8))


def test_what_is_not_counted_is_named():
    image = keras.Input((6, 4))
    x = layers.LSTM(3, name="memory")(image)
    report = flops(keras.Model(image, layers.Dense(2)(x)))
    assert report.uncounted == ("memory (LSTM)",)
    assert report.macs == 6 and "not counted: memory" in str(report)


def test_a_mask_of_another_model_is_refused():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="path and shape.* Received"):
        flops(model, masks={"other": np.ones((4, 2))})


def test_a_model_that_is_not_built_is_told_to_be():
    model = keras.Sequential([keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="no weights yet: build it first"):
        flops(model)
    model.build((None, 4))
    assert flops(model).macs == 12
