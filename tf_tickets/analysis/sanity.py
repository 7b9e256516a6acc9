"""Sanity checks: is it the ticket that trains so well, or its densities?

A ticket that does as well with its mask shuffled, its weights drawn again or
its scores inverted is no better than the fractions it keeps of each layer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tf_tickets import checks, initialization, progress
from tf_tickets.figures import Path, axes_or_new, save
from tf_tickets.loss.trials import Train, trials
from tf_tickets.pruning import keep_largest
from tf_tickets.selection import (
    match_keys,
    named_weights,
    owners,
    values_of,
)
from tf_tickets.ticket import Ticket, check_ticket

CONTROLS = ("shuffle", "reinitialize", "invert", "random")


@dataclasses.dataclass(frozen=True)
class SanityReport:
    """What a ticket reached, and what its controls did.

    Attributes:
        ticket: Accuracy of the ticket, one a seed.
        controls: ``{control: accuracies}``, one a seed.
        seeds: The seeds.
        threshold: How far below the ticket's mean a control's must lie.
        density: The density of the ticket and of every control.
        skipped: ``{control: why it was not run}``.

    Example:

    >>> report = SanityReport((0.9, 0.8), {"shuffle": (0.6, 0.7)}, (0, 1))
    >>> report.passed, round(report.gaps["shuffle"], 3)
    (True, 0.2)
    >>> print(report)
    Sanity checks at density 1.0000, 2 seeds, threshold 0.0100
    run               mean      std      gap  verdict
    ticket          0.8500   0.0707
    shuffle         0.6500   0.0707   0.2000  falls
    The ticket passes: it is better than every control.
    """

    ticket: tuple[float, ...]
    controls: Mapping[str, tuple[float, ...]]
    seeds: tuple[int, ...]
    threshold: float = 0.01
    density: float = 1.0
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def means(self) -> dict[str, float]:
        """``{run: mean over the seeds}``, the ticket among them."""
        return {k: float(np.mean(v)) for k, v in self._runs().items()}

    @property
    def spreads(self) -> dict[str, float]:
        """``{run: standard deviation over the seeds}``; 0 for one seed."""
        return {
            k: float(np.std(v, ddof=1)) if len(v) > 1 else 0.0
            for k, v in self._runs().items()
        }

    @property
    def gaps(self) -> dict[str, float]:
        """``{control: mean of the ticket − mean of the control}``."""
        means = self.means
        return {name: means["ticket"] - means[name] for name in self.controls}

    @property
    def verdicts(self) -> dict[str, bool]:
        """``{control: whether accuracy falls by more than the threshold}``."""
        return {name: gap > self.threshold for name, gap in self.gaps.items()}

    @property
    def passed(self) -> bool:
        """Whether accuracy falls under every control that was run."""
        return all(self.verdicts.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "ticket": list(self.ticket),
            "controls": {k: list(v) for k, v in self.controls.items()},
            "seeds": list(self.seeds),
            "threshold": self.threshold,
            "density": self.density,
            "skipped": dict(self.skipped),
            "means": self.means,
            "spreads": self.spreads,
            "gaps": self.gaps,
            "verdicts": self.verdicts,
            "passed": self.passed,
        }

    def render(self) -> str:
        """A table as text."""
        count = len(self.seeds)
        lines = [
            f"Sanity checks at density {self.density:.4f}, {count} "
            f"seed{'s' * (count != 1)}, threshold {self.threshold:.4f}",
            f"{'run':<13}{'mean':>9}{'std':>9}{'gap':>9}  verdict",
        ]
        means, spreads, gaps = self.means, self.spreads, self.gaps
        for name in means:
            row = f"{name:<13}{means[name]:>9.4f}{spreads[name]:>9.4f}"
            if name in gaps:
                word = "falls" if self.verdicts[name] else "does not fall"
                row += f"{gaps[name]:>9.4f}  {word}"
            lines.append(row)
        lines += [
            f"{name:<15}not run: {why}" for name, why in self.skipped.items()
        ]
        lines.append(
            "The ticket passes: it is better than every control."
            if self.passed
            else "The ticket fails: not better than "
            + ", ".join(k for k, v in self.verdicts.items() if not v)
            + "."
        )
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.render()

    def plot(self, path: Path | None = None, *, axes: Any = None) -> Any:
        """Draw every run as points with its mean; see `tf_tickets.figures`.

        Args:
            path: An image file to write, or `None`.
            axes: Matplotlib axes to draw on; a new figure if `None`.

        Returns:
            The axes.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        axes = axes_or_new(axes, (5.5, 3.4))
        for i, (name, values) in enumerate(self._runs().items()):
            color = "C0" if name == "ticket" else "C1"
            axes.plot([i] * len(values), values, "o", color=color, alpha=0.5)
            axes.plot([i - 0.3, i + 0.3], [np.mean(values)] * 2, color=color)
        axes.axhline(
            self.means["ticket"] - self.threshold,
            color="0.6",
            ls="--",
            lw=1,
            label="means below this fall",
        )
        axes.legend(fontsize=8)
        axes.set_xticks(range(1 + len(self.controls)), list(self._runs()))
        axes.set_ylabel("accuracy")
        axes.set_title(
            f"density {self.density:.4f}: "
            + ("the ticket passes" if self.passed else "the ticket fails")
        )
        save(axes.figure, path)
        return axes

    def _runs(self) -> dict[str, tuple[float, ...]]:
        return {"ticket": self.ticket, **self.controls}


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
    verbose: progress.Verbosity = "auto",
) -> SanityReport:
    """Train the ticket and its controls, and say whether the ticket matters.

    Every control keeps the density of each layer:

    - `"shuffle"`: each mask permuted within its tensor, weights kept.
    - `"reinitialize"`: the mask kept, every weight drawn again by its layer's
      initializer. Weights that are signed constants, as in supermasks, are
      drawn from the Kaiming normal distribution, as published, by the fan of
      their own layer.
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
            ``model.fit``, and returns its accuracy or another number that is
            the higher the better. `None` to evaluate without training.
        data: Without ``train``: what ``model.evaluate`` takes, a dataset or
            ``(x, y)``.
        metric: Without ``train``: the name of the metric; `"accuracy"` by
            default.
        controls: Some of the names above; `None` for all that are possible.
        seeds: Different integers: for each of them the ticket and every
            control run once. 0, 1 and 2 by default.
        threshold: How much the mean must fall under every control for the
            ticket to pass, in the unit of ``train``; 0.01 by default.
        initializer: A Keras initializer for the masked weights of
            `"reinitialize"`, instead of the above.
        verbose: `"auto"`, the default, and 1 show a bar of the trainings; 2
            shows one line at the end, 0 nothing. What ``train`` shows is its
            own affair: ``model.fit(..., verbose=0)`` leaves the bar alone.

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
    >>> report = tt.analysis.sanity_checks(
    ...     ticket, model, train=train, verbose=0)
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
    with (
        trials(model) as run,
        progress.shown(verbose),
        progress.bar(
            "Sanity checks: the ticket and its controls",
            len(seeds) * (1 + len(names)),
            unit="run",
            at_once=train is not None,
        ) as step,
    ):
        # By seed, so that an interrupted check leaves whole rows behind.
        of_ticket: list[float] = []
        of_controls: dict[str, list[float]] = {name: [] for name in names}
        for seed in seeds:
            of_ticket.append(run(ticket, measure, seed))
            step()
            for name in names:
                of_controls[name].append(run(makers[name](seed), measure, seed))
                step()
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
    chosen = [checks.whole("seeds", seed, least=0) for seed in seeds]
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(
            "`seeds` must be one or more different integers. "
            f"Received: seeds={seeds!r}"
        )
    checks.number("threshold", threshold, "[0, inf)")
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


# Controls: tickets that differ from one in a single thing.


def fitted(ticket: Ticket, model: keras.Model) -> Ticket:
    """The ticket with the model's own keys, and start weights."""
    check_ticket(ticket)
    named = named_weights(model)
    keys = ticket.match(model)
    start = values_of(named)
    if ticket.weights is not None:
        shapes = {k: v.shape for k, v in ticket.weights.items()}
        every = match_keys(shapes, named)
        start |= {every[k]: v for k, v in ticket.weights.items()}
    scores = ticket.scores
    return Ticket(
        {keys[k]: m for k, m in ticket.masks.items()},
        start,
        ticket.metadata,
        scores=None
        if scores is None
        else {keys[k]: s for k, s in scores.items() if k in keys},
    )


def differs(control: Ticket, ticket: Ticket) -> bool:
    """Whether a control trains anything else than the ticket."""
    mine, others = ticket.weights or {}, control.weights or {}
    return any(
        (mask != control.masks[key]).any()
        or (mine[key] != others[key])[mask].any()
        for key, mask in ticket.masks.items()
    )


def inverted(ticket: Ticket, seed: int) -> Ticket:
    """The lowest scores of each tensor; ties are broken at random.

    Edge-Popup ranks by the absolute value of its scores, GraSP by scores of
    either sign: the mask says which of the two it was drawn by.
    """
    scores = {
        key: np.asarray(score, np.float64)
        for key, score in (ticket.scores or {}).items()
    }
    sizes = {key: np.abs(score) for key, score in scores.items()}
    if _explained(ticket, sizes) > _explained(ticket, scores):
        scores = sizes
    masks = {}
    for i, (key, mask) in enumerate(ticket.masks.items()):
        order = np.random.default_rng((seed, i, 2)).permutation(mask.size)
        flat = np.empty(mask.size, bool)
        flat[order] = keep_largest(
            -scores[key].ravel()[order], int(np.count_nonzero(mask))
        )
        masks[key] = flat.reshape(mask.shape)
    return _control(ticket, masks, "invert", seed)


def _explained(ticket: Ticket, scores: Mapping[str, np.ndarray]) -> int:
    """How many kept weights are among the highest scores of their tensor."""
    total = 0
    for key, mask in ticket.masks.items():
        flat = mask.ravel()
        highest = keep_largest(scores[key].ravel(), int(np.count_nonzero(mask)))
        total += int(np.count_nonzero(highest & flat))
    return total


def redrawn(ticket: Ticket, seed: int) -> Ticket:
    """As many weights of each tensor, wherever they fall."""
    masks = {}
    for i, (key, mask) in enumerate(ticket.masks.items()):
        rng = np.random.default_rng((seed, i, 1))
        masks[key] = keep_largest(
            rng.random(mask.size), int(np.count_nonzero(mask))
        ).reshape(mask.shape)
    return _control(ticket, masks, "random", seed)


def reinitialized(
    ticket: Ticket, model: keras.Model, initializer: Any, seed: int
) -> Ticket:
    """The mask, and weights drawn anew for the fans of each layer."""
    fresh = ticket.reinitialize(model, seed)
    if initializer is None:
        if not _signed_constant(ticket):
            return fresh
        initializer = keras.initializers.VarianceScaling(
            2.0, "fan_in", "untruncated_normal"
        )
    initializer = keras.initializers.get(initializer)
    weights = dict(fresh.weights or {})
    named, owner = named_weights(model), owners(model)
    for i, (key, mask) in enumerate(ticket.masks.items()):
        layer = owner.get(id(named[key]))
        weights[key] = initialization.draw(
            initializer,
            mask.shape,
            (seed, i),
            fans=initialization.fan_shape(layer, named[key]),
            dtype=weights[key].dtype,
        )
    return Ticket(fresh.masks, weights, fresh.metadata)


def _signed_constant(ticket: Ticket) -> bool:
    sizes = [np.abs((ticket.weights or {})[key]) for key in ticket.masks]
    return all(
        w.size > 1 and w.max() > 0 and w.max() - w.min() <= 1e-5 * w.max()
        for w in sizes
    )


def _control(
    ticket: Ticket, masks: Mapping[str, np.ndarray], name: str, seed: int
) -> Ticket:
    known = {k: v for k, v in ticket.metadata.items() if k != "pattern"}
    return Ticket(
        masks,
        ticket.weights,
        {**known, "control": name, "control_seed": seed},
    )
