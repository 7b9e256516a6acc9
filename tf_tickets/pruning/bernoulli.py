"""The loss under Bernoulli masks, and descent on their probabilities.

Equation 1 of Sreenivasan et al., "Rare Gems", 2022, appendix B.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tf_tickets.loss.batches import Batch
from tf_tickets.loss.derivatives import compiled
from tf_tickets.loss.objective import Objective, Tensors, computing_in
from tf_tickets.pruning.scopes import meet_budget


class BernoulliLoss:
    r"""$\ell(f(w \odot 1[u < p]))$ and its gradient, at given draws $u$.

    Args:
        objective: The loss of the weights.
        keys: Which weights have random masks.
        used: The batches.
        seed: Of the draws.
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
        with tf.GradientTape() as tape:
            tape.watch(p)
            loss = self._loss_of(p, values, draw, batch)
        zero = tf.UnconnectedGradients.ZERO
        return loss, tape.gradient(loss, p, unconnected_gradients=zero)


def descend(
    estimate: BernoulliLoss,
    start: Mapping[str, float],
    sizes: Mapping[str, int],
    budget: int,
    steps: int,
    learning_rate: float,
    history: list[dict[str, Any]],
) -> dict[str, float]:
    p = project(
        {k: max(d, 1 / max(sizes[k], 1)) for k, d in start.items()},
        sizes,
        budget,
    )
    weights = np.array([sizes[k] for k in p], float)
    square = 0.0
    for step in range(steps):
        loss, slopes = estimate.slope(p, step)
        if not np.isfinite(loss):
            raise ValueError(
                "The loss of a random mask is not finite. "
                f"Received: {loss} at step {step}"
            )
        history.append({"densities": dict(p), "loss": loss})
        per_weight = np.array([slopes[k] for k in p]) / np.maximum(weights, 1)
        mean_square = float(np.average(per_weight**2, weights=weights))
        square = 0.9 * square + 0.1 * mean_square
        scale = np.sqrt(square / (1 - 0.9 ** (step + 1))) or 1.0
        rate = learning_rate * (1 - step / steps)
        # One draw must not throw a layer across the room.
        move = np.clip(rate * per_weight / scale, -0.5, 0.5)
        p = project(
            {
                k: d * np.exp(-m)
                for (k, d), m in zip(p.items(), move, strict=True)
            },
            sizes,
            budget,
        )
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
