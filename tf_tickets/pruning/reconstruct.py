"""Prune a trained network in one go, and let what is left make up for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import checks, progress
from tf_tickets.loss.batches import Batch
from tf_tickets.loss.batches import batches as read
from tf_tickets.loss.objective import call, substituted
from tf_tickets.network.inputs import (
    Site,
    has_value,
    sites_of,
    unreadable,
    watched,
)
from tf_tickets.pruning import patterns, scopes
from tf_tickets.pruning.prune import (
    budget,
    check_finite,
    current_masks,
    describe,
    warn_of_collapse,
)
from tf_tickets.pruning.topk import keep_largest, select, single_weights
from tf_tickets.selection import Filters, named_weights, values_of
from tf_tickets.ticket import Ticket

_NEEDED_BY = "reconstruct"
# (first row, weights of some rows, the diagonal of H⁻¹ there) -> mask
_Choose = Callable[[int, np.ndarray, np.ndarray], np.ndarray]


def reconstruct(
    model: keras.Model,
    sparsity: float | None = None,
    *,
    data: Any,
    scope: scopes.Scope = "layer",
    pattern: patterns.Pattern | None = None,
    filters: Filters = None,
    damping: float = 0.01,
    block: int = 128,
    refine: int = 10,
    batch_size: int = 32,
    batches: int | None = None,
    verbose: progress.Verbosity = "auto",
) -> Ticket:
    r"""Prune layer by layer so that each layer's outputs stay what they were.

    For trained networks that are not trained again. For each kernel $W$ with
    inputs $X$ over the data, in the order in which the model calls its layers
    and with the layers before pruned already, weights are pruned row by row.
    What a row loses is made up for by the rows that are still to come: with
    $H = X^T X + \lambda I$, the upper Cholesky factor $U$ of $H^{-1}$ and the
    row $i$ of $W$,

    $$e = (W_i - m_i \odot W_i) / U_{ii}, \qquad
    W_j \leftarrow W_j - U_{ij} e \quad (j > i).$$

    The masks $m$ keep the largest $w^2 / U_{ii}^2$, chosen block by block of
    rows, all outputs together; N of each M as soon as the M rows are reached.
    Whole groups (blocks, rows, columns, callables) are chosen before the first
    row, by $w^2 / (H^{-1})_{ii}$.

    The model is only read: `Ticket.apply` puts masks and new weights in force.
    Its memory is that of the data, of one layer's inputs of a batch, and of one
    layer's $H$; layers that multiply the same numbers, as the projections of an
    attention do, share one.

    Args:
        model: A built, trained model of any kind. It need not be compiled.
        sparsity: Fraction of the prunable weights that the masks zero, in
            [0, 1); exact to the weight. `None` if ``scope`` is a mapping, or
            for a pattern N:M.
        data: What to calibrate on, some hundred examples like those that the
            model will see; see `tf_tickets.loss.batches.batches`. Labels are
            not needed. It is read once and kept.
        scope: How the budget is spread, as in `tf_tickets.prune`, but not
            `"global"`: one layer is pruned before the next is looked at.
            `"layer"` by default, as published.
        pattern: As in `tf_tickets.prune`; `None` by default.
        filters: As in `tf_tickets.prunable_weights`; `None` for every kernel.
        damping: $\lambda$ as a part of the mean of the diagonal of
            $X^T X$; 0.01 by default, as published.
        block: Rows that are chosen from together; 128 by default, as
            published.
        refine: Steps of conjugate gradients that bring the kept weights from
            where the rows have left them towards the least squared error that
            they can have; 10 by default, which is close to it. 0 is as
            published.
        batch_size: Samples in a batch where arrays are cut into batches; 32 by
            default.
        batches: Read at most this many batches; `None` for all.
        verbose: `"auto"`, the default, shows a bar of the layers once this has
            taken a second; 1 at once; 2 one line at the end; 0 nothing.

    Returns:
        A ticket of the masks and of all weights, the new ones among them.
        Its ``metadata["errors"]`` has for each kernel, in the order in which
        they were pruned, $\lVert X W - X \hat W \rVert^2 / \lVert X W
        \rVert^2$, the error of what the layer makes of its inputs:
        `"magnitude"`, had as many of the smallest weights been pruned instead;
        `"masked"`, under the masks of the ticket with the weights as they
        were; `"reconstructed"`, with the new ones.

    A mask that leaves a tensor without any weight is warned of.

    Raises:
        ValueError: On an option out of range, a sparsity below the present
            one, no data, or data that is not finite; if it cannot be seen what
            enters a layer, because it is never called, called inside a loop
            (recurrent layers), or of a kind without a rule.

    Reference:
        Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be
        Accurately Pruned in One-Shot", ICML 2023, algorithm 1; Hassibi and
        Stork, "Second order derivatives for network pruning: Optimal Brain
        Surgeon", NeurIPS 1992. Unlike there, a kept weight whose input is
        always zero in the data keeps its value.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> _ = model.layers[0].kernel.assign([[1.0], [2.0]])
    >>> x = np.array([[1.0, 1.0], [2.0, 2.0], [1.0, 1.1]])
    >>> ticket = tt.pruning.reconstruct(model, 0.5, data=x)
    >>> ticket.apply(model)
    >>> model.layers[0].kernel.numpy().round(1).tolist()
    [[0.0], [3.0]]
    """
    damping = checks.number("damping", damping, "(0, inf)")
    block = checks.whole("block", block)
    refine = checks.whole("refine", refine, least=0)
    sparsity = patterns.sparsity_for(pattern, sparsity, scope)
    check_finite(model, filters)
    masks = current_masks(model, filters)
    layout = patterns.layout_on(model, pattern, masks)
    keep = _budget_of_each(sparsity, scope, masks, layout)
    work = _Work(
        model,
        sites_of(model, masks, _NEEDED_BY),
        list(
            read(
                data,
                needed_by=_NEEDED_BY,
                batch_size=batch_size,
                limit=batches,
                labels=False,
            )
        ),
    )
    solve = _Solver(
        layout or patterns.matrices_of(model, masks), damping, block, refine
    )
    stages = list(work.stages())
    drawn: dict[str, np.ndarray] = {}
    fresh: dict[str, np.ndarray] = {}
    errors: dict[str, dict[str, float]] = {}
    with (
        progress.shown(verbose),
        progress.bar(
            "Reconstructing layers", len(stages), unit="layer"
        ) as step,
    ):
        for stage in stages:
            hessian = work.hessian(stage)
            for site in stage:
                path = site.path
                [weight] = values_of({path: site.kernel}).values()
                drawn[path], fresh[path], errors[path] = solve(
                    path, weight, hessian, masks[path], keep[path]
                )
                work.fresh[path] = tf.constant(fresh[path])
            step()
    warn_of_collapse(drawn, masks)
    return Ticket(
        {path: drawn[path] for path in masks},
        {**values_of(named_weights(model)), **fresh},
        {
            "source": "reconstruct",
            **describe(sparsity, "reconstruct", scope, 0, pattern),
            "damping": damping,
            "block": block,
            "refine": refine,
            "errors": errors,
        },
    )


def _budget_of_each(
    sparsity: float | None,
    scope: scopes.Scope,
    masks: Mapping[str, np.ndarray],
    layout: patterns.Layout | None,
) -> dict[str, scopes.Pool]:
    if isinstance(layout and layout.pattern, patterns.NofM) and not isinstance(
        scope, Mapping
    ):
        scope = "layer"  # every tensor has the pattern's own sparsity
    pools = budget(sparsity, scope, masks, layout)
    if any(len(pool.paths) > 1 for pool in pools):
        raise ValueError(
            "reconstruct prunes one layer before it looks at the next, so that "
            "weights of several cannot be ranked together: take scope='layer', "
            f"'erk', a mapping or a callable. Received: scope={scope!r}"
        )
    return {pool.paths[0]: pool for pool in pools}


class _Enough(BaseException):
    """Ends a pass when the last layer of interest has been called.

    Keras makes new exceptions of those that leave a layer, with more words;
    of this kind it lets go.
    """


@dataclasses.dataclass
class _Calls:
    """What one sample showed of a layer."""

    count: int = 0
    first: Any = None


class _Work:
    """The model over the data, with the weights as far as they are pruned."""

    def __init__(
        self,
        model: keras.Model,
        sites: Mapping[str, Site],
        data: Sequence[Batch],
    ) -> None:
        self.model = model
        self.sites = sites
        self.data = data
        self.variables = named_weights(model)
        self.fresh: dict[str, tf.Tensor] = {}
        self.calls: dict[int, _Calls] = {}

    def stages(self) -> Iterator[list[Site]]:
        """Kernels in the order of their calls; those with one input together.

        Raises:
            ValueError: If it cannot be seen what enters a layer.
        """
        sample = keras.tree.map_structure(
            lambda a: a[:1] if a.shape.rank else a, self.data[0].x
        )
        layers = [site.layer for site in self.sites.values()]
        looped = set()

        def see(layer: keras.layers.Layer, x: Any) -> None:
            if not has_value(x):
                looped.add(id(layer))
                return
            found = self.calls.setdefault(id(layer), _Calls(first=x))
            found.count += 1

        with watched(layers, see):
            self._run(sample)
        reasons, rows = {}, {}
        for path, site in self.sites.items():
            if id(site.layer) in looped:
                reasons[path] = "its layer is called inside a loop"
            elif id(site.layer) not in self.calls:
                reasons[path] = "its layer was never called"
            else:
                try:
                    rows[path] = site.rows(self.calls[id(site.layer)].first)
                except ValueError as error:
                    reasons[path] = str(error)
        if reasons:
            raise unreadable(_NEEDED_BY, reasons)
        order = list(self.calls)
        inside = list(self.sites)
        ordered = sorted(
            self.sites.values(),
            key=lambda s: (order.index(id(s.layer)), inside.index(s.path)),
        )
        stage: list[Site] = []
        for site in ordered:
            if stage and not self._is_same(stage[0], site, rows):
                yield stage
                stage = []
            stage.append(site)
        yield stage

    def _is_same(
        self, one: Site, other: Site, rows: Mapping[str, tf.Tensor]
    ) -> bool:
        """Whether two kernels are multiplied with the same numbers."""
        a, b = self.calls[id(one.layer)], self.calls[id(other.layer)]
        return (
            a.first is b.first
            and one.layer is not other.layer
            and a.count == b.count == 1
            and rows[one.path].shape == rows[other.path].shape
            and bool(tf.reduce_all(rows[one.path] == rows[other.path]))
        )

    def hessian(self, stage: Sequence[Site]) -> np.ndarray:
        """$X^T X$ of each group of rows, in the model as it is by now."""
        site = stage[0]
        total: Any = 0.0
        left = 0

        def see(layer: keras.layers.Layer, x: Any) -> None:
            nonlocal total, left
            rows = tf.transpose(site.rows(x), (1, 0, 2))
            product = tf.linalg.matmul(rows, rows, transpose_a=True)
            total = total + product.numpy().astype(np.float64)
            left -= 1
            if left == 0:
                raise _Enough

        with watched([site.layer], see):
            for batch in self.data:
                left = self.calls[id(site.layer)].count
                self._run(batch.x)
        checks.finite(
            "What enters a layer",
            {site.path: total},
            "do the data hold NaN, or has training diverged?",
        )
        return np.asarray(total)

    def _run(self, x: Any) -> None:
        with substituted(self.variables, self.fresh):
            try:
                call(self.model, x, training=False)
            except _Enough:
                pass


class _Solver:
    """Prunes one kernel.

    Args:
        layout: The weights as matrices, with their pattern or without.
        damping: As in `reconstruct`.
        block: As in `reconstruct`.
        refine: As in `reconstruct`.
    """

    def __init__(
        self,
        layout: patterns.Layout,
        damping: float,
        block: int,
        refine: int,
    ) -> None:
        self.layout = layout
        self.damping = damping
        self.block = block
        self.refine = refine

    def __call__(
        self,
        path: str,
        weight: np.ndarray,
        hessian: np.ndarray,
        allowed: np.ndarray,
        pool: scopes.Pool,
    ) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """``(mask, new weights, errors)``."""
        groups = hessian.shape[0]

        def cut(tensor: np.ndarray) -> np.ndarray:
            """A tensor of the kernel's shape as (groups, rows, columns)."""
            matrix = self.layout.matrix(path, tensor)
            parts = matrix.reshape(matrix.shape[0], groups, -1)
            return np.ascontiguousarray(parts.transpose(1, 0, 2))

        def whole(parts: np.ndarray) -> np.ndarray:
            matrix = parts.transpose(1, 0, 2).reshape(parts.shape[1], -1)
            return self.layout.tensor(path, matrix, weight.shape)

        def plain(scores: np.ndarray) -> np.ndarray:
            """The mask that scores alone make, by the pattern."""
            units = single_weights if pattern is None else self.layout.units
            masks = select({path: scores}, [pool], {path: allowed}, units)
            return masks[path]

        pattern = self.layout.pattern
        dense, may = cut(weight.astype(np.float64)), cut(allowed)
        found = [_factor(h, self.damping) for h in hessian]
        factors = np.stack([factor for factor, _ in found])
        step = self.block
        if isinstance(pattern, patterns.NofM):
            step = -(-step // pattern.of) * pattern.of
            choose = _of_each(pattern, may)
        elif pattern is None:
            choose = _of_blocks(step, pool.keep, may)
        else:
            inverse = (factors**2).sum(1)[:, :, None]
            choose = _known(cut(plain(whole(_saliency(dense, inverse)))))
        kept, values = _swept(dense, factors, choose, step)
        added = np.array([one for _, one in found])[:, None, None]
        values = _refined(dense, values, kept, hessian, added, self.refine)
        mask, new = whole(kept), whole(values).astype(weight.dtype)

        def square(parts: np.ndarray) -> float:
            return float(np.vdot(parts, hessian @ parts))

        def error(tensor: np.ndarray) -> float:
            """How far outputs move, as a part of their square."""
            moved = square(dense - cut(tensor.astype(np.float64)))
            return moved / (square(dense) or 1.0)

        return (
            mask,
            new,
            {
                "magnitude": error(weight * plain(np.abs(weight))),
                "masked": error(weight * mask),
                "reconstructed": error(new),
            },
        )


def _of_blocks(rows: int, keep: int, allowed: np.ndarray) -> _Choose:
    """The largest of some rows, of all their outputs together."""
    parts = {
        str(i): allowed[:, i : i + rows]
        for i in range(0, allowed.shape[1], rows)
    }
    density = keep / max(allowed.size, 1)
    counts = scopes.apportion(
        {i: density * part.size for i, part in parts.items()},
        keep,
        {i: int(np.count_nonzero(part)) for i, part in parts.items()},
    )

    def choose(i: int, w: np.ndarray, inverse: np.ndarray) -> np.ndarray:
        scores = np.where(parts[str(i)], _saliency(w, inverse), -1.0)
        return keep_largest(scores.ravel(), counts[str(i)]).reshape(w.shape)

    return choose


def _of_each(pattern: patterns.NofM, allowed: np.ndarray) -> _Choose:
    """N of each M rows of every output."""

    def choose(i: int, w: np.ndarray, inverse: np.ndarray) -> np.ndarray:
        scores = _saliency(w, inverse)
        return np.stack(
            [
                patterns.best_of_each(s, a[i : i + w.shape[1]], pattern)
                for s, a in zip(scores, allowed, strict=True)
            ]
        )

    setattr(choose, "rows", pattern.of)  # noqa: B010
    return choose


def _known(mask: np.ndarray) -> _Choose:
    """What was chosen before."""
    return lambda i, w, inverse: mask[:, i : i + w.shape[1]]


def _saliency(w: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """What the loss of each weight costs; nothing without an input."""
    return np.where(np.isinf(inverse), 0.0, w**2 / inverse)


def _factor(hessian: np.ndarray, damping: float) -> tuple[np.ndarray, float]:
    r"""$U$ with $U^T U = (H + \lambda I)^{-1}$, upper triangular; $\lambda$.

    A row that never had an input has an infinite diagonal and nothing else.
    """
    diagonal = np.diagonal(hessian)
    alive = diagonal > 0
    found = np.zeros(hessian.shape)
    np.fill_diagonal(found, np.where(alive, 0.0, np.inf))
    if not alive.any():
        return found, 1.0
    part = hessian[np.ix_(alive, alive)]
    added = damping * float(np.mean(diagonal[alive]))
    eye = np.eye(len(part))
    lower = None
    while lower is None:
        try:
            # H = R Rᵀ with R upper, by a factor of H turned around; U = R⁻¹.
            lower = np.linalg.cholesky((part + added * eye)[::-1, ::-1])
        except np.linalg.LinAlgError:  # numbers of very different sizes
            added *= 10
    found[np.ix_(alive, alive)] = np.triu(np.linalg.inv(lower[::-1, ::-1]))
    return found, added


def _refined(
    dense: np.ndarray,
    start: np.ndarray,
    mask: np.ndarray,
    hessian: np.ndarray,
    added: np.ndarray,
    steps: int,
) -> np.ndarray:
    r"""Kept weights nearer to the least $\mathrm{tr}(D^T (H + \lambda I) D)$.

    Here $D$ is what they differ by from the dense ones. Every output has a
    system of its own, of its kept rows; all take their steps together.
    """
    w = start

    def times(parts: np.ndarray) -> np.ndarray:
        return np.where(mask, hessian @ parts + added * parts, 0.0)

    diagonal = np.diagonal(hessian, axis1=1, axis2=2)[:, :, None] + added
    left = times(dense - w)
    towards = ahead = left / diagonal
    size = (left * ahead).sum(1, keepdims=True)
    # As many steps as rows reach it, but for rounding.
    for _ in range(min(steps, 2 * dense.shape[1])):
        curved = times(towards)
        bend = (towards * curved).sum(1, keepdims=True)
        # An output that is where it should be stays there.
        far = np.divide(size, bend, out=np.zeros_like(size), where=bend > 0)
        w = w + far * towards
        left = left - far * curved
        ahead = left / diagonal
        before, size = size, (left * ahead).sum(1, keepdims=True)
        turn = np.divide(
            size, before, out=np.zeros_like(size), where=before > 0
        )
        towards = ahead + turn * towards
    return w


def _swept(
    weight: np.ndarray, factors: np.ndarray, choose: _Choose, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """``(mask, new weights)``: pruned row by row, the loss handed on.

    Args:
        weight: (groups, rows, columns).
        factors: $U$ of each group.
        choose: What is kept of some rows.
        step: How many rows are pruned before those beyond get to know.
    """
    w = weight.copy()
    mask = np.zeros(w.shape, bool)
    diagonal = np.diagonal(factors, axis1=1, axis2=2)[:, :, None]
    every = getattr(choose, "rows", step)
    for start in range(0, w.shape[1], step):
        stop = min(start + step, w.shape[1])
        losses = np.zeros((w.shape[0], stop - start, w.shape[2]))
        for i in range(start, stop):
            if (i - start) % every == 0:
                rows = slice(i, min(i + every, stop))
                inverse = diagonal[:, rows] ** 2
                mask[:, rows] = choose(i, w[:, rows], inverse)
            lost = np.where(mask[:, i], 0.0, w[:, i])
            w[:, i] -= lost
            lost /= diagonal[:, i]  # without an input nothing is lost
            losses[:, i - start] = lost
            w[:, i + 1 : stop] -= (
                factors[:, i, i + 1 : stop, None] * lost[:, None]
            )
        ahead = factors[:, start:stop, stop:].transpose(0, 2, 1)
        w[:, stop:] -= ahead @ losses
    return mask, w
