"""What works on which kind of model: every operation on every kind.

Each model is pruned, trained under its masks with the zeros checked after
every batch, drawn from by two rounds of iterative pruning, rewound, and its
ticket and itself saved, loaded and exported. With `--output` the tables
between the two marks of that page are replaced.

    python -m benchmarks.model_matrix --output=docs/models.md
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, logging

import tf_tickets as tt
from benchmarks import script
from benchmarks.model_kinds import BATCH, KINDS, Inputs, Kind
from tf_tickets import masking
from tf_tickets.selection import named_weights, values_of

FLAGS = script.define(
    __name__,
    smoke=(False, "Four kinds of model only."),
    output=(None, "Page whose tables to replace."),
    only=("", "Regular expression on the kinds' names."),
)

SMOKE = (
    "sequential",
    "subclassed, with attention",
    "the same without `filters`",
    "LSTM",
)
TOLERANCE = 1e-4


class Wrong(Exception):
    """An operation ran and its result is wrong."""


@dataclasses.dataclass
class Case:
    """One model on its way through the operations."""

    kind: Kind
    model: keras.Model
    inputs: Inputs
    folder: pathlib.Path
    ticket: tt.Ticket | None = None

    def fit(self, epochs: int, *callbacks: keras.callbacks.Callback) -> None:
        """Train on random targets, batches in order."""
        outputs = self.predictions()
        targets = keras.tree.map_structure(lambda y: np.tanh(y + 1), outputs)
        # A list would be stacked to one tensor.
        inputs = (
            tuple(self.inputs) if isinstance(self.inputs, list) else self.inputs
        )
        dataset = tf.data.Dataset.from_tensor_slices((inputs, targets))
        options = tf.data.Options()
        options.autotune.enabled = False
        self.model.fit(
            dataset.batch(BATCH).with_options(options),
            epochs=epochs,
            verbose=0,
            callbacks=list(callbacks),
        )

    def predictions(self, model: Any = None) -> Any:
        """Outputs for the first batch, as arrays."""
        call = model or (lambda x: self.model(x, training=False))
        return keras.tree.map_structure(
            lambda y: np.asarray(keras.ops.convert_to_numpy(y), "float32"),
            call(self.inputs),
        )

    def check_zeros(self) -> None:
        """Raise where a pruned weight is not zero."""
        weights = named_weights(self.model)
        for path, mask in masking.attached_masks(self.model).items():
            if np.any(weights[path].numpy()[~mask]):
                raise Wrong(f"{path} has lost zeros")

    def check_same(self, model: Any, what: str) -> None:
        """Raise where another model's outputs differ from this one's."""
        mine = keras.tree.flatten(self.predictions())
        theirs = keras.tree.flatten(self.predictions(model))
        gap = max(
            float(np.max(np.abs(a - b)))
            for a, b in zip(mine, theirs, strict=True)
        )
        if not gap < TOLERANCE:
            raise Wrong(f"outputs {what} differ by {gap:.1e}")


class ZerosAfterEveryBatch(keras.callbacks.Callback):
    """Checks the case's model after every batch."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.batches = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.case.check_zeros()
        self.batches += 1


def prune(case: Case) -> None:
    """One shot, exact to the weight, and enforced."""
    case.ticket = tt.prune(case.model, sparsity=0.5, filters=case.kind.filters)
    if case.ticket.kept != case.ticket.size - round(case.ticket.size / 2):
        raise Wrong(f"{case.ticket.kept} of {case.ticket.size} kept")
    case.ticket.apply(case.model)
    case.check_zeros()


def train(case: Case) -> None:
    """An epoch under the masks."""
    case.model.compile("adam", "mse")
    watch = ZerosAfterEveryBatch(case)
    case.fit(1, watch)
    if not watch.batches:
        raise Wrong("no batch was trained")


def draw(case: Case) -> None:
    """Two rounds of pruning, and back at the rewind point after each."""
    start = values_of(named_weights(case.model))
    imp = tt.callbacks.IterativeMagnitudePruning(
        target_sparsity=0.8,
        rounds=2,
        epochs_per_round=1,
        filters=case.kind.filters,
    )
    case.fit(imp.epochs, imp, ZerosAfterEveryBatch(case))
    case.ticket = imp.ticket
    for path, value in values_of(named_weights(case.model)).items():
        mask = imp.ticket.masks.get(path, True)
        if not np.array_equal(value, np.where(mask, start[path], 0)):
            raise Wrong(f"{path} is not at its rewind point")


def ticket_file(case: Case) -> None:
    """Save, load and apply the ticket after the weights were lost."""
    path = case.folder / "ticket.safetensors"
    case.ticket.save(path)
    before = case.predictions()
    for variable in named_weights(case.model).values():
        if "float" in str(variable.dtype):
            variable.assign(keras.ops.ones_like(variable))
    tt.Ticket.load(path).apply(case.model)
    case.check_same(lambda _: before, "after reading the ticket")


def keras_file(case: Case) -> None:
    """Save and load the model; take the ticket up on the loaded one."""
    path = case.folder / "model.keras"
    case.model.save(path)
    loaded = keras.models.load_model(path)
    case.check_same(lambda x: loaded(x, training=False), "of the .keras file")
    ticket = tt.Ticket.from_model(loaded, filters=case.kind.filters)
    if ticket.kept > case.ticket.kept:
        raise Wrong(
            f"the zeros of the file are {ticket.size - ticket.kept} of "
            f"{case.ticket.size - case.ticket.kept}"
        )
    case.ticket.apply(loaded, weights="keep")
    case.check_same(lambda x: loaded(x, training=False), "under the masks")


def export(case: Case) -> None:
    """A SavedModel with the same outputs."""
    path = tt.export.saved_model(case.model, case.folder / "served")
    served = tf.saved_model.load(path)
    case.check_same(
        lambda x: served.serve(keras.tree.map_structure(tf.constant, x)),
        "of the SavedModel",
    )


OPERATIONS: dict[str, Callable[[Case], None]] = {
    "prune, apply": prune,
    "fit": train,
    "IMP, rewind": draw,
    "ticket file": ticket_file,
    ".keras": keras_file,
    "SavedModel": export,
}


YES, KNOWN, UNTRIED = "yes", "no", "—"


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one kind.

    Attributes:
        kind: Which.
        prunable: How many weights the masks cover; 0 where it is refused.
        outcomes: ``{operation: text}``: `YES`, `KNOWN` for the limit that the
            kind names, or what went wrong.
        seconds: For all of them.
    """

    kind: Kind
    prunable: int
    outcomes: dict[str, str]
    seconds: float

    @property
    def tried(self) -> list[str]:
        """The outcomes of what was tried."""
        return [text for text in self.outcomes.values() if text != UNTRIED]

    @property
    def good(self) -> bool:
        """Whether everything is as it should be."""
        return all(text in (YES, KNOWN) for text in self.tried) and all(
            self.outcomes[name] == KNOWN for name in self.kind.known
        )


def run(kind: Kind) -> Result:
    """All operations on a new model of ``kind``, in order.

    After one that goes wrong none is tried; after one that cannot work on
    this kind, only those that do not need it.
    """
    started = time.perf_counter()
    keras.utils.clear_session(free_memory=True)
    keras.utils.set_random_seed(0)
    model, inputs = kind.build()
    outcomes = dict.fromkeys(OPERATIONS, UNTRIED)
    with tempfile.TemporaryDirectory() as folder:
        case = Case(kind, model, inputs, pathlib.Path(folder))
        model.compile("adam", "mse")
        for name, operate in OPERATIONS.items():
            if case.ticket is None and operate not in (prune, draw):
                continue
            try:
                operate(case)
            except Exception as error:  # the table shows it
                outcomes[name] = f"{type(error).__name__}: {error}"
                if kind.known.get(name, "\0") not in outcomes[name]:
                    break
                outcomes[name] = KNOWN
            else:
                outcomes[name] = YES
    return Result(
        kind,
        case.ticket.size if case.ticket else 0,
        outcomes,
        time.perf_counter() - started,
    )


def tables(results: Sequence[Result]) -> str:
    """A table in Markdown for each group of kinds."""
    lines = []
    for group in dict.fromkeys(r.kind.group for r in results):
        lines += [
            f"## {group}",
            "",
            f"| model | prunable | {' | '.join(OPERATIONS)} | |",
            "|---|---:|" + "---|" * len(OPERATIONS) + "---|",
        ]
        for result in results:
            if result.kind.group == group:
                cells = (_cell(text) for text in result.outcomes.values())
                lines.append(
                    f"| {result.kind.name} | {result.prunable:,} "
                    f"| {' | '.join(cells)} | {result.kind.note} |"
                )
        lines.append("")
    tried = [text for result in results for text in result.tried]
    lines.append(
        f"{len(results)} models, {len(tried)} operations tried: "
        f"{tried.count(YES)} work, {tried.count(KNOWN)} end with the error "
        f"or the loss that the table names, "
        f"{len(tried) - tried.count(YES) - tried.count(KNOWN)} fail. Keras "
        f"{keras.__version__}, TensorFlow {tf.__version__}{_hub_version()}."
    )
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")[:160]


def _hub_version() -> str:
    try:
        import keras_hub
    except ImportError:
        return ", without KerasHub"
    return f", KerasHub {keras_hub.__version__}"


def main(argv: Sequence[str]) -> None:
    """Run the kinds that the flags choose and show their tables."""
    del argv
    logging.set_verbosity(logging.ERROR)  # TensorFlow's remarks on saving
    chosen = [
        kind
        for name, kind in KINDS.items()
        if (name in SMOKE if FLAGS.smoke else re.search(FLAGS.only, name))
    ]
    results = []
    for kind in chosen:
        results.append(run(kind))
        bad = {k: v for k, v in results[-1].outcomes.items() if len(v) > 3}
        print(
            f"{kind.name}: {'ok' if results[-1].good else bad} "
            f"({results[-1].seconds:.0f} s)",
            flush=True,
        )
    text = tables(results)
    if FLAGS.output is None:
        print(text)
    else:
        script.replace_tables(FLAGS.output, text)
    if not all(result.good for result in results):
        raise SystemExit("Not everything is as it should be.")


if __name__ == "__main__":
    app.run(main)
