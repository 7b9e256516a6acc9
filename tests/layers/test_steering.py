"""A steered score penalty: the controller, whole trainings, what is refused."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests.conftest import DieAt, batches, compiled, two_replicas
from tests.gallery import mlp
from tf_tickets.callbacks import IterativeFreezing
from tf_tickets.layers import Supermask, steering
from tf_tickets.selection import values_of

JIT = pytest.mark.parametrize("jit_compile", [False, True])


def next_by_hand(penalty, error, before, speed):
    """The rule of the module's docstring, in double precision."""
    change = 8.0 * (error - before) + 16.0 * speed * error
    return np.clip(penalty * np.exp(np.clip(change, -1.0, 0.3)), 1e-9, 1e3)


class Watch(keras.callbacks.Callback):
    """Scores and λ after every batch, λ alone after every epoch."""

    def __init__(self):
        super().__init__()
        self.scores, self.penalties = [], []

    def on_train_batch_end(self, batch, logs=None):
        supermask = self.model.supermask
        self.scores.append(values_of(supermask.scores))
        self.penalties.append(supermask.score_penalty())


def mine(
    data,
    epochs=10,
    *,
    sparsity=0.8,
    every=2,
    optimizer=None,
    callbacks=(),
    model=None,
    how=None,
    directory=None,
    **options,
):
    miner = compiled(
        tt.supermask(model or mlp(), **options),
        optimizer or keras.optimizers.SGD(0.5, momentum=0.9),
        **(how or {}),
    )
    freezing = IterativeFreezing(sparsity, every=every, directory=directory)
    history = miner.fit(
        batches(*data) if isinstance(data, tuple) else data,
        epochs=epochs,
        verbose=0,
        callbacks=[freezing, *callbacks],
    ).history
    return miner, history


# The controller.


@JIT
def test_penalty_follows_the_rule_on_a_stream_of_densities(jit_compile):
    rng = np.random.default_rng(0)
    owner = keras.layers.Layer()
    steered, other = (steering.variables(owner.add_weight) for _ in range(2))
    shapes = [(40, 5), (300,)]
    scores = [owner.add_weight(shape=s, initializer="zeros") for s in shapes]
    kept = [owner.add_weight(shape=s, dtype="bool") for s in shapes]
    total, start, slope, speed = 500, np.log(0.4), -0.02, 0.03
    steered.penalty.assign(2e-4)
    steered.error.assign(0.1)
    steered.goal.assign([start, slope, speed])

    @tf.function(jit_compile=jit_compile)
    def step():
        steering.advance([steered, other], scores, kept)

    step()  # it is held
    assert float(steered.penalty) == pytest.approx(2e-4)
    assert float(steered.error) == pytest.approx(0.1)

    steered.steps.assign(0.0)
    penalty, before, counts = 2e-4, 0.1, []
    for i in range(60):
        # Empty masks, full ones and everything between.
        p = rng.uniform(size=total) ** rng.choice([0.0, 0.5, 2.0, 99.0])
        q = rng.uniform(size=total) < rng.uniform()
        for variable, flat, cuts in (
            *zip(scores, np.split(p, [200]), shapes, strict=True),
            *zip(kept, np.split(q, [200]), shapes, strict=True),
        ):
            variable.assign(flat.reshape(cuts))
        count = (q & (p.astype(np.float32) > 0.5)).sum()
        counts.append(count)
        error = np.log(max(count, 0.5) / total) - (start + i * slope)
        penalty = next_by_hand(penalty, error, before, speed)
        before = error
        step()
        assert float(steered.penalty) == pytest.approx(penalty, rel=1e-4)
        assert float(other.penalty) == float(steered.penalty)
    assert min(counts) == 0 and max(counts) > 300
    assert float(steered.steps) == 60


def test_penalty_rises_while_the_density_is_above_its_goal_and_does_not_fall():
    rng = np.random.default_rng(0)
    n = 2000
    penalty = np.exp(rng.uniform(np.log(2e-9), np.log(5e2), n))
    error, fall = rng.uniform(1e-3, 5, n), rng.uniform(0, 2, n)
    speed = np.exp(rng.uniform(-9, 0, n))
    penalty, error, fall, speed = (
        a.astype(np.float32) for a in (penalty, error, fall, speed)
    )

    def after(e, before):
        return np.array(steering.next_penalty(penalty, e, before, speed))

    assert (after(error, error - fall) > penalty).all()
    assert (after(-error, fall - error) < penalty).all()
    # On its way with the goal, a density needs no other λ; and it rises by a
    # third at most, but can fall by two.
    np.testing.assert_array_equal(after(0 * error, 0 * error), penalty)
    for e in (error, -error):
        ratio = after(e, e + rng.normal(size=n).astype(np.float32)) / penalty
        assert 1 < ratio.max() < 1.36 and 1 > ratio.min() > 0.36


@pytest.mark.parametrize("steps", [300, 3000, 60_000])
@pytest.mark.parametrize("right", [1e-7, 1e-5, 1e-3, 1e-1])
def test_any_plant_that_lambda_drives_is_brought_to_its_goal(steps, right):
    """Its logarithm falls in proportion to λ, and with the lag of momentum."""
    fall = np.log(0.5 / 0.0144)
    speed = (fall + 0.5) / (0.8 * steps)
    density = penalty = motion = 0.0
    penalty, errors, before = steering.START, [], 0.0
    for i in range(steps):
        goal = -fall * min(i / (0.8 * steps), 1.0)
        error = density - goal
        penalty = next_by_hand(penalty, error, before, speed)
        before = error
        # At λ = `right` it falls as fast as the goal; without one it rises.
        push = fall / (0.8 * steps) * (penalty - 0.1 * right) / right
        motion = 0.9 * motion + 0.1 * push
        density = min(density - motion, 0.0)
        errors.append(error)
    assert np.abs(errors).max() < 0.9
    # λ has been found, and the goal is kept to the hundredth ...
    assert np.abs(errors[steps // 2 : steps * 8 // 10]).mean() < 0.01
    # ... until it stops, where momentum carries the density on.
    assert np.abs(errors[steps * 8 // 10 :]).max() < 0.25


def test_a_new_training_forgets_how_the_density_moved_but_not_lambda():
    miner = tt.supermask(mlp())
    state = miner.supermask.state.steering
    helm = steering.Helm(miner, [miner.supermask])
    for penalty, kept in ((0.0, steering.START), (0.25, 0.25)):
        state.penalty.assign(penalty)
        state.error.assign(9.0)
        helm.start(density=0.5, goal=0.25)
        assert float(state.error) == pytest.approx(np.log(2))
        assert helm.penalty == pytest.approx(kept)


# Whole trainings.


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_trajectory_is_that_of_a_miner_in_numpy(optimizer, monkeypatch):
    monkeypatch.setattr(steering, "START", 0.02)  # felt from the start
    rng = np.random.default_rng(3)
    x = rng.normal(size=(80, 20)).astype("float32")
    y = (x @ rng.normal(size=(20, 10))).argmax(1)
    model = keras.Sequential(
        [keras.Input((20,)), keras.layers.Dense(10, use_bias=False)]
    )
    epochs, steps, density = 7, 5, 0.1
    watch = Watch()
    made = {
        "sgd": lambda: keras.optimizers.SGD(0.3, momentum=0.9),
        "adam": lambda: keras.optimizers.Adam(0.02),
    }[optimizer]()
    miner = compiled(tt.supermask(model), made)
    _, weights, scores = miner.supermask.ticket_parts()
    (w,), (p,) = weights.values(), scores.values()
    history = miner.fit(
        batches(x, y), epochs=epochs, verbose=0,
        callbacks=[IterativeFreezing(1 - density, every=2), watch],
    ).history  # fmt: skip

    # The same, by hand.
    first = (p > 0.5).mean()
    fall = np.log(first / density)
    speed = (fall + 0.5) / (0.8 * epochs * steps)
    q, m, v = np.ones(w.shape, bool), np.zeros(w.shape), np.zeros(w.shape)
    penalty, before, t = 0.02, 0.0, 0
    for epoch in range(epochs):
        for i in range(steps):
            t += 1
            # Straight from one epoch's goal to the next one's.
            ends = [
                fall * max(1 - e / (0.8 * epochs), 0)
                for e in (epoch, epoch + 1)
            ]
            goal = np.log(density) + ends[0] + (ends[1] - ends[0]) * i / steps
            error = np.log((q & (p > 0.5)).mean()) - goal
            penalty = next_by_hand(penalty, error, before, speed)
            before = error
            rows = slice(16 * i, 16 * i + 16)
            z = x[rows] @ (w * q * (p > 0.5))
            z = np.exp(z - z.max(1, keepdims=True))
            z = z / z.sum(1, keepdims=True) - np.eye(10)[y[rows]]
            g = w * q * (x[rows].T @ z / 16) + 2 * penalty * p
            if optimizer == "sgd":
                m = 0.9 * m - 0.3 * g
                p = p + m
            else:
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
                rate = 0.02 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
                p = p - rate * m / (np.sqrt(v) + 1e-7)
            p = np.clip(p, 0, 1).astype(np.float32)
            (found,) = watch.scores[t - 1].values()
            np.testing.assert_allclose(found, p, atol=2e-5)
            assert watch.penalties[t - 1] == pytest.approx(penalty, rel=2e-3)
        if epoch in (2, 4, 6):
            share = density ** (epoch / 6)
            lowest = np.argsort(-np.where(q, p, -1), axis=None, kind="stable")
            q = np.zeros(q.size, bool)
            q[lowest[: round(200 * share)]] = True
            q = q.reshape(w.shape)
        assert history["density_frozen"][epoch] == pytest.approx(q.mean())
        if epoch < epochs - 1:
            assert history["density_effective"][epoch] == pytest.approx(
                (q & (p > 0.5)).mean()
            )
    (mask,) = miner.supermask.masks().values()
    np.testing.assert_array_equal(mask, q)
    assert max(watch.penalties) > 1.2 * min(watch.penalties)


HOW = {
    "xla": {"jit_compile": True},
    "several steps a call": {"steps_per_execution": 3},
    "two replicas": {},
}


@pytest.fixture(scope="module")
def plain():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(128, 8)).astype("float32")
    data = x, (x @ rng.normal(size=(8, 4))).argmax(1)
    return data, *mine(data, model=net())


def net():
    """With nothing random in training, so that replicas can agree."""
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(4),
        ]
    )


@pytest.mark.parametrize("how", HOW)
def test_however_steps_run_the_penalty_takes_the_same_way(how, plain):
    data, reference, expected = plain
    scope = (
        two_replicas().scope()
        if how == "two replicas"
        else contextlib.nullcontext()
    )
    with scope:
        miner, history = mine(data, model=net(), how=HOW[how])
    for name in ("score_penalty", "density_effective", "density_frozen"):
        np.testing.assert_allclose(history[name], expected[name], rtol=0.02)
    assert len(set(history["score_penalty"])) == 10
    for a, b in zip(
        reference.supermask.masks().values(),
        miner.supermask.masks().values(),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_one_trace_serves_all_values_of_lambda(data):
    traces = []

    def loss(y, logits):
        traces.append(1)
        return keras.losses.sparse_categorical_crossentropy(
            y, logits, from_logits=True
        )

    miner = tt.supermask(mlp())
    miner.compile(keras.optimizers.SGD(0.5, momentum=0.9), loss)
    for sparsity in (0.5, 0.8):
        miner.fit(
            batches(*data), epochs=4, verbose=0,
            callbacks=[IterativeFreezing(sparsity, every=1)],
        )  # fmt: skip
    before = miner.supermask.score_penalty()
    assert 0 < before != steering.START
    # And without the callback λ stays, in the same trace.
    miner.fit(batches(*data), verbose=0)
    assert miner.supermask.score_penalty() == before
    assert len(traces) <= 2  # one to build, one to run


def test_a_killed_run_goes_on_as_if_it_had_not_been(data, tmp_path):
    """Nor does the number of steps, which nobody knows, get lost."""

    def run(name, die_at=None):
        with contextlib.suppress(KeyboardInterrupt):
            return mine(
                batches(*data).filter(lambda *_: True),
                directory=tmp_path / name,
                callbacks=[DieAt(die_at)],
                model=net(),
            )

    whole, expected = run("whole")
    assert float(whole.supermask.state.steering.goal[2]) > 0  # it is known now
    run("killed", 5)
    miner, history = run("killed")
    for name in ("score_penalty", "density_effective", "density_frozen"):
        assert history[name] == expected[name][5:]
    for a, b in zip(whole.weights, miner.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_files_hold_the_penalty_and_a_copy_trains_on(data, tmp_path):
    miner, _ = mine(data, model=net())
    miner.save(tmp_path / "miner.keras")
    copy = keras.models.load_model(tmp_path / "miner.keras")
    miner.save_weights(tmp_path / "miner.weights.h5")
    twin = tt.supermask(net(), seed=5)
    twin.load_weights(tmp_path / "miner.weights.h5")
    penalty = miner.supermask.score_penalty()
    for one in (copy, twin):
        assert one.supermask.score_penalty() == penalty > 0
    for one in (miner, copy, twin):
        compiled(one, keras.optimizers.SGD(0.5, momentum=0.9)).fit(
            batches(*data), epochs=3, verbose=0,
            callbacks=[IterativeFreezing(0.9, every=1)],
        )  # fmt: skip
    for one in (copy, twin):
        for a, b in zip(miner.weights, one.weights, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_layers_wrapped_one_by_one_share_lambda_and_the_target(data):
    def build():
        return keras.Sequential(
            [
                keras.Input((8,)),
                Supermask(keras.layers.Dense(32, activation="relu")),
                Supermask(keras.layers.Dense(4)),
            ]
        )

    miner = compiled(build(), keras.optimizers.SGD(0.5, momentum=0.9))
    history = miner.fit(
        batches(*data), epochs=10, verbose=0,
        callbacks=[IterativeFreezing(0.8, every=2)],
    ).history  # fmt: skip
    ticket = tt.Ticket.from_supermask(miner)
    assert ticket.kept == round(0.2 * 384)
    low, high = sorted(ticket.densities().values())
    assert low < 0.2 < high  # the density of all is steered, not of each
    assert len({layer.score_penalty() for layer in miner.layers}) == 1
    assert miner.layers[0].score_penalty() == history["score_penalty"][-1] > 0


@pytest.mark.parametrize(
    "mask, penalty", [("threshold", "l1"), ("random", "l2")]
)
def test_the_budget_is_filled_up_with_what_freezing_left(mask, penalty, data):
    class Before(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.scores = values_of(self.model.supermask.scores)

    before = Before()
    miner = compiled(
        tt.supermask(mlp(), mask=mask, penalty=penalty),
        keras.optimizers.SGD(0.5, momentum=0.9),
    )
    history = miner.fit(
        batches(*data), epochs=10, verbose=0,
        callbacks=[before, IterativeFreezing(0.9, every=2)],
    ).history  # fmt: skip
    effective, frozen = (
        miner.supermask.masks(which) for which in ("effective", "frozen")
    )
    assert history["density_effective"][-1] == 38 / 384
    for key, q in frozen.items():
        np.testing.assert_array_equal(effective[key], q)
        p, now = before.scores[key], miner.supermask.scores[key].numpy()
        lifted = q & (p <= 0.5)
        np.testing.assert_array_equal(now[~lifted], p[~lifted])
        np.testing.assert_allclose(now[lifted], 0.5, rtol=1e-6)


# The real thing.


def digits():
    from sklearn.datasets import load_digits

    source = load_digits()
    order = np.random.default_rng(0).permutation(len(source.target))
    x = (source.images.reshape(-1, 64)[order] / 16 - 0.3).astype("float32")
    y = source.target[order]
    return (x[:1280], y[:1280]), (x[1280:], y[1280:])


def accuracy(model, x, y):
    return (np.argmax(model(x), axis=1) == y).mean()


def test_rates_far_apart_find_gems_on_digits_and_their_place_matters():
    train, test = digits()
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(128, activation="relu", use_bias=False),
            keras.layers.Dense(64, activation="relu", use_bias=False),
            keras.layers.Dense(10, use_bias=False),
        ]
    )
    size = 64 * 128 + 128 * 64 + 64 * 10
    train = batches(*train, size=64).cache()
    before = {}
    for rate in (0.5, 50.0):
        miner, history = mine(
            train, 20, sparsity=0.97, model=model,
            optimizer=keras.optimizers.SGD(
                keras.optimizers.schedules.CosineDecay(rate, 400), momentum=0.9
            ),
        )  # fmt: skip
        gem = tt.Ticket.from_supermask(miner)
        assert gem.kept == round(0.03 * size)
        # It was there before freezing and filling up had to help.
        assert history["density_effective"][-2] > 0.7 * 0.03
        before[rate] = accuracy(miner, *test)
    assert min(before.values()) > 0.3, before  # by chance 0.1

    after = {}
    compiled(model, keras.optimizers.Adam(2e-3))
    for name, ticket in (("gem", gem), ("shuffled", gem.shuffle(seed=1))):
        keras.utils.set_random_seed(0)
        ticket.apply(model)
        for slot in model.optimizer.variables[2:]:
            slot.assign(0 * slot)
        model.optimizer.iterations.assign(0)
        model.fit(train, epochs=4, verbose=0)
        after[name] = accuracy(model, *test)
    assert after["gem"] > after["shuffled"] + 0.05, after


# What is refused, and what goes without.


def test_auto_without_the_callback_is_refused_before_training(data):
    miner = compiled(tt.supermask(mlp(), score_penalty="auto"))
    with pytest.raises(ValueError, match="IterativeFreezing.*no callback"):
        miner.fit(batches(*data), verbose=0)
    assert miner.optimizer.iterations == 0
    miner.evaluate(*data, verbose=0)  # but it computes


def test_no_penalty_named_and_no_callback_is_none(data):
    miner = compiled(tt.supermask(mlp()), keras.optimizers.SGD(0.5))
    none = compiled(
        tt.supermask(mlp(), score_penalty=0.0), keras.optimizers.SGD(0.5)
    )
    for one in (miner, none):
        one.fit(batches(*data), epochs=2, verbose=0)
    for a, b in zip(
        miner.trainable_weights, none.trainable_weights, strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert miner.supermask.score_penalty() == 0
    # A step that was traced without is traced anew with the callback.
    miner.fit(
        batches(*data), epochs=4, verbose=0,
        callbacks=[IterativeFreezing(0.8, every=1)],
    )  # fmt: skip
    assert miner.supermask.score_penalty() > steering.START


@pytest.mark.parametrize(
    "options, message",
    [
        ({"score_penalty": "automatic"}, "'auto' or a number"),
        (
            {"score_penalty": "auto", "mask": "top_k", "sparsity": 0.5},
            "of a 'top_k' mask is given",
        ),
        ({"score_penalty": True}, "at least 0"),
    ],
    ids=str,
)
def test_bad_penalties_are_refused(options, message):
    with pytest.raises(ValueError, match=f"{message}.*Received: "):
        tt.supermask(mlp(), **options)


def test_auto_without_a_target_is_refused(data):
    miner = compiled(tt.supermask(mlp(), score_penalty="auto"))
    with pytest.raises(ValueError, match="`target_sparsity` is needed"):
        miner.fit(
            batches(*data), verbose=0, callbacks=[IterativeFreezing(every=1)]
        )


def test_a_number_is_not_steered(data):
    miner, history = mine(data, score_penalty=1e-4)
    assert "score_penalty" not in history
    assert miner.supermask.score_penalty() == 1e-4
    assert (
        tt.supermask(
            mlp(), mask="top_k", sparsity=0.5
        ).supermask.score_penalty()
        == 0
    )
