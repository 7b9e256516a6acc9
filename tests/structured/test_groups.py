"""Heads, widths and blocks go, and the model computes what it did without."""

import importlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests import gallery
from tests.conftest import ZerosHold, compiled
from tf_tickets.network.recorded import is_recorded
from tf_tickets.structured import (
    GroupTicket,
    WeightGroups,
    draw_groups,
    shrink,
)


def filled(model, seed=0):
    """The model with no weight that is zero or the same as another."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if "float" in weight.dtype:
            weight.assign(rng.normal(size=weight.shape) * 0.4)
    return model


def outputs(model, x):
    return np.asarray(model(x, training=False))


def tokens(model, count=3, length=6, seed=0):
    rng = np.random.default_rng(seed)
    words = rng.integers(0, gallery.VOCABULARY, (count, length))
    if not isinstance(model.input, dict):
        return words.astype("int32")
    padding = np.ones((count, length), "int32")
    padding[0, 4:] = 0
    return {"token_ids": words.astype("int32"), "padding_mask": padding}


# Who reads what a kernel makes, by the ends of their paths: so that a group can
# be silenced by hand, at its readers alone.
READERS = {
    "attention/query/kernel": "attention/attention_output/kernel",
    "attention/key/kernel": "attention/attention_output/kernel",
    "pooled/kernel": "logits/kernel",
    "intermediate/kernel": "output/kernel",
    "gate/kernel": "down/kernel",
    "wide/kernel": "narrow/kernel",
}


def silenced(model, ticket):
    """Outputs of the model in which nobody hears what the ticket prunes."""
    weights = {w.path: w for w in model.weights}
    before = [w.numpy() for w in model.weights]
    for key, mask in ticket.masks.items():
        end = next(e for e in READERS if key.endswith(e))
        reader = weights[key.removesuffix(end) + READERS[end]]
        value = reader.numpy()
        value[np.repeat(~mask, len(value) // mask.size)] = 0
        reader.assign(value)
    x = tokens_for(model)
    result = outputs(model, x)
    model.set_weights(before)
    return x, result


def tokens_for(model):
    if model.inputs[0].dtype == "int32":
        return tokens(model)
    return gallery.inputs(model, 4)


def two_ways():
    """Heads and widths of plain layers, in a functional model."""
    x = inputs = keras.Input((5, 8))
    attention = layers.MultiHeadAttention(4, 3, use_gate=True, name="attention")
    x = layers.LayerNormalization()(x + attention(x, x))
    # An activation that is not zero at zero.
    wide = layers.EinsumDense(
        "abc,cd->abd", (None, 10), "sigmoid", bias_axes="d", name="wide"
    )
    x = x + layers.Dense(8, name="narrow")(wide(x))
    return keras.Model(inputs, layers.Dense(2)(x))


def gpt():
    return gallery.bert(depth=1, normalize_first=True, activation=gallery._gelu)


def in_sequence():
    return keras.Sequential(
        [
            keras.Input((5, 8)),
            gallery.Encoder(12, 2, "sigmoid", name="block"),
            keras.Sequential([gallery.Encoder(12, 4, name="inner")], name="in"),
            layers.Dense(2),
        ]
    )


def twice():
    """One block, called twice."""
    x = inputs = keras.Input((5, 8))
    block = gallery.Encoder(12, 2, name="block")
    return keras.Model(inputs, layers.Dense(2)(block(block(x))))


NETWORKS = [
    gallery.bert,
    gpt,
    gallery.llama,
    two_ways,
    in_sequence,
    twice,
]


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_shrunk_is_the_model_in_which_nobody_hears_the_groups(make, float64):
    model = filled(make())
    ticket = draw_groups(model, 0.5)
    x, expected = silenced(model, ticket)
    small, report = shrink(model, ticket, return_report=True)
    np.testing.assert_allclose(outputs(small, x), expected, atol=1e-9)
    assert np.abs(outputs(model, x) - expected).max() > 1e-3
    assert not report.stops and report.removed == report.asked > 0
    assert small.count_params() < model.count_params()
    # The same under other names of the same weights, with zeros in place.
    ticket.apply(model)
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-9)
    assert [w.path for w in small.weights] == [w.path for w in model.weights]


def test_float32_agrees_to_rounding():
    model = filled(gallery.bert(depth=1))
    ticket = draw_groups(model, {"heads": 0.5, "widths": 0.75})
    x, expected = silenced(model, ticket)
    small = shrink(model, ticket)
    np.testing.assert_allclose(outputs(small, x), expected, atol=1e-5)
    block = small.get_layer("block_0")
    assert isinstance(block, gallery.Encoder)
    assert block._attention.num_heads == 2 and block._intermediate.units == 6


LOAD = """
import sys
import numpy as np
import keras
import tf_tickets
from tests import gallery
model = keras.models.load_model(sys.argv[1])
given = np.load(sys.argv[2])
x = {name: given[name] for name in ("token_ids", "padding_mask")}
np.testing.assert_allclose(model(x), given["expected"], atol=1e-6)
assert model.get_layer("block_0")._attention.num_heads == 1
model.compile("sgd", "mse", run_eagerly=True)
model.fit(x, given["expected"], verbose=0)
"""


def test_the_small_model_trains_and_another_process_loads_it(tmp_path):
    model = compiled(filled(gallery.bert(depth=1, dropout=0.1)), "adam")
    ticket = draw_groups(model, 0.75)
    small = shrink(model, ticket)
    x = tokens(model, 8)
    before = outputs(small, x)
    small.compile("adam", "mse")
    small.fit(x, np.zeros_like(before), verbose=0)
    after = outputs(small, x)
    assert np.abs(after - before).max() > 1e-4
    small.save(tmp_path / "small.keras")
    np.savez(tmp_path / "given.npz", **x, expected=after)
    subprocess.run(
        [
            sys.executable,
            "-c",
            LOAD,
            tmp_path / "small.keras",
            tmp_path / "given.npz",
        ],
        check=True,
    )


def test_all_weights_of_a_group_stay_zero_while_training():
    model = compiled(filled(gpt()), "adam", run_eagerly=True)
    ticket = draw_groups(model, 0.5)
    ticket.apply(model)
    x = tokens(model, 8)
    watch = ZerosHold(ticket.element_masks(model))
    model.fit(x, np.arange(8) % 4, epochs=2, verbose=0, callbacks=[watch])
    block = model.get_layer("block_0")
    [heads] = [m for k, m in ticket.masks.items() if "block_0/attention" in k]
    for part in (block._attention.query_dense, block._attention.value_dense):
        assert not part.kernel.numpy()[:, ~heads].any()
        assert not part.bias.numpy()[~heads].any()
        assert part.kernel.numpy()[:, heads].all()
    assert not block._attention.output_dense.kernel.numpy()[~heads].any()
    np.testing.assert_allclose(
        outputs(shrink(model, ticket), x), outputs(model, x), atol=1e-5
    )


# --- what is drawn ------------------------------------------------------------


def test_the_fraction_of_every_layer_is_exact():
    model = filled(gallery.bert())
    ticket = draw_groups(model, {"heads": 0.25, "widths": 0.125})
    kept = {k: int(m.sum()) for k, m in ticket.masks.items()}
    assert kept.pop("pooled/kernel") == 14
    assert kept == {
        f"block_{i}/{end}/kernel": count
        for i in range(2)
        for end, count in (("attention/query", 3), ("intermediate", 21))
    }
    anywhere = draw_groups(model, 0.5, groups="widths", scope="global")
    assert anywhere.kept == 32 and len(anywhere.masks) == 3


def test_every_layer_keeps_one_whatever_the_scores():
    model = filled(gallery.bert())

    def first_block(model, groups, *, data, seed):
        return {
            k: np.full(f.stays.size, float("block_0" in k))
            for k, f in groups.families.items()
        }

    ticket = draw_groups(
        model, 0.5, criterion=first_block, scope="global", groups=["heads"]
    )
    assert [int(m.sum()) for m in ticket.masks.values()] == [3, 1]


def test_magnitude_is_the_norm_of_all_that_a_head_holds():
    model = filled(gallery.bert(depth=1))
    ticket = draw_groups(model, 0.5, groups=["heads"])
    block = model.get_layer("block_0")
    squares = np.zeros(4)
    for weight in block._attention.weights:
        value = np.square(weight.numpy())
        if weight.path.endswith("attention_output/bias"):
            continue
        axis = value.shape.index(4)  # that of the heads; one is 4 itself
        if "attention_output" in weight.path or value.ndim == 2:
            axis = 0
        else:
            axis = 1
        squares += value.sum(tuple(i for i in range(value.ndim) if i != axis))
    norms = np.sqrt(squares)
    [scores] = ticket.scores.values()
    np.testing.assert_allclose(scores, norms / norms.mean(), rtol=1e-6)
    [mask] = ticket.masks.values()
    assert set(np.flatnonzero(mask)) == set(np.argsort(norms)[2:])


def test_taylor_is_what_the_loss_feels_of_a_group(float64):
    """Scaling all weights of a group by 1 + t changes the loss by score t."""
    model = filled(gallery.bert(depth=1))
    model.compile(loss="mse")
    x, y = tokens(model, 6), np.ones((6, 4))
    ticket = draw_groups(model, 0.5, criterion="taylor", data=(x, y))
    weights = {w.path: w for w in model.weights}
    key = "block_0/intermediate/kernel"
    for unit in (0, 7):
        losses = []
        for t in (1e-5, -1e-5):
            before = [w.numpy() for w in model.weights]
            for path, axis in (
                (key, 1),
                ("block_0/intermediate/bias", 0),
                ("block_0/output/kernel", 0),
            ):
                value = np.moveaxis(weights[path].numpy(), axis, 0)
                value[unit] *= 1 + t
                weights[path].assign(np.moveaxis(value, 0, axis))
            losses.append(np.mean((outputs(model, x) - y) ** 2))
            model.set_weights(before)
        slope = (losses[0] - losses[1]) / 2e-5
        np.testing.assert_allclose(
            ticket.scores[key][unit], abs(slope), rtol=1e-4
        )


def test_random_is_the_control_of_a_seed():
    model = filled(gallery.llama())
    one, two, other = (
        draw_groups(model, 0.5, criterion="random", seed=seed)
        for seed in (1, 1, 2)
    )
    assert one.hamming_distance(two) == 0 < one.hamming_distance(other)


def test_heads_that_share_keys_go_together():
    model = filled(gallery.llama())
    groups = WeightGroups(model)
    kinds = {k: (f.kind, f.stays.size) for k, f in groups.families.items()}
    assert kinds["block_0/attention/key/kernel"] == ("heads", 2)
    assert kinds["block_0/gate/kernel"] == ("widths", 24)
    small = shrink(model, draw_groups(model, 0.5, groups=["heads"]))
    attention = small.get_layer("block_0").attention
    assert attention.num_query_heads == 2
    assert attention.num_key_value_heads == 1


# --- blocks -------------------------------------------------------------------


def test_a_block_that_adds_can_go_whole(float64, tmp_path):
    model = filled(gallery.gpt())
    ticket = draw_groups(model, 0.5, groups="blocks")
    assert [len(m) for m in ticket.masks.values()] == [1, 1]
    [gone] = [key for key, mask in ticket.masks.items() if not mask[0]]
    x = tokens(model)
    block = model.get_layer(gone)
    before = model.get_weights()
    for layer in (block._attention.output_dense, block._output):
        for weight in layer.weights:
            weight.assign(ops.zeros_like(weight))
    expected = outputs(model, x)
    model.set_weights(before)
    small = shrink(model, ticket)
    assert gone not in [layer.name for layer in small.layers]
    np.testing.assert_allclose(outputs(small, x), expected, atol=1e-9)
    ticket.save(tmp_path / "ticket")
    GroupTicket.load(tmp_path / "ticket").apply(model)
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-9)


def test_a_block_in_a_sequence_can_go_whole():
    model = filled(
        keras.Sequential(
            [
                keras.Input((5, 8)),
                gallery.Encoder(12, 2, normalize_first=True, name="one"),
                gallery.Encoder(12, 2, normalize_first=True, name="two"),
            ]
        )
    )
    one, two = draw_groups(model, 0.5, groups="blocks").masks
    small = shrink(model, GroupTicket({one: [False], two: [True]}))
    x = gallery.inputs(model, 2)
    np.testing.assert_allclose(outputs(small, x), model.layers[1](x), atol=1e-6)


def test_a_block_that_normalizes_last_is_not_offered():
    with pytest.raises(ValueError, match=r"no such groups.*blocks"):
        draw_groups(filled(gallery.bert()), 0.5, groups=["blocks"])


# --- how layers are rebuilt ---------------------------------------------------


@keras.saving.register_keras_serializable("tests")
class Block(layers.Layer):
    """As in tutorials: layers are made at once, and built when called."""

    def __init__(self, width, heads, inner, **kwargs):
        super().__init__(**kwargs)
        self.arguments = {"width": width, "heads": heads, "inner": inner}
        self.attention = layers.MultiHeadAttention(heads, width)
        self.inner = keras.Sequential(
            [layers.Dense(inner, activation="relu"), layers.Dense(width)]
        )
        self.norms = {"one": layers.LayerNormalization()}

    def call(self, x, training=None):
        x = self.norms["one"](x + self.attention(x, x))
        return x + self.inner(x, training=training)

    def get_config(self):
        return {**super().get_config(), **self.arguments}


def tutorial():
    inputs = keras.Input((5, 8))
    x = Block(8, 2, 12, name="block")(inputs)
    return keras.Model(inputs, layers.Dense(3)(x))


def test_what_a_configuration_can_say_it_says():
    """Such a layer needs no record: it is saved as ever."""
    model = filled(tutorial())
    small = shrink(model, draw_groups(model, 0.5))
    block = small.get_layer("block")
    assert type(block) is Block
    assert not block.inner.layers[1].activation(-1.0) > -1.0
    assert block.arguments == {"width": 8, "heads": 1, "inner": 6}


def test_layers_that_differ_are_recorded_and_cut_again(tmp_path, float64):
    model = filled(tutorial())
    masks = {
        key: np.arange(family.stays.size) % 3 > 0
        for key, family in WeightGroups(model).families.items()
        if family.kind == "widths"
    }
    first = shrink(model, GroupTicket(masks))
    model = filled(gallery.bert(depth=1))
    x = tokens(model)
    for rate in (0.25, 0.4):
        small = shrink(model, ticket := draw_groups(model, rate))
        ticket.apply(model)
        expected = outputs(model, x)
        np.testing.assert_allclose(outputs(small, x), expected, atol=1e-9)
        assert is_recorded(small.get_layer("block_0"))
        small.save(tmp_path / "small.keras", overwrite=True)
        model = keras.models.load_model(tmp_path / "small.keras")
        np.testing.assert_allclose(outputs(model, x), expected, atol=1e-9)
    assert first.get_layer("block").arguments["inner"] == 8
    assert "tf_tickets" not in str(tutorial().get_config())


@keras.saving.register_keras_serializable("tests")
class Grown(layers.Layer):
    """Blocks in a list that grows as the layer is built."""

    def __init__(self, depth, **kwargs):
        super().__init__(**kwargs)
        self.depth = depth

    def build(self, shape):
        self.blocks = []
        for i in range(self.depth):
            block = gallery.Encoder(12, 4, name=f"in_{i}")
            block.build(shape)
            self.blocks.append(block)

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return x

    def get_config(self):
        return {**super().get_config(), "depth": self.depth}


def test_blocks_inside_a_layer_are_rebuilt_too(tmp_path):
    model = filled(
        keras.Sequential([keras.Input((5, 8)), Grown(2), layers.Dense(2)])
    )
    ticket = draw_groups(model, 0.5)
    x, expected = silenced(model, ticket)
    small = shrink(model, ticket)
    np.testing.assert_allclose(outputs(small, x), expected, atol=1e-5)
    assert small.layers[0].blocks[1]._attention.num_heads == 2
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    np.testing.assert_allclose(outputs(loaded, x), expected, atol=1e-5)


# --- what stays ---------------------------------------------------------------


class Around(layers.Layer):
    """An attention of four heads, used in a way that the test gives."""

    def __init__(self, use, **kwargs):
        super().__init__(**kwargs)
        self.use = use
        self.attention = layers.MultiHeadAttention(4, 2)
        self.scale = self.add_weight((4,), name="scale")

    def build(self, shape):
        self.attention.build(shape, shape)

    def call(self, x, training=None):
        return self.use(self, x, training)

    def get_config(self):
        return {**super().get_config(), "use": self.use}


def averaged(self, x, training):
    y, scores = self.attention(x, x, return_attention_scores=True)
    scale = ops.reshape(self.scale, (1, 4, 1, 1))
    return y + ops.sum(scores * scale, axis=(1, 2, 3), keepdims=True)[:, 0]


def for_each_head(self, x, training):
    mask = np.arange(4 * 5 * 5).reshape(1, 4, 5, 5) % 3 > 0
    return self.attention(x, x, attention_mask=mask)


def only_in_training(self, x, training):
    return self.attention(x, x) if training else x


def raw(self, x, training):
    return x @ self.attention.query_dense.kernel[:, 0, :1] @ ops.ones((1, 8))


@pytest.mark.parametrize(
    "use", [averaged, for_each_head, only_in_training, raw]
)
def test_heads_that_are_used_in_another_way_are_not_offered(use):
    x = keras.Input((5, 8))
    model = keras.Model(x, Around(use)(x))
    assert not WeightGroups(model).families


@keras.saving.register_keras_serializable("tests")
class Counted(layers.Layer):
    """It divides by a number of its own, which a configuration changes."""

    def __init__(self, heads, **kwargs):
        super().__init__(**kwargs)
        self.heads = heads
        self.attention = layers.MultiHeadAttention(heads, 2)

    def build(self, shape):
        self.attention.build(shape, shape)

    def call(self, x):
        return self.attention(x, x) / self.heads

    def get_config(self):
        return {**super().get_config(), "heads": self.heads}


def test_a_configuration_that_changes_more_than_sizes_is_not_used():
    x = keras.Input((5, 8))
    model = filled(keras.Model(x, Counted(4)(x)))
    small = shrink(model, ticket := draw_groups(model, 0.5, groups=["heads"]))
    assert small.layers[1].heads == 4 and is_recorded(small.layers[1])
    ticket.apply(model)
    x = gallery.inputs(model, 3)
    np.testing.assert_allclose(outputs(small, x), outputs(model, x), atol=1e-6)


class Numbered(layers.Layer):
    """It says how many heads there are, where it should ask."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.make = layers.EinsumDense("abc,cde->abde", (None, 4, 2))
        self.read = layers.EinsumDense("abde,dec->abc", (None, 8))

    def call(self, x):
        y = ops.reshape(self.make(x), (-1, 5, 4, 2))
        return self.read(y)


def test_a_number_of_heads_in_the_code_is_refused():
    x = keras.Input((5, 8))
    model = keras.Model(x, Numbered(name="numbered")(x))
    ticket = draw_groups(model, 0.5, groups=["heads"])
    with pytest.raises(ValueError, match=r"does not compute the same.*number"):
        shrink(model, ticket)


# --- errors -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": ["head"]}, "groups"),
        ({"criterion": "gamma"}, "criterion"),
        ({"scope": "erk"}, "scope"),
        ({"criterion": "taylor"}, "needs a loss"),
        ({"groups": ["channels"]}, "no such groups"),
        ({"sparsity": 1.0}, "sparsity"),
    ],
)
def test_bad_arguments_are_told(options, message):
    options = {"sparsity": 0.5, **options}
    with pytest.raises(ValueError, match=message):
        draw_groups(gallery.bert(depth=1), **options)


def test_a_ticket_of_another_architecture_is_refused():
    model = gallery.bert(depth=1)
    ticket = draw_groups(model, 0.5)
    with pytest.raises(ValueError, match="does not|do not fit"):
        shrink(gallery.bert(heads=2, depth=1), ticket)
    with pytest.raises(ValueError, match="does not have"):
        shrink(model, GroupTicket({"nothing/kernel": [True, False]}))


@pytest.mark.parametrize("name", sorted(gallery.HUB))
def test_backbones_of_kerashub(name, tmp_path):
    pytest.importorskip("keras_hub")
    options = {
        "ViTBackbone": {"num_heads": 4},
        "LlamaBackbone": {"num_query_heads": 4, "num_key_value_heads": 2},
    }
    model = filled(gallery.GALLERY[name](**options.get(name, {"num_heads": 4})))
    x = gallery.inputs(model, 3)
    ticket = draw_groups(model, 0.5)
    with pytest.warns(UserWarning, match="plain functional"):
        small = shrink(model, ticket)
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    ticket.apply(model)
    for one, other, third in zip(
        *(keras.tree.flatten(m(x)) for m in (model, small, loaded)), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)
        np.testing.assert_allclose(one, third, atol=1e-5)


def counted(model, length):
    """Multiply-accumulates of all kernels, from their shapes alone."""
    return sum(
        int(np.prod(w.shape))
        * (1 if "pooled" in w.path or "logits" in w.path else length)
        for w in model.weights
        if w.name == "kernel"
    )


@pytest.mark.parametrize("flops", [0.7, 0.4])
def test_a_target_takes_as_many_groups_as_it_needs(flops, float64):
    model = filled(gallery.bert(length=6, depth=1))
    drawn = draw_groups(model, {"heads": 0.25, "widths": 0.5})
    small, report = shrink(model, drawn, flops=flops, return_report=True)
    assert report.macs == (counted(model, 6), counted(small, 6))
    assert report.macs[1] <= flops * report.macs[0]
    assert f"pruning {report.sparsity:.4f}" in str(report)
    # The proportions stay: it is the draw at that sparsity.
    again = draw_groups(
        model, {"heads": report.sparsity / 2, "widths": report.sparsity}
    )
    x, expected = silenced(model, again)
    np.testing.assert_allclose(outputs(small, x), expected, atol=1e-9)
    # One group less would be too much.
    less = {
        k: max(v - 0.05, 0)
        for k, v in again.metadata["requested_sparsity"].items()
    }
    _, other = shrink(model, draw_groups(model, less), return_report=True)
    assert other.macs[1] > flops * report.macs[0]
    assert other.sparsity is None


def test_widths_stay_in_multiples_and_heads_as_they_are(float64):
    model = filled(gallery.bert(length=6, depth=1))
    drawn = draw_groups(model, {"heads": 0.25, "widths": 0.5})
    small, report = shrink(model, drawn, round_to=8, return_report=True)
    sizes = {
        name.rpartition("/")[2]: after
        for name, (_, after) in report.layers.items()
    }
    assert sizes["intermediate"] == 16  # 12 of 24 were to stay
    assert sizes["query"] == 3
    # The best come back: those with the highest scores.
    kept = {}
    for key, scores in drawn.scores.items():
        size = 8 if "pooled" in key else 16 if scores.size > 4 else 3
        kept[key] = np.isin(np.arange(scores.size), np.argsort(-scores)[:size])
    x, expected = silenced(model, GroupTicket(kept))
    np.testing.assert_allclose(outputs(small, x), expected, atol=1e-9)


def test_blocks_count_as_what_they_compute():
    model = filled(gallery.bert(length=6, depth=3, normalize_first=True))
    drawn = draw_groups(model, 0.5, groups=["blocks"])
    small, report = shrink(model, drawn, flops=0.6, return_report=True)
    assert report.macs == (counted(model, 6), counted(small, 6))
    assert report.removed == 2


def test_a_target_of_time_is_of_groups_too(monkeypatch):
    from tf_tickets.structured import target

    def latencies(model, small):
        times = [1e-6 * one.count_params() for one in (model, small)]
        return tuple(target.Latency(t, t, t, 1) for t in times)

    monkeypatch.setattr(target, "latencies", latencies)
    module = importlib.import_module("tf_tickets.structured.shrink")
    monkeypatch.setattr(module, "latencies", latencies)
    model = two_ways()
    drawn = draw_groups(model, 0.5, groups=["widths"])
    _, report = shrink(model, drawn, latency=0.9, return_report=True)
    before, after = report.latency
    assert 0.85 * before < after <= 0.9 * before
    assert after == 1e-6 * report.parameters[1]


def test_what_a_target_of_groups_needs():
    model = gallery.bert(length=6, depth=1)
    drawn = draw_groups(model, 0.5)
    bare = GroupTicket(drawn.masks)
    with pytest.raises(ValueError, match="needs the scores"):
        shrink(model, bare, flops=0.5)
    with pytest.raises(ValueError, match="not selected"):
        shrink(model, drawn, select=True)
    with pytest.raises(ValueError, match="is the least"):
        shrink(model, drawn, flops=0.01)
