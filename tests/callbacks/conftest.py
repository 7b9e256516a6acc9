"""Models and callbacks that several tests of callbacks share."""

import functools

import keras
import numpy as np

import tf_tickets as tt
from tests.conftest import compiled, mlp
from tf_tickets import masking
from tf_tickets.selection import named_weights

C = tt.callbacks

MODES = {
    "plain": {},
    "xla": {"jit_compile": True},
    "two_steps": {"steps_per_execution": 2},
}


@functools.cache
def traced(mode):
    """``(model, its first state)``: one trace serves all tests."""
    keras.utils.set_random_seed(3)
    model = compiled(
        mlp(hidden=8),
        keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True, ema_momentum=0.9),
        **MODES[mode],
    )
    return model, tt.Snapshot.take(model)


def fresh(mode):
    """The model of `traced`, as if nothing had happened to it."""
    model, start = traced(mode)
    for constraint in (w.constraint for w in named_weights(model).values()):
        if isinstance(constraint, masking.MaskConstraint):
            constraint.mask.assign(np.ones(constraint.mask.shape))
    start.restore(model)
    model.stop_training = False
    model._initial_epoch = None  # BackupAndRestore leaves it
    return model


def drawing(kind, directory=None):
    """``(model, callback)``: each callback that can be resumed."""
    if kind == "freezing":
        model = compiled(tt.supermask(mlp()), keras.optimizers.SGD(0.1))
        return model, C.IterativeFreezing(0.5, every=1, directory=directory)
    model = compiled(mlp(), keras.optimizers.SGD(0.1, momentum=0.9))
    return model, {
        "rounds": lambda: C.IterativeMagnitudePruning(
            target_sparsity=0.5,
            rounds=2,
            epochs_per_round=2,
            directory=directory,
        ),
        "gradual": lambda: C.GradualPruning(
            target_sparsity=0.5, end_step=12, every=1, directory=directory
        ),
        "groups": lambda: C.GroupPruning(
            0.5, cuts=2, groups=["widths"], directory=directory
        ),
        "early_bird": lambda: C.EarlyBird(
            [0.5], stop=False, epsilon=1.0, window=2, directory=directory
        ),
    }[kind]()


KINDS = ["rounds", "gradual", "freezing", "early_bird", "groups"]
