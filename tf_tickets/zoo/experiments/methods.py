"""The ways from a task to a sparse network that are compared."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, cast

import keras
import numpy as np

from tf_tickets import callbacks, structured
from tf_tickets.analysis import flops
from tf_tickets.layers.supermask import supermask
from tf_tickets.pruning import criteria, prune, search_densities, smart_ratio
from tf_tickets.selection import (
    layers_of,
    named_weights,
    prunable_weights,
    values_of,
)
from tf_tickets.ticket import Ticket
from tf_tickets.zoo import recipes
from tf_tickets.zoo.experiments.task import Trial

# Of a trial makes the numbers of its result. Options of an experiment are the
# keyword arguments.
Method: TypeAlias = Callable[..., dict[str, Any]]


def options_of(method: Method) -> tuple[str, ...] | None:
    """The options that a method takes.

    Args:
        method: One of `METHODS`, or a function of one's own.

    Returns:
        Their names, without those that a `functools.partial` has set; `None`
        if it takes any.
    """
    _, *others = inspect.signature(method).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in others):
        return None
    fixed = getattr(method, "keywords", {})
    return tuple(p.name for p in others if p.name not in fixed)


def _with_options_of(search: Callable[..., Any]) -> Callable[[Method], Method]:
    """For methods that hand their options on."""

    def decorate(method: Method) -> Method:
        method.__signature__ = inspect.signature(  # type: ignore[attr-defined]
            search
        )
        return method

    return decorate


def _dense(trial: Trial) -> dict[str, Any]:
    if trial.choices.tweaks:  # of a ticket that keeps everything
        masks = {
            path: np.ones(kernel.shape, bool)
            for path, kernel in prunable_weights(trial.model).items()
        }
        start = values_of(named_weights(trial.model))
        return trial.spend(Ticket(masks, start))
    trial.train(trial.epochs)
    return trial.numbers(None)


# Drawn in one go, or while training.


def _scored_on(
    trial: Trial, criterion: Any, per_class: int, batches: int | None
) -> Any:
    """What a criterion scores on; `None` if it looks at no data."""
    if isinstance(criterion, str) and not criteria.needs_data(criterion):
        return None
    if batches is not None:
        return trial.batches(batches)
    return trial.sample(per_class)


def _at_initialization(
    trial: Trial, *, per_class: int = 10, batches: int | None = None
) -> dict[str, Any]:
    criterion = trial.choices.criterion
    ticket = prune(
        trial.model,
        1 - trial.choices.density,
        criterion=criterion,
        scope=trial.choices.scope,
        data=_scored_on(trial, criterion, per_class, batches),
        seed=trial.choices.seed,
    )
    return {"search_epochs": 0.0, **trial.spend(ticket)}


def _gradual(
    trial: Trial, *, per_class: int = 10, batches: int | None = None
) -> dict[str, Any]:
    choices, steps = trial.choices, trial.data.steps_per_epoch
    pruning = callbacks.GradualPruning(
        target_sparsity=1 - choices.density,
        end_step=max(1, steps * trial.epochs // 2),
        every=max(1, steps // 2),
        criterion=choices.criterion,
        scope=choices.scope,
        data=_scored_on(trial, choices.criterion, per_class, batches),
        directory=trial.directory / "epochs",
        seed=choices.seed,
    )
    trial.train(trial.epochs, pruning)
    ticket = Ticket.from_model(trial.model)
    ticket.save(trial.directory / "ticket.safetensors")
    return trial.numbers(ticket)


# Rounds of train, prune and rewind.

_Rewind: TypeAlias = Literal["weights", "learning_rate", "none"]


def _draw_in_rounds(
    trial: Trial,
    *,
    rewind: _Rewind = "weights",
    rewind_step: int | None = None,
    warm: float | None = None,
    epochs_per_round: int | None = None,
    short: float | None = None,
    per_class: int = 10,
    batches: int | None = None,
) -> callbacks.IterativeMagnitudePruning:
    choices = trial.choices
    recipe = choices.recipe
    if not isinstance(recipe, recipes.PruningRecipe):
        recipe = trial.looked_up(recipes.iterative_pruning)
        if recipe is None:
            raise ValueError(
                'The method "imp" needs a `PruningRecipe` to draw by. '
                f"Received: recipe={choices.recipe!r}"
            )
        # All parts of a comparison see the same batches.
        recipe = recipe.adjusted(
            batch_size=choices.recipe.batch_size, epochs=choices.epochs
        )
    fraction = recipe.prune_fraction
    rounds = choices.rounds or max(
        1, round(math.log(choices.density) / math.log(1 - fraction))
    )
    trial.begin(recipe)
    steps = recipe.epochs * trial.data.steps_per_epoch
    if rewind_step is None:
        rewind_step = recipe.rewind_step
    if warm is not None:
        rewind_step = recipe.rewind_step or max(1, round(warm * steps))
    if short is not None and epochs_per_round is None:
        epochs_per_round = max(1, round(short * recipe.epochs))
    imp = callbacks.IterativeMagnitudePruning(
        target_sparsity=1 - choices.density,
        rounds=rounds,
        epochs_per_round=epochs_per_round or recipe.epochs,
        rewind=None if rewind == "none" else rewind,
        rewind_step=(rewind_step or None) if rewind != "none" else None,
        criterion=choices.criterion,
        scope=choices.scope,
        data=_scored_on(trial, choices.criterion, per_class, batches),
        directory=trial.directory / "rounds",
        seed=choices.seed,
    )
    trial.train(imp.epochs, imp)
    return imp


@_with_options_of(_draw_in_rounds)
def _imp(trial: Trial, **options: Any) -> dict[str, Any]:
    imp = _draw_in_rounds(trial, **options)
    return {
        "search_epochs": float(imp.epochs),
        **trial.spend(imp.tickets[-1]),
        "rounds": imp.plan.rounds,
    }


# Scores are trained, weights are not.


def _mining_recipe(
    trial: Trial,
    lookup: Callable[..., recipes.GemMinerRecipe],
    epochs: int | None,
    learning_rate: float | None,
    score_penalty: float | str | None,
    every: int | None,
) -> recipes.GemMinerRecipe:
    density, last = trial.choices.density, trial.choices.recipe
    recipe = trial.looked_up(lookup, density)
    if isinstance(last, recipes.GemMinerRecipe):
        recipe = last
    if recipe is None:
        if score_penalty is None and lookup is recipes.gem_miner:
            score_penalty = "auto"
        if score_penalty is None:
            raise ValueError(
                "There is no recipe of Edge-Popup for this network, data set "
                "and density: give the option `score_penalty`, and perhaps "
                "`learning_rate`, `epochs` and `every`. Received: "
                f"network={trial.choices.network!r}, "
                f"dataset={trial.choices.dataset!r}, density={density}"
            )
        wanted = epochs or max(2, last.epochs)
        recipe = recipes.GemMinerRecipe(
            model=last.model,
            dataset=last.dataset,
            epochs=wanted,
            batch_size=last.batch_size,
            initial_learning_rate=0.1,
            schedule="cosine",
            target_sparsity=1 - density,
            every=every or max(1, wanted // 30),
            score_penalty=score_penalty,
        )
    return recipe.adjusted(
        epochs=epochs or trial.choices.epochs,
        initial_learning_rate=learning_rate,
        score_penalty=score_penalty,
        every=every,
    )


def _train_scores(
    trial: Trial,
    recipe: recipes.GemMinerRecipe,
    options: dict[str, Any],
    freezing: callbacks.IterativeFreezing | None,
) -> keras.Model:
    trial.begin(recipe)
    model = supermask(trial.model, seed=trial.choices.seed, **options)
    mining = trial.on(model, recipe)
    found = [] if freezing is None else [freezing]
    mining.fit(recipe.epochs, found, validate=False)
    return model


def _mine(
    trial: Trial,
    *,
    epochs: int | None = None,
    learning_rate: float | None = None,
    score_penalty: float | str | None = None,
    every: int | None = None,
    scores: str = "uniform",
    weights: str = "signed_constant",
    penalty: str = "l2",
    exact: bool = True,
    invert: bool = False,
    mask: Literal["effective", "frozen"] = "effective",
) -> tuple[Ticket, dict[str, Any]]:
    recipe = _mining_recipe(
        trial, recipes.gem_miner, epochs, learning_rate, score_penalty, every
    )
    freezing = recipe.callback(
        exact=exact,
        invert=invert,
        scope=trial.choices.scope,
        directory=trial.directory / "mining",
    )
    options = {
        "score_penalty": recipe.penalty(),
        "scores": scores,
        "weights": weights,
        "penalty": penalty,
    }
    miner = _train_scores(trial, recipe, options, freezing)
    # Where every score died, what freezing kept is still a ticket.
    kind = "frozen" if freezing.collapsed else mask
    ticket = Ticket.from_supermask(miner, mask=kind)
    return ticket, {
        "search_epochs": float(recipe.epochs),
        "collapsed": freezing.collapsed,
    }


@_with_options_of(_mine)
def _gem_miner(trial: Trial, **options: Any) -> dict[str, Any]:
    ticket, told = _mine(trial, **options)
    return {**told, **trial.spend(ticket)}


def _edge_popup(
    trial: Trial,
    *,
    scope: str = "layer",
    gradual: bool = False,
    regularized: bool = False,
    epochs: int | None = None,
    learning_rate: float | None = None,
    score_penalty: float | str | None = None,
    every: int | None = None,
    weights: str = "signed_constant",
) -> dict[str, Any]:
    recipe = _mining_recipe(
        trial, recipes.edge_popup, epochs, learning_rate, score_penalty, every
    )
    sparsity = 1 - trial.choices.density
    options = {
        "mask": "top_k",
        "sparsity": sparsity,
        "scope": scope,
        "weights": weights,
        "score_penalty": recipe.penalty(regularized=regularized),
    }
    freezing = (
        callbacks.IterativeFreezing(
            every=recipe.every, directory=trial.directory / "mining"
        )
        if gradual
        else None
    )
    miner = _train_scores(trial, recipe, options, freezing)
    ticket = Ticket.from_supermask(miner)
    return {"search_epochs": float(recipe.epochs), **trial.spend(ticket)}


# Random masks, with densities of the layers that are worked out or searched.

_Version: TypeAlias = Literal["v1", "v2", "v3", "v4", "v5", "v6"]


def _smart_ratio(
    trial: Trial,
    *,
    version: _Version = "v1",
    linear_density: float = 0.3,
    candidates: int = 8,
    steps: int = 100,
    batches: int = 4,
) -> dict[str, Any]:
    """`version` of Table 16; the rest is `smart_ratio`'s and the search's."""
    told: dict[str, Any] = {"search_epochs": 0.0}
    if version in ("v4", "v6"):
        imp = _draw_in_rounds(trial)
        told["search_epochs"] = float(imp.epochs)
        start: Ticket | None = imp.tickets[-1]
        trial.begin()
        scope: Any = _searched(
            trial, start, "ball", batches, candidates=candidates
        )
    else:
        ends = None
        if version in ("v2", "v5"):
            ends, told = _mine(trial)
            trial.begin()
        classifier = list(prunable_weights(trial.model))[-1]
        scope = smart_ratio(
            "v2" if version == "v5" else cast(Any, version),
            ends=ends,
            linear_density=linear_density,
            residual=any(
                isinstance(layer, keras.layers.Add)
                for layer in layers_of(trial.model)
            ),
            # A hidden dense layer would spend the budget alone.
            linear=f"^{re.escape(classifier)}$",
        )
    if version in ("v5", "v6"):
        random = _random(trial, scope)
        scope = _searched(trial, random, "gradient", batches, steps=steps)
    return {**told, **trial.spend(_random(trial, scope))}


def _random(trial: Trial, scope: Any) -> Ticket:
    whole = callable(scope)
    return prune(
        trial.model,
        1 - trial.choices.density if whole else None,
        criterion="random",
        scope=scope,
        seed=trial.choices.seed,
    )


def _searched(
    trial: Trial, start: Any, method: Any, batches: int, **options: Any
) -> dict[str, float]:
    found = search_densities(
        trial.model,
        start,
        method=method,
        data=trial.batches(batches),
        seed=trial.choices.seed,
        **options,
    )
    return found.sparsities


# Whole channels.


def _early_bird(
    trial: Trial,
    *,
    compare: Literal["consecutive", "newest"] = "consecutive",
    epsilon: float | None = None,
    window: int | None = None,
    keep_slimming: bool = False,
    bits: int | None = None,
    scheme: Literal["kernels", "published"] = "kernels",
) -> dict[str, Any]:
    """`density` is the share of the channels, not of the weights.

    With `keep_slimming` the penalty on the scales stays on while the drawn
    network retrains, as in the published scripts. `bits` and `scheme` are
    those of a search in low precision.
    """
    choices = trial.choices
    recipe = choices.recipe
    if not isinstance(recipe, recipes.EarlyBirdRecipe):
        recipe = trial.looked_up(recipes.early_bird)
        if recipe is None:
            raise ValueError(
                'The method "early_bird" needs an `EarlyBirdRecipe`. '
                f"Received: recipe={choices.recipe!r}"
            )
        recipe = recipe.adjusted(epochs=choices.epochs)
    recipe = recipe.adjusted(epsilon=epsilon, window=window)
    sparsity = 1 - choices.density
    trial.begin(recipe)
    recipe.start(trial.model)
    search = recipe.callback(
        sparsities=[sparsity],
        compare=compare,
        stop=True,
        directory=trial.directory / "search",
    )
    low = (
        []
        if bits is None
        else [callbacks.LowPrecision(bits=bits, scheme=scheme)]
    )
    trial.train(recipe.epochs, *low, search)
    ticket = search.tickets.get(sparsity)
    found = ticket is not None
    if ticket is None:
        ticket = structured.draw_channels(trial.model, sparsity)
    ticket.save(trial.directory / "ticket.safetensors")
    begin = search.found_at.get(sparsity, recipe.epochs)
    dense = trial.model
    trial.model = structured.shrink(dense, ticket, weights="start")
    trial.compile()
    # The schedule goes on where the ticket was drawn.
    trial.model.optimizer.build(trial.model.trainable_variables)
    steps = begin * trial.data.steps_per_epoch
    trial.model.optimizer.iterations.assign(steps)
    before = trial.test()["test_accuracy"]
    if recipe.epochs > begin:
        strength = recipe.slimming if keep_slimming else 0.0
        with structured.slimming(trial.model, strength):
            trial.train(recipe.epochs - begin)
    counts = [model.count_params() for model in (dense, trial.model)]
    macs = [flops(model).macs for model in (dense, trial.model)]
    return {
        "before_accuracy": before,
        **trial.numbers(None),
        "density": ticket.density,
        "epochs": recipe.epochs,
        "search_epochs": float(begin),
        "found": found,
        "parameters_left": counts[1] / counts[0],
        "macs_left": macs[1] / macs[0],
    }


# Criteria that are methods of their own: pruned by them before any training.
AT_INITIALIZATION = (
    "random",
    "magnitude",
    "lamp",
    "snip",
    "grasp",
    "synflow",
    "prospr",
)
# What else is not asked for: a criterion, a scope, tweaks of a retraining.
NO_CRITERION = ("dense", "gem_miner", "edge_popup", "smart_ratio", "early_bird")
NO_SCOPE = ("dense", "edge_popup", "smart_ratio", "early_bird")
NO_TWEAKS = ("gradual", "early_bird")
# Shares of a training: the published 8 of 160 epochs, and where the recipe has
# no rewind point of its own.
_SHORT, _WARM = 0.05, 0.1
# Three steps and the loss after them.
_PROSPR = 4

METHODS: dict[str, Method] = {
    "dense": _dense,
    **{
        # Each of its own, so that each has its own name.
        name: functools.partial(_at_initialization)
        for name in AT_INITIALIZATION
    },
    # It takes steps, each on a batch of its own.
    "prospr": functools.partial(_at_initialization, batches=_PROSPR),
    "prune": _at_initialization,
    "gradual": _gradual,
    "imp": _imp,
    "imp_cold": functools.partial(_imp, rewind_step=0),
    "imp_warm": functools.partial(_imp, warm=_WARM),
    "imp_short": functools.partial(_imp, short=_SHORT, rewind_step=0),
    "imp_short_warm": functools.partial(_imp, short=2 * _SHORT, warm=_SHORT),
    "imp_finetuned": functools.partial(_imp, rewind="none"),
    "learning_rate_rewinding": functools.partial(_imp, rewind="learning_rate"),
    "gem_miner": _gem_miner,
    "gem_miner_inverted": functools.partial(
        _gem_miner, invert=True, mask="frozen"
    ),
    "edge_popup": _edge_popup,
    # Table 3 of Rare Gems: what Gem-Miner adds to it, one by one.
    "edge_popup_global": functools.partial(_edge_popup, scope="global"),
    "edge_popup_gradual": functools.partial(
        _edge_popup, scope="global", gradual=True
    ),
    "edge_popup_regularized": functools.partial(
        _edge_popup, scope="global", regularized=True
    ),
    "edge_popup_all": functools.partial(
        _edge_popup, scope="global", gradual=True, regularized=True
    ),
    "smart_ratio": _smart_ratio,
    **{
        f"smart_ratio_v{number}": functools.partial(
            _smart_ratio, version=cast(Any, f"v{number}")
        )
        for number in range(1, 7)
    },
    "early_bird": _early_bird,
}
"""``{name: method}``, yours too; or give one to an `Experiment` as it is.

A method is called with a trial and the options of its experiment; it trains,
and returns the numbers of its result.
"""
