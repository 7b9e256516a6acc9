"""Keras's callbacks and iterative pruning: inside a round, and beside it."""

import csv
import warnings

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests.callbacks.conftest import fresh, traced
from tests.conftest import DieAt, batches, mlp
from tf_tickets import masking
from tf_tickets.callbacks.rounds import history_row
from tf_tickets.selection import named_weights

C = keras.callbacks
IMP = tt.callbacks.IterativeMagnitudePruning

# What a person who knows them would give to one training of three epochs.
# Each stops, saves, reduces or swaps in every round.
CALLBACKS = {
    "EarlyStopping": lambda d: C.EarlyStopping(
        "loss", mode="max", min_delta=1e3, patience=1,
        restore_best_weights=True,
    ),
    "ModelCheckpoint": lambda d: C.ModelCheckpoint(
        d / "best.weights.h5", "loss", save_best_only=True,
        save_weights_only=True,
    ),
    "LearningRateScheduler": lambda d: C.LearningRateScheduler(
        lambda epoch, lr: lr * (1.0, 0.5, 0.1)[epoch]
    ),
    "ReduceLROnPlateau": lambda d: C.ReduceLROnPlateau(
        "loss", mode="max", min_delta=1e3, patience=1, factor=0.5
    ),
    "SwapEMAWeights": lambda d: C.SwapEMAWeights(swap_on_epoch=True),
    "SwapEMAWeights_in_tests": lambda d: C.SwapEMAWeights(),
    "TensorBoard": lambda d: C.TensorBoard(d / "board"),
    "CSVLogger": lambda d: C.CSVLogger(d / "log.csv"),
}  # fmt: skip


def small(data):
    return batches(data[0][:32], data[1][:32])


def kernels(model):
    return [model.get_layer(name).kernel for name in ("hidden", "head")]


def by_hand(model, start, callback, data, keeps, **fit):
    """A `fit` for each round, pruned and set back with NumPy in between."""
    logs, masks = [], [np.ones(k.shape, bool) for k in kernels(model)]
    for keep in keeps:
        history = model.fit(
            small(data), epochs=3, verbose=0, callbacks=[callback], **fit
        )
        names = [n for n in history.history if n not in ("round", "sparsity")]
        logs += [
            {n: history.history[n][i] for n in names}
            for i in range(len(history.epoch))
        ]
        size = np.concatenate(
            [
                np.where(m, np.abs(k.numpy()), -1).ravel()
                for k, m in zip(kernels(model), masks, strict=True)
            ]
        )
        kept = np.zeros(size.size, bool)
        kept[np.argsort(-size, kind="stable")[:keep]] = True
        parts = np.split(kept, [masks[0].size])
        masks = [p.reshape(m.shape) for p, m in zip(parts, masks, strict=True)]
        start.restore(model)
        masking.enforce(
            model,
            {k.path: m for k, m in zip(kernels(model), masks, strict=True)},
        )
        if isinstance(callback, C.SwapEMAWeights):
            callback._ema_weights_in_model = False
    return logs, masks


# Each callback, each mode, and what writes weights by two ways to step.
@pytest.mark.parametrize(
    ("mode", "name"),
    [
        *(("plain", name) for name in CALLBACKS),
        ("xla", "EarlyStopping"),
        ("xla", "SwapEMAWeights"),
        ("two_steps", "ModelCheckpoint"),
        ("two_steps", "SwapEMAWeights_in_tests"),
    ],
)
def test_inside_a_round_it_does_what_it_does_in_a_fit(
    mode, name, data, tmp_path
):
    model, start = fresh(mode), traced(mode)[1]
    masking.enforce(model, {k.path: np.ones(k.shape) for k in kernels(model)})
    (tmp_path / "hand").mkdir()
    keras.utils.set_random_seed(1)
    expected, masks = by_hand(
        model, start, CALLBACKS[name](tmp_path / "hand"), data, [48, 24],
        validation_data=small(data),
    )  # fmt: skip

    model = fresh(mode)
    saved = []
    spy = C.LambdaCallback(
        on_epoch_end=lambda e, logs: saved.append(
            (logs["loss"], model.get_weights())
        )
    )
    imp = IMP(
        target_sparsity=0.75, rounds=2, epochs_per_round=3,
        round_callbacks=[CALLBACKS[name](tmp_path), spy],
    )  # fmt: skip
    keras.utils.set_random_seed(1)
    history = model.fit(
        small(data), epochs=imp.epochs, verbose=0, callbacks=[imp],
        validation_data=small(data),
    )  # fmt: skip

    # Every epoch of every round is that of a training of its own.
    found = history.history
    assert len(history.epoch) == len(expected)
    for i, logs in enumerate(expected):
        for key, value in logs.items():
            assert found[key][i] == pytest.approx(value, rel=1e-5), (i, key)
    lengths = [row["epochs"] for row in imp.history]
    assert lengths == ([2, 2] if name == "EarlyStopping" else [3, 3])
    assert found["round"] == [1] * lengths[0] + [2] * lengths[1]
    assert found["sparsity"] == [0.0] * lengths[0] + [0.5] * lengths[1]
    # The tickets are drawn from what it left, and the model is rewound.
    for mine, theirs in zip(imp.ticket.masks.values(), masks, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert imp.ticket.kept == 24
    for path, value in start.weights_of(model).items():
        np.testing.assert_array_equal(
            named_weights(model)[path].numpy(),
            value * imp.ticket.masks.get(path, 1),
        )
    if name == "ModelCheckpoint":
        # The file holds the best epoch of all rounds, as it was trained.
        model.load_weights(tmp_path / "best.weights.h5")
        _, best = min(saved, key=lambda pair: pair[0])
        for a, b in zip(model.get_weights(), best, strict=True):
            np.testing.assert_array_equal(a, b)
    if name == "CSVLogger":
        with open(tmp_path / "log.csv") as file:
            rows = list(csv.DictReader(file))
        assert [row["round"] for row in rows] == ["1"] * 3 + ["2"] * 3
        assert [row["sparsity"] for row in rows] == ["0.0"] * 3 + ["0.5"] * 3
        assert [float(r["loss"]) for r in rows] == found["loss"]
    if name == "TensorBoard":
        assert any((tmp_path / "board" / "train").iterdir())


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        *(("plain", name) for name in CALLBACKS),
        ("xla", "SwapEMAWeights"),
        ("two_steps", "EarlyStopping"),
    ],
)
def test_beside_it_one_warning_says_where_to_put_it(mode, name, data, tmp_path):
    model = fresh(mode)
    imp = IMP(target_sparsity=0.75, rounds=2, epochs_per_round=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(
            small(data), epochs=imp.epochs, verbose=0,
            callbacks=[CALLBACKS[name](tmp_path), imp]
            if name != "LearningRateScheduler"
            else [imp, C.LearningRateScheduler(lambda epoch: 0.1)],
        )  # fmt: skip
    said = [
        str(w.message) for w in caught if "round_callbacks" in str(w.message)
    ]
    if name in ("TensorBoard", "CSVLogger"):
        assert not said
    else:
        (message,) = said
        assert message.startswith(f"{name.split('_')[0]} beside")
    if name == "EarlyStopping":
        assert "Training ended in round" in str(caught[-1].message)
    else:
        assert imp.ticket.kept == 24
    for path, mask in imp.tickets[-1].masks.items():
        assert not named_weights(model)[path].numpy()[~mask].any()


def test_a_scheduler_that_asks_for_the_epoch_of_the_schedule_is_right(data):
    model = fresh("plain")
    imp = IMP(target_sparsity=0.75, rounds=2, epochs_per_round=2)
    ask = C.LearningRateScheduler(
        lambda e, lr: 0.1 / (1 + imp.schedule_epoch(e))
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*round_callbacks")
        found = model.fit(
            small(data), epochs=imp.epochs, verbose=0, callbacks=[ask, imp]
        ).history
    np.testing.assert_allclose(found["learning_rate"], [0.1, 0.05] * 2)


class Stops(C.Callback):
    """Stops each round after its second epoch; sees what it is told."""

    def __init__(self, said, in_batch=False):
        super().__init__()
        self.said, self.in_batch = said, in_batch

    def on_train_begin(self, logs=None):
        self.said.append(self.params["epochs"])

    def on_epoch_begin(self, epoch, logs=None):
        self.said.append(epoch)
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        self.model.stop_training |= self.in_batch and self.epoch == 2

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training |= epoch == 2

    def on_train_end(self, logs=None):
        self.said.append("end")


@pytest.mark.parametrize("in_batch", [False, True])
def test_what_stops_ends_the_round_and_the_run_ends_with_the_last(
    in_batch, data
):
    model, numbers, said = fresh("plain"), [], []
    imp = IMP(
        target_sparsity=0.75, rounds=2, epochs_per_round=5, rewind_epoch=1,
        round_callbacks=lambda n: numbers.append(n) or [Stops(said, in_batch)],
    )  # fmt: skip
    history = model.fit(small(data), epochs=9, verbose=0, callbacks=[imp])
    assert said == [5, 0, 1, 2, "end", 5, 1, 2, "end"]
    assert numbers == [1, 2] and len(history.epoch) == 5
    assert imp.found_at == [3, 5]
    assert [row["epochs"] for row in imp.history] == [3, 2]
    assert [imp.schedule_epoch(e) for e in range(7)] == [0, 1, 2, 1, 2, 1, 2]
    assert imp.ticket.kept == 24

    # Epochs asked for beyond the rounds are a training of the ticket.
    model, said[:] = fresh("plain"), []
    imp = IMP(
        target_sparsity=0.75, rounds=1, epochs_per_round=5,
        round_callbacks=[Stops(said)],
    )  # fmt: skip
    history = model.fit(small(data), epochs=7, verbose=0, callbacks=[imp])
    assert said == [5, 0, 1, 2, "end", 2, 0, 1, "end"]
    assert history.history["round"] == [1, 1, 1, 2, 2]
    assert int(model.optimizer.iterations.numpy()) == 2 * 2


@pytest.mark.parametrize("rewind", ["weights", None])
def test_a_run_with_rounds_that_end_early_goes_on(rewind, data, tmp_path):
    def run(name, die_at=None, extra=0):
        model = fresh("plain")
        (tmp_path / name).mkdir(exist_ok=True)
        imp = IMP(
            target_sparsity=0.875, rounds=3, epochs_per_round=4, rewind=rewind,
            directory=tmp_path / name,
            round_callbacks=[
                CALLBACKS["EarlyStopping"](tmp_path),
                CALLBACKS["ReduceLROnPlateau"](tmp_path),
                # The best is in the first round, which the last process of
                # a broken run has not seen.
                C.ModelCheckpoint(
                    tmp_path / name / "best.weights.h5", "sparsity",
                    mode="min", save_best_only=True, save_weights_only=True,
                ),
                CALLBACKS["CSVLogger"](tmp_path / name),
            ],
        )  # fmt: skip
        history = C.History()
        try:
            model.fit(
                small(data), epochs=imp.epochs + extra, verbose=0,
                callbacks=[imp, history, DieAt(die_at)],
            )  # fmt: skip
        except KeyboardInterrupt:
            return None
        return imp, model.get_weights(), history.epoch

    whole, weights, epochs = run("whole")
    assert epochs == [0, 1, 2, 3, 4, 5] and whole.found_at == [2, 4, 6]
    for die_at in (1, 3):
        run("killed", die_at)
    resumed, again, epochs = run("killed")
    assert epochs == [2, 3, 4, 5] and resumed.found_at == [2, 4, 6]
    assert resumed.ticket.hamming_distance(whole.ticket) == 0
    for a, b in zip(weights, again, strict=True):
        np.testing.assert_array_equal(a, b)
    model = fresh("plain")
    best = []
    for name in ("whole", "killed"):
        model.load_weights(tmp_path / name / "best.weights.h5")
        best.append(model.get_weights())
    for a, b in zip(*best, strict=True):
        np.testing.assert_array_equal(a, b)
    # The rows of a round that was broken off are gone.
    logs = [
        (tmp_path / name / "log.csv").read_text()
        for name in ("whole", "killed")
    ]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == 7
    # A finished run has nothing left to train but what is asked beyond it.
    _, done, epochs = run("killed")
    assert epochs == []
    for a, b in zip(weights, done, strict=True):
        np.testing.assert_array_equal(a, b)
    assert run("killed", extra=2)[2] == [6, 7]


@pytest.mark.parametrize(
    "given, message",
    [
        (C.EarlyStopping(), "must be a list"),
        (["early"], "must be a list"),
        ([IMP(target_sparsity=0.5, epochs_per_round=1)], "a run of its own"),
        ([C.BackupAndRestore("backup")], "a run of its own"),
    ],
)
def test_what_cannot_live_in_a_round_is_refused(given, message):
    with pytest.raises(ValueError, match=f"{message}.*Received"):
        IMP(target_sparsity=0.5, epochs_per_round=1, round_callbacks=given)


@pytest.mark.parametrize("order", [1, -1])
def test_metrics_stand_beside_the_sparsity_they_were_measured_at(
    order, data, tmp_path
):
    model = fresh("plain")
    imp = IMP(target_sparsity=0.75, rounds=2, epochs_per_round=1)
    log = C.CSVLogger(tmp_path / "log.csv")
    beside = [tt.callbacks.SparsityLogger(per_layer=True), imp, log]
    found = model.fit(
        small(data), epochs=3, verbose=0, callbacks=beside[::order]
    ).history
    assert found["round"] == [1, 2, 3]
    assert found["sparsity"] == [0.0, 0.5, 0.75]
    assert found["sparsity/mlp/hidden/kernel"][0] == 0
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["sparsity"]) for row in rows] == [0.0, 0.5, 0.75]
    assert [row["sparsity"] for row in imp.history] == [0.5, 0.75]


@pytest.mark.parametrize("order", [1, -1])
def test_masks_hold_after_what_others_write_when_training_ends(order, data):
    model = fresh("plain")
    dense = model.get_weights()
    careless = C.LambdaCallback(on_train_end=lambda _: model.set_weights(dense))
    imp = IMP(target_sparsity=0.75, rounds=2, epochs_per_round=1)
    model.fit(
        small(data), epochs=2, verbose=0, callbacks=[imp, careless][::order]
    )
    for path, mask in imp.ticket.masks.items():
        assert not named_weights(model)[path].numpy()[~mask].any()
    given = C.CallbackList([imp, careless], add_history=True, model=model,
                           epochs=2)  # fmt: skip
    for _ in range(2):  # a list can be used again
        given.on_train_begin()
        assert len(given.callbacks) == 5
        with pytest.warns(UserWarning, match="ended in round 1"):
            given.on_train_end()
        assert given.callbacks[:2] == [imp, careless]
        assert len(given.callbacks) == 3


def test_two_that_draw_are_refused_before_training(data):
    def gradual():
        return tt.callbacks.GradualPruning(
            target_sparsity=0.5, end_step=4, every=1
        )

    def rounds():
        return IMP(target_sparsity=0.5, epochs_per_round=1)

    model = fresh("plain")
    ticket = tt.prune(model, 0.5)
    before = model.get_weights()
    enforce = tt.callbacks.EnforceTicket
    for both, message in (
        ([gradual(), rounds()], "draws masks of its own"),
        ([rounds(), gradual()], "draws masks of its own"),
        ([rounds(), rounds()], "draws masks of its own"),
        ([rounds(), enforce(ticket)], "list EnforceTicket before"),
    ):
        with pytest.raises(ValueError, match=f"{message}.*Received"):
            model.fit(small(data), verbose=0, callbacks=both)
        for a, b in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    imp = IMP(target_sparsity=0.75, epochs_per_round=1)
    model.fit(small(data), verbose=0, callbacks=[enforce(ticket), imp])
    assert imp.history[0]["trained_sparsity"] == 0.5
    imp = IMP(target_sparsity=0.875, epochs_per_round=1)
    model.fit(small(data), verbose=0, callbacks=[imp, enforce()])
    assert imp.ticket.kept == 12


def test_a_row_has_the_last_and_the_best_of_every_metric():
    row = history_row(
        [
            {"loss": 3.0, "val_accuracy": 0.2},
            {"loss": 1.0, "val_accuracy": 0.9},
            {"loss": 2.0, "val_accuracy": 0.5},
        ]
    )
    assert row == {
        "loss": 2.0,
        "best_loss": 1.0,
        "val_accuracy": 0.5,
        "best_val_accuracy": 0.9,
    }


def test_rows_take_what_logs_may_hold(data, tmp_path):
    row = history_row(
        [
            {"loss": 1.0, "f1": np.array([0.5, 1]), "tag": "a", "late": None},
            {"loss": np.nan, "f1": np.array([0, 1]), "tag": "b", "late": 3},
            {"loss": 2.0, "f1": np.array([0, 0.5]), "tag": "c", "late": None,
             "what": object()},
        ]
    )  # fmt: skip
    assert row == {
        "loss": 2.0, "best_loss": 1.0, "f1": [0.0, 0.5], "tag": "c",
    }  # fmt: skip
    model = mlp(hidden=8)
    model.compile(
        "adam", "mse",
        metrics=[
            keras.metrics.F1Score(),
            keras.metrics.PearsonCorrelation(name="pearson"),
            keras.metrics.TruePositives(name="tp"),
        ],
    )  # fmt: skip
    imp = IMP(
        target_sparsity=0.5, rounds=2, epochs_per_round=3, directory=tmp_path
    )
    found = model.fit(
        data[0], keras.utils.to_categorical(data[1], 4), epochs=6, verbose=0,
        callbacks=[imp],
    ).history  # fmt: skip
    for number, row in enumerate(imp.history):
        part = slice(3 * number, 3 * number + 3)
        assert len(row["f1_score"]) == 4 and "best_f1_score" not in row
        for name, pick in (("loss", min), ("pearson", max), ("tp", max)):
            assert row[f"best_{name}"] == pick(found[name][part])


def test_filters_are_part_of_a_run(data, tmp_path):
    def imp(filters):
        return IMP(
            target_sparsity=0.5, epochs_per_round=1, directory=tmp_path,
            filters=filters,
        )  # fmt: skip

    fresh("plain").fit(small(data), verbose=0, callbacks=[imp("hidden")])
    with pytest.raises(ValueError, match="filters.*'hidden', 'head'"):
        imp("head")
    with pytest.raises(ValueError, match="filters.*'hidden', None"):
        imp(None)
    assert imp("hidden").ticket.kept == 32


def test_another_first_epoch_than_the_run_had_is_named(data, tmp_path):
    def fit(initial_epoch, die_at=None):
        imp = IMP(
            target_sparsity=0.5, rounds=2, epochs_per_round=1,
            directory=tmp_path,
        )  # fmt: skip
        fresh("plain").fit(
            small(data), initial_epoch=initial_epoch, epochs=3, verbose=0,
            callbacks=[imp, DieAt(die_at)],
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        fit(0, die_at=0)
    with pytest.raises(ValueError, match="call fit with initial_epoch=0"):
        fit(1)
    fit(0)
