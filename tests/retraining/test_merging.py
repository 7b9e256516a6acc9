import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests import gallery
from tests.conftest import difference, images
from tests.retraining.conftest import train_a_little
from tf_tickets import masking
from tf_tickets.retraining import (
    inject_skip_connections,
    merge_skip_connections,
)


def chain(*layers, shape=(8, 8, 4), norm=True):
    parts = [keras.Input(shape), *layers]
    if norm:
        parts.append(keras.layers.BatchNormalization(momentum=0.5))
    parts += [keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential(parts, name="chain")


def conv(*args, **options):
    return keras.layers.Conv2D(*args, name="conv", **options)


MERGEABLE = {
    "plain": lambda: chain(conv(4, 3, padding="same")),
    "fused activation": lambda: chain(
        conv(4, 3, padding="same", activation="relu"), norm=False
    ),
    "strides, even size": lambda: chain(conv(6, 3, padding="same", strides=2)),
    "strides, odd size": lambda: chain(
        conv(6, 3, padding="same", strides=2), shape=(9, 9, 4)
    ),
    "5x5, strides 3": lambda: chain(
        conv(6, 5, padding="same", strides=3), shape=(10, 7, 4)
    ),
    "padded": lambda: chain(
        keras.layers.ZeroPadding2D(1), conv(6, 3, strides=2)
    ),
    "even kernel": lambda: chain(conv(4, 4, padding="same")),
    "dilated": lambda: chain(conv(4, 3, padding="same", dilation_rate=2)),
    "groups": lambda: chain(conv(6, 3, padding="same", groups=2)),
    "depthwise": lambda: chain(
        keras.layers.DepthwiseConv2D(
            3, padding="same", depth_multiplier=2, name="conv"
        )
    ),
    "depthwise identity": lambda: chain(
        keras.layers.DepthwiseConv2D(3, padding="same", name="conv")
    ),
    "1d": lambda: chain(
        keras.layers.Conv1D(4, 3, padding="same", name="conv"), shape=(8, 4)
    ),
    "nested": lambda: chain(
        keras.Sequential(
            [
                conv(4, 3, padding="same", use_bias=False),
                keras.layers.BatchNormalization(scale=False),
            ],
            name="inner",
        ),
        norm=False,
    ),
}


@pytest.mark.parametrize("branch", ["conv", "identity"])
@pytest.mark.parametrize("kind", MERGEABLE)
def test_a_merged_skip_gives_the_same_outputs(kind, branch):
    model = MERGEABLE[kind]()
    deeper = inject_skip_connections(
        model, filters="conv/", branch=branch, scale=0.3
    )
    x, y = images(model.input_shape[1:])
    train_a_little(deeper, x, y)
    merged = merge_skip_connections(deeper)
    expected = deeper(x).numpy()
    np.testing.assert_allclose(
        merged(x), expected, atol=2e-5 * np.abs(expected).max()
    )
    names = {layer.name for layer in merged.layers}
    assert not any(name.endswith(("_skip_add", "_skip_bn")) for name in names)
    assert difference(model, merged, x) > 1e-3


def test_the_price_of_merging_is_reported():
    model = gallery.block()
    tt.prune(model, sparsity=0.9).apply(model)
    deeper = inject_skip_connections(model)
    train_a_little(deeper, *images())
    merged, report = merge_skip_connections(deeper, return_report=True)
    for name in ("conv1", "conv2"):
        mask = masking.attached_masks(deeper)[f"{name}/kernel"].copy()
        before = int(mask.sum())
        mask[1, 1] = True  # the pixel of the branch is dense
        assert report.kernels[name] == (before, int(mask.sum()), mask.size)
    assert set(masking.attached_masks(merged)) == {
        "stem/kernel",
        "shortcut/kernel",
        "head/kernel",
    }
    assert report.parameters == (deeper.count_params(), merged.count_params())


def test_strides_on_an_unknown_size_cannot_be_merged():
    model = keras.Sequential(
        [
            keras.Input((None, None, 4)),
            conv(4, 3, padding="same", strides=2),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    deeper = inject_skip_connections(model, filters="conv")
    with pytest.raises(ValueError, match="needs a known input size"):
        merge_skip_connections(deeper)


def test_merging_without_skips_is_refused():
    with pytest.raises(ValueError, match="no skip connection to merge"):
        merge_skip_connections(gallery.block())


def test_a_normalization_over_another_axis_is_not_merged():
    model = keras.Sequential(
        [
            keras.Input((4, 6, 4)),
            conv(4, 3, padding="same"),
            keras.layers.BatchNormalization(axis=1),
        ]
    )
    deeper = inject_skip_connections(model, filters="conv")
    with pytest.raises(ValueError, match="another axis than the channels"):
        merge_skip_connections(deeper)
