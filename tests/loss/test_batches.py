"""Every form of data becomes the same batches."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_tickets.loss.batches import batches

X = np.arange(10.0).reshape(5, 2)
Y = np.arange(5)


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return X[2 * index : 2 * index + 2], Y[2 * index : 2 * index + 2]


FORMS = {
    "arrays": lambda: (X, Y),
    "dataset": lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(2),
    "PyDataset": Sequence,
    "list": lambda: [(X[:2], Y[:2]), (X[2:4], Y[2:4]), (X[4:], Y[4:])],
    "structure": lambda: ({"a": X}, {"b": Y}),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_give_the_same_samples(form):
    found = list(batches(FORMS[form](), needed_by="test", batch_size=2))
    assert [batch.size for batch in found] == [2, 2, 1]
    for part, expected in (("x", X), ("y", Y)):
        joined = np.concatenate(
            [keras.tree.flatten(getattr(b, part))[0] for b in found]
        )
        np.testing.assert_array_equal(joined, expected)
    limited = batches(FORMS[form](), needed_by="test", batch_size=2, limit=1)
    assert len(list(limited)) == 1


def test_inputs_alone_do_where_no_labels_are_needed():
    [batch] = batches(X, needed_by="test", labels=False)
    assert batch.y is None and batch.size == 5
    [batch] = batches((X, Y, Y / 2), needed_by="test")
    np.testing.assert_array_equal(batch.sample_weight, Y / 2)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"limit": 0}])
def test_counts_are_checked(options):
    with pytest.raises(ValueError, match="whole number of at least 1"):
        list(batches((X, Y), needed_by="test", **options))
