"""An order that follows from the epoch: what goes on ends as it would have."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests.conftest import DieAt, compiled, two_replicas
from tf_tickets.zoo import datasets


def values(dataset):
    return [np.asarray(one).tolist() for one in dataset.as_numpy_iterator()]


@pytest.mark.parametrize("buffer", [None, 3])
def test_passes_are_those_of_a_new_process(buffer):
    """The oracle is TensorFlow's own shuffle, one pass after another."""
    numbers = tf.data.Dataset.range(20)
    mine = tt.data.shuffled(numbers, seed=5, buffer_size=buffer)
    theirs = numbers.shuffle(buffer or 20, seed=5)
    passes = [values(theirs) for _ in range(4)]
    assert [values(mine) for _ in range(4)] == passes
    assert len({str(p) for p in passes}) == 4
    assert len(mine) == 20
    for epoch in (2, 0, 3):
        tt.data.set_epoch(np.int64(epoch))
        assert values(mine) == passes[epoch]


def test_seeds_are_those_of_a_new_process():
    mine = tt.data.random_seeds(seed=np.int64(5)).take(3)
    theirs = tf.data.Dataset.random(5, rerandomize_each_iteration=True)
    theirs = theirs.batch(2).take(3)
    passes = [values(theirs) for _ in range(3)]
    assert [values(mine) for _ in range(3)] == passes
    tt.data.set_epoch(1)
    assert values(mine) == passes[1] != passes[0]


def test_examples_may_be_of_any_structure():
    n = 5
    ragged = tf.ragged.constant([[1] * i for i in range(n)])
    sparse = tf.sparse.from_dense(np.eye(n))
    arrays = (np.arange(n), {"r": ragged, "s": sparse, "t": ["a"] * n})
    seen = []
    for number, parts in tt.data.shuffled(arrays, seed=1):
        assert parts["r"].shape[0] == int(number)
        assert tf.sparse.to_dense(parts["s"])[int(number)] == 1
        assert parts["t"] == b"a"
        seen.append(int(number))
    assert sorted(seen) == [*range(n)] != seen
    endless = tf.data.Dataset.counter()
    assert len(values(tt.data.shuffled(endless, buffer_size=9).take(3))) == 3
    assert values(tt.data.shuffled(np.zeros((0, 2)))) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tt.data.shuffled(np.ones(3), seed=-1), "`seed`"),
        (lambda: tt.data.shuffled(np.ones(3), buffer_size=0), "`buffer_size`"),
        (
            lambda: tt.data.shuffled(
                tf.data.Dataset.range(3).filter(lambda i: i > 0)
            ),
            "not known: give `buffer_size`",
        ),
        (lambda: tt.data.random_seeds(seed=1.5), "`seed`"),
        (lambda: tt.data.set_epoch(-1), "`epoch`"),
    ],
)
def test_bad_arguments_are_one_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def without_tuner(dataset):
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def imp(directory):
    return tt.callbacks.IterativeMagnitudePruning(
        target_sparsity=0.8, rounds=3, epochs_per_round=2, directory=directory
    )


def gradual(directory):
    return tt.callbacks.GradualPruning(
        target_sparsity=0.8, end_step=20, every=2, directory=directory
    )


def trained(make, directory, pipeline, die_at=None):
    """Weights at the end of a run in what could be a process of its own."""
    keras.utils.set_random_seed(0)
    model = compiled(
        keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)]),
        keras.optimizers.SGD(0.1, momentum=0.9),
    )
    train = without_tuner(pipeline())
    callback = make(directory)

    def fit(*others):
        # Passes between the epochs change nothing.
        model.fit(
            train,
            epochs=6,
            validation_data=train,
            verbose=0,
            callbacks=[callback, *others],
        )

    if die_at is not None:
        with pytest.raises(KeyboardInterrupt):
            fit(DieAt(die_at))
        callback._undo.close()  # as the end of the process would
        return None
    fit()
    next(iter(train))
    model.fit(train, epochs=1, verbose=0)
    return model.get_weights()


@pytest.mark.parametrize("make", [imp, gradual])
def test_a_run_that_goes_on_ends_as_if_never_broken_off(make, data, tmp_path):
    def pipeline():
        return tt.data.shuffled(data, seed=3).batch(16)

    whole = trained(make, tmp_path / "whole", pipeline)
    trained(make, tmp_path / "killed", pipeline, die_at=3)
    again = trained(make, tmp_path / "killed", pipeline)
    for one, other in zip(whole, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_tensorflows_own_shuffle_does_not(data, tmp_path):
    """What the test above compares can differ."""

    def pipeline():
        dataset = tf.data.Dataset.from_tensor_slices(data)
        return dataset.shuffle(64, seed=3).batch(16)

    whole = trained(gradual, tmp_path / "whole", pipeline)
    trained(gradual, tmp_path / "killed", pipeline, 3)
    again = trained(gradual, tmp_path / "killed", pipeline)
    assert any((a != b).any() for a, b in zip(whole, again, strict=True))


def test_the_zoo_deals_what_the_epoch_says():
    pytest.importorskip("sklearn")

    def three():
        keras.utils.set_random_seed(0)
        digits = datasets.load("digits", batch_size=256, augment=True)
        passes = [digits.train.as_numpy_iterator() for _ in range(3)]
        return digits, [[x for x, _ in one] for one in passes]

    digits, passes = three()
    other, _ = three()
    assert digits.train.cardinality() == digits.steps_per_epoch == 4
    assert (passes[0][0] != passes[1][0]).any()
    for epoch in (1, 2):
        tt.data.set_epoch(epoch)
        for pipeline in (digits, other):
            found = [x for x, _ in pipeline.train.as_numpy_iterator()]
            np.testing.assert_array_equal(found, passes[epoch])
            tt.data.set_epoch(epoch)


def test_replicas_share_one_pass():
    strategy = two_replicas()
    keras.utils.set_random_seed(0)
    dataset = without_tuner(tt.data.shuffled(np.arange(16)).batch(4))
    expected = [sorted(batch) for batch in values(dataset)]
    shared = strategy.experimental_distribute_dataset(dataset)
    tt.data.set_epoch(0)
    found = [
        sorted(
            int(i)
            for part in strategy.experimental_local_results(batch)
            for i in part
        )
        for batch in shared
    ]
    assert found == expected
