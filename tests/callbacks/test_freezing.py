"""Iterative freezing: the published rates, exact counts, what stays frozen."""

import contextlib
import math
import warnings

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests import gallery
from tests.conftest import DieAt, batches, compiled, mlp
from tf_tickets.callbacks import IterativeFreezing, freezing_rate
from tf_tickets.selection import values_of

# Epochs, period, density, and the rates of the published code and the paper.
RATES = [
    (150, 5, 0.0144, 0.13604, 0.13182),
    (150, 5, 0.0059, 0.16221, 0.15726),
    (150, 5, 0.0372, 0.10729, 0.10391),
    (150, 8, 0.50, 0.03778, 0.03629),
    (300, 5, 0.0144, 0.06935, 0.06824),
    (300, 5, 0.05, 0.04951, 0.04870),
]


class Watch(keras.callbacks.Callback):
    """Scores and masks at both ends of every epoch, past the freezing."""

    def __init__(self):
        super().__init__()
        self.scores, self.kept, self.effective = [], [], []

    def on_epoch_end(self, epoch, logs=None):
        supermask = self.model.supermask
        flat = {
            "scores": values_of(supermask.scores),
            "effective": supermask.masks(),
        }
        if supermask.options.mask != "top_k":
            flat["kept"] = supermask.masks("frozen")
        for name, arrays in flat.items():
            getattr(self, name).append(
                np.concatenate([a.ravel() for a in arrays.values()])
            )


def mine(data, epochs, freezing, *, optimizer=None, **options):
    miner = compiled(
        tt.supermask(mlp(), **options),
        optimizer or keras.optimizers.SGD(0.5, momentum=0.9),
    )
    watch = Watch()
    history = miner.fit(
        batches(*data), epochs=epochs, verbose=0, callbacks=[freezing, watch]
    ).history
    return miner, watch, history


class EveryStep(keras.callbacks.Callback):
    """Scores after every batch."""

    def __init__(self):
        super().__init__()
        self.scores = []

    def on_train_batch_end(self, batch, logs=None):
        self.scores.append(values_of(self.model.supermask.scores))


def step_by_hand(x, y, weights, scores, kept, velocity, penalty):
    """One step of Gem-Miner on a network of two layers, in NumPy.

    SGD at rate 0.5 with momentum 0.9 on the loss + λ Σ p², straight through
    the rounding, then into [0, 1].
    """
    w1, w2 = (
        w * q * (p > 0.5) for w, q, p in zip(weights, kept, scores, strict=True)
    )
    hidden = np.tanh(x @ w1)
    z = hidden @ w2
    slope = np.exp(z - z.max(1, keepdims=True))
    slope = slope / slope.sum(1, keepdims=True) - np.eye(3)[y]
    slope /= len(x)
    slopes = x.T @ (slope @ w2.T * (1 - hidden**2)), hidden.T @ slope
    for i, g in enumerate(slopes):
        # Frozen scores are penalized as well.
        g = g * weights[i] * kept[i] + 2 * penalty * scores[i]
        velocity[i] = 0.9 * velocity[i] - 0.5 * g
        scores[i] = np.clip(scores[i] + velocity[i], 0, 1)


def freeze_by_hand(scores, kept, share, density):
    """The lowest of both layers: a share as published, or to a density."""
    p, q = (np.concatenate([a.ravel() for a in one]) for one in (scores, kept))
    if density is None:
        unfrozen = np.sort(p[q])
        q &= p > unfrozen[math.ceil(share * unfrozen.size) - 1]
    else:
        order = np.argsort(-np.where(q, p, -1), kind="stable")
        q = np.zeros(q.size, bool)
        q[order[: round(density * q.size)]] = True
    ends = np.cumsum([a.size for a in scores])[:-1]
    return [
        a.reshape(b.shape)
        for a, b in zip(np.split(q, ends), scores, strict=True)
    ]


@pytest.mark.parametrize("exact", [True, False])
def test_a_short_mining_is_that_of_a_miner_in_numpy(exact):
    """The whole of the paper's algorithm 1, by the published times."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(48, 3)).astype("float32")
    y = np.abs(x).argmax(1)
    epochs, every, density, penalty = 7, 2, 0.25, 4e-3
    miner = compiled(
        tt.supermask(gallery.tiny(use_bias=False), score_penalty=penalty),
        keras.optimizers.SGD(0.5, momentum=0.9),
    )
    _, frozen, scores = miner.supermask.ticket_parts()
    scores = [p.astype("float64") for p in scores.values()]
    weights = [w.astype("float64") for w in frozen.values() if w.ndim > 1]
    for w in weights:  # ±√2/√fan_in
        np.testing.assert_allclose(np.abs(w), np.sqrt(2 / len(w)), rtol=1e-6)
    assert all(((p >= 0) & (p <= 1)).all() for p in scores)
    watch, steps = Watch(), EveryStep()
    freezing = IterativeFreezing(1 - density, every=every, exact=exact)
    history = miner.fit(
        batches(x, y), epochs=epochs, verbose=0,
        callbacks=[freezing, watch, steps],
    ).history  # fmt: skip

    kept = [np.ones(w.shape, bool) for w in weights]
    velocity = [np.zeros(w.shape) for w in weights]
    found = iter(steps.scores)
    count = (epochs - 1) // every
    for epoch in range(epochs):
        for i in (0, 16, 32):
            rows = slice(i, i + 16)
            step_by_hand(
                x[rows], y[rows], weights, scores, kept, velocity, penalty
            )
            for ours, theirs in zip(scores, next(found).values(), strict=True):
                np.testing.assert_allclose(ours, theirs, atol=2e-5)
        if epoch and epoch % every == 0:
            kept = freeze_by_hand(
                scores,
                kept,
                1 - density ** (1 / count),
                density ** (epoch // every / count) if exact else None,
            )
        flat = np.concatenate([q.ravel() for q in kept])
        np.testing.assert_array_equal(watch.kept[epoch], flat)
        above = np.concatenate([p.ravel() > 0.5 for p in scores])
        np.testing.assert_array_equal(watch.effective[epoch], flat & above)
        assert history["density_frozen"][epoch] == pytest.approx(flat.mean())
    assert any(((p == 0) | (p == 1)).any() for p in scores)


@pytest.mark.parametrize("epochs, every, density, code, paper", RATES)
def test_rates_equal_the_published_table(epochs, every, density, code, paper):
    for rate, expected in (("code", code), ("paper", paper)):
        found = freezing_rate(
            1 - density, epochs=epochs, every=every, rate=rate
        )
        assert round(found, 5) == expected


@pytest.mark.parametrize("rate", ["code", "paper"])
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("mask", ["threshold", "random"])
def test_each_freeze_takes_the_lowest_scores_and_ends_at_the_target(
    mask, scope, rate, data
):
    epochs, every, density = 8, 2, 0.05
    _, watch, history = mine(
        data,
        epochs,
        IterativeFreezing(
            1 - density, every=every, exact=True, rate=rate, scope=scope
        ),
        mask=mask,
        score_penalty=1e-4,
    )
    sizes = [8 * 32, 32 * 4]
    kept = np.ones(sum(sizes), bool)
    before = 1.0
    frozen_at = []
    for epoch, (scores, q) in enumerate(
        zip(watch.scores, watch.kept, strict=True)
    ):
        assert not (q & ~kept).any()  # what is frozen stays frozen
        if (q != kept).any():
            frozen_at.append(epoch)
            # Nothing that was frozen now scores above what was left.
            parts = (
                [slice(None)]
                if scope == "global"
                else [slice(0, sizes[0]), slice(sizes[0], None)]
            )
            for part in parts:
                gone = scores[part][kept[part] & ~q[part]]
                assert gone.max() <= scores[part][q[part]].min()
            expected = freezing_rate(
                1 - density, epochs=epochs, every=every, rate=rate
            )
            if not (rate == "paper" and epoch == epochs - 1):
                assert 1 - q.mean() / before == pytest.approx(
                    expected, abs=2 / kept.sum()
                )
        kept, before = q, q.mean()
        assert history["density_frozen"][epoch] == pytest.approx(q.mean())
        assert history["density_effective"][epoch] == pytest.approx(
            watch.effective[epoch].mean()
        )
        np.testing.assert_array_equal(
            watch.effective[epoch], q & (scores > 0.5)
        )
    assert frozen_at == {"code": [2, 4, 6], "paper": [1, 3, 5, 7]}[rate]
    assert kept.sum() == round(density * kept.size)


def test_inverted_freezing_takes_the_highest_scores(data):
    _, watch, _ = mine(
        data,
        6,
        IterativeFreezing(0.7, every=2, invert=True),
        scores="uniform",
        optimizer=keras.optimizers.SGD(0.01),
    )
    kept = np.ones_like(watch.kept[0])
    for scores, q in zip(watch.scores, watch.kept, strict=True):
        gone = scores[kept & ~q]
        assert not gone.size or gone.min() >= scores[q].max()
        kept = q
    assert kept.sum() == round(0.3 * kept.size)
    with pytest.raises(ValueError, match="top-k mask keeps.*invert=True"):
        mine(
            data,
            6,
            IterativeFreezing(0.7, every=2, invert=True),
            mask="top_k",
            sparsity=0.7,
        )


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_without_exact_ties_at_the_threshold_all_go_as_published(scope, data):
    def published(scores, kept, rate):
        """The published rule, on one list of scores."""
        unfrozen = np.sort(scores[kept])
        threshold = unfrozen[math.ceil(rate * unfrozen.size) - 1]
        return kept & (scores > threshold)

    epochs, every, target = 7, 2, 0.8
    _, watch, _ = mine(
        data,
        epochs,
        IterativeFreezing(target, every=every, exact=False, scope=scope),
        scores="bernoulli",
        optimizer=keras.optimizers.SGD(1e-4),
    )
    rate = freezing_rate(target, epochs=epochs, every=every)
    kept = np.ones(384, bool)
    for epoch in range(epochs):
        if epoch and epoch % every == 0:
            scores = watch.scores[epoch]
            if scope == "global":
                kept = published(scores, kept, rate)
            else:
                kept = np.concatenate(
                    [
                        published(scores[:256], kept[:256], rate),
                        published(scores[256:], kept[256:], rate),
                    ]
                )
        np.testing.assert_array_equal(watch.kept[epoch], kept)
    assert 0 < kept.mean() <= 0.2  # the target is the most that remains


def test_ties_at_zero_freeze_far_more_than_asked_unless_exact(data):
    def density_after_one_freeze(exact):
        _, watch, _ = mine(
            data,
            3,
            IterativeFreezing(0.2, every=2, exact=exact),
            scores=tt.layers.Bernoulli(0.6, seed=1),
            optimizer=keras.optimizers.SGD(0.0),
        )
        return watch.kept[-1].mean()

    assert density_after_one_freeze(True) == round(0.8 * 384) / 384
    assert density_after_one_freeze(False) < 0.65


def test_a_run_that_is_resumed_reaches_the_target(data):
    miner = compiled(tt.supermask(mlp()), keras.optimizers.SGD(0.5))
    for start, stop in ((0, 4), (4, 8)):
        miner.fit(
            batches(*data),
            initial_epoch=start,
            epochs=stop,
            verbose=0,
            callbacks=[IterativeFreezing([0.5, 0.9][start // 4], every=2)],
        )
        kept = [q.sum() for q in miner.supermask.masks("frozen").values()]
        assert sum(kept) == round([0.5, 0.1][start // 4] * 384)


@pytest.mark.parametrize("exact", [True, False])
def test_a_penalty_that_kills_every_weight_is_caught(exact, data):
    freezing = IterativeFreezing(0.9, every=3, exact=exact)
    with pytest.warns(UserWarning, match="keeps no weight"):
        miner, watch, history = mine(
            data, 30, freezing, score_penalty=10.0, scores="constant"
        )
    assert freezing.collapsed
    assert len(history["loss"]) < 30  # the search stopped
    assert history["density_effective"][-1] == 0
    assert history["density_frozen"][-1] == round(0.1 * 384) / 384
    ticket = tt.Ticket.from_supermask(miner, "frozen")
    assert ticket.kept == round(0.1 * 384)
    with pytest.raises(ValueError, match="mask='frozen'"):
        tt.Ticket.from_supermask(miner)


@pytest.mark.parametrize("scores", ["zeros", keras.initializers.Constant(0.5)])
def test_a_mask_without_a_weight_is_met_before_training(scores, data):
    with pytest.raises(ValueError, match="No score is above the threshold"):
        mine(data, 4, IterativeFreezing(0.5, every=1), scores=scores)


def test_scores_that_are_all_alike_part_in_the_first_steps(data):
    """Just above ½: every weight is in the mask, and every score moves."""
    freezing = IterativeFreezing(0.5, every=2)
    miner, watch, history = mine(
        data, 6, freezing, scores="constant", score_penalty="auto"
    )
    assert not freezing.collapsed
    for mask in tt.Ticket.from_supermask(miner).masks.values():
        assert 0 < mask.mean() < 1


def test_a_tie_of_all_scores_freezes_everything_and_is_caught(data):
    with pytest.warns(UserWarning, match="keeps no weight"):
        _, watch, _ = mine(
            data,
            4,
            IterativeFreezing(0.5, every=1, exact=False),
            scores="ones",
            optimizer=keras.optimizers.SGD(0.0),
        )
    assert watch.kept[-1].sum() == 0


def test_both_finetunings_have_their_mask_and_the_frozen_weights(data):
    model = mlp()
    miner = compiled(
        tt.supermask(model, score_penalty=1e-3),
        keras.optimizers.SGD(0.5, momentum=0.9),
    )
    miner.fit(
        batches(*data),
        epochs=6,
        verbose=0,
        callbacks=[IterativeFreezing(0.8, every=1)],
    )
    unflagged = tt.Ticket.from_supermask(miner, "frozen")
    ticket = tt.Ticket.from_supermask(miner)
    assert unflagged.kept == round(0.2 * 384) >= ticket.kept
    for key, mask in ticket.masks.items():
        np.testing.assert_array_equal(
            mask, unflagged.masks[key] & (ticket.scores[key] > 0.5)
        )
        fan_in = mask.shape[0]
        np.testing.assert_allclose(
            np.abs(ticket.weights[key]), np.sqrt(2 / fan_in), rtol=1e-6
        )
    # And `model` trains under it, as if nothing had been frozen.
    ticket.apply(model)
    compiled(model, "adam").fit(batches(*data), verbose=0)
    kernel = model.get_layer("hidden").kernel
    mask = ticket.masks[kernel.path]
    assert (kernel.numpy()[~mask] == 0).all()
    assert (kernel.numpy() != ticket.weights[kernel.path])[mask].any()


ABLATIONS = {
    # Table 3 of the paper: what the supermask is, and whether it is gradual.
    "edge-popup": ({"scope": "layer"}, False),
    "global": ({"scope": "global"}, False),
    "gradual": ({"scope": "global"}, True),
    "regularized": ({"scope": "global", "score_penalty": 1e-4}, True),
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_the_ablations_of_edge_popup_end_at_the_target(name, data):
    options, gradual = ABLATIONS[name]
    epochs, every, sparsity = 9, 2, 0.9
    freezing = IterativeFreezing(every=every)
    miner = compiled(
        tt.supermask(mlp(), mask="top_k", sparsity=sparsity, **options),
        keras.optimizers.SGD(0.1, momentum=0.9),
    )
    history = miner.fit(
        batches(*data),
        epochs=epochs,
        verbose=0,
        callbacks=[freezing] if gradual else [],
    ).history
    ticket = tt.Ticket.from_supermask(miner)
    assert ticket.kept == round(0.1 * 384)
    if options["scope"] == "layer":
        assert (
            max(
                abs(np.array(list(ticket.densities().values())) - 0.1)
                * [256, 128]
            )
            <= 1
        )
    if gradual:
        rate = freezing_rate(sparsity, epochs=epochs, every=every)
        expected = [
            max((1 - rate) ** (epoch // every), 1 - sparsity)
            for epoch in range(epochs)
        ]
        np.testing.assert_allclose(
            history["density_effective"], expected, atol=1 / 384
        )
        assert "density_frozen" not in history


def test_a_gradual_mask_chooses_anew_and_keeps_its_trace(data):
    traces = []

    def loss(y, logits):
        traces.append(1)
        return keras.losses.sparse_categorical_crossentropy(
            y, logits, from_logits=True
        )

    miner = tt.supermask(mlp(), mask="top_k", sparsity=0.9, scope="global")
    miner.compile(keras.optimizers.SGD(0.5), loss)
    watch = Watch()
    miner.fit(
        batches(*data),
        epochs=8,
        verbose=0,
        callbacks=[IterativeFreezing(every=1), watch],
    )
    assert len(traces) <= 2  # one to build, one to run
    revived = [
        (late & ~early).any()
        for early, late in zip(
            watch.effective, watch.effective[1:], strict=False
        )
    ]
    assert any(revived)


@pytest.mark.parametrize(
    "arguments",
    [
        {"target_sparsity": 1.0},
        {"target_sparsity": -0.1},
        {"target_sparsity": 0.5, "every": 0},
        {"target_sparsity": 0.5, "rate": "published"},
        {"target_sparsity": 0.5, "scope": "everywhere"},
        {"target_sparsity": 0.5, "scope": {"hidden": 0.5}},
        {"target_sparsity": 0.5, "scope": "erk", "exact": False},
    ],
    ids=str,
)
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="Received: "):
        IterativeFreezing(**arguments)


class Untouched(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        raise AssertionError("training has begun")


@pytest.mark.parametrize(
    "message, make, arguments",
    [
        ("needs supermasks", mlp, {"target_sparsity": 0.5}),
        (
            "`target_sparsity` is needed",
            lambda: tt.supermask(mlp()),
            {},
        ),
        (
            "No freeze fits",
            lambda: tt.supermask(mlp()),
            {"target_sparsity": 0.5, "every": 3},
        ),
        (
            "below the current sparsity",
            lambda: half_frozen(),
            {"target_sparsity": 0.3, "every": 1},
        ),
        (
            "must be no mapping",
            lambda: tt.supermask(mlp(), mask="top_k", scope={"kernel": 0.5}),
            {"target_sparsity": 0.5, "every": 1},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_work_is_refused_before_training(
    message, make, arguments, data
):
    with pytest.raises(ValueError, match=message):
        compiled(make()).fit(
            batches(*data),
            epochs=3,
            verbose=0,
            callbacks=[IterativeFreezing(**arguments), Untouched()],
        )


def half_frozen():
    miner = tt.supermask(mlp())
    miner.supermask.freeze(
        {
            key: np.arange(math.prod(score.shape)).reshape(score.shape) % 2 == 0
            for key, score in miner.supermask.scores.items()
        }
    )
    return miner


@pytest.mark.parametrize(
    "target, exact", [(0.8, True), (0.9, True), (0.8, False)]
)
def test_a_search_whose_target_is_reached_goes_on(
    target, exact, data, tmp_path
):
    """Whether the count of kept weights rounds down, 31.2, or up, 15.6."""

    def run(die_at=None, directory=tmp_path):
        miner = compiled(tt.supermask(mlp(13)), keras.optimizers.SGD(0.5))
        freezing = IterativeFreezing(
            target, every=1, exact=exact, directory=directory
        )
        with contextlib.suppress(KeyboardInterrupt):
            miner.fit(
                batches(*data), epochs=5, verbose=0,
                callbacks=[freezing, DieAt(die_at)],
            )  # fmt: skip
        return miner

    sizes = 8 * 13 + 13 * 4
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Training ended")
        run(4)
        miner = run()
        kept = tt.Ticket.from_supermask(miner, "frozen").kept
        assert kept == round((1 - target) * sizes) or not exact
        if exact:  # a new run on a miner that has its target
            miner.fit(
                batches(*data), epochs=2, verbose=0,
                callbacks=[IterativeFreezing(target, every=1)],
            )  # fmt: skip
            again = tt.Ticket.from_supermask(miner, "frozen").kept
            assert again == kept


def test_freezes_that_no_epoch_is_left_for_are_said(data):
    miner = compiled(tt.supermask(mlp()))
    with pytest.raises(ValueError, match="No freeze .* left.*from epoch 3"):
        miner.fit(
            batches(*data), initial_epoch=3, epochs=4, verbose=0,
            callbacks=[IterativeFreezing(0.5, every=2)],
        )  # fmt: skip

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    with pytest.warns(UserWarning, match="before the last freeze.*0.5"):
        miner.fit(
            batches(*data), epochs=4, verbose=0,
            callbacks=[IterativeFreezing(0.5, every=2), Stop()],
        )  # fmt: skip


@pytest.mark.parametrize(
    "options, arguments",
    [
        ({"score_penalty": 1e-3}, {"target_sparsity": 0.9}),
        # Another beginning would give these freezes another rate.
        (
            {"score_penalty": 1e-3},
            {"target_sparsity": 0.9, "rate": "paper"},
        ),
        ({"mask": "top_k", "sparsity": 0.9}, {}),
    ],
    ids=["threshold", "paper", "top_k"],
)
def test_a_search_that_died_goes_on_and_ends_like_one_that_lived(
    options, arguments, data, tmp_path
):
    def run(name, die_at=None):
        keras.utils.set_random_seed(4)
        miner = compiled(
            tt.supermask(mlp(), **options),
            keras.optimizers.SGD(0.5, momentum=0.9),
        )
        freezing = IterativeFreezing(
            every=2, directory=tmp_path / name, **arguments
        )
        try:
            history = miner.fit(
                batches(*data), epochs=9, verbose=0,
                callbacks=[freezing, DieAt(die_at)],
            )  # fmt: skip
        except KeyboardInterrupt:
            return None
        return history.epoch, tt.Ticket.from_supermask(miner)

    for die_at in (1, 5):  # before the first freeze, and between two
        assert run("killed", die_at) is None
    epochs, resumed = run("killed")
    assert epochs == [5, 6, 7, 8]
    _, whole = run("whole")
    assert resumed.hamming_distance(whole) == 0
    for path, score in whole.scores.items():
        np.testing.assert_array_equal(score, resumed.scores[path])
    assert abs(resumed.sparsity - 0.9) < 0.05


def by_size(shapes, density):
    return dict.fromkeys(shapes, density)


def by_name(shapes, density):
    return dict.fromkeys(sorted(shapes), density)


SCOPES = [by_size, by_name, tt.pruning.at_least(2), "layer"]


@pytest.mark.parametrize("scope", SCOPES)
def test_a_scope_is_part_of_what_a_run_is(scope, tmp_path):
    def search(scope, name):
        miner = compiled(tt.supermask(mlp()), keras.optimizers.SGD(0.1))
        freezing = IterativeFreezing(
            0.5, every=1, scope=scope, directory=tmp_path / name
        )
        freezing.set_model(miner)
        return freezing._run

    run = search(scope, "run")
    miner = mlp()
    run.save(miner, 1, {}, {})
    assert search(scope, "run").load() is not None
    for other in SCOPES:
        if other is not scope:
            with pytest.raises(ValueError, match="other arguments.*scope"):
                search(other, "run").load()
