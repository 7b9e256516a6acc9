"""Faults that people met, as they met them, where no other test has them."""

import keras
import numpy as np
import pytest
from keras import layers

import tf_tickets as tt
from tests.conftest import DieAt, batches, compiled, mlp

C = tt.callbacks


def test_every_damaged_description_of_an_export_is_one_error(tmp_path):
    """Whichever byte it is; a decompressor has errors of its own."""
    model = mlp(hidden=8)
    tt.prune(model, 0.9).apply(model)
    path = tt.export.saved_model(model, tmp_path / "m").path
    file = path / "assets.extra" / "tf_tickets.json.gz"
    whole = file.read_bytes()
    ticket = tt.export.load_sparse(path)
    for place in range(0, len(whole), 9):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        file.write_bytes(damaged)
        try:
            found = tt.export.load_sparse(path)
        except ValueError as error:
            assert str(path) in str(error)
        else:  # the name and the time of the file that was compressed
            assert found.hamming_distance(ticket) == 0


def alike():
    """Layers of one shape, and no name of its own."""
    x = keras.Input((8,))
    y = layers.Dense(8, activation="relu", use_bias=False)(x)
    y = layers.BatchNormalization()(layers.Dense(8, use_bias=False)(y))
    model = keras.Model(x, layers.Dense(8)(layers.ReLU()(y)))
    return compiled(model, keras.optimizers.SGD(0.1), run_eagerly=True)


def mined():
    miner = tt.supermask(alike(), score_penalty=1e-3)
    return compiled(miner, keras.optimizers.SGD(0.1), run_eagerly=True)


# ``(model, callback)`` of a notebook's cell.
CELLS = {
    "rounds": lambda d: (
        alike(),
        C.IterativeMagnitudePruning(
            target_sparsity=0.7, rounds=2, epochs_per_round=2, directory=d
        ),
    ),
    "gradual": lambda d: (
        alike(),
        C.GradualPruning(target_sparsity=0.7, end_step=9, every=2, directory=d),
    ),
    "freezing": lambda d: (
        mined(),
        C.IterativeFreezing(0.7, every=1, directory=d),
    ),
    "early_bird": lambda d: (
        alike(),
        C.EarlyBird([0.5], stop=False, epsilon=1.0, window=2, directory=d),
    ),
}


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_that_is_run_again_goes_on(kind, data, tmp_path):
    """Its layers, all of one shape, have other numbers each time."""

    def run(directory, die_at=None):
        keras.utils.set_random_seed(0)
        model, callback = CELLS[kind](directory)
        try:
            model.fit(
                batches(*data), epochs=4, verbose=0,
                callbacks=[callback, DieAt(die_at)],
            )  # fmt: skip
        except KeyboardInterrupt:
            return None
        return [v.numpy() for v in model.variables]

    for die_at in (1, 3):
        assert run(tmp_path / "again", die_at) is None
    again, whole = run(tmp_path / "again"), run(tmp_path / "whole")
    for one, other in zip(again, whole, strict=True):
        np.testing.assert_array_equal(one, other)
