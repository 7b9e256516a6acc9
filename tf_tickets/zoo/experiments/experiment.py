"""Experiment: one run, its identity, and the directory that holds it."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import archive, checks, retraining
from tf_tickets.callbacks.directory import hold
from tf_tickets.pruning import CRITERIA, SCOPES
from tf_tickets.version import __version__
from tf_tickets.zoo import datasets, models, recipes
from tf_tickets.zoo.experiments.methods import (
    AT_INITIALIZATION,
    METHODS,
    NO_CRITERION,
    NO_SCOPE,
    NO_TWEAKS,
    options_of,
)
from tf_tickets.zoo.experiments.task import Choices, Trial

RESULT = "result.json"
Directory: TypeAlias = str | os.PathLike[str]

# What the names of an experiment stand for.
TABLES: dict[str, dict[str, Callable[..., Any]]] = {
    "method": METHODS,
    "model": models.NETWORKS,
    "dataset": datasets.DATASETS,
    "recipe": {
        "early_bird": recipes.early_bird,
        "finetune": recipes.finetune,
        "iterative_pruning": recipes.iterative_pruning,
        "spending": recipes.spending,
    },
    "criterion": CRITERIA,
    "scope": SCOPES,
}


@dataclasses.dataclass(frozen=True)
class Named:
    """A function and the name that an experiment knows it by.

    Functions and classes of a module need none: they go by
    `"module:function"`. Lambdas, functions inside of functions, those that
    `functools.partial` makes and objects have no name of their own.

    Args:
        name: What stands in identities, results and directories.
        function: What is called.

    Raises:
        ValueError: If the name is empty, or the function cannot be called.

    Example:

    >>> import functools
    >>> from tf_tickets.pruning import smart_ratio
    >>> from tf_tickets.zoo.experiments import Experiment, Named
    >>> scope = Named("smart, dense head", smart_ratio(linear="classifier"))
    >>> one = Experiment(method="random", density=0.1, seed=0, scope=scope)
    >>> one.identity["scope"]
    'smart, dense head'
    """

    name: str
    function: Callable[..., Any]

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name):
            raise ValueError(
                f"`name` must be a text. Received: name={self.name!r}"
            )
        if not callable(self.function):
            raise ValueError(
                "`function` must be something to call. "
                f"Received: function={self.function!r}"
            )


# A name in a table, or what could stand there.
Choice: TypeAlias = str | Callable[..., Any] | Named


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Draw a ticket with one method, train it, test it.

    Wherever a name is asked for, a function does as well. Its own name, or
    the one that `Named` gives it, stands in the identity: two functions of
    one name are one experiment.

    Args:
        method: A name in `METHODS`, or a function that gets a `Trial`, and
            the `options` as keyword arguments, and returns the numbers of the
            result as a dictionary.
        density: Share of the prunable weights to keep; 1 for `"dense"`.
        seed: Of weights, batches and drawing.
        model: Network, as in `models.get`.
        dataset: Data set, as in `datasets.load`.
        epochs: Epochs of one training run, with the milestones of the
            recipe moved along; `None` takes the recipe's.
        rounds: Rounds of `"imp"` and its variants; `None` takes as many as
            the recipe's fraction needs.
        recipe: How to train at last: the name of a function in `recipes` that
            gets a network and a data set, and the `density` if it has such an
            argument, and returns a `Recipe`; or a function of this kind. What
            else a method trains, rounds of pruning or scores, goes by the
            recipe that `recipes` has for that, if it is not of that kind
            itself.
        criterion: What `"prune"`, `"gradual"` and `"imp"` score by, as in
            `tf_tickets.prune`; `None` takes `"magnitude"`.
        scope: How the budget is spread, as in `tf_tickets.prune`; a name or a
            function.
        tweaks: How the ticket is retrained, as in `tf_tickets.retraining
            .spend`: a name or several; none by default.
        options: Options of the method by name, such as ``{"learning_rate":
            2.0}`` of `"gem_miner"`; values are numbers, texts or lists of
            them.

    Raises:
        ValueError: On a value out of its range, an unknown name, a function
            without a name, or if there is no recipe.

    Example:

    >>> from tf_tickets.zoo.experiments import Experiment
    >>> one = Experiment(method="imp", density=0.1, seed=0)
    >>> one.name
    'imp-digits_cnn-digits-d0.1-s0-a35c9243'
    """

    method: Choice
    density: float
    seed: int
    model: Choice = "digits_cnn"
    dataset: Choice = "digits"
    epochs: int | None = None
    rounds: int | None = None
    recipe: Choice = "iterative_pruning"
    criterion: Choice | None = None
    scope: Choice = "global"
    tweaks: str | Sequence[str] = ()
    options: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        for option in TABLES:
            value = getattr(self, option)
            if value is not None or option != "criterion":
                self._set(option, _named(option, value))
        for name, least in (("seed", 0), ("epochs", 1), ("rounds", 1)):
            value = getattr(self, name)
            if value is not None or name == "seed":
                self._set(name, checks.whole(name, value, least=least))
        dense = self.method == "dense"
        if dense and self.density != 1:
            raise ValueError(
                "The dense network has density 1. "
                f"Received: density={self.density!r}"
            )
        if not dense:
            checks.number("density", self.density, "(0, 1)")
        self._set("tweaks", _tweaks(self.tweaks))
        self._check_unused()
        self._set("options", _frozen(dict(self.options)))
        known = options_of(self._function())
        given = [str(k) for k in dict(self.options)]
        strange = [k for k in given if known and k not in known]
        if strange or (self.options and known == ()):
            raise ValueError(
                f"The options of {self._label('method')!r} are "
                f"{', '.join(known or ()) or 'none'}. "
                f"Received: options={dict(self.options)!r}"
            )
        self._set("density", float(self.density))
        self.how_to_train()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # as long as it is being made

    def _function(self) -> Callable[..., Any]:
        method = self.chosen("method")
        return METHODS[method] if isinstance(method, str) else method

    def _label(self, option: str) -> str:
        value = getattr(self, option)
        return value.name if isinstance(value, Named) else str(value)

    def _check_unused(self) -> None:
        """Nothing is asked for that a method would not look at."""
        method = self.method if isinstance(self.method, str) else ""
        family = re.sub(
            r"_(v\d|global|gradual|regularized|all|inverted)$", "", method
        )
        for option, usual, without in (
            ("criterion", None, (*NO_CRITERION, *AT_INITIALIZATION)),
            ("scope", "global", NO_SCOPE),
            ("tweaks", (), NO_TWEAKS),
        ):
            value = getattr(self, option)
            if value != usual and family in without:
                raise ValueError(
                    f"The method {method!r} asks for no {option}. "
                    f"Received: {option}={value!r}"
                )

    def chosen(self, option: str) -> Any:
        """What an option stands for: the function it was given, or a name.

        Args:
            option: `"method"`, `"model"`, `"dataset"`, `"recipe"`,
                `"criterion"` or `"scope"`.
        """
        value = getattr(self, option)
        if value is None:
            own = self.method in AT_INITIALIZATION
            return self.method if own else "magnitude"
        return value.function if isinstance(value, Named) else value

    def how_to_train(self) -> recipes.Recipe:
        """The recipe for the network and the data set.

        Raises:
            ValueError: If there is none.
        """
        recipe = self.chosen("recipe")
        model, dataset = self.chosen("model"), self.chosen("dataset")
        if isinstance(recipe, str):
            for option, value in (("model", model), ("dataset", dataset)):
                if not isinstance(value, str):
                    raise ValueError(
                        f"There is no recipe for your own {option}: give "
                        f"`recipe`. Received: {option}={value!r}"
                    )
            recipe = TABLES["recipe"][recipe]
        more = {}
        if "density" in inspect.signature(recipe).parameters:
            more["density"] = self.density
        found = recipe(model, dataset, **more)
        if not isinstance(found, recipes.Recipe):
            raise ValueError(
                "`recipe` must return a `Recipe`. "
                f"Received: recipe={self.recipe!r}, which returns {found!r}"
            )
        return found

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
        if "options" in chosen:
            chosen["options"] = _thawed(chosen["options"])
        if "tweaks" in chosen:
            chosen["tweaks"] = list(chosen["tweaks"])
        return {
            option: value.name if isinstance(value, Named) else value
            for option, value in chosen.items()
        }

    @property
    def digest(self) -> str:
        """Of the identity: equal for equal runs, in every release."""
        text = json.dumps(self.identity, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def name(self) -> str:
        """The name of its directory."""
        chosen = (self.method, self.model, self.dataset)
        labels = (
            one.name.rpartition(":")[2] if isinstance(one, Named) else str(one)
            for one in chosen
        )
        return "-".join(
            [
                *(re.sub(r"[^\w.+]+", "_", label) for label in labels),
                f"d{self.density:g}-s{self.seed}-{self.digest[:8]}",
            ]
        )

    def result(self, directory: Directory) -> dict[str, Any] | None:
        """What `run` found there, or `None` if it has not finished.

        Args:
            directory: The experiment's own.

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
        directory: Directory,
        *,
        data_dir: Directory | None = None,
    ) -> dict[str, Any]:
        """Do what is left to do in a directory.

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
            TypeError: If the method returns something that JSON has no word
                for.
            OSError: If the directory cannot be written to.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        lock = hold(directory)
        try:
            found = self.result(directory)
            if found is not None:
                return found
            begun = time.monotonic()
            trial = Trial(self._choices(), directory, data_dir)
            options = _thawed(self.options)
            numbers = self._function()(trial, **options)
            made = {
                "experiment": self.identity,
                "digest": self.digest,
                **numbers,
                "seconds": round(time.monotonic() - begun, 3),
                "tf_tickets": __version__,
                "keras": keras.__version__,
                "tensorflow": tf.__version__,
            }
            text = json.dumps(made, indent=2, default=_plain)
            with archive.replacing(directory / RESULT) as file:
                file.write_text(f"{text}\n")
            return json.loads(text)
        finally:
            lock.release()

    def _choices(self) -> Choices:
        chosen = {
            option: self.chosen(option)
            for option in ("dataset", "criterion", "scope")
        }
        kept = ("density", "seed", "epochs", "rounds", "tweaks")
        return Choices(
            network=self.chosen("model"),
            recipe=self.how_to_train(),
            **chosen,
            **{name: getattr(self, name) for name in kept},
        )


def _tweaks(tweaks: Any) -> tuple[str, ...]:
    sets = retraining.TWEAKS
    names = (tweaks,) if isinstance(tweaks, str) else tuple(tweaks)
    for name in names:
        checks.choice("tweaks", name, (*sets, *sets["paper"]))
    return tuple(sorted(set(names)))


def _frozen(value: Any) -> Any:
    """Options as something that has a hash, sorted by name."""
    if isinstance(value, Mapping):
        return tuple(sorted((str(k), _frozen(v)) for k, v in value.items()))
    if isinstance(value, list | tuple):
        return tuple(_frozen(one) for one in value)
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise ValueError(
        "`options` must hold numbers, texts or lists of them. "
        f"Received: {value!r}"
    )


def _thawed(options: Any) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in options
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(
        "A method must return numbers, texts and lists and dictionaries of "
        f"them. Received: {value!r}"
    )


def _named(option: str, value: Any) -> str | Named:
    """A name that stands in a table already, or a function with one."""
    table = TABLES[option]
    if isinstance(value, Named):
        if table.get(value.name, value.function) is not value.function:
            raise ValueError(
                f"The name {value.name!r} is taken. "
                f"Received: {option}={value!r}"
            )
        return value.name if value.name in table else value
    if isinstance(value, str) or not callable(value):
        more = ("global",) if option == "scope" else ()
        checks.choice(option, value, (*table, *more))
        return str(value)
    for name, function in table.items():
        if function is value:
            return name
    # A function is found under its name, or the name is not its own.
    module = getattr(value, "__module__", None) or ""
    path = getattr(value, "__qualname__", "")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if found is not value:
        raise ValueError(
            "The identity of an experiment needs a name for everything, and "
            f"`{option}` has none of its own: give it one with `Named`. "
            f"Received: {option}={value!r}"
        )
    script = main_script() if module == "__main__" else None
    if script is not None:  # as it is called where it is imported
        how, where = script
        module = where if how == "run_module" else Path(where).stem
    return Named(f"{module}:{path}", value)


def main_script() -> tuple[str, str] | None:
    """How `runpy` gets the script that runs; `None` in a session.

    Returns:
        ``("run_module", name)`` or ``("run_path", path)``.
    """
    main = sys.modules["__main__"]
    if main.__spec__ is not None:
        return "run_module", main.__spec__.name
    path = getattr(main, "__file__", None)
    return None if path is None else ("run_path", str(Path(path).resolve()))
