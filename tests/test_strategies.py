"""Every callback, however its steps run, ends where a plain run ends.

As a graph in one process is the reference; beside it the same with XLA (what
GPU and TPU users run) and several steps a call, and on two replicas that
share the same global batches.
"""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers

import tf_tickets as tt
from tests.conftest import batches, compiled, traced_twice, two_replicas
from tf_tickets import masking
from tf_tickets.selection import named_weights

EPOCHS = 6
pytestmark = pytest.mark.filterwarnings("ignore:Training ended before")

HOW = {
    "xla, two steps a call": {"jit_compile": True, "steps_per_execution": 2},
    "two replicas": {},
}


def network():
    """Normalized over the global batch, so that replicas can agree."""
    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.Reshape((8, 1)),
            layers.Conv1D(16, 3, padding="same", use_bias=False, name="one"),
            layers.BatchNormalization(synchronized=True, name="norm"),
            layers.ReLU(name="relu"),
            layers.Conv1D(16, 3, padding="same", use_bias=False, name="two"),
            layers.BatchNormalization(synchronized=True, name="norm2"),
            layers.ReLU(name="relu2"),
            layers.Flatten(),
            layers.Dense(4, name="head"),
        ],
        name="net",
    )


def optimizer():
    return keras.optimizers.SGD(0.1, momentum=0.9)


def imp(model):
    callback = tt.callbacks.IterativeMagnitudePruning(
        target_sparsity=0.8, rounds=2, epochs_per_round=2, rewind_epoch=1
    )
    return model, [callback], lambda: callback.tickets


def learning_rate_rewinding(model):
    callback = tt.callbacks.IterativeMagnitudePruning(
        target_sparsity=0.8,
        rounds=2,
        epochs_per_round=2,
        rewind_epoch=1,
        rewind="learning_rate",
    )
    return model, [callback], lambda: callback.tickets


def gradual(model):
    callback = tt.callbacks.GradualPruning(
        target_sparsity=0.8, end_step=12, every=4
    )
    logger = tt.callbacks.SparsityLogger()
    return model, [callback, logger], lambda: [tt.Ticket.from_model(model)]


def enforce_and_rewind(model):
    ticket = tt.prune(model, sparsity=0.7)
    return (
        model,
        [tt.callbacks.EnforceTicket(ticket), tt.callbacks.Rewind(step=4)],
        lambda: [tt.Ticket.from_model(model)],
    )


def gem_miner(model):
    miner = compiled(
        tt.supermask(model, score_penalty=1e-3), optimizer(), **model.how
    )
    freezing = tt.callbacks.IterativeFreezing(target_sparsity=0.7, every=2)
    return miner, [freezing], lambda: [tt.Ticket.from_supermask(miner)]


def edge_popup(model):
    miner = compiled(
        tt.supermask(model, mask="top_k", sparsity=0.7, scope="global"),
        optimizer(),
        **model.how,
    )
    freezing = tt.callbacks.IterativeFreezing(every=2)
    return miner, [freezing], lambda: [tt.Ticket.from_supermask(miner)]


def early_bird(model):
    callback = tt.callbacks.EarlyBird([0.5], epsilon=0.5, window=3)
    return model, [callback], lambda: callback.tickets.values()


def hessian(model):
    x = np.random.default_rng(1).normal(size=(8, 8)).astype("float32")
    callback = tt.callbacks.HessianEigenvalue(
        (x, np.arange(8) % 4), every=3, iterations=5
    )
    tt.prune(model, 0.5).apply(model)
    return model, [callback], lambda: [tt.Ticket.from_model(model)]


def spent(model):
    ticket = tt.prune(model, sparsity=0.7)
    better = tt.retraining.spend(
        ticket, model, ["activations", "skips", "labels"]
    )
    return better, [], lambda: [tt.Ticket.from_model(better)]


METHODS = (
    imp,
    learning_rate_rewinding,
    gradual,
    enforce_and_rewind,
    gem_miner,
    edge_popup,
    early_bird,
    hessian,
    spent,
)


def run(method, data, strategy=None, **how):
    """The trained model and its tickets."""
    keras.utils.set_random_seed(0)
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = compiled(network(), optimizer(), **how)
        model.how = how
        model, callbacks, tickets = method(model)
    model.fit(
        batches(*data, size=16).repeat(),
        epochs=EPOCHS,
        steps_per_epoch=4,  # of one iterator: replicas are slow to make one
        verbose=0,
        callbacks=callbacks,
    )
    return model, list(tickets())


@pytest.fixture(scope="module")
def plain():
    """The reference of each method, trained once."""
    return {}


# Two that hold and rewind weights as `imp` does need not show both again, nor
# what only reads.
ONCE = {
    learning_rate_rewinding: "two replicas",
    hessian: "two replicas",
    enforce_and_rewind: "xla, two steps a call",
}


@pytest.mark.parametrize(
    "how, method",
    [
        pytest.param(how, method, id=f"{how}-{method.__name__}")
        for how in HOW
        for method in METHODS
        if ONCE.get(method, how) == how
    ],
)
def test_every_callback_ends_where_a_plain_run_ends(method, how, data, plain):
    if method not in plain:
        with traced_twice():
            plain[method] = run(method, data, jit_compile=False)
    model, tickets = plain[method]
    strategy = two_replicas() if how == "two replicas" else None
    other, found = run(method, data, strategy, **HOW[how])
    assert tickets and len(found) == len(tickets)
    for one, two in zip(tickets, found, strict=True):
        # Rounding may swap a weight at the threshold for its neighbour.
        assert two.kept == one.kept
        masks = zip(one.masks.values(), two.masks.values(), strict=True)
        assert sum(int((a != b).sum()) for a, b in masks) <= 2
    for one, two in zip(model.weights, other.weights, strict=True):
        a, b = one.numpy(), two.numpy()
        close = np.isclose(a, b, rtol=1e-2, atol=1e-3)
        assert close.mean() > 0.98, one.path
        if strategy:
            for copy in strategy.experimental_local_results(two.value):
                np.testing.assert_array_equal(copy.numpy(), b, two.path)
    weights = named_weights(other)
    for path, mask in masking.attached_masks(other).items():
        assert (weights[path].numpy()[~mask] == 0).all(), path


@pytest.mark.parametrize("how", HOW)
def test_a_search_in_eight_bits_runs_everywhere(how, data):
    """Stochastic rounding has no run to equal, but replicas agree."""

    def low_precision(model):
        callback = tt.callbacks.EarlyBird([0.5], epsilon=0.9, window=2)
        return (
            model,
            [tt.callbacks.LowPrecision(), callback],
            lambda: callback.tickets.values(),
        )

    strategy = two_replicas() if how == "two replicas" else None
    model, [ticket] = run(low_precision, data, strategy, **HOW[how])
    assert ticket.kept == 16
    for variable in model.weights:
        if strategy:
            one, two = strategy.experimental_local_results(variable.value)
            np.testing.assert_array_equal(one.numpy(), two.numpy())
        assert np.isfinite(variable.numpy()).all()
        if variable.name == "kernel":
            assert variable.constraint is None
