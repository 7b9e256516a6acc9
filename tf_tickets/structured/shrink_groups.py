"""Physically smaller models without the groups that a ticket prunes."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np

from tf_tickets.selection import named_weights, values_of
from tf_tickets.structured.decide import ShrinkReport, decide
from tf_tickets.structured.groups import GroupTicket, WeightGroups, magnitude
from tf_tickets.structured.rebuild import without


def shrink_groups(
    model: keras.Model,
    ticket: GroupTicket,
    *,
    weights: str,
    inherit_optimizer: bool,
    return_report: bool,
) -> keras.Model | tuple[keras.Model, ShrinkReport]:
    """As `tf_tickets.structured.shrink`, which checks the arguments."""
    groups = WeightGroups(model)
    channels = groups.channels
    keys = ticket._fitting(groups)
    named = named_weights(model)
    values = values_of(named)
    if weights == "start":
        values.update(ticket.weights_for(model))
    families = {k: groups.families[keys[k]] for k in ticket.masks}
    scores = ticket.scores
    if scores is None or not scores.keys() >= ticket.masks.keys():
        found = magnitude(model, groups)
        scores = {key: found[keys[key]] for key in ticket.masks}
    masks = {
        keys[key]: (family.atoms, ticket.masks[key])
        for key, family in families.items()
        if family.block is None
    }
    decision = decide(
        channels, masks, {keys[key]: scores[key] for key in ticket.masks}
    )
    floored = np.array(sorted(decision.floored), np.int64)
    spared = {
        key: mask | np.isin(channels.roots(atoms), floored)
        for key, (atoms, mask) in masks.items()
    }
    for key, mask in groups.masks(spared).items():
        values[key] = np.where(mask, values[key], 0).astype(values[key].dtype)
    blocks = [
        family.block.layer
        for key, family in families.items()
        if family.block is not None and not ticket.masks[key].any()
    ]
    small = without(
        channels,
        decision.removed,
        model,
        values={id(named[key]): value for key, value in values.items()},
        inherit_optimizer=inherit_optimizer,
        bypassed=[id(layer) for layer in blocks],
    )
    if not return_report:
        return small
    report = decision.report(channels, model, small)
    return small, dataclasses.replace(
        report,
        asked=report.asked + len(blocks),
        removed=report.removed + len(blocks),
        # Layers inside layers share their names; these are paths.
        layers={
            **{
                key.rpartition("/")[0]: (
                    atoms.size,
                    int((~decision.removed[atoms]).sum()),
                )
                for key, (atoms, _) in masks.items()
            },
            **{layer.path: (1, 0) for layer in blocks},
        },
    )
