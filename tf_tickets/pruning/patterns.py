"""Patterns: which weights are kept or pruned together.

A pattern sees every weight as a matrix, inputs × outputs, by what the table of
layer kinds knows of its layer (`tf_tickets.network.kinds`):

==================  ======================  ====================
layer               rows                    columns
==================  ======================  ====================
Dense, recurrent    inputs                  units
convolution         window × input channel  filters
... transposed      window × input channel  filters
... depthwise       window                  channel × multiplier
EinsumDense         contracted axes         axes of the output
Embedding           tokens                  dimensions
any other           all axes but the last   the last axis
==================  ======================  ====================

There are two sorts of patterns. One divides the matrix into groups that are
kept or pruned whole: blocks ``(a, b)`` of a rows and b columns, ``"rows"``,
``"columns"``, or a callable ``(rows, columns) -> array`` that gives every
weight the number of its group. The other, ``"N:M"``, keeps N of every M
consecutive weights of a column.

A pattern decides what is ranked, and `tf_tickets.pruning.topk.select` ranks,
as it does without one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import keras
import numpy as np

from tf_tickets import checks
from tf_tickets.network.kinds import output_axes
from tf_tickets.pruning import scopes
from tf_tickets.pruning.topk import Units
from tf_tickets.selection import named_weights, owners

Masks = Mapping[str, np.ndarray]
MatrixShape = tuple[int, int]
Numbering = Callable[[MatrixShape], Any]
Pooling = Literal["mean", "max"]


@dataclasses.dataclass(frozen=True)
class NofM:
    """The pattern ``"N:M"``.

    Attributes:
        keep: N.
        of: M.
    """

    keep: int
    of: int

    @property
    def sparsity(self) -> float:
        """What the pattern prunes where M divides the rows."""
        return 1 - self.keep / self.of


@dataclasses.dataclass(frozen=True)
class Grouped:
    """The pattern that `grouped` returns.

    Attributes:
        number: ``(rows, columns) -> array``: the group of every weight.
        score: How the scores of a group become one.
        name: What it is called in a ticket.
    """

    number: Numbering
    score: Pooling
    name: str


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The pattern ``(height, width)``; a block at an edge may be smaller.

    Attributes:
        height: Rows of a block; `None` for all.
        width: Columns of a block; `None` for all.
    """

    height: int | None
    width: int | None

    def __call__(self, shape: MatrixShape) -> np.ndarray:
        down, across = self.starts(shape)
        rows = np.repeat(np.arange(down.size), np.diff(down, append=shape[0]))
        columns = np.repeat(
            np.arange(across.size), np.diff(across, append=shape[1])
        )
        return rows[:, None] * across.size + columns

    def starts(self, shape: MatrixShape) -> tuple[np.ndarray, np.ndarray]:
        """The first row and the first column of each block."""
        return (
            np.arange(0, shape[0], self.height or max(shape[0], 1)),
            np.arange(0, shape[1], self.width or max(shape[1], 1)),
        )


PATTERNS: dict[str, Numbering] = {
    "rows": Blocks(1, None),
    "columns": Blocks(None, 1),
}
"""``{name: pattern}``, yours too: what `tf_tickets.prune` takes as ``pattern``.

A pattern is called as ``pattern(rows, columns)`` and gives every weight of a
matrix the number of its group. N:M needs no entry.
"""

Pattern = str | tuple[int, int] | Numbering | NofM | Grouped


def grouped(
    pattern: tuple[int, int] | str | Numbering, *, score: Pooling = "mean"
) -> Grouped:
    """A pattern of whole groups that says how a group is scored.

    Args:
        pattern: ``(height, width)``, a name in `PATTERNS`, or a callable
            ``(rows, columns) -> array`` that gives every weight of a matrix
            the number of its group.
        score: `"mean"` or `"max"` of the scores of the weights in a group
            that are not pruned yet. A pattern that is given as it is takes
            the mean.

    Raises:
        ValueError: If there is no such pattern or way to score.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> blocks = grouped((4, 1), score="max")
    >>> tt.prune(model, 0.5, pattern=blocks).kept
    16
    """
    checks.choice("score", score, ("mean", "max"))
    found = get(pattern)
    if not isinstance(found, Grouped):
        raise ValueError(
            "N:M keeps single weights and has no groups to score. "
            f"Received: pattern={pattern!r}, score={score!r}"
        )
    plain = found.name.removesuffix(f", {found.score}")
    name = plain if score == "mean" else f"{plain}, {score}"
    return dataclasses.replace(found, score=score, name=name)


def get(pattern: Any) -> NofM | Grouped | None:
    """The pattern that was meant; `None` for none.

    Raises:
        ValueError: If it is none.

    Example:

    >>> get("2:4")
    NofM(keep=2, of=4)
    """
    if pattern is None or isinstance(pattern, NofM | Grouped):
        return pattern
    if isinstance(pattern, str):
        if pattern in PATTERNS:
            return Grouped(PATTERNS[pattern], "mean", pattern)
        match = re.fullmatch(r"(\d+):(\d+)", pattern, re.ASCII)
        if match is not None:
            keep, of = int(match[1]), int(match[2])
            if not 0 < keep < of:
                raise ValueError(
                    "N:M keeps N of every M weights, at least one and fewer "
                    f"than M. Received: pattern={pattern!r}"
                )
            return NofM(keep, of)
    elif isinstance(pattern, tuple | list):
        if len(pattern) == 2:
            height, width = (checks.whole("pattern", side) for side in pattern)
            return Grouped(
                Blocks(height, width), "mean", f"({height}, {width})"
            )
    elif callable(pattern):
        return Grouped(pattern, "mean", checks.word_for(pattern))
    raise ValueError(
        f"`pattern` must be 'N:M', one of {sorted(PATTERNS)}, a block "
        "(height, width) or a callable (rows, columns) -> group numbers. "
        f"Received: pattern={pattern!r}"
    )


def name_of(pattern: Any) -> str | None:
    """A pattern as a word, for tickets and for the identity of a run.

    Example:

    >>> name_of("2:4"), name_of((4, 1)), name_of(grouped("rows", score="max"))
    ('2:4', '(4, 1)', 'rows, max')
    """
    found = get(pattern)
    if isinstance(found, NofM):
        return f"{found.keep}:{found.of}"
    return None if found is None else found.name


def sparsity_for(
    pattern: Any, sparsity: float | None, scope: scopes.Scope
) -> float | None:
    """The sparsity to ask for, which N:M says itself.

    Args:
        pattern: As in `get`.
        sparsity: What was asked for, or `None`.
        scope: How it is spread.

    Returns:
        ``sparsity``; for N:M 1 − N / M, unless the scope is a mapping.

    Raises:
        ValueError: If the sparsity or the scope contradicts N:M.
    """
    found = get(pattern)
    if not isinstance(found, NofM):
        return sparsity
    own = found.sparsity
    if isinstance(scope, Mapping):
        asked = {*scope.values()} | ({sparsity} - {None})
    else:
        scopes.check_scope(scope)
        inner = scope.scope if isinstance(scope, scopes.AtLeast) else scope
        if inner not in ("global", "layer"):
            raise ValueError(
                f"The pattern {name_of(found)!r} gives every tensor the "
                "sparsity that it has itself: take scope='layer', or a "
                "mapping that names the tensors. "
                f"Received: scope={scope!r}"
            )
        asked = {sparsity} - {None}
    for value in asked:
        if abs(checks.sparsity(value) - own) > 1e-9:
            raise ValueError(
                f"The pattern {name_of(found)!r} has the sparsity {own:g}: "
                f"ask for that, or for none. Received: sparsity={value!r}"
            )
    return sparsity if isinstance(scope, Mapping) else own


class Layout:
    """A pattern on the weights of one model.

    Args:
        pattern: As in `get`; with `None` there are matrices and no units.
        outputs: ``{path: axes}``: the axes of each weight that make the
            columns of its matrix.
    """

    def __init__(
        self, pattern: Any, outputs: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.pattern = get(pattern)
        self.outputs = dict(outputs)

    def matrix(self, path: str, array: np.ndarray) -> np.ndarray:
        """The weight of this path, or what has its shape, as a matrix."""
        order = self._order(path, array.ndim)
        height = array.ndim - len(self.outputs[path])
        turned = array.transpose(order)
        size = int(np.prod(turned.shape[:height], dtype=np.int64))
        return turned.reshape(size, array.size // max(size, 1))

    def tensor(
        self, path: str, matrix: np.ndarray, shape: tuple[int, ...]
    ) -> np.ndarray:
        """The inverse of `matrix`."""
        order = self._order(path, len(shape))
        turned = matrix.reshape([shape[axis] for axis in order])
        return turned.transpose(np.argsort(order))

    def units(self, path: str, scores: np.ndarray, active: np.ndarray) -> Units:
        """What is ranked of one weight, as `select` takes it."""
        ranked, allowed = self.matrix(path, scores), self.matrix(path, active)
        if isinstance(self.pattern, NofM):
            return Units(
                ranked.ravel(),
                allowed.ravel(),
                lambda kept: self.tensor(path, kept, scores.shape),
                _ranks(ranked, allowed, self.pattern.of).ravel(),
            )
        groups = self._groups(ranked.shape)
        sizes = groups.pooled(allowed, np.add, np.int64)
        if getattr(self.pattern, "score", "mean") == "max":
            low = np.where(allowed, ranked, -np.inf)
            pooled = groups.pooled(low, np.maximum, np.float64)
        else:
            sums = ranked if allowed.all() else np.where(allowed, ranked, 0)
            with np.errstate(invalid="ignore"):  # inf - inf: told by `select`
                pooled = groups.pooled(sums, np.add, np.float64)
                pooled /= np.maximum(sizes, 1)
        return Units(
            pooled,
            sizes,
            lambda kept: (
                self.tensor(path, groups.spread(kept), scores.shape) & active
            ),
        )

    def pools(
        self, scope: scopes.Scope, sparsity: float | None, masks: Masks
    ) -> list[scopes.Pool]:
        """The budget, as `tf_tickets.pruning.scopes.pools` spreads it.

        Whole groups may have fallen short of an earlier budget by less than
        one group, so that what is left is no error here. N:M has a floor: a
        group keeps N, or all that it has left.

        Raises:
            ValueError: As there; and if a floor of the scope is beyond N:M.
        """
        shapes = {path: mask.shape for path, mask in masks.items()}
        left = {p: int(np.count_nonzero(mask)) for p, mask in masks.items()}
        if isinstance(self.pattern, NofM):
            return self._tightened(scope, sparsity, masks, left)
        room = left
        if isinstance(scope, Mapping):
            room = {
                path: min(left[path] + self.slack({path: mask}), mask.size)
                for path, mask in masks.items()
            }
        elif sparsity is not None:
            size, have = sum(m.size for m in masks.values()), sum(left.values())
            short = scopes.kept_count(checks.sparsity(sparsity), size) - have
            if 0 < short <= self.slack(masks):
                sparsity = 1 - have / size
        return [
            pool._replace(keep=min(pool.keep, sum(left[p] for p in pool.paths)))
            for pool in scopes.pools(scope, shapes, sparsity, room)
        ]

    def floor(self, masks: Masks) -> int:
        """How many weights the pattern keeps whatever is asked."""
        return sum(self._floors(masks).values())

    def slack(self, masks: Masks) -> int:
        """By how many weights, at most, whole groups may miss a budget."""
        if isinstance(self.pattern, NofM):
            return 0
        total = 0
        for path, mask in masks.items():
            if not mask.all():
                matrix = np.ones_like(self.matrix(path, mask))
                groups = self._groups(matrix.shape)
                sizes = groups.pooled(matrix, np.add, np.int64)
                total += int(sizes.max(initial=1)) - 1
        return total

    def _floors(self, masks: Masks) -> dict[str, int]:
        if not isinstance(self.pattern, NofM):
            return dict.fromkeys(masks, 0)
        keep, of = self.pattern.keep, self.pattern.of
        floors = {}
        for path, mask in masks.items():
            inside = _in_groups(self.matrix(path, mask), of).sum(1)
            floors[path] = int(np.minimum(inside, keep).sum())
        return floors

    def _tightened(
        self,
        scope: scopes.Scope,
        sparsity: float | None,
        masks: Masks,
        left: Mapping[str, int],
    ) -> list[scopes.Pool]:
        floors = self._floors(masks)
        if isinstance(scope, scopes.AtLeast):
            low = [
                path
                for path, floor in floors.items()
                if floor < min(scope.weights, left[path])
            ]
            if low:
                raise ValueError(
                    f"The pattern {name_of(self.pattern)!r} keeps fewer than "
                    f"{scope.weights} weights in some tensors. Received: "
                    f"at_least({scope.weights}), {low[:5]}"
                )
            scope = scope.scope
        shapes = {path: mask.shape for path, mask in masks.items()}
        sizes = {path: mask.size for path, mask in masks.items()}
        own = getattr(self.pattern, "sparsity", 0.0)
        tightened = []
        for pool in scopes.pools(scope, shapes, sparsity, sizes):
            size, least, most = (
                sum(counts[p] for p in pool.paths)
                for counts in (sizes, floors, left)
            )
            keep = min(max(pool.keep, least), most)
            if pool.keep <= scopes.kept_count(own, size):
                keep = least  # the whole pattern, whatever was pruned before
            tightened.append(pool._replace(keep=keep))
        return tightened

    def _groups(self, shape: MatrixShape) -> _Tiles | _Numbered:
        number = getattr(self.pattern, "number", None)
        if isinstance(number, Blocks):
            return _Tiles(number, shape)
        return _Numbered(np.asarray(number and number(shape)), shape)

    def _order(self, path: str, rank: int) -> tuple[int, ...]:
        outs = self.outputs[path]
        return (*(axis for axis in range(rank) if axis not in outs), *outs)


class _Tiles:
    """Groups that lie as blocks: added up without a look-up."""

    def __init__(self, blocks: Blocks, shape: MatrixShape) -> None:
        self.shape = shape
        self.down, self.across = blocks.starts(shape)

    def pooled(self, matrix: np.ndarray, how: np.ufunc, dtype: Any) -> Any:
        """One number for each group."""
        bands = how.reduceat(matrix, self.down, axis=0, dtype=dtype)
        return how.reduceat(bands, self.across, axis=1).ravel()

    def spread(self, kept: np.ndarray) -> np.ndarray:
        """The mask of the matrix of that of the groups."""
        bands = kept.reshape(self.down.size, self.across.size)
        for axis, starts in enumerate((self.down, self.across)):
            sizes = np.diff(starts, append=self.shape[axis])
            bands = np.repeat(bands, sizes, axis=axis)
        return bands


class _Numbered:
    """Groups that lie anywhere, by the number of each weight's group."""

    def __init__(self, groups: np.ndarray, shape: MatrixShape) -> None:
        if groups.shape != shape or groups.dtype.kind not in "iu":
            raise ValueError(
                "A pattern must give every weight the number of its group. "
                f"Received: an array of {groups.dtype} and shape "
                f"{groups.shape} for a matrix of shape {shape}"
            )
        _, inverse = np.unique(groups, return_inverse=True)
        self.groups = inverse.reshape(shape)
        self.count = int(self.groups.max(initial=-1)) + 1

    def pooled(self, matrix: np.ndarray, how: np.ufunc, dtype: Any) -> Any:
        """One number for each group."""
        start = 0 if how is np.add else -np.inf
        found = np.full(self.count, start, dtype)
        how.at(found, self.groups.ravel(), matrix.ravel())
        return found

    def spread(self, kept: np.ndarray) -> np.ndarray:
        """The mask of the matrix of that of the groups."""
        return kept[self.groups]


def matrices_of(
    model: keras.Model, paths: Iterable[str], pattern: Any = None
) -> Layout:
    """The weights of these paths as matrices, inputs × outputs.

    Args:
        model: Which has the weights.
        paths: Keys of weights.
        pattern: As in `get`; `None` for the matrices alone.
    """
    weights, owner = named_weights(model), owners(model)
    return Layout(
        pattern,
        {
            path: output_axes(owner.get(id(weights[path])), weights[path])
            for path in paths
        },
    )


def layout_on(model: keras.Model, pattern: Any, masks: Masks) -> Layout | None:
    """A pattern on the weights that ``masks`` name; `None` without one.

    Args:
        model: Which has the weights.
        pattern: As in `get`.
        masks: ``{path: boolean array}``.

    Raises:
        ValueError: If there is no such pattern, or a weight has no two
            weights that it could choose between.
    """
    if pattern is None:
        return None
    layout = matrices_of(model, masks, pattern)
    for path, mask in masks.items():
        shape = layout.matrix(path, mask).shape
        found = layout.pattern
        if isinstance(found, NofM):
            if shape[0] <= found.keep:
                raise ValueError(
                    f"The pattern {name_of(found)!r} prunes nothing of "
                    f"{path}, which has {shape[0]} inputs for each of "
                    f"{shape[1]} outputs: leave it out with `filters`. "
                    f"Received: a weight of shape {mask.shape}"
                )
        else:
            layout._groups(shape)  # what a callable gives is met here
    return layout


def best_of_each(
    scores: np.ndarray,
    allowed: np.ndarray,
    pattern: NofM,
    keep: np.ndarray | None = None,
) -> np.ndarray:
    """Mask of a matrix that keeps N of every M rows of each column.

    Args:
        scores: Of the matrix; of equal ones the first is kept.
        allowed: What may be kept at all.
        pattern: N and M.
        keep: How many of each group instead of N, as `counts_in_groups`
            counts.

    Example:

    >>> column = np.array([[1.0], [3.0], [2.0], [0.0]])
    >>> best_of_each(column, column >= 0, NofM(1, 2)).ravel().tolist()
    [False, True, True, False]
    """
    most: Any = pattern.keep
    if keep is not None:
        most = np.repeat(keep, pattern.of, axis=0)[: len(scores)]
    return np.asarray((_ranks(scores, allowed, pattern.of) < most) & allowed)


def counts_in_groups(mask: np.ndarray, of: int) -> np.ndarray:
    """How many of every M rows a matrix keeps, in each column.

    Example:

    >>> counts_in_groups(np.array([[True], [True], [True]]), 2).ravel().tolist()
    [2, 1]
    """
    return np.asarray(_in_groups(mask, of).sum(1))


def _in_groups(matrix: np.ndarray, of: int) -> np.ndarray:
    """``(groups, of, columns)``; a ragged last group is filled with zeros."""
    short = -matrix.shape[0] % of
    if short:
        matrix = np.pad(matrix, ((0, short), (0, 0)))
    return matrix.reshape(matrix.shape[0] // of, of, matrix.shape[1])


def _ranks(scores: np.ndarray, allowed: np.ndarray, of: int) -> np.ndarray:
    """How many allowed weights of its group come before each weight."""
    s, a = _in_groups(scores, of), _in_groups(allowed, of)
    ranks = np.zeros(s.shape, np.int16 if of < 1 << 15 else np.int64)
    for i in range(of):
        for j in range(of):
            if i != j:  # of equal ones, the first comes first
                mine, other = s[:, i], s[:, j]
                ahead = other >= mine if j < i else other > mine
                ranks[:, i] += ahead & a[:, j]
    return ranks.reshape(-1, scores.shape[1])[: scores.shape[0]]
