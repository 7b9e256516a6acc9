"""Tasks: a network, its data and how it is trained; trials of experiments."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import keras
import numpy as np

from tf_tickets import retraining
from tf_tickets.ticket import Ticket
from tf_tickets.zoo import datasets, models, recipes

# Of a batch size makes the data.
Load: TypeAlias = Callable[[int], datasets.Dataset]


@dataclasses.dataclass
class Task:
    """A compiled network, its data, and how it is trained.

    Args:
        data: What to train, validate and test on.
        model: A classifier that returns logits.
        recipe: What both were made by.
        load: Makes the data anew, of a batch size; `None`, the default, if
            nothing can.
        seed: Of weights and batches; 0 by default.
    """

    data: datasets.Dataset
    model: keras.Model
    recipe: recipes.Recipe
    load: Load | None = None
    seed: int = 0

    @classmethod
    def prepare(
        cls,
        recipe: recipes.Recipe,
        *,
        model: str | Callable[..., keras.Model] | None = None,
        dataset: str | Callable[..., datasets.Dataset] | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> Task:
        """Loads the data and makes the network that a recipe names.

        Args:
            recipe: How to train.
            model: A network in place of the recipe's, as in `models.get`.
            dataset: A data set in place of the recipe's, as in
                `datasets.load`.
            data_dir: Where the data set is prepared.
            seed: Seed of weights and batches.
            **options: More options of the network, or others than the
                recipe's `network_options`. It always gets `input_shape` and
                `classes`.

        Returns:
            The network, compiled with the recipe's optimizer, and its data.

        Raises:
            ValueError: If the network or the data set is unknown, or the
                network has no such option.

        Example:

        >>> from tf_tickets.zoo import experiments, recipes
        >>> recipe = recipes.iterative_pruning("digits_cnn", "digits")
        >>> task = experiments.Task.prepare(recipe)
        >>> sorted(task.fit(1))
        ['accuracy', 'loss', 'val_accuracy', 'val_loss']
        """
        keras.utils.set_random_seed(seed)
        load = functools.partial(
            _load, dataset or recipe.dataset, data_dir, seed
        )
        data = load(recipe.batch_size)
        network = models.get(
            model or recipe.model,
            **{
                "input_shape": data.input_shape,
                "classes": data.classes,
                **recipe.network_options(),
                **options,
            },
        )
        task = Task(data, network, recipe, load, seed)
        task.compile()
        return task

    def restart(self) -> None:
        """Begins batches and random numbers anew, as `prepare` has them.

        A data set shuffles by one stream, which goes on where the last
        training left it. What is to be compared must start from the same
        place: call this before each, then what came before plays no part.

        Raises:
            ValueError: If the task was made without `load`.
        """
        if self.load is None:
            raise ValueError(
                "A task begins anew only with `load`, as `prepare` makes it. "
                "Received: load=None"
            )
        keras.utils.set_random_seed(self.seed)
        self.data = self.load(self.recipe.batch_size)

    def on(
        self, model: keras.Model, recipe: recipes.Recipe | None = None
    ) -> Task:
        """Another network on the same data, with the data begun anew.

        Args:
            model: The other network; it is compiled.
            recipe: How to train it; by default as this one.

        Returns:
            A task of its own.
        """
        other = Task(
            self.data, model, recipe or self.recipe, self.load, self.seed
        )
        other.restart()
        other.compile()
        return other

    def compile(self) -> None:
        """Compiles the network with a new optimizer of the recipe."""
        self.model.compile(
            self.recipe.optimizer(self.data.steps_per_epoch),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )

    def fit(
        self,
        epochs: int,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        *,
        validate: bool = True,
    ) -> dict[str, float]:
        """Trains on.

        Args:
            epochs: How many more.
            callbacks: Those of `keras.Model.fit`.
            validate: Whether to look at the validation split, if there is
                one, after every epoch.

        Returns:
            The logs of the last epoch.
        """
        history = self.model.fit(
            self.data.train,
            validation_data=self.data.validation if validate else None,
            epochs=epochs,
            shuffle=False,  # the data set shuffles itself
            verbose=0,
            callbacks=list(callbacks),
        ).history
        return {name: values[-1] for name, values in history.items()}

    def test(self) -> dict[str, float]:
        """What the network reaches on the test split.

        Returns:
            `test_accuracy` and `test_loss`.
        """
        return self._evaluate(self.data.test, "test")

    def validate(self) -> dict[str, float]:
        """What the network reaches on the validation split.

        Returns:
            `val_accuracy` and `val_loss`; nothing if there is no such split.
        """
        held = self.data.validation
        return {} if held is None else self._evaluate(held, "val")

    def _evaluate(self, data: Any, name: str) -> dict[str, float]:
        found = self.model.evaluate(data, verbose=0, return_dict=True)
        return {
            f"{name}_{key}": float(found[key]) for key in ("accuracy", "loss")
        }

    def sample(self, per_class: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Training examples, as many of every class; the data begin anew.

        Args:
            per_class: How many; 10 by default, what SNIP's and GraSP's
                published scores look at.

        Returns:
            ``(images, labels)``, class by class; see `datasets.few_of_each`.
        """
        self.restart()
        found = datasets.few_of_each(
            self.data.train, per_class, classes=self.data.classes
        )
        self.restart()
        return found

    def batches(self, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The first training batches; the data begin anew.

        Args:
            number: How many; fewer if an epoch has no more.
        """
        self.restart()
        found = list(self.data.train.take(number).as_numpy_iterator())
        self.restart()
        return found


def _load(
    dataset: Any, data_dir: Any, seed: int, batch_size: int
) -> datasets.Dataset:
    return datasets.load(
        dataset, batch_size=batch_size, data_dir=data_dir, seed=seed
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
    """What an experiment chose: functions and recipes in place of names.

    Args:
        network: As in `models.get`.
        dataset: As in `datasets.load`.
        recipe: How to train at last.
        density: Share of the weights to keep.
        seed: Of weights, batches and drawing.
        epochs: Epochs of one training run, if the experiment says so.
        rounds: Rounds of drawing, if it says so.
        criterion: As in `tf_tickets.prune`.
        scope: As in `tf_tickets.prune`.
        tweaks: As in `tf_tickets.retraining.spend`.
    """

    network: str | Callable[..., keras.Model]
    dataset: str | Callable[..., datasets.Dataset]
    recipe: recipes.Recipe
    density: float
    seed: int
    epochs: int | None = None
    rounds: int | None = None
    criterion: Any = "magnitude"
    scope: Any = "global"
    tweaks: tuple[str, ...] = ()


class Trial(Task):
    """The task of one experiment, as a method gets it.

    Args:
        choices: Those of the experiment.
        directory: Its own, to leave what else was found in.
        data_dir: Where the data set is prepared.

    Attributes:
        choices: As given, with the recipe for as many epochs as it says.
        epochs: Epochs of one training run.
    """

    def __init__(
        self,
        choices: Choices,
        directory: Path,
        data_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        recipe = choices.recipe.adjusted(epochs=choices.epochs)
        self.choices = dataclasses.replace(choices, recipe=recipe)
        self.directory = directory
        self.data_dir = data_dir
        self.epochs = recipe.epochs
        self.begin()

    def begin(self, recipe: recipes.Recipe | None = None) -> None:
        """Makes network and data anew, as the seed has them.

        Args:
            recipe: How to train them; by default as at last. The network has
                the options of the latter, but for the weight decay.
        """
        last = self.choices.recipe
        options = {k: getattr(last, k) for k in ("affine", "bias", "stem")}
        made = Task.prepare(
            dataclasses.replace(recipe or last, **options),
            model=self.choices.network,
            dataset=self.choices.dataset,
            data_dir=self.data_dir,
            seed=self.choices.seed,
        )
        super().__init__(**vars(made))

    def looked_up(self, lookup: Callable[..., Any], *more: Any) -> Any:
        """The recipe of `recipes` for the network and the data set.

        Args:
            lookup: Such as `recipes.gem_miner`.
            *more: Its other arguments.

        Returns:
            The recipe; `None` if there is none. For a network or a data set
            of one's own it is that of the names in the last recipe.
        """
        last = self.choices.recipe
        network, dataset = self.choices.network, self.choices.dataset
        try:
            return lookup(
                network if isinstance(network, str) else last.model,
                dataset if isinstance(dataset, str) else last.dataset,
                *more,
            )
        except ValueError:
            return None

    def train(
        self, epochs: int, *callbacks: keras.callbacks.Callback
    ) -> dict[str, float]:
        """Trains on, without a look at the validation split."""
        return self.fit(epochs, callbacks, validate=False)

    def spend(self, ticket: Ticket) -> dict[str, Any]:
        """Trains a ticket in a new network; see `numbers`.

        With them comes `before_accuracy`, of the test split, before training.
        """
        ticket.save(self.directory / "ticket.safetensors")
        self.begin()
        ticket.apply(self.model)
        before = self.test()["test_accuracy"]
        if self.choices.tweaks:
            self.model = retraining.spend(
                ticket,
                self.model,
                list(self.choices.tweaks),
                data=self.data.train,
                options=self._tweak_options(),
            )
            self.restart()
        self.train(self.epochs)
        return {"before_accuracy": before, **self.numbers(ticket)}

    def _tweak_options(self) -> dict[str, dict[str, Any]]:
        chosen, recipe = set(self.choices.tweaks), self.recipe
        options: dict[str, dict[str, Any]] = {}
        if {"rescale", "recipe", "paper"} & chosen and (
            recipe.algorithm == "sgd"
        ):
            step = recipe.initial_learning_rate
            options["rescale"] = {"step_size": step}
        if {"labels", "recipe", "paper"} & chosen and isinstance(
            recipe, recipes.SpendingRecipe
        ):
            options["labels"] = {"alpha": recipe.label_smoothing}
        return options

    def numbers(self, ticket: Ticket | None) -> dict[str, Any]:
        """What the network reaches now, for the result of the experiment."""
        return {
            **self.test(),
            **self.validate(),
            "density": 1.0 if ticket is None else ticket.density,
            "epochs": self.epochs,
        }
