"""Which weights are prunable, on the models that people have."""

import re

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests import gallery
from tests.conftest import ZerosHold, batches, compiled
from tf_tickets.selection import (
    match_keys,
    named_weights,
    own_weights,
    owners,
)

L = keras.layers


def flat():
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, name="c1")(inputs)
    x = L.Conv2D(4, 3, name="c2")(x)
    x = L.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, L.Dense(2, name="d")(x))


def nested():
    inner_in = keras.Input((8, 8, 3))
    inner = keras.Model(
        inner_in,
        L.Conv2D(4, 3, name="c2")(L.Conv2D(4, 3, name="c1")(inner_in)),
        name="inner",
    )
    inputs = keras.Input((8, 8, 3))
    x = L.GlobalAveragePooling2D()(inner(inputs))
    return keras.Model(inputs, L.Dense(2, name="d")(x))


class Listed(keras.Model):
    """The same layers once more, in a list."""

    def __init__(self):
        super().__init__()
        self.convs = [L.Conv2D(4, 3, name="c1"), L.Conv2D(4, 3, name="c2")]
        self.pool = L.GlobalAveragePooling2D()
        self.d = L.Dense(2, name="d")

    def call(self, x):
        for conv in self.convs:
            x = conv(x)
        return self.d(self.pool(x))


def listed_in_a_class():
    model = Listed()
    model(np.zeros((1, 8, 8, 3), "float32"))
    return model


class Custom(keras.layers.Layer):
    def build(self, shape):
        self.table = self.add_weight(shape=(shape[-1], 3), name="table")
        self.offset = self.add_weight(shape=(3,), name="offset")

    def call(self, x):
        return x @ self.table + self.offset


@pytest.mark.parametrize("twin", [nested, listed_in_a_class])
def test_a_flat_model_and_its_twins_list_the_same_weights(twin):
    def listed(model):
        return [
            (path.split("/")[-2:], tuple(v.shape))
            for path, v in tt.prunable_weights(model).items()
        ]

    assert listed(twin()) == listed(flat())
    assert len(listed(flat())) == 3


def test_every_kind_of_kernel_is_found_and_nothing_else():
    inputs = keras.Input((8, 8, 4))
    x = L.Conv2D(4, 3, padding="same")(inputs)
    x = L.DepthwiseConv2D(3, padding="same")(x)
    x = L.SeparableConv2D(4, 3, padding="same")(x)
    x = L.Conv2DTranspose(4, 3, padding="same")(x)
    x = L.BatchNormalization()(x)
    x = L.LayerNormalization(axis=[1, 2, 3])(x)  # scales of rank 3
    x = L.GroupNormalization(2)(x)
    x = L.PReLU()(x)
    x = L.Reshape((64, 4))(x)
    x = L.Conv1D(4, 3)(x)
    x = L.EinsumDense("abc,cd->abd", (None, 4), bias_axes="d")(x)
    x = L.MultiHeadAttention(2, 2)(x, x)  # biases of rank 2
    x = L.GroupQueryAttention(2, 2, 1)(x, x)
    x = L.Bidirectional(L.LSTM(3, return_sequences=True))(x)
    x = L.GRU(3)(x)
    model = keras.Model(inputs, L.Dense(2)(x))
    names = [v.name for v in tt.prunable_weights(model).values()]
    expected = (
        ["kernel"] * 2  # Conv2D, DepthwiseConv2D
        + ["depthwise_kernel", "pointwise_kernel"]
        + ["kernel"] * 3  # Conv2DTranspose, Conv1D, EinsumDense
        + ["kernel"] * 8  # query, key, value, output, twice
        + ["kernel", "recurrent_kernel"] * 3
        + ["kernel"]
    )
    assert sorted(names) == sorted(expected)


def test_filters_choose_by_pattern_list_and_callable():
    model = flat()
    assert [*tt.prunable_weights(model, "c1")] == ["c1/kernel"]
    assert [*tt.prunable_weights(model, ["^d/", "c1/kernel"])] == [
        "c1/kernel",
        "d/kernel",
    ]
    assert [*tt.prunable_weights(model, lambda path, v: len(v.shape) == 4)] == [
        "c1/kernel",
        "c2/kernel",
    ]


def test_embeddings_and_own_weights_only_when_named():
    inputs = keras.Input((3,), dtype="int32")
    x = L.Embedding(10, 4, name="words")(inputs)
    model = keras.Model(inputs, L.Dense(2, name="d")(Custom(name="own")(x)))
    assert [*tt.prunable_weights(model)] == ["d/kernel"]
    assert [*tt.prunable_weights(model, ["words", "own"])] == [
        "words/embeddings",
        "own/table",  # the offset is a vector: never
    ]


@pytest.mark.parametrize("filters", ["bias", "gamma", ["c1", "typo"], [], 3])
def test_a_filter_that_selects_nothing_is_refused(filters):
    with pytest.raises(ValueError, match="Received: filters="):
        tt.prunable_weights(flat(), filters)


@pytest.mark.parametrize("as_list", [False, True])
def test_a_layer_is_no_filter_and_the_error_shows_one(as_list):
    layer = L.Dense(4, name="two")
    model = keras.Sequential([keras.Input((3,)), L.Dense(3, name="one"), layer])
    with pytest.raises(ValueError, match="a layer is no filter") as error:
        tt.prune(model, 0.5, filters=[layer] if as_list else layer)
    [advised] = re.findall(r"filters='(.+?)'", str(error.value))
    assert [*tt.prune(model, 0.5, filters=advised).masks] == [layer.kernel.path]


def test_a_shared_layer_is_listed_once():
    shared = L.Dense(4, name="shared")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, shared(shared(inputs)))
    assert [*tt.prunable_weights(model)] == ["shared/kernel"]


def test_two_weights_with_one_path_stay_two():
    def tower():
        inputs = keras.Input((4,))
        return keras.Model(inputs, L.Dense(4, name="d")(inputs))

    a, b = tower(), tower()
    inputs = keras.Input((4,))
    model = keras.Model(inputs, a(inputs) + b(inputs))
    assert [*tt.prunable_weights(model)] == ["d/kernel", "d/kernel#1"]
    ticket = tt.prune(model, 0.5)
    ticket.apply(model)
    both = np.stack([a.layers[1].kernel.numpy(), b.layers[1].kernel.numpy()])
    assert (both == 0).sum() == 16


@pytest.mark.parametrize(
    "name", ["lstm", "attention", "assorted", "nested", "subclassed"]
)
def test_one_code_prunes_trains_and_holds_every_kind_of_model(name):
    model = gallery.GALLERY[name]()
    names = [v.path for v in model.weights]
    x = gallery.inputs(model)
    compiled(model, keras.optimizers.Adam(0.01))
    imp = tt.callbacks.IterativeMagnitudePruning(
        target_sparsity=0.8, rounds=2, epochs_per_round=1
    )
    model.fit(
        batches(x, np.arange(8) % 2, 4), epochs=imp.epochs + 1, verbose=0,
        callbacks=[imp],
    )  # fmt: skip
    assert imp.ticket.kept == round(0.2 * imp.ticket.size)
    assert [v.path for v in model.weights] == names
    for path, variable in tt.prunable_weights(model).items():
        assert (variable.numpy()[~imp.ticket.masks[path]] == 0).all()
    hold = ZerosHold(imp.ticket.masks)  # not at the end of an epoch alone
    model.fit(batches(x, np.arange(8) % 2, 4), verbose=0, callbacks=[hold])
    assert hold.checked == 2 * len(imp.ticket.masks)


class Var:
    def __init__(self, *shape):
        self.shape = shape


def test_keys_match_exactly_then_by_order_then_not_at_all():
    shapes = {"dense/kernel": (2, 3), "dense_1/kernel": (3, 3)}
    same = {k: Var(*s) for k, s in shapes.items()}
    assert match_keys(shapes, same) == {k: k for k in shapes}
    renumbered = {"dense_1/kernel": Var(2, 3), "dense_2/kernel": Var(3, 3)}
    assert match_keys(shapes, renumbered) == {
        "dense/kernel": "dense_1/kernel",
        "dense_1/kernel": "dense_2/kernel",
    }
    renamed = {"a/kernel": Var(2, 3), "b/kernel": Var(3, 3)}
    assert [*match_keys(shapes, renamed).values()] == ["a/kernel", "b/kernel"]
    # A model that was loaded: inner models are gone from paths, a loose
    # variable is numbered on, one path is the same.
    stored = {
        "stem/conv/kernel": (2, 3),
        "block/kernel": (3, 3),
        "scale/variable": (3, 1),
    }
    loaded = {
        "conv/kernel": Var(2, 3),
        "block/kernel": Var(3, 3),
        "scale/variable_18": Var(3, 1),
    }
    assert [*match_keys(stored, loaded).items()] == list(
        zip(stored, loaded, strict=True)
    )
    mixed = {"dense/kernel": Var(2, 3), "b/kernel": Var(3, 3)}
    other = {"dense/kernel": Var(2, 4), "dense_1/kernel": Var(4, 3)}
    for misfit in (mixed, other, {}):
        with pytest.raises(ValueError, match="do not fit"):
            match_keys(shapes, misfit)
    with pytest.raises(ValueError, match=r"(?s)dense/kernel.*dense_1/kernel"):
        match_keys(shapes, other)  # both are listed


def test_paths_that_could_mean_several_layers_are_refused():
    def keys(stored, present, *wanted, **options):
        return match_keys(
            dict(stored),
            {k: Var(*s) for k, s in present},
            wanted or None,
            **options,
        )

    a, b, c, d = ((f"dense{n}/kernel", (4, 4)) for n in ("", "_1", "_2", "_3"))
    small, wide = ("dense_3/kernel", (4, 2)), ("dense_3/kernel", (4, 9))
    # One more layer of the same name and shape: it may be any of them.
    with pytest.raises(ValueError, match=r"(?s)number alone.*dense_2/kernel"):
        keys([a, b], [a, b, c])
    # One more of another shape cannot be meant, nor one of another name.
    assert keys([a, b], [a, b, small]) == {a[0]: a[0], b[0]: b[0]}
    assert keys([a, b], [("head/kernel", (4, 4)), a, b])[b[0]] == b[0]
    # A new head, with only the weights before it wanted.
    found = keys([a, b, c, small], [a, b, c, wide], b[0])
    assert found == {b[0]: b[0]}
    with pytest.raises(ValueError, match="number alone"):
        keys([a, b, small], [b, c, wide], b[0])
    with pytest.raises(ValueError, match="do not fit"):
        keys([a, b, small], [a, b, wide], small[0])
    # What a person wrote is taken at its word.
    assert keys([b], [a, b, c, d], by_name=True) == {b[0]: b[0]}
    with pytest.raises(ValueError, match="number alone"):
        keys([b], [a, b, c, d])
    # Below the name of a model, too.
    inside = [(f"enc/{key}", shape) for key, shape in (a, b, c)]
    assert keys([a, b, c], inside)[b[0]] == "enc/dense_1/kernel"
    with pytest.raises(ValueError, match="number alone"):
        keys([a, b], inside)


def chain(first):
    """Three layers of one shape, numbered from ``first``."""
    keras.backend.clear_session()
    for _ in range(first):
        L.Dense(3)
        L.BatchNormalization()
    inputs = x = keras.Input((8,))
    for _ in range(3):
        x = L.BatchNormalization()(L.Dense(8)(x))
    return keras.Model(inputs, x)


@pytest.mark.parametrize("shift", [0, 1, 2, 5])
def test_a_partial_ticket_finds_its_layer_where_numbers_have_moved(
    shift, tmp_path
):
    ticket = tt.prune(chain(0), 0.75, filters="dense_1/")
    ticket.save(tmp_path / "ticket")
    model = chain(shift)
    tt.Ticket.load(tmp_path / "ticket").apply(model)
    kept = [np.count_nonzero(layer.kernel) for layer in model.layers[1::2]]
    assert kept == [64, 16, 64]
    # By hand, of masks alone, a name is a name.
    model = chain(0)
    tt.Ticket(ticket.masks).apply(model, weights="keep")
    assert np.count_nonzero(model.layers[3].kernel) == 16


def test_a_channel_ticket_finds_its_layer_where_numbers_have_moved():
    model = chain(0)
    weights = {k: v.numpy() for k, v in named_weights(model).items()}
    key = "batch_normalization_1/gamma"
    ticket = tt.structured.ChannelTicket({key: np.arange(8) < 2}, weights)
    model = chain(1)
    ticket.apply(model)
    kept = [np.count_nonzero(layer.gamma) for layer in model.layers[2::2]]
    assert kept == [8, 2, 8]


def test_the_number_of_a_repeated_path_is_no_part_of_a_pattern():
    def tower():
        inputs = keras.Input((4,))
        return keras.Model(inputs, L.Dense(4, name="d")(inputs))

    inputs = keras.Input((4,))
    model = keras.Model(inputs, tower()(tower()(inputs)))
    assert len(tt.prunable_weights(model, "kernel$")) == 2
    assert [*tt.prunable_weights(model, "kernel#1$")] == ["d/kernel#1"]
    ticket = tt.prune(model, scope={"kernel$": 0.5})
    assert ticket.densities() == {"d/kernel": 0.5, "d/kernel#1": 0.5}


def test_all_weights_have_a_key():
    model = nested()
    assert len(named_weights(model)) == len(model.weights) == 6


def test_the_innermost_layer_owns_a_weight_whatever_comes_first():
    class Holder(keras.layers.Layer):
        """Holds a layer that the model holds, too, and a weight of its own."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.scale = self.add_weight(shape=(4,), name="scale")

        def call(self, x):
            return self.inner(x) * self.scale

    class Both(keras.Model):
        def __init__(self, first):
            super().__init__()
            dense = keras.layers.Dense(4)
            holder = Holder(dense)
            if first == "dense":
                self.one, self.other = dense, holder
            else:
                self.one, self.other = holder, dense
            self.dense, self.holder = dense, holder

        def call(self, x):
            return self.holder(self.dense(x))

    for first in ("dense", "holder"):
        model = Both(first)
        model(np.ones((1, 4)))
        found = owners(model)
        assert len(found) == len(model.weights) == 3
        assert found[id(model.dense.kernel)] is model.dense
        assert found[id(model.dense.bias)] is model.dense
        assert found[id(model.holder.scale)] is model.holder
        assert own_weights(model) == []
        assert own_weights(model.holder)[0] is model.holder.scale
        assert len(own_weights(model.holder)) == 1
