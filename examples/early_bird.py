r"""Find the channels to keep in the first epochs, and train only those.

    python examples/early_bird.py                    # digits, 2-3 minutes
    python examples/early_bird.py --dataset=cifar10  # the published recipe

One run follows the channel masks of several sparsities to the end of
training, so that tickets drawn early can be compared with later ones; the
search itself ends where the masks stand still. A second search does the same
in 8-bit block floating point. Each ticket becomes a physically smaller network
that goes on from the weights it inherits.

The output directory gets the tickets, `results.csv` and the heat map of mask
distances.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import harness
import keras
import numpy as np
import tensorflow as tf
from absl import flags
from harness import Progress, found_or_near, write_csv

import tf_tickets as tt
from tf_tickets.structured import (
    ChannelTicket,
    draw_channels,
    shrink,
    slimming,
)
from tf_tickets.timing import interleaved
from tf_tickets.zoo import recipes
from tf_tickets.zoo.experiments import Task

FLAGS = flags.FLAGS
harness.define_flags("early_bird")
flags.DEFINE_integer("epochs", None, "Epochs in all; default: the recipe's.")
flags.DEFINE_integer("batch_size", None, "Default: the recipe's.")
flags.DEFINE_list("sparsities", None, "Shares of channels that go.")
flags.DEFINE_float("epsilon", None, "Largest mask distance of a hit.")
flags.DEFINE_bool(
    "coupled", False, "Rank channels that can only go together as one."
)
flags.DEFINE_enum(
    "scheme", "kernels", ["kernels", "published"], "What 8 bits are made of."
)
flags.DEFINE_bool(
    "keep_slimming",
    False,
    "Keep the penalty on the scales in retraining, as published.",
)
flags.DEFINE_list(
    "other_epochs", None, "Also train tickets drawn after these epochs."
)
flags.DEFINE_integer("timing_rounds", 100, "Timed steps of each network.")
flags.DEFINE_integer("seed", 0, "Seed of weights and batches.")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A ticket to train: drawn after ``epoch``, trained from ``begin`` on."""

    kind: str
    epoch: int
    begin: int
    ticket: ChannelTicket


@dataclasses.dataclass
class Search:
    """One run that looks for tickets."""

    task: Task
    early_bird: tt.callbacks.EarlyBird
    others: dict[int, ChannelTicket]
    test_accuracy: float


def main(output: Path) -> None:
    print("Search in full precision, followed to the end of training")
    full = search(bits=32, stop=False)
    print("Search in 8 bits")
    low = search(bits=8, stop=True)
    show_search(full, low, output)
    timer = Timer(full.task)
    rows = [dense_row(full)]
    rows += [retrain(full.task, c, timer) for c in candidates(full, low)]
    write_csv(output / "results.csv", rows)
    show(rows)
    show_ledgers(full, low)


def recipe() -> recipes.EarlyBirdRecipe:
    """The recipe for the data set and network, with the flags' changes."""
    usual = "digits_cnn" if FLAGS.dataset == "digits" else "vgg16"
    found = found_or_near(
        recipes.early_bird, FLAGS.model or usual, (usual, FLAGS.dataset)
    )
    sparsities = FLAGS.sparsities and tuple(map(float, FLAGS.sparsities))
    return found.adjusted(
        epochs=FLAGS.epochs,
        batch_size=FLAGS.batch_size,
        sparsities=sparsities or None,
        epsilon=FLAGS.epsilon,
    )


def search(*, bits: int, stop: bool) -> Search:
    """Train with an Early-Bird callback, in full precision or in few bits."""
    task = Task.prepare(recipe(), data_dir=FLAGS.data_dir, seed=FLAGS.seed)
    task.recipe.start(task.model)
    early_bird = task.recipe.callback(coupled=FLAGS.coupled, stop=stop)
    others: dict[int, ChannelTicket] = {}
    callbacks: list[Any] = [early_bird, Progress(f"{bits} bits")]
    if bits < 32:
        callbacks.insert(
            0, tt.callbacks.LowPrecision(bits=bits, scheme=FLAGS.scheme)
        )
    else:
        callbacks.append(DrawAt(other_epochs(task), middle(task), others))
    task.fit(task.recipe.epochs, callbacks)
    return Search(task, early_bird, others, task.test()["test_accuracy"])


class DrawAt(keras.callbacks.Callback):
    """Draw a ticket after chosen epochs, hit or not."""

    def __init__(
        self,
        epochs: list[int],
        sparsity: float,
        tickets: dict[int, ChannelTicket],
    ) -> None:
        super().__init__()
        self.epochs = epochs
        self.sparsity = sparsity
        self.tickets = tickets

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if epoch + 1 in self.epochs:
            self.tickets[epoch + 1] = draw_channels(
                self.model, self.sparsity, coupled=FLAGS.coupled
            )


def other_epochs(task: Task) -> list[int]:
    """After which epochs tickets are drawn for comparison."""
    if FLAGS.other_epochs is not None:
        return [int(epoch) for epoch in FLAGS.other_epochs]
    total = task.recipe.epochs
    return sorted({1, max(1, total // 3), max(1, 2 * total // 3), total})


def middle(task: Task) -> float:
    """The sparsity at which epochs are compared."""
    sparsities = sorted(task.recipe.sparsities)
    return sparsities[len(sparsities) // 2]


def candidates(full: Search, low: Search) -> list[Candidate]:
    """All tickets that are trained."""
    found = []
    for kind, run in (("early bird", full), ("early bird, 8 bits", low)):
        for sparsity in run.task.recipe.sparsities:
            ticket = run.early_bird.tickets.get(sparsity)
            if ticket is None:
                print(f"  {kind}: no ticket of sparsity {sparsity}")
                continue
            epoch = run.early_bird.found_at[sparsity]
            found.append(Candidate(kind, epoch, epoch, ticket))
    sparsity = middle(full.task)
    ticket = full.early_bird.tickets.get(sparsity)
    begin = full.early_bird.found_at.get(sparsity, full.task.recipe.window)
    # Whenever it was drawn, it is trained for as long as the early one.
    found += [
        Candidate("other epoch", epoch, begin, other)
        for epoch, other in full.others.items()
    ]
    if ticket is not None:
        rng = np.random.default_rng(FLAGS.seed)
        random = {k: rng.permutation(m) for k, m in ticket.masks.items()}
        control = ChannelTicket(random, ticket.weights)
        found.append(Candidate("random channels", begin, begin, control))
    return found


def retrain(dense: Task, candidate: Candidate, timer: Timer) -> dict[str, Any]:
    """Make the small network and train it for what is left of the schedule."""
    ticket, recipe = candidate.ticket, dense.recipe
    small, summary = shrink(
        dense.model, ticket, weights="start", return_report=True
    )
    task = dense.on(small)  # all see the same batches
    # The schedule goes on where the ticket was drawn.
    small.optimizer.build(small.trainable_variables)
    begin = candidate.begin * dense.data.steps_per_epoch
    small.optimizer.iterations.assign(begin)
    epochs = recipe.epochs - candidate.begin
    label = f"{candidate.kind}, {ticket.sparsity:.0%} at {candidate.epoch}"
    strength = recipe.slimming if FLAGS.keep_slimming else 0.0
    with slimming(small, strength):
        task.fit(epochs, [Progress(label)])
    macs = [tt.analysis.flops(m).macs for m in (dense.model, small)]
    return {
        "kind": candidate.kind,
        "sparsity": ticket.sparsity,
        "epoch": candidate.epoch,
        "retrained": epochs,
        "test_accuracy": task.test()["test_accuracy"],
        "channels_removed": summary.removed,
        "channels_asked": summary.asked,
        "parameters": small.count_params(),
        "macs": macs[1],
        "flops_gain": macs[0] / macs[1],
        **timer.gains(small),
    }


class Timer:
    """Times of a small network against the dense one, taken in turns."""

    def __init__(self, dense: Task) -> None:
        self.batch = next(iter(dense.data.train))
        self.dense = self._sides(dense.model)

    def gains(self, small: keras.Model) -> dict[str, float]:
        """How many times faster a training step and an inference are."""
        found = {}
        for name, side in self._sides(small).items():
            times = interleaved(
                {"dense": self.dense[name], "small": side},
                rounds=FLAGS.timing_rounds,
                warmup=3,  # tracing
            )
            dense, gained = (np.median(t.wall) for t in times.values())
            found[f"{name}_gain"] = dense / gained
        return found

    def _sides(self, model: keras.Model) -> dict[str, Any]:
        x, y = self.batch
        infer = tf.function(lambda: model(x, training=False))
        return {
            "step": lambda: model.train_on_batch(x, y),
            "inference": lambda: infer().numpy(),
        }


def dense_row(run: Search) -> dict[str, Any]:
    """The network that was never pruned."""
    return {
        "kind": "dense",
        "sparsity": 0.0,
        "epoch": 0,
        "retrained": run.task.recipe.epochs,
        "test_accuracy": run.test_accuracy,
        "parameters": run.task.model.count_params(),
        "macs": tt.analysis.flops(run.task.model).macs,
        "flops_gain": 1.0,
        "step_gain": 1.0,
        "inference_gain": 1.0,
    }


def show_search(full: Search, low: Search, output: Path) -> None:
    """Epochs found, how far the two searches are apart, the heat map."""
    for sparsity in full.task.recipe.sparsities:
        epochs = [r.early_bird.found_at.get(sparsity) for r in (full, low)]
        tickets = [r.early_bird.tickets.get(sparsity) for r in (full, low)]
        line = f"  sparsity {sparsity:.0%}: epoch {epochs[0]}, {epochs[1]}"
        if tickets[0] is not None and tickets[1] is not None:
            apart = tickets[0].hamming_distance(tickets[1])
            line += f" in 8 bits; the two masks differ in {apart:.1%}"
        print(line)
        for ticket, bits in zip(tickets, (32, 8), strict=True):
            if ticket is not None:
                ticket.save(
                    output / f"ticket_{sparsity:g}_{bits}bits.safetensors"
                )
    # Before the first epoch all scales are equal, and no mask means anything.
    drawings = full.early_bird.drawings[middle(full.task)][1:]
    tt.analysis.plot_mask_distances(
        tt.analysis.mask_distance_matrix(drawings),
        output / "mask_distances.png",
        labels=range(1, len(drawings) + 1),
        title=f"{full.task.recipe.model}, {middle(full.task):.0%} of channels",
    )


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    print(
        f"\n{'network':<20}{'sparsity':>9}{'drawn at':>9}{'trained':>8}"
        f"{'test acc.':>10}{'parameters':>12}{'MACs':>13}"
        f"{'FLOPs':>7}{'step':>7}{'infer':>7}"
    )
    for row in rows:
        print(
            f"{row['kind']:<20}{row['sparsity']:>9.2f}{row['epoch']:>9}"
            f"{row['retrained']:>8}{row['test_accuracy']:>10.4f}"
            f"{row['parameters']:>12,}{row['macs']:>13,}"
            f"{row['flops_gain']:>6.2f}x{row['step_gain']:>6.2f}x"
            f"{row['inference_gain']:>6.2f}x"
        )
    print("FLOPs, step, infer: how many times less than the dense network.")


def show_ledgers(full: Search, low: Search) -> None:
    """Training FLOPs of search and retraining against dense training."""
    task = full.task
    for run, bits in ((full, 32), (low, 8)):
        for sparsity, ticket in sorted(run.early_bird.tickets.items()):
            ledger = tt.analysis.TrainingLedger(
                task.model,
                epochs=task.recipe.epochs,
                samples=task.data.steps_per_epoch * task.data.batch_size,
            )
            epoch = run.early_bird.found_at[sparsity]
            ledger.add("search", task.model, epochs=epoch, bits=bits)
            ledger.add(
                "retrain",
                shrink(task.model, ticket),
                epochs=task.recipe.epochs - epoch,
            )
            print(f"\nTraining FLOPs, sparsity {sparsity:.0%}\n{ledger}")


if __name__ == "__main__":
    harness.run(main, "early_bird")
