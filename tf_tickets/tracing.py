"""Make a change reach a step that is already traced."""

from __future__ import annotations

import keras

_STEPS = ("train", "test", "predict")


def retrace(model: keras.Model, *steps: str) -> None:
    """Let what ``fit``, ``evaluate`` and ``predict`` call be traced anew.

    A traced step goes on with what it saw when it was traced: constraints,
    regularizers and activations that changed since are not in it. A step that
    was never traced stays so.

    Args:
        model: A Keras model, compiled or not.
        *steps: Of `"train"`, `"test"` and `"predict"`; none means all.
    """
    for step in steps or _STEPS:
        if getattr(model, f"{step}_function", None) is not None:
            getattr(model, f"make_{step}_function")(force=True)
