"""The networks against the papers' tables and the figures of others."""

import functools
import inspect
import itertools
import math
import re

import keras
import numpy as np
import pytest

from tf_tickets.zoo import models

NORMALIZED = [
    "digits_cnn",
    "vgg16",
    "resnet20",
    "resnet32",
    "resnet56",
    "resnet18",
    "resnet34",
    "resnet50",
    "wide_resnet_28_2",
    "preresnet29",
    "preresnet101",
    "resnet1d",
    "mobilenet_v1",
    "mobilenet_v2",
]
PLAIN = ["lenet_300_100", "conv2", "conv4", "conv6"]


@pytest.fixture(scope="module")
def default():
    """`models.get` of a name alone: each is made once, and only read."""
    return functools.cache(models.get)


def kernels(model):
    return [w for w in model.weights if w.path.endswith("kernel")]


def sizes(model):
    return [math.prod(w.shape) for w in kernels(model)]


def trainable(model):
    return sum(math.prod(w.shape) for w in model.trainable_weights)


def test_resnet20_layer_by_layer(default):
    expected = (
        [432] + [2304] * 6 + [4608] + [9216] * 5 + [18432] + [36864] * 5 + [640]
    )
    assert sizes(default("resnet20")) == expected
    assert sum(expected) == 268_336


def test_vgg16_layer_by_layer():
    # Table 6: input and output channels of every layer.
    widths = [3, 64, 64, 128, 128, 256, 256, 256] + [512] * 6
    expected = [9 * a * b for a, b in itertools.pairwise(widths)] + [512 * 10]
    assert len(expected) == 14
    model = models.vgg16(classifier="conv", affine=False, bias=False)
    assert sizes(model) == expected
    assert kernels(model)[-1].shape == (1, 1, 512, 10)
    assert trainable(model) == sum(expected)


def test_lenet_and_conv_layer_by_layer(default):
    assert sizes(default("lenet_300_100")) == [784 * 300, 300 * 100, 100 * 10]
    convolutions = [1728, 36864, 73728, 147456, 294912, 589824]
    for name, number, flat in [
        ("conv2", 2, 16 * 16 * 64),
        ("conv4", 4, 8 * 8 * 128),
        ("conv6", 6, 4 * 4 * 256),
    ]:
        expected = convolutions[:number] + [flat * 256, 256 * 256, 256 * 10]
        assert sizes(models.get(name)) == expected


def test_digits_cnn_layer_by_layer():
    expected = [9 * 32, 9 * 32 * 64, 2 * 2 * 64 * 160, 160 * 10]
    assert sizes(models.digits_cnn()) == expected
    assert sum(expected) == 61_280


def test_resnet18_layer_by_layer(default):
    expected = [9 * 3 * 64] + [9 * 64 * 64] * 4
    for a, b in [(64, 128), (128, 256), (256, 512)]:
        expected += [a * b, 9 * a * b] + [9 * b * b] * 3
    assert sum(expected) == 11_159_232
    assert sorted(sizes(default("resnet18"))) == sorted([*expected, 5120])


@pytest.mark.parametrize(
    "name, blocks, size",
    [("preresnet29", 3, 308_144), ("preresnet101", 11, 1_039_280)],
)
def test_preresnets_layer_by_layer(name, blocks, size):
    expected, channels = [9 * 3 * 16], 16
    for filters in (16, 32, 64):
        for block in range(blocks):
            shortcut = [channels * 4 * filters] if block == 0 else []
            expected += [
                *shortcut,
                channels * filters,
                9 * filters * filters,
                filters * 4 * filters,
            ]
            channels = 4 * filters
    expected += [256 * 10]
    assert sorted(sizes(models.get(name))) == sorted(expected)
    assert sum(expected) == size


def test_resnet1d_layer_by_layer():
    expected = [3 * 16] + [3 * 16 * 16] * 6
    for a, b in [(16, 32), (32, 64)]:
        expected += [a * b, 3 * a * b] + [3 * b * b] * 5
    expected += [64 * 10]
    model = models.resnet1d()
    assert sorted(sizes(model)) == sorted(expected)
    assert sum(expected) == 92_336
    assert model.get_layer("average").input.shape == (None, 10, 64)


def test_mobilenet_v2_against_table_7(default):
    table = [  # 1x1 and 3x3 filters, 1x1 filters, times
        (32, 16, 1),
        (96, 24, 1),
        (144, 24, 1),
        (144, 32, 1),
        (192, 32, 2),
        (192, 64, 1),
        (384, 64, 3),
        (384, 96, 1),
        (576, 96, 2),
        (576, 160, 1),
        (960, 160, 2),
        (960, 320, 1),
    ]
    expected, channels = [9 * 3 * 32], 32
    for middle, filters, times in table:
        for _ in range(times):
            expected += [channels * middle, 9 * middle, middle * filters]
            channels = filters
    expected += [320 * 1280, 1280 * 10]
    # The shortcuts of the implementation that the table is taken from.
    expected += [32 * 16, 16 * 24, 64 * 96, 160 * 320]
    assert sorted(sizes(default("mobilenet_v2"))) == sorted(expected)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # What the well-known PyTorch implementations count.
        ("lenet_300_100", 266_610),
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet56", 853_018),
        ("resnet18", 11_173_962),
        ("resnet34", 21_282_122),
        ("resnet50", 23_520_842),
        ("wide_resnet_28_2", 1_467_610),
        ("mobilenet_v1", 3_217_226),
        ("mobilenet_v2", 2_296_922),
        # As above without the biases of the convolutions: 14,728,266 - 4,224.
        ("vgg16", 14_724_042),
    ],
)
def test_parameters_as_published(name, parameters, default):
    model = default(name)
    assert trainable(model) == parameters
    assert model.output_shape == (None, 10)
    assert model.name == name


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet18", 11_689_512), ("resnet50", 25_557_032)],
)
def test_imagenet_form_as_published(name, parameters):
    model = models.get(name, input_shape=(224, 224, 3), classes=1000)
    assert trainable(model) == parameters
    assert model.get_layer("average").input.shape[1:3] == (7, 7)


def test_stem_follows_the_size_unless_told():
    for size, stem, kernel, last in [
        (64, "auto", 3, 8),
        (65, "auto", 7, 3),
        (64, "imagenet", 7, 2),
        (96, "cifar", 3, 12),
    ]:
        model = models.resnet18(
            input_shape=(size, size, 3), classes=200, stem=stem
        )
        assert model.get_layer("stem_conv").kernel_size == (kernel, kernel)
        assert model.get_layer("average").input.shape[1:3] == (last, last)


@pytest.mark.parametrize("name", models.names())
def test_each_network(name):
    """Tiny images pass, names are stable, options take away what they say."""
    size = (8, 1) if name == "resnet1d" else (8, 8, 1)
    shape = {"input_shape": size, "classes": 7}
    model = models.get(name, **shape)
    images = np.ones((2, *size), "float32")
    logits = model(images).numpy()
    assert logits.shape == (2, 7)
    assert (logits < 0).any() and np.isfinite(logits).all()  # no softmax

    keras.layers.Dense(1)(keras.layers.ReLU()(keras.Input((1,))))
    options = {} if name in PLAIN else {"affine": False}
    bare = models.get(name, bias=False, **options, **shape)
    paths = [w.path for w in model.weights]
    assert len(set(paths)) == len(paths)
    assert [w.path for w in bare.weights] == [
        path
        for path in paths
        if not path.endswith(("/bias", "/gamma", "/beta"))
    ]
    assert bare.trainable_weights == kernels(bare)
    assert [layer.name for layer in bare.layers] == [
        layer.name for layer in model.layers
    ]
    norms = {
        (layer.momentum, layer.epsilon)
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    }
    assert norms == (set() if name in PLAIN else {(0.9, 1e-5)})


def test_paths_of_resnet20(default):
    expected = ["stem_conv/kernel"] + [
        f"stage{stage}_block{block}_conv{conv}/kernel"
        for stage in (1, 2, 3)
        for block in (1, 2, 3)
        for conv in (1, 2)
    ]
    paths = [w.path for w in kernels(default("resnet20"))]
    assert paths == [*expected, "classifier/kernel"]


def test_dense_and_conv_classifier_are_the_same():
    dense = models.resnet20(input_shape=(8, 8, 1))
    conv = models.resnet20(input_shape=(8, 8, 1), classifier="conv")
    for target, source in zip(conv.weights, dense.weights, strict=True):
        target.assign(keras.ops.reshape(source, target.shape))
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 1))
    np.testing.assert_allclose(conv(images), dense(images), atol=1e-5)


def test_shortcut_takes_every_second_pixel_and_pads_channels():
    model = models.resnet20(input_shape=(9, 8, 3))
    shortcut = keras.Model(
        model.get_layer("stage2_block1_shortcut_pool").input,
        model.get_layer("stage2_block1_shortcut_pad").output,
    )
    x = np.random.default_rng(0).normal(size=(2, 9, 8, 16)).astype("f")
    expected = np.pad(x[:, ::2, ::2], [(0, 0)] * 3 + [(8, 8)])
    np.testing.assert_array_equal(shortcut(x), expected)


@pytest.mark.parametrize("name", ["resnet20", "resnet18"])
def test_strided_convolution_is_centred_as_in_pytorch(name):
    model = models.get(name, input_shape=(8, 8, 3))
    layer = model.get_layer("stage2_block1_conv1")
    conv = keras.Model(
        model.get_layer("stage2_block1_conv1_pad").input, layer.output
    )
    x = np.random.default_rng(0).normal(size=(1, *conv.input_shape[1:]))
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    kernel = layer.kernel.numpy()
    out = conv(x).numpy()
    assert out.shape[1:3] == (4, 4)
    for i, j in [(0, 0), (1, 2), (3, 3)]:
        window = padded[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        expected = np.einsum("hwc,hwcf->f", window, kernel)
        np.testing.assert_allclose(out[0, i, j], expected, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v1", "lenet_300_100"])
def test_default_initialization_is_kaiming_normal(name, default):
    for weight in kernels(default(name)):
        shape = weight.shape
        # A depthwise kernel sees one channel.
        depthwise = "depthwise" in weight.path
        fan_in = 9 if depthwise else math.prod(shape[:-1])
        value, size = weight.numpy(), math.prod(shape)
        scale = value.std() / math.sqrt(2 / fan_in)
        assert abs(scale - 1) < 4 / math.sqrt(2 * size), weight.path
        assert abs(value.mean()) < 5 * math.sqrt(2 / fan_in / size)


def test_an_unknown_initializer_is_refused():
    with pytest.raises(ValueError, match="no_such"):
        models.resnet20(kernel_initializer="no_such")


def test_kernel_initializer_is_used_and_not_shared():
    model = models.resnet20(
        kernel_initializer=keras.initializers.RandomUniform(3.0, 4.0)
    )
    values = [w.numpy() for w in kernels(model)]
    assert all(v.min() >= 3 and v.max() <= 4 for v in values)
    assert not np.array_equal(values[1], values[2])
    ones = models.mobilenet_v2(kernel_initializer="ones")
    assert all((w.numpy() == 1).all() for w in kernels(ones))


@pytest.mark.parametrize("name", ["digits_cnn", "mobilenet_v2", "conv2"])
def test_weight_decay_is_half_the_squared_norm_of_every_parameter(name):
    model = models.get(name, input_shape=(8, 8, 1), weight_decay=2e-3)
    squares = sum((w.numpy() ** 2).sum() for w in model.trainable_weights)
    assert len(model.losses) == len(model.trainable_weights)
    assert float(sum(model.losses)) == pytest.approx(1e-3 * squares, rel=1e-4)
    assert not models.get(name, input_shape=(8, 8, 1)).losses


@pytest.mark.parametrize("name", ["mobilenet_v1", "resnet20"])
def test_a_saved_network_loads(name, tmp_path):
    model = models.get(name, input_shape=(8, 8, 1), weight_decay=1e-4)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1))
    np.testing.assert_allclose(loaded(images), model(images), atol=1e-6)
    assert float(sum(loaded.losses)) == float(sum(model.losses))
    assert [w.path for w in loaded.weights] == [w.path for w in model.weights]


def test_get_lists_what_there_is():
    with pytest.raises(ValueError, match="lenet_300_100.*Received: .*'nope'"):
        models.get("nope")
    with pytest.raises(ValueError, match="classes.*Received: affine"):
        models.get("conv2", affine=False)
    assert set(models.names()) == set(NORMALIZED + PLAIN)


@pytest.mark.parametrize(
    "options",
    [
        {"input_shape": (32, 32)},
        {"input_shape": (32, 0, 3)},
        {"input_shape": (32, None, 3)},
        {"classes": 0},
        {"weight_decay": -1e-4},
        {"classifier": "linear"},
    ],
)
def test_options_are_checked(options):
    ((name, value),) = options.items()
    message = re.escape(f"Received: {name}={value!r}")
    with pytest.raises(ValueError, match=message):
        models.resnet20(**options)


def test_the_shape_of_a_sequence_is_checked():
    with pytest.raises(ValueError, match=r"2 positive.*\(length, channels\)"):
        models.resnet1d(input_shape=(8, 8, 1))


def test_stem_is_checked():
    with pytest.raises(ValueError, match="Received: stem='tiny'"):
        models.resnet18(stem="tiny")


@pytest.mark.parametrize("name", models.names())
def test_a_network_says_its_options(name):
    """In its signature, with the defaults, and in its docstring."""
    function = getattr(models, name)
    signature = inspect.signature(function)
    plain = name in PLAIN
    expected = {
        "input_shape": {
            "lenet_300_100": (28, 28, 1),
            "digits_cnn": (8, 8, 1),
            "resnet1d": (40, 1),
        }.get(name, (32, 32, 3)),
        "classes": 10,
        "bias": True,
        "kernel_initializer": "he_normal",
        "weight_decay": 0.0,
        "name": None,
    }
    if not plain:
        expected["affine"] = True
    if name in ("vgg16", "resnet20", "resnet32", "resnet56"):
        expected["classifier"] = "dense"
    if name in ("resnet18", "resnet34", "resnet50"):
        expected["stem"] = "auto"
    assert {p.name: p.default for p in signature.parameters.values()} == (
        expected
    )
    assert all(p.kind is p.KEYWORD_ONLY for p in signature.parameters.values())
    for option in expected:
        assert re.search(rf"^    {option}: ", function.__doc__, re.MULTILINE)
    # The convolutions of a normalized network never have a bias.
    assert ("would cancel" in function.__doc__) != plain
    sections = [function.__doc__.index(f"{s}:") for s in ("Args", "Example")]
    assert sections == sorted(sections)
    with pytest.raises(TypeError, match="unexpected keyword argument 'width'"):
        function(width=3)


def test_numbers_of_numpy_are_options_too():
    model = models.lenet_300_100(
        input_shape=np.array([4, 4, 1]), classes=np.int64(3), name="small"
    )
    assert model.name == "small" and model.output_shape == (None, 3)
    assert keras.Model.from_config(model.get_config()).count_params() == (
        model.count_params()
    )


def test_a_function_stands_for_a_name():
    def tiny(*, input_shape, classes):
        layers = [keras.layers.Flatten(), keras.layers.Dense(classes)]
        return keras.Sequential([keras.Input(input_shape), *layers])

    model = models.get(tiny, input_shape=(2, 2, 1), classes=5)
    assert model.output_shape == (None, 5)
    with pytest.raises(ValueError, match="'tiny' are.*Received: affine"):
        models.get(tiny, affine=True)
    assert models.get("conv2", name="mine").name == "mine"
