"""Gem-Miner with a steered score penalty against the best fixed one.

Both sides get the same learning rates on the validation split and one seed;
the fixed side a grid of λ besides. Then fresh seeds, on the test split: the
fixed λ that was best, its neighbours, and the steered one at every learning
rate; other densities, lengths and options after that. On validation, too: other
rules to steer by.

    python -m benchmarks.score_penalty

A row a run goes to a CSV file, and a run that is in it already is not made
again. Before a row counts, both masks of a miner are finetuned: the effective
one, before it is filled up, and what freezing has left.
"""

from __future__ import annotations

import csv
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from unittest import mock

import keras
import numpy as np
from absl import app

import tf_tickets as tt
from benchmarks import script
from tf_tickets.layers import steering
from tf_tickets.zoo import datasets, models

FLAGS = script.define(
    __name__,
    rows=("score_penalty.csv", "CSV file of the runs."),
    dataset=("digits", "Of tf_tickets.zoo.datasets."),
    network=("digits_cnn", "Of tf_tickets.zoo.models."),
    stage=(
        ("search", "test", "range", "options", "rules"),
        "Which runs to make.",
    ),
    density=("0.0144", "Kept share of the weights."),
    epochs=(40, "Of mining."),
    seeds=(5, "Fresh seeds of the test."),
)
RATES = (1.0, 4.0, 10.0)
PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3)
STEERED = "auto"
# Other rules: how much an error and its change count, and the largest steps of
# log λ down and up.
RULES: dict[str, dict[str, float]] = {
    "auto, half": {"PROPORTIONAL": 4.0, "INTEGRAL": 8.0},
    "auto, double": {"PROPORTIONAL": 16.0, "INTEGRAL": 32.0},
    # λ times (density / goal)^0.3, whatever the density is doing.
    "auto, density alone": {"PROPORTIONAL": 0.0, "INTEGRAL": 43.0},
    "auto, as slow down as up": {"FALL": 0.3},
}
FIRST_FRESH_SEED = 10
KINDS = ("effective", "frozen")


@dataclasses.dataclass(frozen=True)
class Run:
    """What a row is of: one mining, and the finetuning of its masks."""

    dataset: str
    network: str
    split: str
    density: float
    epochs: int
    rate: float
    penalty: str
    start: str
    seed: int


Row = dict[str, Any]


def main(argv: Sequence[str]) -> None:
    """Make the runs that are missing, stage by stage, and print tables."""
    del argv
    path = pathlib.Path(FLAGS.rows)
    rows = read(path)
    for stage in FLAGS.stage:
        for run in dict.fromkeys(STAGES[stage](rows)):
            if run not in rows:
                rows[run] = measure(run)
                write(path, rows)
                print(text_of(run), rows[run], flush=True)
    print(table(rows))


def one(**options: Any) -> Run:
    """A run, with what the flags say where nothing else is said."""
    return Run(
        **{
            "dataset": FLAGS.dataset,
            "network": FLAGS.network,
            "split": "test",
            "density": float(FLAGS.density),
            "epochs": 2 if FLAGS.smoke else FLAGS.epochs,
            "penalty": STEERED,
            "rate": RATES[1],
            "start": "signed_constant",
            "seed": 0,
            **options,
        }
    )


def search(rows: dict[Run, Row]) -> Iterable[Run]:
    """The same learning rates for both, and a grid of λ for one."""
    del rows
    for penalty in (STEERED, *map(str, PENALTIES)):
        for rate in RATES:
            yield one(split="validation", penalty=penalty, rate=rate)


def fresh(rows: dict[Run, Row]) -> Iterable[Run]:
    """Fresh seeds: what was best, what is beside it, and what is steered."""
    fixed = best(rows)
    for seed in seeds():
        for rate in RATES:
            yield one(rate=rate, seed=seed)
        for factor in (1.0, 1.5, 1 / 1.5):
            penalty = f"{float(fixed.penalty) * factor:.2g}"
            yield one(rate=fixed.rate, penalty=penalty, seed=seed)


def wide(rows: dict[Run, Row]) -> Iterable[Run]:
    """Other densities and lengths, with what was best as it is."""
    fixed = best(rows)
    others: list[dict[str, Any]] = [
        *({"density": density} for density in (0.5, 0.05, 0.005)),
        *({"epochs": epochs} for epochs in (10, 100)),
    ]
    for seed in seeds(3):
        for other in others:
            yield one(seed=seed, **other)
            yield one(
                rate=fixed.rate, penalty=fixed.penalty, seed=seed, **other
            )


def options(rows: dict[Run, Row]) -> Iterable[Run]:
    """Other frozen weights: drawn from a normal, or trained a little."""
    del rows
    for seed in seeds():
        for start in ("he_normal", "warm"):
            yield one(start=start, seed=seed)


def rules(rows: dict[Run, Row]) -> Iterable[Run]:
    """Other rules to steer by."""
    del rows
    for penalty in RULES:
        for rate in (RATES[0], RATES[-1]):
            yield one(split="validation", penalty=penalty, rate=rate)


STAGES: dict[str, Callable[[dict[Run, Row]], Iterable[Run]]] = {
    "search": search,
    "test": fresh,
    "range": wide,
    "options": options,
    "rules": rules,
}


def seeds(most: int | None = None) -> range:
    """Seeds that no choice has seen."""
    count = 1 if FLAGS.smoke else min(FLAGS.seeds, most or FLAGS.seeds)
    return range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + count)


def best(rows: dict[Run, Row]) -> Run:
    """The fixed λ and its learning rate, by validation after finetuning."""
    asked = [run for run in search(rows) if run.penalty != STEERED]
    made = [run for run in asked if run in rows]
    if not made:
        raise ValueError(
            "The best fixed λ comes from --stage=search. Received: "
            f"--rows={FLAGS.rows} without its rows"
        )
    return max(
        made,
        key=lambda run: max(rows[run][f"after_{kind}"] for kind in KINDS),
    )


class Effective(keras.callbacks.Callback):
    """The mask of the miner before it is filled up."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Keep the scores that the epoch came to."""
        self.scores = {
            key: score.numpy()
            for key, score in self.model.supermask.scores.items()
        }


def measure(run: Run) -> Row:
    """Mine, and finetune under both masks."""
    begun = time.monotonic()
    keras.utils.clear_session()
    keras.utils.set_random_seed(run.seed)
    data = datasets.load(run.dataset, batch_size=64, seed=run.seed)
    split = data.test if run.split == "test" else data.validation
    model = models.get(
        run.network,
        input_shape=data.input_shape,
        classes=data.classes,
        affine=False,
        bias=False,
    )
    # Masks from the start let all trainings share one trace.
    tt.prune(model, 0.0).apply(model)
    compile_(model, keras.optimizers.Adam(2e-3))
    untrained = tt.Snapshot.take(model)
    warm = run.start == "warm"
    if warm:
        model.fit(data.train, epochs=2, verbose=0)
    miner = tt.supermask(
        model,
        weights="keep" if warm else run.start,
        score_penalty="auto"
        if run.penalty.startswith(STEERED)
        else float(run.penalty),
        seed=run.seed,
    )
    rate = keras.optimizers.schedules.CosineDecay(
        run.rate, run.epochs * data.steps_per_epoch
    )
    compile_(miner, keras.optimizers.SGD(rate, momentum=0.9))
    ends = Effective()
    freezing = tt.callbacks.IterativeFreezing(
        1 - run.density, every=max(1, run.epochs // 20)
    )
    rule = {"START": steering.START, **RULES.get(run.penalty, {})}
    # The first step is traced with the rule.
    with mock.patch.multiple(steering, **rule):
        history = miner.fit(
            data.train,
            epochs=run.epochs,
            verbose=0,
            callbacks=[ends, freezing],
        ).history
    frozen = tt.Ticket.from_supermask(miner, "frozen")
    masks = {
        key: q & (score > 0.5)
        for (key, q), score in zip(
            frozen.masks.items(), ends.scores.values(), strict=True
        )
    }
    row: Row = {
        "kept_effective": sum(int(mask.sum()) for mask in masks.values()),
        "kept_frozen": frozen.kept,
        "last_penalty": history.get("score_penalty", [run.penalty])[-1],
    }
    for kind, chosen in zip(KINDS, (masks, frozen.masks), strict=True):
        row[f"before_{kind}"] = row[f"after_{kind}"] = 1 / data.classes
        if any(mask.any() for mask in chosen.values()):
            untrained.restore(model)
            tt.Ticket(chosen, frozen.weights).apply(model)
            row[f"before_{kind}"] = accuracy(model, split)
            model.fit(data.train, epochs=1 if FLAGS.smoke else 20, verbose=0)
            row[f"after_{kind}"] = accuracy(model, split)
    return {**row, "seconds": round(time.monotonic() - begun, 1)}


def compile_(model: keras.Model, optimizer: Any) -> None:
    """For classes."""
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )


def accuracy(model: keras.Model, split: Any) -> float:
    """In percent of nothing: a share."""
    return float(model.evaluate(split, verbose=0, return_dict=True)["accuracy"])


def text_of(run: Run) -> str:
    """All that a run is, on a line."""
    return " ".join(map(str, dataclasses.astuple(run)))


def read(path: pathlib.Path) -> dict[Run, Row]:
    """The runs that were made before."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    kinds = {"density": float, "rate": float, "epochs": int, "seed": int}
    rows: dict[Run, Row] = {}
    for line in lines:
        names = [field.name for field in dataclasses.fields(Run)]
        run = Run(**{n: kinds.get(n, str)(line[n]) for n in names})
        rows[run] = {k: float(v) for k, v in line.items() if k not in names}
    return rows


def write(path: pathlib.Path, rows: dict[Run, Row]) -> None:
    """All runs, whole or not at all."""
    lines = [{**dataclasses.asdict(run), **row} for run, row in rows.items()]
    whole = path.with_suffix(".part")
    with whole.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    whole.replace(path)


def table(rows: dict[Run, Row]) -> str:
    """One line for each kind of run: means and deviations over its seeds."""
    groups: dict[Run, list[Row]] = {}
    for run, row in rows.items():
        groups.setdefault(dataclasses.replace(run, seed=-1), []).append(row)
    lines = [
        "| split | density | epochs | rate | λ | weights | seeds | effective:"
        " kept | before | after | frozen: kept | before | after |",
        "|---|---:|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for run, found in groups.items():
        cells = [
            run.split,
            f"{run.density:g}",
            str(run.epochs),
            f"{run.rate:g}",
            run.penalty,
            run.start,
            str(len(found)),
        ]
        for kind in KINDS:
            cells.append(f"{np.mean([r[f'kept_{kind}'] for r in found]):.0f}")
            for when in ("before", "after"):
                values = [100 * r[f"{when}_{kind}"] for r in found]
                cells.append(
                    f"{np.mean(values):.1f}"
                    + (f" ± {np.std(values, ddof=1):.1f}" if values[1:] else "")
                )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
