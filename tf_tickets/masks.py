"""What every ticket has: masks, weights, scores, and where they came from."""

from __future__ import annotations

import abc
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import keras
import numpy as np

from tf_tickets import archive, checks, figures, masking, tables
from tf_tickets.figures import Path
from tf_tickets.selection import match_keys, named_weights
from tf_tickets.version import __version__

Arrays = Mapping[str, np.ndarray]
AnyMasks = TypeVar("AnyMasks", bound="Masks")


class Each(Mapping[str, np.ndarray]):
    """Scores of each weight by its value alone, computed when asked for.

    Args:
        score: From an array to one of its shape, element by element.
        weights: ``{key: array}``; they are held, and not copied.

    Example:

    >>> dict(Each(np.abs, {"kernel": np.array([[-2.0], [1.0]])}))
    {'kernel': array([[2.],
           [1.]])}
    """

    def __init__(
        self, score: Callable[[np.ndarray], np.ndarray], weights: Arrays
    ) -> None:
        self.score = score
        self.weights = dict(weights)

    def __getitem__(self, key: str) -> np.ndarray:
        return _given(self.score(self.weights[key]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


class Bits(Mapping[str, np.ndarray]):
    """Masks of one bit an element, which become arrays when asked for.

    Args:
        masks: ``{key: boolean array}``.

    Example:

    >>> bits = Bits({"kernel": np.eye(2, dtype=bool)})
    >>> bits["kernel"].tolist()
    [[True, False], [False, True]]
    """

    def __init__(self, masks: Arrays) -> None:
        self._packed = {key: np.packbits(mask) for key, mask in masks.items()}
        self._shapes = shapes_of(masks)

    def __getitem__(self, key: str) -> np.ndarray:
        shape = self._shapes[key]
        mask = np.unpackbits(self._packed[key], count=math.prod(shape))
        return _given(mask.view(bool).reshape(shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)


class Masks(abc.ABC):
    """Boolean masks by key, with weights and scores beside them.

    The base of `tf_tickets.Ticket`, whose masks are over weights, and of
    `tf_tickets.structured.ChannelTicket`, whose masks are over channels: they
    say which weights of a model a mask covers. A ticket is a value: nothing
    changes it after it is made.

    Args:
        masks: ``{key: boolean array}``, `True` = kept. Arrays of zeros and
            ones are taken too.
        weights: ``{path: array}`` or `None`.
        metadata: JSON values that say where the masks came from.
        scores: ``{key: array}`` or `None`.

    Raises:
        ValueError: If there is no mask, or one holds something else than
            zeros and ones.
    """

    covers: ClassVar[str]
    """What an element of a mask stands for, in the plural."""

    kind: ClassVar[str]
    """What a file of it is called."""

    def __init__(
        self,
        masks: Mapping[str, Any],
        weights: Arrays | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        scores: Arrays | None = None,
    ) -> None:
        for name, value in (
            ("masks", masks),
            ("weights", weights),
            ("scores", scores),
            ("metadata", metadata),
        ):
            checks.mapping(name, value)
        if not masks:
            raise ValueError(
                f"A ticket needs a mask. Received: masks={masks!r}"
            )
        self._masks: Arrays = (
            masks
            if isinstance(masks, Bits)
            else MappingProxyType(
                {str(k): _as_mask(str(k), m) for k, m in masks.items()}
            )
        )
        self._weights = _as_arrays(weights)
        self._scores = _as_arrays(scores)
        self._metadata = {"tf_tickets": __version__, **(metadata or {})}

    @property
    def masks(self) -> Arrays:
        """``{key: boolean array}``, read-only; `True` = kept."""
        return self._masks

    @property
    def weights(self) -> Arrays | None:
        """``{path: array}``, read-only: the unmasked start weights."""
        return self._weights

    @property
    def scores(self) -> Arrays | None:
        """``{key: array}``, read-only: what the masks were drawn by."""
        return self._scores

    @property
    def metadata(self) -> dict[str, Any]:
        """Where the ticket came from, as JSON values (a copy)."""
        return dict(self._metadata)

    @property
    def size(self) -> int:
        """How many elements the masks cover."""
        return sum(m.size for m in self._masks.values())

    @property
    def kept(self) -> int:
        """How many elements the masks keep."""
        return sum(int(np.count_nonzero(m)) for m in self._masks.values())

    @property
    def sparsity(self) -> float:
        """Fraction that is pruned, in [0, 1]."""
        return (self.size - self.kept) / self.size if self.size else 0.0

    @property
    def density(self) -> float:
        """1 − sparsity."""
        return self.kept / self.size if self.size else 1.0

    def densities(self) -> dict[str, float]:
        """``{key: density}`` of each mask."""
        return {
            key: float(np.count_nonzero(m) / m.size) if m.size else 1.0
            for key, m in self._masks.items()
        }

    def plot(self, path: Path | None = None, *, axes: Any = None) -> Any:
        """Draw the density of each mask as a bar; see `tf_tickets.figures`.

        A dashed line marks the density of all of them together.

        Args:
            path: An image file to write, or `None`.
            axes: Matplotlib axes to draw on; a new figure if `None`.

        Returns:
            The axes.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        axes = figures.bars(
            self.densities(),
            f"density, {self.kept:,} of {self.size:,} {self.covers} kept",
            axes=axes,
        )
        axes.axvline(
            self.density,
            color="k",
            ls="--",
            lw=1,
            zorder=0,
            label=f"all together: {self.density:.3g}",
        )
        axes.legend(fontsize=8)
        figures.save(axes.figure, path)
        return axes

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied: plain dictionaries, not views of them."""
        return {
            name: dict(value)
            if isinstance(value, Mapping) and not isinstance(value, Bits | Each)
            else value
            for name, value in self.__dict__.items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name in ("_masks", "_weights", "_scores"):
            self.__dict__[name] = _as_arrays(state[name])

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__}: {self.kept:,} of {self.size:,} "
            f"{self.covers} in {len(self._masks)} tensors, "
            f"sparsity {self.sparsity:.4f}>"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: the density of each mask, and of all."""
        densities = self.densities()
        rows = [
            (key, "x".join(map(str, m.shape)), f"{int(m.sum()):,}", f"{d:.4f}")
            for (key, m), d in zip(
                self._masks.items(), densities.values(), strict=True
            )
        ]
        total = ("all together", f"{self.size:,}", f"{self.kept:,}")
        return tables.as_html(
            [
                (self.covers, "shape", "kept", "density"),
                *rows,
                (*total, f"{self.density:.4f}"),
            ],
            caption=repr(self).strip("<>"),
            notes=[f"{key}: {value}" for key, value in self._metadata.items()],
            shares=[*densities.values(), self.density],
        )

    def hamming_distance(self, other: Masks) -> float:
        """Fraction of the mask positions in which two tickets differ.

        Args:
            other: A ticket of the same kind over the same weights. Layers may
                have other numbers, and models other names, as after loading:
                then the whole lists are matched, as `apply` does.

        Returns:
            A number in [0, 1]; 0 for equal masks.

        Raises:
            ValueError: If the tickets cover different weights or channels.
        """
        if not isinstance(other, type(self)):
            raise ValueError(
                f"`other` must be a {type(self).__name__}. "
                f"Received: other={other!r}"[:500]
            )
        keys = keys_between(self, other, self.covers)
        differing = sum(
            int(np.count_nonzero(m != other.masks[keys[k]]))
            for k, m in self._masks.items()
        )
        return differing / self.size if self.size else 0.0

    @abc.abstractmethod
    def element_masks(self, model: keras.Model) -> dict[str, np.ndarray]:
        """``{key of a weight of model: mask of its shape}``.

        Raises:
            ValueError: If the ticket is of another architecture, listing every
                mismatch.
        """

    def weights_for(self, model: keras.Model) -> dict[str, np.ndarray]:
        """The start weights by the keys of ``model``; empty without any.

        Raises:
            ValueError: If the ticket is of another architecture, listing every
                mismatch.
        """
        if self._weights is None:
            return {}
        keys = self._aligned(named_weights(model), self._weights)
        return {keys[k]: value for k, value in self._weights.items()}

    def _aligned(
        self, named: Mapping[str, keras.Variable], wanted: Iterable[str]
    ) -> dict[str, str]:
        """``{key here: key in the model}`` by the weights the ticket has."""
        listing = shapes_of(self._weights or {})
        # Weights for the masks alone were put together by hand: they are no
        # list of a model, and their paths are all that there is to go by.
        by_name = listing.keys() <= self._masks.keys()
        return match_keys(listing, named, wanted, by_name=by_name)

    def apply(
        self, model: keras.Model, *, weights: Literal["start", "keep"] = "start"
    ) -> None:
        """Put the ticket into ``model`` and keep its zeros at zero.

        Afterwards every training step of ``model.fit``, and of a custom loop
        that calls ``optimizer.apply``, leaves what is pruned at exactly zero,
        until `tf_tickets.release`. Only weights change: compile the model
        anew, or restore a `tf_tickets.Snapshot`, if its optimizer should
        forget earlier training. Other models that hold some of the weights
        keep the zeros too. A step that you traced yourself with
        ``tf.function`` before this call must be traced again.

        The model has this ticket's masks then and no others: a weight that an
        earlier ticket masked and this one does not cover may change again.

        Args:
            model: A built Keras model of the same architecture. Layer numbers
                may differ: then weights are matched by order.
            weights: `"start"` assigns mask ⊙ the ticket's start weights (all
                weights, biases and statistics included); `"keep"` masks the
                weights that the model has.

        Raises:
            ValueError: If the ticket does not fit, listing every mismatch, or
                has no start weights to assign. The model is unchanged then.
        """
        checks.choice("weights", weights, ("start", "keep"))
        if weights == "start" and self._weights is None:
            raise ValueError(
                "This ticket has masks and no start weights: apply it with "
                "`weights='keep'`. Received: weights='start'"
            )
        masks = self.element_masks(model)
        if weights == "start":
            named = named_weights(model)
            for key, value in self.weights_for(model).items():
                named[key].assign(value)
        masking.enforce(model, masks, others="release")

    def save(
        self, path: str | os.PathLike[str], *, overwrite: bool = True
    ) -> None:
        """Write the ticket to one safetensors file.

        Masks take one bit an element. The file appears whole or not at all.

        Args:
            path: The file, used as given, whatever its ending.
            overwrite: Whether to replace a file that is there, which is the
                default.

        Raises:
            FileExistsError: If ``path`` exists and ``overwrite`` is false.
            OSError: If it cannot be written; an old file stays as it was.
        """
        metadata, scores = self._metadata, self._scores
        if _are_magnitudes(scores, self._weights):
            # As they are held: to be computed from the weights.
            metadata, scores = {**metadata, _SCORES: "magnitude"}, None
        parts = {
            "masks": self._masks,
            "weights": self._weights,
            "scores": scores,
        }
        archive.write(path, self.kind, metadata, parts, overwrite=overwrite)

    @classmethod
    def load(cls: type[AnyMasks], path: str | os.PathLike[str]) -> AnyMasks:
        """Read a ticket that `save` wrote.

        Args:
            path: The file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is truncated, damaged, of a newer format
                or not such a ticket.
        """
        with archive.reading(path, cls.kind) as (metadata, parts):
            scores = metadata.pop(_SCORES, None)
            loaded = cls(
                parts["masks"] or {},
                parts["weights"],
                metadata,
                scores=parts["scores"],
            )
            if scores is not None:
                if scores != "magnitude" or loaded._weights is None:
                    raise ValueError(f"it has the scores {scores!r} of nothing")
                loaded._scores = Each(
                    np.abs, {key: loaded._weights[key] for key in loaded._masks}
                )
            return loaded


# What a file calls scores that are not in it.
_SCORES = "scores of the weights"


def _are_magnitudes(scores: Arrays | None, weights: Arrays | None) -> bool:
    """Whether scores are those of just these weights."""
    return (
        isinstance(scores, Each)
        and scores.score is np.abs
        and weights is not None
        and all(weights.get(k) is one for k, one in scores.weights.items())
    )


def shapes_of(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    """``{key: shape}``."""
    return {key: tuple(array.shape) for key, array in arrays.items()}


class HasMasks(Protocol):
    """A ticket over weights or over channels."""

    @property
    def masks(self) -> Mapping[str, np.ndarray]: ...


def keys_between(
    one: HasMasks, other: HasMasks, covers: str = "weights"
) -> dict[str, str]:
    """``{key of a mask of one: key of that mask in other}``.

    Args:
        one: A ticket.
        other: A ticket.
        covers: What their masks are over, for the error.

    Raises:
        ValueError: If they do not cover the same.
    """
    mine, theirs = shapes_of(one.masks), shapes_of(other.masks)
    if mine == theirs:
        return {key: key for key in mine}
    lists = [getattr(ticket, "weights", None) or {} for ticket in (one, other)]
    if any(
        not listing.keys() >= ticket.masks.keys()
        for listing, ticket in zip(lists, (one, other), strict=True)
    ):
        lists = [one.masks, other.masks]
    try:
        keys = match_keys(shapes_of(lists[0]), lists[1], mine)
    except ValueError:
        keys = {}
    if {keys.get(key): shape for key, shape in mine.items()} != theirs:
        raise ValueError(
            f"The tickets cover different {covers}. Received: "
            f"{sorted(mine.items() ^ theirs.items())[:6]}"
        )
    return keys


def _as_mask(key: str, mask: Any) -> np.ndarray:
    array = np.asarray(mask)
    if array.dtype != bool:
        if not np.isin(array, (0, 1)).all():
            raise ValueError(
                "A mask holds zeros and ones only. Received: "
                f"{key} with values such as {np.unique(array)[:4]}"
            )
        array = array.astype(bool)
    return _read_only(array)


def _as_arrays(arrays: Arrays | None) -> Arrays | None:
    if arrays is None or isinstance(arrays, Bits | Each):
        return arrays
    return MappingProxyType(
        {str(k): _read_only(np.asarray(a)) for k, a in arrays.items()}
    )


def hold_as_bits(ticket: Masks) -> None:
    """Let the masks of a ticket take an eighth of the memory.

    They are the same, and become arrays whenever they are asked for: for
    tickets that are kept, as those of earlier rounds, and seldom used.

    Args:
        ticket: A ticket.
    """
    ticket._masks = Bits(ticket._masks)


def given(arrays: Arrays) -> dict[str, np.ndarray]:
    """Arrays that their maker gives away: a ticket holds them, not copies.

    Args:
        arrays: ``{key: array}``, which nobody can write any more.

    Example:

    >>> masks = given({"kernel": np.eye(2, dtype=bool)})
    >>> ticket_holds = _read_only(masks["kernel"])
    >>> ticket_holds is masks["kernel"]
    True
    """
    return {key: _given(array) for key, array in arrays.items()}


def _given(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _read_only(array: np.ndarray) -> np.ndarray:
    """A copy; an array that nobody can write, another ticket's, is shared."""
    base: Any = array
    while isinstance(base, np.ndarray) and not base.flags.writeable:
        if base.flags.owndata:
            return array
        base = base.base
    if isinstance(base, memoryview) and isinstance(base.obj, bytearray):
        return array  # what was read from a file
    return _given(np.array(array))
