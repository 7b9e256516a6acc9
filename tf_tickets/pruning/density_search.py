"""How far random pruning goes: densities of the layers found by search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import keras
import numpy as np

from tf_tickets.loss.batches import batches as read
from tf_tickets.loss.objective import Loss, Objective
from tf_tickets.loss.trials import Train, trials
from tf_tickets.pruning.bernoulli import BernoulliLoss, descend, project
from tf_tickets.pruning.oneshot import prune
from tf_tickets.pruning.scopes import apportion
from tf_tickets.selection import named_weights
from tf_tickets.ticket import Ticket


class DensitySearch(Mapping[str, float]):
    """``{path: sparsity}``, best of a search: a ``scope`` for `prune`.

    Attributes:
        counts: ``{path: how many weights are kept}``.
        densities: ``{path: density}``.
        method: How it was searched.
        history: One row per candidate or step: ``{"densities": ..., ...}``
            with ``"value"`` (of ``train``) or ``"loss"`` (of equation 1).
        start, best: Value or loss of where the search started and ended.

    Example:

    >>> found = DensitySearch({"a": 1, "b": 2}, {"a": 4, "b": 4}, "ball", [])
    >>> found["a"], found.densities
    (0.75, {'a': 0.25, 'b': 0.5})
    """

    def __init__(
        self,
        counts: Mapping[str, int],
        sizes: Mapping[str, int],
        method: str,
        history: list[dict[str, Any]],
        start: float | None = None,
        best: float | None = None,
    ) -> None:
        self.counts = dict(counts)
        self.densities = {p: k / sizes[p] for p, k in counts.items()}
        self.method = method
        self.history = history
        self.start = start
        self.best = best

    def __getitem__(self, path: str) -> float:
        return 1 - self.densities[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.counts)

    def __len__(self) -> int:
        return len(self.counts)

    def __repr__(self) -> str:
        return (
            f"<DensitySearch by {self.method!r}: {sum(self.counts.values()):,} "
            f"weights in {len(self)} tensors, from {self.start} to {self.best}>"
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
) -> DensitySearch:
    r"""Search densities $p_l$ of the layers for random masks.

    The number of kept weights stays that of ``start``, to the weight.

    `"ball"` draws points $p_l e^{r u_l}$, $u_l$ uniform in [−1, 1], around the
    start, scales each to the budget, and takes the best of them and the start:
    by ``train`` on a random ticket, or without it by the loss below. From the
    densities of an IMP ticket this is SR-v4 of the reference.

    `"gradient"` minimises over $p$, at a fixed budget,

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
        radius: $r$ of the ball.
        candidates: How many points of the ball.
        steps: Of gradient descent.
        learning_rate: Of gradient descent, in units of $\log p$.
        samples: How many draws of the masks the loss is averaged over to
            compare two points; both see the same draws.
        loss: Instead of the compiled loss.
        training: Whether the model runs as in training: batch statistics in
            normalisation, which a random mask changes much, and dropout.
        batch_size: Of the batches that arrays are cut into.
        batches: Use at most so many batches.
        seed: Of all draws.
        jit_compile: Compile the loss and its gradient with XLA.

    Returns:
        A mapping ``{path: sparsity}`` with the history of the search. No worse
        than the start by what it was measured with.

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
    >>> tt.prune(model, scope=found, criterion="random").kept == erk.kept
    True
    """
    _check(method, data, train, radius, candidates, steps, learning_rate)
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
        used = read(
            data,
            needed_by="search_densities",
            batch_size=batch_size,
            limit=batches,
            labels=objective.needs_labels,
        )
        estimate = BernoulliLoss(
            objective, list(sizes), list(used), seed, jit_compile
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
        tuned = descend(
            estimate, first, sizes, budget, steps, learning_rate, history
        )
        points.append(settled(tuned))
    if train is not None:
        values = _trained(model, points, sizes, train, seed)
    elif estimate is not None:
        values = [-estimate.mean(p, samples) for p in points]
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
) -> None:
    if method not in ("ball", "gradient"):
        raise ValueError(
            "`method` must be 'ball' or 'gradient'. "
            f"Received: method={method!r}"
        )
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
    for name, value in (
        ("radius", radius),
        ("candidates", candidates),
        ("steps", steps),
        ("learning_rate", learning_rate),
    ):
        if not value > 0:
            raise ValueError(
                f"`{name}` must be positive. Received: {name}={value!r}"
            )


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
    with trials(model) as run:
        return [run(ticket, train, seed) for ticket in tickets]
