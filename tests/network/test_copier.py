"""A copy is the model: whatever a rewrite does not touch stays as it was.

Each rewrite below changes no output of the networks here: a ReLU becomes a
ReLU, skip connections weigh nothing, the channel that goes is silent. So
outputs must agree, through a retraining rewrite and through a smaller model.
"""

import functools
import gc
import warnings
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_tickets as tt
from tests.conftest import two_replicas
from tf_tickets import masking
from tf_tickets.export.report import read_manifest
from tf_tickets.network.copier import compile_like
from tf_tickets.retraining import inject_skip_connections, replace_activations
from tf_tickets.selection import named_weights
from tf_tickets.structured import remove_dead_channels, shrink

KEPT = np.array([True, True, True, False])


def smaller(model, **options):
    key = next(k for k in named_weights(model) if k.endswith("hidden/kernel"))
    return shrink(model, {key: KEPT}, **options)


# The first is what the paper's tweaks do, the second a physical shrinking.
COPIES = {
    "activations": lambda m: replace_activations(m, "relu"),
    "shrink": smaller,
}
REWRITES = {
    **COPIES,
    "skips": lambda m: inject_skip_connections(m, scale=0.0),
    "dead": remove_dead_channels,
}
both = pytest.mark.parametrize("how", COPIES)
every = pytest.mark.parametrize("how", REWRITES)


def silenced(model):
    """No trained network, but one whose fourth hidden channel is silent."""
    for layer in model._flatten_layers():
        if layer.name == "hidden":
            layer.kernel.assign(layer.kernel * KEPT.astype("float32"))
    return model


def tail(x, name="head"):
    x = layers.Dense(4, activation="relu", name="hidden")(x)
    return layers.Dense(3, name=name)(x)


def dense_net(front, inputs):
    """What ``front`` makes of the inputs, through two dense layers."""
    return silenced(keras.Model(inputs, tail(front(inputs)), name="net"))


def conv_net(front=None):
    x = image = keras.Input((6, 6, 2), name="image")
    if front is not None:
        x = front(x)
    x = layers.Conv2D(
        4, 3, padding="same", activation="relu", name="hidden", use_bias=False
    )(x)
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="next")(x)
    x = layers.Flatten()(x)
    return silenced(keras.Model(image, layers.Dense(3)(x), name="net"))


def outputs(model, x):
    return [np.asarray(y) for y in keras.tree.flatten(model(x))]


def assert_same(model, copy, x, **tolerance):
    expected = outputs(model, x)
    assert any(y.std() > 1e-3 for y in expected)
    for y, z in zip(expected, outputs(copy, x), strict=True):
        np.testing.assert_allclose(z, y, **(tolerance or {"atol": 1e-5}))
    shared = {id(v) for v in model.variables} & {id(v) for v in copy.variables}
    assert not shared


def floats(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape).astype("float32")


def inner_normalization(adapted):
    inside = keras.Input((6, 6, 2))
    return keras.Sequential([keras.Model(inside, adapted(inside))])


# --- what layers hold beside their variables ---------------------------------


@every
@pytest.mark.parametrize("wrap", [lambda layer: layer, inner_normalization])
def test_an_adapted_normalization_is_applied(how, wrap):
    adapted = layers.Normalization()
    x = 5 * floats(8, 6, 6, 2) + 20
    adapted.adapt(x)
    model = conv_net(wrap(adapted))
    assert_same(model, REWRITES[how](model), x)


def test_a_spent_ticket_has_the_adapted_normalization():
    adapted = layers.Normalization()
    x = 5 * floats(8, 6, 6, 2) + 20
    adapted.adapt(x)
    model = conv_net(adapted)
    ticket = tt.prune(model, sparsity=0.5)
    better = tt.retraining.spend(
        ticket,
        model,
        ["skips", "activations"],
        options={
            "skips": {"scale": 0.0},
            "activations": {"activation": "relu"},
        },
    )
    ticket.apply(model)
    assert_same(model, better, x)


@keras.saving.register_keras_serializable("tests")
class Centred(layers.Layer):
    """Computes with a constant, made of its variable when it is loaded."""

    def build(self, shape):
        self.mean = self.add_weight(shape=shape[-1:], trainable=False)
        self.constant = np.zeros(shape[-1:])

    def load_own_variables(self, store):
        super().load_own_variables(store)
        self.constant = self.mean.numpy()

    def call(self, x):
        return x - self.constant


@both
def test_a_users_layer_derives_its_state_as_on_loading(how):
    layer = Centred()
    model = dense_net(layer, keras.Input((5,)))
    layer.load_own_variables({"0": np.arange(5.0)})
    assert_same(model, COPIES[how](model), floats(4, 5))


WORDS = np.array([["a"], ["b"], ["two\nlines"], ["a"], ["b\x1cc"], ["new"]])


def adapted(layer, data):
    layer.adapt(data)
    return layer


LOOKUPS = {
    "strings": lambda: adapted(
        layers.StringLookup(output_mode="one_hot"), WORDS[:5]
    ),
    "strings with weights": lambda: adapted(
        layers.StringLookup(output_mode="tf_idf"), WORDS[:5]
    ),
    "integers": lambda: adapted(
        layers.IntegerLookup(output_mode="one_hot", num_oov_indices=2),
        np.array([[3], [7], [7], [900]]),
    ),
    "text": lambda: adapted(
        layers.TextVectorization(output_mode="tf_idf"),
        np.array(["a b", "b c a", "a", "new"]),
    ),
    "bins": lambda: adapted(
        layers.Discretization(num_bins=3, output_mode="one_hot"),
        floats(50, 1),
    ),
    "hashes": lambda: layers.Hashing(7, output_mode="one_hot", salt=[133, 137]),
    "given words": lambda: layers.StringLookup(
        vocabulary=["a", "b"], output_mode="one_hot"
    ),
}


@both
@pytest.mark.parametrize("kind", LOOKUPS)
def test_vocabularies_are_kept(how, kind):
    if kind == "integers":
        x, dtype = tf.constant([[3], [900], [4], [5], [7]], tf.int64), "int64"
    elif kind == "bins":
        x, dtype = floats(20, 1, seed=1), "float32"
    else:
        x, dtype = tf.constant(WORDS), "string"
    model = dense_net(LOOKUPS[kind](), keras.Input((1,), dtype=dtype))
    copy = COPIES[how](model)
    assert_same(model, copy, x)
    assert len(np.unique(np.round(outputs(copy, x)[0], 4), axis=0)) > 2


@keras.saving.register_keras_serializable("tests")
class FromFile(layers.Layer):
    """Its table is in no variable and no configuration, but in a file."""

    def __init__(self, table=None, **options):
        super().__init__(**options)
        self.table = table

    def get_config(self):
        return {"name": self.name}

    def save_assets(self, directory):
        np.save(f"{directory}/table.npy", self.table)

    def load_assets(self, directory):
        self.table = np.load(f"{directory}/table.npy")

    def call(self, x):
        return x * self.table


@both
def test_what_a_layer_saves_in_files_is_kept(how):
    model = dense_net(FromFile(floats(5)), keras.Input((5,)))
    copy = COPIES[how](model)
    assert_same(model, copy, floats(4, 5))
    assert copy.layers[1] is not model.layers[1]


# --- functions ---------------------------------------------------------------


def bent(by):
    def function(x):
        return keras.ops.maximum(x, by * x)

    return function


FUNCTIONS = {
    "closure": bent(0.3),
    "lambda": lambda x: keras.ops.maximum(x, 0.2 * x),
    "partial": functools.partial(keras.activations.relu, negative_slope=0.1),
}
HOLDERS = {
    "dense": lambda f: layers.Dense(4, activation=f),
    "activation": lambda f: layers.Activation(f),
    "lstm": lambda f: keras.Sequential(
        [layers.Reshape((5, 1)), layers.LSTM(4, activation=f)]
    ),
    "wrapped": lambda f: keras.Sequential(
        [
            layers.Reshape((5, 1)),
            layers.TimeDistributed(layers.Dense(2, activation=f)),
            layers.Flatten(),
        ]
    ),
    "lambda layer": lambda f: layers.Lambda(f),
}


@pytest.mark.parametrize(
    ("how", "holder", "function"),
    [
        *(
            ("activations", holder, function)
            for holder in HOLDERS
            for function in FUNCTIONS
        ),
        *(("shrink", holder, "closure") for holder in HOLDERS),
        ("shrink", "dense", "lambda"),
        ("shrink", "dense", "partial"),
    ],
)
def test_a_function_that_cannot_be_saved_is_kept_itself(how, holder, function):
    layer = HOLDERS[holder](FUNCTIONS[function])
    model = dense_net(layer, keras.Input((5,)))
    x = floats(6, 5)
    before = outputs(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copy = COPIES[how](model)
    assert_same(model, copy, x)
    np.testing.assert_array_equal(outputs(model, x), before)
    assert copy.layers[1] is not model.layers[1]


@both
def test_a_layer_as_activation_is_copied_with_its_weights(how):
    prelu = layers.PReLU()
    inputs = keras.Input((5,))
    x = layers.Dense(4, activation=prelu, name="bends")(inputs)
    model = silenced(keras.Model(inputs, tail(x)))
    prelu.build((None, 4))
    prelu.alpha.assign([0.5, -1.0, 2.0, 0.1])
    copy = COPIES[how](model)
    assert_same(model, copy, floats(6, 5))
    assert copy.get_layer("bends").activation is not prelu


@keras.saving.register_keras_serializable("tests")
class FixedInBuild(layers.Layer):
    """Its activations are in its code, one of them made by its build."""

    def __init__(self, **options):
        super().__init__(**options)
        self.relu = layers.ReLU()

    def build(self, shape):
        self.dense = layers.Dense(4, activation="relu")
        self.dense.build(shape)

    def call(self, x):
        return self.relu(self.dense(x) + 0.2)


@both
def test_activations_exchanged_by_hand_are_kept(how):
    layer = FixedInBuild()
    layer.relu = layers.Activation("tanh")
    model = dense_net(layer, keras.Input((5,)))
    layer.dense.activation = keras.activations.softsign
    assert_same(model, COPIES[how](model), floats(6, 5))


# --- flags, shapes, paths ----------------------------------------------------


def flags(model):
    return [
        [layer.trainable for layer in model._flatten_layers()],
        [v.trainable for v in model.variables],
    ]


@both
@pytest.mark.parametrize(
    "freeze",
    [
        lambda m: setattr(m.get_layer("inner"), "trainable", False),
        lambda m: setattr(m.get_layer("norm"), "trainable", False),
        lambda m: setattr(m.get_layer("norm").gamma, "trainable", False),
        lambda m: setattr(m.get_layer("each"), "trainable", False),
        lambda m: setattr(m.get_layer("each").layer, "trainable", False),
        lambda m: (
            setattr(m, "trainable", False),
            setattr(m.get_layer("inner").get_layer("one"), "trainable", True),
            setattr(m.get_layer("head"), "trainable", True),
        ),
    ],
)
def test_what_is_trainable_stays_so(how, freeze):
    inside = keras.Input((2, 5))
    x = layers.Dense(5, name="one")(inside)
    inner = keras.Model(inside, layers.BatchNormalization()(x), name="inner")
    inputs = keras.Input((2, 5))
    x = layers.BatchNormalization(name="norm")(inner(inputs))
    x = layers.TimeDistributed(layers.Dense(4), name="each")(x)
    model = silenced(keras.Model(inputs, tail(layers.Flatten()(x))))
    freeze(model)
    copy = COPIES[how](model)
    assert flags(copy) == flags(model)
    assert len(copy.trainable_variables) == len(model.trainable_variables)
    # A frozen normalization uses its statistics in training too.
    x = floats(6, 2, 5)
    np.testing.assert_allclose(
        copy(x, training=True), model(x, training=True), atol=1e-5
    )


@keras.saving.register_keras_serializable("tests")
class OrOnes(layers.Layer):
    def call(self, x, other=None):
        return x if other is None else x * other

    def compute_output_shape(self, x_shape, other_shape=None):
        return x_shape


@both
def test_an_optional_input_stays_optional(how):
    x, other = keras.Input((5,)), keras.Input((5,), optional=True)
    model = silenced(keras.Model([x, other], tail(OrOnes()(x, other))))
    copy = COPIES[how](model)
    one, two = floats(4, 5), floats(4, 5, seed=1)
    assert_same(model, copy, [one, two])
    assert_same(model, copy, [one, None])


@every
def test_a_copy_lives_on_the_replicas_of_the_model(how):
    with two_replicas().scope():
        model = conv_net(layers.BatchNormalization())
        model.compile("sgd", "mse")
    copy = REWRITES[how](model)
    assert copy.distribute_strategy is model.distribute_strategy
    for variable in copy.weights:
        assert isinstance(variable.value, tf.distribute.DistributedValues)
    copy.fit(floats(8, 6, 6, 2), floats(8, 3), batch_size=8, verbose=0)


def paths(model):
    return [v.path for v in model.weights]


@every
def test_weights_have_the_same_paths(how):
    # Built late, inside another model; wrapped layers inside wrappers.
    inner = keras.Sequential(
        [
            layers.Bidirectional(layers.ConvLSTM1D(2, 3, padding="same")),
            layers.Reshape((6, 2, 2)),
            layers.TimeDistributed(
                layers.Dense(4, name="wrapped"), name="each"
            ),
            layers.Conv2D(
                4, 3, padding="same", name="hidden", activation="relu"
            ),
            layers.Conv2D(4, 3, padding="same", name="next"),
        ],
        name="inner",
    )
    outer = keras.Sequential([inner, layers.BatchNormalization()], name="outer")
    image = keras.Input((6, 6, 2))
    x = layers.GlobalAveragePooling2D()(outer(image))
    model = keras.Model(image, layers.Dense(3, name="head")(x))
    silenced(model)
    assert "outer/inner/hidden/kernel" in paths(model)
    assert "outer/inner/each/wrapped/kernel" in paths(model)
    copy = REWRITES[how](model)
    old = set(paths(model))
    new = {p for p in paths(copy) if "_skip_" not in p}
    assert new == old
    assert_same(model, copy, floats(4, 6, 6, 2))


@both
def test_a_layer_built_in_a_scope_keeps_its_path(how):
    inputs = keras.Input((5,))
    with keras.name_scope("block"):
        x = layers.Dense(4, activation="relu", name="hidden")(inputs)
        x = layers.BatchNormalization(name="norm")(x)
    model = silenced(keras.Model(inputs, layers.Dense(3, name="head")(x)))
    assert paths(model)[0] == "block/hidden/kernel"
    assert paths(COPIES[how](model)) == paths(model)


@keras.saving.register_keras_serializable("tests")
class Position(layers.Layer):
    """As many rows of weights as the longest input, seen first, has."""

    def build(self, shape):
        self.rows = self.add_weight(shape=shape[1:], initializer="normal")

    def call(self, x):
        return x + self.rows[: x.shape[1]]


@both
def test_a_shared_layer_is_built_for_the_size_it_was_built_for(how):
    long, short = keras.Input((6, 5)), keras.Input((2, 5))
    position = Position()
    one = layers.GlobalAveragePooling1D()(position(long))
    # Deeper in the graph, so that a copy calls it first.
    two = layers.GlobalAveragePooling1D()(position(short))
    for _ in range(3):
        two = layers.Activation("tanh")(two)
    model = keras.Model([long, short], tail(layers.Add()([one, two])))
    silenced(model)
    assert_same(model, COPIES[how](model), [floats(4, 6, 5), floats(4, 2, 5)])


@pytest.mark.parametrize("how", ["activations", "shrink", "dead"])
def test_a_layer_inside_another_and_beside_it_is_refused(how):
    inputs = keras.Input((3, 5))
    shared = layers.Dense(5, name="shared")
    y = layers.TimeDistributed(shared, name="each")(inputs)
    y = layers.Add()([y, shared(inputs)])
    model = silenced(keras.Model(inputs, tail(layers.Flatten()(y))))
    with pytest.raises(ValueError, match="hold the same weights.*'each'"):
        REWRITES[how](model)


@both
def test_names_mean_nothing(how):
    """Two towers of one function, and layers called what they are not."""

    def tower():
        inside = keras.Input((5,))
        x = layers.Dense(4, activation="relu", name="normalization")(inside)
        return keras.Model(inside, layers.Dense(4, name="out")(x), name="tower")

    inputs = keras.Input((5,))
    statistics = layers.Normalization(name="hidden_of")
    x = 3 * floats(6, 5) + 7
    statistics.adapt(x)
    a = keras.Input((5,))
    left, right = tower(), keras.Model(a, tower()(a), name="right")
    y = statistics(inputs)
    y = layers.Subtract()([left(y), right(y)])
    model = silenced(keras.Model(inputs, tail(y)))
    copy = COPIES[how](model)
    assert list(named_weights(copy)) == list(named_weights(model))
    assert_same(model, copy, x)


# --- masks, optimizer, compilation -------------------------------------------


@every
def test_masks_are_kept_in_the_size_of_the_copy(how):
    model = conv_net()
    tt.prune(model, sparsity=0.5).apply(model)
    copy = REWRITES[how](model)
    old, new = masking.attached_masks(model), masking.attached_masks(copy)
    assert list(old) == list(new)
    for key, mask in old.items():
        if how in ("shrink", "dead"):
            if key.startswith("hidden"):
                mask = mask[..., KEPT]
            elif key.startswith("next"):
                mask = mask[:, :, KEPT]
        np.testing.assert_array_equal(new[key], mask)
    assert_same(model, copy, floats(4, 6, 6, 2))


@every
def test_a_copy_is_compiled_alike(how):
    x = image = keras.Input((6, 6, 2), name="image")
    for name in ("hidden", "next"):
        x = layers.Conv2D(
            4, 3, padding="same", activation="relu", name=name, use_bias=False
        )(x)
    x = layers.Flatten()(x)
    model = silenced(
        keras.Model(
            image,
            {name: layers.Dense(2, name=name)(x) for name in ("one", "two")},
        )
    )
    model.compile(
        keras.optimizers.SGD(0.03, momentum=0.8, clipnorm=1.5),
        {"one": "mse", "two": keras.losses.Huber(0.7)},
        loss_weights={"one": 2.0, "two": 0.5},
        metrics={"one": ["mae"], "two": [keras.metrics.RootMeanSquaredError()]},
        weighted_metrics={"one": ["mse"], "two": ["mse"]},
        run_eagerly=False,
        steps_per_execution=2,
        jit_compile=False,
    )
    data = floats(8, 6, 6, 2), {n: floats(8, 2) for n in ("one", "two")}
    expected = model.evaluate(*data, batch_size=4, return_dict=True, verbose=0)
    copy = REWRITES[how](model)
    found = copy.evaluate(*data, batch_size=4, return_dict=True, verbose=0)
    assert found == pytest.approx(expected, rel=1e-4)
    assert copy.steps_per_execution == 2 and not copy.jit_compile
    assert copy.optimizer is not model.optimizer
    assert copy.optimizer.get_config() == model.optimizer.get_config()


@both
def test_a_loss_that_cannot_be_saved_is_kept_itself(how):
    model = conv_net()
    model.compile("sgd", lambda y, z: keras.ops.mean(y - z))
    copy = COPIES[how](model)
    assert copy.loss is model.loss
    copy.fit(floats(8, 6, 6, 2), floats(8, 3), verbose=0)


@both
def test_a_metric_that_cannot_be_saved_leaves_the_copy_uncompiled(how):
    model = conv_net()
    model.compile("sgd", "mse", metrics=[lambda y, z: keras.ops.mean(y - z)])
    with pytest.warns(UserWarning, match="is not compiled"):
        copy = COPIES[how](model)
    assert not copy.compiled


def test_settings_can_be_changed():
    model, other = conv_net(), conv_net()
    model.compile("adam", "mse", metrics=["mae"])
    compile_like(model, other, loss=keras.losses.Huber(0.3))
    assert isinstance(other.loss, keras.losses.Huber)
    assert isinstance(other.optimizer, keras.optimizers.Adam)


def test_slots_are_inherited_in_the_size_of_the_copy():
    model = conv_net()
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    model.fit(floats(8, 6, 6, 2), floats(8, 3), verbose=0)
    small = smaller(model, inherit_optimizer=True)
    slots = [
        {v.path.rpartition("/")[2]: v.numpy() for v in m.optimizer.variables}
        for m in (model, small)
    ]
    name = next(n for n in slots[0] if n.startswith("next_kernel"))
    np.testing.assert_array_equal(slots[1][name], slots[0][name][:, :, KEPT])
    assert slots[1]["iteration"] == 1


# --- classes -----------------------------------------------------------------


class Doubling(keras.Model):
    """A training step of its own, and arguments of all kinds."""

    def __init__(self, *args, factor=2.0, teacher=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.factor = factor
        self.teacher = teacher
        self.seen = keras.metrics.Sum(name="seen")
        self.shift = self.add_weight(shape=(), name="shift")

    def train_step(self, data):
        self.seen.update_state(self.factor)
        return {"seen": self.seen.result()}


class OtherNames(keras.Model):
    def __init__(self, entering, leaving, rate, name=None):
        super().__init__(entering, leaving, name=name)
        self.rate = rate

    def train_step(self, data):
        return {"rate": self.rate}


class Chain(keras.Sequential):
    def train_step(self, data):
        return {"chained": len(self.layers)}


def trained(model):
    model.compile("sgd", "mse")
    history = model.fit(floats(4, 5), floats(4, 3), verbose=0).history
    return {k: v for k, v in history.items() if k != "loss"}


@both
def test_a_class_with_a_training_step_of_its_own_keeps_it(how):
    inputs = keras.Input((5,))
    teacher = keras.Sequential([keras.Input((5,)), layers.Dense(3)])
    model = silenced(
        Doubling(inputs, tail(inputs), factor=3.0, teacher=teacher, name="two")
    )
    model.shift.assign(4.0)
    model.note = "set later"
    copy = COPIES[how](model)
    assert type(copy) is Doubling and copy.name == "two"
    assert copy.factor == 3.0 and copy.note == "set later"
    assert copy.shift is not model.shift and float(copy.shift) == 4.0
    assert copy.teacher is teacher
    assert trained(copy) == {"seen": [3.0]}
    x = floats(4, 5)
    np.testing.assert_allclose(copy(x), model(x), atol=1e-5)


@both
def test_a_constructor_may_have_other_names(how):
    inputs = keras.Input((5,))
    model = silenced(OtherNames(inputs, tail(inputs), 0.5))
    copy = COPIES[how](model)
    assert type(copy) is OtherNames and trained(copy) == {"rate": [0.5]}


@both
def test_a_sequential_class_keeps_its_training_step(how):
    model = silenced(
        Chain(
            [
                keras.Input((5,)),
                layers.Dense(4, activation="relu", name="hidden"),
                layers.Dense(3),
            ],
            name="chain",
        )
    )
    copy = COPIES[how](model)
    assert type(copy) is Chain and copy.name == "chain"
    assert trained(copy) == {"chained": [2]}
    assert_same(model, copy, floats(4, 5))


def task(*bases, **members):
    """A class as KerasHub makes them: of a backbone, not of tensors."""

    class Backbone(keras.Model):
        def __init__(self, width, **kwargs):
            inputs = keras.Input((5,), name="tokens")
            x = layers.Dense(width, activation="relu", name="hidden")(inputs)
            super().__init__(
                inputs={"tokens": inputs}, outputs={"pooled": x}, **kwargs
            )
            self.width = width

        def get_config(self):
            return {"width": self.width, "name": self.name}

    class Classifier(keras.Model):
        backbone_cls = Backbone

        def __init__(
            self,
            backbone,
            num_classes,
            preprocessor=None,
            dropout=0.1,
            **kwargs,
        ):
            inputs = backbone.input
            x = backbone(inputs)["pooled"]
            x = layers.Dropout(dropout, dtype=backbone.dtype_policy)(x)
            outputs = layers.Dense(num_classes, name="logits")(x)
            super().__init__(inputs=inputs, outputs=outputs, **kwargs)
            self.backbone = backbone
            self.num_classes = num_classes
            self.preprocessor = preprocessor
            self.dropout = dropout

        def fit(self, x, *args, **kwargs):
            return super().fit({"tokens": x}, *args, **kwargs)

        def get_config(self):
            return {"backbone": self.backbone, "num_classes": 3}

    for name, member in members.items():
        setattr(Classifier, name, member)
    return silenced(Classifier(Backbone(4, name="backbone"), 3, name="task"))


TOKENS = {"tokens": floats(6, 5)}


@pytest.mark.parametrize("how", ["activations", "shrink", "dead"])
def test_a_class_made_of_a_backbone_becomes_a_plain_model(how):
    model = task()
    model.compile("adam", "mse")
    with pytest.warns(UserWarning, match="without what Classifier adds"):
        copy = REWRITES[how](model)
    assert type(copy) is type(keras.Model(copy.input, copy.output))
    assert copy.name == "task" and copy.compiled
    assert_same(model, copy, TOKENS)
    assert copy.get_layer("backbone").get_layer("hidden").units == (
        4 if how == "activations" else 3
    )


def steps(self, data):
    return {"own": 1.0}


@pytest.mark.parametrize("name", ["train_step", "test_step", "compute_loss"])
@both
def test_a_class_whose_steps_would_be_lost_is_refused(how, name):
    model = task(**{name: steps})
    with pytest.raises(ValueError, match=f"would lose the {name}") as error:
        COPIES[how](model)
    assert "Classifier" in str(error.value) and "Received" in str(error.value)
    plain = keras.Model(model.input, model.output)
    assert_same(model, COPIES[how](plain), TOKENS)


def test_what_is_only_served_needs_no_class(tmp_path):
    model = task(train_step=steps)
    with pytest.warns(UserWarning, match="without what Classifier adds"):
        small = remove_dead_channels(model)
    assert_same(model, small, TOKENS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = tt.export.saved_model(
            model, tmp_path / "m", format="auto", batch_sizes=(1,)
        )
    loaded = tf.saved_model.load(path)
    served = loaded.serve(keras.tree.map_structure(tf.constant, TOKENS))
    np.testing.assert_allclose(served, model(TOKENS), atol=1e-5)
    notes = read_manifest(path)["notes"]
    assert "1 of 1 channels" in notes[0]


def test_a_constructor_that_adds_to_what_it_is_given_is_not_trusted():
    class Softer(keras.Model):
        def __init__(self, inputs, outputs, name=None):
            super().__init__(inputs, layers.Softmax()(outputs), name=name)

        def train_step(self, data):
            return {}

    inputs = keras.Input((5,))
    model = silenced(Softer(inputs, tail(inputs)))
    with pytest.raises(ValueError, match="changes what it is given"):
        smaller(model)


def test_an_argument_that_nothing_remembers_is_not_guessed():
    class Forgetful(keras.Model):
        def __init__(self, inputs, outputs, rate=0.1, name=None):
            super().__init__(inputs, outputs, name=name)
            self._halved = rate / 2

        def train_step(self, data):
            return {"rate": self._halved}

    inputs = keras.Input((5,))
    model = silenced(Forgetful(inputs, tail(inputs), 0.7))
    with pytest.raises(ValueError, match="says what 'rate' is"):
        smaller(model)


def test_weights_beside_the_graph_are_not_lost_in_silence():
    model = dense_net(layers.Activation("tanh"), keras.Input((5,)))
    model.extra = layers.Dense(2)
    model.extra.build((None, 3))
    with pytest.raises(ValueError, match="does not hold the same variables"):
        smaller(model)


# --- layers that cannot be copied --------------------------------------------


def unsaved(weights):
    class Unsaved(layers.Layer):
        def __init__(self, function, **options):
            super().__init__(**options)
            self.transform = function

        def build(self, shape):
            if weights:
                self.scale = self.add_weight(shape=shape[-1:])

        def call(self, x):
            return self.transform(x)

    return Unsaved(lambda x: 2 * x, name="unsaved")


@both
def test_a_layer_without_configuration_is_shared_if_it_has_no_weights(how):
    model = dense_net(unsaved(weights=False), keras.Input((5,)))
    copy = COPIES[how](model)
    assert copy.get_layer("unsaved") is model.get_layer("unsaved")
    assert_same(model, copy, floats(4, 5))
    model = dense_net(unsaved(weights=True), keras.Input((5,)))
    with pytest.raises(ValueError, match="by its `get_config`.*unsaved"):
        COPIES[how](model)


def test_a_model_without_weights_is_copied():
    inputs = keras.Input((5,))
    model = keras.Model(inputs, layers.Softmax()(layers.ReLU()(inputs)))
    assert_same(model, COPIES["activations"](model), floats(4, 5))


@both
def test_a_model_does_not_hold_its_copies(how):
    inputs = keras.Input((5,))
    x = keras.ops.maximum(inputs * 2.0, keras.ops.mean(inputs, keepdims=True))
    model = silenced(keras.Model(inputs, tail(x)))
    copy = COPIES[how](model)
    assert_same(model, copy, floats(4, 5))
    gone = weakref.ref(copy.get_layer("hidden"))
    del copy
    gc.collect()
    assert gone() is None
