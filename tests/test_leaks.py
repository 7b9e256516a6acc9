"""Nothing is left behind: on the model, in memory, among the open files."""

import gc
import pathlib
import tracemalloc

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_tickets as tt
from tests.conftest import batches, compiled, mlp

FILES = pathlib.Path("/proc/self/fd")
linux = pytest.mark.skipif(not FILES.is_dir(), reason="counts in /proc")


def wide():
    """Seventy thousand weights: copies of them show."""
    return compiled(
        keras.Sequential(
            [
                keras.Input((8,)),
                layers.Dense(256, activation="relu"),
                layers.Dense(256, activation="relu"),
                layers.Dense(4),
            ]
        ),
        keras.optimizers.SGD(0.01, momentum=0.9),
    )


@pytest.fixture
def traced():
    """Counts what Python and NumPy hold, to the byte, from here on."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


class Watch(keras.callbacks.Callback):
    """What is alive at the end of every tenth epoch."""

    def __init__(self):
        super().__init__()
        self.memory, self.variables, self.files = [], [], []

    def on_epoch_end(self, epoch, logs=None):
        if epoch % 10 != 9:
            return
        gc.collect()
        self.memory.append(tracemalloc.get_traced_memory()[0])
        self.variables.append(
            sum(isinstance(one, tf.Variable) for one in gc.get_objects())
        )
        self.files.append(len(list(FILES.iterdir())))


@linux
def test_fifty_rounds_hold_no_more_than_their_masks(data, tmp_path, traced):
    model = wide()
    size = sum(
        v.shape.num_elements() for v in tt.prunable_weights(model).values()
    )
    imp = tt.callbacks.IterativeMagnitudePruning(
        target_sparsity=0.99,
        rounds=50,
        epochs_per_round=1,
        directory=tmp_path / "run",
    )
    watch = Watch()
    model.fit(
        batches(*data), epochs=imp.epochs, verbose=0, callbacks=[imp, watch]
    )
    assert len(imp.tickets) == 50
    # After the first rounds nothing new is made, and a file that was written
    # is closed.
    assert len(set(watch.variables)) == 1
    assert len(set(watch.files)) == 1
    # The tickets are kept: a byte a weight and round, and one set of start
    # weights for all. A copy of the weights in each round would be 4 bytes.
    # (Things that are made once come in the first twenty.)
    grown = watch.memory[-1] - watch.memory[1]
    assert grown < 30 * size * 1.5 + 2e6 < 30 * size * 4
    one, two = imp.tickets[0].weights, imp.tickets[-1].weights
    assert all(one[path] is two[path] for path in one)


@linux
def test_releasing_fifty_tickets_leaves_no_state(data):
    model = compiled(mlp(), "adam")
    model.fit(batches(*data), epochs=1, verbose=0)
    plain = {id(layer): set(vars(layer)) for layer in model._flatten_layers()}
    variables, used = len(model.variables), []
    for round_ in range(50):
        tt.prune(model, sparsity=0.5, criterion="random", seed=round_).apply(
            model
        )
        tt.release(model)
        if round_ % 10 == 9:
            gc.collect()
            used.append(
                sum(isinstance(one, tf.Variable) for one in gc.get_objects())
            )
    assert len(model.variables) == variables
    assert len(set(used)) == 1
    assert all(v.constraint is None for v in model.trainable_variables)
    for layer in model._flatten_layers():
        assert set(vars(layer)) == plain[id(layer)], layer.name
    assert np.isfinite(model.get_weights()[0]).all()
