"""Seeds, two logical CPUs, a small task and what tests of rooms share."""

import collections
import contextlib
import functools
import gc
import os
import pathlib
import runpy
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
# As many processes as cores: their threads would wait for one another.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from keras import layers
from tensorflow.python.util import tf_stack

from tests.gallery import mlp as mlp  # what most tests train
from tf_tickets import progress
from tf_tickets.selection import layers_of, named_weights

# Must come before TensorFlow starts: distribution is tested on two of them.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)

# TensorFlow notes for every operation of a graph where it was made, which with
# the frames of pytest is a twentieth of all time. Here all say this line.
_HERE = tf_stack.extract_stack()
tf_stack.extract_stack = lambda stacklevel=1: _HERE

# TensorFlow rewrites every graph before its first run, a sixth of all time.
# Examples are run as users run them, with it.
_REWRITES = "disable_meta_optimizer"
tf.config.optimizer.set_experimental_options({_REWRITES: True})

# No bar appears because a machine is slow.
progress._PATIENCE = float("inf")


EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"

# Minutes in few tests: with two workers these must not be the last to begin.
_LONG = (
    "test_at_home.py",
    "test_benchmarks.py",
    "test_claims.py",
    "test_distribute.py",
    "test_examples.py",
    "test_experiments.py",
    "test_graphs.py",
    "test_group_pruning.py",
    "test_groups.py",
    "test_leaks.py",
    "test_machine.py",
    "test_models.py",
    "test_networks.py",
    "test_packaging.py",
    "test_savedmodel.py",
    "test_selects.py",
    "test_strategies.py",
    "test_web_example.py",
)


def pytest_collection_modifyitems(items):
    tests = collections.Counter(item.path for item in items)
    items.sort(
        key=lambda item: (
            item.path.name not in _LONG,
            -tests[item.path],
            item.path,
        )
    )


def pytest_collection_finish():
    _lighten()


@pytest.fixture(autouse=True)
def _fresh_seed():
    keras.utils.set_random_seed(0)
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.fixture
def float64():
    """Rounding errors out of sight: what is left would be a mistake."""
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(autouse=True, scope="module")
def _light_heap():
    yield
    _lighten()


def _lighten():
    # TensorFlow is large, and keeps every graph that was traced. What has
    # outlived its tests is not looked through again by each collection, nor
    # by `tracing.living`.
    gc.collect()
    gc.freeze()


def _built_first(step):
    """`keras.Model.make_train_function` or its like, which then builds.

    Keras leaves the variables of an optimizer and of metrics to the first
    call of the step, whose trace makes them, so that TensorFlow traces it
    again without. What is there before the first call is traced once, in half
    the time. Callbacks have begun by then, and see what Keras shows them.
    """
    name = f"{step}_function"
    make = getattr(keras.Model, f"make_{name}")

    @functools.wraps(make)
    def make_function(self, force=False):
        before = getattr(self, name)
        make(self, force)
        function = getattr(self, name)
        if function is before or self.run_eagerly:
            return function

        def built(iterator):
            if isinstance(iterator, tf.data.Iterator):
                _build(self, iterator.element_spec, step)
            return function(iterator)

        setattr(self, name, built)
        return built

    return make_function


def _build(model, spec, step):
    """What a step of its own does is not known, nor what it makes."""
    if not all(layer.built for layer in model._flatten_layers()):
        return
    if step == "train" and model.optimizer and not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    parts = (model._compile_metrics, model._compile_loss)
    name = f"{step}_step"
    of_keras = getattr(type(model), name) is getattr(keras.Model, name)
    if of_keras and any(part and not part.built for part in parts):
        model._symbolic_build(
            data_batch=keras.tree.map_structure(
                lambda x: x if isinstance(x, tf.TensorSpec) else None, spec
            )
        )


@contextlib.contextmanager
def traced_twice():
    """Inside, the first step makes its variables, as it does for users."""
    with pytest.MonkeyPatch.context() as patch:
        for name, make in _MAKE.items():
            patch.setattr(keras.Model, name, make)
        yield


_MAKE = {
    name: getattr(keras.Model, name)
    for name in ("make_train_function", "make_test_function")
}
keras.Model.make_train_function = _built_first("train")
keras.Model.make_test_function = _built_first("test")


# Twelve points in eight dimensions, three of each class.
POINTS = (
    np.random.default_rng(0).normal(size=(12, 8)).astype("float32"),
    np.arange(12) % 4,
)


@pytest.fixture
def data():
    """Sixty-four points in eight dimensions, four classes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8)).astype("float32")
    return x, (x @ rng.normal(size=(8, 4))).argmax(1)


def compiled(model, optimizer="sgd", **options):
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **options,
    )
    return model


def batches(x, y, size=16):
    """A dataset in fixed order, with no autotuner to wait for."""
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(
        size, drop_remainder=True
    )
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    return dataset.with_options(options)


def images(shape=(8, 8, 3), count=16, seed=0):
    """Noise, and one of three classes for each."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, *shape)).astype("float32")
    return x, rng.integers(0, 3, count)


def two_replicas():
    """A strategy over two logical CPUs that does not share a process badly.

    TensorFlow numbers the collectives of every MirroredStrategy anew, so the
    default reduction fails in the second strategy of a process whose
    gradients have another size, whatever the model.
    """
    return tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()
    )


def settle(model, seed=0, batch=4):
    """Random statistics, scales and offsets under which signals survive.

    Returns a batch of inputs.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, *model.input_shape[1:]))
    for layer in layers_of(model):
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0
    model(x, training=True)  # statistics of this batch
    for weight in named_weights(model).values():
        if weight.name in ("gamma", "alpha"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif weight.name in ("beta", "bias"):
            weight.assign(rng.normal(size=weight.shape) * 0.2)
    return x


def outputs(model, x):
    """Everything that a model says of each example, in a row."""
    return np.concatenate(
        [
            np.asarray(y).reshape(len(x), -1)
            for y in keras.tree.flatten(model(x, training=False))
        ],
        axis=1,
    )


def difference(one, other, x, **options):
    """The largest, of the outputs of two models."""
    return float(
        np.abs(one(x, **options).numpy() - other(x, **options).numpy()).max()
    )


def _state(model):
    """What may not change while a model is only read."""
    parts = list(model._flatten_layers())
    return {
        "variables": [np.array(v) for v in model.variables],
        "metrics": [np.array(v) for v in model.metrics_variables],
        "policies": [layer.dtype_policy.name for layer in parts],
        "activations": [getattr(x, "activation", None) for x in parts],
        "calls": ["call" in vars(layer) for layer in parts],
        "autocast": [layer.autocast for layer in parts],
        "constraints": [v.constraint for v in model.variables],
    }


@contextlib.contextmanager
def only_read(model, metrics=True):
    """``metrics=False`` for what trains on the way: it counts in metrics."""
    before = _state(model)
    yield
    after = _state(model)
    for name in ("variables", "metrics") if metrics else ("variables",):
        # Building a loss of several outputs adds its trackers at the front.
        pairs = zip(before[name][::-1], after[name][::-1], strict=False)
        for old, new in pairs:
            np.testing.assert_array_equal(old, new)
    assert len(before["variables"]) == len(after["variables"])
    for name in ("policies", "activations", "calls", "autocast", "constraints"):
        assert before[name] == after[name], name


@pytest.fixture
def example(monkeypatch, capsys):
    """``example(name, *arguments)``: what a script of examples/ prints.

    It is run as a shell runs it, but for TensorFlow, which is imported.
    """

    def run(name, *arguments):
        path = EXAMPLES / f"{name}.py"
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.delitem(sys.modules, "harness", raising=False)
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        with (
            flagsaver.flagsaver(),
            _optimized(),
            pytest.raises(SystemExit) as ended,
        ):
            runpy.run_path(str(path), run_name="__main__")
        assert not ended.value.code
        return capsys.readouterr().out

    return run


@contextlib.contextmanager
def _optimized():
    """Inside, TensorFlow rewrites graphs, as it does for users."""
    tf.config.optimizer.set_experimental_options({_REWRITES: False})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({_REWRITES: True})


class ZerosHold(keras.callbacks.Callback):
    """Fail at the first batch after which a pruned weight is not zero."""

    def __init__(self, masks):
        super().__init__()
        self.masks = masks
        self.checked = 0

    def on_train_batch_end(self, batch, logs=None):
        weights = named_weights(self.model)
        for path, mask in self.masks.items():
            value = weights[path].numpy()
            assert (value[~mask] == 0).all(), f"{path} after batch {batch}"
            assert (value[mask] != 0).any() or not mask.any()
            self.checked += 1


class DieAt(keras.callbacks.Callback):
    """An interrupt when the epoch of this index begins; `None` is never."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt
