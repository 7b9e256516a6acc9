"""Tasks, and the ways from one to a sparse network that are compared."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import keras

from tf_tickets import callbacks
from tf_tickets.pruning import prune
from tf_tickets.ticket import Ticket
from tf_tickets.zoo import datasets, models, recipes

if TYPE_CHECKING:
    from tf_tickets.zoo.experiments.experiment import Experiment


@dataclasses.dataclass
class Task:
    """A compiled network, its data, and how it is trained.

    Args:
        data: What to train, validate and test on.
        model: A classifier that returns logits.
        recipe: What both were made by.
    """

    data: datasets.Dataset
    model: keras.Model
    recipe: recipes.Recipe

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
            **options: More options of the network. It always gets
                `input_shape` and `classes`, and `weight_decay` if the recipe
                has one.

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
        data = datasets.load(
            dataset or recipe.dataset,
            batch_size=recipe.batch_size,
            data_dir=data_dir,
            seed=seed,
        )
        if recipe.weight_decay:
            options = {"weight_decay": recipe.weight_decay, **options}
        network = models.get(
            model or recipe.model,
            **{
                "input_shape": data.input_shape,
                "classes": data.classes,
                **options,
            },
        )
        task = Task(data, network, recipe)
        task.compile()
        return task

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
        found = self.model.evaluate(self.data.test, verbose=0, return_dict=True)
        return {
            "test_accuracy": float(found["accuracy"]),
            "test_loss": float(found["loss"]),
        }


class Trial(Task):
    """The task of one experiment, as a method gets it.

    Args:
        experiment: Whose method is called.
        directory: Its own, to leave what else was found in.
        data_dir: Where the data set is prepared.

    Attributes:
        epochs: Epochs of one training run.
    """

    def __init__(
        self,
        experiment: Experiment,
        directory: Path,
        data_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.experiment = experiment
        self.directory = directory
        self.data_dir = data_dir
        self.recipe = experiment.how_to_train()
        self.epochs = experiment.epochs or self.recipe.epochs
        self.begin()

    def begin(self) -> None:
        """Makes network and data anew, as the seed has them."""
        made = Task.prepare(
            self.recipe,
            model=self.experiment.chosen("model"),
            dataset=self.experiment.chosen("dataset"),
            data_dir=self.data_dir,
            seed=self.experiment.seed,
        )
        self.data, self.model = made.data, made.model

    def train(
        self, epochs: int, *callbacks: keras.callbacks.Callback
    ) -> dict[str, float]:
        """Trains on, without a look at the validation split."""
        return self.fit(epochs, callbacks, validate=False)

    def spend(self, ticket: Ticket) -> dict[str, Any]:
        """Trains a ticket in a new network; see `numbers`."""
        ticket.save(self.directory / "ticket.safetensors")
        self.begin()
        ticket.apply(self.model)
        self.train(self.epochs)
        return self.numbers(ticket)

    def numbers(self, ticket: Ticket | None) -> dict[str, Any]:
        """What the network reaches now, for the result of the experiment."""
        return {
            **self.test(),
            "density": 1.0 if ticket is None else ticket.density,
            "epochs": self.epochs,
        }


Method: TypeAlias = Callable[[Trial], dict[str, Any]]


def _dense(trial: Trial) -> dict[str, Any]:
    trial.train(trial.epochs)
    return trial.numbers(None)


def _at_initialization(trial: Trial) -> dict[str, Any]:
    experiment = trial.experiment
    ticket = prune(
        trial.model,
        1 - experiment.density,
        criterion=experiment.chosen("criterion"),
        scope=experiment.chosen("scope"),
        data=next(trial.data.train.as_numpy_iterator()),
        seed=experiment.seed,
    )
    return trial.spend(ticket)


def _gradual(trial: Trial) -> dict[str, Any]:
    experiment, steps = trial.experiment, trial.data.steps_per_epoch
    pruning = callbacks.GradualPruning(
        target_sparsity=1 - experiment.density,
        end_step=max(1, steps * trial.epochs // 2),
        every=max(1, steps // 2),
        criterion=experiment.chosen("criterion"),
        scope=experiment.chosen("scope"),
        directory=trial.directory / "epochs",
        seed=experiment.seed,
    )
    trial.train(trial.epochs, pruning)
    ticket = Ticket.from_model(trial.model)
    ticket.save(trial.directory / "ticket.safetensors")
    return trial.numbers(ticket)


def _imp(trial: Trial) -> dict[str, Any]:
    experiment, recipe = trial.experiment, trial.recipe
    if not isinstance(recipe, recipes.PruningRecipe):
        raise ValueError(
            'The method "imp" needs a `PruningRecipe`. '
            f"Received: recipe={recipe!r}"
        )
    density = experiment.density
    rounds = experiment.rounds or max(
        1, round(math.log(density) / math.log(1 - recipe.prune_fraction))
    )
    imp = callbacks.IterativeMagnitudePruning(
        target_sparsity=1 - density,
        rounds=rounds,
        epochs_per_round=trial.epochs,
        rewind_step=recipe.rewind_step or None,
        criterion=experiment.chosen("criterion"),
        scope=experiment.chosen("scope"),
        directory=trial.directory / "rounds",
        seed=experiment.seed,
    )
    trial.train(imp.epochs, imp)
    return {**trial.spend(imp.tickets[-1]), "rounds": rounds}


# Criteria that are methods of their own: pruned by them before any training.
AT_INITIALIZATION = ("random", "magnitude", "snip", "synflow")

# Others can be put in, or given to an `Experiment` as they are.
METHODS: dict[str, Method] = {
    "dense": _dense,
    **dict.fromkeys(AT_INITIALIZATION, _at_initialization),
    "prune": _at_initialization,
    "gradual": _gradual,
    "imp": _imp,
}
