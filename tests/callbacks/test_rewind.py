"""A point of training is remembered and gone back to."""

import keras
import pytest

from tests.conftest import batches, compiled, mlp
from tf_tickets.callbacks import Rewind
from tf_tickets.selection import named_weights


@pytest.mark.parametrize("kind", ["weights", "learning_rate"])
def test_rewind_goes_back_when_fit_ends(kind, data):
    model = compiled(mlp(), keras.optimizers.SGD(0.1, momentum=0.9))
    rewind = Rewind(epoch=1, kind=kind)
    model.fit(batches(*data), epochs=3, verbose=0, callbacks=[rewind])
    assert int(model.optimizer.iterations.numpy()) == 4
    same = all(
        (value == named_weights(model)[path].numpy()).all()
        for path, value in rewind.snapshot.weights_of(model).items()
    )
    assert same == (kind == "weights")


def test_a_rewind_point_that_was_not_reached_is_an_error(data):
    model = compiled(mlp())
    with pytest.raises(RuntimeError, match="not reached.*epoch 5"):
        model.fit(
            batches(*data), epochs=2, verbose=0, callbacks=[Rewind(epoch=5)]
        )
    for options in ({"epoch": -1}, {"step": -1}, {"kind": "all"}):
        with pytest.raises(ValueError, match="Received"):
            Rewind(**options)
