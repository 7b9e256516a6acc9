"""What every ticket has: masks, weights, scores, and where they came from."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from tf_tickets.version import __version__

Arrays = Mapping[str, np.ndarray]


class Masks:
    """Boolean masks by key, with weights and scores beside them.

    The base of `tf_tickets.Ticket`, whose masks are over weights, and of
    `tf_tickets.structured.ChannelTicket`, whose masks are over channels. It is
    a value: nothing changes it after it is made.

    Args:
        masks: ``{key: boolean array}``, `True` = kept. Arrays of zeros and
            ones are taken too.
        weights: ``{path: array}`` or `None`.
        metadata: JSON values that say where the masks came from.
        scores: ``{key: array}`` or `None`.

    Raises:
        ValueError: If there is no mask, or one holds something else than
            zeros and ones.

    Example:

    >>> masks = Masks({"a": [1, 0, 1, 1]})
    >>> masks.kept, masks.size, masks.density
    (3, 4, 0.75)
    """

    covers: ClassVar[str] = "weights"
    """What an element of a mask stands for."""

    def __init__(
        self,
        masks: Mapping[str, Any],
        weights: Arrays | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        scores: Arrays | None = None,
    ) -> None:
        check_mappings(masks=masks, weights=weights, scores=scores)
        check_mappings(metadata=metadata)
        if not masks:
            raise ValueError(
                f"A ticket needs a mask. Received: masks={masks!r}"
            )
        self._masks = MappingProxyType(
            {str(k): _as_mask(str(k), m) for k, m in masks.items()}
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
        return (self.size - self.kept) / self.size

    @property
    def density(self) -> float:
        """1 − sparsity."""
        return self.kept / self.size

    def densities(self) -> dict[str, float]:
        """``{key: density}`` of each mask."""
        return {
            key: float(np.count_nonzero(m) / m.size) if m.size else 1.0
            for key, m in self._masks.items()
        }

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__}: {self.kept:,} of {self.size:,} "
            f"{self.covers} in {len(self._masks)} tensors, "
            f"sparsity {self.sparsity:.4f}>"
        )

    def hamming_distance(self, other: Masks) -> float:
        """Fraction of the mask positions in which two tickets differ.

        Args:
            other: A ticket of the same kind over the same keys.

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
        mine, theirs = shapes_of(self._masks), shapes_of(other.masks)
        if mine != theirs:
            raise ValueError(
                f"The tickets cover different {self.covers}. Received: "
                f"{sorted(mine.items() ^ theirs.items())}"
            )
        differing = sum(
            int(np.count_nonzero(m != other.masks[k]))
            for k, m in self._masks.items()
        )
        return differing / self.size


def check_mappings(**arguments: Any) -> None:
    """Raise where an argument is neither a mapping nor `None`.

    Raises:
        ValueError: Naming the argument.
    """
    for name, value in arguments.items():
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(
                f"`{name}` must map names to values. "
                f"Received: {name}={value!r}"[:500]
            )


def check_weights_option(weights: str, available: Arrays | None) -> None:
    """Raise unless ``apply(weights=...)`` is possible.

    Raises:
        ValueError: On another word, or `"start"` without start weights.
    """
    if weights not in ("start", "keep"):
        raise ValueError(
            "`weights` must be 'start' or 'keep'. "
            f"Received: weights={weights!r}"
        )
    if weights == "start" and available is None:
        raise ValueError(
            "This ticket has masks and no start weights: apply it with "
            "`weights='keep'`. Received: weights='start'"
        )


def shapes_of(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    """``{key: shape}``."""
    return {key: tuple(array.shape) for key, array in arrays.items()}


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
    if arrays is None:
        return None
    return MappingProxyType(
        {str(k): _read_only(np.asarray(a)) for k, a in arrays.items()}
    )


def _read_only(array: np.ndarray) -> np.ndarray:
    """A copy; an array that nobody can write, another ticket's, is shared."""
    if not array.flags.writeable and array.flags.owndata:
        return array
    copy = np.array(array)
    copy.flags.writeable = False
    return copy
