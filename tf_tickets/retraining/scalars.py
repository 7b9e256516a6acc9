"""Adam over the factors of an initialization."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class ScaleOptimizer:
    r"""Adam with two first moments and one second moment.

    Iterations that lower the gradient norm and those that lower the loss
    point to different places: each kind has its own momentum, corrected by
    its own count. How far the gradients spread is estimated over both.

    Args:
        minima: Least value of each factor; all begin at 1.
        learning_rate: Step size.
        clip: Gradients are clipped to $[-c, c]$.
        betas: Decay of the first moments and of the second.
        epsilon: Added to the root of the second moment.

    Reference:
        Zhu et al., "GradInit", NeurIPS 2021, section 4 and its published
        implementation.

    Example:

    >>> from tf_tickets.retraining.scalars import ScaleOptimizer
    >>> scales = ScaleOptimizer([0.01, 0.01], learning_rate=0.1)
    >>> scales.step(np.array([2.0, -0.5]), constraint=False)
    >>> scales.values.round(4).tolist()
    [0.9, 1.1]
    """

    def __init__(
        self,
        minima: Sequence[float],
        learning_rate: float,
        clip: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
    ) -> None:
        self.minima = np.asarray(minima, np.float64)
        self.values = np.ones(self.minima.shape)
        self.learning_rate = learning_rate
        self.clip = clip
        self.betas = betas
        self.epsilon = epsilon
        self._first = {
            kind: np.zeros(self.minima.shape) for kind in (False, True)
        }
        self._second = np.zeros(self.minima.shape)
        self._steps = {False: 0, True: 0}

    def step(self, gradient: np.ndarray, *, constraint: bool) -> None:
        """Take one step against ``gradient``.

        Args:
            gradient: One number for each factor.
            constraint: Whether it is the gradient of the constraint.
        """
        gradient = np.clip(
            np.asarray(gradient, np.float64), -self.clip, self.clip
        )
        decay, slow = self.betas
        self._steps[constraint] += 1
        first = self._first[constraint]
        first *= decay
        first += (1 - decay) * gradient
        self._second = slow * self._second + (1 - slow) * gradient**2
        mean = first / (1 - decay ** self._steps[constraint])
        spread = self._second / (1 - slow ** sum(self._steps.values()))
        self.values = np.maximum(
            self.values
            - self.learning_rate * mean / (np.sqrt(spread) + self.epsilon),
            self.minima,
        )
