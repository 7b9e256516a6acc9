"""Physically smaller models without the groups that a ticket prunes."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import keras
import numpy as np

from tf_tickets.selection import layers_of, named_weights, values_of
from tf_tickets.structured.decide import Decision, ShrinkReport, decide
from tf_tickets.structured.groups import GroupTicket, WeightGroups, magnitude
from tf_tickets.structured.rebuild import without
from tf_tickets.structured.target import Shrinking, macs, rounded

# Kinds of which a number of groups is one of multiplications in a vector; a
# head is many of these, and a block is all or nothing.
_WIDE = ("widths", "channels", "embeddings")


class GroupShrinking(Shrinking):
    """One model, shrunk by one ticket of groups or another.

    Args:
        model: The model.
        ticket: Whose weights the copy starts from, if it is to.
        multiple: Of which every layer keeps widths.
        start: Whether the copy has the weights of the ticket.
        inherit_optimizer: Whether copies inherit the optimizer's state.
    """

    def __init__(
        self,
        model: keras.Model,
        ticket: GroupTicket,
        multiple: int,
        *,
        start: bool,
        inherit_optimizer: bool,
    ) -> None:
        super().__init__(model)
        self.multiple = multiple
        self.inherit_optimizer = inherit_optimizer
        self.groups = WeightGroups(model)
        self.channels = self.groups.channels
        self.named = named_weights(model)
        self.values = values_of(self.named)
        if start:
            self.values.update(ticket.weights_for(model))
        self._masks: dict[str, np.ndarray] = {}

    def decide(self, ticket: GroupTicket) -> Decision:
        """What goes."""
        keys = ticket._fitting(self.groups)
        scores = ticket.scores
        if scores is None or not scores.keys() >= ticket.masks.keys():
            found = magnitude(self.model, self.groups)
            scores = {key: found[keys[key]] for key in ticket.masks}
        rated = {keys[key]: scores[key] for key in ticket.masks}
        self._masks = {keys[k]: np.array(m) for k, m in ticket.masks.items()}
        if self.multiple > 1:
            self._round(rated)
        return self._decide(rated)

    def build(self, decision: Decision) -> keras.Model:
        """The smaller model; right after its decision."""
        floored = np.array(sorted(decision.floored), np.int64)
        spared = {
            key: mask | np.isin(self._roots(key), floored)
            for key, mask in self._masks.items()
            if self._block(key) is None
        }
        values = dict(self.values)
        for key, mask in self.groups.masks(spared).items():
            values[key] = np.where(mask, values[key], 0).astype(
                values[key].dtype
            )
        return without(
            self.channels,
            decision.removed,
            self.model,
            values={id(self.named[key]): v for key, v in values.items()},
            inherit_optimizer=self.inherit_optimizer,
            bypassed=[id(layer) for layer in self._bypassed()],
        )

    def macs(self, decision: Decision) -> tuple[int, int] | None:
        """Multiply-accumulates ``(before, after)`` of kernels."""
        none = np.zeros(self.channels.size, bool)
        before = macs(self.channels, none)
        gone = {
            id(part) for layer in self._bypassed() for part in layers_of(layer)
        }
        after = macs(self.channels, decision.removed, gone)
        return None if before is None or after is None else (before, after)

    def report(self, decision: Decision, small: keras.Model) -> ShrinkReport:
        """The account of a decision; right after it."""
        report = decision.report(self.channels, self.model, small)
        blocks = self._bypassed()
        counted = self.macs(decision)
        if any(None in x.shape[1:] for x in self.model.inputs):
            counted = None
        return dataclasses.replace(
            report,
            asked=report.asked + len(blocks),
            removed=report.removed + len(blocks),
            # Layers inside layers share their names; these are paths.
            layers={
                **{
                    key.rpartition("/")[0]: (
                        mask.size,
                        int((~decision.removed[self._atoms(key)]).sum()),
                    )
                    for key, mask in self._masks.items()
                    if self._block(key) is None
                },
                **{layer.path: (1, 0) for layer in blocks},
            },
            macs=counted,
        )

    def _decide(
        self,
        scores: Mapping[str, np.ndarray],
        spared: Collection[int] = (),
    ) -> Decision:
        masks = {
            key: (self._atoms(key), mask)
            for key, mask in self._masks.items()
            if self._block(key) is None
        }
        return decide(self.channels, masks, scores, spared=spared)

    def _round(self, scores: Mapping[str, np.ndarray]) -> None:
        """Take back groups, the best first, until the rest is a multiple."""
        single = [k for k in self._masks if self._block(k) is None]
        strength = np.zeros(self.channels.size)
        for key in single:
            np.add.at(strength, self._roots(key), np.abs(scores[key]))

        def removed(
            masks: Mapping[str, np.ndarray], spared: Collection[int]
        ) -> np.ndarray:
            self._masks |= masks
            return self._decide(scores, spared).removed

        found, _ = rounded(
            self.channels,
            {key: self._masks[key] for key in single},
            {key: self._atoms(key) for key in single},
            removed,
            strength,
            self.multiple,
            lists=[
                self._atoms(key)
                for key in single
                if self.groups.families[key].kind in _WIDE
            ],
        )
        self._masks |= found

    def _atoms(self, key: str) -> np.ndarray:
        return self.groups.families[key].atoms

    def _roots(self, key: str) -> np.ndarray:
        return self.channels.roots(self._atoms(key))

    def _block(self, key: str) -> Any:
        return self.groups.families[key].block

    def _bypassed(self) -> list[keras.layers.Layer]:
        """The blocks that go whole."""
        return [
            self._block(key).layer
            for key, mask in self._masks.items()
            if self._block(key) is not None and not mask.any()
        ]
