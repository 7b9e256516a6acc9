"""The full state of training, taken at one point and put back later."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping

import keras
import numpy as np

from tf_tickets import archive
from tf_tickets.masking import project
from tf_tickets.selection import (
    check_model,
    match_keys,
    named_weights,
    unique_keys,
    values_of,
)

# The variables that say where a training run stands in its schedule.
_SCHEDULE = {"iteration", "learning_rate"}


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Weights, statistics, seeds, optimizer slots, iteration, learning rate.

    Attributes:
        variables: ``{path: array}``: every variable of the model, random-seed
            states included.
        optimizer: ``{path: array}``: every variable of the optimizer; empty
            for a model that is not compiled.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> model.compile("adam", "mse")
    >>> start = Snapshot.take(model)
    >>> _ = model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
    >>> start.restore(model)
    >>> int(model.optimizer.iterations.numpy())
    0
    """

    variables: Mapping[str, np.ndarray]
    optimizer: Mapping[str, np.ndarray]

    @classmethod
    def take(cls, model: keras.Model) -> Snapshot:
        """Copy the state of ``model``, building its optimizer if need be."""
        check_model(model)
        _build_optimizer(model)
        return cls(
            values_of(unique_keys(model.variables)),
            values_of(unique_keys(_optimizer_variables(model))),
        )

    def restore(self, model: keras.Model) -> None:
        """Put everything back; masks attached to ``model`` stay in force.

        The state afterwards is mask ⊙ snapshot for the weights under a mask
        and the snapshot for all else.

        Raises:
            ValueError: If the snapshot is of another architecture or another
                optimizer; nothing is changed then.
        """
        _build_optimizer(model)
        present = _optimizer_variables(model)
        # Match both before writing either.
        variables = _matched(self.variables, model.variables)
        slots = _matched(self.optimizer, present) if self.optimizer else []
        for variable, value in [*variables, *slots]:
            variable.assign(value)
        project(model)

    def restore_schedule(self, model: keras.Model) -> None:
        """Put back only the iteration and the learning rate.

        This is learning-rate rewinding: weights, momentum and all other
        optimizer state stay as they are.
        """
        for variable, value in _matched(
            self.optimizer, _optimizer_variables(model)
        ):
            if variable.name in _SCHEDULE:
                variable.assign(value)

    def match(self, model: keras.Model) -> dict[str, str]:
        """``{path here: path in the model}`` of every variable of the model.

        Raises:
            ValueError: If the snapshot is of another architecture.
        """
        return match_keys(
            {k: v.shape for k, v in self.variables.items()},
            unique_keys(list(model.variables)),
        )

    def weights_of(self, model: keras.Model) -> dict[str, np.ndarray]:
        """The snapshot's value of every weight, by the model's own keys."""
        keys = self.match(model)
        values = {keys[k]: v for k, v in self.variables.items()}
        return {key: values[key] for key in named_weights(model)}

    def save(
        self,
        path: str | os.PathLike[str],
        metadata: Mapping[str, object] | None = None,
        *,
        overwrite: bool = True,
    ) -> None:
        """Write the snapshot and JSON ``metadata`` to one file, atomically.

        Args:
            path: The file.
            metadata: JSON values.
            overwrite: Whether to replace a file that is there, which is the
                default.

        Raises:
            FileExistsError: If ``path`` exists and ``overwrite`` is false.
            OSError: If it cannot be written; an old file stays as it was.
        """
        archive.write(
            path,
            "snapshot",
            metadata or {},
            {"model": self.variables, "optimizer": self.optimizer},
            overwrite=overwrite,
        )

    @classmethod
    def load(
        cls, path: str | os.PathLike[str]
    ) -> tuple[Snapshot, dict[str, object]]:
        """Read ``(snapshot, metadata)``.

        Raises:
            ValueError: If the file is truncated or holds something else.
        """
        with archive.reading(path, "snapshot") as (metadata, parts):
            return (
                cls(dict(parts["model"] or {}), dict(parts["optimizer"] or {})),
                metadata,
            )


def _matched(
    values: Mapping[str, np.ndarray], variables: Iterable[keras.Variable]
) -> list[tuple[keras.Variable, np.ndarray]]:
    named = unique_keys(list(variables))
    keys = match_keys({k: v.shape for k, v in values.items()}, named)
    return [(named[keys[k]], v) for k, v in values.items()]


def _optimizer_variables(model: keras.Model) -> list[keras.Variable]:
    optimizer = getattr(model, "optimizer", None)
    return [] if optimizer is None else list(optimizer.variables)


def _build_optimizer(model: keras.Model) -> None:
    # The slots of an optimizer appear at its first step; a snapshot before it
    # must hold them all the same.
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        with model.distribute_strategy.scope():
            optimizer.build(model.trainable_variables)
