"""Experiment: one run, its identity, and the directory that holds it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tf_tickets import archive
from tf_tickets.callbacks import lock
from tf_tickets.version import __version__
from tf_tickets.zoo import recipes
from tf_tickets.zoo.experiments.methods import METHODS, Task
from tf_tickets.zoo.recipes.lookup import check_density

RESULT = "result.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Draw a ticket with one method, train it, test it.

    Network, data and training are those of the recipe for iterative pruning.

    Args:
        method: A name in `METHODS`.
        density: Share of the prunable weights to keep; 1 for `"dense"`.
        seed: Of weights, batches and drawing.
        model: Name of the network in `models`.
        dataset: Name of the data set in `datasets`.
        epochs: Epochs of one training run; `None` takes the recipe's.
        rounds: Rounds of `"imp"`; `None` takes as many as the recipe's
            fraction needs.

    Raises:
        ValueError: On a value out of its range, or if there is no recipe.

    Example:

    >>> from tf_tickets.zoo.experiments import Experiment
    >>> one = Experiment(method="imp", density=0.1, seed=0)
    >>> one.name
    'imp-digits_cnn-digits-d0.1-s0-a35c9243'
    """

    method: str
    density: float
    seed: int
    model: str = "digits_cnn"
    dataset: str = "digits"
    epochs: int | None = None
    rounds: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(
                f"`method` must be one of {', '.join(METHODS)}. "
                f"Received: method={self.method!r}"
            )
        if self.method != "dense":
            check_density(self.density)
        elif self.density != 1:
            raise ValueError(
                "The dense network has density 1. "
                f"Received: density={self.density!r}"
            )
        for name, least in (("seed", 0), ("epochs", 1), ("rounds", 1)):
            value = getattr(self, name)
            if value is None and name != "seed":
                continue
            if (
                isinstance(value, bool)
                or not isinstance(value, int)
                or value < least
            ):
                raise ValueError(
                    f"`{name}` must be a whole number of at least {least}. "
                    f"Received: {name}={value!r}"
                )
        recipes.iterative_pruning(self.model, self.dataset)

    @property
    def identity(self) -> dict[str, Any]:
        """What makes it this run: all that is not left at its default.

        So an option that is added later, with a default that changes nothing,
        leaves the identity of earlier runs as it is.
        """
        chosen = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.default is dataclasses.MISSING
            or getattr(self, field.name) != field.default
        }
        return {**chosen, "density": float(self.density)}

    @property
    def digest(self) -> str:
        """Of the identity: equal for equal runs, in every release."""
        text = json.dumps(self.identity, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def name(self) -> str:
        """The name of its directory."""
        return (
            f"{self.method}-{self.model}-{self.dataset}-d{self.density:g}"
            f"-s{self.seed}-{self.digest[:8]}"
        )

    def result(
        self, directory: str | os.PathLike[str]
    ) -> dict[str, Any] | None:
        """What `run` found there, or `None` if it has not finished.

        Raises:
            ValueError: If the directory holds another run's result.
        """
        path = Path(directory) / RESULT
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text())
            there = found["digest"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{str(path)!r} is not the result of an experiment: {error}"
            ) from error
        if there != self.digest:
            raise ValueError(
                f"{str(path)!r} is the result of another experiment. Received "
                f"(there, here): {found.get('experiment')}, {self.identity}"
            )
        return found

    def run(
        self,
        directory: str | os.PathLike[str],
        *,
        data_dir: str | os.PathLike[str] | None = None,
    ) -> dict[str, Any]:
        """Do what is left to do in ``directory``.

        A run that is whole is read, not repeated. One that was killed goes on:
        drawing in rounds with the round it was in, all else from its start.
        `result.json` comes last and in one step, so that it is there if and
        only if everything is.

        Args:
            directory: Of this run alone; made if need be.
            data_dir: Where the data set is prepared.

        Returns:
            The result: JSON values.

        Raises:
            ValueError: If another process is at it, or the directory holds
                another run.
            OSError: If the directory cannot be written to.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(directory)
        try:
            found = self.result(directory)
            if found is not None:
                return found
            begun = time.monotonic()
            task = Task(self, directory, data_dir)
            numbers = METHODS[self.method](task)
            made = {
                "experiment": self.identity,
                "digest": self.digest,
                **numbers,
                "seconds": round(time.monotonic() - begun, 3),
                "tf_tickets": __version__,
                "keras": keras.__version__,
                "tensorflow": tf.__version__,
            }
            with archive.replacing(directory / RESULT) as file:
                file.write_text(json.dumps(made, indent=2) + "\n")
            return made
        finally:
            lock.release(directory)
