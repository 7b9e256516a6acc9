"""Iterative magnitude pruning in one fit equals its hand-written cycles."""

import errno
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests.callbacks.conftest import fresh
from tests.conftest import (
    DieAt,
    ZerosHold,
    batches,
    compiled,
    mlp,
    two_replicas,
)
from tf_tickets import archive
from tf_tickets.callbacks.rounds import RoundPlan
from tf_tickets.selection import named_weights

IMP = tt.callbacks.IterativeMagnitudePruning
SGD = keras.optimizers.SGD


def state(model):
    return {
        **{f"m:{v.path}": v.numpy().copy() for v in model.variables},
        **{f"o:{v.path}": v.numpy().copy() for v in model.optimizer.variables},
    }


def imp_by_hand(model, data, keep_counts, epochs):
    """Train, prune, reset, written out with NumPy and get/set_weights."""
    variables = [*model.variables, *model.optimizer.variables]
    start = [v.numpy().copy() for v in variables]
    kernels = [model.get_layer(n).kernel for n in ("hidden", "head")]
    masks = [np.ones(k.shape, bool) for k in kernels]
    all_masks = []

    class Zero(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            for kernel, mask in zip(kernels, masks, strict=True):
                kernel.assign(kernel.numpy() * mask)

    for keep in keep_counts:
        model.fit(batches(*data), epochs=epochs, verbose=0, callbacks=[Zero()])
        size = np.concatenate(
            [
                np.where(m, np.abs(k.numpy()), -1).ravel()
                for k, m in zip(kernels, masks, strict=True)
            ]
        )
        kept = np.zeros(size.size, bool)
        kept[np.argsort(-size, kind="stable")[:keep]] = True
        parts = np.split(kept, [masks[0].size])
        masks[:] = [
            p.reshape(m.shape) for p, m in zip(parts, masks, strict=True)
        ]
        all_masks.append([m.copy() for m in masks])
        for variable, value in zip(variables, start, strict=True):
            variable.assign(value)
        for kernel, mask in zip(kernels, masks, strict=True):
            kernel.assign(kernel.numpy() * mask)
    return all_masks


@pytest.mark.parametrize(
    "make_optimizer",
    [lambda: SGD(0.1, momentum=0.9), lambda: keras.optimizers.Adam(0.01)],
)
def test_rounds_in_one_fit_equal_separate_cycles_by_hand(make_optimizer, data):
    keras.utils.set_random_seed(1)
    model = compiled(mlp(), make_optimizer())
    imp = IMP(target_sparsity=0.9, rounds=3, epochs_per_round=2)
    model.fit(batches(*data), epochs=imp.epochs, verbose=0, callbacks=[imp])

    keras.utils.set_random_seed(1)
    twin = compiled(mlp(), make_optimizer())
    twin.optimizer.build(twin.trainable_variables)
    total = 8 * 32 + 32 * 4
    counts = [round(total * 0.1 ** (r / 3)) for r in (1, 2, 3)]
    by_hand = imp_by_hand(twin, data, counts, epochs=2)

    for ticket, masks in zip(imp.tickets, by_hand, strict=True):
        for mine, theirs in zip(ticket.masks.values(), masks, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    mine, theirs = state(model).values(), state(twin).values()
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
def test_counts_are_exact_and_masks_nested(scope, data):
    model = compiled(mlp())
    imp = IMP(prune_fraction=0.3, rounds=4, epochs_per_round=1, scope=scope)
    model.fit(batches(*data), epochs=imp.epochs, verbose=0, callbacks=[imp])
    assert [t.kept for t in imp.tickets] == [
        round(384 * 0.7**r) for r in (1, 2, 3, 4)
    ]
    for wide, narrow in zip(imp.tickets, imp.tickets[1:], strict=False):
        for path in wide.masks:
            assert not (narrow.masks[path] & ~wide.masks[path]).any()


def test_the_state_after_a_weight_rewind_is_mask_times_snapshot(data):
    class AtEpoch(keras.callbacks.Callback):
        states = []

        def on_epoch_begin(self, epoch, logs=None):
            self.states.append(state(self.model))

    schedule = keras.optimizers.schedules.CosineDecay(0.1, 40)
    model = compiled(mlp(), SGD(schedule, momentum=0.9))
    imp = IMP(target_sparsity=0.8, rounds=2, epochs_per_round=3, rewind_epoch=1)
    assert imp.epochs == 3 + 2
    spy = AtEpoch()
    spy.states = []
    model.fit(
        batches(*data), epochs=imp.epochs, verbose=0, callbacks=[imp, spy]
    )
    at_rewind, second_round = spy.states[1], spy.states[3]
    for key, value in at_rewind.items():
        expected = value * imp.tickets[0].masks.get(key[2:], 1)
        np.testing.assert_array_equal(second_round[key], expected)
    (iteration,) = (k for k in at_rewind if k.endswith("/iteration"))
    assert at_rewind[iteration] == 4
    for key, value in state(model).items():  # rewound once more at the end
        expected = at_rewind[key] * imp.ticket.masks.get(key[2:], 1)
        np.testing.assert_array_equal(value, expected)
    for path, weight in imp.ticket.weights.items():
        np.testing.assert_array_equal(weight, at_rewind[f"m:{path}"])


@pytest.mark.parametrize("kind", ["learning_rate", None])
def test_other_rewinds_keep_weights_and_momentum(kind, data):
    states = {}

    class Around(keras.callbacks.Callback):
        def __init__(self, when):
            super().__init__()
            self.when = when

        def on_epoch_end(self, epoch, logs=None):
            states[self.when, epoch] = state(self.model)

    schedule = keras.optimizers.schedules.CosineDecay(0.1, 40)
    model = compiled(mlp(), SGD(schedule, momentum=0.9))
    point = {"rewind_epoch": 1} if kind else {}
    imp = IMP(
        target_sparsity=0.8, rounds=2, epochs_per_round=2, rewind=kind, **point
    )
    model.fit(
        batches(*data),
        epochs=imp.epochs,
        verbose=0,
        callbacks=[Around("before"), imp, Around("after")],
    )
    before, after = states["before", 1], states["after", 1]
    for key, value in before.items():
        if key.endswith("/iteration"):
            assert value == 8
            assert after[key] == (4 if kind else 8)
        else:
            expected = value * imp.tickets[0].masks.get(key[2:], 1)
            np.testing.assert_array_equal(after[key], expected)


@pytest.mark.parametrize("step", [0, 3, 6])
def test_a_rewind_step_is_a_count_of_training_steps(step, data):
    class AtStep(keras.callbacks.Callback):
        seen = {}

        def on_train_begin(self, logs=None):
            AtStep.seen = {0: state(self.model)}

        def on_train_batch_end(self, batch, logs=None):
            count = int(self.model.optimizer.iterations.numpy())
            AtStep.seen.setdefault(count, state(self.model))

    model = compiled(mlp(), SGD(0.1, momentum=0.9))
    model.optimizer.build(model.trainable_variables)
    imp = IMP(
        target_sparsity=0.5, rounds=1, epochs_per_round=2, rewind_step=step
    )
    model.fit(
        batches(*data), epochs=imp.epochs, verbose=0, callbacks=[imp, AtStep()]
    )
    for key, value in state(model).items():
        expected = AtStep.seen[step][key] * imp.ticket.masks.get(key[2:], 1)
        np.testing.assert_array_equal(value, expected)


def test_all_rounds_share_one_trace(data):
    traces = []

    def loss(y, logits):
        traces.append(1)
        return keras.losses.sparse_categorical_crossentropy(
            y, logits, from_logits=True
        )

    class Traces(keras.callbacks.Callback):
        counts = []

        def on_epoch_end(self, epoch, logs=None):
            self.counts.append(len(traces))

    model = mlp()
    model.compile("adam", loss)
    imp = IMP(target_sparsity=0.9, rounds=4, epochs_per_round=1)
    counter = Traces()
    counter.counts = []
    model.fit(
        batches(*data), epochs=imp.epochs, verbose=0, callbacks=[imp, counter]
    )
    model.fit(batches(*data), verbose=0)  # training the ticket, too
    assert len(traces) == counter.counts[0] > 0


@pytest.mark.parametrize(
    ("rewind", "strategy"),
    [
        ("weights", "none"),
        ("learning_rate", "none"),
        (None, "none"),
        ("weights", "mirrored"),
    ],
)
def test_zeros_hold_after_every_batch_of_every_round(rewind, strategy, data):
    class Held(keras.callbacks.Callback):
        batches = 0

        def on_train_batch_end(self, batch, logs=None):
            if imp.ticket:
                weights = named_weights(self.model)
                for path, mask in imp.ticket.masks.items():
                    assert (weights[path].numpy()[~mask] == 0).all()
                Held.batches += 1

    scope = two_replicas().scope if strategy == "mirrored" else tf.init_scope
    with scope():
        model = compiled(mlp(), keras.optimizers.AdamW(0.01, use_ema=True))
    imp = IMP(target_sparsity=0.9, rounds=3, epochs_per_round=1, rewind=rewind)
    Held.batches = 0
    model.fit(
        batches(*data), epochs=imp.epochs + 1, verbose=0,
        callbacks=[imp, Held()],
    )  # fmt: skip
    assert Held.batches == 3 * 4
    watch = ZerosHold(imp.ticket.masks)
    model.fit(batches(*data), verbose=0, callbacks=[watch])


@pytest.mark.parametrize("with_options", [False, True])
def test_a_criterion_scores_on_the_data_it_is_given(with_options, data):
    """One round of SNIP is `prune` on the trained weights."""
    model = compiled(mlp(), SGD(0.1))
    twin = compiled(mlp(), SGD(0.1))
    twin.set_weights(model.get_weights())
    options = (
        {"criterion": functools.partial(tt.pruning.snip, data=data)}
        if with_options
        else {"criterion": "snip", "data": data}
    )
    imp = IMP(target_sparsity=0.6, rounds=1, epochs_per_round=2, **options)
    model.fit(batches(*data), epochs=2, verbose=0, callbacks=[imp])
    tt.prune(twin, 0.0).apply(twin)
    twin.fit(batches(*data), epochs=2, verbose=0)
    expected = tt.prune(twin, 0.6, criterion="snip", data=data)
    assert imp.ticket.hamming_distance(expected) == 0
    magnitude = tt.prune(twin, 0.6)
    assert imp.ticket.hamming_distance(magnitude) > 0


def test_averaged_weights_do_not_overwrite_the_rewound_ticket(data):
    # fit ends by writing the averages, zero at the rewind point, over all.
    model = compiled(mlp(), SGD(0.1, use_ema=True))
    start = tt.Snapshot.take(model).weights_of(model)
    imp = IMP(target_sparsity=0.5, rounds=1, epochs_per_round=1)
    model.fit(batches(*data), epochs=1, verbose=0, callbacks=[imp])
    for path, variable in named_weights(model).items():
        expected = start[path] * imp.ticket.masks.get(path, 1)
        np.testing.assert_array_equal(variable.numpy(), expected)


def test_history_has_a_row_a_round(data):
    model = compiled(mlp())
    imp = IMP(target_sparsity=0.75, rounds=2, epochs_per_round=3)
    history = model.fit(
        batches(*data),
        validation_data=batches(*data),
        epochs=imp.epochs,
        verbose=0,
        callbacks=[imp],
    ).history
    assert [row["round"] for row in imp.history] == [1, 2]
    assert imp.found_at == [3, 6]
    assert [row["trained_sparsity"] for row in imp.history] == [0, 0.5]
    assert [row["sparsity"] for row in imp.history] == [0.5, 0.75]
    for i, row in enumerate(imp.history):
        part = slice(3 * i, 3 * i + 3)
        assert row["val_accuracy"] == history["val_accuracy"][part][-1]
        assert row["best_val_accuracy"] == max(history["val_accuracy"][part])
        assert row["best_val_loss"] == min(history["val_loss"][part])
        assert row["seconds"] > 0


def test_epochs_beyond_the_rounds_train_the_ticket(data):
    model = compiled(mlp(), SGD(0.1))
    imp = IMP(target_sparsity=0.5, rounds=1, epochs_per_round=1)
    model.fit(batches(*data), epochs=imp.epochs + 2, verbose=0, callbacks=[imp])
    assert int(model.optimizer.iterations.numpy()) == 2 * 4
    assert len(imp.history) == 1


def test_a_callback_can_be_used_again(data):
    imp = IMP(target_sparsity=0.5, rounds=2, epochs_per_round=1)
    for _ in range(2):
        model = compiled(mlp())
        model.fit(batches(*data), epochs=imp.epochs, verbose=0, callbacks=[imp])
        assert len(imp.tickets) == len(imp.history) == 2


def test_a_sparse_model_is_pruned_further(data):
    model = compiled(mlp())
    tt.prune(model, 0.5).apply(model)
    imp = IMP(target_sparsity=0.875, rounds=2, epochs_per_round=1)
    model.fit(batches(*data), epochs=imp.epochs, verbose=0, callbacks=[imp])
    assert [t.sparsity for t in imp.tickets] == [0.75, 0.875]
    with pytest.raises(ValueError, match="below the current sparsity"):
        again = IMP(target_sparsity=0.8, epochs_per_round=1)
        model.fit(batches(*data), verbose=0, callbacks=[again])


def test_a_mapping_sets_the_target_of_each_tensor(data):
    model = compiled(mlp())
    imp = IMP(rounds=2, epochs_per_round=1, scope={"hidden": 0.75, "head": 0.5})
    model.fit(batches(*data), epochs=imp.epochs, verbose=0, callbacks=[imp])
    assert [*imp.tickets[0].densities().values()] == [0.5, 91 / 128]
    assert [*imp.ticket.densities().values()] == [0.25, 0.5]


def test_schedules_set_by_epoch_can_be_rewound(data):
    imp = IMP(target_sparsity=0.5, rounds=3, epochs_per_round=3, rewind_epoch=1)
    seen = []
    schedule = keras.callbacks.LearningRateScheduler(
        lambda epoch, lr: seen.append(imp.schedule_epoch(epoch)) or 0.1
    )
    compiled(model := mlp()).fit(
        batches(*data), epochs=imp.epochs + 2, verbose=0,
        callbacks=[imp, schedule],
    )  # fmt: skip
    assert seen == [0, 1, 2, 1, 2, 1, 2, 1, 2]
    assert model.built


@pytest.mark.parametrize("rewind", ["weights", "learning_rate", None])
def test_a_run_that_died_goes_on_and_ends_like_one_that_lived(
    rewind, data, tmp_path
):
    def run(directory, die_at=None, **fit):
        keras.utils.set_random_seed(5)
        model = fresh("plain")
        imp = IMP(
            target_sparsity=0.9,
            rounds=3,
            epochs_per_round=2,
            rewind=rewind,
            directory=directory,
        )
        epochs = imp.epochs
        try:
            model.fit(
                batches(*data), epochs=epochs, verbose=0,
                callbacks=[imp, DieAt(die_at)],
            )  # fmt: skip
        except KeyboardInterrupt:
            return epochs
        return epochs, imp, model

    _, whole, model = run(tmp_path / "whole")
    expected = state(model)
    for die_at in (1, 3):  # in the first round, in the second
        assert run(tmp_path / "killed", die_at=die_at) == 6
    _, resumed, twin = run(tmp_path / "killed")
    assert len(resumed.history) == len(resumed.tickets) == 3
    assert resumed.ticket.hamming_distance(whole.ticket) == 0
    losses, again = (
        [row["loss"] for row in one.history] for one in (whole, resumed)
    )
    assert losses == again
    for a, b in zip(expected.values(), state(twin).values(), strict=True):
        np.testing.assert_array_equal(a, b)
    # A finished run has nothing left to train.
    _, done, model = run(tmp_path / "killed")
    assert done.ticket.hamming_distance(whole.ticket) == 0
    # ... and the next fit starts at its own first epoch.
    assert len(model.fit(batches(*data), verbose=0).epoch) == 1


def unnamed():
    """Layers that get other numbers each time they are made."""
    return compiled(
        keras.Sequential(
            [
                keras.Input((8,)),
                keras.layers.Dense(16, activation="relu"),
                keras.layers.Dense(4),
            ]
        ),
        SGD(0.1, momentum=0.9),
    )


def test_a_full_disk_stops_a_run_that_can_go_on(data, tmp_path, monkeypatch):
    def imp():
        return IMP(
            target_sparsity=0.5,
            rounds=2,
            epochs_per_round=1,
            directory=tmp_path / "run",
        )

    one = imp()
    real, calls = archive.write, []

    def write(*args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args, **options)

    monkeypatch.setattr(archive, "write", write)
    with pytest.raises(OSError, match="No space left"):
        compiled(mlp()).fit(
            batches(*data), epochs=one.epochs, verbose=0, callbacks=[one]
        )
    monkeypatch.undo()
    two = imp()
    compiled(mlp()).fit(
        batches(*data), epochs=two.epochs, verbose=0, callbacks=[two]
    )
    assert two.ticket.sparsity == 0.5


# With (3, 5) every ticket was drawn in a process of its own.
@pytest.mark.parametrize(
    ("deaths", "options"),
    [
        ((1,), {"rewind": "weights"}),
        ((3, 5), {"rewind": "weights"}),
        ((3, 5), {"rewind": "weights", "rewind_step": 0}),
        ((3, 5), {"rewind": "learning_rate"}),
        ((3, 5), {"rewind": None}),
    ],
    ids=str,
)
def test_layers_may_have_other_numbers_when_a_run_goes_on(
    deaths, options, data, tmp_path
):
    def fit(model, *more):
        imp = IMP(
            target_sparsity=0.75, rounds=3, epochs_per_round=2,
            directory=tmp_path, **options,
        )  # fmt: skip
        model.fit(batches(*data), epochs=6, verbose=0, callbacks=[imp, *more])
        return imp

    model = unnamed()
    start = model.get_weights()
    for die_at in deaths:
        with pytest.raises(KeyboardInterrupt):
            fit(model, DieAt(die_at))
        model = unnamed()
    imp = fit(model)
    assert [t.kept for t in imp.tickets] == [121, 76, 48]
    paths = {v.path for v in model.variables}
    for wide, narrow in zip(imp.tickets, imp.tickets[1:], strict=False):
        for path, mask in narrow.masks.items():
            assert path in paths
            assert not (mask & ~wide.masks[path]).any()
    if options["rewind"] == "weights":
        # Every ticket starts where the first process did.
        for ticket in imp.tickets:
            for value, weight in zip(
                start, ticket.weights.values(), strict=True
            ):
                np.testing.assert_array_equal(value, weight)


def test_a_directory_and_a_later_first_epoch_go_together(data, tmp_path):
    """As after a training that went before."""
    for die_at in (4, None):
        model = compiled(mlp(), SGD(0.1, momentum=0.9))
        imp = IMP(
            target_sparsity=0.75, rounds=2, epochs_per_round=2,
            directory=tmp_path,
        )  # fmt: skip
        history = keras.callbacks.History()
        try:
            model.fit(
                batches(*data), initial_epoch=1, epochs=5, verbose=0,
                callbacks=[imp, history, DieAt(die_at)],
            )  # fmt: skip
        except KeyboardInterrupt:
            assert history.epoch == [1, 2, 3]
    assert history.epoch == [3, 4] and imp.ticket.sparsity == 0.75


def test_backup_and_restore_stands_before_a_directory(data, tmp_path):
    class Die(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def run(name, order, *more):
        keras.utils.set_random_seed(5)
        model = fresh("plain")
        imp = IMP(
            target_sparsity=0.9,
            rounds=2,
            epochs_per_round=2,
            directory=tmp_path / name / "imp",
        )
        backup = keras.callbacks.BackupAndRestore(tmp_path / name / "backup")
        both = [backup, imp][::order]
        try:
            model.fit(
                batches(*data), epochs=imp.epochs, verbose=0,
                callbacks=[*both, *more],
            )  # fmt: skip
        except KeyboardInterrupt:
            return None
        return imp.ticket

    run("killed", 1, Die())
    resumed, whole = run("killed", 1), run("whole", 1)
    assert resumed.hamming_distance(whole) == 0
    run("wrong", -1, Die())
    with pytest.raises(ValueError, match="list it before"):
        run("wrong", -1)


def test_a_directory_of_another_run_is_refused(data, tmp_path):
    model = compiled(mlp())
    imp = IMP(target_sparsity=0.5, epochs_per_round=1, directory=tmp_path)
    model.fit(batches(*data), epochs=1, verbose=0, callbacks=[imp])
    with pytest.raises(ValueError, match=r"requested_sparsity.*0.5, 0.6"):
        IMP(target_sparsity=0.6, epochs_per_round=1, directory=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must be a directory"):
        IMP(
            target_sparsity=0.6, epochs_per_round=1,
            directory=tmp_path / "file",
        )  # fmt: skip


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "Give one of"),
        ({"target_sparsity": 0.5, "prune_fraction": 0.2}, "Give one of"),
        ({"target_sparsity": 0.5, "scope": {"a": 0.5}}, "Give one of"),
        ({"target_sparsity": 1.0}, "target_sparsity=1.0"),
        ({"target_sparsity": 0.0}, "target_sparsity=0.0"),
        ({"target_sparsity": 90}, "target_sparsity=90"),
        ({"prune_fraction": -0.2}, "prune_fraction=-0.2"),
        ({"target_sparsity": 0.5, "rounds": 0}, "rounds=0"),
        ({"target_sparsity": 0.5, "rounds": 2.5}, "rounds=2.5"),
        ({"target_sparsity": 0.5, "epochs_per_round": 0}, "epochs_per_round"),
        ({"target_sparsity": 0.5, "rewind": "epoch"}, "rewind='epoch'"),
        ({"target_sparsity": 0.5, "rewind_epoch": 2}, "inside a round"),
        ({"target_sparsity": 0.5, "rewind_epoch": -1}, "rewind_epoch=-1"),
        (
            {"target_sparsity": 0.5, "rewind_epoch": 1, "rewind_step": 3},
            "not both",
        ),
        (
            {"target_sparsity": 0.5, "rewind": None, "rewind_epoch": 1},
            "needs a rewind",
        ),
        ({"target_sparsity": 0.5, "criterion": "big"}, "criterion='big'"),
        ({"target_sparsity": 0.5, "scope": "net"}, "scope='net'"),
    ],
)
def test_bad_arguments_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        IMP(**{"epochs_per_round": 2, **options})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epochs": 3}, r"fit\(epochs=4\).*Received: epochs=3"),
        ({"epochs": 5, "initial_epoch": 2}, r"fit\(epochs=6\)"),
        ({"filters": "conv"}, "filters='conv'"),
        ({"rewind_step": 9}, "Received: rewind_step=9"),
        ({"rewind_step": 3, "steps_per_execution": 2}, "multiple"),
        ({"nan": True}, "NaN or infinity in"),
        ({"criterion": "snip"}, "criterion='snip' scores on data: give"),
        ({"criterion": "grasp"}, "criterion='grasp' scores on data: give"),
        ({"criterion": "prospr"}, "criterion='prospr' scores on data: give"),
        ({"criterion": "snip", "data": []}, "at least one batch"),
        ({"criterion": "snip", "data": iter([])}, "read only once"),
    ],
)
def test_what_cannot_work_is_refused_before_training(options, message, data):
    options = dict(options)
    model = compiled(
        mlp(), steps_per_execution=options.pop("steps_per_execution", 1)
    )
    if options.pop("nan", False):
        model.get_layer("head").kernel.assign(np.full((32, 4), np.nan))
    fit = {
        k: options.pop(k) for k in ("epochs", "initial_epoch") if k in options
    }
    imp = IMP(target_sparsity=0.5, rounds=2, epochs_per_round=2, **options)
    before = model.get_weights()
    with pytest.raises(ValueError, match=f"(?s){message}"):
        model.fit(
            batches(*data), verbose=0, callbacks=[imp],
            **{"epochs": imp.epochs, **fit},
        )  # fmt: skip
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_diverged_training_is_named_and_an_early_end_warned_of(data):
    x, y = data
    model = compiled(mlp())
    imp = IMP(target_sparsity=0.5, epochs_per_round=1)
    with pytest.raises(ValueError, match="has training diverged"):
        model.fit(
            batches(np.full_like(x, np.inf), y), verbose=0, callbacks=[imp]
        )

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    model = compiled(mlp())
    imp = IMP(target_sparsity=0.5, rounds=2, epochs_per_round=1)
    with pytest.warns(UserWarning, match="ended in round 2 of 2"):
        model.fit(batches(*data), epochs=2, verbose=0, callbacks=[imp, Stop()])


@pytest.mark.parametrize("rewind_epoch", [0, 2])
def test_the_plan_adds_up(rewind_epoch):
    plan = RoundPlan(
        rounds=5,
        epochs_per_round=6,
        skipped_epochs=rewind_epoch,
        target_sparsity=0.99,
    )
    assert plan.epochs_before(5) == 6 + 4 * (6 - rewind_epoch)
    densities = [1 - plan.demand(r, 0.0)[0] for r in range(6)]
    np.testing.assert_allclose(densities, 0.01 ** (np.arange(6) / 5))
    assert plan.demand(5, 0.0)[0] == 0.99


@pytest.mark.parametrize(
    "make",
    [
        lambda: IMP(target_sparsity=0.5, epochs_per_round=1),
        lambda: tt.callbacks.EarlyBird([0.5]),
    ],
)
def test_a_backup_without_a_directory_is_refused_at_once(make, data, tmp_path):
    # What it brings back after a kill would be trained on as a first round.
    model = compiled(mlp())
    before = model.get_weights()
    backup = keras.callbacks.BackupAndRestore(tmp_path)
    with pytest.raises(ValueError, match="give `directory` to"):
        model.fit(*data, verbose=0, callbacks=[backup, make()])
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
