r"""Draw a winning ticket by iterative magnitude pruning and put it to the test.

    python examples/imp_cifar.py                    # digits, 2-3 minutes
    python examples/imp_cifar.py --dataset=cifar10  # the published recipe

Rounds of train, prune and rewind run in one `fit`. Then the last ticket is
trained, and beside it the two controls that give its accuracy a meaning: the
same mask over newly initialized weights, and a random mask with the same
density in every layer. A ticket that wins beats both.

The output directory gets every ticket, `results.csv`, `accuracy.png` and a
SavedModel of the trained ticket. A run that was interrupted goes on where it
was when the same command is given again.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import harness
from absl import flags
from harness import (
    Progress,
    everything,
    found_or_near,
    gzipped_bytes,
    print_densities,
    write_csv,
)

import tf_tickets as tt
from tf_tickets.figures import over_sparsity
from tf_tickets.zoo import recipes
from tf_tickets.zoo.experiments import Task

FLAGS = flags.FLAGS
harness.define_flags("imp")
flags.DEFINE_integer("rounds", None, "Rounds of train, prune and rewind.")
flags.DEFINE_float(
    "target_sparsity",
    None,
    "Sparsity of the last ticket; default: the recipe's fraction each round.",
)
flags.DEFINE_enum(
    "rewind", "weights", ["weights", "learning_rate", "none"], "What to rewind."
)
flags.DEFINE_integer(
    "rewind_epoch", None, "Rewind point; default: the recipe's step."
)
flags.DEFINE_enum("scope", "global", ["global", "layer", "erk"], "Scope.")
flags.DEFINE_integer("epochs", None, "Epochs of a round; default: recipe's.")
flags.DEFINE_float("learning_rate", None, "Default: the recipe's.")
flags.DEFINE_integer("batch_size", None, "Default: the recipe's.")
flags.DEFINE_integer(
    "controls_every",
    2,
    "Train the controls of the last ticket and, from there back, of every "
    "n-th; 0: only of the last.",
)
flags.DEFINE_integer("seed", 0, "Seed of weights, batches and controls.")

# Densities of 1.4 %, where tickets and controls part.
_ROUNDS = {"digits": 12, "mnist1d": 10}
_PAPER_ROUNDS = 19


def main(output: Path) -> None:
    task = Task.prepare(recipe(), data_dir=FLAGS.data_dir, seed=FLAGS.seed)
    start = tt.Snapshot.take(task.model)
    imp = pruning(task, output)
    draw(task, imp, output)
    results = curve(imp)
    results += compare(task, imp, start)
    path = output / "saved_model"
    shutil.rmtree(path, ignore_errors=True)  # of an earlier run
    tt.export.saved_model(task.model, path)
    write_csv(output / "results.csv", results)
    plot(results, output / "accuracy.png")
    report(task, results, output)


def recipe() -> recipes.PruningRecipe:
    """The recipe for the data set and network, with the flags' changes."""
    near = {
        "digits": ("digits_cnn", "digits"),
        "mnist1d": ("resnet1d", "mnist1d"),
    }.get(FLAGS.dataset, ("resnet20", "cifar10"))
    name = FLAGS.model or near[0]
    found = found_or_near(recipes.iterative_pruning, name, near)
    return found.adjusted(
        epochs=FLAGS.epochs,
        initial_learning_rate=FLAGS.learning_rate,
        batch_size=FLAGS.batch_size,
    )


def pruning(task: Task, output: Path) -> tt.callbacks.IterativeMagnitudePruning:
    """The callback that draws the tickets."""
    rewind = None if FLAGS.rewind == "none" else FLAGS.rewind
    point: dict[str, int] = {}
    if FLAGS.rewind_epoch is not None:
        point = {"rewind_epoch": FLAGS.rewind_epoch}
    elif rewind and task.recipe.rewind_step:
        point = {"rewind_step": task.recipe.rewind_step}
    amount = (
        {"prune_fraction": task.recipe.prune_fraction}
        if FLAGS.target_sparsity is None
        else {"target_sparsity": FLAGS.target_sparsity}
    )
    return tt.callbacks.IterativeMagnitudePruning(
        rounds=FLAGS.rounds or _ROUNDS.get(FLAGS.dataset, _PAPER_ROUNDS),
        epochs_per_round=task.recipe.epochs,
        rewind=rewind,
        scope=FLAGS.scope,
        directory=output,
        seed=FLAGS.seed,
        **amount,
        **point,
    )


def draw(
    task: Task,
    imp: tt.callbacks.IterativeMagnitudePruning,
    output: Path,
) -> None:
    """All rounds, in one fit."""
    found, total = len(imp.tickets), imp.plan.rounds
    print(
        f"Drawing tickets: {task.recipe.model} on {task.recipe.dataset}, "
        f"{total} rounds, {imp.epochs} epochs"
        + (f"; {found} rounds found in {output}" if found else "")
    )
    task.fit(
        imp.epochs,
        [
            imp,
            Progress(lambda: f"round {min(len(imp.tickets) + 1, total)}"),
        ],
    )


def curve(imp: tt.callbacks.IterativeMagnitudePruning) -> list[dict[str, Any]]:
    """What each round's network reached: the dense one, then each ticket."""
    return [
        {
            "kind": "ticket" if row["trained_sparsity"] else "dense",
            "sparsity": row["trained_sparsity"],
            "density": 1 - row["trained_sparsity"],
            "val_accuracy": row["val_accuracy"],
            "best_val_accuracy": row["best_val_accuracy"],
            "seconds": row["seconds"],
        }
        for row in imp.history
    ]


def compare(
    task: Task,
    imp: tt.callbacks.IterativeMagnitudePruning,
    start: tt.Snapshot,
) -> list[dict[str, Any]]:
    """Train the dense network, the controls and the last ticket.

    New weights begin where training began, the others where rounds begin. The
    ticket comes last, so that it is what the model holds at the end.
    """
    rewound = tt.Snapshot.take(task.model)
    total, every = len(imp.tickets), FLAGS.controls_every
    chosen = [
        t
        for i, t in enumerate(imp.tickets, 1)
        if i == total or (every and (total - i) % every == 0)
    ]
    rows = []
    for ticket in chosen:
        fresh = ticket.reinitialize(task.model, FLAGS.seed + 1)
        rows.append(train(task, start, fresh, "re-initialized"))
        random = ticket.shuffle(FLAGS.seed + 1)
        rows.append(train(task, rewound, random, "random mask"))
    last = imp.tickets[-1]
    dense = everything(task.model, start)
    rows.append(train(task, start, dense, "dense"))
    rows.append(train(task, rewound, last, "ticket"))
    return rows


def train(
    task: Task, state: tt.Snapshot, ticket: tt.Ticket, kind: str
) -> dict[str, Any]:
    """Train a ticket from its start weights, the optimizer from ``state``.

    All that are compared see the same batches.
    """
    begun = time.monotonic()
    task.restart()
    state.restore(task.model)
    ticket.apply(task.model)
    label = f"{kind}, density {ticket.density:.4f}"
    logs = task.fit(task.recipe.epochs, [Progress(label)])
    return {
        "kind": kind,
        "sparsity": ticket.sparsity,
        "density": ticket.density,
        "val_accuracy": logs["val_accuracy"],
        "test_accuracy": task.test()["test_accuracy"],
        "seconds": time.monotonic() - begun,
    }


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Validation accuracy over sparsity."""
    runs = {
        kind: {
            row["density"]: row["val_accuracy"]
            for row in results
            if row["kind"] == kind
        }
        for kind in ("ticket", "re-initialized", "random mask")
    }
    [*_, dense] = [r["val_accuracy"] for r in results if r["kind"] == "dense"]
    over_sparsity(runs, "validation accuracy", path, dense=dense)


def report(task: Task, results: list[dict[str, Any]], output: Path) -> None:
    """What was found, at the density of the last ticket."""
    tested = [row for row in results if "test_accuracy" in row]
    final = tested[-1]["density"]
    print(f"\nThe trained ticket, density {final:.4f}:")
    print_densities(task.model)
    dense, packed = gzipped_bytes(task.model)
    print(f"\n  weights: {dense:,} bytes dense, {packed:,} bytes gzipped")
    print("\n  test accuracy")
    for kind in ("dense", "ticket", "re-initialized", "random mask"):
        for row in tested:
            if row["kind"] == kind and row["density"] in (1.0, final):
                print(f"    {kind:<16}{row['test_accuracy']:.4f}")
    print(f"\n  {output}: tickets, results.csv, accuracy.png, saved_model/")


if __name__ == "__main__":
    harness.run(main, "imp")
