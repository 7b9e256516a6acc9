"""Controls: tickets that differ from one in a single thing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tf_tickets.pruning import keep_largest
from tf_tickets.selection import match_keys, named_weights, values_of
from tf_tickets.ticket import Ticket, check_ticket


def fitted(ticket: Ticket, model: keras.Model) -> Ticket:
    """The ticket with the model's own keys, and start weights."""
    check_ticket(ticket)
    named = named_weights(model)
    keys = ticket.match(model)
    start = values_of(named)
    if ticket.weights is not None:
        shapes = {k: v.shape for k, v in ticket.weights.items()}
        every = match_keys(shapes, named)
        start |= {every[k]: v for k, v in ticket.weights.items()}
    scores = ticket.scores
    return Ticket(
        {keys[k]: m for k, m in ticket.masks.items()},
        start,
        ticket.metadata,
        scores=None
        if scores is None
        else {keys[k]: s for k, s in scores.items() if k in keys},
    )


def differs(control: Ticket, ticket: Ticket) -> bool:
    """Whether a control trains anything else than the ticket."""
    mine, others = ticket.weights or {}, control.weights or {}
    return any(
        (mask != control.masks[key]).any()
        or (mine[key] != others[key])[mask].any()
        for key, mask in ticket.masks.items()
    )


def inverted(ticket: Ticket, seed: int) -> Ticket:
    """The lowest scores of each tensor; ties are broken at random.

    Edge-Popup ranks by the absolute value of its scores, GraSP by scores of
    either sign: the mask says which of the two it was drawn by.
    """
    scores = {
        key: np.asarray(score, np.float64)
        for key, score in (ticket.scores or {}).items()
    }
    sizes = {key: np.abs(score) for key, score in scores.items()}
    if _explained(ticket, sizes) > _explained(ticket, scores):
        scores = sizes
    masks = {}
    for i, (key, mask) in enumerate(ticket.masks.items()):
        order = np.random.default_rng((seed, i, 2)).permutation(mask.size)
        flat = np.empty(mask.size, bool)
        flat[order] = keep_largest(
            -scores[key].ravel()[order], int(np.count_nonzero(mask))
        )
        masks[key] = flat.reshape(mask.shape)
    return _control(ticket, masks, "invert", seed)


def _explained(ticket: Ticket, scores: Mapping[str, np.ndarray]) -> int:
    """How many kept weights are among the highest scores of their tensor."""
    total = 0
    for key, mask in ticket.masks.items():
        flat = mask.ravel()
        highest = keep_largest(scores[key].ravel(), int(np.count_nonzero(mask)))
        total += int(np.count_nonzero(highest & flat))
    return total


def redrawn(ticket: Ticket, seed: int) -> Ticket:
    """As many weights of each tensor, wherever they fall."""
    masks = {}
    for i, (key, mask) in enumerate(ticket.masks.items()):
        rng = np.random.default_rng((seed, i, 1))
        masks[key] = keep_largest(
            rng.random(mask.size), int(np.count_nonzero(mask))
        ).reshape(mask.shape)
    return _control(ticket, masks, "random", seed)


def reinitialized(
    ticket: Ticket, model: keras.Model, initializer: Any, seed: int
) -> Ticket:
    fresh = ticket.reinitialize(model, seed)
    if initializer is None:
        if not _signed_constant(ticket):
            return fresh
        initializer = keras.initializers.VarianceScaling(
            2.0, "fan_in", "untruncated_normal"
        )
    weights = dict(fresh.weights or {})
    config = keras.initializers.get(initializer).get_config()
    for i, (key, mask) in enumerate(ticket.masks.items()):
        drawing = keras.initializers.get(initializer)
        if "seed" in config:
            state = np.random.SeedSequence((seed, i)).generate_state(1)[0]
            drawing = type(drawing).from_config(
                {**config, "seed": int(state >> 1)}
            )
        weights[key] = np.array(drawing(mask.shape, weights[key].dtype))
    return Ticket(fresh.masks, weights, fresh.metadata)


def _signed_constant(ticket: Ticket) -> bool:
    sizes = [np.abs((ticket.weights or {})[key]) for key in ticket.masks]
    return all(
        w.size > 1 and w.max() > 0 and w.max() - w.min() <= 1e-5 * w.max()
        for w in sizes
    )


def _control(
    ticket: Ticket, masks: Mapping[str, np.ndarray], name: str, seed: int
) -> Ticket:
    return Ticket(
        masks,
        ticket.weights,
        {**ticket.metadata, "control": name, "control_seed": seed},
    )
