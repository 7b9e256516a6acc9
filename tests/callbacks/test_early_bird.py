"""The ticket is found when the masks stand still, and not before."""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers

import tf_tickets as tt
from tests.conftest import DieAt, batches, compiled, settle
from tests.gallery import Subclassed
from tf_tickets.callbacks import EarlyBird, LowPrecision
from tf_tickets.structured.draw import Drawing, Slimming

pytestmark = pytest.mark.filterwarnings("ignore:Training ended before")


def classifier(width=10, optimizer=None, **options):
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(width, use_bias=False, name="hidden"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.Dense(4, name="head"),
        ]
    )
    return compiled(model, optimizer or keras.optimizers.SGD(0.0), **options)


class Scripted(keras.callbacks.Callback):
    """Write a row of scales at the end of every epoch."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def on_epoch_end(self, epoch, logs=None):
        row = self.rows[min(epoch, len(self.rows) - 1)]
        self.model.get_layer("norm").gamma.assign(row)


def run(data, rows, epochs=12, start=None, compare="newest", **options):
    model = classifier(len(rows[0]))
    if start is not None:
        model.get_layer("norm").gamma.assign(start)
    early_bird = EarlyBird(slimming=0.0, compare=compare, **options)
    history = model.fit(
        batches(*data),
        epochs=epochs,
        verbose=0,
        callbacks=[Scripted(rows), early_bird],
    )
    return early_bird, history.history


STILL = np.arange(1.0, 11)


def test_distances_are_those_of_hand_made_masks(data):
    # Half of ten go. Row by row the kept five are:
    rows = np.array(
        [
            [9, 8, 7, 6, 5, 4, 3, 2, 1, 0],  # 0 1 2 3 4
            [9, 8, 7, 6, 4, 5, 3, 2, 1, 0],  # 0 1 2 3 5: differs in 4 and 5
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],  # 5 6 7 8 9
            [9, 8, 7, 6, 5, 4, 3, 2, 1, 0],  # 0 1 2 3 4
        ],
        float,
    )
    early_bird, history = run(
        data, rows, epochs=4, start=rows[0], sparsities=[0.5]
    )
    # Newest against all older ones: 10 of 10 against the first in the third
    # epoch; 8 of 10 against the second; the fourth equals the first.
    assert early_bird.distances[0.5] == [0.0, 0.2, 1.0, 1.0]
    assert history["mask_distance_0.5"] == [0.0, 0.2, 1.0, 1.0]
    matrix = tt.analysis.mask_distance_matrix(early_bird.drawings[0.5])
    expected = np.array(
        [
            [0, 0, 2, 10, 0],
            [0, 0, 2, 10, 0],
            [2, 2, 0, 8, 2],
            [10, 10, 8, 0, 10],
            [0, 0, 2, 10, 0],
        ]
    )
    np.testing.assert_allclose(matrix, expected / 10)
    np.testing.assert_array_equal(
        early_bird.drawings[0.5][2].masks[
            next(iter(early_bird.drawings[0.5][2].masks))
        ],
        [1, 1, 1, 1, 0, 1, 0, 0, 0, 0],
    )


def test_the_earliest_hit_is_after_five_epochs_from_equal_scales(data):
    """The mask of equal scales must leave the queue first."""
    early_bird, history = run(data, [STILL], sparsities=[0.5])
    assert early_bird.found_at == {0.5: 5}
    assert len(history["loss"]) == 5
    assert history["mask_distance_0.5"] == [1.0, 1.0, 1.0, 1.0, 0.0]


def test_the_earliest_hit_is_after_four_epochs_from_other_scales(data):
    early_bird, history = run(data, [STILL], start=STILL, sparsities=[0.5])
    assert early_bird.found_at == {0.5: 4} and len(history["loss"]) == 4


@pytest.mark.parametrize(("window", "epochs"), [(2, 2), (3, 3), (7, 7)])
def test_the_window_delays_the_hit(window, epochs, data):
    early_bird, _ = run(data, [STILL], sparsities=[0.5], window=window)
    assert early_bird.found_at == {0.5: epochs}


def test_one_jump_in_the_window_is_enough_to_wait(data):
    # It stands still but for the third epoch, which must leave the queue.
    rows = [STILL, STILL, STILL[::-1], STILL]
    early_bird, _ = run(data, rows, sparsities=[0.5])
    assert early_bird.found_at == {0.5: 3 + 5}


@pytest.mark.parametrize(
    "start, window, found", [(None, 5, 6), (STILL, 5, 5), (STILL, 1, 1)]
)
def test_the_last_five_steps_of_the_mask_must_be_small(
    start, window, found, data
):
    """Distances between consecutive epochs, of which five are looked at."""
    early_bird, history = run(
        data, [STILL], start=start, window=window, compare="consecutive",
        sparsities=[0.5],
    )  # fmt: skip
    assert early_bird.found_at == {0.5: found}
    expected = [0.0] * found if start is not None else [1.0] + [0.0] * 5
    assert history["mask_distance_0.5"] == expected


def test_slow_drift_is_still_for_consecutive_epochs_alone(data):
    """Two of ten channels change in every epoch, and it all adds up."""
    rows = [np.roll(STILL, i) for i in range(1, 9)]
    step, _ = run(
        data, rows, start=STILL, epochs=8, sparsities=[0.5], epsilon=0.21,
        compare="consecutive",
    )  # fmt: skip
    assert step.distances[0.5] == [0.2] * 5 and step.found_at == {0.5: 5}
    # Below means below: 0.2 is not.
    step, _ = run(
        data, rows, start=STILL, epochs=8, sparsities=[0.5], epsilon=0.2,
        compare="consecutive",
    )  # fmt: skip
    assert step.found_at == {}
    queue, _ = run(
        data, rows, start=STILL, epochs=8, sparsities=[0.5], epsilon=0.21
    )
    assert queue.found_at == {}
    assert queue.distances[0.5][3:] == [0.8] * 5


def test_one_jump_in_the_last_distances_is_enough_to_wait(data):
    # There and back in the third epoch are two jumps, of epochs 3 and 4.
    rows = [STILL, STILL, STILL[::-1], STILL]
    early_bird, _ = run(
        data, rows, start=STILL, sparsities=[0.5], compare="consecutive"
    )
    assert early_bird.found_at == {0.5: 4 + 5}


def test_what_no_option_changes_is_the_paper_s():
    """Strength of the penalty, what is looked at, and how it is compared."""
    early_bird = EarlyBird()
    assert early_bird.sparsities == (0.3, 0.5, 0.7)
    assert early_bird.slimming == 1e-4
    assert (early_bird.window, early_bird.epsilon) == (5, 0.1)
    assert early_bird.compare == "consecutive"


def test_a_negative_scale_is_as_large_as_a_positive_one(data):
    scales = np.array([-9, 1, -8, 2, -7, 3, -6, 4, -5, 5.5])
    early_bird, _ = run(data, [scales], start=scales, sparsities=[0.5])
    [mask] = early_bird.tickets[0.5].masks.values()
    assert mask.tolist() == [1, 0, 1, 0, 1, 0, 1, 0, 0, 1]


def test_the_default_penalty_pulls_by_a_ten_thousandth():
    """One step of SGD at rate 1 where the loss has no gradient for γ."""
    moved = {}
    for where in ("block", "search"):
        model = classifier(optimizer=keras.optimizers.SGD(1.0))
        scales = np.array([1, -1] * 5, np.float32)
        model.get_layer("norm").gamma.assign(scales)
        model.get_layer("head").kernel.assign(np.zeros((10, 4)))
        x, y = np.ones((4, 8)), np.arange(4)
        if where == "block":
            with tt.structured.slimming(model):
                model.fit(x, y, verbose=0)
        else:
            model.fit(x, y, verbose=0, callbacks=[EarlyBird([0.5])])
        moved[where] = scales - model.get_layer("norm").gamma.numpy()
    for change in moved.values():
        np.testing.assert_allclose(change, 1e-4 * scales, atol=1e-7)


def test_sparsities_that_look_equal_have_files_and_logs_of_their_own(
    data, tmp_path
):
    close = [0.5, 0.5000001]

    def search(epochs):
        return run(
            data, [STILL], start=STILL, sparsities=close, epochs=epochs,
            stop=False, directory=tmp_path,
        )  # fmt: skip

    first, history = search(5)
    assert {"mask_distance_0.5", "mask_distance_0.5000001"} <= set(history)
    again, _ = search(6)
    for sparsity in close:
        for early_bird in (first, again):
            ticket = early_bird.tickets[sparsity]
            assert ticket.metadata["requested_sparsity"] == sparsity


def test_an_interrupted_search_leaves_no_penalty(data):
    model = classifier(optimizer=keras.optimizers.SGD(0.1))
    gamma = model.get_layer("norm").gamma
    early_bird = EarlyBird([0.5], slimming=0.5)
    callbacks = [early_bird, DieAt(1)]
    with contextlib.suppress(KeyboardInterrupt):
        model.fit(batches(*data), epochs=3, verbose=0, callbacks=callbacks)
    assert gamma.regularizer is None
    # The step is traced anew without it: nothing else moves at rate 0, and
    # the callback can be used again.
    model.optimizer.learning_rate.assign(0.0)
    after = gamma.numpy()
    model.fit(batches(*data), verbose=0)
    model.fit(batches(*data), verbose=0, callbacks=[early_bird])
    np.testing.assert_array_equal(gamma.numpy(), after)
    assert gamma.regularizer is None


def test_the_threshold_counts_as_standing_still(data):
    swapped = STILL.copy()
    swapped[[4, 5]] = swapped[[5, 4]]  # two of ten differ
    rows = [STILL, STILL, STILL, STILL, swapped]
    found, _ = run(data, rows, sparsities=[0.5], epsilon=0.2, epochs=5)
    assert found.found_at == {0.5: 5}
    missed, _ = run(data, rows, sparsities=[0.5], epsilon=0.19, epochs=5)
    assert missed.found_at == {} and missed.tickets == {}


def test_ties_cannot_fake_a_hit(data):
    """Scales that stay equal break ties alike in every epoch."""
    early_bird, _ = run(data, [np.ones(10)], sparsities=[0.3, 0.5])
    assert not early_bird.tickets
    assert set(early_bird.distances[0.5]) == {1.0}
    # A tie at the cut: two of ten are undecided, whatever the index says.
    tied = np.array([1, 1, 1, 1, 2, 2, 3, 3, 3, 3.0])
    early_bird, _ = run(data, [tied], sparsities=[0.5])
    assert set(early_bird.distances[0.5][4:]) == {0.2}
    assert not early_bird.tickets
    # A tie away from the cut decides nothing.
    early_bird, _ = run(data, [tied], sparsities=[0.4])
    assert early_bird.found_at == {0.4: 5}
    np.testing.assert_array_equal(
        list(early_bird.tickets[0.4].masks.values())[0], tied > 1
    )


def test_the_count_is_exact_under_ties(data):
    early_bird, _ = run(data, [np.ones(10)], sparsities=[0.3, 0.7], epsilon=1.0)
    assert early_bird.tickets[0.3].kept == 7
    assert early_bird.tickets[0.7].kept == 3


def test_each_sparsity_has_its_own_ticket_and_epoch(data):
    rng = np.random.default_rng(0)
    rows = []
    for epoch in range(12):
        row = STILL.copy()
        if epoch < 4:  # the upper half takes longer to settle
            row[5:] = rng.permutation(row[5:]) if epoch else row[:4:-1]
        rows.append(row)
    early_bird, history = run(data, rows, sparsities=[0.5, 0.8], epsilon=0.05)
    assert early_bird.found_at[0.5] == 5 < early_bird.found_at[0.8]
    assert len(history["loss"]) == early_bird.found_at[0.8]
    for sparsity, ticket in early_bird.tickets.items():
        assert ticket.sparsity == pytest.approx(sparsity)
        assert ticket.metadata["epoch"] == early_bird.found_at[sparsity]
        [gamma] = [k for k in ticket.weights if k.endswith("gamma")]
        np.testing.assert_allclose(
            ticket.weights[gamma], rows[ticket.metadata["epoch"] - 1]
        )


def test_without_stop_training_goes_on(data):
    early_bird, history = run(data, [STILL], sparsities=[0.5], stop=False)
    assert early_bird.found_at == {0.5: 5} and len(history["loss"]) == 12
    assert len(early_bird.distances[0.5]) == 12


def test_a_callback_that_is_used_again_starts_again(data):
    model = classifier()
    early_bird = EarlyBird([0.5], slimming=0.0)
    for _ in range(2):
        model.get_layer("norm").gamma.assign(np.ones(10))
        model.fit(
            batches(*data),
            epochs=8,
            verbose=0,
            callbacks=[Scripted([STILL]), early_bird],
        )
        assert early_bird.found_at == {0.5: 6}
        assert len(early_bird.drawings[0.5]) == 7


def test_no_ticket_is_said(data):
    with pytest.warns(UserWarning, match="before these sparsities had"):
        run(data, [STILL], sparsities=[0.5], epochs=3)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_whole_way_search_draw_shrink_train(data, jit_compile, tmp_path):
    model = classifier(
        32, keras.optimizers.SGD(0.1, momentum=0.9), jit_compile=jit_compile
    )
    early_bird = EarlyBird([0.5], epsilon=0.3)
    model.fit(batches(*data), epochs=30, verbose=0, callbacks=[early_bird])
    ticket = early_bird.tickets[0.5]
    ticket.save(tmp_path / "ticket.safetensors")
    ticket = tt.structured.ChannelTicket.load(tmp_path / "ticket.safetensors")
    assert ticket.metadata["source"] == "EarlyBird" and ticket.kept == 16
    small = tt.structured.shrink(model, ticket, weights="start")
    assert small.get_layer("hidden").units == 16
    small.fit(batches(*data), epochs=30, verbose=0)
    assert small.evaluate(batches(*data), verbose=0)[1] > 0.9
    # In another process, or built again, the layers have other numbers.
    again = tt.structured.shrink(classifier(32), ticket, weights="start")
    assert again.get_layer("hidden").units == 16


def test_filters_are_ranked_where_there_is_no_normalization(data):
    model = compiled(
        keras.Sequential(
            [
                keras.Input((8,)),
                layers.Dense(10, activation="relu", name="one"),
                layers.Dense(6, activation="relu", name="two"),
                layers.Dense(4, name="head"),
            ]
        ),
        keras.optimizers.SGD(0.0),
    )
    early_bird = EarlyBird([0.5])
    model.fit(batches(*data), epochs=6, verbose=0, callbacks=[early_bird])
    # Filters differ from the start, so there is no tie to wait for.
    assert early_bird.found_at == {0.5: 5}
    masks = {
        key.rsplit("/", 2)[-2]: mask
        for key, mask in early_bird.tickets[0.5].masks.items()
    }
    assert set(masks) == {"one", "two"}  # the outputs cannot go
    # By hand: norms of columns over the mean of their layer, the best 8.
    norms = {}
    for name in masks:
        value = model.get_layer(name).kernel.numpy()
        norm = np.sqrt((value**2).sum(0))
        norms[name] = norm / norm.mean()
    cut = np.sort(np.concatenate(list(norms.values())))[8]
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, norms[name] >= cut)


def test_any_model_with_normalization_is_searched(data):
    """Without a graph a mask is found; only shrinking needs one."""
    model = compiled(Subclassed(10), keras.optimizers.SGD(0.0))
    model(data[0][:1])
    model.norm.gamma.assign(STILL)
    early_bird = EarlyBird([0.5])
    model.fit(batches(*data), epochs=8, verbose=0, callbacks=[early_bird])
    assert early_bird.found_at == {0.5: 5}
    [mask] = early_bird.tickets[0.5].masks.values()
    np.testing.assert_array_equal(mask, STILL > 5)
    early_bird.tickets[0.5].apply(model, weights="keep")
    assert (model.norm.gamma.numpy()[:5] == 0).all()
    with pytest.raises(ValueError, match="subclassed"):
        tt.structured.draw_channels(model, 0.5, coupled=True)


def test_coupled_channels_go_together_and_all_that_is_pruned_goes():
    from tf_tickets.zoo import models

    model = models.resnet20(input_shape=(16, 16, 3))
    settle(model)
    alone = tt.structured.draw_channels(model, 0.5)
    coupled = tt.structured.draw_channels(model, 0.5, coupled=True)
    assert alone.sparsity == 0.5
    assert 0.4 < coupled.sparsity <= 0.5
    _, report = tt.structured.shrink(model, coupled, return_report=True)
    assert report.removed == report.asked and not report.stops
    _, report = tt.structured.shrink(model, alone, return_report=True)
    assert report.removed < report.asked


def test_slimming_pulls_scales_and_leaves_losses_alone(data):
    """By hand: one step of SGD moves γ by the rate times s·sign(γ) more."""
    scales = np.array([0.5, -0.25, 2, 0, 1, -1, 3, -2, 0.1, 0.3], np.float32)
    moved, losses = {}, {}
    for strength in (0.0, 0.01):
        keras.utils.set_random_seed(0)
        model = classifier(optimizer=keras.optimizers.SGD(0.1))
        gamma = model.get_layer("norm").gamma
        gamma.assign(scales)
        gamma.regularizer = keras.regularizers.L2(0.02)
        with tt.structured.slimming(model, strength):
            history = model.fit(
                data[0], data[1], batch_size=64, shuffle=False, verbose=0
            )
        moved[strength] = gamma.numpy()
        losses[strength] = history.history["loss"]
        assert isinstance(gamma.regularizer, keras.regularizers.L2)
    np.testing.assert_allclose(
        moved[0.01] - moved[0.0], -0.1 * 0.01 * np.sign(scales), atol=1e-6
    )
    assert losses[0.01] == losses[0.0]


def test_slimming_ends_with_the_search(data):
    model = classifier(optimizer=keras.optimizers.SGD(0.1))
    gamma = model.get_layer("norm").gamma
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: seen.append(gamma.regularizer)
    )
    model.fit(
        batches(*data),
        epochs=1,
        verbose=0,
        callbacks=[EarlyBird([0.5], slimming=0.5), watch],
    )
    assert isinstance(seen[0], Slimming) and gamma.regularizer is None
    # And the step is traced anew without it.
    model.optimizer.learning_rate.assign(0.0)
    after = gamma.numpy()
    model.fit(batches(*data), epochs=1, verbose=0)
    np.testing.assert_array_equal(gamma.numpy(), after)
    with pytest.raises(KeyError), tt.structured.slimming(model):
        raise KeyError
    assert gamma.regularizer is None


def test_diverged_weights_stop_the_search_at_once(data):
    model = classifier()
    model.get_layer("norm").gamma.assign(np.full(10, np.nan))
    with pytest.raises(ValueError, match="finite .* NaN or infinity in"):
        model.fit(batches(*data), verbose=0, callbacks=[EarlyBird([0.5])])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsities": []}, "sparsities"),
        ({"sparsities": [0.5, 0.5]}, "different"),
        ({"sparsities": [1.0]}, "sparsities"),
        ({"sparsities": 0.5}, "sparsities"),
        ({"window": 0}, "window"),
        ({"window": 1, "compare": "newest"}, "window"),
        ({"epsilon": 0}, "epsilon"),  # nothing is below it
        ({"compare": "oldest"}, "compare"),
        ({"epsilon": -0.1}, "epsilon"),
        ({"epsilon": True}, "epsilon"),
        ({"criterion": "taylor"}, "criterion"),
        ({"slimming": -1}, "slimming"),
    ],
)
def test_bad_arguments_are_one_clear_error(options, message):
    with pytest.raises(ValueError, match=f"{message}.*Received: "):
        EarlyBird(**options)


def test_a_model_without_channels_is_refused_before_training(data):
    model = compiled(keras.Sequential([keras.Input((8,)), layers.Dense(4)]))
    with pytest.raises(ValueError, match="no channels to score"):
        model.fit(batches(*data), callbacks=[EarlyBird([0.5])], verbose=0)
    assert int(model.optimizer.iterations) == 0


def test_distance_counts_what_a_tie_decides():
    first = Drawing(
        {"a": np.array([1, 1, 0, 0], bool)}, {"a": np.array([0, 0, 0, 0], bool)}
    )
    second = Drawing(
        {"a": np.array([1, 0, 1, 0], bool)}, {"a": np.array([1, 0, 0, 0], bool)}
    )
    assert first.distance(second) == second.distance(first) == 0.75
    assert first.distance(first) == 0 and second.distance(second) == 0.25


def test_a_search_in_eight_bits_finds_a_ticket(data):
    model = classifier(32, keras.optimizers.SGD(0.1, momentum=0.9))
    early_bird = EarlyBird([0.5], epsilon=0.4)
    model.fit(
        batches(*data),
        epochs=30,
        verbose=0,
        callbacks=[LowPrecision(), early_bird],
    )
    assert early_bird.tickets[0.5].kept == 16


@pytest.mark.parametrize("stop", [False, True])
def test_a_search_that_died_goes_on_and_ends_like_one_that_lived(
    stop, data, tmp_path
):
    def search(name, die_at=None):
        keras.utils.set_random_seed(2)
        model = classifier(16, keras.optimizers.SGD(0.05, momentum=0.9))
        model.get_layer("norm").gamma.assign(np.linspace(0.5, 1.5, 16))
        early_bird = EarlyBird(
            [0.25, 0.5],
            window=5,
            epsilon=0.2,
            stop=stop,
            directory=tmp_path / name,
        )
        try:
            history = model.fit(
                batches(*data), epochs=9, verbose=0,
                callbacks=[early_bird, DieAt(die_at)],
            )  # fmt: skip
        except KeyboardInterrupt:
            return None
        return early_bird, model.get_weights(), history.epoch

    for die_at in (0, 1, 2):
        assert search("killed", die_at) is None
    resumed, weights, epochs = search("killed")
    assert epochs[0] == 2
    whole, expected, _ = search("whole")
    assert resumed.found_at == whole.found_at and len(whole.found_at) == 2
    np.testing.assert_equal(resumed.distances, whole.distances)
    for sparsity, ticket in whole.tickets.items():
        for mine, theirs in zip(
            ticket.masks.values(),
            resumed.tickets[sparsity].masks.values(),
            strict=True,
        ):
            np.testing.assert_array_equal(mine, theirs)
    for a, b in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    # A search that has ended has nothing left to train.
    again, weights, epochs = search("whole")
    assert epochs == [] and again.found_at == whole.found_at
    for a, b in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(a, b)
