"""The page and its pictures, made of what was found and of nothing else."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks.claims import plan
from benchmarks.claims.claims import (
    CHANNELS,
    CLAIMED,
    CLAIMS,
    FIGURE,
    MARGIN,
    MEASURED,
    NOT_HERE,
    NOT_YET,
    REPRODUCED,
    SPENT,
    UNTESTABLE,
    Claim,
    channels,
    difference,
    on,
    percent,
    settled,
    spent,
)
from benchmarks.claims.methods import CHANNEL_WAYS, WAYS
from benchmarks.claims.plan import DENSITIES, LOW, MIDDLE, MORE, PLAYERS, SEEDS
from benchmarks.claims.tasks import TASKS
from benchmarks.claims.units import Rows

COMMAND = "python -m benchmarks.claims"
PICTURE = "pictures/claims_{}.png"


def make(rows: str, page: str) -> None:
    """Write the page and its pictures.

    Args:
        rows: The file of what was found.
        page: Where the page goes; pictures go beside it.
    """
    found, path = Rows.read(rows), pathlib.Path(page)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text_of(found))
    for task in MEASURED:
        if _over_densities(found.of(task)):
            picture = path.parent / PICTURE.format(task)
            picture.parent.mkdir(parents=True, exist_ok=True)
            draw(found.of(task).only(SEEDS), picture)


def text_of(rows: Rows) -> str:
    """The page."""
    parts = [_introduction(), _claims()]
    for task in MEASURED:
        every = rows.of(task)
        own = every.only(SEEDS)
        parts += [
            _verdicts(every),
            *(
                section
                for section in (
                    _figure(own),
                    _controls(own),
                    _layers(own),
                    _variants(own),
                    _spending(own),
                    _channel_table(own),
                    _search(own),
                    _past_the_edge(own),
                )
                if section
            ),
        ]
    return "\n\n".join(parts) + "\n"


def _introduction() -> str:
    about = "\n".join(_about(task) for task in MEASURED)
    return f"""# What of the papers' claims appears here

Three documents say what lottery tickets can do: *Rare Gems* (Sreenivasan et
al., 2022), *Spending Your Winning Lottery Better After Drawing It* (Jaiswal et
al., 2021), and a blog on lottery tickets and Early-Bird tickets. Here each of
their claims meets a test on two CPU cores. This page is made by the command
that measures, from the rows in `benchmarks/results/claims.jsonl`; no figure on
it was typed in.

```sh
{COMMAND} --workers=2                        # what is missing, then this page
{COMMAND} --claim=gems_imp --task=digits     # what one claim needs
{COMMAND} --nomeasure                        # this page alone, from the rows
```

{about}

- **Networks** have residual blocks and normalization without scale and offset,
  as in *Rare Gems*, and no biases. Channels are drawn in the same networks with
  scales.
- **Length**: weights are trained with Adam along a cosine; rounds of pruning
  are as long as a training. That is little, and all methods get the same.
- **Choice**: every method, baselines included, gets a search of the same kind
  at density {MIDDLE:.3g} on validation data, one seed: up to three settings of
  its own (the learning rate of its scores or rounds; how many examples it sees;
  the classifier's density; layer by layer or not) times the same three learning
  rates of the training that comes last. Of equals, that
  whose neighbours in the grid are better. What is chosen holds at all
  densities. Variants of a method take that method's choice, and other tickets
  those rates of spending that were chosen for IMP's. Learning-rate rewinding is
  searched once more at {LOW:.3g}, over smaller rates of its rounds, since its
  choice of the other search fits badly there.
- **Densities**: claims over densities are judged at {CLAIMED[0]:.3g} and
  {CLAIMED[1]:.3g}, that a ticket passes sanity checks, and all else, at
  {LOW:.3g}: where a random mask trains almost as well as the dense network, no
  method can show what it is worth. That it survives them is asked at both.
- **Runs**: {len(SEEDS)} seeds that no choice has seen, on test data. All of one
  seed start from the same weights and see the same batches. Where all means
  keep a rule and only an interval is too wide for it, {len(MORE)} more seeds
  are run, once, and the verdict is of all {len(SEEDS + MORE)}. Tables and the
  figure are of the first {len(SEEDS)}.
- **Verdicts**: differences are taken seed by seed; in brackets stands their
  mean with half the width of its 95 % interval (Student's t). *Reproduced* is
  what keeps the rule of the row; *not here* what does not, be it too small a
  difference or too wide an interval. *Level* is no more than {100 * MARGIN:.0f}
  points below. With less than {len(SEEDS)} seeds there is no verdict.

All accuracies are in percent, mean ± standard deviation; chance is 10."""


def _about(task: str) -> str:
    setting = TASKS[task]
    return (
        f"- **`--task={task}`**: {setting.about}; trainings of "
        f"{setting.epochs} epochs, mining of {setting.mining}, in batches of "
        f"{setting.batch_size}."
    )


def _claims() -> str:
    lines = [
        [
            f"`{name}`",
            claim.document,
            claim.says,
            claim.rule or "–",
        ]
        for name, claim in CLAIMS.items()
    ]
    head = ["`--claim=`", "document", "it says", "counts as reproduced if"]
    return f"## The claims\n\n{_table(head, lines, numbers=False)}"


def _verdicts(rows: Rows) -> str:
    lines, left = [], []
    counts: dict[str, int] = {}
    for name, claim in on(rows.task).items():
        finding = settled(claim, rows)
        if finding is None:
            counts[NOT_YET] = counts.get(NOT_YET, 0) + 1
            left.append(f"`{name}`{_so_far(rows, claim)}")
            continue
        measured, verdict = finding.text, finding.verdict
        if claim.note:
            measured += f". ({claim.note}.)"
        # What is known of why was learnt on the first task.
        known = claim.why and rows.task == MEASURED[0]
        if known and verdict.startswith(NOT_HERE):
            verdict = f"{verdict}: {claim.why}"
        kind = next(
            (
                kind
                for kind in (REPRODUCED, NOT_HERE, UNTESTABLE)
                if verdict.startswith(kind)
            ),
            "shown",
        )
        counts[kind] = counts.get(kind, 0) + 1
        lines.append([f"`{name}`", measured or "–", f"**{verdict}**"])
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    head = ["claim", "measured", "verdict"]
    text = f"## On {TASKS[rows.task].about}\n\n{told}."
    if lines:
        text += f"\n\n{_table(head, lines, numbers=False)}"
    if left:
        text += (
            f"\n\nNot measured yet (`{COMMAND} --task={rows.task} "
            f"--claim=...`): {', '.join(left)}."
        )
    return text


def _so_far(rows: Rows, claim: Claim) -> str:
    asked = list(dict.fromkeys(claim.units(rows)))
    if not asked:
        return " (has no test yet)"
    done = sum(unit in rows for unit in asked)
    return f" ({done} runs done)" if done else ""


def _table(
    head: Sequence[str], lines: Iterable[Sequence[str]], numbers: bool = True
) -> str:
    marks = ["---"] + ["---:" if numbers else "---"] * (len(head) - 1)
    return "\n".join(
        f"| {' | '.join(line)} |" for line in [head, marks, *lines]
    )


def _cell(found: dict[int, float]) -> str:
    if not found:
        return "–"
    few = len(found) < len(SEEDS)
    return percent(found) + (
        f" ({len(found)} seed{'s'[: len(found) > 1]})" if few else ""
    )


def _over_densities(rows: Rows) -> list[str]:
    """Players of the figure that have whole rows at more than one density."""
    return [
        name
        for name in FIGURE
        if name != "dense"
        and sum(
            len(plan.values(rows, name, density=density)) >= len(SEEDS)
            for density in DENSITIES
        )
        > 1
    ]


def _figure(rows: Rows) -> str:
    names = [name for name in FIGURE if plan.values(rows, name, density=None)]
    if not names:
        return ""
    parts = ["### Over densities"]
    if _over_densities(rows):
        picture = PICTURE.format(rows.task)
        parts.append(f"![Accuracy over density]({picture})")
    for number, title in (
        ("after", "After training"),
        ("before", "As it is drawn, before training"),
    ):
        head = [title, *(f"{density:.3g}" for density in DENSITIES)]
        lines = []
        for name in names:
            if name == "dense":
                found = plan.values(rows, name, number, density=1.0)
                cells = [f"{_cell(found)} at density 1"]
                cells += [""] * (len(DENSITIES) - 1)
            else:
                cells = [
                    _cell(plan.values(rows, name, number, density=density))
                    for density in DENSITIES
                ]
            lines.append([PLAYERS[name].about, *cells])
        parts.append(_table(head, lines))
    epochs = []
    for name in names:
        found = plan.values(rows, name, "search_epochs", density=LOW)
        if found:
            epochs.append(
                f"{PLAYERS[name].about} {np.mean(list(found.values())):.0f}"
            )
    parts.append(f"Epochs of search at density {LOW:.3g}: {', '.join(epochs)}.")
    parts.append(
        "(Learning-rate rewinding begins its last training from trained "
        "weights: what it has before is no ticket at initialization.)"
    )
    return "\n\n".join(parts)


def _controls(rows: Rows) -> str:
    controls = ("none", "shuffle", "reinitialize", "invert", "random")
    parts = []
    for density in (LOW, MIDDLE):
        lines = []
        for name, player in PLAYERS.items():
            found = [
                plan.values(rows, name, density=density, control=control)
                for control in controls
            ]
            if any(found[1:]):
                lines.append([player.about, *map(_cell, found)])
        if lines:
            head = [
                f"density {density:.3g}",
                "ticket",
                "shuffled",
                "new weights",
                "inverted",
                "random positions",
            ]
            parts.append(_table(head, lines))
    return "\n\n".join(["### Sanity checks", *parts]) if parts else ""


def _layers(rows: Rows) -> str:
    lines = []
    for name in FIGURE:
        found = plan.layers(rows, name)
        if len(found) >= len(SEEDS):
            means = np.mean(found, axis=0)
            lines.append(
                [PLAYERS[name].about, *(f"{100 * m:.1f}" for m in means)]
            )
    if not lines:
        return ""
    head = ["density in %", *map(str, range(1, len(lines[0])))]
    return (
        "### Densities of the layers\n\n"
        f"At density {LOW:.3g}, in the order of the model; 1 is the stem, "
        f"the last one the classifier.\n\n{_table(head, lines)}"
    )


def _variants(rows: Rows) -> str:
    lines = []
    for name, player in PLAYERS.items():
        if name in FIGURE:
            continue
        after = plan.values(rows, name)
        if after:
            epochs = plan.values(rows, name, "search_epochs")
            lines.append(
                [
                    player.about,
                    _cell(plan.values(rows, name, "before")),
                    _cell(after),
                    f"{np.mean(list(epochs.values())):.0f}",
                ]
            )
    if not lines:
        return ""
    head = [f"density {LOW:.3g}", "before", "after", "epochs of search"]
    return f"### Variants and other methods\n\n{_table(head, lines)}"


def _spending(rows: Rows) -> str:
    lines = []
    for way in WAYS:
        found = [spent(rows, way, density) for density in SPENT]
        if any(found):
            weights = [
                spent(rows, way, density, "parameters") for density in SPENT
            ]
            lines.append(
                [
                    way,
                    *map(_cell, found),
                    *(
                        f"{np.mean(list(w.values())):,.0f}" if w else "–"
                        for w in weights
                    ),
                ]
            )
    if not lines:
        return ""
    head = [
        "tickets of IMP, spent",
        *(f"density {density:.3g}" for density in SPENT),
        *(f"parameters at {density:.3g}" for density in SPENT),
    ]
    return f"### Spending\n\n{_table(head, lines)}"


def _channel_table(rows: Rows) -> str:
    about = {
        "early": "drawn when the mask stands still",
        "late": "drawn at the end",
        "random": "random channels, the early weights",
        "swapped": "late channels, the early weights",
        "first": "drawn after one epoch",
    }
    lines = []
    for way in CHANNEL_WAYS:
        found = [channels(rows, way, density) for density in CHANNELS]
        if any(found):
            lines.append([about[way], *map(_cell, found)])
    if not lines:
        return ""
    dense = rows.values("after", method="early_bird", way="dense")
    head = [
        "channels, trained on",
        *(f"{1 - density:.0%} pruned" for density in CHANNELS),
    ]
    return (
        f"### Channels\n\n{_table(head, lines)}\n\n"
        f"The dense network of the search: {_cell(dense)}."
    )


def _search(rows: Rows) -> str:
    lines = []
    edge = 0
    for name, player in PLAYERS.items():
        found = plan.searched(rows, name)
        if not found or player.like:
            continue
        setting, rate = plan.best_of(found)
        edge += plan.beyond(rows, name) is not None
        best = max(found.values())
        lines.append(
            [
                player.about,
                ", ".join(f"{s:g}" for s in plan.settings(player, rows.task)),
                f"{setting:g}",
                f"{rate:g}",
                f"{100 * best:.1f}",
            ]
        )
    if not lines:
        return ""
    head = [
        "method",
        "its own settings",
        "chosen",
        "learning rate of the last training",
        "validation",
    ]
    rates = ", ".join(f"{rate:g}" for rate in TASKS[rows.task].rates)
    return (
        "### What the search chose\n\n"
        f"At density {MIDDLE:.3g}, with seed {plan.SEARCH_SEED}. Learning "
        f"rates of the last training: {rates}. {edge} of {len(lines)} methods "
        f"take the largest.\n\n{_table(head, lines)}"
    )


def _past_the_edge(rows: Rows) -> str:
    """What the next larger rate gives to those who chose the largest."""
    larger = plan.BEYOND * max(TASKS[rows.task].rates)
    lines, head = [], ["method"]
    for name, player in PLAYERS.items():
        if plan.beyond(rows, name) is None:
            continue
        about, cells = player.about, [""] * 8
        for place, density in enumerate((1.0,) if name == "dense" else CLAIMED):
            own, other, gems = (
                plan.values(rows, one, density=density, rate=rate)
                for one, rate in (
                    (name, None),
                    (name, larger),
                    ("gem", plan.beyond(rows, "gem")),
                )
            )
            if not other:
                continue
            gain, lead = difference(other, own), difference(gems, other)
            cells[4 * place : 4 * place + 4] = [
                _cell(own),
                _cell(other),
                gain.text if gain else "–",
                lead.text if lead and name != "gem" else "–",
            ]
        if any(cells):
            where = ", all weights" if name == "dense" else ""
            lines.append([f"{about}{where}", *cells])
    if not lines:
        return ""
    for density in CLAIMED:
        head += [
            f"chosen, at {density:.3g}",
            f"{larger:g}",
            "gain",
            "Gem-Miner's lead then",
        ]
    text = (
        "Those who chose the largest learning rate of the last training, "
        "trained at the next larger one: the same tickets and seeds. This is "
        "no choice, and no verdict is made of it; it shows what the edge of "
        "the grid hides. *Gem-Miner's lead* is with the larger rate in both, "
        "or with Gem-Miner's chosen one if that is not the largest."
    )
    return f"### The next larger rate\n\n{text}\n\n{_table(head, lines)}"


def draw(rows: Rows, path: pathlib.Path) -> None:
    """The paper's figure: accuracy over density, before and after."""
    from tf_tickets import figures

    figure, axes = figures.new_axes((11, 4.2), columns=2)
    names = _over_densities(rows)
    dense = list(plan.values(rows, "dense", density=1.0).values())
    for panel, (number, label) in zip(
        axes,
        (
            ("after", "test accuracy after training"),
            ("before", "test accuracy as it is drawn"),
        ),
        strict=True,
    ):
        runs = {
            PLAYERS[name].about: {
                density: list(values.values())
                for density in DENSITIES
                if len(
                    values := plan.values(rows, name, number, density=density)
                )
                >= len(SEEDS)
            }
            for name in names
            # Trained weights are no ticket before training.
            if number == "after" or name != "lrr"
        }
        figures.over_sparsity(
            runs,
            label,
            dense=dense if number == "after" and dense else None,
            axes=panel,
        )
        panel.set_ylim(0, 1)
    axes[1].get_legend().remove()  # that of the left panel has them all
    figures.save(figure, path)
