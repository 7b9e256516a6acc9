"""A few examples of every class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from tf_tickets import checks


def few_of_each(
    batches: Iterable[Any], per_class: int = 10, *, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """As many examples of every class: what SNIP and GraSP score on.

    Args:
        batches: Of examples and whole-numbered labels, such as the training
            data of a `Dataset`; read until there are enough of every class.
        per_class: How many of each; 10 by default.
        classes: How many classes there are.

    Returns:
        ``(examples, labels)``, class by class, in the order they came in: ten
        of class 0, ten of class 1, ...

    Raises:
        ValueError: If there are too few of a class.

    Reference:
        The sampler of the published code of Wang et al., "Picking Winning
        Tickets Before Training by Preserving Gradient Flow", ICLR 2020.

    Example:

    >>> x, y = np.arange(8), np.array([0, 1, 1, 0, 1, 0, 0, 1])
    >>> few_of_each([(x[:4], y[:4]), (x[4:], y[4:])], 2, classes=2)
    (array([0, 3, 1, 2]), array([0, 0, 1, 1]))
    """
    per_class = checks.whole("per_class", per_class)
    classes = checks.whole("classes", classes)
    found: list[list[np.ndarray]] = [[] for _ in range(classes)]
    for examples, labels in batches:
        examples, labels = np.asarray(examples), np.asarray(labels)
        for label, kept in enumerate(found):
            kept.extend(examples[labels == label][: per_class - len(kept)])
        if all(len(kept) == per_class for kept in found):
            break
    short = {i: len(k) for i, k in enumerate(found) if len(k) < per_class}
    if short:
        raise ValueError(
            f"There are fewer than {per_class} examples of some classes. "
            f"Received: {{class: examples}} = {short}"
        )
    return (
        np.stack([one for kept in found for one in kept]),
        np.repeat(np.arange(classes), per_class),
    )
