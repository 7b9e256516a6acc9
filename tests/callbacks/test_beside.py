"""Keras's callbacks beside those that make one training ever sparser."""

import warnings

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests.callbacks.conftest import fresh, traced
from tests.conftest import DieAt, batches, compiled, mlp
from tf_tickets.selection import named_weights

C = keras.callbacks
EPOCHS, KEPT = 4, 24


def kept(weights):
    kernels = [w for w in weights if np.ndim(w) > 1]
    return sum(np.count_nonzero(w) for w in kernels)


class Fitted:
    """A `fit` whose sparsity has reached its end after the second epoch."""

    def __init__(
        self, mode, data, callback, die_at=None, nan=False, directory=None
    ):
        self.model = fresh(mode)
        self.gradual = tt.callbacks.GradualPruning(
            target_sparsity=0.75, end_step=4, every=1, directory=directory
        )
        self.val = x, y = data[0][32:], data[1][32:]
        self.after = []
        keep = C.LambdaCallback(
            on_epoch_end=lambda e, logs: self.after.append(
                self.model.get_weights()
            )
        )
        train = batches(
            np.where(nan, np.float32(np.nan), data[0][:32]), data[1][:32]
        )
        with warnings.catch_warnings(record=True) as self.said:
            warnings.simplefilter("always")
            self.logs = self.model.fit(
                train, epochs=EPOCHS, verbose=0,
                validation_data=batches(x, y),
                callbacks=[
                    *([callback, self.gradual] if directory else []),
                    *([] if directory else [self.gradual, callback]),
                    keep, DieAt(die_at),
                    tt.callbacks.SparsityLogger(),
                ],
            ).history  # fmt: skip

    @property
    def warned(self):
        return [str(w.message) for w in self.said if "beside" in str(w.message)]

    def score(self):
        return self.model.evaluate(batches(*self.val), verbose=0)[0]

    def holds(self):
        """What holds whatever stands beside: the ticket is the model's."""
        weights = self.model.get_weights()
        assert kept(weights) == self.gradual.ticket.kept == KEPT
        for key, value in self.gradual.ticket.weights.items():
            np.testing.assert_array_equal(
                value, named_weights(self.model)[key].numpy()
            )
        return weights


@pytest.mark.parametrize("mode", ["plain", "xla"])
class TestGradualPruning:
    def test_early_stopping_from_when_the_sparsity_is_reached(self, mode, data):
        # The first epoch that counts is the best: the highest loss.
        found = Fitted(
            mode, data,
            C.EarlyStopping(
                "val_loss", mode="max", min_delta=1e3, patience=9,
                start_from_epoch=1, restore_best_weights=True,
            ),
        )  # fmt: skip
        assert not found.warned
        restored = found.holds()
        for one, other in zip(restored, found.after[1], strict=True):
            np.testing.assert_array_equal(one, other)
        assert found.score() == pytest.approx(found.logs["val_loss"][1])

    def test_early_stopping_before_that_is_warned_of(self, mode, data):
        found = Fitted(
            mode, data,
            C.EarlyStopping(
                "val_loss", mode="max", min_delta=1e3, patience=9,
                restore_best_weights=True,
            ),
        )  # fmt: skip
        (message,) = found.warned
        assert message.startswith("EarlyStopping beside GradualPruning")
        assert "start_from_epoch=1" in message
        assert kept(found.after[0]) > KEPT  # which is what was restored
        found.holds()

    def test_model_checkpoint_holds_what_was_scored(self, mode, data, tmp_path):
        path = tmp_path / "best.weights.h5"
        found = Fitted(
            mode, data,
            C.ModelCheckpoint(
                path, "val_loss", mode="max", save_best_only=True,
                save_weights_only=True,
            ),
        )  # fmt: skip
        found.holds()
        assert "ModelCheckpoint to another `fit`" in found.warned[0]
        best = int(np.argmax(found.logs["val_loss"]))
        found.model.load_weights(path)
        assert found.score() == pytest.approx(found.logs["val_loss"][best])
        share = 1 - kept(found.model.get_weights()) / 96
        assert share == pytest.approx(found.logs["sparsity"][best])

    @pytest.mark.parametrize("swap_on_epoch", [False, True])
    def test_averages_are_as_sparse(self, swap_on_epoch, mode, data):
        found = Fitted(mode, data, C.SwapEMAWeights(swap_on_epoch))
        assert not found.warned
        found.holds()
        assert found.score() == pytest.approx(found.logs["val_loss"][-1])

    def test_what_has_diverged_is_not_ranked(self, mode, data):
        with pytest.raises(ValueError, match="has training diverged"):
            Fitted(mode, data, C.TerminateOnNaN(), nan=True)

    def test_what_a_lambda_writes_is_masked(self, mode, data):
        model = traced(mode)[0]
        found = Fitted(
            mode, data,
            C.LambdaCallback(
                on_epoch_end=lambda e, logs: model.set_weights(
                    [w + 1 for w in model.get_weights()]
                )
            ),
        )  # fmt: skip
        found.holds()

    def test_the_rate_is_reduced(self, mode, data):
        found = Fitted(
            mode, data,
            C.ReduceLROnPlateau(
                "loss", mode="max", min_delta=1e3, patience=1, factor=0.5
            ),
        )  # fmt: skip
        assert not found.warned
        found.holds()
        np.testing.assert_allclose(
            found.logs["learning_rate"], [0.1, 0.1, 0.05, 0.025]
        )

    def test_a_kill_between_swaps_changes_nothing(self, mode, data, tmp_path):
        def fitted(name, die_at=None):
            swap = C.SwapEMAWeights(swap_on_epoch=True)
            return Fitted(
                mode, data, swap, die_at, directory=tmp_path / name
            ).holds()

        whole = fitted("whole")
        with pytest.raises(KeyboardInterrupt):
            fitted("killed", die_at=3)
        for one, other in zip(whole, fitted("killed"), strict=True):
            np.testing.assert_array_equal(one, other)

    # The last one: Keras lets each later `fit` of the model begin there, too.
    def test_backup_and_restore_goes_on_to_the_end(self, mode, data, tmp_path):
        def backup():
            return C.BackupAndRestore(tmp_path)

        with pytest.raises(KeyboardInterrupt):
            Fitted(mode, data, backup(), die_at=2)
        found = Fitted(mode, data, backup())
        assert not found.warned and len(found.logs["loss"]) == EPOCHS - 2
        found.holds()


def test_freezing_says_what_to_put_where(data, tmp_path):
    miner = tt.supermask(
        keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    )
    compiled(miner, keras.optimizers.SGD(0.1))

    def said(before, behind):
        freezing = tt.callbacks.IterativeFreezing(0.75, every=1)
        start.restore(miner)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            miner.fit(
                batches(data[0][:32], data[1][:32]), epochs=3, verbose=0,
                callbacks=[*before, freezing, *behind],
            )  # fmt: skip
        assert tt.Ticket.from_supermask(miner, "frozen").kept == 8
        return [str(w.message) for w in caught if "Freezing" in str(w.message)]

    start = tt.Snapshot.take(miner)
    path = tmp_path / "a.weights.h5"
    best = C.ModelCheckpoint(
        path, "loss", save_best_only=True, save_weights_only=True
    )
    every = C.ModelCheckpoint(path, save_weights_only=True)
    comparing, after = said([], [best])
    assert comparing.startswith("ModelCheckpoint beside IterativeFreezing")
    assert "list it last" in after and "ModelCheckpoint behind" in after
    assert not said([every, C.EarlyStopping("loss", start_from_epoch=3)], [])


def test_an_early_bird_is_drawn_from_the_weights_it_holds(data):
    model = compiled(mlp(), keras.optimizers.SGD(0.1))
    early_bird = tt.callbacks.EarlyBird(
        [0.5], epsilon=1.0, window=1, stop=False
    )
    stopping = C.EarlyStopping(
        "loss", mode="max", min_delta=1e3, patience=9, restore_best_weights=True
    )
    model.fit(
        batches(*data), epochs=3, verbose=0, callbacks=[stopping, early_bird]
    )
    ticket = early_bird.ticket
    for key, value in ticket.weights.items():
        named_weights(model)[key].assign(value)
    again = tt.structured.draw_channels(model, 0.5)
    assert again.hamming_distance(ticket) == 0
