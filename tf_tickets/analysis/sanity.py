"""Sanity checks: is it the ticket that trains so well, or its densities?

A ticket that does as well with its mask shuffled, its weights drawn again or
its scores inverted is no better than the fractions it keeps of each layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras

from tf_tickets.analysis.controls import (
    differs,
    fitted,
    inverted,
    redrawn,
    reinitialized,
)
from tf_tickets.analysis.sanity_report import SanityReport
from tf_tickets.loss.trials import Train, trials
from tf_tickets.ticket import Ticket

CONTROLS = ("shuffle", "reinitialize", "invert", "random")


def sanity_checks(
    ticket: Ticket,
    model: keras.Model,
    *,
    train: Train | None = None,
    data: Any = None,
    metric: str = "accuracy",
    controls: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    threshold: float = 0.01,
    initializer: Any = None,
) -> SanityReport:
    """Train the ticket and its controls, and say whether the ticket matters.

    Every control keeps the density of each layer:

    - `"shuffle"`: each mask permuted within its tensor, weights kept.
    - `"reinitialize"`: the mask kept, every weight drawn again by its layer's
      initializer. Weights that are signed constants, as in supermasks, are
      drawn from the Kaiming normal distribution, as published.
    - `"invert"`: the lowest scores kept instead of the highest.
    - `"random"`: positions drawn anew, weights kept: in distribution what a
      shuffle is, by a draw of its own.

    Each runs once a seed, from the state that ``model`` has now (optimizer
    included) and with ``keras.utils.set_random_seed(seed)``. All runs share
    one trace of the training step, and the model ends as it was.

    Args:
        ticket: The ticket to check. Without start weights the model's present
            ones are taken.
        model: A built model of the ticket's architecture.
        train: ``train(model) -> number``: trains the model, for example with
            ``model.fit``, and returns its accuracy or any number that is
            higher the better. `None` to evaluate without training.
        data: Without ``train``: what ``model.evaluate`` takes, a dataset or
            ``(x, y)``.
        metric: Without ``train``: the name of the metric.
        controls: Some of the names above; `None` for all that are possible.
        seeds: One run of the ticket and of each control for each.
        threshold: How much the mean must fall under every control for the
            ticket to pass, in the unit of ``train``.
        initializer: A Keras initializer for the masked weights of
            `"reinitialize"`, instead of the above.

    Returns:
        A report; printing it shows a table.

    Raises:
        ValueError: Before any training, if an option is wrong, the ticket does
            not fit the model, or a control changes nothing: a check that
            cannot fail is none.

    Reference:
        Frankle et al., "Pruning Neural Networks at Initialization: Why Are We
        Missing the Mark?", ICLR 2021, section 5; Su et al., "Sanity-Checking
        Pruning Methods", NeurIPS 2020; Sreenivasan et al., "Rare Gems",
        NeurIPS 2022, figures 3 and 4.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model.compile("sgd", "mse")
    >>> x, y = np.ones((16, 8)), np.ones((16, 4))
    >>> def train(model):
    ...     return -model.fit(x, y, verbose=0).history["loss"][-1]
    >>> ticket = tt.prune(model, sparsity=0.5)
    >>> report = tt.analysis.sanity_checks(ticket, model, train=train)
    >>> sorted(report.gaps)
    ['invert', 'random', 'reinitialize', 'shuffle']
    """
    names, seeds, measure = _checked(
        controls, seeds, threshold, train, data, metric
    )
    ticket = fitted(ticket, model)
    skipped = {}
    if "invert" in names and ticket.scores is None:
        if controls is not None:
            raise ValueError(
                "Inverting the scores needs a ticket that has them. Received: "
                f"controls={list(controls)!r} and {ticket!r} without scores"
            )
        names.remove("invert")
        skipped["invert"] = "the ticket has no scores"
    makers: dict[str, Callable[[int], Ticket]] = {
        "shuffle": ticket.shuffle,
        "reinitialize": functools.partial(
            reinitialized, ticket, model, initializer
        ),
        "invert": functools.partial(inverted, ticket),
        "random": functools.partial(redrawn, ticket),
    }
    for name in names:
        for seed in seeds:
            if not differs(makers[name](seed), ticket):
                raise ValueError(
                    f"The control {name!r} changes nothing, so it would check "
                    f"nothing. Received: {ticket!r}, seed {seed}"
                )
    with trials(model) as run:
        # By seed, so that an interrupted check leaves whole rows behind.
        of_ticket: list[float] = []
        of_controls: dict[str, list[float]] = {name: [] for name in names}
        for seed in seeds:
            of_ticket.append(run(ticket, measure, seed))
            for name in names:
                of_controls[name].append(run(makers[name](seed), measure, seed))
    return SanityReport(
        tuple(of_ticket),
        {name: tuple(values) for name, values in of_controls.items()},
        tuple(seeds),
        float(threshold),
        ticket.density,
        skipped,
    )


def _checked(
    controls: Sequence[str] | None,
    seeds: Sequence[int],
    threshold: float,
    train: Train | None,
    data: Any,
    metric: str,
) -> tuple[list[str], list[int], Train]:
    names = list(CONTROLS if controls is None else controls)
    if isinstance(controls, str) or not names or set(names) - set(CONTROLS):
        raise ValueError(
            f"`controls` must be a list of some of {CONTROLS}. "
            f"Received: controls={controls!r}"
        )
    chosen = list(seeds)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(
            "`seeds` must be one or more different integers. "
            f"Received: seeds={seeds!r}"
        )
    if not 0 <= threshold:
        raise ValueError(
            "`threshold` must not be negative. "
            f"Received: threshold={threshold!r}"
        )
    if train is None and data is None:
        raise ValueError(
            "`sanity_checks` needs `train`, to compare what is reached by "
            "training, or `data` to evaluate on without it. Received: "
            "train=None, data=None"
        )
    if train is not None and not callable(train):
        raise ValueError(
            "`train` must be a callable (model) -> number. "
            f"Received: train={train!r}"
        )
    if isinstance(data, dict | list | tuple) and not data:
        raise ValueError(f"`data` is empty. Received: data={data!r}")
    return names, chosen, train or functools.partial(_evaluated, data, metric)


def _evaluated(data: Any, metric: str, model: keras.Model) -> float:
    arguments = data if isinstance(data, tuple) else (data,)
    results = model.evaluate(*arguments, verbose=0, return_dict=True)
    if metric not in results:
        raise ValueError(
            f"The model has no metric of that name, only {sorted(results)}. "
            f"Received: metric={metric!r}"
        )
    return float(results[metric])
