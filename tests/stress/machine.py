"""Models, tickets, callbacks, interrupts, files and resumes in any order.

`Attack` is a hypothesis state machine. It keeps its own account of what a
model must be (which weights are masked, and how; what each ticket holds), by
the position of a weight in the model, never by a name: every model that it
makes has other layer numbers. After every step the library has to agree.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import math
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from keras import layers

import tf_tickets as tt
from tf_tickets import masking

C = tt.callbacks
Masks = dict[int, np.ndarray]


# Small models without names of their own. All that training changes is in
# them: scales and statistics, a seed, a constraint that is not ours.


def dense() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5, activation="relu", use_bias=False),
            layers.BatchNormalization(center=False),
            layers.Dense(3, kernel_constraint=keras.constraints.MaxNorm(2.0)),
        ]
    )


def conv() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Reshape((3, 2, 1)),
            layers.Conv2D(3, 2, activation="relu", use_bias=False),
            layers.Flatten(),
            layers.Dropout(0.2, seed=1),
            layers.Dense(3),
        ]
    )


def shared() -> keras.Model:
    layer = layers.Dense(6, activation="tanh")
    x = keras.Input((6,))
    y = layers.Add()([layer(x), layer(layer(x))])
    return keras.Model(x, layers.Dense(3)(y))


def nested() -> keras.Model:
    inner = keras.Sequential(
        [keras.Input((6,)), layers.Dense(6, use_bias=False)]
    )
    x = keras.Input((6,))
    y = layers.Dense(6, use_bias=False)(layers.ReLU()(inner(x)))
    y = layers.BatchNormalization(center=False)(y)
    return keras.Model(x, layers.Dense(3)(y))


MODELS: dict[str, Callable[[], keras.Model]] = {
    f.__name__: f for f in (dense, conv, shared, nested)
}
OPTIMIZERS: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "adamw": lambda: keras.optimizers.AdamW(0.05, weight_decay=0.1),
    "averaged": lambda: keras.optimizers.SGD(
        0.1, momentum=0.5, use_ema=True, ema_momentum=0.5
    ),
    "overwritten": lambda: keras.optimizers.SGD(
        0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3
    ),
    "accumulated": lambda: keras.optimizers.SGD(
        0.1, momentum=0.5, gradient_accumulation_steps=2
    ),
    "scheduled": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.7)
    ),
}


def fixed_data() -> tf.data.Dataset:
    """Two batches of eight, always in this order."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 6)).astype("float32")
    y = (x @ rng.normal(size=(6, 3))).astype("float32")
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = 1
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    return data.with_options(options)


class Stop(Exception):
    """An interrupt, at any hook."""


HOOKS = [
    "on_train_begin",
    "on_epoch_begin",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_epoch_end",
    "on_train_end",
]


class StopAt(keras.callbacks.Callback):
    """Raises at the so-manieth call of a hook."""

    def __init__(self, hook: str, count: int, error: type[BaseException]):
        super().__init__()
        self.left = count
        self.error = error
        setattr(self, hook, self._raise)

    def _raise(self, *args: Any, **kwargs: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error("stopped")


@dataclasses.dataclass(frozen=True)
class Death:
    """Where a training ends early.

    Attributes:
        hook: Of a callback.
        count: How many calls of it go well.
        last: Whether that callback stands behind the others.
        error: What it raises.
    """

    hook: str
    count: int
    last: bool
    error: type[BaseException]

    def among(self, callback: Any) -> list[Any]:
        stop = StopAt(self.hook, self.count, self.error)
        return [callback, stop] if self.last else [stop, callback]


deaths = st.builds(
    Death,
    st.sampled_from(HOOKS),
    st.integers(0, 5),
    st.booleans(),
    st.sampled_from([Stop, KeyboardInterrupt]),
)
some_deaths = st.lists(deaths, min_size=1, max_size=2)
sparsities = st.floats(0.05, 0.93) | st.integers(1, 26).map(lambda n: n / 27)


@dataclasses.dataclass
class Known:
    """A ticket, and what it must hold: by position, of which model."""

    ticket: tt.Ticket
    kind: str
    masks: Masks
    weights: dict[int, np.ndarray] | None


@tf.autograph.experimental.do_not_convert
def quick_step(model: keras.Model, data: Any) -> dict[str, Any]:
    """A training step with gradients out of thin air.

    Nothing that is checked here asks what the gradients are, and most of the
    time of so small a model is spent on them.
    """
    scale = data[0][0, 0]
    gradients = [
        0.3 * v.value + scale * _noise(tuple(v.shape), i)
        for i, v in enumerate(model.trainable_variables)
    ]
    model.optimizer.apply(gradients, model.trainable_variables)
    for v in model.non_trainable_variables:
        if v.dtype == "float32" and "moving" in v.name:
            v.assign_add(0.01 * scale * tf.ones(v.shape))
        elif v.name == "seed_generator_state":
            v.assign_add(tf.ones(v.shape, v.dtype))
    return {"loss": scale}


@functools.cache
def _noise(shape: tuple[int, ...], seed: int) -> tf.Tensor:
    rng = np.random.default_rng(seed)
    return tf.constant(rng.normal(size=shape), "float32")


class State:
    """All that a training goes on with, by position."""

    def __init__(self, attack: Attack) -> None:
        self.kind, self.optimizer = attack.kind, attack.optimizer
        self.how = attack.how
        self.masks = dict(attack.masks)
        self.variables = [v.numpy() for v in attack.model.variables]
        self.slots = [v.numpy() for v in attack.model.optimizer.variables]

    def build(self) -> keras.Model:
        """The same state in a new model, under other layer numbers."""
        model = compiled(self.kind, self.optimizer, self.how)
        if self.masks:
            paths = [v.path for v in model.weights]
            ticket = tt.Ticket({paths[i]: m for i, m in self.masks.items()})
            ticket.apply(model, weights="keep")
        for group, values in (
            (model.variables, self.variables),
            (model.optimizer.variables, self.slots),
        ):
            assert len(list(group)) == len(values)
            for variable, value in zip(group, values, strict=True):
                variable.assign(value)
        return model


# Models that are free, by all that they were made with.
_free: dict[tuple[str, str, str], list[keras.Model]] = {}


def compiled(kind: str, optimizer: str, how: str) -> keras.Model:
    """A model that was never used, or one that nothing is left on."""
    free = _free.setdefault((kind, optimizer, how), [])
    if free:
        return free.pop()
    layers.Dense(1)  # a number is taken
    model = MODELS[kind]()
    model.made = kind, optimizer, how
    model.compile(OPTIMIZERS[optimizer](), "mse", run_eagerly=how != "traced")
    model.optimizer.build(model.trainable_variables)
    if how == "quick":
        model.train_step = functools.partial(quick_step, model)
    return model


def give_back(model: keras.Model) -> None:
    """Let a model be used again, if it is of those that can."""
    made = getattr(model, "made", None)
    if made is not None and made[2] == "quick":
        tt.release(model)
        check_undone(model)
        _free.setdefault(made, []).append(model)


def check_undone(model: keras.Model) -> None:
    """Nothing that was changed for the time of a training is left."""
    assert getattr(model, "_initial_epoch", None) is None
    for layer in model.layers:
        assert "call" not in vars(layer)
        for v in layer.weights:
            assert v.regularizer is None
    assert "apply" not in vars(model.optimizer)


def same(one: Any, other: Any) -> bool:
    return np.array_equal(one, other, equal_nan=True)


def ended(model: keras.Model) -> list[np.ndarray]:
    """Everything that training leaves, by position."""
    variables = [*model.variables, *model.optimizer.variables]
    masks = [
        v.constraint.mask.numpy()
        for v in model.weights
        if isinstance(v.constraint, masking.MaskConstraint)
    ]
    return [*(v.numpy() for v in variables), *masks]


def told(callback: Any) -> list[Any]:
    """What a callback says of its run, but for names and times."""
    rows = [
        {k: v for k, v in row.items() if k != "seconds"}
        for row in getattr(callback, "history", [])
    ]
    tickets = getattr(callback, "tickets", [])
    if isinstance(tickets, dict):
        tickets = [tickets[s] for s in sorted(tickets)]
    masks = [[m.tolist() for m in t.masks.values()] for t in tickets]
    return [rows, masks, getattr(callback, "found_at", None)]


class Attack(RuleBasedStateMachine):
    """See the module. Class attributes choose how much is traced."""

    data: tf.data.Dataset | None = None
    root: str | None = None
    sequences = 0
    fits = 0
    resumed = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).data = self.data or fixed_data()
        self.folder = Path(tempfile.mkdtemp(dir=self.root))
        self.tickets: list[Known] = []
        self.saved: list[tuple[Path, str, list[np.ndarray]]] = []
        self.held: list[BaseException] = []
        self.masks: Masks = {}
        # Whether weights were written past the masks since the last step.
        self.dirty = False
        self.files = 0

    @initialize(
        kind=st.sampled_from(sorted(MODELS)),
        optimizer=st.sampled_from(sorted(OPTIMIZERS)),
        how=st.integers(0, 39).map(
            lambda n: {7: "traced", 14: "eager", 28: "eager"}.get(n, "quick")
        ),
    )
    def start(self, kind: str, optimizer: str, how: str) -> None:
        self.kind, self.optimizer, self.how = kind, optimizer, how
        self.model = compiled(kind, optimizer, how)
        rng = np.random.default_rng(1)
        for v in self.model.variables:
            if v.trainable:
                v.assign(rng.normal(0, 0.3, v.shape))
            elif v.name == "moving_variance":
                v.assign(np.ones(v.shape))
            elif v.name != "seed_generator_state":
                v.assign(np.zeros(v.shape))
        for v in self.model.optimizer.variables:
            if v.name != "learning_rate":
                v.assign(np.zeros(v.shape))
        # Of prunable weights, by position.
        self.prunable = {
            i: tuple(v.shape)
            for i, v in enumerate(self.model.weights)
            if v.path.endswith("kernel")
        }
        self.size = sum(math.prod(s) for s in self.prunable.values())

    def teardown(self) -> None:
        self.held.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        Attack.sequences += 1
        if hasattr(self, "model"):
            give_back(self.model)
            self.model = None
        if Attack.sequences % 20 == 0:
            gc.collect()

    # What the rules need.

    def path(self) -> Path:
        self.files += 1
        return self.folder / str(self.files)

    def paths(self) -> list[str]:
        return [v.path for v in self.model.weights]

    def values(self) -> list[np.ndarray]:
        return [v.numpy() for v in self.model.weights]

    def kept(self) -> int:
        return sum(
            int(self.masks[i].sum()) if i in self.masks else math.prod(shape)
            for i, shape in self.prunable.items()
        )

    def attached(self) -> Masks:
        """The masks on the model, read from the variables themselves."""
        return {
            i: v.constraint.mask.numpy().astype(bool)
            for i, v in enumerate(self.model.weights)
            if isinstance(v.constraint, masking.MaskConstraint)
        }

    def know(self, ticket: tt.Ticket, paths: list[str] | None = None) -> Known:
        at = {p: i for i, p in enumerate(paths or self.paths())}
        weights = ticket.weights
        known = Known(
            ticket,
            self.kind,
            {at[p]: np.array(m) for p, m in ticket.masks.items()},
            weights and {at[p]: np.array(w) for p, w in weights.items()},
        )
        self.tickets.append(known)
        return known

    def fit(self, model: keras.Model, epochs: int, callbacks: Any) -> Any:
        Attack.fits += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.fit(
                self.data, epochs=epochs, verbose=0, callbacks=callbacks
            )

    def check_count(self, masks: Masks, sparsity: float) -> None:
        """To the weight: what is kept of all that could be pruned."""
        kept = sum(
            int(masks[i].sum()) if i in masks else math.prod(shape)
            for i, shape in self.prunable.items()
        )
        assert kept == round((1 - sparsity) * self.size), (kept, sparsity)

    def check_nested(self, masks: Masks) -> None:
        """No pruned weight has come back."""
        for i, old in self.masks.items():
            assert i in masks and not (masks[i] & ~old).any(), i

    # Drawing.

    @rule(
        sparsity=sparsities,
        criterion=st.sampled_from(["magnitude", "random", "lamp"]),
        scope=st.sampled_from(["global", "layer", "erk"]),
        seed=st.integers(0, 3),
    )
    def prune(
        self, sparsity: float, criterion: str, scope: str, seed: int
    ) -> None:
        before = self.values()
        asked = round((1 - sparsity) * self.size)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ticket = tt.prune(
                    self.model,
                    sparsity,
                    criterion=criterion,
                    scope=scope,
                    seed=seed,
                )
        except ValueError as error:
            # A tensor may keep less than its share.
            assert asked > self.kept() or scope != "global", error
            return
        assert all(map(same, before, self.values()))
        known = self.know(ticket)
        self.check_nested(known.masks)
        self.check_count(known.masks, sparsity)
        if scope == "layer" and not self.masks:
            for mask in known.masks.values():
                assert abs(mask.sum() - (1 - sparsity) * mask.size) < 1
        if criterion == "magnitude" and scope == "global":
            size = [abs(before[i]) for i in known.masks]
            present = [
                self.masks.get(i, np.ones_like(m))
                for i, m in known.masks.items()
            ]
            masks = known.masks.values()
            out = [
                s[p & ~m] for s, p, m in zip(size, present, masks, strict=True)
            ]
            stays = [s[m] for s, m in zip(size, masks, strict=True)]
            gone = np.concatenate(out)
            if gone.size and not self.dirty:
                assert gone.max() <= np.concatenate(stays).min()

    @rule(sparsity=st.floats(0.1, 0.9), which=st.integers(0, 2))
    def prune_one(self, sparsity: float, which: int) -> None:
        """A ticket that covers one weight alone."""
        at = sorted(self.prunable)[which % len(self.prunable)]
        path = self.paths()[at]
        here = self.masks.get(at, np.ones(self.prunable[at], bool))
        asked = round((1 - sparsity) * here.size)
        if asked > here.sum() or not asked:
            return
        ticket = tt.prune(self.model, sparsity, filters=lambda p, v: p == path)
        assert list(ticket.masks) == [path]
        assert self.know(ticket).masks[at].sum() == asked

    # Spending.

    def of_this_kind(self) -> list[Known]:
        return [t for t in self.tickets if t.kind == self.kind]

    @precondition(lambda self: self.of_this_kind())
    @rule(
        which=st.integers(0, 9),
        weights=st.sampled_from(["keep", "start"]),
        by_callback=st.booleans(),
    )
    def apply(self, which: int, weights: str, by_callback: bool) -> None:
        known = self.of_this_kind()[which % len(self.of_this_kind())]
        if weights == "start" and known.weights is None:
            weights = "keep"
        before = self.values()
        if by_callback:
            # It stops before the first step: only the ticket was applied.
            stop = StopAt("on_epoch_begin", 0, Stop)
            enforce = C.EnforceTicket(known.ticket, weights=weights)
            try:
                self.fit(self.model, 1, [enforce, stop])
            except Stop:
                pass
        else:
            known.ticket.apply(self.model, weights=weights)
        self.masks = {i: m.copy() for i, m in known.masks.items()}
        self.dirty = False
        for i, value in enumerate(self.values()):
            wanted = before[i]
            if weights == "start" and i in known.weights:
                wanted = known.weights[i]
            if i in known.masks:
                wanted = np.where(known.masks[i], wanted, 0)
            assert same(value, wanted), (i, weights)

    @rule()
    def release(self) -> None:
        before = self.values()
        tt.release(self.model)
        self.masks, self.dirty = {}, False
        assert all(map(same, before, self.values()))

    @precondition(lambda self: not self.dirty)
    @rule()
    def enforce_zeros(self) -> None:
        before = self.values()
        zeros = {
            i: self.masks.get(i, before[i] != 0) for i in sorted(self.prunable)
        }
        if self.masks:  # the masks that are there are the ticket
            zeros = dict(self.masks)
        if all(m.all() for m in zeros.values()):
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tt.enforce_zeros(self.model)
        self.masks = zeros
        assert all(map(same, before, self.values()))

    # Training.

    @rule(epochs=st.integers(1, 2), logged=st.booleans())
    def train(self, epochs: int, logged: bool) -> None:
        """A plain training: zeros after every step, all else moves."""
        before = self.values()
        watch = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: self.check_step(batch)
        )
        beside = [C.SparsityLogger()] if logged else []
        self.fit(self.model, epochs, [*beside, watch])
        if self.optimizer != "accumulated":
            self.dirty = False
        elif epochs:  # two steps are one update
            self.dirty = False
        for i, shape in self.prunable.items():
            moved = before[i] != self.values()[i]
            mask = self.masks.get(i, np.ones(shape, bool))
            if mask.sum() > 3 and np.isfinite(before[i]).all():
                assert moved[mask].any() or self.is_dead(), i
        if logged:
            self.held.clear()

    def is_dead(self) -> bool:
        """No gradient comes through: a tensor keeps nothing, or no unit."""
        return any(m.sum() < 4 for m in self.masks.values()) or any(
            not np.isfinite(v).all() for v in self.values()
        )

    def check_step(self, batch: int) -> None:
        if self.optimizer == "accumulated" and batch % 2 == 0 and self.dirty:
            return
        for i, mask in self.masks.items():
            value = self.model.weights[i].numpy()
            assert not value[~mask].any(), (i, batch)

    @rule(
        what=st.sampled_from(["imp", "gradual", "early_bird", "low_precision"]),
        death=deaths,
        sparsity=sparsities,
        keep=st.booleans(),
    )
    def train_interrupted(
        self, what: str, death: Death, sparsity: float, keep: bool
    ) -> None:
        """In this model, with a callback that draws or changes it."""
        if what == "early_bird" and self.kind not in ("dense", "nested"):
            return
        callback = {
            "imp": lambda: C.IterativeMagnitudePruning(
                target_sparsity=sparsity, rounds=2, epochs_per_round=1
            ),
            "gradual": lambda: C.GradualPruning(
                target_sparsity=sparsity, end_step=4, every=1
            ),
            "early_bird": lambda: C.EarlyBird(
                [0.5], slimming=0.01, window=1, epsilon=1.0, stop=False
            ),
            "low_precision": C.LowPrecision,
        }[what]()
        draws = what in ("imp", "gradual")
        before, steps = self.values(), int(self.model.optimizer.iterations)
        whole = False
        try:
            self.fit(self.model, 2, death.among(callback))
            whole = True
        except (Stop, KeyboardInterrupt) as error:
            if keep:
                self.held.append(error)
        except ValueError as error:
            assert draws and round((1 - sparsity) * self.size) > self.kept(), (
                error
            )
            assert int(self.model.optimizer.iterations) == steps
            assert all(map(same, before, self.values())) or self.dirty
            assert self.attached().keys() == self.masks.keys()
            return
        found = self.attached()
        self.check_nested(found)
        if draws:
            if whole:
                self.check_count(found, sparsity)
                self.check_nested(found)
                self.know(callback.ticket)
                self.dirty = False
            self.masks = found
        if whole or what == "imp":
            self.held.clear()
        stepped = int(self.model.optimizer.iterations) > steps
        if whole or stepped:
            self.dirty = False
        if self.dirty and draws:
            # It may have begun, and put them right, or not.
            self.dirty = any(
                self.values()[i][~m].any() for i, m in found.items()
            )
        if not self.held:
            check_undone(self.model)

    # Runs that are killed and go on in other models.

    @rule(
        sparsity=sparsities,
        rounds=st.integers(1, 3),
        length=st.integers(1, 2),
        rewind=st.sampled_from(["weights", "weights", "learning_rate", None]),
        point=st.sampled_from(["start", "epoch", "step"]),
        criterion=st.sampled_from(["magnitude", "random"]),
        extra=st.integers(0, 1),
        at=some_deaths,
    )
    def draw_in_rounds(
        self,
        sparsity: float,
        rounds: int,
        length: int,
        rewind: str | None,
        point: str,
        criterion: str,
        extra: int,
        at: list[Death],
    ) -> None:
        options: dict[str, Any] = {}
        if rewind is not None and point == "epoch":
            options = {"rewind_epoch": length - 1}
        elif rewind is not None and point == "step":
            options = {"rewind_step": length}

        def make(directory: Path | None) -> Any:
            return C.IterativeMagnitudePruning(
                target_sparsity=sparsity,
                rounds=rounds,
                epochs_per_round=length,
                rewind=rewind,
                criterion=criterion,
                directory=directory,
                **options,
            )

        callback = self.survive(make, make(None).epochs + extra, at)
        if callback is None:
            assert round((1 - sparsity) * self.size) > self.kept()
            return
        masks = [
            {self.paths().index(p): m for p, m in t.masks.items()}
            for t in callback.tickets
        ]
        assert len(masks) == rounds
        for later in masks:
            self.check_nested(later)
            self.masks = {i: np.array(m) for i, m in later.items()}
        self.check_count(self.masks, sparsity)
        self.know(callback.ticket)

    @rule(
        sparsity=sparsities,
        begin=st.integers(0, 3),
        length=st.integers(1, 5),
        every=st.none() | st.integers(1, 3),
        count_from=st.sampled_from(["fit", "optimizer"]),
        at=some_deaths,
    )
    def draw_gradually(
        self,
        sparsity: float,
        begin: int,
        length: int,
        every: int | None,
        count_from: str,
        at: list[Death],
    ) -> None:
        if count_from == "optimizer":
            begin += int(self.model.optimizer.iterations)

        def make(directory: Path | None) -> Any:
            return C.GradualPruning(
                target_sparsity=sparsity,
                begin_step=begin,
                end_step=begin + length,
                every=every,
                count_from=count_from,
                directory=directory,
            )

        callback = self.survive(make, 4, at)
        if callback is None:
            assert round((1 - sparsity) * self.size) > self.kept()
            return
        found = self.attached()
        self.check_nested(found)
        self.check_count(found, sparsity)
        self.masks = found
        assert callback.ticket.kept == sum(int(m.sum()) for m in found.values())

    @precondition(lambda self: self.kind in ("dense", "nested"))
    @rule(
        sparsity=st.floats(0.1, 0.8),
        stop=st.booleans(),
        at=some_deaths,
    )
    def draw_channels(
        self, sparsity: float, stop: bool, at: list[Death]
    ) -> None:
        def make(directory: Path | None) -> Any:
            return C.EarlyBird(
                [sparsity, 0.5 * sparsity],
                window=2,
                epsilon=0.5,
                stop=stop,
                slimming=0.01,
                directory=directory,
            )

        assert self.survive(make, 4, at) is not None

    def survive(
        self,
        make: Callable[[Path | None], Any],
        epochs: int,
        at: list[Death],
    ) -> Any:
        """Train unbroken, and broken; the model is what the latter left.

        Returns:
            The callback that ended; `None` where it was refused.
        """
        self.held.clear()
        start = State(self)
        whole = make(None)
        model = start.build()
        try:
            self.fit(model, epochs, [whole])
        except ValueError as error:
            assert "Received" in str(error)
            give_back(model)
            return None
        directory, used = self.path(), [self.model, model]
        for death in at:
            self.model = start.build()
            used.append(self.model)
            try:
                self.fit(self.model, epochs, death.among(make(directory)))
            except (Stop, KeyboardInterrupt):
                pass
        last = make(directory)
        self.model = start.build()
        self.fit(self.model, epochs, [last])
        Attack.resumed += 1
        for one, other in zip(ended(model), ended(self.model), strict=True):
            assert same(one, other), (one, other)
        assert told(whole) == told(last)
        for one in used:
            give_back(one)
        self.dirty = False
        check_undone(self.model)
        return last

    @rule(
        sparsity=st.floats(0.2, 0.8),
        mask=st.sampled_from(["threshold", "top_k"]),
        exact=st.booleans(),
        rate=st.sampled_from(["code", "paper"]),
        every=st.integers(1, 2),
        at=some_deaths,
    )
    def mine(
        self,
        sparsity: float,
        mask: str,
        exact: bool,
        rate: str,
        every: int,
        at: list[Death],
    ) -> None:
        """Train scores over the weights; the ticket is one for the model."""
        self.held.clear()
        state, directory = State(self), self.path()
        options = {"mask": mask, "sparsity": sparsity}
        if mask == "threshold":
            options = {"mask": mask}

        def miner() -> tuple[keras.Model, list[str]]:
            model = state.build()
            made = tt.supermask(model, seed=3, **options)
            made.compile(
                keras.optimizers.SGD(0.1, momentum=0.9),
                "mse",
                run_eagerly=self.how != "traced",
            )
            made.optimizer.build(made.trainable_variables)
            if self.how == "quick":
                made.train_step = functools.partial(quick_step, made)
            paths = [v.path for v in model.weights]
            give_back(model)
            return made, paths

        def make(directory: Path | None) -> Any:
            return C.IterativeFreezing(
                sparsity,
                every=every,
                exact=exact,
                rate=rate,
                directory=directory,
            )

        whole, _ = miner()
        self.fit(whole, 4, [make(None)])
        for death in at:
            broken, _ = miner()
            try:
                self.fit(broken, 4, death.among(make(directory)))
            except (Stop, KeyboardInterrupt):
                pass
        broken, paths = miner()
        self.fit(broken, 4, [make(directory)])
        Attack.resumed += 1
        for one, other in zip(ended(whole), ended(broken), strict=True):
            assert same(one, other)
        which = "effective" if mask == "top_k" else "frozen"
        try:
            ticket = tt.Ticket.from_supermask(broken, which)
        except ValueError:
            # Equal scores at a threshold go together, all of them if need be.
            assert not exact
            return
        known = self.know(ticket, paths)
        if exact and mask == "threshold":
            self.check_count(known.masks, sparsity)

    # Files and copies.

    @precondition(lambda self: self.tickets)
    @rule(which=st.integers(0, 9), how=st.sampled_from(["file", "pickle"]))
    def save_ticket(self, which: int, how: str) -> None:
        known = self.tickets[which % len(self.tickets)]
        if how == "file":
            known.ticket.save(self.path())
            loaded = tt.Ticket.load(self.folder / str(self.files))
        else:
            loaded = pickle.loads(pickle.dumps(copy.deepcopy(known.ticket)))
        self.tickets.append(dataclasses.replace(known, ticket=loaded))

    @rule()
    def save_weights(self) -> None:
        path = self.path().with_suffix(".weights.h5")
        self.model.save_weights(path)
        self.saved.append((path, self.kind, self.values()))

    @precondition(lambda self: self.saved)
    @rule(which=st.integers(0, 9), assigned=st.booleans())
    def load_weights(self, which: int, assigned: bool) -> None:
        """It goes past the masks: they hold again after the next step."""
        path, _, values = self.saved[which % len(self.saved)]
        if assigned:
            self.model.set_weights(values)
        else:
            self.model.load_weights(path)
        assert all(map(same, values, self.values()))
        self.dirty = any(values[i][~m].any() for i, m in self.masks.items())

    @rule()
    def save_model(self) -> None:
        """A loaded model has its zeros and no masks."""
        before, slots = self.values(), len(self.model.optimizer.variables)
        path = self.path().with_suffix(".keras")
        self.model.save(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model = keras.models.load_model(path)
        if self.how == "quick":
            self.model.train_step = functools.partial(quick_step, self.model)
        assert len(self.model.optimizer.variables) == slots
        assert all(map(same, before, self.values()))
        self.masks, self.dirty = {}, False
        self.held.clear()

    @rule()
    def renumber(self) -> None:
        """The same model in another process."""
        self.held.clear()
        before, self.model = self.model, State(self).build()
        give_back(before)

    @rule(optimizer=st.sampled_from(sorted(OPTIMIZERS)))
    def recompile(self, optimizer: str) -> None:
        self.optimizer = optimizer
        self.model.compile(
            OPTIMIZERS[optimizer](),
            "mse",
            run_eagerly=self.how != "traced",
        )
        self.model.optimizer.build(self.model.trainable_variables)
        self.model.made = self.kind, optimizer, self.how
        self.held.clear()

    # What must hold after every step.

    @invariant()
    def all_agree(self) -> None:
        self.check_tickets()
        if hasattr(self, "model"):
            self.check_masks()
            self.check_constraints()
            if not self.dirty:
                self.check_zeros()
                self.check_averages()

    def check_masks(self) -> None:
        found = self.attached()
        assert found.keys() == self.masks.keys()
        for i, mask in self.masks.items():
            assert same(found[i], mask), i

    def check_zeros(self) -> None:
        for i, mask in self.masks.items():
            pruned = self.model.weights[i].numpy()[~mask]
            assert not pruned.any(), i
            assert not np.signbit(pruned).any(), i

    def check_averages(self) -> None:
        """The average of a pruned weight brings nothing back."""
        optimizer = self.model.optimizer
        if not optimizer.use_ema or not int(optimizer.iterations):
            return
        averages = optimizer._model_variables_moving_average
        for variable, average in zip(
            optimizer._trainable_variables, averages, strict=True
        ):
            constraint = variable.constraint
            if isinstance(constraint, masking.MaskConstraint):
                mask = constraint.mask.numpy().astype(bool)
                assert not average.numpy()[~mask].any(), variable.path

    def check_tickets(self) -> None:
        """They hold what they held."""
        for known in self.tickets:
            masks = list(known.ticket.masks.values())
            assert all(map(same, masks, known.masks.values()))
            if known.weights is not None:
                weights = known.ticket.weights.values()
                assert all(map(same, weights, known.weights.values()))

    def check_constraints(self) -> None:
        """Those that are not ours stay, and ours go."""
        if self.held:
            return
        for v in self.model.weights:
            constraint = v.constraint
            if isinstance(constraint, masking.MaskConstraint):
                constraint = constraint.inner
            own = self.kind == "dense" and tuple(v.shape) == (5, 3)
            wanted = keras.constraints.MaxNorm if own else type(None)
            assert isinstance(constraint, wanted), constraint
