"""The smaller model computes what the big one does with channels at zero."""

import keras
import numpy as np
import pytest
from keras import layers

import tf_tickets as tt
from tests import gallery
from tests.conftest import batches, compiled, outputs, settle
from tf_tickets import masking
from tf_tickets.network.channels import follow, owners
from tf_tickets.network.graph import trace
from tf_tickets.selection import named_weights
from tf_tickets.structured import ChannelTicket, shrink
from tf_tickets.zoo import models

NETWORKS = gallery.names("channels")
ZOO = {
    "vgg16": lambda: models.vgg16(),
    "resnet20": lambda: models.resnet20(),
    "mobilenet_v2": lambda: models.mobilenet_v2(),
}


def coupled_masks(model, sparsity, seed=0):
    """``{scale: mask}`` that agree wherever channels are tied."""
    channels = follow(trace(model))
    rng = np.random.default_rng(seed)
    going = rng.random(channels.size) < sparsity
    for entry in channels.layers.values():
        if entry.made is not None:  # no layer may lose all
            going[channels.roots(entry.made)[0]] = False
    return {
        key: ~going[channels.roots(atoms)]
        for key, atoms in owners(channels, model).items()
        if key.rpartition("/")[2].startswith("gamma")
    }


def zeroed(model, masks):
    """Zero scale and offset of the pruned channels, in the model itself."""
    weights = named_weights(model)
    for key, mask in masks.items():
        for name in (key, "beta".join(key.rsplit("gamma", 1))):
            weights[name].assign(np.where(mask, weights[name], 0))


def assert_exact(model, masks, x, tolerance=1e-5):
    small, report = shrink(model, masks, return_report=True)
    zeroed(model, masks)
    expected, found = outputs(model, x), outputs(small, x)
    assert np.abs(expected).max() > 1e-3  # not dead, so there is a test
    assert expected.std(axis=0).max() > 1e-4
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)
    return small, report


@pytest.mark.parametrize("name", [*NETWORKS, *ZOO])
def test_shrinking_is_exact(name, float64):
    model = {**gallery.GALLERY, **ZOO}[name]()
    x = settle(model)
    masks = coupled_masks(model, 0.5)
    small, report = assert_exact(model, masks, x, tolerance=1e-9)
    assert report.removed > 0 and not report.stops and not report.floored
    assert report.parameters == (model.count_params(), small.count_params())
    assert small.count_params() < 0.8 * model.count_params()
    assert type(small) is type(model)


@pytest.mark.parametrize("name", ["resnet20"])
def test_shrinking_is_exact_in_float32(name):
    model = ZOO[name]()
    assert_exact(model, coupled_masks(model, 0.5), settle(model))


# How large images are, and where to end: what follows is more of the same.
APPLICATIONS = {
    "MobileNetV3Small": (64, None),
    "DenseNet121": (32, "conv3_block2_concat"),
}


@pytest.mark.parametrize("name", APPLICATIONS)
def test_models_of_keras_applications_shrink(name, float64):
    size, end = APPLICATIONS[name]
    model = getattr(keras.applications, name)(
        weights=None,
        input_shape=(size, size, 3),
        classes=5,
        classifier_activation=None,
    )
    if end is not None:
        x = layers.BatchNormalization()(model.get_layer(end).output)
        x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
        model = keras.Model(model.input, layers.Dense(5)(x))
    x = settle(model)
    small, report = assert_exact(
        model, coupled_masks(model, 0.5), x, tolerance=1e-9
    )
    assert report.removed == report.asked and not report.stops


def test_masks_that_disagree_keep_the_channel_and_zero_its_scale():
    model = ZOO["resnet20"]()
    x = settle(model)
    rng = np.random.default_rng(0)
    masks = {
        key: rng.random(weight.shape[0]) < 0.5
        for key, weight in named_weights(model).items()
        if weight.name == "gamma"
    }
    small, report = assert_exact(model, masks, x)
    # Channels of the residual stream are named by many layers.
    assert "another layer that shares them" in report.stops[0].reason
    assert 0 < report.removed < report.asked
    # Within a block nobody else has a say.
    mask = next(m for k, m in masks.items() if "stage1_block1_conv1" in k)
    kernel = small.get_layer("stage1_block1_conv1").kernel
    assert kernel.shape[-1] == mask.sum()


def test_a_padded_shortcut_pads_fewer_channels():
    model = ZOO["resnet20"]()
    settle(model)
    small = shrink(model, coupled_masks(model, 0.5))
    pads = [
        layer
        for layer in small.layers
        if isinstance(layer, layers.ZeroPadding2D)
        and layer.data_format == "channels_first"
    ]
    assert len(pads) == 2
    for layer in pads:
        before, after = layer.padding[1]
        assert before + after < layer.output.shape[-1]
        assert layer.input.shape[-1] + before + after == layer.output.shape[-1]


@pytest.mark.parametrize("seed", range(8))
def test_random_graphs_shrink_exactly(seed, float64):
    model = gallery.random_graph(seed)
    x = settle(model, seed)
    masks = coupled_masks(model, 0.4, seed)
    assert_exact(model, masks, x, tolerance=1e-9)


def block_with(layer):
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv")(image)
    x = layers.BatchNormalization(name="norm")(x)
    x = layer(x)
    x = layers.Conv2D(4, 3, name="next", use_bias=False)(x)
    x = layers.BatchNormalization(name="next_norm")(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    return keras.Model(image, layers.Dense(2)(x))


@keras.saving.register_keras_serializable("tests")
class Unheard(layers.Layer):
    def call(self, x):
        return keras.ops.cumsum(x, axis=-1)


@keras.saving.register_keras_serializable("tests")
class Sub(layers.ReLU):
    def call(self, x):
        return keras.ops.flip(super().call(x), axis=-1)


def backwards(x):
    return x[..., ::-1]


@pytest.mark.parametrize(
    "layer",
    [
        lambda: Unheard(name="stopper"),
        lambda: Sub(name="stopper"),
        lambda: layers.LayerNormalization(name="stopper"),
        lambda: layers.Softmax(name="stopper"),
        lambda: layers.Activation("softmax", name="stopper"),
        lambda: layers.GroupNormalization(2, name="stopper"),
        lambda: layers.Permute((3, 1, 2), name="stopper"),
        lambda: layers.Lambda(lambda x: x[..., ::-1], name="stopper"),
        lambda: layers.Rescaling([1.0] * 6, name="stopper"),
        lambda: layers.TimeDistributed(layers.Conv1D(4, 1), name="stopper"),
        lambda: layers.Conv2D(6, 1, activation=backwards, name="stopper"),
    ],
)
def test_what_cannot_be_followed_keeps_its_channels_and_is_named(layer):
    model = block_with(layer())
    x = settle(model)
    masks = {
        named: np.arange(size) % 2 == 0
        for named, size in (("norm/gamma", 6), ("next_norm/gamma", 4))
    }
    small, report = assert_exact(model, masks, x)
    assert small.get_layer("next").kernel.shape[-1] == 2
    stopper = model.get_layer("stopper")
    if isinstance(stopper, layers.Conv2D):  # it reads channels like any other
        assert small.get_layer("conv").kernel.shape[-1] == 3
        assert small.get_layer("stopper").kernel.shape[-1] == 6
        return
    assert small.get_layer("conv").kernel.shape[-1] == 6
    # A permutation is followed; the layer after it reads another axis.
    name = "next" if isinstance(stopper, layers.Permute) else "stopper"
    [stop] = report.stops
    assert name in stop.reason and stop.layers == ("conv",)
    assert stop.channels == 3


def test_instance_normalization_has_a_group_for_each_channel():
    model = block_with(layers.GroupNormalization(-1, name="instance"))
    x = settle(model)
    masks = {"norm/gamma": np.arange(6) < 4}
    # A channel of zeros leaves instance normalisation as its offset.
    beta = model.get_layer("instance").beta
    beta.assign(np.where(masks["norm/gamma"], beta, 0))
    small, _ = assert_exact(model, masks, x)
    assert small.get_layer("instance").groups == 4


def test_a_kernel_names_channels_where_there_is_no_normalization():
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(6, activation="relu", name="one"),
            layers.Dense(3, name="two"),
        ]
    )
    x = settle(model)
    mask = np.array([1, 0, 1, 1, 0, 1], bool)
    kernel = model.get_layer("one").kernel
    small = shrink(model, {kernel.path: mask})
    one = model.get_layer("one")
    one.kernel.assign(one.kernel * mask)
    one.bias.assign(one.bias * mask)
    np.testing.assert_allclose(outputs(small, x), outputs(model, x), atol=1e-6)
    assert small.get_layer("one").units == 4


def test_a_layer_never_loses_all_its_channels():
    model = block_with(layers.ReLU())
    x = settle(model)
    gamma = model.get_layer("norm").gamma.numpy()
    with pytest.warns(UserWarning, match=r"each keeps one: \['conv'\]"):
        small, report = shrink(
            model, {"norm/gamma": np.zeros(6, bool)}, return_report=True
        )
    assert report.floored == ("conv",)
    assert small.get_layer("conv").kernel.shape[-1] == 1
    # The strongest stays, as it was.
    assert small.get_layer("norm").gamma.numpy() == gamma.max()
    only = np.arange(6) == gamma.argmax()
    zeroed(model, {"norm/gamma": only})
    np.testing.assert_allclose(outputs(small, x), outputs(model, x), atol=1e-5)


def test_channels_of_the_output_stay():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3), layers.BatchNormalization()]
    )
    x = settle(model)
    gamma = model.layers[-1].gamma.path
    small, report = assert_exact(model, {gamma: [1, 0, 1]}, x)
    assert "output of the model" in report.stops[0].reason
    assert small.output_shape == (None, 3)


def test_the_small_model_trains_saves_and_loads(tmp_path, data):
    model = compiled(
        keras.Sequential(
            [
                keras.Input((8,)),
                layers.Dense(32, use_bias=False),
                layers.BatchNormalization(name="norm"),
                layers.ReLU(),
                layers.Dense(4),
            ]
        ),
        jit_compile=True,
    )
    model.fit(batches(*data), epochs=2, verbose=0)
    gamma = model.get_layer("norm").gamma.path
    small = shrink(model, {gamma: np.arange(32) % 2 == 0})
    assert small.jit_compile and small.compiled
    small.fit(batches(*data), epochs=2, verbose=0)
    small.save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(
        outputs(again, data[0]), outputs(small, data[0])
    )
    assert model.count_params() > small.count_params()
    # Training the one leaves the other alone.
    assert not {id(v) for v in model.variables} & {
        id(v) for v in small.variables
    }


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.SGD(0.05, momentum=0.9),
        lambda: keras.optimizers.Adam(0.01),
        lambda: keras.optimizers.AdamW(0.01, use_ema=True),
    ],
)
def test_an_inherited_optimizer_goes_on_where_the_big_one_would(
    optimizer, data
):
    """Two steps of the small model equal two of the big, masked one."""

    def build():
        keras.utils.set_random_seed(1)
        return compiled(
            keras.Sequential(
                [
                    keras.Input((8,)),
                    layers.Dense(6, activation="relu", name="one"),
                    layers.Dense(6, activation="relu", name="two"),
                    layers.Dense(4, name="head"),
                ]
            ),
            optimizer(),
            run_eagerly=True,
        )

    model = build()
    model.fit(batches(*data), epochs=2, verbose=0)
    mask = np.arange(6) % 3 > 0
    path = model.get_layer("one").kernel.path
    ticket = ChannelTicket({path: mask})
    small = shrink(model, ticket, inherit_optimizer=True)
    assert int(small.optimizer.iterations) == 8
    rows = np.where(mask[:, None], 1, 0).astype(bool)
    ticket.apply(model, weights="keep")
    # What follows from a pruned channel: the weights that read it.
    two = model.get_layer("two").kernel
    masking.enforce(
        model,
        {
            **masking.attached_masks(model),
            two.path: np.broadcast_to(rows, two.shape),
        },
    )
    for each in (model, small):
        each.fit(batches(*data), epochs=1, verbose=0)
    np.testing.assert_allclose(
        outputs(small, data[0]), outputs(model, data[0]), atol=1e-5
    )
    fresh = shrink(model, ticket)
    assert int(fresh.optimizer.iterations) == 0


def test_slots_of_weights_with_one_path_are_told_apart(data):
    """Two towers made by one function: their weights have the same names."""

    def tower(name):
        image = keras.Input((8,))
        x = layers.Dense(6, activation="relu", name="hidden")(image)
        return keras.Model(image, layers.Dense(4, name="out")(x), name=name)

    image = keras.Input((8,))
    towers = tower("left"), tower("right")
    model = compiled(
        keras.Model(image, layers.Add()([t(image) for t in towers])),
        keras.optimizers.SGD(0.1, momentum=0.9),
    )
    model.fit(batches(*data), verbose=0)
    keys = [k for k in named_weights(model) if "hidden/kernel" in k]
    assert keys[1] == keys[0] + "#1"
    masks = [np.arange(6) >= 0, np.arange(6) < 4]
    small = shrink(
        model, dict(zip(keys, masks, strict=True)), inherit_optimizer=True
    )

    def momenta(of):
        return [
            v.numpy()
            for v in of.optimizer.variables
            if "hidden_kernel" in v.path
        ]

    for cut, full, mask in zip(
        momenta(small), momenta(model), masks, strict=True
    ):
        np.testing.assert_array_equal(cut, full[:, mask])


def test_masks_in_force_are_cut_and_stay_in_force():
    model = compiled(
        keras.Sequential(
            [
                keras.Input((8,)),
                layers.Dense(16, activation="relu", name="one"),
                layers.Dense(4, name="head"),
            ]
        )
    )
    ticket = tt.prune(model, sparsity=0.5)
    ticket.apply(model)
    path = model.get_layer("one").kernel.path
    keep = np.arange(16) < 10
    small = shrink(model, {path: keep})
    masks = masking.attached_masks(small)
    np.testing.assert_array_equal(
        masks[small.get_layer("one").kernel.path], ticket.masks[path][:, keep]
    )
    rng = np.random.default_rng(0)
    small.fit(rng.normal(size=(16, 8)), np.zeros(16), verbose=0)
    for key, mask in masks.items():
        assert (named_weights(small)[key].numpy()[~mask] == 0).all()


def test_frozen_layers_stay_frozen():
    model = block_with(layers.ReLU())
    model.get_layer("conv").trainable = False
    model.get_layer("next").kernel.trainable = False
    small = shrink(model, {"norm/gamma": np.arange(6) < 4})
    assert not small.get_layer("conv").trainable
    assert not small.get_layer("next").kernel.trainable
    assert len(small.trainable_variables) == len(model.trainable_variables)


def test_tickets_bring_their_own_weights():
    model = block_with(layers.ReLU())
    settle(model)
    from tf_tickets.selection import values_of

    ticket = ChannelTicket(
        {"norm/gamma": np.arange(6) < 4}, values_of(named_weights(model))
    )
    before = model.get_layer("conv").kernel.numpy()
    model.get_layer("conv").kernel.assign(before + 1)
    small = shrink(model, ticket, weights="start")
    np.testing.assert_array_equal(
        small.get_layer("conv").kernel, before[..., :4]
    )
    small = shrink(model, ticket)
    np.testing.assert_array_equal(
        small.get_layer("conv").kernel, before[..., :4] + 1
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": {"nothing/gamma": [1, 0]}}, "does not have"),
        ({"channels": {"norm/gamma": [1, 0]}}, "does not have"),
        ({"channels": {"norm/beta": [1, 0, 1, 1, 1, 1]}}, "name no channels"),
        ({"channels": {"norm/gamma": [1, 2, 3, 1, 1, 1]}}, "zeros and ones"),
        ({"channels": {}}, "needs a mask"),
        ({"weights": "none"}, "`weights`"),
        ({"weights": "start"}, "no weights to start"),
        ({"inherit_optimizer": True}, "no optimizer"),
    ],
)
def test_bad_input_is_one_clear_error(options, message):
    model = block_with(layers.ReLU())
    channels = options.pop("channels", {"norm/gamma": np.arange(6) < 4})
    with pytest.raises(ValueError, match=message) as error:
        shrink(model, channels, **options)
    assert "Received: " in str(error.value)


def test_the_benchmark_reports_gains(tmp_path, capsys):
    import json

    from benchmarks import shrink as script

    script.FLAGS.unparse_flags()
    output = tmp_path / "rows.json"
    script.FLAGS(
        [
            "shrink",
            "--smoke",
            "--network=resnet20",
            "--jit_compile=false",
            f"--output={output}",
        ]
    )
    script.main([])
    notes = json.loads(output.read_text())["notes"]
    # 4 -> 2, 8 -> 4, 16 -> 8 channels; only the image keeps its three.
    assert 3 < notes["resnet20, inference: gain in FLOPs"] < 4
    said = capsys.readouterr().out
    assert "resnet20, training: time over FLOPs" in said
    assert "resnet20, served: both folded, time over FLOPs" in said
    assert "shrunk, folded" in said
    case = "wide_resnet_28_2, selection"
    assert notes[f"{case}, select: gain in FLOPs"] > 1.2
    assert f"{case}, product: gain in time" in notes


def test_a_subclassed_model_is_refused():
    model = gallery.subclassed()
    with pytest.raises(ValueError, match="subclassed .* Received: Subclassed"):
        shrink(model, {model.norm.gamma.path: np.arange(12) < 6})


# --- `apply` and `shrink` are two ways to one network ------------------------


def assert_as_applied(model, ticket, x, tolerance=1e-12):
    """Shrunk, and held at zero in its own size: the same outputs."""
    small, report = shrink(model, ticket, return_report=True)
    if not isinstance(ticket, ChannelTicket):
        ticket = ChannelTicket(ticket)
    ticket.apply(model, weights="keep")
    expected = outputs(model, x)
    assert expected.std(axis=0).max() > 1e-6  # there is something to compare
    np.testing.assert_allclose(
        outputs(small, x), expected, rtol=0, atol=tolerance
    )
    return small, report


def curved(curve, padding="same", depthwise=False):
    image = x = keras.Input((10, 10, 3))
    for _ in range(2):
        x = layers.Conv2D(6, 3, padding=padding)(x)
        x = curve(layers.BatchNormalization()(x))
        if depthwise:
            x = layers.DepthwiseConv2D(3, padding=padding)(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalMaxPooling2D()(x)
    return keras.Model(image, layers.Dense(3)(x))


CURVES = {
    "sigmoid": lambda x: layers.Activation("sigmoid")(x),
    "offset": lambda x: layers.Rescaling(1.0, 0.5)(x),
    "one more": lambda x: x + 1.0,
    "extreme": lambda x: keras.ops.maximum(x, 0.3),
    "shares": lambda x: layers.Softmax(axis=(1, 2))(x),
}


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("curve", CURVES)
def test_what_is_not_zero_at_zero_moves_into_biases(curve, padding, float64):
    model = curved(CURVES[curve], padding)
    x = settle(model)
    masks = {
        key: np.arange(6) % 3 > 0
        for key, weight in named_weights(model).items()
        if weight.name == "gamma"
    }
    _, report = assert_as_applied(model, masks, x)
    # The first layer's constant meets the border of the second.
    assert report.removed == (4 if padding == "valid" else 2)
    assert [s.channels for s in report.stops] == [2] * (padding == "same")
    assert report.held == (0 if padding == "valid" else 2)


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_pruned_filters_take_their_normalizations_along(
    padding, depthwise, float64
):
    model = curved(lambda x: layers.ReLU()(x), padding, depthwise)
    x = settle(model)
    ticket = tt.structured.draw_channels(model, 0.4, criterion="filter_norm")
    _, report = assert_as_applied(model, ticket, x)
    if not depthwise:  # whose own bias is a constant at the next border
        assert report.removed == report.asked == 5
        assert not report.stops


def test_a_filter_leaves_a_normalization_to_others_that_reach_it(float64):
    image = keras.Input((8,))
    two = [layers.Dense(6, name=name)(image) for name in ("one", "two")]
    x = layers.BatchNormalization(name="norm")(layers.Add()(two))
    model = keras.Model(image, layers.Dense(3)(layers.ReLU()(x)))
    x = settle(model)
    mask = np.arange(6) > 1
    key = model.get_layer("one").kernel.path
    held = ChannelTicket({key: mask}).element_masks(model)
    assert not any("norm" in key for key in held)
    _, report = assert_as_applied(model, {key: mask}, x)
    assert report.removed == 0  # the other side says something


def test_channels_that_stay_are_held_at_zero(data):
    model = compiled(gallery.resnet(), run_eagerly=True)
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 3))
    y = np.arange(16) % 10
    settle(model)
    masks = {
        key: (np.arange(weight.shape[0]) + i) % 3 > 0
        for i, (key, weight) in enumerate(named_weights(model).items())
        if weight.name == "gamma"
    }
    small, report = shrink(model, masks, return_report=True)
    assert report.held == report.asked - report.removed > 0
    assert f"{report.held} of the channels kept are held" in str(report)
    held = masking.attached_masks(small)
    assert sum((~m).sum() for k, m in held.items() if "gamma" in k) > 0
    small.fit(batches(x, y, 8), epochs=2, verbose=0)
    weights = named_weights(small)
    for key, mask in held.items():
        assert not weights[key].numpy()[~mask].any()
    tt.release(small)
    small.fit(batches(x, y, 8), epochs=1, verbose=0)
    assert any(weights[key].numpy()[~mask].any() for key, mask in held.items())


def preactivation(blocks=2):
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", name="stem")(image)
    for i in range(blocks):
        y = x
        for j in range(2):
            y = layers.BatchNormalization(name=f"norm{i}{j}")(y)
            y = layers.Conv2D(
                6, 3, padding="same", use_bias=False, name=f"conv{i}{j}"
            )(layers.ReLU()(y))
        x = layers.Add(name=f"add{i}")([x, y])
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x))
    return keras.Model(image, layers.Dense(3)(x))


def test_a_block_that_loses_all_its_channels_goes_whole(float64):
    model = preactivation()
    x = settle(model)
    masks = {model.get_layer("norm01").gamma.path: np.zeros(6, bool)}
    small, report = assert_as_applied(model, masks, x)
    names = {layer.name for layer in small.layers}
    assert {"conv00", "conv01", "norm00"} <= set(report.dropped)
    assert not names & {"conv00", "conv01", "norm00", "norm01", "add0"}
    assert "add1" in names and not report.floored and report.removed == 6
    assert report.layers["conv00"] == (6, 0)
    assert small.count_params() == preactivation(1).count_params()
    compiled(small).fit(x, np.arange(len(x)) % 3, verbose=0)


def test_a_block_stays_where_the_optimizer_is_to_be_inherited(data):
    model = compiled(preactivation())
    x = settle(model)
    model.fit(x, np.arange(len(x)) % 3, verbose=0)
    masks = {model.get_layer("norm01").gamma.path: np.zeros(6, bool)}
    with pytest.warns(UserWarning, match="each keeps one"):
        small, report = shrink(
            model, masks, inherit_optimizer=True, return_report=True
        )
    assert not report.dropped and report.floored
    assert small.get_layer("conv00").filters == 1


def test_only_zeros_leave_what_is_read_all_together(float64):
    for curve, removed in (("relu", 2), ("sigmoid", 0)):
        model = keras.Sequential(
            [
                keras.Input((8,)),
                layers.Dense(6),
                layers.BatchNormalization(name="norm"),
                layers.Activation(curve),
                layers.UnitNormalization(),
                layers.Dense(3),
            ]
        )
        x = settle(model)
        key = model.get_layer("norm").gamma.path
        _, report = assert_as_applied(model, {key: np.arange(6) > 1}, x)
        assert report.removed == removed
        assert all("together" in stop.reason for stop in report.stops)


def test_a_masked_bias_takes_over_a_constant_all_the_same(float64):
    model = curved(CURVES["sigmoid"], "valid")
    x = settle(model)
    convs = [x for x in model.layers if isinstance(x, layers.Conv2D)]
    norm = next(
        x for x in model.layers if isinstance(x, layers.BatchNormalization)
    )
    bias = convs[1].bias
    masking.enforce(model, {bias.path: np.zeros(6, bool)})
    ticket = {norm.gamma.path: np.arange(6) > 1}
    small, report = assert_as_applied(model, ticket, x)
    assert report.removed == 2
    assert small.get_layer(convs[1].name).bias.numpy().any()


def head(x):
    x = layers.BatchNormalization()(layers.Dense(8)(x))
    return layers.Dense(3)(layers.ReLU()(x))


class Maybe(layers.Layer):
    """Adds what may be missing."""

    def call(self, x, y=None):
        return x if y is None else x + y


class Keyless(layers.Dense):
    """Its configuration has a key that is no attribute."""

    def __init__(self, *args, secret=1, **options):
        super().__init__(*args, **options)

    def get_config(self):
        return {**super().get_config(), "secret": 2}


def looked_up():
    words = keras.Input((4,), dtype="string")
    table = layers.StringLookup()
    table.adapt(["a", "b", "c"])
    x = layers.Embedding(table.vocabulary_size(), 6)(table(words))
    return keras.Model(words, head(layers.Flatten()(x)))


def adapted():
    numbers = keras.Input((4,))
    known = layers.Normalization()
    known.adapt(np.arange(40.0).reshape(10, 4))
    bins = layers.Discretization(num_bins=4)
    bins.adapt(np.arange(40.0).reshape(10, 4))
    x = layers.Flatten()(layers.Embedding(5, 6)(bins(numbers)))
    return keras.Model(numbers, head(layers.Concatenate()([known(numbers), x])))


def optional():
    one = keras.Input((4,))
    other = keras.Input((4,), optional=True)
    return keras.Model([one, other], head(Maybe()(one, other)))


def keyless():
    numbers = keras.Input((4,))
    return keras.Model(numbers, head(Keyless(8)(numbers)))


FOUR = np.arange(12.0).reshape(3, 4) / 12
ODD = {
    "lookup": (looked_up, np.array([["a", "c", "x", "b"], ["b"] * 4])),
    "adapted": (adapted, FOUR * 30),
    "optional, missing": (optional, [FOUR, None]),
    "optional, given": (optional, [FOUR, FOUR + 1]),
    "a key without an attribute": (keyless, FOUR),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_odd_about_layers_is_kept(kind):
    make, x = ODD[kind]
    model = make()
    norm = next(
        x for x in model.layers if isinstance(x, layers.BatchNormalization)
    )
    small, report = shrink(
        model, {norm.gamma.path: np.arange(8) % 2 > 0}, return_report=True
    )
    assert report.removed == 4
    norm.gamma.assign(norm.gamma * (np.arange(8) % 2))
    np.testing.assert_allclose(small(x), model(x), atol=1e-6)


@pytest.mark.parametrize(
    "target, widths, removed",
    [
        ((2, 8), (16, 16), True),
        ((-1, 8), (16, 32), True),
        ((2, -1), (16, 16), True),
        ((2, -1), (16, 32), False),  # on other numbers of channels
    ],
)
def test_a_shared_reshape_shrinks_or_says_why(target, widths, removed):
    image = x = keras.Input((8,))
    shared = layers.Reshape(target, name="shared")
    ends = []
    for width in widths:
        x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(width)(x)))
        ends.append(layers.Flatten()(shared(x)))
    model = keras.Model(image, layers.Dense(3)(layers.Concatenate()(ends)))
    x = settle(model)
    masks = {
        key: np.arange(weight.shape[0]) % 8 > 1
        for key, weight in named_weights(model).items()
        if weight.name == "gamma"
    }
    _, report = assert_as_applied(model, masks, x, 1e-6)
    assert (report.removed > 0) == removed
    if not removed:
        assert any("numbers of channels" in s.reason for s in report.stops)


@keras.saving.register_keras_serializable("tests")
class AsWide(layers.Layer):
    """It is built as wide as what it reads, and no configuration says so."""

    def build(self, x_shape, also_shape):
        self.first, self.second = layers.Dense(6), layers.Dense(x_shape[-1])
        self.first.build(x_shape)
        self.second.build((*also_shape[:-1], 6))

    def call(self, x, also):
        del also
        return self.second(self.first(x))


@pytest.mark.parametrize(
    "attention, width",
    [
        # It answers as wide as before, though it says: as its query.
        (lambda: layers.MultiHeadAttention(2, 3, name="attention"), 5),
        (
            lambda: layers.MultiHeadAttention(
                2, 3, output_shape=4, name="attention"
            ),
            5,
        ),
        (lambda: AsWide(name="attention"), 5),
        # It cannot: what it reads stays.
        (lambda: layers.GroupQueryAttention(2, 2, 1, name="attention"), 8),
    ],
)
def test_what_answers_as_wide_as_it_reads_keeps_its_width(
    attention, width, float64, tmp_path
):
    sequence = keras.Input((6, 3))
    y = layers.Dense(8, use_bias=False, name="wide")(sequence)
    y = layers.BatchNormalization(name="norm")(y)
    y = attention()(y, y)
    y = layers.Dense(2)(layers.Flatten()(y))
    model = keras.Model(sequence, y)
    settle(model)
    masks = {"norm/gamma": np.arange(8) < 5}
    x = np.random.default_rng(0).normal(size=(4, 6, 3))
    small, _ = assert_exact(model, masks, x, tolerance=1e-9)
    assert small.get_layer("wide").units == width
    small.save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(outputs(again, x), outputs(small, x))
