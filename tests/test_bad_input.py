"""Odd arguments for every public callable; broken weights, losses and data.

An argument is either taken or refused by one clear error of a type that says
so: no crash, no hang, no error from the depths.
"""

import functools
import importlib
import inspect
import pkgutil
import random
import re
import signal
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests.conftest import batches, compiled, mlp

REFUSALS = (ValueError, TypeError, OSError, ImportError)
SECONDS = 20

# What goes wrong in practice, for any parameter.
ODD = {
    "None": None, "True": True, "-1": -1, "0": 0, "1": 1, "0.5": 0.5,
    "-0.5": -0.5, "1.5": 1.5, "NaN": float("nan"), "inf": float("inf"),
    "10**18": 10**18, "text": "no such thing", "empty text": "",
    "bytes": b"x", "[]": [], "{}": {}, "[None]": [None], "{1: 2}": {1: 2},
    "object": object(), "type": int, "array": np.ones((2, 3)),
    "NaN array": np.full(3, np.nan), "lambda": lambda *a, **k: None,
}  # fmt: skip


def _data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(16, 8)).astype("float32"), np.arange(16) % 4


@functools.cache
def _ticket():
    return tt.prune(_model(), 0.5)


@functools.cache
def _model():
    return compiled(mlp(hidden=8))


def _train(model, seed):
    """Ends elsewhere for each seed."""
    model.layers[0].kernel.assign_add(np.full((8, 8), seed + 1.0))


def _scores():
    return np.arange(12.0)


# A good value for a parameter of this name, in any callable.
GOOD = {
    "model": _model,
    "student": _model,
    "teacher": _model,
    "dense": _model,
    "first": _model,
    "second": lambda: compiled(mlp(hidden=8)),
    "train": lambda: _train,
    "ticket": _ticket,
    "masks": lambda: dict(_ticket().masks),
    "data": _data,
    "sparsity": lambda: 0.5,
    "target_sparsity": lambda: 0.5,
    "sparsities": lambda: (0.3, 0.5),
    "epochs_per_round": lambda: 1,
    "end_step": lambda: 4,
    "epochs": lambda: 2,
    "every": lambda: 1,
    "samples": lambda: 16,
    "scores": _scores,
    "keep": lambda: 3,
    "layer": lambda: keras.layers.Dense(3),
    "classes": lambda: 4,
    "alpha": lambda: 0.1,
    "beta": lambda: 2.0,
    "tickets": lambda: [_ticket(), _ticket()],
    "matrix": lambda: np.zeros((2, 2)),
    "iterations": lambda: 1,
    "end_epoch": lambda: 2,
    "batches": lambda: 1,
    "steps": lambda: 3,
    "criterion": lambda: "magnitude",
    "weights": lambda: {"a/kernel": np.eye(3)},
    "loss": lambda: None,
    "smooth": lambda: "swish",
    "name": lambda: "digits",
}
# Where a name means something else, by callable.
OWN = {
    "supermask": {"scores": lambda: "uniform", "weights": lambda: "normal"},
    "Supermask": {"scores": lambda: "uniform", "weights": lambda: "normal"},
    "Ticket": {
        "weights": lambda: dict(_ticket().weights),
        "scores": lambda: None,
    },
    "EnforceTicket": {"weights": lambda: "keep"},
    "Masked": {"masks": lambda: None},
    "draw_channels": {"criterion": lambda: "auto"},
    "EarlyBird": {"criterion": lambda: "auto"},
    "Beta": {"alpha": lambda: 2.0},
    "LabelSmoothing": {"name": lambda: "smoothing"},
    "get": {"name": lambda: "digits_cnn"},
    "prospr": {"steps": lambda: 1},
    "search_densities": {"start": lambda: _ticket()},
}  # fmt: skip

# Values that the library makes and a user reads; expensive callables that
# have their own tests of bad arguments; paths that must not be guessed.
RESULTS = "Report|Search|Flow|Flops|Curve|Surface|Phase|Eigenvalue$|Stop$"


def _rooms():
    rooms = [tt]
    for module in pkgutil.iter_modules(tt.__path__):
        if module.ispkg and module.name != "zoo":
            rooms.append(importlib.import_module(f"tf_tickets.{module.name}"))
    return rooms


def public():
    """``{name: callable}`` of all rooms but the zoo, each once."""
    found = {}
    for room in _rooms():
        for name in getattr(room, "__all__", ()):
            thing = getattr(room, name)
            if callable(thing) and thing not in found.values():
                found[f"{room.__name__}.{name}"] = thing
    for method in ("from_model", "from_weights", "load"):
        found[f"Ticket.{method}"] = getattr(tt.Ticket, method)
    for method in (
        "apply", "shuffle", "reinitialize", "hamming_distance", "to_weights",
        "match", "save",
    ):  # fmt: skip
        found[f"ticket.{method}"] = getattr(_ticket(), method)
    found["Snapshot.take"] = tt.Snapshot.take
    found["Snapshot.load"] = tt.Snapshot.load
    return found


def base(name, thing):
    """Good arguments for a callable's required parameters."""
    own = OWN.get(name.rpartition(".")[2], {})
    made = {}
    for parameter in inspect.signature(thing).parameters.values():
        key = parameter.name
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if parameter.default is parameter.empty or (
            key in ("target_sparsity", "sparsity", "iterations", "batches")
            and parameter.default is None
        ):
            if key in own or key in GOOD:
                made[key] = {**GOOD, **own}[key]
    return made


class Timeout:
    """A hang is an error."""

    def __enter__(self):
        def ring(*_):
            raise AssertionError(f"no answer in {SECONDS} s")

        self.before = signal.signal(signal.SIGALRM, ring)
        signal.alarm(SECONDS)

    def __exit__(self, *_):
        signal.alarm(0)
        signal.signal(signal.SIGALRM, self.before)


def call(thing, arguments):
    """The result; a context manager is entered, and an iterator begun."""
    result = thing(**arguments)
    if hasattr(result, "__enter__") and not isinstance(result, tt.Ticket):
        with result:
            pass
    return result


def verdict(thing, arguments, key, odd):
    """``"taken"``, ``"refused"`` or a description of what went wrong."""
    made = {k: good() for k, good in arguments.items()} | {key: odd}
    try:
        with Timeout(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(thing, made)
    except REFUSALS as error:
        text = str(error)
        if len(text) < 8 or len(text) > 5000:
            return f"unclear {type(error).__name__}: {text[:200]!r}"
        return "refused"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return "taken"


# Searches for a second at each call.
SLOW = {"rescale_initialization"}
FAST = {
    name: thing
    for name, thing in public().items()
    if name.rpartition(".")[2] not in SLOW and not re.search(RESULTS, name)
}
# Of each parameter's odd values, chosen anew for every parameter; and where
# each value that is taken is a trace.
TRIED, TRIED_SLOWLY = 9, 2
TRACED = {
    "gradient_flow",
    "hessian_top_eigenvalue",
    "input_landscape",
    "instability",
    "linear_connectivity",
    "loss_landscape",
}


@pytest.mark.parametrize("name", FAST)
def test_odd_arguments_are_taken_or_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _model.cache_clear()
    thing, rng, wrong = FAST[name], random.Random(name), {}
    tried = TRIED_SLOWLY if name.rpartition(".")[2] in TRACED else TRIED
    for parameter in inspect.signature(thing).parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        for odd in rng.sample(sorted(ODD), tried):
            found = verdict(thing, base(name, thing), parameter.name, ODD[odd])
            if found not in ("taken", "refused"):
                wrong[f"{parameter.name}={odd}"] = found
    assert not wrong


def test_the_fuzz_sees_a_crash_and_a_hang(monkeypatch):
    monkeypatch.setitem(globals(), "SECONDS", 1)

    def hangs(x):
        while x:
            pass

    assert verdict(hangs, {}, "x", 1) == "AssertionError: no answer in 1 s"
    assert verdict(lambda x: x.y, {}, "x", 1).startswith("AttributeError")
    assert verdict(lambda x: [][x], {}, "x", 1).startswith("IndexError")


def _drawing():
    return {
        "rounds": tt.callbacks.IterativeMagnitudePruning(
            target_sparsity=0.5, rounds=2, epochs_per_round=1
        ),
        "gradual": tt.callbacks.GradualPruning(
            target_sparsity=0.5, end_step=8, every=1
        ),
    }


@pytest.mark.parametrize("kind", _drawing())
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_weights_are_met_before_training(kind, value, data):
    model = compiled(mlp())
    kernel = model.get_layer("head").kernel
    kernel.assign(np.full(kernel.shape, value))
    with pytest.raises(ValueError, match="NaN or infinity in 1 tensors: mlp/h"):
        model.fit(
            batches(*data), epochs=2, verbose=0, callbacks=[_drawing()[kind]]
        )
    assert not model.optimizer.built or not int(model.optimizer.iterations)


@pytest.mark.parametrize("kind", _drawing())
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_breaks_is_met_when_masks_are_drawn(kind, value, data):
    model = mlp()
    model.compile("sgd", lambda y, z: keras.ops.mean(z) * value)
    with pytest.raises(ValueError, match="has training diverged"):
        model.fit(
            batches(*data), epochs=2, verbose=0, callbacks=[_drawing()[kind]]
        )


@pytest.mark.parametrize("kind", _drawing())
def test_no_data_is_one_clear_error(kind, data):
    model = compiled(mlp())
    empty = batches(*data).take(0)
    with (
        warnings.catch_warnings(),
        pytest.raises(ValueError, match="had no batch"),
    ):
        warnings.simplefilter("ignore")
        model.fit(empty, epochs=2, verbose=0, callbacks=[_drawing()[kind]])


@pytest.mark.parametrize("kind", _drawing())
def test_labels_out_of_range_are_not_trained_on(kind, data):
    x, y = data
    wrong = np.where(y == 3, 9, y)
    model = compiled(mlp(), jit_compile=False)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="label value of 9"
    ):
        model.fit(
            batches(x, wrong), epochs=2, verbose=0, callbacks=[_drawing()[kind]]
        )


def test_labels_out_of_range_are_met_where_xla_takes_them(data):
    """It makes NaN of them."""
    x, y = data
    model = compiled(mlp(), jit_compile=True)
    with pytest.raises(ValueError, match="has training diverged"):
        model.fit(
            batches(x, np.where(y == 3, 9, y)),
            epochs=2,
            verbose=0,
            callbacks=[_drawing()["rounds"]],
        )
