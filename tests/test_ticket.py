"""Tickets: values that save, load, apply, compare and derive controls."""

import copy
import pickle
import subprocess
import sys
import textwrap
import tracemalloc

import keras
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import tf_tickets as tt
from tests.conftest import batches, compiled, mlp
from tf_tickets import archive
from tf_tickets.masking import attached_masks
from tf_tickets.masks import hold_as_bits
from tf_tickets.selection import named_weights


@pytest.fixture
def ticket():
    return tt.prune(mlp(), sparsity=0.75)


def test_counts_follow_from_the_masks():
    masks = {"a": np.array([[1, 0], [0, 0]]), "b": np.array([[True, True]])}
    ticket = tt.Ticket(masks)
    assert (ticket.kept, ticket.size) == (3, 6)
    assert ticket.sparsity == ticket.density == 0.5
    assert ticket.densities() == {"a": 0.25, "b": 1.0}
    assert "3 of 6 weights" in repr(ticket)


def test_a_ticket_cannot_be_changed(ticket):
    path = next(iter(ticket.masks))
    with pytest.raises(ValueError, match="read-only"):
        ticket.masks[path][0, 0] = True
    with pytest.raises(TypeError):
        ticket.masks[path] = None
    with pytest.raises(ValueError, match="read-only"):
        ticket.weights[path][0, 0] = 1
    ticket.metadata["source"] = "elsewhere"
    assert ticket.metadata["source"] == "prune"


def test_a_ticket_does_not_follow_the_arrays_it_was_made_from():
    mask, weight = np.ones((2, 2), bool), np.ones((2, 2))
    ticket = tt.Ticket({"a": mask}, {"a": weight})
    mask[:] = False
    weight[:] = 0
    assert ticket.kept == 4 and ticket.weights["a"].sum() == 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        (({},), "needs a mask"),
        (({"a": np.array([0.5])},), "zeros and ones"),
        (({"a": np.ones(2)}, {"a": np.ones(3)}), "mask's shape"),
        (({"a": np.ones(2)}, {"b": np.ones(2)}), "missing"),
    ],
)
def test_what_is_no_ticket_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tt.Ticket(*arguments)


def test_apply_puts_mask_times_start_weights_into_the_model(ticket):
    model = mlp()
    assert (
        model.get_layer("hidden").kernel.numpy()
        != ticket.weights[model.get_layer("hidden").kernel.path]
    ).any()
    ticket.apply(model)
    for key, variable in named_weights(model).items():
        expected = ticket.weights[key] * ticket.masks.get(key, 1)
        np.testing.assert_array_equal(variable.numpy(), expected)


def test_apply_can_keep_the_weights_that_the_model_has(ticket):
    model = mlp()
    before = {k: v.numpy().copy() for k, v in named_weights(model).items()}
    ticket.apply(model, weights="keep")
    for key, variable in named_weights(model).items():
        expected = before[key] * ticket.masks.get(key, 1)
        np.testing.assert_array_equal(variable.numpy(), expected)


def test_a_misfit_lists_every_mismatch_and_changes_nothing(ticket):
    model = mlp(hidden=16)
    before = model.get_weights()
    with pytest.raises(ValueError, match="(?s)hidden/kernel.*head/kernel"):
        ticket.apply(model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert all(v.constraint is None for v in model.weights)
    with pytest.raises(ValueError, match="Received: weights='init'"):
        ticket.apply(mlp(), weights="init")
    with pytest.raises(ValueError, match="no start weights"):
        tt.Ticket(ticket.masks).apply(mlp())


def test_save_and_load_give_the_same_ticket(ticket, tmp_path):
    ticket.save(tmp_path / "t.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]
    loaded = tt.Ticket.load(tmp_path / "t.safetensors")
    for part in ("masks", "weights", "scores"):
        mine, theirs = getattr(ticket, part), getattr(loaded, part)
        assert list(mine) == list(theirs)
        for key in mine:
            np.testing.assert_array_equal(mine[key], theirs[key])
            assert mine[key].dtype == theirs[key].dtype
    assert loaded.metadata == ticket.metadata
    tt.Ticket(ticket.masks).save(tmp_path / "t.safetensors")
    assert tt.Ticket.load(tmp_path / "t.safetensors").weights is None


def test_masks_take_one_bit_a_weight(tmp_path):
    tt.Ticket({"a": np.ones((1000, 1000), bool)}).save(
        tmp_path / "t.safetensors"
    )
    assert (tmp_path / "t.safetensors").stat().st_size < 1_000_000 / 8 + 2000


@pytest.mark.parametrize("shape", [(3, 3), (0, 4), (1,), (17,)])
def test_masks_of_odd_sizes_survive(shape, tmp_path):
    mask = np.random.default_rng(0).random(shape) < 0.5
    tt.Ticket({"a": mask, "b": np.ones(1)}).save(tmp_path / "t.safetensors")
    loaded = tt.Ticket.load(tmp_path / "t.safetensors").masks["a"]
    np.testing.assert_array_equal(loaded, mask)


@pytest.mark.parametrize(
    "dtype",
    ["bool", "int8", "uint64", "float16", ">f4", "float64", "complex128"]
    + ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4"],
)
def test_every_type_of_number_survives(dtype, tmp_path):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    values = np.arange(-8, 7).reshape(3, 5).astype(dtype)
    weights = {
        "w": values,
        "turned": values.T,
        "column": values[:, 1],
        "scalar": values[1, 1].reshape(()),
        "empty": values[:0],
    }
    masks = {"w": values != 0}
    tt.Ticket(masks, weights).save(tmp_path / "t")
    loaded = tt.Ticket.load(tmp_path / "t").weights
    assert list(loaded) == list(weights)
    for key, value in weights.items():
        assert loaded[key].dtype == dtype.newbyteorder("=")
        assert loaded[key].shape == value.shape
        np.testing.assert_array_equal(
            loaded[key].astype("complex"), value.astype("complex")
        )


def test_arrays_are_read_one_by_one(tmp_path):
    size = 2**20
    weights = {f"w{i}": np.full(size, i, np.float32) for i in range(8)}
    masks = {key: np.ones(size, bool) for key in weights}
    tt.Ticket(masks, weights).save(tmp_path / "t")
    with archive.reading(tmp_path / "t", "ticket") as (_, parts):
        tracemalloc.start()
        assert list(parts["weights"]) == list(weights)
        for key, value in parts["weights"].items():
            assert (value == int(key[1:])).all()
            del value
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2.5 * 4 * size  # of eight


def test_other_programs_can_read_a_ticket(ticket, tmp_path):
    ticket.save(tmp_path / "t")
    found = load_file(tmp_path / "t")
    for key, value in ticket.weights.items():
        np.testing.assert_array_equal(found[f"weights:{key}"], value)


def test_bfloat16_weights_survive(tmp_path):
    model = mlp(dtype="bfloat16")
    ticket = tt.prune(model, 0.5)
    assert str(ticket.weights["mlp/hidden/kernel"].dtype) == "bfloat16"
    ticket.save(tmp_path / "t.safetensors")
    loaded = tt.Ticket.load(tmp_path / "t.safetensors")
    for key, value in ticket.weights.items():
        assert loaded.weights[key].dtype == value.dtype
        assert (loaded.weights[key] == value).all()


def test_a_new_process_with_other_layer_numbers_applies_it(tmp_path):
    # Automatic names: dense, dense_1 here, dense_3, dense_4 over there.
    keras.backend.clear_session()
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(6), keras.layers.Dense(4)]
    )
    ticket = tt.prune(model, 0.5)
    ticket.save(tmp_path / "ticket.safetensors")
    script = f"""
        import keras, numpy as np
        import tf_tickets as tt
        keras.Sequential([keras.Input((8,))] + [keras.layers.Dense(2)] * 1
                         + [keras.layers.Dense(2), keras.layers.Dense(2)])
        model = keras.Sequential([
            keras.Input((8,)), keras.layers.Dense(6), keras.layers.Dense(4)])
        tt.Ticket.load({str(tmp_path / "ticket.safetensors")!r}).apply(model)
        np.savez({str(tmp_path / "out.npz")!r}, *model.get_weights())
        print([v.path for v in model.weights])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ticket.apply(model)
    assert str([v.path for v in model.weights]) != done.stdout.strip()
    with np.load(tmp_path / "out.npz") as other:
        for i, weight in enumerate(model.get_weights()):
            np.testing.assert_array_equal(weight, other[f"arr_{i}"])


def damaged(kind, path):
    data = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "flipped":
        middle = len(data) // 2
        path.write_bytes(
            data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
        )
    elif kind == "text":
        path.write_text("not a ticket")
    elif kind == "foreign":
        with path.open("wb") as file:
            np.savez(file, a=np.ones(3))
    elif kind == "snapshot":
        tt.Snapshot.take(mlp()).save(path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"masks": {}}))
    elif kind == "array":
        with path.open("wb") as file:
            np.save(file, np.ones(3))


@pytest.mark.parametrize(
    "kind",
    ["truncated", "empty", "flipped", "text", "foreign", "snapshot"]
    + ["pickle", "array"],
)
def test_a_damaged_or_foreign_file_is_named_in_one_error(
    kind, ticket, tmp_path
):
    path = tmp_path / "some.file"
    ticket.save(path)
    damaged(kind, path)
    with pytest.raises(ValueError, match="some.file.*is not a whole"):
        tt.Ticket.load(path)


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tt.Ticket.load(tmp_path / "nowhere.file")


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    ticket, tmp_path, monkeypatch
):
    path = tmp_path / "t.safetensors"
    ticket.save(path)
    before = path.read_bytes()

    def full_disk(arrays, file, header):
        file.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        ticket.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


# No user, root included, can make a directory there.
@pytest.mark.parametrize("place", ["/proc/tickets/run", "/proc/self/tickets"])
def test_a_directory_that_cannot_be_made_is_named(place, ticket):
    with pytest.raises(OSError, match="/proc"):
        ticket.save(f"{place}.safetensors")


def test_hamming_distance_counts_differing_positions():
    a = tt.Ticket({"x": np.array([1, 1, 0, 0]), "y": np.array([1, 0])})
    b = tt.Ticket({"x": np.array([1, 0, 1, 0]), "y": np.array([1, 1])})
    assert a.hamming_distance(b) == b.hamming_distance(a) == 3 / 6
    assert a.hamming_distance(a) == 0
    with pytest.raises(ValueError, match="different weights"):
        a.hamming_distance(tt.Ticket({"x": np.ones(4)}))


def test_shuffle_moves_the_mask_and_keeps_the_count_of_every_tensor(ticket):
    shuffled = ticket.shuffle(seed=1)
    assert shuffled.densities() == ticket.densities()
    # Two independent masks of density 1/4 differ in 3/8 of the positions.
    assert 0.2 < ticket.hamming_distance(shuffled) < 0.5
    assert shuffled.hamming_distance(ticket.shuffle(seed=1)) == 0
    assert shuffled.hamming_distance(ticket.shuffle(seed=2)) > 0.1
    for key, value in ticket.weights.items():
        np.testing.assert_array_equal(value, shuffled.weights[key])
    assert shuffled.scores is None  # they belong to the mask that is gone


def test_reinitialize_draws_every_weight_anew_by_its_own_initializer():
    inputs = keras.Input((6, 5))
    x = keras.layers.LSTM(4, name="lstm")(inputs)
    x = keras.layers.Dense(64, name="wide", kernel_initializer="he_normal")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    model = keras.Model(
        inputs,
        keras.layers.Dense(
            3,
            name="head",
            kernel_initializer=keras.initializers.RandomNormal(5.0, seed=7),
        )(x),
    )
    trained = compiled(model, keras.optimizers.SGD(0.5))
    ticket = tt.prune(model, 0.5)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 6, 5)).astype("f")
    trained.fit(batches(x, np.arange(16) % 3), verbose=0)
    before = model.get_weights()
    fresh = ticket.reinitialize(model, seed=3)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)  # the model is only read
    assert fresh.hamming_distance(ticket) == 0
    for path in ticket.masks:
        assert (fresh.weights[path] != ticket.weights[path]).mean() > 0.99
    # The layer's distribution, even where its initializer has a fixed seed.
    assert abs(fresh.weights["head/kernel"].mean() - 5) < 0.1
    std = fresh.weights["wide/kernel"].std()
    assert std == pytest.approx(np.sqrt(2 / 4), rel=0.2)
    bias = fresh.weights["lstm/lstm_cell/bias"]
    np.testing.assert_array_equal(bias, np.repeat([0, 1, 0, 0], 4))
    np.testing.assert_array_equal(fresh.weights["norm/gamma"], np.ones(64))
    np.testing.assert_array_equal(fresh.weights["norm/moving_mean"], 0)
    assert fresh.metadata["not_reinitialized"] == []
    again = ticket.reinitialize(model, seed=3)
    other = ticket.reinitialize(model, seed=4)
    kernel = fresh.weights["wide/kernel"]
    assert (again.weights["wide/kernel"] == kernel).all()
    assert (other.weights["wide/kernel"] != kernel).any()


def test_a_masked_weight_without_initializer_is_refused():
    class Custom(keras.layers.Layer):
        def build(self, shape):
            self.table = self.add_weight(shape=(8, 3), name="table")

        def call(self, x):
            return x @ self.table

    model = keras.Sequential([keras.Input((8,)), Custom(name="own")])
    ticket = tt.prune(model, 0.5, filters="own")
    with pytest.raises(ValueError, match="own/table"):
        ticket.reinitialize(model)


def test_from_model_reads_masks_or_zeros():
    model = mlp()
    ticket = tt.prune(model, 0.75)
    ticket.apply(model)
    assert tt.Ticket.from_model(model).hamming_distance(ticket) == 0
    tt.release(model)  # now only the zeros tell
    assert tt.Ticket.from_model(model).hamming_distance(ticket) == 0
    part = tt.Ticket.from_model(model, filters="head")
    assert list(part.masks) == ["mlp/head/kernel"]


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_tickets_are_pickled_and_copied(copied, ticket):
    channels = tt.structured.ChannelTicket({"bn/gamma": [True, False]})
    for one in (ticket, channels):
        other = copied(one)
        assert type(other) is type(one)
        assert other.hamming_distance(one) == 0
        assert other.metadata == one.metadata
        for name in ("masks", "weights", "scores"):
            mine, theirs = getattr(one, name), getattr(other, name)
            assert (mine is None) == (theirs is None)
            for key, value in (mine or {}).items():
                np.testing.assert_array_equal(theirs[key], value)
                with pytest.raises(ValueError, match="read-only"):
                    theirs[key][...] = 0
            with pytest.raises(TypeError):
                (theirs or other.masks)["x"] = 1


def test_one_call_keeps_the_zeros_of_a_loaded_model(tmp_path, data):
    model = compiled(mlp(), "adam")
    ticket = tt.prune(model, 0.75)
    ticket.apply(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    found = tt.enforce_zeros(loaded)
    for mine, theirs in zip(
        ticket.masks.values(), found.masks.values(), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    loaded.fit(batches(*data), verbose=0)
    assert tt.Ticket.from_model(loaded).kept == ticket.kept
    assert sum(np.count_nonzero(k) for k in
               tt.prunable_weights(loaded).values()) == ticket.kept  # fmt: skip
    with pytest.raises(ValueError, match="nothing to keep"):
        tt.enforce_zeros(mlp())
    loaded.get_layer("head").kernel.assign(np.zeros((32, 4)))
    tt.release(loaded)
    with pytest.warns(UserWarning, match="will stay so.*head/kernel"):
        tt.enforce_zeros(loaded)


def test_numbers_of_numpy_are_numbers(ticket, tmp_path):
    shuffled = ticket.shuffle(np.int64(3))
    assert shuffled.hamming_distance(ticket.shuffle(3)) == 0
    shuffled.save(tmp_path / "ticket")
    assert tt.Ticket.load(tmp_path / "ticket").metadata["control_seed"] == 3
    drawn = tt.prune(mlp(), np.float64(0.5), seed=np.uint8(1),
                     iterations=np.int32(2))  # fmt: skip
    assert drawn.sparsity == 0.5
    assert type(drawn.metadata["seed"]) is int
    assert ticket.reinitialize(mlp(), np.int16(1)).metadata["control_seed"] == 1
    for seed in (-1, 0.5, True):
        with pytest.raises(ValueError, match="`seed`"):
            ticket.shuffle(seed)


def test_weights_above_the_range_of_float32_are_ranked_and_kept(tmp_path):
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(2, dtype="float64")]
    )
    values = np.array([[1e300, 2e300], [3e300, 1], [2, 1e-300], [4e300, 5]])
    model.layers[0].kernel.assign(values)
    ticket = tt.prune(model, 0.5)
    ticket.save(tmp_path / "ticket")
    tt.Ticket.load(tmp_path / "ticket").apply(model)
    np.testing.assert_array_equal(
        model.layers[0].kernel.numpy(), np.where(values > 1e100, values, 0)
    )


def test_kernels_without_any_weight_are_no_error(tmp_path):
    model = keras.Sequential([keras.Input((0,)), keras.layers.Dense(3)])
    for scope in ("global", "layer", "erk"):
        ticket = tt.prune(model, 0.5, scope=scope)
        assert (ticket.size, ticket.sparsity, ticket.density) == (0, 0.0, 1.0)
        assert "0 of 0" in repr(ticket)
        assert ticket.hamming_distance(ticket.shuffle()) == 0
        ticket.save(tmp_path / "ticket")
        tt.Ticket.load(tmp_path / "ticket").apply(model)


def test_magnitudes_take_no_room_in_a_file_and_come_back(tmp_path):
    model = mlp(hidden=256)
    ticket = tt.prune(model, 0.75)
    ticket.save(tmp_path / "ticket")
    whole = sum(w.nbytes for w in ticket.weights.values())
    assert (tmp_path / "ticket").stat().st_size < 1.3 * whole
    loaded = tt.Ticket.load(tmp_path / "ticket")
    assert loaded.metadata == ticket.metadata
    for path, score in ticket.scores.items():
        np.testing.assert_array_equal(loaded.scores[path], score)
        np.testing.assert_array_equal(score, np.abs(ticket.weights[path]))


def test_scores_of_other_weights_are_kept_as_they_are(tmp_path):
    """Of a ticket whose start weights were exchanged after the draw."""
    first = tt.prune(mlp(), 0.75)
    changed = {key: -2 * value for key, value in first.weights.items()}
    ticket = tt.Ticket(first.masks, changed, scores=first.scores)
    ticket.save(tmp_path / "ticket")
    for loaded in (
        tt.Ticket.load(tmp_path / "ticket"),
        pickle.loads(pickle.dumps(ticket)),
        copy.deepcopy(ticket),
    ):
        for path, score in first.scores.items():
            np.testing.assert_array_equal(loaded.scores[path], score)


def test_masks_alone_are_applied_saved_and_refused_in_one_sentence(tmp_path):
    model = mlp()
    before = model.get_weights()
    ticket = tt.prune(model, 0.75, weights=False)
    with pytest.raises(ValueError, match="no start weights.*weights='keep'"):
        ticket.apply(model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    ticket.save(tmp_path / "ticket")
    loaded = tt.Ticket.load(tmp_path / "ticket")
    assert loaded.weights is None and loaded.scores is None
    loaded.apply(model, weights="keep")
    kernels = [v.numpy() for v in tt.prunable_weights(model).values()]
    assert sum(int((k != 0).sum()) for k in kernels) == ticket.kept


def test_a_ticket_shares_what_nobody_can_write():
    """Derived tickets, and those from a file, hold no second copy."""
    ticket = tt.prune(mlp(), 0.75)
    shuffled = ticket.shuffle()
    assert all(
        shuffled.weights[path] is one for path, one in ticket.weights.items()
    )
    mine = {path: np.array(mask) for path, mask in ticket.masks.items()}
    copied = tt.Ticket(mine)
    for mask in mine.values():
        mask[:] = False
    assert copied.kept == ticket.kept


def test_a_ticket_from_a_file_is_shared_too(tmp_path):
    tt.prune(mlp(), 0.75).save(tmp_path / "ticket")
    loaded = tt.Ticket.load(tmp_path / "ticket")
    with pytest.raises(ValueError, match="read-only"):
        next(iter(loaded.weights.values()))[:] = 0
    shuffled = loaded.shuffle()
    assert all(
        shuffled.weights[path] is one for path, one in loaded.weights.items()
    )


def test_masks_held_as_bits_are_the_same_masks(tmp_path):
    model = mlp()
    ticket = tt.prune(model, 0.75)
    masks = {path: np.array(mask) for path, mask in ticket.masks.items()}
    hold_as_bits(ticket)
    for one in (ticket, pickle.loads(pickle.dumps(ticket)), ticket.shuffle()):
        assert one.kept == 96 and one.size == 384
    for path, mask in ticket.masks.items():
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, masks[path])
    ticket.save(tmp_path / "ticket")
    assert tt.Ticket.load(tmp_path / "ticket").hamming_distance(ticket) == 0
    ticket.apply(model)
    for path, variable in tt.prunable_weights(model).items():
        assert not variable.numpy()[~masks[path]].any()


def test_the_masks_of_a_model_are_read_as_copies():
    model = mlp()
    ticket = tt.prune(model, 0.75)
    ticket.apply(model)
    attached = attached_masks(model)
    for path, mask in attached.items():
        assert mask.dtype == bool and mask.flags.writeable
        np.testing.assert_array_equal(mask, ticket.masks[path])
        mask[:] = True  # a copy: the model's own stay
    for path, mask in attached_masks(model).items():
        np.testing.assert_array_equal(mask, ticket.masks[path])
