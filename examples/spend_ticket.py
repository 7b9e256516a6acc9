r"""Draw a ticket once, then spend it in many ways: which tweaks help?

    python examples/spend_ticket.py                  # digits, some minutes
    python examples/spend_ticket.py --seeds=5        # with spread, longer
    python examples/spend_ticket.py --dataset=cifar100 --model=resnet18
    python examples/spend_ticket.py --kinds=ticket,whole --ways=vanilla \
        --ways=AT+TRT --ways=AT+KD   # what else the paper's figures show

Iterative magnitude pruning draws tickets. Those of several sparsities are
then retrained plainly and with each tweak of *Spending Your Winning Lottery
Better After Drawing It*: swish (activations), injected skip connections,
rescaled start weights, smoothed labels; the architecture tweaks together
(AT), the recipe tweaks together (TRT), and all of them. Then the same from
rewound weights, and with a one-shot mask. No mask changes in any of it. If
asked for, the dense network gets the tweaks as well (`--kinds=whole`), and
distillation from it takes the place of smoothed labels (`--ways=AT+KD`).

With one seed, what the tweaks change is looked at too: the share of activations
that are zero, the top eigenvalue of the Hessian from epoch to epoch, and the
loss around the weights, early (`--early_epoch`) and at the end. The output
directory gets `results.csv`, `summary.csv` and plots.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import harness
import keras
import numpy as np
from absl import flags
from harness import (
    Progress,
    everything,
    figure,
    found_or_near,
    write_csv,
)

import tf_tickets as tt
from tf_tickets.figures import sparsity_axis
from tf_tickets.zoo import recipes
from tf_tickets.zoo.experiments import Task

WAYS: dict[str, list[str]] = {
    "vanilla": [],
    "activations": ["activations"],
    "skips": ["skips"],
    "rescale": ["rescale"],
    "labels": ["labels"],
    "AT": ["architecture"],
    "TRT": ["recipe"],
    "AT+TRT": ["paper"],
    "AT+KD": ["architecture", "rescale"],
}
# Where labels are not smoothed but a dense teacher's.
DISTILLED = "AT+KD"
# Of rewound and one-shot tickets, only these.
SETS = ("vanilla", "AT", "TRT", "AT+TRT")

FLAGS = flags.FLAGS
harness.define_flags("spend")
flags.DEFINE_list(
    "kinds",
    ["ticket", "rewound", "one-shot"],
    "What is spent; the last two only at the two highest sparsities. There is "
    "also `whole`, the dense network.",
)
flags.DEFINE_multi_enum(
    "ways",
    [way for way in WAYS if way != DISTILLED],
    list(WAYS),
    "How it is spent.",
)
flags.DEFINE_float("temperature", 4.0, f"Of the teacher in {DISTILLED}.")
flags.DEFINE_list(
    "sparsities", ["0.9", "0.97", "0.99"], "Retrain the nearest tickets."
)
flags.DEFINE_integer("epochs", None, "Epochs of a training; default: recipe's.")
flags.DEFINE_float("learning_rate", None, "Default: the recipe's.")
flags.DEFINE_integer("batch_size", None, "Default: the recipe's.")
flags.DEFINE_float("prune_fraction", 0.3, "Of the rest, in each round.")
flags.DEFINE_integer("rescale_iterations", 60, "Of the start weights.")
flags.DEFINE_integer("seeds", 1, "Repeat with so many seeds.")
flags.DEFINE_integer("seed", 0, "The first seed.")
flags.DEFINE_bool("analysis", True, "Look closer; only with one seed.")
flags.DEFINE_integer("early_epoch", 5, "After which to look the first time.")
flags.DEFINE_integer("points", 15, "On a side of a landscape; odd.")


@dataclasses.dataclass
class Views:
    """What is seen of the sparsest ticket, way by way, and drawn at last."""

    early: dict[str, tt.analysis.LossSurface] = dataclasses.field(
        default_factory=dict
    )
    late: dict[str, tt.analysis.LossSurface] = dataclasses.field(
        default_factory=dict
    )
    eigenvalues: dict[str, list[float]] = dataclasses.field(
        default_factory=dict
    )

    # Figures 5 and 11 of the paper; figures 2 and A12.
    contours = ("vanilla", "skips", "rescale", "labels", "AT+TRT")
    curves = ("vanilla", "activations", "AT+TRT")

    def draw(self, output: Path) -> None:
        """One file for each moment, and one for the eigenvalues."""
        for name in ("early", "late"):
            surfaces = getattr(self, name)
            if surfaces:
                made, panels = figure(len(surfaces), width=4 * len(surfaces))
                for axes, (way, surface) in zip(
                    panels, surfaces.items(), strict=True
                ):
                    surface.plot(axes=axes)
                    axes.set_title(way)
                made.savefig(output / f"contours_{name}.png", dpi=150)
        if self.eigenvalues:
            made, [axes] = figure()
            for way, values in self.eigenvalues.items():
                axes.plot(range(1, len(values) + 1), values, "o-", label=way)
            axes.set_xlabel("epoch")
            axes.set_ylabel("top eigenvalue of the Hessian")
            axes.legend()
            made.savefig(output / "eigenvalues.png", dpi=150)


def main(output: Path) -> None:
    rows: list[dict[str, Any]] = []
    for seed in range(FLAGS.seed, FLAGS.seed + FLAGS.seeds):
        rows += run(seed, output)
        write_csv(output / "results.csv", rows)
    summary = summarize(rows)
    write_csv(output / "summary.csv", summary)
    plot(summary, output / "accuracy.png")
    report(summary, output)


def recipe() -> recipes.SpendingRecipe:
    """The paper's recipe; for the digits, a ninth as long."""
    digits = FLAGS.dataset == "digits"
    name = FLAGS.model or ("digits_cnn" if digits else "resnet18")
    found = found_or_near(recipes.spending, name, ("resnet18", "cifar10"))
    if digits:
        found = found.adjusted(epochs=20, rewind_epoch=4)
    epochs = FLAGS.epochs or found.epochs
    return found.adjusted(
        epochs=epochs,
        rewind_epoch=max(1, round(found.rewind_epoch * epochs / found.epochs)),
        initial_learning_rate=FLAGS.learning_rate,
        batch_size=FLAGS.batch_size,
    )


def run(seed: int, output: Path) -> list[dict[str, Any]]:
    """Draw tickets with one seed and spend them in every way."""
    task = Task.prepare(recipe(), data_dir=FLAGS.data_dir, seed=seed)
    start = tt.Snapshot.take(task.model)
    wanted = [float(s) for s in FLAGS.sparsities]
    print(
        f"Seed {seed}: drawing tickets of {task.recipe.model} on "
        f"{task.recipe.dataset}"
    )
    dense, drawn = draw(task, max(wanted))
    tickets = [
        min(drawn, key=lambda t: abs(t.sparsity - s))
        for s in dict.fromkeys(wanted)
    ]
    others = set(FLAGS.kinds) & {"rewound", "one-shot"}
    rewound = rewind(task, start) if "rewound" in others else {}
    teaches = DISTILLED in FLAGS.ways
    trained = start
    if "one-shot" in others or teaches:
        trained = train_dense(task, start)
    teacher = taught(task, trained) if teaches else None
    views = Views() if FLAGS.seeds == 1 and FLAGS.analysis else None
    rows = [{"way": "dense", "kind": "dense", "sparsity": 0.0, **dense}]
    for ticket in tickets:
        kinds = {"ticket": (ticket, tuple(WAYS))}
        if "rewound" in others and ticket in tickets[-2:]:
            kinds["rewound"] = tt.Ticket(ticket.masks, rewound), SETS
        if "one-shot" in others and ticket in tickets[-2:]:
            kinds["one-shot"] = one_shot(task, start, trained, ticket), SETS
        if ticket is tickets[-1]:
            kinds["whole"] = everything(task.model, start), tuple(WAYS)
        for kind in [k for k in kinds if k in FLAGS.kinds]:
            spent, ways = kinds[kind]
            last = kind == "ticket" and ticket is tickets[-1]
            for way in (w for w in ways if w in FLAGS.ways):
                row, model = spend(
                    task,
                    start,
                    spent,
                    kind,
                    way,
                    teacher=teacher if way == DISTILLED else None,
                    views=views if kind == "ticket" else None,
                    last=last,
                )
                rows.append(row)
                if kind == "ticket" and views is not None:
                    look(task, model, row, last, output)
    if views is not None:
        views.draw(output)
    return [{"seed": seed, **row} for row in rows]


def draw(
    task: Task, target_sparsity: float
) -> tuple[dict[str, Any], list[tt.Ticket]]:
    """The dense network's accuracy, and a ticket of every round."""
    fraction = FLAGS.prune_fraction
    rounds = round(np.log(1 - target_sparsity) / np.log(1 - fraction))
    imp = tt.callbacks.IterativeMagnitudePruning(
        prune_fraction=fraction,
        rounds=max(1, int(rounds)),
        epochs_per_round=task.recipe.epochs,
    )
    progress = Progress(
        lambda: f"round {min(len(imp.tickets) + 1, imp.plan.rounds)}"
    )
    task.fit(imp.epochs, [imp, progress])
    return {"val_accuracy": imp.history[0]["val_accuracy"]}, imp.tickets


def rewind(task: Task, start: tt.Snapshot) -> dict[str, np.ndarray]:
    """The dense network's weights at the rewind point."""
    tt.release(task.model)
    start.restore(task.model)
    task.restart()
    task.fit(task.recipe.rewind_epoch, [])
    return tt.Snapshot.take(task.model).weights_of(task.model)


def train_dense(task: Task, start: tt.Snapshot) -> tt.Snapshot:
    """The trained dense network, which one-shot masks are drawn from."""
    tt.release(task.model)
    start.restore(task.model)
    task.restart()
    task.fit(task.recipe.epochs, [Progress("dense")])
    return tt.Snapshot.take(task.model)


def taught(task: Task, trained: tt.Snapshot) -> keras.Model:
    """The trained dense network, as a teacher."""
    trained.restore(task.model)
    teacher = keras.models.clone_model(task.model)
    teacher.set_weights(task.model.get_weights())
    return teacher


def one_shot(
    task: Task, start: tt.Snapshot, trained: tt.Snapshot, like: tt.Ticket
) -> tt.Ticket:
    """The mask of the trained dense network over the first weights."""
    tt.release(task.model)
    trained.restore(task.model)
    masks = tt.prune(task.model, like.sparsity).masks
    return tt.Ticket(masks, start.weights_of(task.model))


def spend(
    task: Task,
    start: tt.Snapshot,
    ticket: tt.Ticket,
    kind: str,
    way: str,
    *,
    teacher: keras.Model | None = None,
    views: Views | None = None,
    last: bool = False,
) -> tuple[dict[str, Any], Any]:
    """Retrain a ticket in one way; the row of the table, and the model.

    What ``views`` are drawn of is the ``last`` ticket.
    """
    begun = time.monotonic()
    tt.release(task.model)
    start.restore(task.model)  # a fresh optimizer, too
    task.restart()
    tweaks = WAYS[way]
    options: dict[str, dict[str, Any]] = {}
    if {"rescale", "recipe", "paper"} & set(tweaks):
        options["rescale"] = {
            "iterations": FLAGS.rescale_iterations,
            "step_size": task.recipe.initial_learning_rate,
        }
    if {"labels", "recipe", "paper"} & set(tweaks):
        options["labels"] = {"alpha": task.recipe.label_smoothing}
    added = 0
    if tweaks:
        model, report = tt.retraining.spend(
            ticket,
            task.model,
            tweaks,
            data=task.data.train,
            options=options,
            return_report=True,
        )
        added = report.added_parameters
    else:
        model = task.model
        ticket.apply(model)
    task.restart()  # rescaling has looked at batches: all see the same
    retraining = Task(task.data, model, task.recipe)
    watch = watching(task, way, last) if views is not None else None
    views = views if last else None
    callbacks: list[Any] = [Progress(f"{kind}, {ticket.sparsity:.4f}, {way}")]
    callbacks += [watch] if watch else []
    if views is not None and way in views.contours:
        callbacks.append(looking(task, model, views.early, way))
    trained = retraining
    if teacher is not None:
        distiller = tt.retraining.distiller(
            model, teacher, temperature=FLAGS.temperature
        )
        trained = Task(task.data, distiller, task.recipe)
        trained.compile()
    logs = trained.fit(task.recipe.epochs, callbacks)
    if views is not None and way in views.contours:
        views.late[way] = surface(task, model)
    if watch and views is not None:
        views.eigenvalues[way] = watch.values
    for mask, held in zip(
        ticket.masks.values(),
        tt.Ticket.from_model(model).masks.values(),
        strict=True,
    ):
        if not np.array_equal(mask, held):
            raise ValueError(f"A mask has changed. Received: {kind}, {way}")
    return {
        "kind": kind,
        "way": way,
        "sparsity": ticket.sparsity,
        "kept": ticket.kept,
        "added_parameters": added,
        "val_accuracy": logs["val_accuracy"],
        "test_accuracy": retraining.test()["test_accuracy"],
        "top_eigenvalues": " ".join(f"{v:.3g}" for v in watch.values)
        if watch
        else "",
        "seconds": round(time.monotonic() - begun, 1),
    }, model


def watching(
    task: Task, way: str, last: bool
) -> tt.callbacks.HessianEigenvalue | None:
    """Looks at the sharpest direction, of the last ticket in every epoch."""
    if way not in Views.curves:
        return None
    # Plain cross-entropy for all, whatever a ticket is trained with.
    return tt.callbacks.HessianEigenvalue(
        list(task.data.validation.take(1)),
        every=1 if last else 4,
        iterations=20,
        tolerance=1e-2,
        loss=task.model.loss,
    )


def looking(
    task: Task,
    model: keras.Model,
    found: dict[str, tt.analysis.LossSurface],
    way: str,
) -> keras.callbacks.Callback:
    """Looks at the loss around the weights once, early."""

    def look_at(epoch: int, logs: Any) -> None:
        if epoch + 1 == FLAGS.early_epoch:
            found[way] = surface(task, model)

    return keras.callbacks.LambdaCallback(on_epoch_end=look_at)


def surface(task: Task, model: keras.Model) -> tt.analysis.LossSurface:
    """The loss around the weights of the moment."""
    return tt.analysis.loss_landscape(
        model,
        list(task.data.validation),
        steps=FLAGS.points,
        loss=task.model.loss,
        batches=1,
        verbose=0,
    )


def look(
    task: Task, model: Any, row: dict[str, Any], last: bool, output: Path
) -> None:
    """Activations of the trained ticket; at the last one, its surroundings."""
    way = row["way"]
    batches = list(task.data.validation)
    if way in ("vanilla", "activations"):
        found = tt.analysis.activation_sparsity(model, batches)
        row["activation_sparsity"] = round(found.total, 4)
        for name, share in found.layers.items():
            row[f"zeros in {name}"] = round(share, 4)
    if last and way in ("vanilla", "AT+TRT"):
        name = way.replace("+", "_").lower()
        # Plain cross-entropy for all, whatever the ticket was trained with.
        options = {"loss": task.model.loss, "batches": 1}
        tt.analysis.input_landscape(
            model, batches, steps=FLAGS.points, **options
        ).plot(output / f"input_landscape_{name}.png")
        top = tt.analysis.hessian_top_eigenvalue(model, batches, **options)
        tt.analysis.loss_along_eigenvector(model, batches, top, **options).plot(
            output / f"eigenvector_{name}.png"
        )


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread over the seeds, and the gain over plain retraining.

    Gains are taken seed by seed, so that what a seed's ticket is worth does
    not count; two standard errors above zero is what deserves belief.
    """
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in rows:
        if row["kind"] != "dense":
            key = row["kind"], row["way"], round(row["sparsity"], 4)
            groups.setdefault(key, []).append(row)
    summary = []
    for (kind, way, sparsity), found in groups.items():
        scores = np.array([row["test_accuracy"] for row in found])
        plain = {
            row["seed"]: row["test_accuracy"]
            for row in groups[kind, "vanilla", sparsity]
        }
        gains = np.array([r["test_accuracy"] - plain[r["seed"]] for r in found])
        many = len(found) > 1
        summary.append(
            {
                "kind": kind,
                "sparsity": sparsity,
                "way": way,
                "seeds": len(found),
                "accuracy": scores.mean(),
                "std": scores.std(ddof=1) if many else "",
                "gain": gains.mean(),
                "gain_std": gains.std(ddof=1) if many else "",
                "gain_error": gains.std(ddof=1) / len(found) ** 0.5
                if many
                else "",
                "added_parameters": found[0]["added_parameters"],
                "kept": found[0]["kept"],
                **{
                    name: found[0][name]
                    for name in found[0]
                    if name.startswith(("activation_", "zeros", "top_"))
                    and found[0][name] != ""
                },
            }
        )
    return summary


def plot(summary: list[dict[str, Any]], path: Path) -> None:
    """Test accuracy against sparsity, a panel for each kind of ticket."""
    kinds = list(dict.fromkeys(row["kind"] for row in summary))
    made, panels = figure(len(kinds), width=4.5 * len(kinds))
    for axes, kind in zip(panels, kinds, strict=True):
        for index, way in enumerate(WAYS):
            rows = [r for r in summary if (r["kind"], r["way"]) == (kind, way)]
            if rows:
                axes.errorbar(
                    [1 - r["sparsity"] for r in rows],
                    [r["accuracy"] for r in rows],
                    [r["std"] or 0 for r in rows],
                    color=f"C{index}",
                    marker="o",
                    ls="--" if way == "vanilla" else "-",
                    capsize=2,
                    label=way,
                )
        sparsity_axis(axes, sorted({1 - r["sparsity"] for r in summary}))
        axes.set_title(kind)
    panels[0].set_ylabel("test accuracy")
    panels[0].legend(fontsize=8)
    made.savefig(path, dpi=150)


def report(summary: list[dict[str, Any]], output: Path) -> None:
    """The table, in Markdown."""
    sparsities = list(dict.fromkeys(row["sparsity"] for row in summary))
    print(
        "\nTest accuracy in percent; in brackets the gain over vanilla, with "
        "its standard error\n"
    )
    head = [f"sparsity {s:.2%}" for s in sparsities]
    print("| ticket | way | " + " | ".join(head) + " |")
    print("|---|---|" + "---|" * len(head))
    groups = dict.fromkeys((r["kind"], r["way"]) for r in summary)
    for kind, way in groups:
        cells = []
        for sparsity in sparsities:
            cells.append("")
            for r in summary:
                if (r["kind"], r["way"], r["sparsity"]) == (
                    kind,
                    way,
                    sparsity,
                ):
                    cell = f"{100 * r['accuracy']:.1f}"
                    if r["std"] != "":
                        cell += f" ± {100 * r['std']:.1f}"
                    if way != "vanilla":
                        cell += f" ({100 * r['gain']:+.1f}"
                        if r["gain_error"] != "":
                            cell += f" ± {100 * r['gain_error']:.1f}"
                        cell += ")"
                    cells[-1] = cell
        print(f"| {kind} | {way} | " + " | ".join(cells) + " |")
    for row in summary:
        if "activation_sparsity" in row:
            zeros = ", ".join(
                f"{name.removeprefix('zeros in ')} {value:.2%}"
                for name, value in row.items()
                if name.startswith("zeros in ")
            )
            print(
                f"\n{row['way']}, sparsity {row['sparsity']:.2%}: zero "
                f"activations {row['activation_sparsity']:.2%} ({zeros}); top "
                f"eigenvalues in training: {row['top_eigenvalues']}"
            )
    skips = [r for r in summary if r["added_parameters"]]
    if skips:
        print(
            f"\nSkips add {skips[0]['added_parameters']:,} parameters; the "
            "tickets keep "
            + ", ".join(
                f"{kept:,} ({sparsity:.2%})"
                for kept, sparsity in dict.fromkeys(
                    (r["kept"], r["sparsity"]) for r in skips
                )
            )
        )
    print(f"\n{output}: results.csv, summary.csv, accuracy.png and plots")


if __name__ == "__main__":
    harness.run(main, "spend")
