"""Patterns: every group as it should be, to the weight, against NumPy loops."""

import contextlib
import importlib
import itertools
import sys

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests.conftest import batches, compiled, mlp
from tf_tickets.callbacks import GradualPruning, IterativeMagnitudePruning
from tf_tickets.pruning import patterns

RNG = np.random.default_rng(0)


def one(*layers, shape):
    return keras.Sequential([keras.Input(shape), *layers])


def dense(values):
    """One dense layer with this kernel, and its path."""
    rows, columns = values.shape
    model = one(keras.layers.Dense(columns, name="one"), shape=(rows,))
    model.layers[0].kernel.assign(values)
    return model


def mask_of(model, *args, **options):
    (mask,) = tt.prune(model, *args, **options).masks.values()
    return mask


def n_of_m(values, keep, of, allowed=None):
    """The oracle: the ``keep`` best of every ``of`` in each column."""
    mask = np.zeros(values.shape, bool)
    for column in range(values.shape[1]):
        for start in range(0, values.shape[0], of):
            inside = [
                row
                for row in range(start, min(start + of, values.shape[0]))
                if allowed is None or allowed[row, column]
            ]
            best = sorted(inside, key=lambda r: (-abs(values[r, column]), r))
            mask[best[:keep], column] = True
    return mask


def whole_groups(values, numbers, budget, pool=np.mean):
    """The oracle: the best groups, until the next one is too large."""
    groups = [numbers == n for n in np.unique(numbers)]
    order = sorted(
        range(len(groups)), key=lambda i: (-pool(np.abs(values[groups[i]])), i)
    )
    mask = np.zeros(values.shape, bool)
    for i in order:
        if mask.sum() + groups[i].sum() > budget:
            break
        mask |= groups[i]
    return mask


def blocks(shape, height, width):
    numbers = np.zeros(shape, int)
    for i, j in np.ndindex(shape):
        numbers[i, j] = (i // height) * 1000 + j // width
    return numbers


@pytest.mark.parametrize("kind", ["distinct", "ties", "zeros"])
@pytest.mark.parametrize("rows", [16, 13])
@pytest.mark.parametrize("keep, of", [(2, 4), (1, 4), (4, 8), (3, 5)])
def test_every_group_of_m_holds_exactly_n_the_largest(keep, of, rows, kind):
    values = {
        "distinct": RNG.normal(size=(rows, 6)),
        "ties": RNG.integers(-2, 3, (rows, 6)).astype(float),
        "zeros": np.zeros((rows, 6)),
    }[kind].astype("float32")
    model = dense(values)
    ticket = tt.prune(model, pattern=f"{keep}:{of}")
    (mask,) = ticket.masks.values()
    np.testing.assert_array_equal(mask, n_of_m(values, keep, of))
    whole = rows // of * of
    groups = mask[:whole].reshape(-1, of, 6)
    assert (groups.sum(1) == keep).all()
    assert (mask[whole:].sum(0) == min(keep, rows - whole)).all()
    assert ticket.metadata["pattern"] == f"{keep}:{of}"
    assert ticket.metadata["requested_sparsity"] == 1 - keep / of


def test_no_mask_of_the_pattern_keeps_more_magnitude():
    values = RNG.normal(size=(4, 2)).astype("float32")
    mask = mask_of(dense(values), pattern="2:4")
    choices = [
        np.isin(np.arange(4), pair)
        for pair in itertools.combinations(range(4), 2)
    ]
    best = max(
        np.abs(values)[np.stack(pair, 1)].sum()
        for pair in itertools.product(choices, choices)
    )
    assert np.abs(values)[mask].sum() == best


@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("block", [(1, 4), (4, 1), (2, 3), (30, 30)])
@pytest.mark.parametrize("shape", [(8, 12), (7, 10)])
@pytest.mark.parametrize("sparsity", [0.3, 0.75])
def test_blocks_are_kept_or_pruned_whole(sparsity, shape, block, pool):
    values = RNG.normal(size=shape).astype("float32")
    numbers = blocks(shape, *block)
    with pytest.warns() if block == (30, 30) else contextlib.nullcontext():
        mask = mask_of(
            dense(values), sparsity,
            pattern=patterns.grouped(block, score=pool),
        )  # fmt: skip
    budget = round((1 - sparsity) * values.size)
    expected = whole_groups(values, numbers, budget, getattr(np, pool))
    np.testing.assert_array_equal(mask, expected)
    for number in np.unique(numbers):
        assert len(set(mask[numbers == number])) == 1
    largest = max(
        np.bincount(np.unique(numbers, return_inverse=True)[1].ravel())
    )
    assert 0 <= budget - mask.sum() < largest


@pytest.mark.parametrize("name", ["rows", "columns"])
def test_rows_and_columns_go_whole(name):
    values = RNG.normal(size=(6, 10)).astype("float32")
    numbers = np.indices(values.shape)[("rows", "columns").index(name)]
    mask = mask_of(dense(values), 0.5, pattern=name)
    np.testing.assert_array_equal(mask, whole_groups(values, numbers, 30))


def test_equal_blocks_are_kept_in_the_order_of_their_index():
    mask = mask_of(dense(np.ones((4, 8))), 0.5, pattern=(2, 4))
    assert mask[:2].all() and not mask[2:].any()


def test_a_callable_gives_the_groups_in_any_numbers():
    def diagonals(shape):
        rows, columns = np.indices(shape)
        return 7 * ((columns - rows) % shape[1]) - 3

    values = RNG.normal(size=(5, 6)).astype("float32")
    ticket = tt.prune(dense(values), 0.5, pattern=diagonals)
    (mask,) = ticket.masks.values()
    expected = whole_groups(values, diagonals(values.shape), 15)
    np.testing.assert_array_equal(mask, expected)
    assert ticket.metadata["pattern"].endswith("diagonals")


class Upwards(keras.layers.Conv2DTranspose):
    """Lays its kernel as its base does."""


LAYERS = {
    # layer, shape of an input, (kernel) -> its matrix, by hand
    "dense": (
        lambda: keras.layers.Dense(6), (9,),
        {"kernel": lambda k: k},
    ),
    "conv": (
        lambda: keras.layers.Conv2D(5, 3), (6, 6, 3),
        {"kernel": lambda k: k.reshape(27, 5)},
    ),
    "transposed": (
        lambda: keras.layers.Conv2DTranspose(5, 3), (6, 6, 2),
        {
            "kernel": lambda k: np.stack(
                [k[:, :, o].ravel() for o in range(5)], 1
            )
        },
    ),
    "subclass": (
        lambda: Upwards(5, 3),
        (6, 6, 2),
        {
            "kernel": lambda k: np.stack(
                [k[:, :, o].ravel() for o in range(5)], 1
            )
        },
    ),
    "depthwise": (
        lambda: keras.layers.DepthwiseConv2D(3, depth_multiplier=2),
        (6, 6, 3),
        {"kernel": lambda k: k.reshape(9, 6)},
    ),
    "separable": (
        lambda: keras.layers.SeparableConv1D(4, 5), (9, 3),
        {
            "depthwise_kernel": lambda k: k.reshape(5, 3),
            "pointwise_kernel": lambda k: k.reshape(3, 4),
        },
    ),
    "einsum": (
        lambda: keras.layers.EinsumDense("abcd,dce->abe", (None, 6)),
        (3, 4, 5),
        {"kernel": lambda k: k.reshape(20, 6)},
    ),
    "einsum_outputs_first": (
        lambda: keras.layers.EinsumDense("abc,dec->abde", (None, 2, 3)),
        (4, 7),
        {"kernel": lambda k: k.reshape(6, 7).T},
    ),
    "lstm": (
        lambda: keras.layers.LSTM(3), (4, 5),
        {"kernel": lambda k: k, "recurrent_kernel": lambda k: k},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_kind_is_the_matrix_that_it_is_stated_to_be(name):
    make, shape, matrices = LAYERS[name]
    model = one(make(), shape=shape)
    ticket = tt.prune(model, pattern="2:4")
    halves = tt.prune(model, 0.4, pattern="columns", scope="layer")
    weights = tt.prunable_weights(model)
    assert {w.name for w in weights.values()} == set(matrices)
    for path, weight in weights.items():
        matrix = matrices[weight.name]
        expected = n_of_m(matrix(weight.numpy()), 2, 4)
        np.testing.assert_array_equal(matrix(ticket.masks[path]), expected)
        kept = matrix(halves.masks[path])
        assert (kept.all(0) | ~kept.any(0)).all() and kept.any()


def test_attention_is_multiplied_over_its_inputs():
    layer = keras.layers.MultiHeadAttention(2, 3, output_shape=5)
    x = keras.Input((4, 8))
    model = keras.Model(x, layer(x, x))
    masks = tt.prune(model, pattern="2:4").masks
    for path, mask in masks.items():
        if "output" in path:  # heads × dimensions × output
            groups = mask.reshape(6, 5)[:4].reshape(1, 4, 5)
        else:  # input × heads × dimensions
            groups = mask.reshape(2, 4, 6)
        assert (groups.sum(1) == 2).all(), path


def test_an_embedding_is_tokens_by_dimensions():
    model = one(keras.layers.Embedding(8, 3), shape=(4,))
    mask = mask_of(model, 0.5, pattern="rows", filters="embeddings")
    assert mask.all(1).sum() == 4 and mask.any(1).sum() == 4


@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
@pytest.mark.parametrize("pattern", [(4, 1), (1, 4), "rows"])
def test_the_sparsity_is_exact_where_the_groups_allow_it(pattern, scope):
    # Every group has four weights.
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(12 if pattern != "rows" else 4),
            keras.layers.Dense(4),
            keras.layers.Dense(8 if pattern != "rows" else 4),
        ]
    )
    size = sum(v.size for v in map(np.asarray, model.weights[::2]))
    for kept in (12, 16, 20, size // 8 * 4):
        ticket = tt.prune(model, 1 - kept / size, pattern=pattern, scope=scope)
        assert ticket.kept == kept


def test_every_tensor_is_within_a_group_of_its_share():
    model = keras.Sequential(
        [
            keras.Input((9,)),
            keras.layers.Dense(50),
            keras.layers.Dense(7),
            keras.layers.Dense(3),
        ]
    )
    ticket = tt.prune(model, 0.6, pattern="rows", scope="layer")
    for mask in ticket.masks.values():
        assert abs(mask.sum() - 0.4 * mask.size) <= mask.shape[1]
    total = sum(mask.size for mask in ticket.masks.values())
    assert ticket.kept <= round(0.4 * total)


def test_a_mapping_holds_for_each_tensor_alone():
    model = mlp()
    ticket = tt.prune(model, pattern=(1, 4), scope={"hidden": 0.6, "head": 0.3})
    hidden, head = ticket.masks.values()
    # 102 weights of 256 hold 25 blocks, 90 of 128 hold 22.
    assert (hidden.sum(), head.sum()) == (100, 88)
    only = tt.prune(model, pattern="2:4", scope={"hidden": 0.5})
    hidden, head = only.masks.values()
    assert hidden.sum() == 128 and head.all()


def test_at_least_some_groups_stay_in_every_tensor():
    model = mlp()
    model.get_layer("head").kernel.assign(np.full((32, 4), 1e-6))
    ticket = tt.prune(model, 0.9, pattern=(2, 2), scope=tt.pruning.at_least(5))
    hidden, head = ticket.masks.values()
    assert head.sum() == 8 and ticket.kept == 36
    same = tt.prune(model, pattern="1:4", scope=tt.pruning.at_least(5))
    plain = tt.prune(model, pattern="1:4")
    assert same.hamming_distance(plain) == 0


@pytest.mark.parametrize("pattern", ["2:4", (4, 1), "rows"])
@pytest.mark.parametrize(
    "criterion", ["magnitude", "random", "lamp", "synflow"]
)
def test_every_criterion_draws_nested_masks_of_the_pattern(criterion, pattern):
    model = mlp()
    masks = []

    def watched(model, before, **options):
        masks.append({p: m.copy() for p, m in before.items()})
        return tt.pruning.CRITERIA[criterion](model, before, **options)

    watched.iterations = 4
    ticket = tt.prune(model, 0.5, pattern=pattern, criterion=watched)
    masks.append(dict(ticket.masks))
    assert 192 - 31 * (pattern == "rows") <= ticket.kept <= 192
    for wide, narrow in itertools.pairwise(masks):
        assert not any((narrow[p] & ~wide[p]).any() for p in wide)
    if pattern == "2:4":
        for mask in ticket.masks.values():
            assert (mask.reshape(-1, 4, mask.shape[1]).sum(1) == 2).all()
        # Between 3:4 and 2:4 no group is further than one weight ahead.
        counts = [
            {*masks[3][p].reshape(-1, 4, masks[3][p].shape[1]).sum(1).flat}
            for p in ticket.masks
        ]
        assert set().union(*counts) == {2, 3}


def test_what_is_pruned_already_stays_pruned_under_a_pattern():
    model = mlp()
    first = tt.prune(model, 0.3, criterion="random", scope="layer", seed=2)
    first.apply(model)
    weights = tt.prunable_weights(model)
    for path, mask in tt.prune(model, pattern="2:4").masks.items():
        values = weights[path].numpy()
        expected = n_of_m(values, 2, 4, allowed=first.masks[path])
        np.testing.assert_array_equal(mask, expected)
    blocked = tt.prune(model, 0.6, pattern=(2, 2))
    for path, mask in blocked.masks.items():
        assert not (mask & ~first.masks[path]).any()
        numbers = blocks(mask.shape, 2, 2)
        for number in np.unique(numbers):
            inside = first.masks[path] & (numbers == number)
            assert len(set(mask[inside])) <= 1


class Draws(keras.callbacks.Callback):
    """The mask of every step."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def on_train_batch_end(self, batch, logs=None):
        self.masks.append(
            {p: v.numpy() != 0
             for p, v in tt.prunable_weights(self.model).items()}
        )  # fmt: skip


@pytest.mark.parametrize("pattern", ["2:4", (2, 4)])
def test_gradual_pruning_tightens_to_the_pattern_in_one_trace(pattern, data):
    traces, draws = [], Draws()

    def loss(y, logits):
        traces.append(1)
        return keras.losses.sparse_categorical_crossentropy(
            y, logits, from_logits=True
        )

    model = mlp()
    model.compile("adam", loss)
    model.fit(batches(*data), verbose=0)
    before = len(traces)
    pruning = GradualPruning(
        target_sparsity=None if pattern == "2:4" else 0.5,
        end_step=8, every=1, pattern=pattern, scope="layer",
    )  # fmt: skip
    model.fit(batches(*data), epochs=3, verbose=0, callbacks=[pruning, draws])
    assert len(traces) <= 2 * before  # one for the masks, none for drawings
    for wide, narrow in itertools.pairwise(draws.masks):
        assert not any((narrow[p] & ~wide[p]).any() for p in wide)
    assert pruning.ticket.kept == 192
    schedule = tt.pruning.Polynomial(0.5, end_step=8)
    if pattern == "2:4":
        kept = [sum(m.sum() for m in masks.values()) for masks in draws.masks]
        assert kept[:8] == [round((1 - schedule(s)) * 384) for s in range(1, 9)]
        for mask in pruning.ticket.masks.values():
            assert (mask.reshape(-1, 4, mask.shape[1]).sum(1) == 2).all()
    else:
        for mask in pruning.ticket.masks.values():
            sums = mask.reshape(-1, 2, mask.shape[1] // 4, 4).sum((1, 3))
            assert set(sums.flat) <= {0, 8}
    assert pruning.ticket.metadata["pattern"] == str(pattern)


def test_imp_draws_the_pattern_and_resumes_no_other(data, tmp_path):
    def run(**options):
        imp = IterativeMagnitudePruning(
            rounds=2, epochs_per_round=1, directory=tmp_path / "run", **options
        )
        model = compiled(mlp())
        model.fit(batches(*data), epochs=imp.epochs, verbose=0, callbacks=[imp])
        return imp

    imp = run(pattern="1:4")
    assert imp.ticket.sparsity == 0.75
    first, last = (t.masks for t in imp.tickets)
    for path, mask in last.items():
        assert not (mask & ~first[path]).any()
        assert (mask.reshape(-1, 4, mask.shape[1]).sum(1) == 1).all()
        assert (first[path].reshape(-1, 4, mask.shape[1]).sum(1) == 2).all()
    assert imp.ticket.metadata["pattern"] == "1:4"
    with pytest.raises(ValueError, match="other arguments.*'pattern'"):
        run(target_sparsity=0.75)


def test_rows_that_miss_the_budget_go_on_where_they_ended(data, tmp_path):
    """No target lies on whole rows of 32 and of 4 weights."""

    def run(epochs):
        model = compiled(mlp())
        pruning = GradualPruning(
            target_sparsity=0.7, end_step=4, every=1, pattern="rows",
            directory=tmp_path, scope="layer",
        )  # fmt: skip
        model.fit(batches(*data), epochs=epochs, verbose=0, callbacks=[pruning])
        return pruning.ticket

    first, second = run(1), run(2)
    assert first.kept == second.kept <= round(0.3 * 384)
    assert first.hamming_distance(second) == 0
    # The same again on a model that is there already.
    model = compiled(mlp())
    first.apply(model)
    pruning = GradualPruning(
        target_sparsity=0.7, end_step=4, pattern="rows", scope="layer"
    )
    model.fit(batches(*data), verbose=0, callbacks=[pruning])
    assert pruning.ticket.kept == first.kept


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("2:1", "fewer than M. Received: pattern='2:1'"),
        ("4:4", "fewer than M"),
        ("0:4", "at least one"),
        ("2:4:8", "must be 'N:M'"),
        ("diagonals", "one of .'columns', 'rows'."),
        ((4,), "must be 'N:M'"),
        ((4, 0), "whole number of at least 1. Received: pattern=0"),
        ((4, True), "Received: pattern=True"),
        (4, "Received: pattern=4"),
        (lambda shape: np.zeros(3, int), "shape .3,. for a matrix of shape"),
        (lambda shape: np.zeros(shape), "number of its group.*float64"),
    ],
)
def test_a_bad_pattern_is_refused_before_training(pattern, message, data):
    for make in (
        lambda: tt.prune(mlp(), 0.5, pattern=pattern),
        lambda: compiled(mlp()).fit(
            batches(*data), verbose=0, epochs=1,
            callbacks=[IterativeMagnitudePruning(
                target_sparsity=0.5, epochs_per_round=1, pattern=pattern)],
        ),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sparsity": 0.6}, "has the sparsity 0.5.*Received: sparsity=0.6"),
        ({"scope": "erk"}, "take scope='layer'.*Received: scope='erk'"),
        ({"scope": {"head": 0.75}}, "has the sparsity 0.5"),
        ({"scope": {"head": 0.5}, "sparsity": 0.5}, "mapping says"),
        ({"scope": tt.pruning.at_least(99)}, "keeps fewer than 99"),
        ({"scope": "net"}, "Received: scope='net'"),
    ],
)
def test_what_contradicts_n_of_m_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tt.prune(mlp(), pattern="2:4", **options)


def test_callbacks_refuse_what_contradicts_n_of_m():
    for make, message in (
        (lambda: GradualPruning(
            target_sparsity=0.9, end_step=4, pattern="2:4"), "sparsity 0.5"),
        (lambda: GradualPruning(
            tt.pruning.Constant(0.9), pattern="2:4"), "sparsity 0.5"),
        (lambda: IterativeMagnitudePruning(
            prune_fraction=0.2, epochs_per_round=1, pattern="2:4"),
         "leave out `prune_fraction`"),
        (lambda: IterativeMagnitudePruning(
            target_sparsity=0.2, epochs_per_round=1, pattern="2:4"),
         "sparsity 0.5"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make()


def test_a_weight_that_n_of_m_would_leave_dense_is_named():
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(8, name="few"),
            keras.layers.Dense(4, name="more"),
        ]
    )
    with pytest.raises(ValueError, match="prunes nothing of .*few/kernel"):
        tt.prune(model, pattern="2:4")
    assert tt.prune(model, pattern="2:4", filters="more").sparsity == 0.5


def test_no_group_is_scored_where_there_is_none():
    with pytest.raises(ValueError, match="has no groups to score"):
        patterns.grouped("2:4", score="max")
    with pytest.raises(ValueError, match="Received: score='sum'"):
        patterns.grouped((4, 1), score="sum")


def test_controls_do_not_claim_a_pattern_they_have_not():
    ticket = tt.prune(mlp(), pattern="2:4")
    shuffled = ticket.shuffle(seed=1)
    assert "pattern" not in shuffled.metadata
    (mask, _) = shuffled.masks.values()
    assert (mask.reshape(2, 4, 32).sum(1) != 2).any()


def toolkit():
    """The array-level functions of the toolkit; they need no Keras 2."""
    name = "tensorflow_model_optimization.python.core.sparsity.keras."
    pytest.importorskip(name + "pruning_schedule")
    return importlib.import_module(name + "pruning_utils")


@pytest.mark.parametrize("zeros, of", [(2, 4), (1, 4), (4, 8)])
@pytest.mark.parametrize("shape", [(16, 6), (10, 5)])
def test_n_of_m_is_what_the_toolkit_draws(shape, zeros, of):
    tf = sys.modules["tensorflow"]
    utils = toolkit()
    values = RNG.normal(size=shape).astype("float32")
    turned = utils.weights_rearrange(tf.constant(values))
    theirs = utils.m_by_n_sparsity_mask_prepare(
        utils.generate_m_by_n_mask(turned, (zeros, of)), tf.TensorShape(shape)
    )
    ours = mask_of(dense(values), pattern=f"{of - zeros}:{of}")
    np.testing.assert_array_equal(ours, theirs.numpy().astype(bool))


@pytest.mark.parametrize("pooling, pool", [("AVG", "mean"), ("MAX", "max")])
@pytest.mark.parametrize("block", [(1, 4), (4, 1), (2, 3)])
@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_blocks_are_what_the_toolkit_draws(sparsity, block, pooling, pool):
    tf = sys.modules["tensorflow"]
    utils = toolkit()
    values = RNG.normal(size=(8, 12)).astype("float32")
    pooled = utils.factorized_pool(
        tf.abs(values), list(block), pooling, list(block), "SAME"
    ).numpy()
    # Its rule: as many blocks as round((1 - sparsity) * blocks), the largest.
    keep = round(pooled.size * (1 - sparsity))
    chosen = pooled >= np.sort(pooled.ravel())[-keep]
    theirs = utils.expand_tensor(tf.constant(chosen), list(block)).numpy()
    ours = mask_of(
        dense(values), sparsity, pattern=patterns.grouped(block, score=pool)
    )
    np.testing.assert_array_equal(ours, theirs)
