"""Movement: sums of the training steps against gradients taken again."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests.conftest import DieAt, batches, compiled, two_replicas
from tf_tickets.callbacks import GradualPruning, IterativeMagnitudePruning
from tf_tickets.pruning import Polynomial


def plain(optimizer="adam", **options):
    """No dropout, no statistics: a gradient can be taken again."""
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(24, activation="relu", name="hidden"),
            keras.layers.Dense(4, name="head"),
        ],
        name="plain",
    )
    return compiled(model, optimizer, **options)


class Sums(keras.callbacks.Callback):
    """The oracle: -w · ∂L/∂w of every step, added up between drawings."""

    def __init__(self, data, pruning):
        super().__init__()
        self.batches = list(batches(*data))
        self.pruning = pruning
        self.step, self.sums, self.drawn = 0, {}, 0

    def on_train_batch_begin(self, batch, logs=None):
        kernels = tt.prunable_weights(self.model)
        x, y = self.batches[batch]
        with tf.GradientTape() as tape:
            loss = self.model.compute_loss(x=x, y=y, y_pred=self.model(x))
        slopes = tape.gradient(loss, [k.value for k in kernels.values()])
        for (path, kernel), slope in zip(kernels.items(), slopes, strict=True):
            term = -kernel.numpy() * slope.numpy()
            self.sums[path] = self.sums.get(path, 0) + term

    def on_train_batch_end(self, batch, logs=None):
        # Stands before the pruning in the list.
        self.before = tt.Ticket.from_model(self.model).masks
        for path, value in self.pruning._sums.values().items():
            np.testing.assert_allclose(
                value, self.sums[path], rtol=1e-3, atol=1e-6
            )


class Drawn(keras.callbacks.Callback):
    """Stands behind: masks that fell are those of the smallest sums."""

    def __init__(self, sums):
        super().__init__()
        self.seen = sums

    def check(self):
        sums, before = self.seen.sums, self.seen.before
        after = tt.Ticket.from_model(self.model).masks
        if all((after[p] == m).all() for p, m in before.items()):
            return
        self.seen.drawn += 1
        for path, mask in before.items():
            assert not (after[path] & ~mask).any()
        gone, left = (
            np.concatenate([sums[p][before[p] & which(p)] for p in before])
            for which in (lambda p: ~after[p], lambda p: after[p])
        )
        assert gone.max() <= left.min() + 1e-6
        assert (gone < 0).any()
        self.seen.sums = {}

    def on_train_batch_end(self, batch, logs=None):
        self.check()


@pytest.mark.parametrize("options", [{}, {"jit_compile": True}])
def test_the_weights_that_training_shrinks_go_first(options, data):
    pruning = GradualPruning(
        target_sparsity=0.6, end_step=12, every=4, criterion="movement"
    )
    sums = Sums(data, pruning)
    model = plain(**options)
    model.fit(
        batches(*data),
        epochs=4,
        verbose=0,
        callbacks=[sums, pruning, Drawn(sums)],
    )
    assert sums.drawn == 3
    assert pruning.ticket.sparsity == pytest.approx(0.6, abs=0.01)
    assert pruning.ticket.metadata["criterion"] == "movement"
    assert pruning._sums is None and "apply" not in vars(model.optimizer)


def test_every_round_scores_its_own_steps(data):
    imp = IterativeMagnitudePruning(
        target_sparsity=0.75, rounds=2, epochs_per_round=2, criterion="movement"
    )
    sums = Sums(data, imp)

    class AtRounds(Drawn):
        def on_train_batch_end(self, batch, logs=None):
            pass

        def on_epoch_end(self, epoch, logs=None):
            self.check()

    plain_model = plain("sgd")
    plain_model.fit(
        batches(*data),
        epochs=imp.epochs,
        verbose=0,
        callbacks=[sums, imp, AtRounds(sums)],
    )
    assert sums.drawn == 2 and imp.ticket.sparsity == 0.75


def test_replicas_and_the_scale_of_the_loss_change_nothing(data):
    def run(strategy, policy="float32"):
        keras.mixed_precision.set_global_policy(policy)
        with strategy.scope():
            keras.utils.set_random_seed(1)
            model = plain(keras.optimizers.SGD(0.0))
        pruning = GradualPruning(
            target_sparsity=0.5, end_step=8, every=8, criterion="movement"
        )
        found = {}

        class Look(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                if pruning._sums.count:
                    found.update(pruning._sums.values())

        model.fit(
            batches(*data), epochs=2, verbose=0, callbacks=[Look(), pruning]
        )
        return np.concatenate([v.ravel() for v in found.values()])

    alone = run(tf.distribute.get_strategy())
    np.testing.assert_allclose(run(two_replicas()), alone, rtol=1e-4, atol=1e-7)
    half = run(tf.distribute.get_strategy(), "mixed_float16")
    assert np.abs(alone).max() > 0.01
    np.testing.assert_allclose(half, alone, atol=0.02 * np.abs(alone).max())


def test_a_run_goes_on_with_its_sums_after_a_kill(data, tmp_path):
    def run(name, die_at=None):
        keras.utils.set_random_seed(3)
        model = plain()
        pruning = GradualPruning(
            target_sparsity=0.6,
            end_step=12,
            every=6,
            criterion="movement",
            directory=tmp_path / name,
        )
        try:
            model.fit(
                batches(*data),
                epochs=4,
                verbose=0,
                callbacks=[pruning, DieAt(die_at)],
            )
        except KeyboardInterrupt:
            return None
        finally:
            pruning._undo.close()
        return pruning.ticket

    assert run("killed", die_at=2) is None
    resumed, whole = run("killed"), run("whole")
    assert resumed.hamming_distance(whole) == 0
    for mine, other in zip(
        whole.weights.values(), resumed.weights.values(), strict=True
    ):
        np.testing.assert_array_equal(mine, other)


def test_a_strangers_criterion_adds_up_what_it_likes(data):
    def sensitivity(model, masks, *, data, seed, sums):
        return {path: sums[path] for path in masks}

    sensitivity.each_step = lambda w, g: tf.abs(w * g)
    pruning = GradualPruning(
        target_sparsity=0.5, end_step=4, every=4, criterion=sensitivity
    )
    plain().fit(batches(*data), epochs=2, verbose=0, callbacks=[pruning])
    assert pruning.ticket.sparsity == pytest.approx(0.5, abs=0.01)


def test_outside_of_training_there_is_nothing_to_score(data, tmp_path):
    with pytest.raises(ValueError, match="give it to GradualPruning"):
        tt.prune(plain(), 0.5, criterion="movement")
    with pytest.raises(ValueError, match="take regrow=False"):
        GradualPruning(
            target_sparsity=0.5, end_step=4, criterion="movement", regrow=True
        )
    early = GradualPruning(
        Polynomial(0.6, end_step=8, initial_sparsity=0.3), criterion="movement"
    )
    with pytest.raises(ValueError, match="a drawing after 0 steps"):
        plain().fit(batches(*data), epochs=2, verbose=0, callbacks=[early])
    alone = GradualPruning(
        target_sparsity=0.5, end_step=4, criterion="movement"
    )
    with pytest.raises(ValueError, match="give `directory` to GradualPruning"):
        plain().fit(
            batches(*data),
            verbose=0,
            callbacks=[keras.callbacks.BackupAndRestore(tmp_path), alone],
        )
