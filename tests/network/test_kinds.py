"""Every entry of the table of layer kinds keeps what it says."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import activations, layers, ops

import tf_tickets as tt
from tests.conftest import outputs
from tf_tickets.analysis import flops
from tf_tickets.export.kernels import (
    Method,
    methods_for,
    outputs_of,
)
from tf_tickets.layers import SelectChannels
from tf_tickets.network import kinds, weighted
from tf_tickets.network.channels import Flow, Unfollowed, follow
from tf_tickets.network.constants import computed, propagate
from tf_tickets.network.graph import trace
from tf_tickets.network.kinds import Kind, kind_of, register
from tf_tickets.network.weightless import elementwise
from tf_tickets.retraining.annealing import SkipShare
from tf_tickets.structured import remove_dead_channels, shrink


@dataclasses.dataclass
class Sample:
    """A use of a kind of layer, behind a layer of four channels.

    Attributes:
        use: What the kind makes of a tensor; channels come last there.
        shape: Of the model's input.
        macs: Multiply-accumulates of the kind, by hand.
        keeps: Whether no channel may go, dead or not.
    """

    use: Callable
    shape: tuple = (6, 6, 3)
    macs: int = 0
    keeps: bool = False


LINE, IMAGE, BLOCK = (6, 3), (6, 6, 3), (4, 4, 4, 3)
SHAPES = {"1D": LINE, "2D": IMAGE, "3D": BLOCK}
SAMPLES = {}


def sample(target, use, shape=IMAGE, **facts):
    """A new entry of the table needs one of these."""
    if target is not None:  # not every Keras has every layer
        SAMPLES[target] = Sample(use, shape, **facts)


def layer(name, *arguments, shape=IMAGE, **options):
    """A sample of a layer that is made of these and called."""
    kind = getattr(layers, name, None)
    facts = {
        "keeps": options.pop("keeps", False),
        "macs": options.pop("macs", 0),
    }
    sample(kind, lambda y: kind(*arguments, **options)(y), shape, **facts)


for name in "ReLU LeakyReLU ELU Identity".split():
    layer(name)
for name in "Dropout AlphaDropout GaussianDropout GaussianNoise".split():
    layer(name, 0.5)
for n, shape in SHAPES.items():
    layer(f"SpatialDropout{n}", 0.5, shape=shape)
    layer(f"Cropping{n}", 1, shape=shape)
    layer(f"ZeroPadding{n}", shape=shape)
    layer(f"UpSampling{n}", 2, shape=shape)
    for name in "MaxPooling AveragePooling".split():
        layer(f"{name}{n}", 2, shape=shape)
        layer(f"Global{name}{n}", shape=shape)
        layer(f"Adaptive{name}{n}", 2, shape=shape)
layer("ActivityRegularization", 0.1)
layer("Activation", "sigmoid")
layer("Softmax", axis=1)
layer("UnitNormalization", keeps=True)
layer("Rescaling", 2.0, 0.5)
layer("Resizing", 9, 9)
layer("CenterCrop", 4, 4)
layer("Flatten")
layer("Reshape", (12, 3, 4))
layer("Permute", (2, 3, 1))
layer("RepeatVector", 5, shape=(3,))
for name in "Add Subtract Average Maximum Minimum".split():
    kind = getattr(layers, name)
    sample(kind, lambda y, kind=kind: kind()([y, ops.tanh(y)]))
# Zero times what varies.
sample(layers.Multiply, lambda y: layers.Multiply()([y, layers.Dense(4)(y)]))
sample(ops.multiply, lambda y: y * layers.Dense(4)(y))
sample(layers.Concatenate, lambda y: layers.Concatenate()([y, ops.tanh(y)]))
sample(ops.concatenate, lambda y: ops.concatenate([y, ops.tanh(y)], axis=1))
for f in (ops.add, ops.subtract, ops.maximum, ops.minimum):
    sample(f, lambda y, f=f: f(y, ops.tanh(y)))
for f in (ops.divide, ops.true_divide):
    sample(f, lambda y, f=f: f(y, ops.exp(y)))
for f in (ops.mean, ops.sum):
    sample(f, lambda y, f=f: f(y, axis=(1, 2)))
sample(ops.max, lambda y: ops.max(y, axis=1, keepdims=True, initial=0.5))
sample(ops.min, lambda y: ops.min(y, axis=(1, 2), initial=0.5))
sample(ops.cast, lambda y: ops.cast(y, y.dtype))
sample(ops.einsum, lambda y: ops.einsum("abcd,abed->aced", y, ops.tanh(y)))
# Channels stand where heads do.
sample(
    ops.dot_product_attention,
    lambda y: ops.dot_product_attention(*[ops.moveaxis(y, -1, 2)] * 3),
)
sample(ops.repeat, lambda y: ops.repeat(y, 2, axis=-1))
sample(ops.moveaxis, lambda y: ops.moveaxis(y, -1, 1))
sample(ops.transpose, lambda y: ops.transpose(y, (0, 3, 1, 2)))
sample(ops.split, lambda y: ops.split(y, 2, axis=1)[0])
sample(ops.stack, lambda y: ops.stack([y, y], axis=1))
sample(ops.expand_dims, lambda y: ops.expand_dims(y, 1))
sample(ops.reshape, lambda y: ops.reshape(y, (-1, 9, 4, 4)))
CURVES = (
    "relu relu6 leaky_relu elu selu celu gelu silu sigmoid hard_sigmoid "
    "hard_silu hard_tanh hard_shrink soft_shrink tanh tanh_shrink softplus "
    "softsign log_sigmoid squareplus sparse_plus sparse_sigmoid"
)
for name in f"{CURVES} negative absolute square exp".split():
    sample(getattr(ops, name), getattr(ops, name))
sample(ops.sqrt, lambda y: ops.sqrt(ops.square(y) + 1.0))
sample(ops.clip, lambda y: ops.clip(y, 0.1, 0.5))
for module in (ops, activations):  # not as part of a layer: no defaults
    f = module.threshold
    sample(f, lambda y, f=f: f(y, 0.1, 0.2))
    for f in (module.softmax, module.log_softmax):
        sample(f, lambda y, f=f: along_positions(f, y))
for name in f"{CURVES} linear exponential mish".split():
    f = getattr(activations, name)
    # As a node of the graph, and as part of a layer; Keras cannot put two of
    # them into a graph.
    node = (lambda y: y) if name in ("mish", "hard_silu") else f
    sample(f, lambda y, f=f, node=node: layers.Activation(f)(node(y)))


def along_positions(function, y):
    """Channels first, so that a softmax of the last axis keeps them apart."""
    y = layers.Permute((3, 1, 2))(y)
    if kinds.operation_of(function):
        return function(y)
    return layers.Activation(function)(y)


# Layers with weights; the tensor that comes in is 6 x 6 x 4 or the like.
layer("Dense", 5, macs=36 * 4 * 5)
layer("EinsumDense", "abcd,dbe->ace", (6, 5), macs=6 * 4 * 6 * 5)
layer("Conv1D", 5, 3, shape=LINE, macs=4 * 3 * 4 * 5)
layer("Conv2D", 6, 3, macs=16 * 9 * 4 * 6)
layer("Conv3D", 5, 3, shape=BLOCK, macs=8 * 27 * 4 * 5)
layer("Conv1DTranspose", 5, 1, shape=LINE, macs=6 * 4 * 5)
layer("Conv2DTranspose", 5, 1, macs=36 * 4 * 5)
layer("Conv3DTranspose", 5, 1, shape=BLOCK, macs=64 * 4 * 5)
layer("DepthwiseConv1D", 3, depth_multiplier=2, shape=LINE, macs=4 * 3 * 4 * 2)
layer("DepthwiseConv2D", 3, macs=16 * 9 * 4)
layer("SeparableConv1D", 5, 3, shape=LINE, macs=4 * (3 * 4 + 4 * 5))
layer("SeparableConv2D", 5, 3, depth_multiplier=2, macs=16 * (9 * 8 + 8 * 5))
sample(layers.Embedding, None, (5,))
layer("BatchNormalization")
layer("GroupNormalization", -1)
layer("LayerNormalization", axis=1, center=False)
layer("Normalization", axis=(1, 3))
layer("PReLU", shared_axes=[1, 2])
sample(SkipShare, lambda y: SkipShare(0.5)(y))
sample(SelectChannels, lambda y: SelectChannels([3, 1, 0])(y))
sample(
    getattr(layers, "RMSNormalization", None),
    lambda y: layers.RMSNormalization()(layers.Permute((3, 1, 2))(y)),
)


def targets():
    """The table, without operations that a function stands for."""
    table = kinds.registered()
    behind = {kinds.operation_of(target) for target in table}
    return [target for target in table if target not in behind]


def name_of(target):
    return f"{target.__module__.rsplit('.', 1)[-1]}.{target.__name__}"


def precise(target):
    """TensorFlow pools blocks in float32 only."""
    block = SAMPLES[target].shape == BLOCK
    keras.config.set_dtype_policy("float32" if block else "float64")
    return 1e-5 if block else 1e-9


def network(target, *constant):
    """``(model, layer that makes channels)``: some of its channels constant.

    They are those from 1 on, and ``constant`` says what each is.
    """
    constant = constant or (0.7,)
    assert target in SAMPLES, (
        f"{name_of(target)} is in the table and has no sample: add one here"
    )
    rng = np.random.default_rng(0)
    chosen = SAMPLES[target]
    keras.utils.set_random_seed(0)
    if target is layers.Embedding:
        entry = keras.Input(chosen.shape, dtype="int32")
        maker = layers.Embedding(9, 4, name="maker")
        y = maker(entry)
    else:
        entry = keras.Input(chosen.shape)
        maker = layers.Dense(4, name="maker")
        y = chosen.use(maker(entry))
    for one in keras.Model(entry, y).layers:
        for weight in one.weights:  # no bias or scale is trivial
            if len(weight.shape) == 1 or weight.name in ("gamma", "alpha"):
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))
            elif "kernel" in weight.name and one is not maker:
                # The first channel that it makes is its bias.
                value = weight.numpy()
                axis = kind_of(one).axes_of(weight.name)[1]
                np.moveaxis(value, axis, 0)[0] = 0
                weight.assign(value)
    if target is not layers.Embedding:
        kernel, bias = maker.kernel.numpy(), np.array([0.3, 0.7, -0.4, 0.2])
        kernel[:, 1 : 1 + len(constant)] = 0
        bias[1 : 1 + len(constant)] = constant
        maker.kernel.assign(kernel)
        maker.bias.assign(bias)
    else:
        table = maker.embeddings.numpy()
        table[:, 1 : 1 + len(constant)] = constant
        maker.embeddings.assign(table)
    if len(y.shape) > 2:
        y = layers.Flatten()(y)
    head = layers.Dense(3, name="head")
    model = keras.Model(entry, head(y))
    return model, maker


def inputs_for(model, batch=3):
    rng = np.random.default_rng(1)
    if model.inputs[0].dtype == "int32":
        return rng.integers(0, 9, (batch, *model.input_shape[1:]))
    return rng.normal(size=(batch, *model.input_shape[1:]))


def test_every_sample_is_of_an_entry():
    assert set(SAMPLES) == set(targets())


@pytest.mark.parametrize("target", targets(), ids=name_of)
def test_channels_are_what_the_table_says(target, float64):
    """Constants are constant; what is dead goes, and no output changes."""
    kind, tolerance = kind_of(target), precise(target)
    gone = found = 0
    # What knows of constants meets both at once: tracing is what takes time.
    for constant in [(0.7, 0.0)] if kind.constants else [(0.0,), (0.7,)]:
        model, maker = network(target, *constant)
        x = inputs_for(model)
        if constant[0] and kind.channels and not kind.constants:
            _stop_reading(model, maker, x)
        expected = outputs(model, x)
        assert np.isfinite(expected).all() and np.abs(expected).max() > 1e-3
        found += _constants_hold(model, x, tolerance)
        small = remove_dead_channels(model)
        np.testing.assert_allclose(outputs(small, x), expected, atol=tolerance)
        gone += channels_of(model) - channels_of(small)
    assert (gone > 0) == (
        kind.channels is not None and not SAMPLES[target].keeps
    )
    assert (found > 0) == (kind.constants is not None)


def _constants_hold(model, x, tolerance):
    """How many channels that the head reads are said to be constant."""
    channels = follow(trace(model))
    [tensor] = channels.graph.calls[-1].inputs
    stated = propagate(channels).get(tensor, np.full(1, np.nan))
    constant = ~np.isnan(stated)
    if not constant.any():
        return 0
    value = np.asarray(before_head(model)(x))
    assert value.shape[1:] == stated.shape and not constant.all()
    for row in value:
        np.testing.assert_allclose(
            row[constant], stated[constant], rtol=0, atol=tolerance
        )
    return constant.sum()


def channels_of(model):
    return model.get_layer("maker").output.shape[-1]


def before_head(model):
    return keras.Model(model.input, model.get_layer("head").input)


def _stop_reading(model, maker, x):
    """No weight of the head hears channel 1."""
    first = np.asarray(before_head(model)(x))
    value = maker.weights[0].numpy()
    value[:, 1] = np.linspace(1.0, 2.0, len(value))
    maker.weights[0].assign(value)
    hears = (np.asarray(before_head(model)(x)) != first).any(0)
    kernel = model.get_layer("head").kernel
    kernel.assign(kernel * ~hears[:, None])


@pytest.mark.parametrize(
    "target",
    [t for t in targets() if kind_of(t).flops],
    ids=name_of,
)
def test_operations_are_those_counted_by_hand(target):
    report = flops(network(target)[0])
    own = sum(
        row.macs for row in report.layers if row.name not in ("maker", "head")
    )
    assert own == SAMPLES[target].macs
    assert not report.uncounted


@pytest.mark.parametrize(
    "target",
    [t for t in targets() if kind_of(t).kernels],
    ids=name_of,
)
def test_kernel_methods_compute_the_layer(target):
    rng = np.random.default_rng(0)
    names = set()
    uses = {
        layers.Dense: [lambda: layers.Dense(5, activation="relu")],
        layers.EinsumDense: [
            lambda: layers.EinsumDense("abcd,dce->abe", (6, 5)),  # no product
            lambda: layers.EinsumDense("abcd,cdef->abef", (6, 2, 5)),
        ],
        layers.Conv1D: [
            lambda: layers.Conv1D(5, 3, padding="causal"),
            lambda: layers.Conv1D(5, 1, strides=2),
        ],
        layers.Conv2D: [
            lambda: layers.Conv2D(5, 3, padding="same", activation="relu"),
            lambda: layers.Conv2D(5, 3, strides=2),
            lambda: layers.Conv2D(5, 1),
            lambda: layers.Conv2D(6, 3, groups=2),
        ],
        layers.Conv3D: [
            lambda: layers.Conv3D(5, 3),
            lambda: layers.Conv3D(5, 1, strides=2, activation="relu"),
        ],
    }[target]
    for make in uses:
        layer = make()
        shape = SAMPLES[target].shape
        x = rng.normal(size=(2, *shape[:-1], 4)).astype("float32")
        layer.build(x.shape)
        kernel = layer.kernel.numpy()
        kernel *= rng.random(kernel.shape) < 0.5
        kernel[..., 1] = 0
        layer.kernel.assign(kernel)
        stated = set(kind_of(layer).kernels(layer))
        methods = methods_for(layer, kernel)
        assert set(methods) == stated
        names |= stated
        for method in methods.values():
            flat = kernel.transpose(method.order).ravel()
            positions = np.flatnonzero(flat)
            tensors = method.prepare(
                (tf.constant(flat[positions]), tf.constant(positions, tf.int64))
            )
            np.testing.assert_allclose(
                outputs_of(layer, method, tensors)(tf.constant(x)),
                layer(x),
                atol=1e-5,
            )
    assert names


# --- what is matched, and what is not ----------------------------------------


def test_an_entry_is_found_by_class_never_by_name():
    class ReLU(layers.ReLU):
        pass

    ReLU.__module__ = layers.ReLU.__module__
    assert kind_of(ReLU()) == Kind() and kind_of(layers.ReLU()) != Kind()

    class Add(keras.Operation):
        def call(self, x):
            return x

    Add.__module__ = "keras.src.ops.numpy"
    assert kind_of(Add()) == Kind()


def test_every_function_of_keras_is_found_in_a_graph():
    x = keras.Input((3,))
    for target in targets():
        if getattr(target, "__module__", "").startswith("keras.src.ops"):
            made = kinds.operation_of(target)
            assert made is not None, target
            assert kind_of(target) is kinds.registered()[made]
    relu = keras.Function(x, ops.relu(x)).operations[-1]
    assert kind_of(relu).channels is elementwise


def test_a_users_layer_of_a_known_name_stops_its_channels(float64):
    """As the activation of a layer, it once counted as Keras's own."""

    @keras.saving.register_keras_serializable("tests", name="OwnReLU")
    class ReLU(layers.Layer):
        def call(self, x):
            return ops.relu(x) + ops.mean(x, axis=-1, keepdims=True)

    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, activation=ReLU(), name="one"),
            layers.Dense(2, name="two"),
        ]
    )
    one = model.get_layer("one")
    one.kernel.assign(one.kernel * np.array([1.0, 1.0, 0.0, 1.0]))
    one.bias.assign([0.1, 0.2, 0.3, 0.4])
    x = np.random.default_rng(0).normal(size=(5, 3))
    small = remove_dead_channels(model)
    np.testing.assert_allclose(outputs(small, x), outputs(model, x), atol=1e-12)
    _, report = shrink(
        model, {one.kernel.path: [1, 1, 0, 1]}, return_report=True
    )
    assert "not elementwise" in report.stops[0].reason


# --- entries of a stranger ---------------------------------------------------


class Scale(layers.Layer):
    """One number for each channel."""

    def build(self, shape):
        self.scale = self.add_weight((shape[-1],), name="scale")

    def call(self, x):
        return x * self.scale


class Wide(layers.Layer):
    """A dense layer that keeps its kernel the other way round."""

    def __init__(self, width, **options):
        super().__init__(**options)
        self.width = width

    def build(self, shape):
        self.kernel = self.add_weight((self.width, shape[-1]), name="kernel")
        self.bias = self.add_weight((self.width,), name="bias")

    def call(self, x):
        return ops.matmul(x, ops.transpose(self.kernel)) + self.bias

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def test_a_layer_of_ones_own_joins_by_one_entry(float64):
    def scaled(channels, call):
        atoms = channels.along(call, -1)
        channels.claim(call.operation, "scale", 0, atoms)
        return Flow(atoms, -1)

    tt.network.kinds.register(Scale, channels=scaled, constants=computed)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, name="one"),
            Scale(),
            layers.Dense(2),
        ]
    )
    one = model.get_layer("one")
    one.kernel.assign(one.kernel * np.array([1.0, 1.0, 0.0, 1.0]))
    one.bias.assign([0.1, 0.2, 0.3, 0.4])
    x = np.random.default_rng(0).normal(size=(5, 3))
    small = remove_dead_channels(model)
    assert small.get_layer("one").units == 3
    np.testing.assert_allclose(outputs(small, x), outputs(model, x), atol=1e-12)


def test_a_kernel_of_ones_own_shrinks_is_counted_and_served():
    from tf_tickets.network.channels import Read
    from tf_tickets.network.constants import pushed

    def wide(channels, call):
        layer = call.operation
        read = channels.along(call, -1)
        made = channels.make(layer, layer.width)
        channels.claim(layer, "kernel", 1, read)
        channels.claim(layer, "kernel", 0, made)
        channels.claim(layer, "bias", 0, made)
        channels.configure(layer, "width", int, made)
        channels.reads.append(
            Read(call, layer, "kernel", read, made, -1, uniform=True)
        )
        return Flow(made, -1)

    def by_rows(layer, kernel):
        return Method(
            "by_rows",
            (0, 1),
            {"kernel": (tf.float32, kernel.shape)},
            lambda decoded: {"kernel": tf.constant(kernel)},
            lambda x, tensors: tf.matmul(
                x, tensors["kernel"], transpose_b=True
            ),
        )

    register(
        Wide,
        channels=wide,
        constants=weighted.made,
        axes={"kernel": (1, 0)},
        flops=lambda layer, read, made: [(layer.kernel, made[1:-1])],
        kernels=lambda layer: {"by_rows": by_rows},
    )
    model = keras.Sequential(
        [
            keras.Input((5, 3)),
            Wide(4, name="one"),
            Wide(6, name="two"),
            layers.Dense(2, name="head"),
        ]
    )
    rng = np.random.default_rng(0)
    one, two = model.get_layer("one"), model.get_layer("two")
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape))
    assert flops(model).macs == 5 * (3 * 4 + 4 * 6 + 6 * 2)
    x = rng.normal(size=(2, 5, 3)).astype("float32")
    [method] = methods_for(one, one.kernel.numpy()).values()
    np.testing.assert_allclose(
        outputs_of(one, method, method.prepare(()))(tf.constant(x)),
        one(x),
        atol=1e-5,
    )
    # What a constant input becomes, by hand.
    channels = follow(trace(model))
    read = next(r for r in channels.reads if r.layer is two)
    np.testing.assert_allclose(
        pushed(channels, read, np.array([0.0, 2.0, 0.0, 0.0])),
        2 * two.kernel.numpy()[:, 1],
        rtol=1e-6,
    )
    mask = np.array([1, 0, 1, 1], bool)
    small = shrink(model, {one.kernel.path: mask})
    assert small.get_layer("one").width == 3
    assert flops(small).macs == 5 * (3 * 3 + 3 * 6 + 6 * 2)
    one.kernel.assign(one.kernel * mask[:, None])
    one.bias.assign(one.bias * mask)
    np.testing.assert_allclose(outputs(small, x), outputs(model, x), atol=1e-5)


def test_an_entry_like_another_takes_over_what_is_not_given():
    class Mine(layers.Conv2DTranspose):
        pass

    register(Mine, like=layers.Conv2DTranspose, flops=lambda *_: [])
    theirs, mine = kind_of(layers.Conv2DTranspose), kind_of(Mine)
    assert mine.channels is theirs.channels and mine.axes == theirs.axes
    assert mine.axes_of("kernel") == (-1, -2) and mine.flops is not theirs.flops
    register(Mine)  # in place of the older entry
    assert kind_of(Mine) == Kind()


def test_a_function_of_ones_own_is_an_activation(float64):
    def doubled(x):
        return 2 * ops.relu(x)

    def silent_units():
        one = layers.Dense(4, activation=doubled, name="one")
        model = keras.Sequential([keras.Input((3,)), one, layers.Dense(2)])
        one.kernel.assign(one.kernel * np.array([1.0, 1.0, 0.0, 1.0]))
        one.bias.assign([0.1, 0.2, 0.3, 0.4])
        x = np.random.default_rng(0).normal(size=(5, 3))
        small = remove_dead_channels(model)
        np.testing.assert_allclose(
            outputs(small, x), outputs(model, x), atol=1e-12
        )
        return small.get_layer("one").units

    assert silent_units() == 4
    register(doubled, like=activations.relu)
    assert silent_units() == 3


class Unhashable:
    __hash__ = None

    def __call__(self, x):
        return x


def test_what_is_unknown_has_an_empty_entry():
    assert kind_of(Unhashable()) == Kind() == kind_of(layers.LSTM(2))
    assert kind_of(layers.LSTM) == kind_of(None) == Kind()


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        ((), {}, "class of layers"),
        ((layers.ReLU(),), {}, "class of layers"),
        (("ReLU",), {}, "class of layers"),
        ((Scale,), {"like": layers.LSTM}, "`like`"),
    ],
)
def test_bad_entries_are_one_clear_error(targets, options, message):
    with pytest.raises(ValueError, match=f"{message}.* Received: "):
        register(*targets, **options)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"channels": lambda c, call: Flow(c.fresh(3), -1)},
            "3 channels for an axis of 4, from the rule of mine",
        ),
        (
            {"channels": elementwise, "constants": lambda *_: np.zeros(2)},
            r"shape \(2,\) for 4 channels, from the rule of mine",
        ),
    ],
)
def test_a_rule_that_miscounts_is_named(entry, message):
    class Miscounted(layers.Layer):
        def call(self, x):
            return x

    register(Miscounted, **entry)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4),
            Miscounted(name="mine"),
            layers.Dense(2),
        ]
    )
    with pytest.raises(ValueError, match=message):
        remove_dead_channels(model)


def test_a_method_that_does_not_exist_is_named():
    class Odd(layers.Dense):
        pass

    register(Odd, kernels=lambda layer: {"csr": {}, "crs": {}})
    layer = Odd(3)
    layer.build((None, 2))
    with pytest.raises(ValueError, match="known are .*'csr'.* Received: 'crs'"):
        methods_for(layer, layer.kernel.numpy())


def test_a_rule_may_refuse_a_use_of_its_layer():
    class Picky(layers.Layer):
        def call(self, x):
            return x

    def refuse(channels, call):
        raise Unfollowed("does not like it here")

    register(Picky, channels=refuse)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, name="one"),
            Picky(name="picky"),
            layers.Dense(2),
        ]
    )
    path = model.get_layer("one").kernel.path
    _, report = shrink(model, {path: [1, 0, 1, 1]}, return_report=True)
    [stop] = report.stops
    assert stop.reason == "picky (Picky) does not like it here"
