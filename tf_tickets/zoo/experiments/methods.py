"""The ways to a sparse network that are compared."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import keras

from tf_tickets import callbacks
from tf_tickets.pruning import prune
from tf_tickets.ticket import Ticket
from tf_tickets.zoo import datasets, models, recipes


class Settings(Protocol):
    """What a method reads of an `Experiment`."""

    @property
    def method(self) -> str: ...
    @property
    def density(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def model(self) -> str: ...
    @property
    def dataset(self) -> str: ...
    @property
    def epochs(self) -> int | None: ...
    @property
    def rounds(self) -> int | None: ...


class Task:
    """The network, data and training of one experiment.

    Args:
        settings: The experiment.
        directory: Its own.
        data_dir: Where the data set is prepared.
    """

    def __init__(
        self,
        settings: Settings,
        directory: Path,
        data_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.settings = settings
        self.directory = directory
        self.data_dir = data_dir
        self.recipe = recipes.iterative_pruning(
            settings.model, settings.dataset
        )
        self.epochs = settings.epochs or self.recipe.epochs
        self.begin()

    def begin(self) -> None:
        """A new network and its data, as the seed has them, compiled."""
        keras.utils.set_random_seed(self.settings.seed)
        self.data = datasets.load(
            self.settings.dataset,
            batch_size=self.recipe.batch_size,
            data_dir=self.data_dir,
            seed=self.settings.seed,
        )
        self.model = models.get(
            self.settings.model,
            input_shape=self.data.input_shape,
            classes=self.data.classes,
            weight_decay=self.recipe.weight_decay,
        )
        self.model.compile(
            self.recipe.optimizer(self.data.steps_per_epoch),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )

    def fit(self, epochs: int, *others: keras.callbacks.Callback) -> None:
        """Train on."""
        self.model.fit(
            self.data.train,
            epochs=epochs,
            shuffle=False,  # the data set shuffles itself
            verbose=0,
            callbacks=list(others),
        )

    def spend(self, ticket: Ticket) -> dict[str, Any]:
        """Train ``ticket`` in a new network and test it."""
        ticket.save(self.directory / "ticket.npz")
        self.begin()
        ticket.apply(self.model)
        self.fit(self.epochs)
        return self.numbers(ticket)

    def numbers(self, ticket: Ticket | None) -> dict[str, Any]:
        """What the network reaches now."""
        tested = self.model.evaluate(
            self.data.test, verbose=0, return_dict=True
        )
        return {
            "test_accuracy": float(tested["accuracy"]),
            "test_loss": float(tested["loss"]),
            "density": 1.0 if ticket is None else ticket.density,
            "epochs": self.epochs,
        }


def _dense(task: Task) -> dict[str, Any]:
    task.fit(task.epochs)
    return task.numbers(None)


def _at_initialization(task: Task) -> dict[str, Any]:
    ticket = prune(
        task.model,
        1 - task.settings.density,
        criterion=task.settings.method,
        data=next(task.data.train.as_numpy_iterator()),
        seed=task.settings.seed,
    )
    return task.spend(ticket)


def _gradual(task: Task) -> dict[str, Any]:
    steps = task.data.steps_per_epoch
    pruning = callbacks.GradualPruning(
        target_sparsity=1 - task.settings.density,
        end_step=max(1, steps * task.epochs // 2),
        every=max(1, steps // 2),
        directory=task.directory / "epochs",
        seed=task.settings.seed,
    )
    task.fit(task.epochs, pruning)
    ticket = Ticket.from_model(task.model)
    ticket.save(task.directory / "ticket.npz")
    return task.numbers(ticket)


def _imp(task: Task) -> dict[str, Any]:
    density, recipe = task.settings.density, task.recipe
    rounds = task.settings.rounds or max(
        1, round(math.log(density) / math.log(1 - recipe.prune_fraction))
    )
    imp = callbacks.IterativeMagnitudePruning(
        target_sparsity=1 - density,
        rounds=rounds,
        epochs_per_round=task.epochs,
        rewind_step=recipe.rewind_step or None,
        directory=task.directory / "rounds",
        seed=task.settings.seed,
    )
    task.fit(imp.epochs, imp)
    return {**task.spend(imp.tickets[-1]), "rounds": rounds}


METHODS: dict[str, Callable[[Task], dict[str, Any]]] = {
    "dense": _dense,
    "random": _at_initialization,
    "magnitude": _at_initialization,
    "snip": _at_initialization,
    "synflow": _at_initialization,
    "gradual": _gradual,
    "imp": _imp,
}
