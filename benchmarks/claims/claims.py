"""The claims: what a document says, what tests it, and by which rule."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from benchmarks.claims import plan, tasks
from benchmarks.claims.plan import (
    DENSITIES,
    LOW,
    MIDDLE,
    MORE,
    SEEDS,
    measured,
)
from benchmarks.claims.units import FINAL, SEARCH, Rows, Unit, label

REPRODUCED, NOT_HERE = "reproduced", "not here"
UNTESTABLE = "cannot be tested at this scale"
NOT_YET = "not measured yet"
# What counts as level: no more than this below.
MARGIN = 0.02
CHANCE = 0.1
# The first is what the verdicts are of, the others tell whether they last.
MEASURED = ("digits", "mnist1d", "mnist1d_deep")


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was measured, and what follows.

    Attributes:
        text: The numbers.
        verdict: One of the words above.
        open: Whether only too few seeds stand in the way of *reproduced*: all
            means keep the rule, and an interval does not.
    """

    text: str
    verdict: str
    open: bool = False


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence of a document, and how it is put to the test.

    Args:
        document: Its short name.
        says: The claim, and on what it was made.
        units: Of what was found makes what is to be measured, in order.
        judge: Of what was found makes the finding; `None` as long as there
            are too few seeds.
        rule: When it counts as reproduced.
        why: What is known of why it is not, where it is not: on the first
            of the tasks.
        note: What must be known beside the numbers.
    """

    document: str
    says: str
    units: Callable[[Rows], Iterable[Unit]]
    judge: Callable[[Rows], Finding | None]
    rule: str
    why: str = ""
    note: str = ""


# Rules.

# Quantiles of Student's t for 95 % intervals, by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365,
      8: 2.306, 9: 2.262}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of two runs, seed by seed.

    Attributes:
        mean: Of the differences.
        half: Half the width of the 95 % interval of the mean, by Student's t.
        seeds: How many.
    """

    mean: float
    half: float
    seeds: int

    @property
    def text(self) -> str:
        """In points of accuracy."""
        return f"{100 * self.mean:+.1f} ± {100 * self.half:.1f}"


def difference(
    one: Mapping[int, float], other: Mapping[int, float]
) -> Difference | None:
    """One minus the other, paired; `None` with less than five seeds."""
    common = sorted(set(one) & set(other))
    if len(common) < len(SEEDS):
        return None
    d = np.array([one[seed] - other[seed] for seed in common])
    half = _T[len(d) - 1] * d.std(ddof=1) / len(d) ** 0.5
    return Difference(float(d.mean()), float(half), len(d))


def percent(found: Mapping[int, float]) -> str:
    """Mean ± standard deviation in percent."""
    mean, deviation = plan.spread(dict(found))
    return f"{100 * mean:.1f} ± {100 * deviation:.1f}"


Values = Mapping[int, float]


def judged(
    pairs: Sequence[tuple[str, Values, Values]], *, least: float = 0.0
) -> Finding | None:
    """Each first one lies above its second by more than ``least``.

    Args:
        pairs: ``(text, one, other)``.
        least: What the whole 95 % interval of the difference must lie above.
    """
    texts, holds, means = [], [], []
    for text, one, other in pairs:
        d = difference(one, other)
        if d is None:
            return None
        texts.append(
            f"{text}: {percent(one)} against {percent(other)} ({d.text})"
        )
        holds.append(d.mean - d.half > least)
        means.append(d.mean > least)
    verdict = REPRODUCED if all(holds) else NOT_HERE
    if any(holds) and not all(holds):
        verdict = f"{NOT_HERE} ({sum(holds)} of {len(holds)})"
    return Finding("; ".join(texts), verdict, all(means) and not all(holds))


def settled(claim: Claim, rows: Rows) -> Finding | None:
    """What a claim comes to, by its first seeds or, if they leave it open, all.

    Whether more are needed is asked of the first alone, and once.
    """
    first = claim.judge(rows.only(SEEDS))
    if first is None or not first.open:
        return first
    if any(unit not in rows for unit in more(claim, rows)):
        return dataclasses.replace(
            first, verdict=f"{first.verdict}, and {len(MORE)} seeds to come"
        )
    second = claim.judge(rows.only(SEEDS + MORE))
    return second and dataclasses.replace(
        second, text=f"{len(SEEDS + MORE)} seeds: {second.text}"
    )


def more(claim: Claim, rows: Rows) -> list[Unit]:
    """The units of a claim with other seeds, if the first leave it open."""
    first = claim.judge(rows.only(SEEDS))
    if first is None or not first.open:
        return []
    return [
        dataclasses.replace(unit, seed=unit.seed + len(SEEDS))
        for unit in claim.units(rows)
        if unit.split == FINAL
    ]


def survives(
    rows: Rows, name: str, controls: Sequence[str] = ("shuffle", "reinitialize")
) -> Finding | None:
    """No control lies more than the margin below the ticket.

    Where the ticket itself has learned nothing, no control could be below it:
    there is nothing to judge.
    """
    pairs, silent = [], ""
    for density in CLAIMED:
        ticket = plan.values(rows, name, density=density)
        if len(ticket) < len(SEEDS):
            return None
        if plan.spread(ticket)[0] < 2 * CHANCE:
            silent += (
                f". At density {density:.3g} the ticket itself ends at "
                f"{percent(ticket)}: not judged"
            )
            continue
        for control in controls:
            own = plan.values(rows, name, density=density, control=control)
            pairs.append((f"{control} at {density:.3g}", own, ticket))
    found = judged(pairs, least=-MARGIN) if pairs else None
    return found and dataclasses.replace(found, text=found.text + silent)


def falls(rows: Rows, name: str, controls: Sequence[str]) -> Finding | None:
    """Every control lies below the ticket."""
    return judged(
        [
            (
                control,
                plan.values(rows, name),
                plan.values(rows, name, control=control),
            )
            for control in controls
        ]
    )


def over(rows: Rows, one: str, other: str, *, number: str = "after") -> list:
    """Pairs of two players, a density each."""
    return [
        (
            f"density {density:.3g}",
            plan.values(rows, one, number, density=density),
            plan.values(rows, other, number, density=density),
        )
        for density in sorted(CLAIMED)
    ]


def against(
    rows: Rows,
    one: str,
    others: Sequence[str],
    *,
    number: str = "after",
    density: float = LOW,
) -> list:
    """Pairs of a player with others, at one density."""
    return [
        (
            f"{plan.PLAYERS[one].about} against {plan.PLAYERS[other].about}",
            plan.values(rows, one, number, density=density),
            plan.values(rows, other, number, density=density),
        )
        for other in others
    ]


# What is to be measured.

# Claims over densities are judged at these two; the figure has more.
CLAIMED = (MIDDLE, LOW)

_QUICK = ("gem", "edge_popup", "random", "snip", "smart_ratio", "dense")
FIGURE = (
    "gem",
    "edge_popup",
    "imp",
    "random",
    "snip",
    "smart_ratio",
    "dense",
    "lrr",
)


def _players(
    *names: str, densities: Sequence[float] = (LOW,)
) -> Callable[[Rows], Iterator[Unit]]:
    return functools.partial(_measured, names=names, densities=densities)


def _measured(
    rows: Rows, *, names: Sequence[str], densities: Sequence[float]
) -> Iterator[Unit]:
    yield from measured(rows, names, densities)


# Spending.

SPENT = DENSITIES[3:]
Ways = tuple[tuple[str, float], ...]


def _ways(rows: Rows, method: str) -> dict[str, tuple[float, float]] | None:
    """``{way: (setting, learning rate)}`` that are best on validation."""
    found: dict[str, dict[tuple[float, float], float]] = {}
    for unit, row in rows.select(split=SEARCH, method=method):
        if "train_rate" in row:
            choice = unit.setting, row["train_rate"]
            found.setdefault(row["way"], {})[choice] = row["after"]
    return {way: plan.best_of(own) for way, own in found.items()}


def spending_units(
    rows: Rows,
    kinds: Sequence[str] = ("ticket",),
    picked: Sequence[str] = (),
) -> Iterator[Unit]:
    """The search of every way, and fresh seeds.

    Args:
        rows: What was found.
        kinds: Of tickets, as in `methods.spending`.
        picked: Ways to spend them; by default all.
    """
    yield from plan.search("imp", rows.task)
    choice = plan.chosen(rows, "imp")
    if choice is None:
        return
    search = Unit(
        rows.task,
        "spending",
        SEARCH,
        plan.SEARCH_SEED,
        SPENT[:1],
        choice[0],
        tasks.TASKS[rows.task].rates,
    )
    yield search
    if search in rows:
        ways = _ways(rows, "spending") or {}
        rates = tuple(
            (way, rate)
            for way, (_, rate) in ways.items()
            if way in (picked or ways)
        )
        some = (("ways", tuple(picked)),) if picked else ()
        for seed in SEEDS:
            for kind in kinds:
                yield Unit(
                    rows.task,
                    "spending",
                    FINAL,
                    seed,
                    SPENT,
                    choice[0],
                    (),
                    (("kind", kind), *some, ("rates", rates)),
                )


def spent(
    rows: Rows,
    way: str,
    density: float,
    number: str = "after",
    kind: str = "ticket",
) -> dict[int, float]:
    """``{seed: number}`` of tickets that were spent in one way."""
    return rows.values(
        number,
        method="spending",
        kind=kind,
        way=way,
        asked=round(density, 6),
    )


KINDS = ("rewound", "one-shot", "random")


def _others(rows: Rows) -> Iterator[Unit]:
    yield from spending_units(rows, KINDS, ("vanilla", "AT+TRT"))


def _iterative(rows: Rows) -> Iterator[Unit]:
    yield from spending_units(rows)
    yield from _others(rows)


def _one_shot(rows: Rows) -> Finding | None:
    """Rounds find better tickets than one cut."""
    return judged(
        [
            (
                f"density {density:.3g}",
                spent(rows, "vanilla", density),
                spent(rows, "vanilla", density, kind="one-shot"),
            )
            for density in SPENT
        ]
    )


def _all_tweaks(rows: Rows) -> Finding | None:
    """All four are better than none, on every other kind of ticket."""
    return judged(
        [
            (
                f"{kind} at {density:.3g}",
                spent(rows, "AT+TRT", density, kind=kind),
                spent(rows, "vanilla", density, kind=kind),
            )
            for kind in KINDS
            for density in SPENT
        ]
    )


def tweak(rows: Rows, way: str) -> Finding | None:
    """A way is better than the plain one, at both densities."""
    return judged(
        [
            (
                f"density {density:.3g}",
                spent(rows, way, density),
                spent(rows, "vanilla", density),
            )
            for density in SPENT
        ]
    )


# Channels.

# Two of the three published shares. (With 0.3 of the channels one ranking of
# all layers leaves the first one of its 16: whatever is drawn, nothing learns.)
CHANNELS = (0.7, 0.5)


def early_bird_units(rows: Rows, bits: int | None = None) -> Iterator[Unit]:
    """The search, of the early ticket alone, and fresh seeds."""
    rates = tasks.TASKS[rows.task].rates
    searches = [
        Unit(
            rows.task,
            "early_bird",
            SEARCH,
            plan.SEARCH_SEED,
            CHANNELS[-1:],
            setting,
            rates,
            (("ways", ("early",)),),
        )
        for setting in rates
    ]
    yield from searches
    if all(unit in rows for unit in searches):
        setting, rate = (_ways(rows, "early_bird") or {})["early"]
        options = (("bits", bits), ("ways", ("early",))) if bits else ()
        for seed in SEEDS:
            yield Unit(
                rows.task,
                "early_bird",
                FINAL,
                seed,
                CHANNELS,
                setting,
                (rate,),
                options,
            )


def channels(
    rows: Rows,
    way: str,
    density: float,
    number: str = "after",
    bits: int | None = None,
) -> dict[int, float]:
    """``{seed: number}`` of channels that were drawn in one way."""
    options = (("bits", bits), ("ways", ("early",))) if bits else ()
    return rows.values(
        number,
        label=label("early_bird", options),
        way=way,
        asked=round(density, 6),
    )


def _eight_bits(rows: Rows) -> Iterator[Unit]:
    yield from early_bird_units(rows)
    yield from early_bird_units(rows, bits=8)


# Rewinding.


def instability_units(rows: Rows) -> Iterator[Unit]:
    """Tickets of three rewind points, with what is chosen for IMP."""
    yield from plan.search("imp", rows.task)
    choice = plan.chosen(rows, "imp")
    if choice is not None:
        for seed in SEEDS:
            yield Unit(
                rows.task,
                "instability",
                FINAL,
                seed,
                (LOW,),
                choice[0],
                (choice[1],),
            )


def _instability(rows: Rows) -> Finding | None:
    """With later rewinding, the barrier falls and accuracy rises."""
    found = {
        (epoch, number): rows.values(
            number, method="instability", way=f"epoch {epoch}"
        )
        for epoch in (0, 1, 3)
        for number in ("barrier", "after")
    }
    if any(len(own) < len(SEEDS) for own in found.values()):
        return None
    texts = [
        f"epoch {epoch}: barrier {percent(found[epoch, 'barrier'])}, accuracy "
        f"{percent(found[epoch, 'after'])}"
        for epoch in (0, 1, 3)
    ]
    falls, rises = (
        difference(found[0, "barrier"], found[3, "barrier"]),
        difference(found[3, "after"], found[0, "after"]),
    )
    holds = [d is not None and d.mean > d.half for d in (falls, rises)]
    return Finding("; ".join(texts), REPRODUCED if all(holds) else NOT_HERE)


# Rules of single claims.


def _chance(rows: Rows) -> Finding | None:
    gem = {d: plan.values(rows, "gem", "before", density=d) for d in CLAIMED}
    if any(len(found) < len(SEEDS) for found in gem.values()):
        return None
    text = "; ".join(f"density {d:.3g}: {percent(gem[d])}" for d in sorted(gem))
    far = [
        difference(found, dict.fromkeys(found, 2 * CHANCE))
        for found in gem.values()
    ]
    holds = [d is not None and d.mean > d.half for d in far]
    verdict = REPRODUCED if all(holds) else NOT_HERE
    if any(holds) and not all(holds):
        verdict = f"{NOT_HERE} ({sum(holds)} of {len(holds)} densities)"
    return Finding(text, verdict)


def _level_with_imp(rows: Rows) -> Finding | None:
    found = judged(over(rows, "gem", "imp"), least=-MARGIN)
    if found is None:
        return None
    epochs = {
        name: plan.spread(plan.values(rows, name, "search_epochs"))[0]
        for name in ("gem", "imp")
    }
    text = (
        f"{found.text}. Epochs of search at density {LOW:.3g}: "
        f"{epochs['gem']:.0f} against {epochs['imp']:.0f}"
    )
    return dataclasses.replace(found, text=text)


def _ends(rows: Rows) -> Finding | None:
    """First and last layer are denser than the whole."""
    texts, holds = [], []
    for name in ("gem", "imp"):
        found = plan.layers(rows, name)
        if len(found) < len(SEEDS):
            return None
        first, last = (np.mean([one[i] for one in found]) for i in (0, -1))
        between = np.mean([np.median(one[1:-1]) for one in found])
        texts.append(
            f"{plan.PLAYERS[name].about}: first {first:.2f}, median between "
            f"{between:.3f}, last {last:.2f}"
        )
        holds += [first > between, last > between]
    return Finding("; ".join(texts), REPRODUCED if all(holds) else NOT_HERE)


def _zeros(rows: Rows) -> Finding | None:
    texts, holds = [], []
    for density in SPENT:
        one, other = (
            spent(rows, way, density, "zeros")
            for way in ("vanilla", "activations")
        )
        d = difference(one, other)
        if d is None:
            return None
        texts.append(
            f"density {density:.3g}: {percent(one)} % of activations with "
            f"ReLU, {percent(other)} % with swish"
        )
        holds.append(d.mean > d.half)
    return Finding("; ".join(texts), REPRODUCED if all(holds) else NOT_HERE)


def _eigenvalue(rows: Rows) -> Finding | None:
    texts, holds = [], []
    for density in SPENT:
        one, other = (
            spent(rows, way, density, "eigenvalue")
            for way in ("vanilla", "activations")
        )
        d = difference(one, other)
        if d is None:
            return None
        (a, da), (b, db) = plan.spread(dict(one)), plan.spread(dict(other))
        texts.append(
            f"density {density:.3g}: {a:.1f} ± {da:.1f} with ReLU, "
            f"{b:.1f} ± {db:.1f} with swish"
        )
        holds.append(d.mean > d.half)
    return Finding("; ".join(texts), REPRODUCED if all(holds) else NOT_HERE)


def _skips_cost(rows: Rows) -> Finding | None:
    texts = []
    for density in SPENT:
        one, other = (
            spent(rows, way, density, "parameters")
            for way in ("vanilla", "skips")
        )
        if len(one) < len(SEEDS) or len(other) < len(SEEDS):
            return None
        kept, more = plan.spread(dict(one))[0], plan.spread(dict(other))[0]
        texts.append(
            f"density {density:.3g}: {kept:,.0f} weights kept, "
            f"{more - kept:,.0f} added, {(more - kept) / kept:.1f} times as "
            "many"
        )
    return Finding("; ".join(texts), "a cost the paper does not count")


def _settles(rows: Rows) -> Finding | None:
    texts, holds = [], []
    for density in CHANNELS:
        found = channels(rows, "early", density, "found_at")
        ran = channels(rows, "early", density, "epochs")
        if len(ran) < len(SEEDS):
            return None
        when = ", ".join(
            f"{found[s]:.0f}" if s in found else "never" for s in ran
        )
        whole = next(iter(ran.values()))
        texts.append(
            f"{1 - density:.0%} pruned: drawn after {when} of {whole:.0f} "
            "epochs"
        )
        holds.append(
            len(found) == len(ran) and max(found.values()) <= 0.5 * whole
        )
    return Finding("; ".join(texts), REPRODUCED if all(holds) else NOT_HERE)


def _low_precision(rows: Rows) -> Finding | None:
    return judged(
        [
            (
                f"{1 - density:.0%} pruned",
                channels(rows, "early", density, bits=8),
                channels(rows, "early", density),
            )
            for density in CHANNELS
        ],
        least=-MARGIN,
    )


def _flops(rows: Rows) -> Finding | None:
    texts, holds = [], []
    for density in CHANNELS:
        numbers = {
            number: channels(rows, "early", density, number)
            for number in ("macs_left", "found_at", "epochs")
        }
        if len(numbers["macs_left"]) < len(SEEDS):
            return None
        savings = {}
        for seed, whole in numbers["epochs"].items():
            begin = numbers["found_at"].get(seed, whole)
            left = (whole - begin) * numbers["macs_left"][seed]
            savings[seed] = whole / (begin + left)
        mean, deviation = plan.spread(savings)
        texts.append(
            f"{1 - density:.0%} pruned: {mean:.2f} ± {deviation:.2f} times "
            "fewer"
        )
        holds.append(mean > 2)
    return Finding("; ".join(texts), REPRODUCED if any(holds) else NOT_HERE)


def _channels(rows: Rows, other: str, *, least: float = 0.0) -> Finding | None:
    return judged(
        [
            (
                f"{1 - density:.0%} pruned",
                channels(rows, "early", density),
                channels(rows, other, density),
            )
            for density in CHANNELS
        ],
        least=least,
    )


def _nothing(rows: Rows) -> Iterator[Unit]:
    del rows
    yield from ()


def _never(rows: Rows) -> Finding:
    del rows
    return Finding("", UNTESTABLE)


GEMS, SPENDING, BIRD, LOTTERY = (
    "Rare Gems",
    "Spending",
    "Early-Bird",
    "Lottery tickets",
)
_ABOVE = "the whole 95 % interval of the paired difference is above 0"
_LEVEL = (
    f"the whole 95 % interval of the paired difference is above "
    f"−{100 * MARGIN:.0f} points"
)
_EVERYWHERE = f"at both densities, {_ABOVE}"

_WIDE = (
    "at the lower density seeds differ too much for the rule, though the "
    "controls end higher in the mean there"
)
_BY_LAYER = (
    "Edge-Popup keeps the same share of every layer, at the lower density 1 of "
    "the 144 weights of the digits' stem"
)

_STABLE = (
    "this network is stable from the start: at epoch 0 the barrier is below "
    "the 2 points under which the paper calls a network stable, and nothing is "
    "left to mend"
)
CLAIMS: dict[str, Claim] = {
    "gems_before": Claim(
        GEMS,
        "Gems have an accuracy far above chance before any weight is trained "
        "(Figure 6; 85–90 % at density .014 on CIFAR-10)",
        _players("gem", densities=CLAIMED),
        _chance,
        "at both densities, the whole 95 % interval is above twice chance",
    ),
    "gems_before_edge_popup": Claim(
        GEMS,
        "... and above Edge-Popup before finetuning (Figure 6)",
        _players("gem", "edge_popup", densities=CLAIMED),
        lambda rows: judged(over(rows, "gem", "edge_popup", number="before")),
        _EVERYWHERE,
        note=_BY_LAYER,
    ),
    "gems_edge_popup": Claim(
        GEMS,
        "After finetuning, gems are above Edge-Popup (Figure 3)",
        _players("gem", "edge_popup", densities=CLAIMED),
        lambda rows: judged(over(rows, "gem", "edge_popup")),
        _EVERYWHERE,
        note=_BY_LAYER,
    ),
    "gems_imp": Claim(
        GEMS,
        "After finetuning, gems are level with IMP, with up to 19 times fewer "
        "epochs of search (Figure 3, Table 1)",
        _players("gem", "imp", densities=CLAIMED),
        _level_with_imp,
        f"at both densities, {_LEVEL}",
    ),
    "gems_random": Claim(
        GEMS,
        "... and above random masks (Figure 3)",
        _players("gem", "random", densities=CLAIMED),
        lambda rows: judged(over(rows, "gem", "random")),
        _EVERYWHERE,
        "the higher density is too easy: there random masks train almost as "
        "well as the dense network",
    ),
    "gems_snip": Claim(
        GEMS,
        "... and above SNIP (Table 1)",
        _players("gem", "snip", densities=CLAIMED),
        lambda rows: judged(over(rows, "gem", "snip")),
        _EVERYWHERE,
    ),
    "gems_smart_ratio": Claim(
        GEMS,
        "... and above Smart-Ratio (Figure 3)",
        _players("gem", "smart_ratio", densities=CLAIMED),
        lambda rows: judged(over(rows, "gem", "smart_ratio")),
        _EVERYWHERE,
        note="Smart-Ratio's classifier, at its published density of 0.3, which "
        "the search chose too, takes more than half of the weights at the "
        "lower density",
    ),
    "gems_sanity": Claim(
        GEMS,
        "Gems pass the sanity checks: a shuffled mask, new weights or "
        "inverted scores lose accuracy (Figures 3 and 4)",
        _players("gem"),
        lambda rows: falls(rows, "gem", plan.PLAYERS["gem"].controls),
        f"for every control, {_ABOVE}",
    ),
    "smart_ratio_sanity": Claim(
        GEMS,
        "Smart-Ratio does not pass them: random positions do as well "
        "(section 2)",
        _players("smart_ratio", densities=CLAIMED),
        lambda rows: survives(rows, "smart_ratio"),
        f"for every control at both densities, {_LEVEL}",
    ),
    "snip_sanity": Claim(
        GEMS,
        "SNIP does not pass them (section 2, after Frankle et al.)",
        _players("snip", densities=CLAIMED),
        lambda rows: survives(rows, "snip"),
        f"for every control at both densities, {_LEVEL}",
        _WIDE,
    ),
    "winning_tickets": Claim(
        LOTTERY,
        "A winning ticket trains better than its mask with new weights, and "
        "than a random mask",
        _players("imp"),
        lambda rows: falls(rows, "imp", plan.PLAYERS["imp"].controls),
        f"for both, {_ABOVE}",
    ),
    "early_bird_settles": Claim(
        BIRD,
        "The mask of the channels stands still early: five distances in a row "
        "below 0.1",
        early_bird_units,
        _settles,
        "with every seed, in the first half of the training",
    ),
    "early_bird_late": Claim(
        BIRD,
        "Channels drawn early train as well as channels drawn at the end",
        early_bird_units,
        lambda rows: _channels(rows, "late", least=-MARGIN),
        f"at both shares, {_LEVEL}",
    ),
    "early_bird_random": Claim(
        BIRD,
        "... and better than random channels",
        early_bird_units,
        lambda rows: _channels(rows, "random"),
        f"at both shares, {_ABOVE}",
        "as many random channels of every layer end as well: how many a layer "
        "keeps matters on this data, not which",
    ),
    "rewinding": Claim(
        LOTTERY,
        "Rewinding to an early step finds better tickets than rewinding to "
        "the start (deeper networks)",
        _players("imp", "imp_warm", densities=CLAIMED),
        lambda rows: judged(over(rows, "imp_warm", "imp")),
        _EVERYWHERE,
        _STABLE,
    ),
    "iterative": Claim(
        LOTTERY,
        "Iterative pruning finds better tickets than one-shot pruning",
        _iterative,
        _one_shot,
        _EVERYWHERE,
    ),
    "densities_per_layer": Claim(
        GEMS,
        "Gem-Miner and IMP keep the most of the first and the last layer "
        "(Figure 7)",
        _players("gem", "imp"),
        _ends,
        "for both methods both ends are denser, in the mean, than the median "
        "of the layers between",
    ),
    **{
        f"tweak_{way.lower().replace('+', '_')}": Claim(
            SPENDING,
            says,
            spending_units,
            functools.partial(tweak, way=way),
            f"at both densities, {_ABOVE}",
        )
        for way, says in {
            "activations": "Smooth activations help a ticket (Figure 1)",
            "skips": "... and so do injected skips (Figure 1)",
            "rescale": "... rescaled start weights (Figure 1)",
            "labels": "... smoothed labels (Figure 1)",
            "AT": "... both architecture tweaks together (Figure 4)",
            "TRT": "... both training tweaks together (Figure 4)",
            "AT+TRT": "... all four, most of all at high sparsity (Figure 4)",
        }.items()
    },
    "tweaks_on_others": Claim(
        SPENDING,
        "They help what other algorithms find, too: tickets of one-shot "
        "pruning (Figure A13), here also rewound and random ones",
        _others,
        _all_tweaks,
        f"for every kind {_EVERYWHERE}",
    ),
    "zero_activations": Claim(
        SPENDING,
        "With ReLU most activations of a sparse network are zero, with a "
        "smooth activation they are not (Table A1)",
        spending_units,
        _zeros,
        f"at both densities, {_ABOVE}",
    ),
    "eigenvalue": Claim(
        SPENDING,
        "The top eigenvalue of the Hessian is smaller with the tweaks "
        "(Figure A12); here swish alone, after training",
        spending_units,
        _eigenvalue,
        f"at both densities, {_ABOVE}, for ReLU minus swish",
    ),
    "skips_cost": Claim(
        SPENDING,
        "The added skips are not counted in the sparsity",
        spending_units,
        _skips_cost,
        "counted",
    ),
    "table_3": Claim(
        GEMS,
        "What Gem-Miner has over Edge-Popup helps: global scope and gradual "
        "pruning together lift it, before and after finetuning (Table 3)",
        _players("edge_popup", "ep_global", "ep_gradual", "ep_all"),
        lambda rows: judged(
            [
                *against(rows, "ep_gradual", ["edge_popup"]),
                *against(rows, "ep_gradual", ["edge_popup"], number="before"),
            ]
        ),
        f"before and after finetuning, {_ABOVE}",
    ),
    "table_4": Claim(
        GEMS,
        "Longer mining ends higher (Table 4: +1.5 points for ten times the "
        "epochs)",
        _players("gem", "long_gem"),
        lambda rows: judged(against(rows, "long_gem", ["gem"])),
        _ABOVE,
    ),
    "table_2": Claim(
        GEMS,
        "Gem-Miner ends above ProsPr (Table 2)",
        _players("gem", "prospr"),
        lambda rows: judged(against(rows, "gem", ["prospr"])),
        _ABOVE,
    ),
    "table_2_sanity": Claim(
        GEMS,
        "ProsPr does not pass the sanity checks (Table 2)",
        _players("prospr", densities=CLAIMED),
        lambda rows: survives(rows, "prospr"),
        f"for every control at both densities, {_LEVEL}",
        _WIDE,
    ),
    "table_16": Claim(
        GEMS,
        "Smart-Ratio with better first and last layers (v2, v3) ends higher, "
        "but below Gem-Miner (Table 16)",
        _players(
            "gem",
            "smart_ratio",
            "smart_ratio_v2",
            "smart_ratio_v3",
            densities=(MIDDLE,),
        ),
        lambda rows: judged(
            [
                *against(
                    rows, "smart_ratio_v2", ["smart_ratio"], density=MIDDLE
                ),
                *against(
                    rows, "smart_ratio_v3", ["smart_ratio"], density=MIDDLE
                ),
                *against(
                    rows,
                    "gem",
                    ["smart_ratio_v2", "smart_ratio_v3"],
                    density=MIDDLE,
                ),
            ]
        ),
        f"for all four, {_ABOVE}; at the higher density, as v3's dense last "
        "layer alone has more weights than the lower one keeps",
    ),
    "short_imp": Claim(
        GEMS,
        "IMP with short rounds is level with IMP (Figure 10)",
        _players("imp", "imp_short", densities=CLAIMED),
        lambda rows: judged(over(rows, "imp_short", "imp"), least=-MARGIN),
        f"at both densities, {_LEVEL}",
    ),
    "score_starts": Claim(
        GEMS,
        "How the scores start matters little (appendix)",
        _players("gem", "gem_half", "gem_bimodal"),
        lambda rows: judged(
            [
                (
                    plan.PLAYERS[name].about,
                    plan.values(rows, name),
                    plan.values(rows, "gem"),
                )
                for name in ("gem_half", "gem_bimodal")
            ],
            least=-MARGIN,
        ),
        f"for both, {_LEVEL}",
    ),
    "penalty": Claim(
        GEMS,
        "An L1 penalty does as well as L2 (section 3)",
        _players("gem", "gem_l1"),
        lambda rows: judged(against(rows, "gem_l1", ["gem"]), least=-MARGIN),
        _LEVEL,
    ),
    "frozen_weights": Claim(
        "Edge-Popup",
        "Signed constants under the mask do better than normal weights",
        _players("gem", "gem_normal"),
        lambda rows: judged(against(rows, "gem", ["gem_normal"])),
        _ABOVE,
    ),
    "pretrained": Claim(
        GEMS,
        "Mining works in trained weights, too (Task 3)",
        _players("gem", "gem_warm"),
        lambda rows: judged(against(rows, "gem_warm", ["gem"]), least=-MARGIN),
        _LEVEL,
    ),
    "other_criteria": Claim(
        GEMS,
        "GraSP and SynFlow are no match for gems (Table 1)",
        _players("gem", "grasp", "synflow"),
        lambda rows: judged(against(rows, "gem", ["grasp", "synflow"])),
        f"for both, {_ABOVE}",
        "SynFlow comes near to gems here, after training only and at no cost "
        "in search",
        "At a still larger rate SynFlow trains better on the digits: see *The "
        "next larger rate*",
    ),
    "learning_rate_rewinding": Claim(
        GEMS,
        "Learning-rate rewinding, which prunes after training, ends above "
        "tickets found at the start (Table 4)",
        _players("gem", "imp", "lrr", "lrr_low"),
        lambda rows: judged(against(rows, "lrr_low", ["gem", "imp"])),
        f"for both, {_ABOVE}; with a search at this density",
        "it is level with IMP at every higher density, and with gems down to "
        f"{MIDDLE:.3g} (the table over densities)",
    ),
    "instability": Claim(
        LOTTERY,
        "Where rewinding helps, two copies trained from the rewind point are "
        "joined by a line without an error barrier",
        instability_units,
        _instability,
        "from epoch 0 to epoch 3 the barrier falls and the accuracy rises, "
        f"and for both {_ABOVE}",
        _STABLE,
    ),
    "low_precision": Claim(
        BIRD,
        "A search in eight bits finds channels that train as well",
        _eight_bits,
        _low_precision,
        f"at both shares, {_LEVEL}",
    ),
    "early_bird_flops": Claim(
        BIRD,
        "Search and training together take 2.2 to 2.4 times fewer FLOPs",
        early_bird_units,
        _flops,
        "at one of the shares it is more than 2 times, if the small network "
        "is trained for the epochs that the search has left",
    ),
    "numbers": Claim(
        "all three",
        "The accuracies themselves, on CIFAR, TinyImageNet, ImageNet and "
        "Caltech-101 with networks of 0.3 to 25 million weights",
        _nothing,
        _never,
        "no such data and no such processor here; the recipes are in "
        "`tf_tickets.zoo.recipes`",
    ),
}


def on(task: str) -> dict[str, Claim]:
    """The claims that are tested on a task."""
    asked = tasks.TASKS[task].claims
    return {name: CLAIMS[name] for name in asked} if asked else CLAIMS


def everything(
    rows: Rows, names: Iterable[str] = (), asked: Iterable[str] = MEASURED
) -> Iterator[Unit]:
    """What claims ask to be measured, in their order.

    Args:
        rows: What was found.
        names: Of claims; by default all.
        asked: Tasks to measure on.
    """
    for task in asked:
        own, tested = rows.of(task), on(task)
        picked = [name for name in names or tested if name in tested]
        whole = not names and len(tested) == len(CLAIMS)
        if whole:  # what most of them need comes first
            yield from measured(own, _QUICK, (MIDDLE,))
            yield from measured(own, _QUICK, (LOW,))
            yield from measured(own, ["imp"])
            yield from early_bird_units(own)
        for name in picked:
            yield from CLAIMS[name].units(own)
        for name in picked:
            yield from more(CLAIMS[name], own)
        if whole:
            yield from measured(own, FIGURE, DENSITIES)
            yield from plan.past_the_edge(own)
