"""What is rewritten for XNNPACK computes the same, and fits."""

import itertools

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tf_tickets.export.fitting import Axis

layers = keras.layers
apps = keras.applications


def randomize(model, seed=0):
    """No bias and no statistic is trivial."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        value = rng.normal(0, 0.3, variable.shape)
        if variable.name in ("gamma", "moving_variance"):
            value = 1 + np.abs(value)
        variable.assign(value)
    return model


def inputs_of(model, seed=1):
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=(2, *x.shape[1:])).astype("float32")
        for x in model.inputs
    ]


def check_same(model, atol=1e-5):
    made, report = tt.export.for_xnnpack(model, return_report=True)
    x = inputs_of(model)
    x = x[0] if len(x) == 1 else x
    for one, other in zip(
        keras.tree.flatten(model(x)),
        keras.tree.flatten(made(x)),
        strict=True,
    ):
        assert one.shape == other.shape
        scale = max(float(np.abs(one).max()), 1e-6)
        assert float(np.abs(one - other).max()) <= atol * scale
    return made, report


def small(size=32, channels=3, stem="same", step=None, end=None):
    x = inputs = keras.Input((size, size, channels))
    if not isinstance(stem, str):
        x = layers.ZeroPadding2D(stem)(x)
    x = layers.Conv2D(
        8,
        3,
        strides=2,
        padding=stem if stem == "same" else "valid",
        name="stem",
    )(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.ReLU(6.0)(layers.Conv2D(16, 1, name="point0")(x))
    x = (step or (lambda x: x))(x)
    x = layers.ReLU(6.0)(layers.Conv2D(24, 1, name="point1")(x))
    if end is None:
        x = layers.Dense(5, name="head")(layers.GlobalAveragePooling2D()(x))
    else:
        x = end(x)
    return randomize(keras.Model(inputs, x))


def depthwise(window=3, padding="same", strides=2):
    def step(x):
        if not isinstance(padding, str):
            x = layers.ZeroPadding2D(padding)(x)
        return layers.DepthwiseConv2D(
            window,
            strides=strides,
            padding=padding if isinstance(padding, str) else "valid",
            name="step",
        )(x)

    return step


@pytest.mark.parametrize("window", [2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_turned_window_reads_the_same_from_the_other_end(window, stride):
    """The theorem behind all this, for one axis, by NumPy."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=window)

    def computed(x, axis, kernel):
        rows = np.zeros(1000)
        rows[500 : 500 + axis.size] = x
        first = 500 - axis.before
        return [
            rows[first + stride * i :][:window] @ kernel
            for i in range(axis.steps)
        ]

    for size, before, after in itertools.product(range(5, 12), *[range(3)] * 2):
        axis = Axis(size, window, stride, before, after)
        turned = axis.turned
        assert turned.steps == axis.steps and turned.turned.before == before
        x = rng.normal(size=size)
        np.testing.assert_allclose(
            computed(x, axis, kernel),
            computed(x[::-1], turned, kernel[::-1])[::-1],
        )


@pytest.mark.parametrize(
    ("make", "begins"),
    [
        (
            lambda s: keras.applications.MobileNetV2(s, 0.35, weights=None),
            "Conv1",
        ),
        (
            lambda s: keras.applications.MobileNetV3Small(s, weights=None),
            "conv",
        ),
    ],
)
def test_networks_of_keras_applications_are_the_same_and_fit(
    make, begins, tmp_path
):
    pytest.importorskip("ai_edge_litert")
    model = make((64, 64, 3))
    policy = tt.export.xnnpack_policy(0.9)
    ticket = tt.prune(model, policy.pop("target_sparsity"), **policy)
    # Layers of many pixels too, which large weights would keep dense.
    for mask in ticket.masks.values():
        assert abs(mask.mean() - 0.1) <= 1 / mask.size
    ticket.apply(model)
    made, report = check_same(model)
    assert report.turned and report.begins == begins and not report.unchanged
    found = tt.export.write(made, tmp_path / "m.tflite", format="litert")
    verdict = tt.export.sparse_inference(found)
    assert [one.sparse for one in verdict.clusters] == [True], str(verdict)


def test_as_keras_pads_a_network_does_not_fit(tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = small(step=depthwise())
    tt.prune(model, 0.9, filters=tt.export.prunable_for_xnnpack).apply(model)
    for one, fits in ((model, False), (tt.export.for_xnnpack(model), True)):
        found = tt.export.write(one, tmp_path / "m.tflite", format="litert")
        assert tt.export.sparse_inference(found).sparse == fits


def _residual(x):
    y = layers.DepthwiseConv2D(3, padding="same")(x)
    return layers.Add()([x, layers.Conv2D(16, 1)(y)])


def _pools(x):
    x = layers.MaxPooling2D(2)(x)
    return layers.AveragePooling2D(3, strides=2, padding="same")(x)


def _cropped(x):
    x = layers.Cropping2D(((1, 0), (2, 1)))(x)
    return layers.ZeroPadding2D(((0, 2), (1, 3)))(x)


def _nested(x):
    inner = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            layers.ZeroPadding2D(((0, 1), (0, 1))),
            layers.DepthwiseConv2D(3, strides=2),
            layers.ReLU(),
        ],
        name="inner",
    )
    return inner(x)


def _normalized(x):
    x = layers.BatchNormalization(name="norm")(x)
    return layers.DepthwiseConv2D(3, padding="same")(x)


def _functions(x):
    return keras.ops.relu(x * 2.0 + 1.0) - keras.ops.sigmoid(x)


def _transposed(x):
    return layers.Conv2DTranspose(16, 3, strides=2, padding="same")(x)


def _positions(x):
    return layers.Add()([x, layers.Flatten()(x)[:, None, None, :16]])


STEPS = {
    "3x3": depthwise(),
    "5x5": depthwise(5),
    "padded below": depthwise(padding=((0, 1), (0, 1))),
    "of stride 3": depthwise(strides=3),
    "even window": depthwise(2, strides=1),
    "7x7": depthwise(7),
    "separable": lambda x: layers.SeparableConv2D(
        16, 3, strides=2, padding="same"
    )(x),
    "3x3 convolution": lambda x: layers.Conv2D(
        16, 3, strides=2, padding="same"
    )(x),
    "residual": _residual,
    "pools": _pools,
    "cropped": _cropped,
    "nested": _nested,
    "functions": _functions,
    "transposed": _transposed,
    "positions": _positions,
    "upsampled": layers.UpSampling2D(2, interpolation="bilinear"),
}


@pytest.mark.parametrize("name", STEPS)
def test_whatever_stands_inside_the_outputs_stay(name):
    _, report = check_same(small(step=STEPS[name]))
    assert report.turned and report.begins == "stem"


@pytest.mark.parametrize("size", [31, 33, 34])
def test_whatever_the_size_the_outputs_stay(size):
    check_same(small(size=size, step=depthwise()))
    check_same(small(size=size, stem=1, step=depthwise()))


@pytest.mark.parametrize(
    "end",
    [
        lambda x: x,
        lambda x: layers.Flatten()(x),
        lambda x: [x, layers.GlobalAveragePooling2D()(x)],
        lambda x: layers.Flatten()(
            layers.Conv2D(4, 1)(layers.GlobalAveragePooling2D(keepdims=True)(x))
        ),
        lambda x: layers.GlobalMaxPooling2D()(x),
    ],
)
def test_whatever_the_end_the_outputs_stay(end):
    check_same(small(end=end, step=depthwise()))


def test_a_model_inside_a_model_is_turned_with_it():
    inner = small(step=_nested, end=lambda x: x)
    x = layers.GlobalAveragePooling2D()(inner(inner.input))
    model = keras.Model(inner.input, layers.Dense(3)(x))
    made, report = check_same(randomize(model))
    flips = [
        one.name
        for part in (made, *made.layers)
        if isinstance(part, keras.Model)
        for one in part.operations
        if one.name.startswith("flip")
    ]
    assert report.turned and len(flips) == 1


def test_an_image_may_come_turned():
    model = small(step=depthwise())
    made = tt.export.for_xnnpack(model, turned_input=True)
    (x,) = inputs_of(model)
    np.testing.assert_allclose(
        made(x[:, ::-1, ::-1].copy()), model(x), rtol=1e-4, atol=1e-5
    )
    assert not any(one.name.startswith("flip") for one in made.operations)


def test_one_channel_becomes_three():
    made, report = check_same(small(channels=1, step=depthwise()))
    assert made.get_layer("stem").kernel.shape == (3, 3, 3, 8)
    assert "three channels" in report.changed["stem"] or report.begins == "stem"


def test_a_layer_the_other_way_round_gets_a_wider_kernel(tmp_path):
    pytest.importorskip("ai_edge_litert")
    # Padded above at the first layer, below at the second: no way up fits both.
    model = small(stem=1, step=depthwise(padding=((0, 1), (0, 1))))
    tt.prune(model, 0.8, filters=tt.export.prunable_for_xnnpack).apply(model)
    made, report = check_same(model)
    kernel = made.get_layer("step").kernel.numpy()
    assert not report.turned and kernel.shape[:2] == (5, 5)
    assert not kernel[:2].any() and not kernel[:, :2].any()
    assert "5x5" in report.changed["step"]
    found = tt.export.write(made, tmp_path / "m.tflite", format="litert")
    assert tt.export.sparse_inference(found).sparse


def test_masks_go_along_and_hold_in_training():
    model = small(step=depthwise())
    tt.prune(model, 0.5).apply(model)  # all kernels, those that turn too
    made = tt.export.for_xnnpack(model)
    zeros = {
        key: np.count_nonzero(value.numpy() == 0)
        for key, value in tt.prunable_weights(model).items()
    }
    made.compile("sgd", "mse")
    x = inputs_of(made)[0]
    before = made.get_layer("step").kernel.numpy().copy()
    made.fit(x, np.ones((2, 5)), verbose=0)
    after = {
        key: np.count_nonzero(value.numpy() == 0)
        for key, value in tt.prunable_weights(made).items()
    }
    assert after == zeros
    assert (made.get_layer("step").kernel.numpy() != before).any()


def test_a_pruned_head_is_computed_sparsely_too(tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = small(step=depthwise())
    kernels = ["point0", "point1", "head"]
    tt.prune(model, 0.8, filters=kernels).apply(model)
    made, report = check_same(model)
    assert "1x1 convolution" in report.changed["head"]
    found = tt.export.write(made, tmp_path / "m.tflite", format="litert")
    (cluster,) = tt.export.sparse_inference(found).clusters
    assert cluster.sparse and len(cluster.convolutions) == 3
    # Unpruned it stays a dense layer, which spoils no cluster.
    model = small(step=depthwise())
    assert "head" not in check_same(model)[1].changed


def test_it_says_what_stays_and_why():
    _, report = check_same(small(step=_pools))
    assert "MaxPooling2D" in str(report)
    # Zeros that are padded behind a normalization are no zeros before it.
    _, report = check_same(small(step=_normalized))
    assert "cannot be folded" in report.unchanged["norm"]
    _, report = check_same(small(stem=((0, 0), (0, 0)), channels=1))
    assert not report.changed and not report.turned
    assert not report.begins and "can begin" not in str(report)
    assert "nothing for sparse inference to begin at" in str(report)


def test_bad_models_are_one_clear_error():
    from tests import gallery

    with pytest.raises(ValueError, match="Rewriting for XNNPACK needs"):
        tt.export.for_xnnpack(gallery.subclassed(8, width=4, outputs=2))
    open_size = keras.Sequential(
        [keras.Input((None, None, 3)), layers.Conv2D(4, 3, strides=2)]
    )
    with pytest.raises(ValueError, match="leaves it open.*Received"):
        tt.export.for_xnnpack(open_size)
