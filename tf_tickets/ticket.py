"""A ticket: masks, the weights to start from, and where they came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import keras
import numpy as np

from tf_tickets import checks, foreign, initialization, masking
from tf_tickets.masks import Each, Masks, given, shapes_of
from tf_tickets.selection import (
    Filters,
    layers_of,
    match_keys,
    named_weights,
    prunable_among,
    prunable_weights,
    values_of,
)


class Ticket(Masks):
    """Masks over a model's prunable weights and the weights to start from.

    Tickets are values: nothing changes one after it is made, and methods that
    derive a ticket return a new one.

    Args:
        masks: ``{path: boolean array}``, `True` where a weight is kept.
            Arrays of zeros and ones are taken too.
        weights: ``{path: array}``: the start value of every weight of the
            model, biases and normalization state included, before masking
            (so that `shuffle` can move a mask onto weights it did not keep).
            `None` for a ticket of masks alone.
        metadata: JSON values that say where the ticket came from.
        scores: ``{path: array}``: what the masks were drawn by, for checks
            that invert it; or `None`.

    Raises:
        ValueError: If there is no mask, a mask holds something else than
            zeros and ones, or a mask and its weight or score differ in shape.

    Reference:
        Frankle and Carbin, "The Lottery Ticket Hypothesis", ICLR 2019: the
        ticket is f(x; m ⊙ θ₀).

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(10)])
    >>> ticket = tt.prune(model, sparsity=0.9)
    >>> ticket.sparsity
    0.9
    >>> ticket.apply(model)
    >>> int((model.layers[0].kernel.numpy() != 0).sum())
    10
    """

    covers: ClassVar[str] = "weights"
    kind: ClassVar[str] = "ticket"

    def __init__(
        self,
        masks: Mapping[str, np.ndarray],
        weights: Mapping[str, np.ndarray] | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        scores: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        super().__init__(masks, weights, metadata, scores=scores)
        for name, arrays in (
            ("weights", self._weights),
            ("scores", self._scores),
        ):
            if isinstance(arrays, Each):
                arrays = arrays.weights  # of the same shapes
            if arrays is None:
                continue
            misfits = [
                f"{key}: mask {mask.shape}, {name} "
                f"{arrays[key].shape if key in arrays else 'missing'}"
                for key, mask in self._masks.items()
                if key not in arrays or arrays[key].shape != mask.shape
            ]
            if misfits:
                raise ValueError(
                    f"`{name}` must hold an array of the mask's shape for "
                    f"every mask. Received: {'; '.join(misfits)}"
                )

    @classmethod
    def from_model(
        cls,
        model: keras.Model,
        *,
        filters: Filters = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Ticket:
        """The ticket that ``model`` holds now: its masks and its weights.

        Masks that are enforced are taken as they are; where there are none,
        a weight counts as kept when it is not zero.

        Args:
            model: A built Keras model, for example one that was pruned
                elsewhere.
            filters: As in `tf_tickets.prunable_weights`.
            metadata: Added to the ticket's own.
        """
        masking.warn_of_written(model)
        attached = masking.attached_masks(model)
        values = values_of(named_weights(model))
        if attached and filters is None:
            masks = attached
        else:
            masks = {
                key: attached.get(key, values[key] != 0)
                for key in prunable_weights(model, filters)
            }
        return cls(
            given(masks),
            given(values),
            {"source": "model", **(metadata or {})},
        )

    @classmethod
    def from_weights(
        cls,
        weights: foreign.Weights,
        *,
        filters: Filters = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Ticket:
        """The ticket that the zeros of some weights are, from any framework.

        A weight that pruning may touch counts as kept where it is not zero.

        Args:
            weights: ``{path: array}``, or the variables of a model: those of
                a tf_keras model after ``strip_pruning``, for example. All of
                them, in the model's order, biases and statistics included.
            filters: As in `tf_tickets.prunable_weights`.
            metadata: Added to the ticket's own.

        Raises:
            ValueError: If these are no weights, none can be pruned, or they
                are still wrapped for pruning.

        Example:

        >>> import tf_tickets as tt
        >>> ticket = tt.Ticket.from_weights(
        ...     {"head/kernel:0": np.eye(4), "head/bias:0": np.zeros(4)})
        >>> ticket.sparsity, list(ticket.masks)
        (0.75, ['head/kernel'])
        """
        found = foreign.collect(weights)
        values = {key: weight.value for key, weight in found.items()}
        masks = {
            key: weight.value != 0
            for key, weight in prunable_among(found, filters).items()
        }
        return cls(masks, values, {"source": "weights", **(metadata or {})})

    def to_weights(
        self, like: foreign.Weights | None = None
    ) -> dict[str, np.ndarray]:
        """Mask ⊙ start weights, as arrays: the inverse of `from_weights`.

        Args:
            like: The weights, as in `from_weights`, of a model that is to get
                them; `None` for the ticket's own paths.

        Returns:
            ``{path: array}``: every weight of the ticket, by the paths of
            ``like`` and in its order.

        Raises:
            ValueError: If the ticket has no start weights or does not fit.

        Example:

        >>> import tf_tickets as tt
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> values = tt.prune(model, 0.5).to_weights(model.weights)
        >>> for variable, value in zip(model.weights, values.values()):
        ...     _ = variable.assign(value)
        """
        if self._weights is None:
            raise ValueError(
                "This ticket has masks and no start weights. "
                f"Received: {self!r}"
            )
        values = {
            key: np.where(self._masks[key], value, np.zeros((), value.dtype))
            if key in self._masks
            else value.copy()
            for key, value in self._weights.items()
        }
        if like is None:
            return values
        theirs = foreign.collect(like)
        keys = match_keys(shapes_of(values), theirs)
        mine = {theirs_key: key for key, theirs_key in keys.items()}
        if len(mine) < len(theirs):
            raise ValueError(
                "The ticket does not have all of these weights. Received: "
                f"{sorted(set(theirs) - set(mine))}"
            )
        return {key: values[mine[key]] for key in theirs}

    @classmethod
    def from_supermask(
        cls,
        miner: keras.Model,
        mask: Literal["effective", "frozen"] = "effective",
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> Ticket:
        """The ticket that score training found, before any weight is trained.

        Its keys are the paths of the model that the supermask was made of, so
        that `apply` puts it there: the start weights are the frozen ones
        (normalization statistics as mining left them), the scores those of
        the moment. A model built of `tf_tickets.layers.Supermask` layers gives
        a ticket for the same model without them.

        Args:
            miner: A model from `tf_tickets.supermask`, or one that contains
                `tf_tickets.layers.Supermask` layers.
            mask: `"effective"`: what the miner computes with, m(p) ⊙ q, the
                output of the paper's algorithm. `"frozen"`: q alone, all that
                freezing has left, which is denser and meets the target to the
                weight. The published runs finetune that one ("unflag").
            metadata: Added to the ticket's own.

        Raises:
            ValueError: If there is no supermask, the mask keeps nothing, or
                `"frozen"` is asked of a top-k mask.

        Reference:
            Sreenivasan et al., "Rare Gems: Finding Lottery Tickets at
            Initialization", NeurIPS 2022, algorithm 1.

        Example:

        >>> import tf_tickets as tt
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> miner = tt.supermask(model, mask="top_k", sparsity=0.75)
        >>> ticket = tt.Ticket.from_supermask(miner)
        >>> ticket.apply(model)
        >>> int((model.layers[0].kernel.numpy() != 0).sum())
        8
        """
        masks: dict[str, np.ndarray] = {}
        weights: dict[str, np.ndarray] = {}
        scores: dict[str, np.ndarray] = {}
        # In the order of the model's weights, which `apply` may have to
        # align by: a supermask stands where its first variable does.
        owners = {
            id(variable): layer
            for layer in layers_of(miner)
            if hasattr(layer, "ticket_parts")
            for variable in layer.weights
        }
        told: set[int] = set()
        for key, variable in named_weights(miner).items():
            owner = owners.get(id(variable))
            if owner is None:
                name = _free_key(key, weights)
                weights.update(values_of({name: variable}))
            elif id(owner) not in told:
                told.add(id(owner))
                parts = owner.ticket_parts(mask)
                # Layers that were built apart may have one path.
                names = {k: _free_key(k, weights) for k in parts[1]}
                for mine, part in zip(
                    (masks, weights, scores), parts, strict=True
                ):
                    mine.update({names[k]: a for k, a in part.items()})
        if not told:
            raise ValueError(
                "There is no supermask in this model: make one with "
                f"tf_tickets.supermask. Received: {miner!r}"
            )
        if not any(m.any() for m in masks.values()):
            raise ValueError(
                "The mask keeps no weight: the score penalty has pushed every "
                "score under the threshold. Lower it, or take "
                f"mask='frozen'. Received: mask={mask!r}"
            )
        return cls(
            masks,
            weights,
            {"source": "supermask", "mask": mask, **(metadata or {})},
            scores=scores,
        )

    def element_masks(self, model: keras.Model) -> dict[str, np.ndarray]:
        """``{path in the model: mask}``: what `apply` enforces.

        Raises:
            ValueError: If the ticket is of another architecture, listing every
                mismatch.
        """
        return {
            key: self._masks[mine] for mine, key in self.match(model).items()
        }

    def match(self, model: keras.Model) -> dict[str, str]:
        """``{path in the ticket: path in the model}`` of the masked weights.

        Raises:
            ValueError: If the ticket is of another architecture, listing every
                mismatch.
        """
        named = named_weights(model)
        if self._weights is not None:
            return self._aligned(named, self._masks)
        shapes = shapes_of(self._masks)
        if all(
            key in named and tuple(named[key].shape) == shape
            for key, shape in shapes.items()
        ):
            return {key: key for key in shapes}
        return match_keys(shapes, prunable_weights(model))

    def renamed(self, model: keras.Model, keys: Mapping[str, str]) -> Ticket:
        """This ticket for a copy of ``model`` whose weights have other keys.

        Args:
            model: A built Keras model that the ticket fits.
            keys: ``{key in the model: key in the copy}``.

        Raises:
            ValueError: If the ticket does not fit the model.

        Example:

        >>> import tf_tickets as tt
        >>> model = keras.Sequential([
        ...     keras.Input((4,)), keras.layers.Dense(2, name="head")])
        >>> key = model.layers[0].kernel.path
        >>> ticket = tt.Ticket({key: np.eye(4, 2)})
        >>> list(ticket.renamed(model, {key: "copy/kernel"}).masks)
        ['copy/kernel']
        """
        matched = {mine: keys[k] for mine, k in self.match(model).items()}
        return Ticket(
            {key: self._masks[mine] for mine, key in matched.items()},
            None
            if self._weights is None
            else {keys[k]: v for k, v in self.weights_for(model).items()},
            self._metadata,
            scores=None
            if self._scores is None
            else {key: self._scores[mine] for mine, key in matched.items()},
        )

    def shuffle(self, seed: int = 0) -> Ticket:
        """A control: each mask permuted within its tensor, start weights kept.

        Every tensor keeps its count of kept weights, at random positions: a
        pattern such as 2:4 is gone, and the ticket no longer names one. (A
        control that has it: `tf_tickets.prune` with ``criterion="random"``
        and the pattern.)

        Reference:
            Frankle et al., "Pruning Neural Networks at Initialization: Why
            Are We Missing the Mark?", ICLR 2021 (layerwise shuffling).
        """
        seed = checks.whole("seed", seed, least=0)
        masks = {
            key: np.random.default_rng((seed, i))
            .permutation(mask.flatten())
            .reshape(mask.shape)
            for i, (key, mask) in enumerate(self._masks.items())
        }
        return Ticket(
            masks,
            self._weights,
            {
                **{k: v for k, v in self._metadata.items() if k != "pattern"},
                "control": "shuffle",
                "control_seed": seed,
            },
        )

    def reinitialize(self, model: keras.Model, seed: int = 0) -> Ticket:
        """A control: the same masks over newly drawn start weights.

        Every weight is drawn again by the initializer of its own layer, with
        a seed that follows from ``seed`` and the weight's position; ``model``
        is only read. Weights whose layer names no initializer keep their
        start value and are listed in ``metadata["not_reinitialized"]``.

        Args:
            model: The model that the ticket belongs to.
            seed: Integer.

        Raises:
            ValueError: If the ticket does not fit the model or no initializer
                is known for a weight that has a mask.
        """
        seed = checks.whole("seed", seed, least=0)
        start = self.weights_for(model) or values_of(named_weights(model))
        masks = self.element_masks(model)
        drawn, unknown = initialization.redraw(model, seed)
        lost = sorted(set(unknown) & set(masks))
        if lost:
            raise ValueError(
                "No initializer is known for these masked weights, so they "
                f"cannot be drawn again. Received: {lost}"
            )
        return Ticket(
            masks,
            {k: drawn.get(k, v) for k, v in start.items()},
            {
                **self._metadata,
                "control": "reinitialize",
                "control_seed": seed,
                "not_reinitialized": unknown,
            },
        )


def enforce_zeros(model: keras.Model, *, filters: Filters = None) -> Ticket:
    """Keep the zeros that the weights of ``model`` have now.

    A model that was loaded, cloned, copied or pickled has its zeros, and no
    masks that keep them: training would fill them. This puts masks where the
    zeros are; a mask that is still enforced is taken as it is.

    Args:
        model: A built Keras model whose prunable weights have zeros.
        filters: As in `tf_tickets.prunable_weights`: where zeros are meant.

    Returns:
        The ticket that is enforced from now on, as `Ticket.from_model` gives
        it. `tf_tickets.release` ends it.

    Raises:
        ValueError: If there is no zero, or nothing that can be pruned.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)])
    >>> tt.prune(model, sparsity=0.75).apply(model)
    >>> copy = keras.models.clone_model(model)
    >>> copy.set_weights(model.get_weights())
    >>> tt.enforce_zeros(copy)
    <Ticket: 16 of 64 weights in 1 tensors, sparsity 0.7500>
    """
    ticket = Ticket.from_model(model, filters=filters)
    if not ticket.sparsity:
        raise ValueError(
            "No prunable weight of the model is zero: there is nothing to "
            f"keep. Received: {ticket!r}"
        )
    empty = [key for key, m in ticket.masks.items() if m.size and not m.any()]
    if empty:
        checks.warn(
            "All weights of these tensors are zero and will stay so; if they "
            "only start at zero, name the others with `filters`. Received: "
            + ", ".join(empty[:8])
        )
    ticket.apply(model, weights="keep")
    return ticket


def check_ticket(ticket: Any) -> None:
    """Raise if ``ticket`` is something else.

    Raises:
        ValueError: Naming the argument.
    """
    if not isinstance(ticket, Ticket):
        raise ValueError(
            "`ticket` must be a tf_tickets.Ticket. "
            f"Received: ticket={ticket!r}"[:500]
        )


def _free_key(key: str, taken: Mapping[str, object]) -> str:
    count, free = 0, key
    while free in taken:
        count += 1
        free = f"{key}#{count}"
    return free
