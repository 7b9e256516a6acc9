"""How far random pruning goes: densities of the layers found by search."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import checks, progress
from tf_tickets.loss.batches import Batch
from tf_tickets.loss.objective import (
    Loss,
    Objective,
    Tensors,
    compiled,
    computing_in,
    value_and_gradient,
)
from tf_tickets.loss.trials import Train, trials
from tf_tickets.pruning.prune import prune
from tf_tickets.pruning.scopes import apportion, meet_budget
from tf_tickets.selection import named_weights
from tf_tickets.ticket import Ticket


@dataclasses.dataclass(frozen=True, eq=False)
class DensitySearch:
    """Densities of the layers, found by a search.

    Attributes:
        counts: ``{path: how many weights are kept}``.
        sizes: ``{path: how many weights there are}``.
        method: How it was searched: `"ball"` or `"gradient"`.
        history: One row per candidate or step: ``{"densities": ..., ...}``
            with ``"value"`` (of ``train``) or ``"loss"`` (of equation 1).
        start: Value or loss of where the search started.
        best: Value or loss of where it ended.

    Example:

    >>> found = DensitySearch(
    ...     {"a": 1, "b": 2}, {"a": 4, "b": 4}, "ball", [], 0.7, 0.5)
    >>> found.densities, found.sparsities
    ({'a': 0.25, 'b': 0.5}, {'a': 0.75, 'b': 0.5})
    """

    counts: Mapping[str, int]
    sizes: Mapping[str, int]
    method: str
    history: Sequence[Mapping[str, Any]]
    start: float
    best: float

    @property
    def densities(self) -> dict[str, float]:
        """``{path: density}``."""
        return {p: k / self.sizes[p] for p, k in self.counts.items()}

    @property
    def sparsities(self) -> dict[str, float]:
        """``{path: sparsity}``: a ``scope`` for `tf_tickets.prune`."""
        return {path: 1 - d for path, d in self.densities.items()}

    def __repr__(self) -> str:
        return (
            f"<DensitySearch by {self.method!r}: {sum(self.counts.values()):,} "
            f"weights in {len(self.counts)} tensors, from {self.start} to "
            f"{self.best}>"
        )


def search_densities(
    model: keras.Model,
    start: Ticket | Mapping[str, float],
    *,
    method: Literal["ball", "gradient"],
    data: Any = None,
    train: Train | None = None,
    radius: float = 0.3,
    candidates: int = 8,
    steps: int = 100,
    learning_rate: float = 0.05,
    samples: int = 8,
    loss: Loss | None = None,
    training: bool = True,
    batch_size: int = 256,
    batches: int | None = None,
    seed: int = 0,
    jit_compile: bool = False,
    verbose: progress.Verbosity = "auto",
) -> DensitySearch:
    r"""Search densities $p_l$ of the layers for random masks.

    The number of kept weights stays that of ``start``, to the weight.

    `"ball"` draws points $p_l e^{r u_l}$, $u_l$ uniform in [−1, 1], around the
    start, scales each to the budget, and takes the best of them and the start:
    by ``train`` on a random ticket, or without it by the loss below. From the
    densities of an IMP ticket this is SR-v4 of the reference.

    `"gradient"` minimizes over $p$, at a fixed budget,

    $$\sum_{(x, y) \in S} \ell(f(w \odot \mathrm{Bern}(p); x), y).$$

    A mask drawn as $m = 1[u < p_l]$ passes its gradient straight through to
    $p_l$, which is right to first order: flipping one weight changes the loss
    by $w_i\, \partial \ell / \partial (m w)_i$. Each step moves $\log p_l$
    against the mean of that over the layer, divided by its root mean square
    over the weights, with a rate that falls linearly to zero; the result is
    scaled to the budget, which is the projection in relative entropy. From
    SR-v2 this is SR-v5 of the reference, from SR-v4 it is SR-v6.

    Args:
        model: A built model; its present weights are those that are masked.
            It ends as it was.
        start: A ticket or ``{path: density}``.
        method: `"ball"` or `"gradient"`.
        data: For the loss; see `tf_tickets.loss.batches.batches`.
        train: ``train(model) -> number``, the higher the better, such as an
            accuracy after training: for `"ball"`, see
            `tf_tickets.analysis.sanity_checks`.
        radius: $r$ of the ball; 0.3 by default.
        candidates: How many points of the ball; 8 by default.
        steps: Of gradient descent; 100 by default.
        learning_rate: Of gradient descent, in units of $\log p$; 0.05 by
            default.
        samples: How many draws of the masks the loss is averaged over to
            compare two points; both see the same draws. 8 by default.
        loss: Instead of the compiled loss.
        training: Whether the model runs as in training, as it does by
            default: batch statistics in normalization, which a random mask
            changes much, and dropout.
        batch_size: Samples in a batch where arrays are cut into batches; 256
            by default.
        batches: Use at most this many batches; `None` for all.
        seed: Equal ones draw equal masks and points; 0 by default.
        jit_compile: Compile the loss and its gradient with XLA. `False` by
            default.
        verbose: `"auto"`, the default, shows a bar, of trainings at once and
            of other steps when they have taken a second; 1 at once; 2 one line
            at the end; 0 nothing.

    Returns:
        The densities, with the history of the search. They are no worse than
        the start by what they were measured with.

    Raises:
        ValueError: If the start does not fit the model, an option is out of
            range, or what the method needs is not there.

    Reference:
        Sreenivasan et al., "Rare Gems: Finding Lottery Tickets at
        Initialization", NeurIPS 2022, appendix B, equation 1 and table 16.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([
    ...     keras.Input((8,)),
    ...     keras.layers.Dense(16, name="hidden"),
    ...     keras.layers.Dense(1, name="head"),
    ... ])
    >>> model.compile(loss="mse")
    >>> data = np.ones((16, 8)), np.zeros((16, 1))
    >>> erk = tt.prune(model, 0.5, criterion="random", scope="erk")
    >>> found = tt.pruning.search_densities(
    ...     model, erk, method="gradient", data=data, steps=5)
    >>> ticket = tt.prune(model, scope=found.sparsities, criterion="random")
    >>> ticket.kept == erk.kept
    True
    """
    _check(
        method, data, train, radius, candidates, steps, learning_rate, samples
    )
    sizes, counts = _start_of(model, start)
    budget = sum(counts.values())

    def settled(p: Mapping[str, float]) -> dict[str, int]:
        ideal = {k: d * sizes[k] for k, d in p.items()}
        return apportion(ideal, budget, sizes)

    first = {k: n / sizes[k] for k, n in counts.items()}
    points = [counts]
    history: list[dict[str, Any]] = []
    estimate = None
    if data is not None:
        objective = Objective(
            model, needed_by="search_densities", loss=loss, training=training
        )
        used = list(
            objective.batches(data, batch_size=batch_size, limit=batches)
        )
        estimate = BernoulliLoss(
            objective, list(sizes), used, seed, jit_compile
        )
    if method == "ball":
        rng = np.random.default_rng(seed)
        for _ in range(candidates):
            shifts = np.exp(radius * rng.uniform(-1, 1, len(first)))
            moved = {
                k: max(d, 1 / max(sizes[k], 1)) * s
                for (k, d), s in zip(first.items(), shifts, strict=True)
            }
            points.append(settled(project(moved, sizes, budget)))
    elif estimate is not None:
        with progress.shown(verbose):
            tuned = descend(
                estimate, first, sizes, budget, steps, learning_rate, history
            )
        points.append(settled(tuned))
    if train is not None:
        with progress.shown(verbose):
            values = _trained(model, points, sizes, train, seed)
    elif estimate is not None:
        with (
            progress.shown(verbose),
            progress.bar("Comparing densities", len(points)) as done,
        ):
            values = []
            for point in points:
                values.append(-estimate.mean(point, samples))
                done()
    best = int(np.argmax(values))  # the start, in a tie
    sign, name = (1, "value") if train is not None else (-1, "loss")
    if method == "ball":
        history = [
            {
                "densities": {k: n / sizes[k] for k, n in p.items()},
                name: sign * v,
            }
            for p, v in zip(points, values, strict=True)
        ]
    return DensitySearch(
        points[best],
        sizes,
        method,
        history,
        sign * values[0],
        sign * values[best],
    )


def _check(
    method: str,
    data: Any,
    train: Train | None,
    radius: float,
    candidates: int,
    steps: int,
    learning_rate: float,
    samples: int,
) -> None:
    checks.choice("method", method, ("ball", "gradient"))
    if method == "gradient" and data is None:
        raise ValueError(
            "method='gradient' descends a loss on data. Received: data=None"
        )
    if method == "gradient" and train is not None:
        raise ValueError(
            "`train` is for method='ball': a gradient comes from `data`. "
            f"Received: train={train!r}"
        )
    if data is None and train is None:
        raise ValueError(
            "method='ball' needs `train`, to compare tickets by what they "
            "reach, or `data`, to compare them by their loss. Received: "
            "data=None, train=None"
        )
    checks.number("radius", radius, "(0, inf)")
    checks.whole("candidates", candidates)
    checks.whole("steps", steps)
    checks.number("learning_rate", learning_rate, "(0, inf)")
    checks.whole("samples", samples)


def _start_of(
    model: keras.Model, start: Ticket | Mapping[str, float]
) -> tuple[dict[str, int], dict[str, int]]:
    """``({path: size}, {path: kept})`` by the model's own paths."""
    if isinstance(start, Ticket):
        keys = start.match(model)
        sizes = {keys[k]: m.size for k, m in start.masks.items()}
        return sizes, {
            keys[k]: int(np.count_nonzero(m)) for k, m in start.masks.items()
        }
    weights = named_weights(model)
    strange = [k for k in start if k not in weights]
    wrong = {k: d for k, d in start.items() if not 0 < d <= 1}
    if strange or wrong or not start:
        raise ValueError(
            "`start` must be a ticket or densities in (0, 1] by the paths of "
            f"the model's weights. Received: {strange or wrong or start!r}"
        )
    sizes = {k: int(np.prod(weights[k].shape)) for k in start}
    return sizes, {k: round(d * sizes[k]) for k, d in start.items()}


def _trained(
    model: keras.Model,
    points: list[dict[str, int]],
    sizes: Mapping[str, int],
    train: Train,
    seed: int,
) -> list[float]:
    # Drawn before the first is applied: drawing respects masks in force.
    tickets = [
        prune(
            model,
            criterion="random",
            scope={k: 1 - n / sizes[k] for k, n in point.items()},
            filters=lambda path, _: path in sizes,
            seed=seed,
        )
        for point in points
    ]
    values = []
    with (
        trials(model) as run,
        progress.bar(
            "Training random tickets",
            len(tickets),
            unit="training",
            at_once=True,
        ) as done,
    ):
        for ticket in tickets:
            values.append(run(ticket, train, seed))
            done()
    return values


class BernoulliLoss:
    r"""Equation 1: the loss under Bernoulli masks, and its gradient.

    $\ell(f(w \odot 1[u < p]))$, at given draws $u$.

    Args:
        objective: The loss of the weights.
        keys: Which weights have random masks.
        used: The batches.
        seed: Equal ones draw equal masks.
        jit_compile: Compile loss and gradient with XLA.
    """

    def __init__(
        self,
        objective: Objective,
        keys: list[str],
        used: list[Batch],
        seed: int = 0,
        jit_compile: bool = False,
    ) -> None:
        self.objective, self.keys = objective, keys
        self.used, self.seed = used, seed
        self.values = objective.values({})
        self._loss = compiled(self._loss_of, jit_compile, often=True)
        self._slope = compiled(self._slope_of, jit_compile, often=True)

    def mean(self, counts: Mapping[str, int], samples: int) -> float:
        """The mean loss over ``samples`` draws with these counts."""
        p = self._densities(
            {
                k: n / max(int(tf.size(self.values[k])), 1)
                for k, n in counts.items()
            }
        )
        with computing_in(self.objective.model):
            losses = [
                float(
                    self._loss(p, self.values, tf.constant([self.seed, i]), b)
                )
                for i in range(samples)
                for b in self.used
            ]
        return float(np.mean(losses))

    def slope(
        self, p: Mapping[str, float], step: int
    ) -> tuple[float, dict[str, float]]:
        """Loss and gradient on one batch, with the draws of this step."""
        batch = self.used[step % len(self.used)]
        draw = tf.constant([self.seed + 1, step])
        with computing_in(self.objective.model):
            loss, slopes = self._slope(
                self._densities(p), self.values, draw, batch
            )
        return float(loss), dict(
            zip(self.keys, map(float, slopes), strict=True)
        )

    def _densities(self, p: Mapping[str, float]) -> list[tf.Tensor]:
        return [tf.constant(p[k], tf.float32) for k in self.keys]

    def _loss_of(
        self, p: list[tf.Tensor], values: Tensors, draw: Any, batch: Batch
    ) -> Any:
        gated = dict(values)
        for i, (key, density) in enumerate(zip(self.keys, p, strict=True)):
            w = values[key]
            u = tf.random.stateless_uniform(w.shape, draw + [0, 1000003 * i])
            hard = tf.cast(u < density, w.dtype)
            straight = tf.cast(density - tf.stop_gradient(density), w.dtype)
            gated[key] = w * (hard + straight)
        return self.objective(gated, batch)

    def _slope_of(
        self, p: list[tf.Tensor], values: Tensors, draw: Any, batch: Batch
    ) -> Any:
        return value_and_gradient(
            lambda p: self._loss_of(p, values, draw, batch), p
        )


def descend(
    estimate: BernoulliLoss,
    start: Mapping[str, float],
    sizes: Mapping[str, int],
    budget: int,
    steps: int,
    learning_rate: float,
    history: list[dict[str, Any]],
) -> dict[str, float]:
    """Gradient descent on the probabilities, at a fixed budget."""
    p = project(
        {k: max(d, 1 / max(sizes[k], 1)) for k, d in start.items()},
        sizes,
        budget,
    )
    weights = np.array([sizes[k] for k in p], float)
    square = 0.0
    with progress.bar("Descending the loss of random masks", steps) as done:
        for step in range(steps):
            loss, slopes = estimate.slope(p, step)
            if not np.isfinite(loss):
                raise ValueError(
                    "The loss of a random mask is not finite. "
                    f"Received: {loss} at step {step}"
                )
            history.append({"densities": dict(p), "loss": loss})
            per_weight = np.array([slopes[k] for k in p])
            per_weight = per_weight / np.maximum(weights, 1)
            mean_square = float(np.average(per_weight**2, weights=weights))
            square = 0.9 * square + 0.1 * mean_square
            scale = np.sqrt(square / (1 - 0.9 ** (step + 1))) or 1.0
            rate = learning_rate * (1 - step / steps)
            # No single draw may change a density by more than a factor of √e.
            move = np.clip(rate * per_weight / scale, -0.5, 0.5)
            p = project(
                {
                    k: d * np.exp(-m)
                    for (k, d), m in zip(p.items(), move, strict=True)
                },
                sizes,
                budget,
            )
            done()
    return p


def project(
    p: Mapping[str, float], sizes: Mapping[str, int], budget: float
) -> dict[str, float]:
    """Scaled to the budget, with one weight at least in every tensor."""
    fixed: dict[str, float] = {}
    while True:
        rest = budget - sum(d * sizes[k] for k, d in fixed.items())
        free = {k: d for k, d in p.items() if k not in fixed}
        scaled = meet_budget(free, sizes, max(rest, 0.0))
        low = [k for k, d in scaled.items() if d * sizes[k] < 1 - 1e-9]
        if not low or rest < len(free):
            return {**scaled, **fixed}
        fixed.update({k: 1 / max(sizes[k], 1) for k in low})
