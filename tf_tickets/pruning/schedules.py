"""Schedules: how much is pruned at which step.

A schedule is a callable ``step -> sparsity``. The pruning schedules of the
TensorFlow Model Optimization toolkit, ``step -> (should_prune, sparsity)``,
are taken as they are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tf_tickets import checks

Schedule = Callable[[int], Any]


@dataclasses.dataclass(frozen=True)
class Constant:
    """One sparsity from a step on.

    Args:
        sparsity: In [0, 1).
        begin_step: The first step that has it; 0 before and by default.

    Example:

    >>> schedule = Constant(0.5, begin_step=100)
    >>> schedule(99), schedule(100)
    (0.0, 0.5)
    """

    sparsity: float
    begin_step: int = 0

    def __post_init__(self) -> None:
        checks.sparsity(self.sparsity)
        checks.number("begin_step", self.begin_step, "[0, inf)")
        checks.make_plain(self)

    def __call__(self, step: int) -> float:
        return self.sparsity if step >= self.begin_step else 0.0


@dataclasses.dataclass(frozen=True)
class Polynomial:
    r"""$s_t = s_f + (s_i - s_f)(1 - t)^p$, with $t$ running from 0 to 1.

    Args:
        target_sparsity: $s_f$, reached at ``end_step``.
        end_step: Last step of the climb.
        initial_sparsity: $s_i$, at ``begin_step``; 0 before and by default.
        begin_step: First step of the climb; 0 by default.
        power: $p$, positive; 3 by default.

    Reference:
        Zhu and Gupta, "To prune, or not to prune", 2017, equation 1 (p = 3).

    Example:

    >>> schedule = Polynomial(0.8, end_step=100)
    >>> [round(schedule(step), 3) for step in (0, 50, 100)]
    [0.0, 0.7, 0.8]
    """

    target_sparsity: float
    end_step: int
    initial_sparsity: float = 0.0
    begin_step: int = 0
    power: float = 3.0

    def __post_init__(self) -> None:
        checks.number("power", self.power, "(0, inf)")
        _check_climb(self)

    def __call__(self, step: int) -> float:
        if step < self.begin_step:
            return 0.0
        rest = (1 - _progress(self, step)) ** self.power
        span = self.initial_sparsity - self.target_sparsity
        return self.target_sparsity + span * rest


@dataclasses.dataclass(frozen=True)
class Geometric:
    r"""$1 - s_t = (1 - s_i)^{1-t} (1 - s_f)^t$, equal fractions of the rest.

    The densities of iterative pruning, in continuous time.

    Args:
        target_sparsity: $s_f$, reached at ``end_step``.
        end_step: Last step of the climb.
        initial_sparsity: $s_i$, at ``begin_step``; 0 before and by default.
        begin_step: First step of the climb; 0 by default.

    Example:

    >>> schedule = Geometric(0.99, end_step=100)
    >>> round(schedule(50), 6)
    0.9
    """

    target_sparsity: float
    end_step: int
    initial_sparsity: float = 0.0
    begin_step: int = 0

    def __post_init__(self) -> None:
        _check_climb(self)

    def __call__(self, step: int) -> float:
        if step < self.begin_step:
            return 0.0
        t = _progress(self, step)
        if t == 1.0:
            return self.target_sparsity
        first, last = 1 - self.initial_sparsity, 1 - self.target_sparsity
        return 1 - first ** (1 - t) * last**t


class Climb(NamedTuple):
    """What a schedule tells of itself.

    Attributes:
        begin: The first step that it prunes at; 0 if it does not say.
        end: The step that has its last sparsity; ``begin`` if it has no end.
        target: That sparsity, or `None` if it does not say.
    """

    begin: int
    end: int
    target: float | None

    @property
    def length(self) -> int:
        """How many steps lie from its begin to its end."""
        return self.end - self.begin


def climb_of(schedule: Schedule) -> Climb:
    """Where a schedule begins and ends, by the attributes that it has.

    Args:
        schedule: One of this module, of the TensorFlow Model Optimization
            toolkit, or a callable with the same attributes, or with none.

    Example:

    >>> climb_of(Polynomial(0.8, end_step=100, begin_step=20))
    Climb(begin=20, end=100, target=0.8)
    >>> climb_of(lambda step: 0.5)
    Climb(begin=0, end=0, target=None)
    """
    begin = math.ceil(getattr(schedule, "begin_step", 0))
    target = None
    for name in ("target_sparsity", "final_sparsity", "sparsity"):
        if target is None:
            target = getattr(schedule, name, None)
    # In the toolkit -1 is no end.
    end = max(math.ceil(getattr(schedule, "end_step", -1)), begin)
    return Climb(begin, end, None if target is None else float(target))


def sparsity_at(schedule: Schedule, step: int) -> float | None:
    """The sparsity that ``schedule`` asks for at ``step``.

    Returns:
        A float, or `None` where the schedule says not to prune.

    Raises:
        ValueError: If the schedule returns neither a sparsity in [0, 1) nor
            ``(should_prune, sparsity)``.
    """
    answer = schedule(step)
    if isinstance(answer, tuple | list):
        if len(answer) != 2:
            raise ValueError(
                "A schedule must return a sparsity or (should_prune, "
                f"sparsity). Received: {answer!r} at step {step}"
            )
        should_prune, answer = answer
        if not bool(should_prune):
            return None
    value = np.asarray(answer)
    if value.ndim or value.dtype.kind not in "fiu":
        raise ValueError(
            "A schedule must return a number or (should_prune, number). "
            f"Received: {answer!r} at step {step}"
        )
    # The shortest decimal of a float32 is the number its author wrote: 0.9,
    # not 0.8999999762, which is another count of weights at 25 million.
    sparsity = float(str(value))
    checks.sparsity(sparsity, f"schedule({step})")
    return sparsity


def _progress(climb: Polynomial | Geometric, step: int) -> float:
    done = (step - climb.begin_step) / (climb.end_step - climb.begin_step)
    return min(max(done, 0.0), 1.0)


def _check_climb(climb: Polynomial | Geometric) -> None:
    checks.sparsity(climb.target_sparsity, "target_sparsity")
    checks.sparsity(climb.initial_sparsity, "initial_sparsity")
    if climb.initial_sparsity > climb.target_sparsity:
        raise ValueError(
            "`initial_sparsity` must not exceed `target_sparsity`. Received: "
            f"{climb.initial_sparsity!r} and {climb.target_sparsity!r}"
        )
    begin = checks.number("begin_step", climb.begin_step, "[0, inf)")
    if checks.number("end_step", climb.end_step) <= begin:
        raise ValueError(
            "`end_step` must lie after `begin_step`. Received: "
            f"begin_step={climb.begin_step!r}, end_step={climb.end_step!r}"
        )
    checks.make_plain(climb)
