"""Smoother activations: exchange a network's ReLUs, everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import keras

from tf_tickets.network.copier import Copier
from tf_tickets.network.graph import require_graph
from tf_tickets.retraining.exchange import (
    Activation,
    ActivationReport,
    Exchange,
    Old,
    get_activation,
)
from tf_tickets.selection import layers_of
from tf_tickets.tracing import retrace


@overload
def replace_activations(
    model: keras.Model,
    activation: Activation = ...,
    *,
    replaces: Sequence[str] = ...,
    temporary: bool = ...,
    in_place: bool = ...,
    return_report: Literal[False] = ...,
) -> keras.Model: ...


@overload
def replace_activations(
    model: keras.Model,
    activation: Activation = ...,
    *,
    replaces: Sequence[str] = ...,
    temporary: bool = ...,
    in_place: bool = ...,
    return_report: Literal[True],
) -> tuple[keras.Model, ActivationReport]: ...


def replace_activations(
    model: keras.Model,
    activation: Activation = "swish",
    *,
    replaces: Sequence[str] = ("relu", "relu6"),
    temporary: bool = False,
    in_place: bool = False,
    return_report: bool = False,
) -> keras.Model | tuple[keras.Model, ActivationReport]:
    """Exchange every ReLU of a model for a smoother activation.

    Found are `ReLU` and `Activation` layers, ``activation=`` arguments,
    functions of Keras and TensorFlow held as attributes of a layer, ReLU
    functions called in a functional model, all of them in nested models and
    inside other layers too. The new model has the names, weights, masks and
    weight keys of the old one: a ticket of the one applies to the other. A
    compiled model's copy is compiled alike, with a fresh optimizer.

    Args:
        model: A functional model or a sequential one with a known input
            shape, nested or not. It is not changed, unless ``in_place``.
        activation: Name of a Keras activation, or a function without weights.
        replaces: Names of the activations to exchange.
        temporary: Blend the new activation with the old one, so that
            `AnnealActivations` can lead back to the old one in training.
        in_place: Set the attributes of the model's own layers and return the
            same model. Works with subclassed models; `ReLU` layers cannot be
            exchanged so, nor functions that ``call`` names in its code.
        return_report: Also return what was exchanged and what was not.

    Returns:
        The model; with ``return_report`` a pair of it and the report.

    Raises:
        ValueError: If there is nothing to exchange, the activation is
            unknown, or the calls inside the model are not known.

    Reference:
        Jaiswal et al., "Spending Your Winning Lottery Better After Drawing
        It", 2021, section 3.1.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([
    ...     keras.Input((8,)),
    ...     keras.layers.Dense(16, activation="relu"),
    ...     keras.layers.Dense(4),
    ... ])
    >>> ticket = tt.prune(model, sparsity=0.9)
    >>> smooth = tt.retraining.replace_activations(model, "mish")
    >>> smooth.layers[0].activation.__name__
    'mish'
    >>> ticket.apply(smooth)
    """
    new = get_activation(activation)
    old = Old(replaces)
    if in_place:
        change = Exchange(old, new, temporary, built=True)
        with model.distribute_strategy.scope():
            for layer in layers_of(model):
                change.attributes(layer)
        report = change.report(model, new)
        retrace(model)
        return (model, report) if return_report else model
    require_graph(
        model,
        "Exchanging activations in a copy",
        "Use `in_place=True`, which sets the attributes of its layers.",
    )
    change = Exchange(old, new, temporary, built=False)
    copier = Copier(replace=change.layer)
    copy = copier.copy(model)
    report = change.report(model, new, copier.keys)
    return (copy, report) if return_report else copy
