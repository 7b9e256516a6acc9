"""Physically smaller models: channels that really go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, overload

import keras
import numpy as np

from tf_tickets import checks
from tf_tickets.network.channels import Atoms, Channels, follow, owners
from tf_tickets.network.inside import look_inside
from tf_tickets.selection import named_weights, values_of
from tf_tickets.structured.decide import Decision, ShrinkReport, decide
from tf_tickets.structured.groups import GroupTicket
from tf_tickets.structured.rebuild import without
from tf_tickets.structured.shrink_groups import shrink_groups
from tf_tickets.structured.ticket import ChannelTicket, channel_axis


@overload
def shrink(
    model: keras.Model,
    channels: ChannelTicket | Mapping[str, Any],
    *,
    weights: Literal["keep", "start"] = ...,
    inherit_optimizer: bool = ...,
    return_report: Literal[False] = ...,
) -> keras.Model: ...


@overload
def shrink(
    model: keras.Model,
    channels: ChannelTicket | Mapping[str, Any],
    *,
    weights: Literal["keep", "start"] = ...,
    inherit_optimizer: bool = ...,
    return_report: Literal[True],
) -> tuple[keras.Model, ShrinkReport]: ...


def shrink(
    model: keras.Model,
    channels: ChannelTicket | Mapping[str, Any],
    *,
    weights: Literal["keep", "start"] = "keep",
    inherit_optimizer: bool = False,
    return_report: bool = False,
) -> keras.Model | tuple[keras.Model, ShrinkReport]:
    """A smaller model without the channels that a ticket prunes.

    The result is an ordinary Keras model of the same layers and names. Its
    outputs are those of the big model in which everything that belongs to a
    pruned channel is zero: scale and offset of its normalization layers, and
    all that follows from them. A channel goes only when every mask that names
    it prunes it: an addition makes the channels of its two sides one. Where a
    mask prunes a channel that has to stay, its scale and offset (or filter
    and bias) are zero in the smaller model.

    Layers that cannot be followed keep all channels that reach them; the
    report names them. A layer that would lose every channel keeps the best
    one, with a warning.

    Args:
        model: A functional model or a built sequential one, nested or not. It
            is not changed.
        channels: A ticket, or ``{key: mask}`` with the path of a
            normalization layer's scale or of a kernel as key and one boolean
            per channel, `True` = kept. Of a `GroupTicket`, heads, widths and
            blocks go, all of whose weights are zero in the big model.
        weights: `"keep"` inherits the weights that the model has; `"start"`
            those of the ticket.
        inherit_optimizer: Also hand on the optimizer's state (momentum and
            the like). A compiled model's copy is compiled with the same
            settings in either case.
        return_report: Also return what went and what stopped the rest.

    Returns:
        The smaller model; with ``return_report`` a pair of it and the report.
        It has the model's class where that is made of inputs and outputs.
        Otherwise, as with a task of KerasHub, it is a plain functional model,
        with a warning: it takes tensors, and no preprocessor runs before it.

    Raises:
        ValueError: If the model is subclassed, a key or a mask does not fit
            it, a layer cannot be copied, there is no optimizer to inherit, or
            a training step that the model's class has would be lost.

    Reference:
        You et al., "Drawing Early-Bird Tickets", ICLR 2020, section 4.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 3)),
    ...     keras.layers.Conv2D(4, 3, name="conv"),
    ...     keras.layers.BatchNormalization(name="norm"),
    ...     keras.layers.ReLU(),
    ...     keras.layers.GlobalAveragePooling2D(),
    ...     keras.layers.Dense(2),
    ... ])
    >>> scale = model.get_layer("norm").gamma.path
    >>> small = tt.structured.shrink(model, {scale: [True, False, False, True]})
    >>> small.get_layer("conv").filters
    2
    """
    checks.choice("weights", weights, ("keep", "start"))
    ticket = (
        channels
        if isinstance(channels, ChannelTicket)
        else ChannelTicket(channels)
    )
    if weights == "start" and ticket.weights is None:
        raise ValueError(
            "This ticket has no weights to start from. "
            "Received: weights='start'"
        )
    _check_optimizer(model, inherit_optimizer)
    if isinstance(ticket, GroupTicket):
        return shrink_groups(
            model,
            ticket,
            weights=weights,
            inherit_optimizer=inherit_optimizer,
            return_report=return_report,
        )
    walked = follow(look_inside(model))
    named = named_weights(model)
    values = values_of(named)
    if weights == "start":
        values.update(ticket.weights_for(model))
    masks, keys = _masks_by_atoms(ticket, model, walked)
    scores = ticket.scores or {}
    decision = decide(
        walked,
        masks,
        {
            keys[k]: scores[k]
            if k in scores
            else _magnitudes(
                values[keys[k]], channel_axis(model, named[keys[k]])
            )
            for k in ticket.masks
        },
    )
    _zero_what_stays(ticket, model, walked, decision, values, masks, keys)
    small = without(
        walked,
        decision.removed,
        model,
        values={id(named[key]): value for key, value in values.items()},
        inherit_optimizer=inherit_optimizer,
    )
    if return_report:
        return small, decision.report(walked, model, small)
    return small


def _check_optimizer(model: keras.Model, inherit_optimizer: bool) -> None:
    if inherit_optimizer and getattr(model, "optimizer", None) is None:
        raise ValueError(
            "The model has no optimizer whose state could be inherited: it "
            "is not compiled. Received: inherit_optimizer=True"
        )


def _masks_by_atoms(
    ticket: ChannelTicket, model: keras.Model, walked: Channels
) -> tuple[dict[str, tuple[Atoms, np.ndarray]], dict[str, str]]:
    """``{key in the model: (atoms, mask)}`` and how the keys translate."""
    known = owners(walked, model)
    keys = ticket.match(model)
    misfits = [
        f"{key} with {mask.size} channels"
        + (f", not {known[keys[key]].size}" if keys[key] in known else "")
        for key, mask in ticket.masks.items()
        if keys[key] not in known or known[keys[key]].size != mask.size
    ]
    if misfits:
        raise ValueError(
            "These keys name no channels of the model, or another number of "
            f"them. Received: {misfits}; the model has {sorted(known)[:20]}"
        )
    return {
        keys[k]: (known[keys[k]], mask) for k, mask in ticket.masks.items()
    }, keys


def _magnitudes(value: np.ndarray, axis: int) -> np.ndarray:
    """The largest magnitude that each channel has in a scale or kernel."""
    others = tuple(i for i in range(value.ndim) if i != axis)
    return np.abs(value.astype(np.float64)).max(axis=others)


def _zero_what_stays(
    ticket: ChannelTicket,
    model: keras.Model,
    walked: Channels,
    decision: Decision,
    values: dict[str, np.ndarray],
    masks: Mapping[str, tuple[Atoms, np.ndarray]],
    keys: Mapping[str, str],
) -> None:
    """Zero the pruned channels that are not removed, but for floored ones."""
    floored = np.array(sorted(decision.floored), np.int64)
    spared = ChannelTicket(
        {
            key: mask | np.isin(walked.roots(masks[keys[key]][0]), floored)
            for key, mask in ticket.masks.items()
        },
        ticket.weights,
    )
    for key, mask in spared.element_masks(model).items():
        values[key] = np.where(mask, values[key], 0).astype(values[key].dtype)
