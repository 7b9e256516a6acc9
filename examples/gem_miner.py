r"""Mine a rare gem: a ticket found before any weight is trained.

    python examples/gem_miner.py              # digits, about four minutes
    python examples/gem_miner.py --seeds=5    # means and spreads
    python examples/gem_miner.py \
        --dataset=cifar10 --model=resnet20 --density=0.0144  # the paper's run

Gem-Miner trains scores over frozen random weights. The mask it finds already
computes something, and finetuning makes it good. Beside it, at the same
density and with the same finetuning: iterative magnitude pruning, Edge-Popup,
Smart-Ratio, SNIP and SynFlow. Then the sanity checks: a gem must lose accuracy
when its mask is shuffled, its weights are drawn again or its scores inverted.

The output directory gets `results.csv`, `accuracy.png`, `sanity.png` and the
gem of the last seed, `gem.safetensors`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import keras
import numpy as np
from absl import flags
from harness import Progress, adjusted, everything, figure, write_csv

import tf_tickets as tt
from tf_tickets.zoo import recipes
from tf_tickets.zoo.experiments import Task

FLAGS = flags.FLAGS
METHODS = ("gem_miner", "imp", "edge_popup", "smart_ratio", "snip", "synflow")
ABLATIONS = {
    # Table 3: Edge-Popup and what Gem-Miner adds to it, one by one.
    "edge_popup_global": {"scope": "global"},
    "edge_popup_gradual": {"scope": "global", "gradual": True},
    "edge_popup_regularized": {"scope": "global", "regularized": True},
    "edge_popup_all": {
        "scope": "global",
        "gradual": True,
        "regularized": True,
    },
}
harness.define_flags("gem")
flags.DEFINE_float("density", 0.0144, "Kept fraction of the weights.")
flags.DEFINE_multi_enum(
    "method", METHODS, [*METHODS, *ABLATIONS], "What to compare."
)
flags.DEFINE_integer("epochs", None, "Epochs of mining; default: recipe's.")
flags.DEFINE_float("score_penalty", None, "λ; default: the recipe's.")
flags.DEFINE_integer("every", None, "T; default: the recipe's.")
flags.DEFINE_integer("finetune_epochs", None, "Default: the recipe's.")
flags.DEFINE_integer("imp_rounds", None, "Default: 30 %% or 20 %% a round.")
flags.DEFINE_integer("seeds", 1, "How many seeds, from 0.")
flags.DEFINE_bool("sanity", True, "Run the sanity checks of the gem.")


@dataclasses.dataclass(frozen=True)
class Recipes:
    """How to mine, how to finetune, how to prune iteratively."""

    mine: recipes.GemMinerRecipe
    finetune: recipes.Recipe
    imp: recipes.PruningRecipe


def main(output: Path) -> None:
    how = chosen()
    rows: list[dict[str, Any]] = []
    for seed in range(FLAGS.seeds):
        # The paper's networks: no biases, normalization without parameters.
        task = Task.prepare(
            how.finetune,
            data_dir=FLAGS.data_dir,
            seed=seed,
            affine=False,
            bias=False,
        )
        if not rows:
            print(
                f"{how.finetune.model} on {how.finetune.dataset}, density "
                f"{FLAGS.density}, {FLAGS.seeds} seed(s)"
            )
        start = dense(task)
        for method in FLAGS.method:
            rows.append(compare(task, how, start, method, seed, output))
        write_csv(output / "results.csv", rows)
    summary = summarize(rows)
    print_table(summary)
    plot(summary, output / "accuracy.png")
    if FLAGS.sanity and "gem_miner" in FLAGS.method:
        start.restore(task.model)
        check(task, start, output)
    print(f"\n  {output}: results.csv, plots, gem.safetensors")


def dense(task: Task) -> tt.Snapshot:
    """The state before any training, under masks that keep everything.

    Masks that are there from the start let all trainings share one trace.
    """
    tt.prune(task.model, 0.0).apply(task.model)
    return tt.Snapshot.take(task.model)


def chosen() -> Recipes:
    """The recipes for the data set and network, with the flags' changes."""
    digits = FLAGS.dataset == "digits"
    name = FLAGS.model or ("digits_cnn" if digits else "resnet20")
    if digits:
        mine = recipes.GemMinerRecipe(
            model=name,
            dataset="digits",
            epochs=40,
            batch_size=64,
            initial_learning_rate=1.0,
            schedule="cosine",
            affine=False,
            bias=False,
            target_sparsity=1 - FLAGS.density,
            every=2,
            score_penalty=1e-3,
        )
        near = recipes.iterative_pruning("digits_cnn", "digits")
        imp = adjusted(near, model=name, batch_size=64)
        finetune: recipes.Recipe = recipes.Recipe(
            model=name,
            dataset="digits",
            epochs=20,
            batch_size=64,
            algorithm="adam",
            initial_learning_rate=2e-3,
        )
    else:
        mine = recipes.gem_miner(name, FLAGS.dataset, FLAGS.density)
        finetune = recipes.finetune(name, FLAGS.dataset, FLAGS.density)
        imp = recipes.iterative_pruning("resnet20", "cifar10")
    return Recipes(
        adjusted(
            mine,
            epochs=FLAGS.epochs,
            score_penalty=FLAGS.score_penalty,
            every=FLAGS.every,
        ),
        adjusted(finetune, epochs=FLAGS.finetune_epochs),
        imp,
    )


def compare(
    task: Task,
    how: Recipes,
    start: tt.Snapshot,
    method: str,
    seed: int,
    output: Path,
) -> dict[str, Any]:
    """Find a ticket by one method, and finetune it."""
    begun = time.monotonic()
    start.restore(task.model)
    everything(task.model, start).apply(task.model)
    ticket, epochs = SEARCHES[method](task, how, seed)
    if method == "gem_miner":
        ticket.save(output / "gem.safetensors")
    start.restore(task.model)
    ticket.apply(task.model)
    before = task.test()["test_accuracy"]
    task.fit(how.finetune.epochs, [Progress(f"finetuning {method}")])
    row = {
        "method": method,
        "seed": seed,
        "density": ticket.density,
        "before": before,
        "after": task.test()["test_accuracy"],
        "search_epochs": epochs,
        "seconds": time.monotonic() - begun,
    }
    print(
        f"  seed {seed} {method:<22} before {before:.4f}  after "
        f"{row['after']:.4f}  ({row['seconds']:.0f} s)",
        flush=True,
    )
    return row


def gem_miner(task: Task, how: Recipes, seed: int) -> tuple[tt.Ticket, float]:
    """Scores, a threshold, freezing, a penalty."""
    miner = tt.supermask(
        task.model, score_penalty=how.mine.score_penalty, seed=seed
    )
    freezing = how.mine.callback()
    epochs = mine(task, how, miner, [freezing], "gem_miner")
    # Where every score died, what freezing kept is still a ticket.
    kind = "frozen" if freezing.collapsed else "effective"
    return tt.Ticket.from_supermask(miner, mask=kind), epochs


def edge_popup(
    *, scope: str = "layer", gradual: bool = False, regularized: bool = False
) -> Callable[[Task, Recipes, int], tuple[tt.Ticket, float]]:
    """Scores and a top-k mask; the options are table 3's."""

    def search(task: Task, how: Recipes, seed: int) -> tuple[tt.Ticket, float]:
        miner = tt.supermask(
            task.model,
            mask="top_k",
            sparsity=how.mine.target_sparsity,
            scope=scope,
            score_penalty=how.mine.score_penalty if regularized else 0.0,
            seed=seed,
        )
        callbacks = (
            [tt.callbacks.IterativeFreezing(every=how.mine.every)]
            if gradual
            else []
        )
        epochs = mine(task, how, miner, callbacks, "edge_popup")
        return tt.Ticket.from_supermask(miner), epochs

    return search


def mine(
    task: Task,
    how: Recipes,
    miner: keras.Model,
    callbacks: list[Any],
    label: str,
) -> float:
    """Train scores; returns the epochs."""
    mining = Task(task.data, miner, how.mine)
    mining.compile()
    mining.fit(how.mine.epochs, [*callbacks, Progress(f"mining: {label}")])
    return float(how.mine.epochs)


def imp(task: Task, how: Recipes, seed: int) -> tuple[tt.Ticket, float]:
    """Rounds of train, prune and rewind to initialization."""
    kept = 1 - how.imp.prune_fraction
    rounds = FLAGS.imp_rounds or round(np.log(FLAGS.density) / np.log(kept))
    point = {"rewind_step": how.imp.rewind_step} if how.imp.rewind_step else {}
    callback = tt.callbacks.IterativeMagnitudePruning(
        target_sparsity=1 - FLAGS.density,
        rounds=int(rounds),
        epochs_per_round=how.imp.epochs,
        seed=seed,
        **point,
    )
    task.fit(callback.epochs, [callback, Progress("imp")])
    return callback.ticket, float(callback.epochs)


def at_initialization(
    criterion: str, scope: Any, batches: int = 0
) -> Callable[[Task, Recipes, int], tuple[tt.Ticket, float]]:
    """One drawing from the untrained network."""

    def search(task: Task, how: Recipes, seed: int) -> tuple[tt.Ticket, float]:
        data = task.data.train.take(batches) if batches else None
        ticket = tt.prune(
            task.model,
            1 - FLAGS.density,
            criterion=criterion,
            scope=scope,
            data=data,
            seed=seed,
        )
        return ticket, batches / task.data.steps_per_epoch

    return search


SEARCHES: dict[str, Callable[[Task, Recipes, int], Any]] = {
    "gem_miner": gem_miner,
    "imp": imp,
    "edge_popup": edge_popup(),
    # Only the classifier is kept at 30 %: a hidden dense layer would spend the
    # budget alone.
    "smart_ratio": at_initialization(
        "random", tt.pruning.smart_ratio(linear="classifier")
    ),
    "snip": at_initialization("snip", "global", batches=4),
    "synflow": at_initialization("synflow", "global"),
    **{name: edge_popup(**options) for name, options in ABLATIONS.items()},
}


def summarize(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean and spread over the seeds, by method."""
    found: dict[str, dict[str, Any]] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        mine_ = [row for row in rows if row["method"] == method]
        found[method] = {
            name: (
                float(np.mean([row[name] for row in mine_])),
                float(np.std([row[name] for row in mine_])),
            )
            for name in ("density", "before", "after", "search_epochs")
        }
    return found


def print_table(summary: dict[str, dict[str, Any]]) -> None:
    """One row a method: test accuracy before and after finetuning."""
    print(
        f"\n  {'method':<24}{'density':>9}{'before':>16}{'after':>16}"
        f"{'search epochs':>15}"
    )
    for method, row in summary.items():
        before, after = (
            f"{row[name][0]:.4f} ±{row[name][1]:.4f}"
            for name in ("before", "after")
        )
        print(
            f"  {method:<24}{row['density'][0]:>9.4f}{before:>16}{after:>16}"
            f"{row['search_epochs'][0]:>15.1f}"
        )


def plot(summary: dict[str, dict[str, Any]], path: Path) -> None:
    """Accuracy before and after finetuning, by method."""
    made, [axes] = figure()
    places = np.arange(len(summary))
    for shift, name in ((-0.2, "before"), (0.2, "after")):
        means, spreads = zip(
            *(row[name] for row in summary.values()), strict=True
        )
        axes.bar(
            places + shift, means, 0.4, yerr=spreads, label=f"{name} finetuning"
        )
    axes.set_xticks(places, list(summary), rotation=20, ha="right")
    axes.set_ylabel("test accuracy")
    axes.set_title(f"density {FLAGS.density}")
    axes.legend()
    made.savefig(path, dpi=150)


def check(task: Task, start: tt.Snapshot, output: Path) -> None:
    """The sanity checks of the last gem."""
    gem = tt.Ticket.load(output / "gem.safetensors")

    def train(model: keras.Model) -> float:
        task.fit(task.recipe.epochs, [])
        return task.test()["test_accuracy"]

    print("\nSanity checks of the gem: training it and its controls ...")
    report = tt.analysis.sanity_checks(
        gem, task.model, train=train, seeds=range(max(FLAGS.seeds, 1))
    )
    print(report)
    report.plot(output / "sanity.png")


if __name__ == "__main__":
    harness.run(main, "gem")
