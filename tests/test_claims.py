"""The page of results says what the rows say, and each claim can be tested."""

import dataclasses
import inspect
import json
import pathlib
import re
import zlib

import numpy as np
import pytest
import scipy.stats

from benchmarks.claims import claims, methods, page, plan, run, tasks, units
from benchmarks.claims.units import FINAL, SEARCH, Rows, Unit

ROOT = pathlib.Path(__file__).parents[1]
ROWS = ROOT / "benchmarks/results/claims.jsonl"
UNIT = Unit("digits", "dense", FINAL, 10, (), 0.0, (1e-3,))


def made_up(unit, seed=0):
    """Rows of a unit's form, without any training."""
    rates = unit.train_rates or (1e-3,)
    draw = np.random.default_rng((seed, zlib.crc32(repr(unit).encode())))
    ways = dict(unit.options).get("ways") or (
        methods.WAYS
        if unit.method == "spending"
        else methods.CHANNEL_WAYS
        if unit.method == "early_bird"
        else ("epoch 0", "epoch 1", "epoch 3")
        if unit.method == "instability"
        else ("",)
    )
    return [
        {
            "asked": density,
            "control": control,
            "kind": dict(unit.options).get("kind", "ticket"),
            "way": way,
            "train_rate": rate,
            "before": draw.random(),
            "after": draw.random(),
            "search_epochs": 30.0,
            "layers": [0.9, 0.1, 0.8],
            "zeros": draw.random(),
            "eigenvalue": 1.0,
            "parameters": 1000 if way == "vanilla" else 3000,
            "found_at": 4,
            "epochs": 16,
            "macs_left": 0.3,
            "barrier": draw.random(),
        }
        for density in unit.densities or (1.0,)
        for control in ("none", *unit.controls)
        for way in ways
        for rate in rates
    ]


def all_done(task="digits"):
    """Rows of everything that any claim asks for."""
    rows = Rows(task=task)
    while True:
        left = [
            unit
            for unit in dict.fromkeys(claims.everything(rows, (), [task]))
            if unit not in rows
        ]
        if not left:
            return rows
        for unit in left:
            rows.add(unit, made_up(unit))


@pytest.fixture(scope="module")
def whole():
    return all_done()


def test_the_page_is_made_of_the_rows():
    """`python -m benchmarks.claims --nomeasure` would change nothing."""
    text = (ROOT / "docs/results.md").read_text()
    assert page.text_of(Rows.read(ROWS)) == text
    for task in claims.MEASURED:
        picture = page.PICTURE.format(task)
        assert (picture in text) == (ROOT / "docs" / picture).exists()


def test_every_claim_has_a_verdict_when_all_is_measured(whole):
    untested = {
        name
        for name, claim in claims.CLAIMS.items()
        if not list(claim.units(whole))
    }
    assert untested == {"numbers"}
    for name, claim in claims.CLAIMS.items():
        assert claims.settled(claim, whole) is not None, name
    text = page.text_of(whole)
    assert all(f"`{name}`" in text for name in claims.CLAIMS)
    assert "Not measured yet" in text  # on the other task


def test_a_task_may_have_claims_of_its_own():
    deep = tasks.TASKS["mnist1d_deep"]
    rows = all_done("mnist1d_deep")
    *_, section = page.text_of(rows).partition(f"## On {deep.about}")
    judged = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert {*judged} == {*deep.claims} and "Not measured yet" not in section
    assert not list(claims.everything(Rows(), ["penalty"], ["mnist1d_deep"]))


def test_random_tickets_to_spend_are_those_of_the_method(monkeypatch):
    monkeypatch.setattr(
        methods, "_spent_as", lambda bench, unit, ticket, *_: {"ticket": ticket}
    )
    [row] = methods.spending(tiny("spending"), kind="random", ways=("vanilla",))
    bench = tasks.bench("tiny")
    [drawn] = methods.random(bench, tiny("random", setting=1.0))
    for one, other in zip(
        row["ticket"].masks.values(), drawn.ticket.masks.values(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_what_few_seeds_leave_open_gets_more_once():
    claim = claims.CLAIMS["penalty"]  # level: above -2 points

    def after(draw):
        rows = Rows()
        for _ in range(3):  # search, what it finds, nothing
            left = [u for u in claim.units(rows) if u not in rows]
            for unit in left:
                l1 = "l1" in dict(unit.options).values()
                shift = draw(unit.seed) if l1 else 0.0
                row = {**made_up(unit)[0], "asked": plan.LOW}
                row["after"] = 0.5 + shift
                rows.add(unit, [row])
        return rows

    # Level in the mean, but seeds differ by far more than the margin.
    rows = after(lambda seed: 0.1 * (-1) ** seed)
    assert claim.judge(rows).open
    asked = claims.more(claim, rows)
    assert {unit.seed for unit in asked} == {*plan.MORE}
    assert claims.settled(claim, rows).verdict.endswith("5 seeds to come")
    for unit in asked:
        l1 = "l1" in dict(unit.options).values()
        row = {**made_up(unit)[0], "asked": plan.LOW, "after": 0.5 + 0.3 * l1}
        rows.add(unit, [row])
    found = claims.settled(claim, rows)
    assert found.verdict == claims.REPRODUCED
    assert found.text.startswith("10 seeds: ")
    # What is clear, either way, gets none.
    for shift in (0.1, -0.1):
        rows = after(lambda seed, shift=shift: shift + 1e-3 * seed)
        assert not claims.more(claim, rows)


def test_nothing_is_said_of_four_seeds(whole):
    few = Rows(
        {u: r for u, r in whole.found.items() if u.seed != plan.SEEDS[0]}
    )
    for name, claim in claims.CLAIMS.items():
        assert name == "numbers" or claims.settled(claim, few) is None, name
    assert "(4 seeds)" in page.text_of(few)
    assert "pictures/" not in page.text_of(few)


def test_what_is_found_follows_from_the_search(whole):
    """Every method is measured with what was best for it, and only then."""
    assert not list(plan.finals(Rows(), "gem", 10))
    assert {unit.split for unit in claims.everything(Rows())} == {SEARCH}
    for name, player in plan.PLAYERS.items():
        model = player.like or name
        best = max(
            (row["after"], unit.setting, row["train_rate"])
            for unit in plan.search(model, "digits")
            for row in whole.found[unit]
        )
        for unit in plan.finals(whole, name, 10):
            assert (unit.setting, *unit.train_rates) == best[1:], name
    sizes = {
        name: len(plan.settings(player, "digits"))
        for name, player in plan.PLAYERS.items()
    }
    assert max(sizes.values()) == 3


def test_what_another_search_chose_is_not_counted(whole):
    [unit] = plan.finals(whole, "gem", 10, (plan.LOW,))
    other = dataclasses.replace(unit, train_rates=(0.5,))
    rows = [
        {**row, "train_rate": 0.5, "after": 0.0} for row in whole.found[unit]
    ]
    more = Rows({**whole.found, other: rows})
    assert plan.values(more, "gem") == plan.values(whole, "gem")


def test_who_chose_the_edge_is_measured_past_it(whole):
    """The same tickets, trained at the next rate; no verdict is made of it."""
    edge = max(tasks.TASKS["digits"].rates)
    at_edge = {
        name
        for name, player in plan.PLAYERS.items()
        if not player.like and plan.chosen(whole, name)[1] == edge
    }
    assert {*plan.PLAYERS} > at_edge > set()
    asked = list(plan.past_the_edge(whole))
    assert {unit.label for unit in asked} == {
        plan.PLAYERS[name].label for name in at_edge
    }
    assert {unit.train_rates for unit in asked} == {(4 * edge,)}
    assert all(unit in whole for unit in asked)
    without = Rows({u: r for u, r in whole.found.items() if u not in {*asked}})
    assert "### The next larger rate" not in page.text_of(without)
    for claim in claims.CLAIMS.values():
        assert claims.settled(claim, without) == claims.settled(claim, whole)
    for name in at_edge - {"dense"}:
        found = plan.values(whole, name, rate=4 * edge)
        assert found != plan.values(whole, name)
        assert f"| {claims.percent(found)} |" in page.text_of(whole)


@pytest.mark.parametrize("reverse", [False, True])
def test_of_equals_the_one_with_the_better_neighbours_is_chosen(reverse):
    """Not the one that happened to be measured first."""
    found = {
        (1.0, 0.1): 0.8,
        (1.0, 0.2): 0.9,
        (4.0, 0.1): 0.9,
        (4.0, 0.2): 0.85,
    }
    if reverse:
        found = dict(reversed(found.items()))
    assert plan.best_of(found) == (4.0, 0.1)
    assert plan.best_of({**found, (1.0, 0.1): 0.85}) == (1.0, 0.2)


def test_units_have_options_that_methods_know(whole):
    known = {**methods.METHODS, **methods.WHOLE}
    for unit in whole.found:
        given = inspect.signature(known[unit.method]).parameters
        assert {name for name, _ in unit.options} <= set(given), unit


def test_differences_are_paired_and_bracketed_as_by_student():
    rng = np.random.default_rng(0)
    one = dict(enumerate(rng.random(5)))
    other = dict(enumerate(rng.random(5)))
    found = claims.difference(one, {**other, 9: 0.5})
    d = np.array([one[seed] - other[seed] for seed in range(5)])
    low, high = scipy.stats.ttest_1samp(d, 0).confidence_interval(0.95)
    assert found.mean == pytest.approx(d.mean())
    assert found.mean - found.half == pytest.approx(low, rel=1e-3)
    assert found.mean + found.half == pytest.approx(high, rel=1e-3)
    assert claims.difference({0: 1.0}, {0: 0.0}) is None


@pytest.mark.parametrize(
    "shift, least, verdict",
    [
        (0.05, 0.0, "reproduced"),
        (0.004, 0.0, "not here"),  # the interval holds zero
        (-0.05, 0.0, "not here"),
        (-0.004, -0.02, "reproduced"),  # level
        (-0.05, -0.02, "not here"),
    ],
)
def test_verdicts(shift, least, verdict):
    noise = dict(enumerate([0.01, -0.01, 0.005, -0.005, 0.0]))
    one = {seed: 0.5 + shift + n for seed, n in noise.items()}
    found = claims.judged([("x", one, dict.fromkeys(noise, 0.5))], least=least)
    assert found.verdict == verdict
    half = [("x", one, dict.fromkeys(noise, 0.5)), ("y", {**noise}, noise)]
    mixed = claims.judged(half, least=least).verdict
    assert mixed.startswith("reproduced") == (
        verdict == "reproduced" and least < 0
    )


def test_a_torn_line_is_measured_again(tmp_path):
    path = tmp_path / "results" / "rows.jsonl"
    other = dataclasses.replace(UNIT, seed=11, options=(("a", ("b", 1.0)),))
    units.append(path, units.line(UNIT, [{"after": 0.5}], 1.0))
    whole_line = units.line(other, [{"after": 0.25}], 1.0)
    path.write_text(path.read_text() + whole_line[:40])
    found = Rows.read(path)
    assert list(found.found) == [UNIT]
    units.append(path, whole_line)
    assert Rows.read(path).found == {
        UNIT: [{"after": 0.5}],
        other: [{"after": 0.25}],
    }
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_run_does_what_is_left_and_goes_on_after_an_error(
    tmp_path, monkeypatch
):
    path = tmp_path / "rows.jsonl"
    asked = [dataclasses.replace(UNIT, seed=seed) for seed in range(4)]
    done = []

    def work(unit):
        done.append(unit.seed)
        if unit.seed == 1 and len(done) < 3:
            raise RuntimeError("no")
        return made_up(unit), 0.1

    monkeypatch.setattr(run, "work", work)

    def plan_of(rows):
        # The last is asked for when another is there.
        return asked if asked[0] in rows else asked[:-1]

    options = {"workers": 0, "show": False}
    assert not run.run(plan_of, str(path), **options)
    assert done == [0, 1, 2, 3]
    assert run.run(plan_of, str(path), **options)
    assert done == [0, 1, 2, 3, 1]
    assert set(Rows.read(path).found) == set(asked)


TINY = {
    "dense": {"densities": ()},
    "random": {"controls": ("shuffle",)},
    "smart_ratio": {"setting": 0.3, "densities": (0.3,)},
    "saliency": {"setting": 2, "options": (("criterion", "snip"),)},
    "synflow": {},
    "prospr": {"setting": 0.5},
    "imp": {"densities": (0.4, 0.16)},
    "gem": {"setting": 4.0, "controls": ("invert",)},
    "edge_popup": {"setting": 4.0, "options": (("gradual", True),)},
    "spending": {
        "options": (("kind", "random"), ("ways", ("vanilla", "TRT"))),
    },
    "instability": {"options": (("epochs", (1,)), ("points", 3))},
    "early_bird": {
        "densities": (0.5,),
        "options": (("ways", ("early", "swapped")),),
    },
}


def tiny(method, **more):
    return Unit(
        **{
            "task": "tiny",
            "method": method,
            "split": SEARCH,
            "seed": 3,
            "densities": (0.4,),
            "setting": 4e-3,
            "train_rates": (4e-3,),
            **more,
        }
    )


@pytest.mark.parametrize(
    "method", [*methods.METHODS, *methods.WHOLE], ids=lambda name: name
)
def test_units_run(method):
    unit = tiny(method, **TINY[method])
    rows = methods.measure(unit)
    assert all(0 <= row["after"] <= 1 for row in rows)
    assert Unit.of(json.loads(units.line(unit, rows, 1.0))["unit"]) == unit
    if method in methods.WHOLE:
        return
    asked = [row for row in rows if row["control"] == "none"]
    assert [row["asked"] for row in asked] == list(unit.densities or (1.0,))
    for row in asked:
        # To the weight: 312 can be pruned.
        assert row["density"] == pytest.approx(row["asked"], abs=1 / 312)
    assert {row["control"] for row in rows} == {"none", *unit.controls}


def test_units_do_not_depend_on_what_was_measured_before():
    """One network serves all of a process; nothing of a unit stays in it."""
    unit = tiny("gem", setting=4.0)
    tasks.bench.cache_clear()
    alone = methods.measure(unit)
    methods.measure(tiny("imp", seed=5))
    methods.measure(tiny("gem", seed=5, setting=1.0, densities=(0.1,)))
    assert methods.measure(unit) == alone
    other = methods.measure(dataclasses.replace(unit, seed=4))
    assert other != alone
