"""The full state of training, taken at one point and put back later."""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Iterable, Mapping

import keras
import numpy as np

from tf_tickets import archive, checks
from tf_tickets.masking import project
from tf_tickets.masks import given
from tf_tickets.selection import (
    check_model,
    layers_of,
    match_keys,
    named_weights,
    unique_keys,
    values_of,
)
from tf_tickets.tracing import living

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
        others: ``{"<number>/<path>": array}``: the same of optimizers that a
            training step of the model's own uses: those among the attributes
            of the model and its layers, in lists and dictionaries, too.

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
    others: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @classmethod
    def take(cls, model: keras.Model) -> Snapshot:
        """Copy the state of ``model``, building its optimizer if need be."""
        check_model(model)
        _build_optimizer(model)
        _steps_of_strangers.update(_strangers(model))
        # Tickets that go back to it share its arrays.
        return cls(
            given(values_of(unique_keys(model.variables))),
            given(values_of(unique_keys(_optimizer_variables(model)))),
            given(
                {
                    f"{number}/{key}": value
                    for number, other in enumerate(_other_optimizers(model))
                    for key, value in _state_of(other, model).items()
                }
            ),
        )

    def restore(self, model: keras.Model) -> None:
        """Put everything back; masks attached to ``model`` stay in force.

        The state afterwards is mask ⊙ snapshot for the weights under a mask
        and the snapshot for all else.

        Raises:
            ValueError: If the snapshot is of another architecture or another
                optimizer; nothing is changed then.

        Warns:
            UserWarning: If a second optimizer has trained these weights whose
                state cannot be put back.
        """
        _build_optimizer(model)
        present = _optimizer_variables(model)
        # Match all before writing any.
        variables = _matched(self.variables, model.variables)
        slots = _matched(self.optimizer, present) if self.optimizer else []
        others = self._match_others(model)
        for variable, value in [*variables, *slots, *others]:
            variable.assign(value)
        _warn_of_strangers(model)
        project(model)

    def restore_schedule(self, model: keras.Model) -> None:
        """Put back only the iteration and the learning rate.

        This is learning-rate rewinding: weights, momentum and all other
        optimizer state stay as they are.
        """
        for variable, value in [
            *_matched(self.optimizer, _optimizer_variables(model)),
            *self._match_others(model),
        ]:
            if variable.name in _SCHEDULE:
                variable.assign(value)
        _warn_of_strangers(model)

    def _match_others(
        self, model: keras.Model
    ) -> list[tuple[keras.Variable, np.ndarray]]:
        """What the variables of a second optimizer are to be."""
        pairs: list[tuple[keras.Variable, np.ndarray]] = []
        for number, other in enumerate(_other_optimizers(model)):
            start = f"{number}/"
            values = {
                key.removeprefix(start): value
                for key, value in self.others.items()
                if key.startswith(start)
            }
            updated = values.pop(_UPDATED, None)
            if updated is None:
                # It had not taken a step, and has no slots in the snapshot.
                known = other.variables[: len(values)]
                pairs += zip(known, values.values(), strict=True)
                pairs += list(_as_made(other, model))[len(values) :]
            elif _is_built(other, updated, model):
                pairs += _matched(values, other.variables)
        return pairs

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
            {
                "model": self.variables,
                "optimizer": self.optimizer,
                "others": self.others,
            },
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
                cls(
                    dict(parts["model"] or {}),
                    dict(parts["optimizer"] or {}),
                    dict(parts.get("others") or {}),
                ),
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


# A key among the variables of a second optimizer: the positions, among the
# variables of the model, of those that it updates.
_UPDATED = "updated"


def _other_optimizers(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """Optimizers among the attributes of a model, but for the compiled one."""
    compiled = getattr(model, "optimizer", None)
    found: dict[int, keras.optimizers.Optimizer] = {}
    for owner in layers_of(model):
        for value in vars(owner).values():
            several = value.values() if isinstance(value, dict) else value
            if not isinstance(value, (dict, list, tuple)):
                several = [value]
            for one in several:
                if isinstance(one, keras.optimizers.Optimizer):
                    found[id(one)] = one
    found.pop(id(compiled), None)
    return list(found.values())


def _updated_by(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    # Keras has no public way from an optimizer to what it updates.
    return list(getattr(inner, "_trainable_variables", ()))


def _state_of(
    optimizer: keras.optimizers.Optimizer, model: keras.Model
) -> dict[str, np.ndarray]:
    state = values_of(unique_keys(list(optimizer.variables)))
    if optimizer.built:
        places = {id(v): i for i, v in enumerate(model.variables)}
        updated = [places.get(id(v), -1) for v in _updated_by(optimizer)]
        state[_UPDATED] = np.array(updated, "int32")
    return state


def _as_made(
    optimizer: keras.optimizers.Optimizer, model: keras.Model
) -> Iterable[tuple[keras.Variable, np.ndarray]]:
    """The variables of an optimizer with the values they were made with."""
    if not optimizer.built:
        return []
    with model.distribute_strategy.scope():
        twin = type(optimizer).from_config(optimizer.get_config())
        twin.build(_updated_by(optimizer))
    return [
        (variable, made.numpy())
        for variable, made in zip(
            optimizer.variables, twin.variables, strict=True
        )
    ]


def _is_built(
    optimizer: keras.optimizers.Optimizer,
    updated: np.ndarray,
    model: keras.Model,
) -> bool:
    """Whether an optimizer has its slots; in a new process it gets them."""
    if optimizer.built:
        return True
    variables = list(model.variables)
    if (updated < 0).any():
        checks.warn(
            "A second optimizer updates variables that are not the model's; "
            "its state is not put back, and it begins anew. Received: "
            f"{type(optimizer).__name__} {optimizer.name!r}"
        )
        return False
    with model.distribute_strategy.scope():
        optimizer.build([variables[place] for place in updated])
    return True


# How many steps optimizers had taken, that no attribute leads to, when a
# snapshot was taken.
_steps_of_strangers: weakref.WeakKeyDictionary[
    keras.optimizers.Optimizer, int
] = weakref.WeakKeyDictionary()
_told: weakref.WeakSet[keras.optimizers.Optimizer] = weakref.WeakSet()


def _strangers(model: keras.Model) -> dict[keras.optimizers.Optimizer, int]:
    """Optimizers that update the model and cannot be reached from it."""
    if type(
        model
    ).train_step is keras.Model.train_step and "train_step" not in vars(model):
        return {}
    mine = {id(v) for v in model.trainable_variables}
    reached = [getattr(model, "optimizer", None), *_other_optimizers(model)]
    reached += [getattr(one, "inner_optimizer", None) for one in reached]
    known = set(map(id, reached))
    return {
        one: int(one.iterations.numpy())
        for one in living(keras.optimizers.Optimizer)
        if id(one) not in known
        and not mine.isdisjoint(id(v) for v in _updated_by(one))
    }


def _warn_of_strangers(model: keras.Model) -> None:
    moved = [
        one
        for one, steps in _strangers(model).items()
        if steps > _steps_of_strangers.get(one, 0) and one not in _told
    ]
    if moved:
        _told.update(moved)
        names = ", ".join(f"{type(o).__name__} {o.name!r}" for o in moved)
        checks.warn(
            "An optimizer that is no attribute of the model has trained it: "
            "its state is not put back with the weights. Make it an attribute "
            f"of the model. Received: {names}"
        )
