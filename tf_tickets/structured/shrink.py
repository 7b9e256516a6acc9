"""Physically smaller models: channels that really go."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, overload

import keras
import numpy as np

from tf_tickets import checks
from tf_tickets.layers.selecting import SelectChannels
from tf_tickets.network.channels import Atoms, Channels, follow, owners
from tf_tickets.network.inside import look_inside
from tf_tickets.selection import named_weights, values_of
from tf_tickets.structured.decide import Decision, ShrinkReport, decide
from tf_tickets.structured.draw import Criterion
from tf_tickets.structured.groups import GroupTicket, drawn_anew
from tf_tickets.structured.rebuild import without
from tf_tickets.structured.selects import useful, wanting, with_selects
from tf_tickets.structured.shrink_groups import GroupShrinking
from tf_tickets.structured.target import (
    Shrinking,
    Target,
    latencies,
    macs,
    ranking,
    rounded,
)
from tf_tickets.structured.ticket import ChannelTicket, channel_axis


@overload
def shrink(
    model: keras.Model,
    channels: ChannelTicket | Mapping[str, Any] | None = ...,
    *,
    weights: Literal["keep", "start"] = ...,
    flops: float | None = ...,
    latency: float | None = ...,
    round_to: int | None = ...,
    criterion: Criterion = ...,
    select: bool = ...,
    inherit_optimizer: bool = ...,
    return_report: Literal[False] = ...,
) -> keras.Model: ...


@overload
def shrink(
    model: keras.Model,
    channels: ChannelTicket | Mapping[str, Any] | None = ...,
    *,
    weights: Literal["keep", "start"] = ...,
    flops: float | None = ...,
    latency: float | None = ...,
    round_to: int | None = ...,
    criterion: Criterion = ...,
    select: bool = ...,
    inherit_optimizer: bool = ...,
    return_report: Literal[True],
) -> tuple[keras.Model, ShrinkReport]: ...


def shrink(
    model: keras.Model,
    channels: ChannelTicket | Mapping[str, Any] | None = None,
    *,
    weights: Literal["keep", "start"] = "keep",
    flops: float | None = None,
    latency: float | None = None,
    round_to: int | None = None,
    criterion: Criterion = "auto",
    select: bool = False,
    inherit_optimizer: bool = False,
    return_report: bool = False,
) -> keras.Model | tuple[keras.Model, ShrinkReport]:
    """A smaller model without the channels that a ticket prunes.

    The result is an ordinary Keras model of the same layers and names. Its
    outputs are those of the big model under ``channels.apply``, in which scale
    and offset of a pruned channel (or its filter, its bias, and scale and
    offset of the normalization behind it) are zero, up to rounding. What
    follows from that need not be zero: where an activation is not zero at
    zero, the constant moves into the biases of the layers that read it.

    A channel goes only when every mask that names it prunes it: an addition
    makes the channels of its two sides one. It stays where something unknown
    reads it, or where no bias can say what it says: where a constant that is
    not zero meets a convolution that pads with zeros. Such channels are held
    at zero in the smaller model by masks, as `ChannelTicket.apply` holds them;
    `tf_tickets.release` lets them train. The report says which and why.

    A branch of an addition that would only add zeros goes whole. Any other
    layer that would lose every channel keeps the best one as it is, with a
    warning.

    Args:
        model: A functional model or a built sequential one, nested or not. It
            is not changed.
        channels: A ticket, or ``{key: mask}`` with the path of a
            normalization layer's scale or of a kernel as key and one boolean
            per channel, `True` = kept. With a target, a ticket with scores,
            whose masks are drawn anew by these; or `None`, the default:
            channels are ranked by ``criterion``, those that can only go
            together as one. Of a `GroupTicket`, heads, widths and
            blocks go, all of whose weights are zero in the big model; with a
            target its kinds keep the proportions of their sparsities.
        weights: `"keep"` inherits the weights that the model has; `"start"`
            those of the ticket.
        flops: A target: at most this fraction of the model's multiplications
            by kernels (what attention multiplies besides is not counted). The
            sparsity that reaches it is searched for.
        latency: A target: at most this fraction of the time that the model
            takes to predict a batch of 32 on this machine, measured in turns.
        round_to: Whole number: every layer keeps a multiple of so many
            channels, or all; 8 or 16 for vector units. The best of those that
            were to go stay. Of groups, it is widths that are counted so, not
            heads.
        criterion: As in `draw_channels`, where there is a target and no
            ticket.
        select: Whether a normalization takes its own channels from a tensor
            that keeps more, by a `tf_tickets.layers.SelectChannels` in front
            of it: in a pre-activation network every block then reads what its
            own mask keeps, as in the published code, and not what any block
            needs of the residual stream.
        inherit_optimizer: Also hand on the optimizer's state (momentum and
            the like); no branch goes whole then. A compiled model's copy is
            compiled with the same settings in either case.
        return_report: Also return what went and what stopped the rest.

    Returns:
        The smaller model; with ``return_report`` a pair of it and the report.
        It has the model's class where that is made of inputs and outputs.
        Otherwise, as with a task of KerasHub, it is a plain functional model,
        with a warning: it takes tensors, and no preprocessor runs before it.

    Raises:
        ValueError: If the model is subclassed, a key or a mask does not fit
            it, a layer cannot be copied, there is no optimizer to inherit, a
            training step that the model's class has would be lost, or a target
            cannot be reached.

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
    >>> small, report = tt.structured.shrink(
    ...     model, flops=0.6, return_report=True)
    >>> small.get_layer("conv").filters, report.macs
    (2, (3896, 1948))
    """
    checks.choice("weights", weights, ("keep", "start"))
    target = Target.of(flops, latency, round_to)
    ticket = (
        channels
        if channels is None or isinstance(channels, ChannelTicket)
        else ChannelTicket(channels)
    )
    if weights == "start" and (ticket is None or ticket.weights is None):
        raise ValueError(
            "This ticket has no weights to start from. "
            "Received: weights='start'"
        )
    _check_optimizer(model, inherit_optimizer)
    shrinking: Shrinking
    chosen: Any = ticket
    if isinstance(ticket, GroupTicket):
        if select:
            raise ValueError(
                "Groups are not selected: what reads a group loses it, too. "
                "Received: select=True with a GroupTicket"
            )
        shrinking = GroupShrinking(
            model,
            ticket,
            target.round_to,
            start=weights == "start",
            inherit_optimizer=inherit_optimizer,
        )
    else:
        start = (
            ticket.weights_for(model)
            if weights == "start" and ticket is not None
            else {}
        )
        shrinking = _Shrinking(
            model,
            start,
            target.round_to,
            select=select,
            inherit_optimizer=inherit_optimizer,
        )
    reached: dict[str, Any] = {}
    if target:
        draw = (
            drawn_anew(model, ticket)
            if isinstance(ticket, GroupTicket)
            else ranking(model, ticket, criterion, select)
        )
        reached["sparsity"], chosen = shrinking.reach(draw, target)
    elif ticket is None:
        raise ValueError(
            "Say which channels go: by a ticket, by masks, or by a target, "
            "`flops` or `latency`. Received: channels=None"
        )
    decision = shrinking.decide(chosen)
    small = shrinking.build(decision)
    if not return_report:
        return small
    if target.latency is not None:
        before, after = latencies(model, small)
        reached["latency"] = before.median, after.median
    report = shrinking.report(decision, small)
    return small, dataclasses.replace(report, **reached)


class _Shrinking(Shrinking):
    """One model, shrunk by one ticket or another.

    Args:
        model: The model.
        start: Weights to take in place of the model's own.
        multiple: Of which every layer keeps channels.
        select: Whether a normalization may take channels from those it reads.
        inherit_optimizer: Whether copies inherit the optimizer's state.
    """

    def __init__(
        self,
        model: keras.Model,
        start: Mapping[str, np.ndarray],
        multiple: int,
        *,
        select: bool,
        inherit_optimizer: bool,
    ) -> None:
        super().__init__(model)
        self.multiple = multiple
        self.select = select
        self.inherit_optimizer = inherit_optimizer
        self.graph = look_inside(model)
        self.walked = follow(self.graph)
        self.selects: Mapping[int, SelectChannels] = {}
        self.named = named_weights(model)
        self.values = {**values_of(self.named), **start}
        self.elements: dict[str, np.ndarray] = {}

    def decide(self, ticket: ChannelTicket) -> Decision:
        """What goes."""
        if self.select:
            self._choose(ticket)
        if self.multiple == 1:
            return self._decide(ticket)
        masks, keys = _masks_by_atoms(ticket, self.model, self.walked)
        strength = np.zeros(self.walked.size)
        for key, scores in self._scores(ticket, keys).items():
            roots = self.walked.roots(masks[key][0])
            np.add.at(strength, roots, np.abs(scores).astype(float))
        found, spared = rounded(
            self.walked,
            ticket.masks,
            {key: masks[keys[key]][0] for key in ticket.masks},
            lambda masks, spared: (
                self._decide(_with(ticket, masks), spared).removed
            ),
            strength,
            self.multiple,
        )
        return self._decide(_with(ticket, found), spared)

    def build(self, decision: Decision) -> keras.Model:
        """The smaller model; right after its decision."""
        return without(
            self.walked,
            decision.removed,
            self.model,
            values=self.walked.values,
            biases=decision.biases,
            masks=self.elements,
            empty=decision.empty,
            inherit_optimizer=self.inherit_optimizer,
            selects=self.selects,
        )

    def macs(self, decision: Decision) -> tuple[int, int] | None:
        """Multiply-accumulates ``(before, after)``."""
        none = np.zeros(self.walked.size, bool)
        before = macs(self.walked, none)
        after = macs(self.walked, decision.removed, decision.empty.dropped)
        return None if before is None or after is None else (before, after)

    def report(self, decision: Decision, small: keras.Model) -> ShrinkReport:
        """The account of a decision; right after it."""
        return dataclasses.replace(
            decision.report(self.walked, self.model, small),
            macs=self.macs(decision),
        )

    def _choose(self, ticket: ChannelTicket) -> None:
        """Find the normalizations that need less than what they read keeps."""
        self.selects, self.walked = {}, follow(self.graph)
        keys = ticket.match(self.model)
        masks = {
            id(self.named[keys[key]]): mask
            for key, mask in ticket.masks.items()
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Every channel of these layers")
            found = wanting(self.walked, masks, self._decide(ticket))
            while found:
                graph, self.selects = with_selects(self.graph, found)
                self.walked = follow(graph)
                used = useful(self.walked, self.selects, self._decide(ticket))
                if len(used) == len(found):
                    return
                found = used
        self.selects, self.walked = {}, follow(self.graph)

    def _decide(
        self, ticket: ChannelTicket, spared: Collection[int] = ()
    ) -> Decision:
        masks, keys = _masks_by_atoms(ticket, self.model, self.walked)

        def zeroed(spared: Collection[int]) -> dict[int, np.ndarray]:
            self.elements = _spared(ticket, self.walked, spared, masks, keys)(
                self.model
            )
            return {
                id(self.named[key]): np.where(
                    self.elements[key], value, 0
                ).astype(value.dtype)
                if key in self.elements
                else value
                for key, value in self.values.items()
            }

        return decide(
            self.walked,
            masks,
            self._scores(ticket, keys),
            zeroed,
            whole=not self.inherit_optimizer,
            spared=spared,
        )

    def _scores(
        self, ticket: ChannelTicket, keys: Mapping[str, str]
    ) -> dict[str, np.ndarray]:
        """By which the best channel of a layer is found."""
        scores = ticket.scores or {}
        return {
            keys[k]: scores[k]
            if k in scores
            else _magnitudes(
                self.values[keys[k]],
                channel_axis(self.model, self.named[keys[k]]),
            )
            for k in ticket.masks
        }


def _with(ticket: ChannelTicket, masks: Mapping[str, Any]) -> ChannelTicket:
    """A ticket with other masks."""
    return ChannelTicket(
        masks, ticket.weights, ticket.metadata, scores=ticket.scores
    )


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


def _spared(
    ticket: ChannelTicket,
    walked: Channels,
    spared: Collection[int],
    masks: Mapping[str, tuple[Atoms, np.ndarray]],
    keys: Mapping[str, str],
) -> Callable[[keras.Model], dict[str, np.ndarray]]:
    """What the ticket holds at zero, but for some roots."""
    floored = np.array(sorted(spared), np.int64)
    return ChannelTicket(
        {
            key: mask | np.isin(walked.roots(masks[keys[key]][0]), floored)
            for key, mask in ticket.masks.items()
        },
        ticket.weights,
    ).element_masks
