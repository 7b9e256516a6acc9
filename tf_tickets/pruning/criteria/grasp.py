"""GraSP: keep the weights without which gradients would flow less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tf_tickets import checks
from tf_tickets.loss.objective import (
    Loss,
    Objective,
    Tensors,
    compiled,
    computing_in,
    mean_over,
)
from tf_tickets.masks import Arrays


def grasp(
    model: keras.Model,
    masks: Arrays,
    *,
    data: Any = None,
    seed: int = 0,
    temperature: float = 200.0,
    loss: Loss | None = None,
    training: bool = True,
    batch_size: int = 256,
    batches: int | None = None,
    jit_compile: bool = False,
) -> dict[str, np.ndarray]:
    r"""Score $w \odot H g$: gradient signal preservation.

    $g$ and $H$ are gradient and Hessian of the mean loss with respect to the
    weights in ``masks``. The publication writes the negative and removes the
    highest scores; here, as everywhere in this package, the lowest go first,
    which keeps the same weights. (It also divides by the absolute value of the
    sum, which no ranking sees.)

    The outputs are softened by ``temperature`` $T$ before the loss. Of a
    cross-entropy from logits $z$ that is $z / T$. Of one from probabilities
    it is the same on the logits behind them: $\mathrm{softmax}(\log(p) / T)$,
    or the sigmoid's counterpart. Other losses know no temperature, and their
    outputs stay as they are.

    The publication takes ten samples of each class, sorts them by class and
    cuts them into two batches with half of the classes each. With
    ``training=True`` normalization sees those batches, so that they matter:
    give ``data`` as a list of two batches to have them. Options are set with
    ``functools.partial``.

    Args:
        model: A built and compiled model, only read.
        masks: ``{path: boolean array}``; the loss is that of the masked model.
        data: See `tf_tickets.loss.batches.batches`. Read twice.
        seed: Unused.
        temperature: $T$, positive.
        loss: Instead of the compiled loss.
        training: `True`, the default, scores as in training, as published;
            `False` with the moving statistics of normalization and without
            dropout.
        batch_size: Samples in a batch where arrays are cut into batches; 256
            by default.
        batches: Read at most this many batches; `None` for all.
        jit_compile: Compile both passes with XLA.

    Returns:
        ``{path: scores}``, of either sign.

    Raises:
        ValueError: If there is no loss, no data or no labels, the temperature
            is not positive or the scores are not finite.

    Reference:
        Wang et al., "Picking Winning Tickets Before Training by Preserving
        Gradient Flow", ICLR 2020, equation 8 and algorithm 2.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> _ = model.layers[0].kernel.assign([[3.0], [1.0]])
    >>> model.compile(loss="mse")
    >>> data = np.array([[0.0, 1.0]]), np.array([[0.0]])  # L = w₂², H = 2
    >>> ticket = tt.prune(model, 0.5, criterion="grasp", data=data)
    >>> next(iter(ticket.scores.values())).tolist()
    [[0.0], [4.0]]
    """
    del seed
    temperature = checks.number("temperature", temperature, "(0, inf)")
    objective = Objective(
        model,
        needed_by="criterion='grasp'",
        loss=loss,
        training=training,
        transform=_softened(
            getattr(model, "loss", None) if loss is None else loss,
            temperature,
        ),
    )
    keys = list(masks)
    values = objective.values(masks)

    def mean(function: Callable[..., Tensors], *at: Tensors) -> Tensors:
        step = compiled(function, jit_compile)
        return mean_over(
            objective.batches(data, batch_size=batch_size, limit=batches),
            lambda batch: step(values, keys, *at, batch),
        )

    with computing_in(model):
        products = mean(objective.hessian_product, mean(objective.gradient))
    scores = {key: (values[key] * products[key]).numpy() for key in keys}
    checks.finite(
        "The scores of 'grasp'",
        scores,
        "does the data hold NaN, or has the loss overflowed?",
    )
    return scores


grasp.needs_data = True  # type: ignore[attr-defined]


grasp.needs_data = True  # type: ignore[attr-defined]


def _softened(loss: Any, temperature: float) -> Callable[[Any], Any]:
    """``y_pred -> y_pred`` at a temperature, for a loss or a nest of them."""

    def soften(y_pred: Any) -> Any:
        if isinstance(loss, dict) and isinstance(y_pred, dict):
            return {
                k: _soften(loss.get(k), y, temperature)
                for k, y in y_pred.items()
            }
        if isinstance(y_pred, list | tuple):
            named = loss if isinstance(loss, list | tuple) else None
            return [
                _soften(named[i] if named else loss, y, temperature)
                for i, y in enumerate(y_pred)
            ]
        return _soften(loss, y_pred, temperature)

    return soften


def _soften(loss: Any, y_pred: Any, temperature: float) -> Any:
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    name = getattr(loss, "__name__", type(loss).__name__).lower()
    binary = "binary" in name
    if not (binary or "crossentropy" in name):
        return y_pred
    if _from_logits(loss):
        return y_pred / temperature
    tiny = keras.config.epsilon()
    p = keras.ops.clip(y_pred, tiny, 1 - tiny)
    if binary:
        logits = keras.ops.log(p) - keras.ops.log(1 - p)
        return keras.ops.sigmoid(logits / temperature)
    return keras.ops.softmax(keras.ops.log(p) / temperature)


def _from_logits(loss: Any) -> bool:
    if not isinstance(loss, keras.losses.Loss):
        return False  # a function: Keras calls it with its own default
    return bool(loss.get_config().get("from_logits", False))
