"""Sanity checks: controls that bite, reports that add up."""

import json

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tests.conftest import batches, compiled, mlp, only_read
from tf_tickets.analysis import SanityReport, sanity, sanity_checks


@pytest.fixture
def drawn():
    model = compiled(mlp(), keras.optimizers.SGD(0.1, momentum=0.9))
    return model, tt.prune(model, 0.75, scope="erk")


def counts(ticket):
    return [int(m.sum()) for m in ticket.masks.values()]


MAKERS = {
    "shuffle": lambda ticket, seed: ticket.shuffle(seed),
    "random": sanity.redrawn,
    "invert": sanity.inverted,
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_control_moves_the_mask_and_keeps_the_count_per_layer(name, drawn):
    _, ticket = drawn
    for seed in range(5):
        control = MAKERS[name](ticket, seed)
        assert counts(control) == counts(ticket)
        assert control.hamming_distance(ticket) > 0.1
        for key, weight in ticket.weights.items():
            np.testing.assert_array_equal(control.weights[key], weight)
    one, other = MAKERS[name](ticket, 0), MAKERS[name](ticket, 1)
    assert (one.hamming_distance(other) > 0) == (name != "invert")
    assert sanity.redrawn(ticket, 0).hamming_distance(ticket.shuffle(0)) > 0


def test_inversion_keeps_the_lowest_scores():
    scores = {"a": np.array([[5.0, 1.0, 3.0, 2.0, 4.0]])}
    ticket = tt.Ticket({"a": [[1, 0, 0, 0, 1]]}, scores=scores)
    mask = sanity.inverted(ticket, seed=0).masks["a"]
    assert mask.tolist() == [[False, True, False, True, False]]


@pytest.mark.parametrize("rank", [np.abs, np.asarray], ids=["abs", "signed"])
def test_inversion_follows_what_the_mask_was_ranked_by(rank):
    scores = np.random.default_rng(0).normal(size=(20, 10))
    order = np.argsort(rank(scores).ravel())
    high, low = np.zeros(200, bool), np.zeros(200, bool)
    high[order[-60:]] = low[order[:60]] = True
    ticket = tt.Ticket({"a": high.reshape(20, 10)}, scores={"a": scores})
    mask = sanity.inverted(ticket, seed=0).masks["a"]
    np.testing.assert_array_equal(mask.ravel(), low)


def test_inversion_breaks_ties_at_random():
    # Most scores of an iterative criterion are exact zeros at the end.
    scores = {"a": np.r_[np.zeros(90), np.ones(10)]}
    ticket = tt.Ticket({"a": scores["a"] > 0}, scores=scores)
    masks = [sanity.inverted(ticket, s).masks["a"] for s in (0, 1)]
    assert [m.sum() for m in masks] == [10, 10]
    assert (masks[0] != masks[1]).any() and not masks[0][90:].any()
    assert not masks[0][:10].all()


def test_reinitialization_draws_from_the_layers_own_distribution(drawn):
    model, ticket = drawn
    model.get_layer(
        "hidden"
    ).kernel_initializer = keras.initializers.RandomUniform(2.0, 3.0)
    control = sanity.reinitialized(ticket, model, None, seed=1)
    hidden, head = (control.weights[k] for k in ticket.masks)
    assert hidden.min() >= 2 and hidden.max() <= 3
    assert np.abs(head).max() <= np.sqrt(6 / 36)  # Glorot uniform
    for key in ticket.masks:
        np.testing.assert_array_equal(control.masks[key], ticket.masks[key])
    again = sanity.reinitialized(ticket, model, None, seed=1)
    np.testing.assert_array_equal(again.weights[key], head)
    given = sanity.reinitialized(ticket, model, "zeros", seed=1)
    assert not given.weights[key].any()


def test_signed_constants_are_drawn_again_from_kaiming_normal():
    model = compiled(mlp(400))
    rng = np.random.default_rng(0)
    weights = {
        k: np.array(v)
        for k, v in zip(
            tt.Ticket.from_model(model).weights,
            model.get_weights(),
            strict=True,
        )
    }
    masks = {}
    for key in tt.prunable_weights(model):
        signs = rng.choice([-1.0, 1.0], weights[key].shape)
        weights[key] = signs * np.sqrt(2 / weights[key].shape[0])
        masks[key] = rng.random(weights[key].shape) < 0.3
    ticket = tt.Ticket(masks, weights)
    control = sanity.reinitialized(ticket, model, None, seed=3)
    for key, mask in masks.items():
        w = control.weights[key]
        assert w.std() == pytest.approx(np.sqrt(2 / len(mask)), rel=0.05)
        assert len(np.unique(w)) > 0.9 * w.size
        assert np.abs(w).max() > 2.2 * w.std()  # not a truncated normal
    assert len({w.ravel()[0] for w in control.weights.values()}) > 2


def test_reinitialization_takes_the_fan_of_the_layer():
    """A depthwise kernel feeds each output from its own 9 inputs only."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 200)),
            keras.layers.DepthwiseConv2D(3, use_bias=False),
            keras.layers.Conv2DTranspose(20, 1, use_bias=False),
        ]
    )
    ticket = tt.prune(model, 0.5)
    control = sanity.reinitialized(ticket, model, "he_normal", seed=1)
    depthwise, transposed = (control.weights[k].std() for k in ticket.masks)
    assert depthwise == pytest.approx(np.sqrt(2 / 9), rel=0.1)
    assert transposed == pytest.approx(np.sqrt(2 / 200), rel=0.1)


def test_every_run_starts_from_the_same_state_and_the_model_ends_so(
    drawn, data
):
    model, ticket = drawn
    model.fit(batches(*data), epochs=2, verbose=0)
    optimizer = [np.array(v) for v in model.optimizer.variables]
    seen = []

    def train(model):
        assert int(model.optimizer.iterations) == 8  # after the two epochs
        masks = tt.masking.attached_masks(model)
        seen.append({k: m.copy() for k, m in masks.items()})
        weights = {v.path: v.numpy() for v in model.weights}
        for key, mask in masks.items():
            np.testing.assert_array_equal(weights[key] != 0, mask)
        history = model.fit(batches(*data), epochs=2, verbose=0).history
        return history["accuracy"][-1]

    with only_read(model, metrics=False):
        report = sanity_checks(ticket, model, train=train, seeds=(7, 8))
    for old, new in zip(optimizer, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(old, new)
    assert len(seen) == 10
    for masks in seen:
        assert [int(m.sum()) for m in masks.values()] == counts(ticket)
    for i in (0, 5):  # the ticket itself, then what each control moves
        for key, mask in ticket.masks.items():
            np.testing.assert_array_equal(seen[i][key], mask)
            np.testing.assert_array_equal(seen[i + 2][key], mask)
        for j in (1, 3, 4):
            assert any((seen[i + j][k] != m).any() for k, m in seen[i].items())
    assert set(report.gaps) == {"shuffle", "reinitialize", "invert", "random"}
    # The same ticket and seed reach the same accuracy.
    again = sanity_checks(
        ticket, model, train=train, seeds=(7,), controls=["shuffle"]
    )
    assert again.ticket == report.ticket[:1]
    assert again.controls["shuffle"] == report.controls["shuffle"][:1]


def test_masks_in_force_come_back(drawn, data):
    model, ticket = drawn
    ticket.apply(model)
    before = tt.masking.attached_masks(model)
    with only_read(model, metrics=False):
        sanity_checks(ticket, model, data=data, seeds=[0])
    after = tt.masking.attached_masks(model)
    for key, mask in before.items():
        np.testing.assert_array_equal(after[key], mask)


def test_a_ticket_that_solves_the_task_passes_and_a_random_one_fails():
    """y = x₀ by one weight of forty: every control loses it."""
    model = keras.Sequential(
        [keras.Input((40,)), keras.layers.Dense(2, use_bias=False, name="d")]
    )
    compiled(model)
    kernel = np.full((40, 2), 1e-3, "float32")
    kernel[:4] = [[-5.0, 5.0]]
    model.layers[0].kernel.assign(kernel)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 40)).astype("float32")
    y = (x[:, :4].sum(1) > 0).astype(int)
    good = tt.prune(model, 0.9)
    report = sanity_checks(good, model, data=(x, y), seeds=[0, 1])
    assert report.passed, str(report)
    assert report.means["ticket"] == 1.0
    poor = tt.prune(model, 0.9, criterion="random", seed=9)
    report = sanity_checks(poor, model, data=(x, y), seeds=[0, 1])
    assert not report.passed, str(report)
    assert "The ticket fails" in str(report)


def test_without_scores_inversion_is_skipped_or_refused(drawn, data):
    model, ticket = drawn
    bare = tt.Ticket(ticket.masks, ticket.weights)
    report = sanity_checks(bare, model, data=data, seeds=[0])
    assert list(report.controls) == ["shuffle", "reinitialize", "random"]
    assert "the ticket has no scores" in str(report)
    with pytest.raises(ValueError, match="needs a ticket that has them"):
        sanity_checks(bare, model, data=data, controls=["invert"])


def test_masks_alone_take_the_weights_of_the_model(drawn, data):
    model, ticket = drawn
    bare = tt.Ticket(ticket.masks)
    reports = [
        sanity_checks(t, model, data=data, seeds=[1], controls=["shuffle"])
        for t in (bare, ticket)
    ]
    assert reports[0].ticket == reports[1].ticket


def test_a_ticket_from_another_process_fits_by_order(drawn, data):
    model, ticket = drawn

    def renamed(arrays):
        return {f"other/{k}": v for k, v in arrays.items()}

    stranger = tt.Ticket(
        renamed(ticket.masks),
        renamed(ticket.weights),
        scores=renamed(ticket.scores),
    )
    one, other = (
        sanity_checks(t, model, data=data, seeds=[1])
        for t in (stranger, ticket)
    )
    assert one == other


def test_a_control_that_changes_nothing_raises(drawn, data):
    model, ticket = drawn
    trained = []
    dense = tt.prune(model, 0.0)
    with pytest.raises(ValueError, match="'shuffle' changes nothing"):
        sanity_checks(dense, model, train=trained.append)
    for layer in ("hidden", "head"):
        model.get_layer(layer).kernel_initializer = "ones"
        model.get_layer(layer).kernel.assign(
            np.ones_like(model.get_layer(layer).kernel)
        )
    same = tt.Ticket(
        ticket.masks,
        {
            k: np.ones_like(w) if k in ticket.masks else w
            for k, w in ticket.weights.items()
        },
    )
    with pytest.raises(ValueError, match="'reinitialize' changes nothing"):
        sanity_checks(
            same,
            model,
            train=trained.append,
            controls=["reinitialize"],
            initializer="ones",
        )
    assert trained == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs `train`"),
        ({"train": 3}, "callable.*train=3"),
        ({"train": max, "controls": ["shuffle", "magic"]}, "magic"),
        ({"train": max, "controls": "shuffle"}, "controls='shuffle'"),
        ({"train": max, "controls": []}, "controls"),
        ({"train": max, "seeds": []}, "seeds"),
        ({"train": max, "seeds": [1, 1]}, "seeds"),
        ({"train": max, "seeds": [0, -1]}, "seeds=-1"),
        ({"train": max, "seeds": [0.5]}, "seeds=0.5"),
        ({"train": max, "threshold": -0.1}, "threshold=-0.1"),
        ({"train": lambda m: None}, "finite number.*None"),
        ({"train": lambda m: float("nan")}, "finite number.*nan"),
    ],
)
def test_bad_input_is_one_clear_error(options, message, drawn):
    model, ticket = drawn
    with only_read(model), pytest.raises(ValueError, match=message):
        sanity_checks(ticket, model, **options)


def test_an_unknown_metric_is_one_clear_error(drawn, data):
    model, ticket = drawn
    with pytest.raises(ValueError, match="metric='top5'"):
        sanity_checks(ticket, model, data=data, metric="top5")


def test_a_ticket_of_another_model_is_one_clear_error(data):
    model = compiled(mlp())
    ticket = tt.prune(compiled(mlp(16)), 0.5)
    with pytest.raises(ValueError, match="do not fit this model"):
        sanity_checks(ticket, model, data=data)


def test_training_may_compile_the_model(drawn, data):
    model, ticket = drawn

    def train(model):
        compiled(model, keras.optimizers.Adam(0.01))
        return model.fit(*data, verbose=0).history["accuracy"][-1]

    before = model.get_weights()
    report = sanity_checks(
        ticket, model, train=train, seeds=[0], controls=["shuffle"]
    )
    assert len(report.ticket) == 1
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_report_by_hand(tmp_path):
    report = SanityReport(
        (0.9, 0.8),
        {"shuffle": (0.6, 0.7), "random": (0.85, 0.845)},
        seeds=(0, 1),
        threshold=0.01,
        density=0.05,
        skipped={"invert": "the ticket has no scores"},
    )
    assert report.means == pytest.approx(
        {"ticket": 0.85, "shuffle": 0.65, "random": 0.8475}
    )
    assert report.spreads["ticket"] == pytest.approx(0.1 / np.sqrt(2))
    assert report.gaps == pytest.approx({"shuffle": 0.2, "random": 0.0025})
    assert report.verdicts == {"shuffle": True, "random": False}
    assert not report.passed
    assert json.loads(json.dumps(report.to_dict()))["gaps"] == report.gaps
    assert "not better than random" in report.render()
    report.plot(tmp_path / "sanity.png")
    assert (tmp_path / "sanity.png").read_bytes()[:4] == b"\x89PNG"
