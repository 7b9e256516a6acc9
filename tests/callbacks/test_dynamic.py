"""Zeros that move: RigL, SET and regrowth against NumPy, in real fits."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_tickets as tt
from tests.conftest import DieAt, batches, compiled, two_replicas
from tf_tickets.callbacks import DynamicSparseTraining, GradualPruning
from tf_tickets.callbacks.dynamic import slots_of
from tf_tickets.pruning.exchange import exchanged, exchanged_in
from tf_tickets.pruning.patterns import Layout
from tf_tickets.selection import named_weights


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


def rigl(mask, weights, gradient, fraction):
    """The oracle: one update, weight by weight."""
    kept = [i for i in range(mask.size) if mask.flat[i]]
    moved = round(fraction * len(kept))
    kept.sort(key=lambda i: (-abs(weights.flat[i]), i))
    stay = set(kept[: len(kept) - moved])
    others = [i for i in range(mask.size) if i not in stay]
    others.sort(key=lambda i: (-abs(gradient.flat[i]), i))
    fresh = np.zeros(mask.size, bool)
    fresh[sorted(stay) + others[:moved]] = True
    return fresh.reshape(mask.shape)


@pytest.mark.parametrize("kind", ["distinct", "ties", "zeros"])
@pytest.mark.parametrize("fraction", [0, 0.01, 0.3, 1])
@pytest.mark.parametrize("density", [0, 0.1, 0.7, 1])
def test_an_update_is_that_of_the_publication(density, fraction, kind):
    rng = np.random.default_rng(1)
    mask = rng.random((9, 11)) < density
    draw = {
        "distinct": lambda: rng.normal(size=mask.shape),
        "ties": lambda: rng.integers(-2, 3, mask.shape).astype(float),
        "zeros": lambda: np.zeros(mask.shape),
    }[kind]
    weights, gradient = draw() * mask, draw()
    sizes = np.abs(weights[mask])
    fresh = exchanged(mask, sizes, np.abs(gradient), fraction)
    expected = mask if mask.all() else rigl(mask, weights, gradient, fraction)
    np.testing.assert_array_equal(fresh, expected)
    assert fresh.sum() == mask.sum()


class Record(keras.callbacks.Callback):
    """Before and after each step, and the dense gradient of its batch."""

    def __init__(self, data):
        super().__init__()
        self.batches = list(batches(*data))
        self.masks, self.weights, self.gradients, self.slots = [], [], [], []

    def on_train_batch_begin(self, batch, logs=None):
        x, y = self.batches[batch % len(self.batches)]
        with tf.GradientTape() as tape:
            loss = self.model.compute_loss(x=x, y=y, y_pred=self.model(x))
        kernels = tt.prunable_weights(self.model)
        slopes = tape.gradient(loss, [k.value for k in kernels.values()])
        self.gradients.append(
            {p: g.numpy() for p, g in zip(kernels, slopes, strict=True)}
        )

    def on_train_batch_end(self, batch, logs=None):
        self.masks.append(tt.Ticket.from_model(self.model).masks)
        kernels = tt.prunable_weights(self.model)
        self.weights.append({p: k.numpy() for p, k in kernels.items()})
        found = slots_of(self.model.optimizer, named_weights(self.model))
        self.slots.append({p: [s.numpy() for s in found[p]] for p in kernels})


@pytest.mark.parametrize(
    "options",
    [{}, {"jit_compile": True}],
    ids=["graph", "xla"],
)
def test_rigl_grows_by_the_gradient_of_its_own_step(options, data):
    traces, record = [], Record(data)

    def loss(y, logits):
        traces.append(1)
        return keras.losses.sparse_categorical_crossentropy(
            y, logits, from_logits=True
        )

    model = plain()
    model.compile("adam", loss, **options)
    sparse = DynamicSparseTraining(sparsity=0.7, every=3, until=0.8, seed=4)
    model.fit(batches(*data), epochs=5, verbose=0, callbacks=[sparse, record])
    if not options:
        # The gradients of the record are taken eagerly, once a step.
        assert len(traces) - 20 <= 3
    last = 0.8 * 20
    first = record.masks[0]
    sizes = {p: m.size for p, m in first.items()}
    assert sum(m.sum() for m in first.values()) == round(
        0.3 * sum(sizes.values())
    )
    moved = 0
    for step in range(2, 21):
        before, after = record.masks[step - 2], record.masks[step - 1]
        for path, mask in before.items():
            assert after[path].sum() == mask.sum()
            weights = record.weights[step - 1][path]
            assert (weights[~after[path]] == 0).all()
            if step % 3 or step >= last:
                np.testing.assert_array_equal(after[path], mask)
                continue
            fraction = 0.15 * (1 + math.cos(math.pi * step / last))
            # What is dropped is zero by now; what stays tells the rest.
            stay = mask & after[path]
            gone = int((mask & ~after[path]).sum())
            grown = after[path] & ~mask
            count = round(fraction * mask.sum())
            assert gone == grown.sum() <= count
            slope = np.abs(record.gradients[step - 1][path])
            assert slope[grown].min(initial=9) >= 0.999 * np.max(
                slope[~mask & ~after[path]], initial=0
            )
            assert (weights[grown] == 0).all()
            for slot in record.slots[step - 1][path]:
                assert (slot[grown] == 0).all() and (slot[stay] != 0).any()
            moved += gone
    assert moved > 10
    assert sparse.ticket.metadata["method"] == "rigl"
    assert "apply" not in vars(model.optimizer)
    for path, mask in sparse.ticket.masks.items():
        np.testing.assert_array_equal(mask, record.masks[-1][path])


def test_the_smallest_of_the_step_are_dropped(data):
    """Without a rate nothing moves, so that every number is known."""
    model, record = plain(keras.optimizers.SGD(0.0, momentum=0.9)), Record(data)
    sparse = DynamicSparseTraining(
        sparsity=0.6, every=2, until=1.0, drop_fraction=0.5, scope="layer"
    )
    model.fit(batches(*data), verbose=0, callbacks=[sparse, record])
    fraction = 0.25 * (1 + math.cos(math.pi * 2 / 4))
    for path, mask in record.masks[0].items():
        expected = rigl(
            mask, record.weights[0][path], record.gradients[1][path], fraction
        )
        np.testing.assert_array_equal(record.masks[1][path], expected)
        assert (record.masks[1][path] != mask).any()


def test_replicas_grow_by_the_gradient_of_all(data):
    def run(strategy):
        with strategy.scope():
            keras.utils.set_random_seed(1)
            model = plain(keras.optimizers.SGD(0.1))
        sparse = DynamicSparseTraining(
            sparsity=0.7, every=2, until=1.0, scope="layer"
        )
        model.fit(batches(*data), verbose=0, callbacks=[sparse])
        return sparse.ticket

    both = run(two_replicas())
    alone = run(tf.distribute.get_strategy())
    assert both.hamming_distance(alone) == 0


def test_several_steps_in_a_call_and_half_precision(data):
    keras.mixed_precision.set_global_policy("mixed_float16")
    model = plain(steps_per_execution=2)
    before = tt.prune(model, 0.5, scope="layer")
    before.apply(model)
    sparse = DynamicSparseTraining(sparsity=0.5, every=2, until=1.0)
    model.fit(batches(*data), epochs=8, verbose=0, callbacks=[sparse])
    assert sparse.ticket.kept == before.kept
    assert sparse.ticket.hamming_distance(before) > 0
    for path, mask in sparse.ticket.masks.items():
        assert mask.sum() == before.masks[path].sum()


@pytest.mark.parametrize(
    "kept_by, method", [("directory", "rigl"), ("both", "set")]
)
def test_a_run_goes_on_after_a_kill(kept_by, method, data, tmp_path):
    def run(name, die_at=None):
        keras.utils.set_random_seed(3)
        model = plain()
        sparse = DynamicSparseTraining(
            method, sparsity=0.6, every=3, seed=5,
            directory=tmp_path / name,
        )  # fmt: skip
        others = (
            [keras.callbacks.BackupAndRestore(tmp_path / f"{name}.backup")]
            if kept_by == "both"
            else []
        )
        try:
            model.fit(
                batches(*data), epochs=4, verbose=0,
                callbacks=[*others, sparse, DieAt(die_at)],
            )  # fmt: skip
        except KeyboardInterrupt:
            return None
        finally:
            sparse._undo.close()
            assert "apply" not in vars(model.optimizer)
        return sparse.ticket

    assert run("killed", die_at=2) is None
    resumed, whole = run("killed"), run("whole")
    assert resumed.hamming_distance(whole) == 0
    for mine, other in zip(
        whole.weights.values(), resumed.weights.values(), strict=True
    ):
        np.testing.assert_array_equal(mine, other)


def test_set_grows_at_random_and_a_mapping_says_where(data):
    def run(seed):
        keras.utils.set_random_seed(0)
        model = plain()
        sparse = DynamicSparseTraining(
            "set", scope={"hidden": 0.75}, every=1, seed=seed
        )
        model.fit(batches(*data), verbose=0, callbacks=[sparse])
        hidden, head = sparse.ticket.masks.values()
        assert hidden.sum() == 48 and head.all()
        return sparse.ticket

    assert run(1).hamming_distance(run(2)) > 0


def test_slots_of_weights_with_one_path_are_told_apart():
    def part():
        return keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(3, name="one")], name="part"
        )

    x = keras.Input((3,))
    model = keras.Model(x, keras.layers.Dense(1, name="one_b")(part()(x)))
    other = keras.Sequential([model, keras.layers.Dense(2, name="one")])
    other.build((None, 3))
    other.compile("adam")
    other.optimizer.build(other.trainable_variables)
    weights = named_weights(other)
    found = slots_of(other.optimizer, weights)
    for key, weight in weights.items():
        index = [id(v) for v in other.trainable_variables].index(id(weight))
        expected = [
            other.optimizer._momentums[index],
            other.optimizer._velocities[index],
        ]
        assert [id(s) for s in found[key]] == [id(s) for s in expected]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "snip"}, "'rigl' or 'set'. Received: method='snip'"),
        ({"sparsity": None}, "Received: sparsity=None"),
        ({"sparsity": 1.0}, "Received: sparsity=1.0"),
        ({"every": 0}, "Received: every=0"),
        ({"until": 0}, "Received: until=0"),
        ({"drop_fraction": 1.5}, "Received: drop_fraction=1.5"),
        ({"criterion": "x"}, "Received: criterion='x'"),
        ({"scope": "net"}, "Received: scope='net'"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DynamicSparseTraining(**{"sparsity": 0.5, **options})


def test_what_cannot_work_is_said_before_training(data, tmp_path):
    def fit(model, sparse, dataset=None, **options):
        model.fit(
            batches(*data) if dataset is None else dataset,
            verbose=0, callbacks=[sparse], **options,
        )  # fmt: skip

    endless = tf.data.Dataset.from_generator(
        lambda: iter(batches(*data)),
        output_signature=batches(*data).element_spec,
    )
    with pytest.raises(ValueError, match="steps_per_epoch"):
        fit(plain(), DynamicSparseTraining(sparsity=0.5), endless)
    sparser = plain()
    tt.prune(sparser, 0.9).apply(sparser)
    with pytest.raises(ValueError, match="below the current sparsity"):
        fit(sparser, DynamicSparseTraining(sparsity=0.5))
    with pytest.raises(ValueError, match="give `directory`"):
        backup = keras.callbacks.BackupAndRestore(tmp_path)
        plain().fit(
            batches(*data), verbose=0,
            callbacks=[backup, DynamicSparseTraining(sparsity=0.5)],
        )  # fmt: skip
    with pytest.raises(ValueError, match="masks of its own"):
        plain().fit(
            batches(*data), verbose=0,
            callbacks=[
                DynamicSparseTraining(sparsity=0.5),
                GradualPruning(target_sparsity=0.5, end_step=2),
            ],
        )  # fmt: skip


def test_a_step_that_hides_its_gradient_is_refused_for_rigl(data):
    class Own(keras.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x=x, y=y, y_pred=self(x))
            slopes = tape.gradient(loss, self.trainable_variables)
            self.second.apply(slopes, self.trainable_variables)
            return {"loss": loss}

    def model():
        x = keras.Input((8,))
        made = Own(x, keras.layers.Dense(4)(x))
        made.second = keras.optimizers.SGD()
        made.compile("sgd", "sparse_categorical_crossentropy")
        return made

    with pytest.raises(ValueError, match="no gradient.*method='set'"):
        model().fit(
            batches(*data), verbose=0,
            callbacks=[DynamicSparseTraining(sparsity=0.5, every=1)],
        )  # fmt: skip
    sparse = DynamicSparseTraining("set", sparsity=0.5, every=1)
    model().fit(batches(*data), verbose=0, callbacks=[sparse])
    assert sparse.ticket.sparsity == 0.5


def test_regrowth_draws_among_all_after_one_dense_step(data):
    """As the toolkit: pruned weights take the step before a drawing."""
    rate, record = 4.0, Record(data)
    model = plain(keras.optimizers.SGD(rate))
    start = {p: k.numpy() for p, k in tt.prunable_weights(model).items()}
    pruning = GradualPruning(
        target_sparsity=0.7, end_step=8, every=2, scope="layer", regrow=True
    )
    model.fit(batches(*data), epochs=3, verbose=0, callbacks=[pruning, record])
    schedule = tt.pruning.Polynomial(0.7, end_step=8)
    weights, back = start, 0
    mask = {p: np.ones(w.shape, bool) for p, w in start.items()}
    for step in range(1, 13):
        drawn = step % 2 == 0 and step <= 8
        for path in start:
            moved = weights[path] - rate * record.gradients[step - 1][path]
            if drawn:
                keep = int(record.masks[step - 1][path].sum())
                assert abs(keep - (1 - schedule(step)) * moved.size) <= 1
                order = np.argsort(-np.abs(moved), axis=None)[:keep]
                fresh = np.zeros(moved.size, bool)
                fresh[order] = True
                fresh = fresh.reshape(moved.shape)
                back += int((fresh & ~mask[path]).sum())
                mask[path] = fresh
            np.testing.assert_array_equal(
                record.masks[step - 1][path], mask[path]
            )
            np.testing.assert_allclose(
                record.weights[step - 1][path], moved * mask[path], atol=1e-4
            )
        weights = record.weights[step - 1]
    assert back > 0
    assert pruning.ticket.metadata["regrow"] is True


def test_regrowth_goes_on_after_a_kill(data, tmp_path):
    def run(name, die_at=None):
        keras.utils.set_random_seed(3)
        model = plain(keras.optimizers.SGD(4.0))
        pruning = GradualPruning(
            tt.pruning.Constant(0.6), every=3, scope="layer", regrow=True,
            directory=tmp_path / name,
        )  # fmt: skip
        try:
            model.fit(
                batches(*data), epochs=3, verbose=0,
                callbacks=[pruning, DieAt(die_at)],
            )  # fmt: skip
        except KeyboardInterrupt:
            return None
        return pruning.ticket

    assert run("killed", die_at=2) is None
    resumed, whole = run("killed"), run("whole")
    assert resumed.hamming_distance(whole) == 0
    assert resumed.sparsity == pytest.approx(0.6, abs=0.01)


def test_lifted_masks_are_back_if_the_step_fails(data):
    class Fail(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 3:
                raise KeyboardInterrupt

    model = plain()
    ticket = tt.prune(model, 0.5)
    ticket.apply(model)
    pruning = GradualPruning(
        target_sparsity=0.7, end_step=4, every=4, regrow=True
    )
    with pytest.raises(KeyboardInterrupt):
        model.fit(batches(*data), verbose=0, callbacks=[pruning, Fail()])
    pruning._undo.close()
    assert tt.Ticket.from_model(model).hamming_distance(ticket) == 0
    fused = plain(steps_per_execution=2)
    with pytest.raises(ValueError, match="steps_per_execution=1"):
        fused.fit(batches(*data), verbose=0, callbacks=[pruning])


@pytest.mark.parametrize("method", ["rigl", "set"])
@pytest.mark.parametrize("pattern", ["2:4", (2, 1), "rows"])
def test_zeros_move_and_keep_their_pattern(pattern, method, data):
    model, record = plain(), Record(data)
    sparse = DynamicSparseTraining(
        method,
        sparsity=None if pattern == "2:4" else 0.5,
        pattern=pattern,
        every=2,
        until=1.0,
        drop_fraction=0.8,
    )
    model.fit(batches(*data), epochs=2, verbose=0, callbacks=[sparse, record])
    height, width = {"rows": (1, None), "2:4": (4, 1)}.get(pattern, pattern)
    moved = 0
    for step, masks in enumerate(record.masks):
        for path, mask in masks.items():
            rows, columns = mask.shape
            side = width or columns
            blocks = mask.reshape(rows // height, height, columns // side, side)
            kept = blocks.sum((1, 3))
            if pattern == "2:4":
                assert (kept == 2).all()
            else:
                assert set(kept.ravel().tolist()) <= {0, height * side}
            before = record.masks[max(step - 1, 0)][path]
            assert mask.sum() == before.sum()
            moved += int((mask != before).sum())
    assert moved
    assert sparse.ticket.metadata["pattern"] == (
        pattern if isinstance(pattern, str) else str(pattern)
    )


def test_an_update_of_n_of_m_is_that_of_each_group():
    """The oracle: the smallest go, their groups grow the largest slopes."""
    rng = np.random.default_rng(0)
    layout = Layout("2:4", {"w": (1,)})
    score = rng.random((8, 5))
    order = score.reshape(2, 4, 5).argsort(1).argsort(1)
    mask = (order < 2).reshape(8, 5)
    sizes, growth = rng.random((8, 5)) * mask, rng.random((8, 5))
    fresh = exchanged_in(layout, "w", mask, sizes, growth, 0.5)
    kept = sorted(np.argwhere(mask).tolist(), key=lambda p: sizes[tuple(p)])
    expected = mask.copy()
    for i, j in kept[:10]:
        expected[i, j] = False
    stay = expected.copy()
    for group in range(2):
        for j in range(5):
            rows = range(4 * group, 4 * group + 4)
            free = sorted(
                (i for i in rows if not stay[i, j]), key=lambda i: -growth[i, j]
            )
            for i in free[: 2 - sum(stay[i, j] for i in rows)]:
                expected[i, j] = True
    np.testing.assert_array_equal(fresh, expected)


def test_groups_that_cannot_be_exchanged_are_told_before_training(data):
    for pattern, message in (
        ((3, 1), "must be of one size.*hidden"),
        ("8:16", "prunes nothing of plain/hidden"),
        ("1:4", "has the sparsity 0.75"),
    ):
        with pytest.raises(ValueError, match=message):
            sparse = DynamicSparseTraining(sparsity=0.5, pattern=pattern)
            plain().fit(batches(*data), verbose=0, callbacks=[sparse])
    model = plain()
    tt.prune(model, 0.5, scope="layer").apply(model)
    sparse = DynamicSparseTraining(sparsity=0.5, pattern="2:4")
    with pytest.raises(ValueError, match="keep other than N of each M"):
        model.fit(batches(*data), verbose=0, callbacks=[sparse])
