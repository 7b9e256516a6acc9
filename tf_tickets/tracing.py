"""Make a change reach every step that is already traced."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterable
from typing import TypeVar

import keras

_STEPS = ("train", "test", "predict")
Kind = TypeVar("Kind")


def retrace(model: keras.Model, *steps: str) -> None:
    """Let what ``fit``, ``evaluate`` and ``predict`` call be traced anew.

    A traced step goes on with what it saw when it was traced: constraints,
    regularizers and activations that changed since are not in it. That is so
    for ``model`` and for every other model that shares a weight with it: one
    that contains it, one inside it, one beside it. A step that was never
    traced stays so.

    Args:
        model: A Keras model, compiled or not.
        *steps: Of `"train"`, `"test"` and `"predict"`; none means all.
    """
    for holder in holders(model, model.variables):
        for step in steps or _STEPS:
            if getattr(holder, f"{step}_function", None) is not None:
                getattr(holder, f"make_{step}_function")(force=True)


def holders(
    model: keras.Model, variables: Iterable[keras.Variable]
) -> list[keras.Model]:
    """``model``, and every traced model that shares one of its variables."""
    shared = {id(variable) for variable in variables}
    return [
        model,
        *(
            other
            for other in living(keras.Model)
            if other is not model
            and _is_in_use(other)
            and not shared.isdisjoint(id(v) for v in other.variables)
        ),
    ]


def living(kind: type[Kind]) -> list[Kind]:
    """Every object of this kind, or of a subclass, that is in use.

    A layer does not know the models it is in, nor a variable its optimizers;
    the garbage collector does. One look takes some hundredths of a second, so
    this is for what happens once, never for every step.
    """
    kinds = {kind}
    fresh = [kind]
    while fresh:
        fresh = [c for k in fresh for c in type.__subclasses__(k)]
        fresh = [c for c in fresh if c not in kinds]
        kinds.update(fresh)
    everything = gc.get_objects()
    is_kind = map(kinds.__contains__, map(type, everything))
    return list(itertools.compress(everything, is_kind))


def _is_in_use(model: keras.Model) -> bool:
    return any(
        getattr(model, f"{step}_function", None) is not None for step in _STEPS
    )
