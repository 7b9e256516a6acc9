"""Scopes: how a budget of kept weights is spread over the tensors.

A scope turns shapes and a sparsity into pools: groups of tensors that compete
for one exact count of kept weights. ``global`` is one pool of all tensors;
every other scope gives each tensor a pool of its own, by its name in `SCOPES`
or as a callable ``(shapes, density) -> {path: density}``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np

from tf_tickets import checks
from tf_tickets.selection import matches
from tf_tickets.ticket import Ticket

Shapes = Mapping[str, tuple[int, ...]]
Densities = dict[str, float]
Variant = Literal["v1", "v2", "v3"]


@dataclasses.dataclass(frozen=True)
class AtLeast:
    """The scope that `at_least` returns."""

    weights: int
    scope: str | Callable[[Shapes, float], Mapping[str, float]]


Scope = (
    str
    | Mapping[str, float]
    | Callable[[Shapes, float], Mapping[str, float]]
    | AtLeast
)


class Pool(NamedTuple):
    """Tensors that compete for ``keep`` kept weights.

    Each keeps at least ``least`` of them, or all that it has left.
    """

    paths: tuple[str, ...]
    keep: int
    least: int = 0


def uniform(shapes: Shapes, density: float) -> Densities:
    """The scope ``"layer"``: every tensor has the same density."""
    return dict.fromkeys(shapes, density)


def erk(shapes: Shapes, density: float) -> Densities:
    r"""The scope ``"erk"``: Erdős–Rényi-kernel densities.

    $d_l = \min(1, \epsilon \sum_i n_{l,i} / \prod_i n_{l,i})$ over the
    dimensions $n_{l,i}$ of tensor $l$, with the one $\epsilon$ that meets the
    budget: small tensors stay denser.

    Args:
        shapes: ``{path: shape}``.
        density: Kept fraction of all weights, in (0, 1].

    Returns:
        ``{path: density}``.

    Reference:
        Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML
        2020, section 3 (1); Mocanu et al. 2018 for the dense case.

    Example:

    >>> d = erk({"a": (10, 10), "b": (100, 100)}, density=0.1)
    >>> round(d["a"], 3), round(d["b"], 3)
    (0.918, 0.092)
    """
    sizes = {p: float(np.prod(s)) for p, s in shapes.items()}
    raw = {p: sum(s) / max(sizes[p], 1.0) for p, s in shapes.items()}
    return meet_budget(raw, sizes, density * sum(sizes.values()))


def meet_budget(
    raw: Mapping[str, float], sizes: Mapping[str, float], budget: float
) -> Densities:
    r"""$d_l = \min(1, \epsilon r_l)$ with $\sum_l d_l n_l$ equal to a budget.

    Args:
        raw: ``{path: r}``, not negative.
        sizes: ``{path: n}``, how many weights.
        budget: How many weights to keep, at most all.
    """
    full: set[str] = set()
    while True:
        # ε · Σ_sparse rawₗ nₗ = budget − Σ_full nₗ
        free = budget - sum(sizes[p] for p in full)
        weight = sum(raw[p] * sizes[p] for p in raw if p not in full)
        epsilon = free / weight if weight else 0.0
        over = {p for p in raw if p not in full and epsilon * raw[p] > 1.0}
        if not over:
            break
        # One at a time would reach the same end: a tensor over 1 stays so,
        # because setting others to 1 can only raise ε.
        full |= over
    return {p: 1.0 if p in full else epsilon * raw[p] for p in raw}


def smart_ratio(
    variant: Variant = "v1",
    *,
    ends: Ticket | tuple[float, float] | None = None,
    linear_density: float = 0.3,
    residual: bool = True,
    linear: str | None = None,
    rescale: bool = True,
) -> SmartRatio:
    r"""A scope: densities that fall quadratically with depth.

    Of $L$ layers, layer $l = 1, \ldots, L$ gets the density
    $\kappa [(L - l + 1)^2 + (L - l + 1)]$, divided by $l^2$ in networks
    without skip connections; linear layers keep ``linear_density`` instead.
    What exceeds a full layer goes to the next convolutions.

    With ``criterion="random"`` this is Smart-Ratio pruning, with
    ``criterion="magnitude"`` on a trained model its "hybrid ticket". The
    published whole numbers of weights fall short of the total by less than
    one a layer; `tf_tickets.prune` spreads these over the layers, so that the
    total is what was asked for.

    Args:
        variant: `"v1"`, the default, as above; `"v2"` gives the first and the
            last layer the densities ``ends``; `"v3"` leaves both dense.
        ends: For `"v2"`: a Gem-Miner ticket, or its first and last density.
        linear_density: The density of linear layers, 0.3 by default; the last
            ones get more where all convolutions are full.
        residual: Whether the network has skip connections, as by default.
        linear: A regular expression that names the linear layers, for example
            a 1×1 convolution that classifies. `None`: the weights of rank 2;
            in a model without convolutions, the last one.
        rescale: Of `"v2"` and `"v3"`: `True` scales the layers between so that
            the total is what was asked for. `False` leaves them at v1, as
            published, and the total above the request (1.47 % and 1.75 % for
            1.44 % of ResNet-20): call the scope yourself and pass
            ``{path: 1 - density}`` to `tf_tickets.prune`.

    Returns:
        A scope ``(shapes, density) -> {path: density}``.

    Raises:
        ValueError: If an option is out of range, and when the scope is used,
            if linear layers or ends alone take more than the budget.

    Reference:
        Su et al., "Sanity-Checking Pruning Methods: Random Tickets can Win the
        Jackpot", NeurIPS 2020, section 4; variants v2 and v3: Sreenivasan et
        al., "Rare Gems", 2022, appendix B, table 16.

    Example:

    >>> scope = smart_ratio(linear_density=0.5)
    >>> d = scope({"a": (3, 3, 1, 8), "b": (3, 3, 8, 8), "c": (8, 4)}, 0.2)
    >>> [round(x, 3) for x in d.values()]
    [0.333, 0.167, 0.5]
    """
    if variant not in ("v1", "v2", "v3"):
        raise ValueError(
            "`variant` must be 'v1', 'v2' or 'v3'; for v4 to v6 see "
            f"`search_densities`. Received: variant={variant!r}"
        )
    if (variant == "v2") != (ends is not None):
        raise ValueError(
            "`ends` gives the densities of the first and the last layer, for "
            "variant='v2' and for no other. "
            f"Received: variant={variant!r}, ends={ends!r}"
        )
    if isinstance(ends, Ticket):
        found = list(ends.densities().values())
        ends = found[0], found[-1]
    for value in ends or ():
        checks.number("ends", value, "(0, 1]")
    linear_density = checks.number("linear_density", linear_density, "(0, 1]")
    return SmartRatio(variant, ends, linear_density, residual, linear, rescale)


@dataclasses.dataclass(frozen=True)
class SmartRatio:
    """The scope that `smart_ratio` returns."""

    variant: Variant = "v1"
    ends: tuple[float, float] | None = None
    linear_density: float = 0.3
    residual: bool = True
    linear: str | None = None
    rescale: bool = True

    def __call__(self, shapes: Shapes, density: float) -> Densities:
        sizes = {p: int(np.prod(s, dtype=np.int64)) for p, s in shapes.items()}
        # A density such as 14/1000 comes here rounded from a whole count.
        budget = int(sum(sizes.values()) * density + 1e-6)
        densities = self._quadratic(shapes, sizes, budget)
        if self.variant == "v1" or len(shapes) < 2:
            return densities
        first, *_, last = shapes
        fixed = dict(zip((first, last), self.ends or (1.0, 1.0), strict=True))
        if not self.rescale:
            return {**densities, **fixed}
        inner = {p: d for p, d in densities.items() if p not in fixed}
        rest = budget - sum(fixed[p] * sizes[p] for p in fixed)
        if not 0 <= rest <= sum(sizes[p] for p in inner):
            raise ValueError(
                f"The first and the last layer, at {fixed}, leave {rest:.0f} "
                "weights to the layers between. Received: a density of "
                f"{density:.6g}"
            )
        inner = meet_budget(inner, sizes, rest)
        return {p: {**inner, **fixed}[p] for p in shapes}

    def _quadratic(
        self, shapes: Shapes, sizes: dict[str, int], budget: int
    ) -> Densities:
        linear = self._linear(shapes)
        if len(linear) == len(shapes):
            return dict.fromkeys(shapes, budget / max(sum(sizes.values()), 1))
        depth = len(shapes)
        raw = {
            path: float((depth - i) ** 2 + (depth - i))
            / (1 if self.residual else (i + 1) ** 2)
            for i, path in enumerate(shapes)
            if path not in linear
        }
        free = budget - int(sum(sizes[p] for p in linear) * self.linear_density)
        if free < 0:
            raise ValueError(
                f"Linear layers of density {self.linear_density} alone keep "
                f"{budget - free} weights of a budget of {budget}: lower "
                f"`linear_density`. Received: {sorted(linear)}"
            )
        kappa = free / max(sum(sizes[p] * r for p, r in raw.items()), 1.0)
        densities, surplus = {}, 0
        for path, size in sizes.items():
            if path in linear:
                densities[path] = self.linear_density
                continue
            d = kappa * raw[path]
            if d > 1:
                surplus += int((d - 1) * size)
                d = 1.0
            elif surplus:
                room = int((1 - d) * size)
                d = 1.0 if surplus >= room else d + surplus / max(size, 1)
                surplus = max(surplus - room, 0)
            densities[path] = d
        # Nothing is left but linear layers, from the last one backwards.
        for path in reversed([p for p in shapes if p in linear]):
            size = max(sizes[path], 1)
            taken = min(surplus, (1 - densities[path]) * size)
            densities[path] += taken / size
            surplus -= int(taken)
        return densities

    def _linear(self, shapes: Shapes) -> set[str]:
        if self.linear is not None:
            found = {p for p in shapes if matches(self.linear, p)}
            if not found:
                raise ValueError(
                    f"No weight of {list(shapes)} is matched by `linear`. "
                    f"Received: linear={self.linear!r}"
                )
            return found
        found = {p for p, shape in shapes.items() if len(shape) == 2}
        if len(found) == len(shapes):
            return set(list(shapes)[-1:])
        return found


def at_least(
    weights: int = 1,
    scope: str | Callable[[Shapes, float], Mapping[str, float]] = "global",
) -> AtLeast:
    """A scope that leaves no tensor without weights.

    A global ranking can empty a layer, after which the network computes a
    constant. Here every tensor keeps its best ``weights`` first; the rest of
    the budget is spread as ``scope`` says. The total stays what was asked.

    Args:
        weights: How many every tensor keeps at least, or all that it has.
        scope: How the rest is spread: a name or a callable.

    Returns:
        A scope for `tf_tickets.prune` and for every callback that has one.

    Raises:
        ValueError: If ``weights`` is no positive whole number, ``scope`` is
            unknown or a mapping; and when masks are drawn, if the budget is
            too small.

    Example:

    >>> import keras, tf_tickets as tt
    >>> model = keras.Sequential([
    ...     keras.Input((8,)), keras.layers.Dense(8), keras.layers.Dense(8)])
    >>> _ = model.layers[1].kernel.assign(model.layers[1].kernel * 0.001)
    >>> ticket = tt.prune(model, 0.75, scope=tt.pruning.at_least(2))
    >>> [int(mask.sum()) for mask in ticket.masks.values()]
    [30, 2]
    """
    weights = checks.whole("weights", weights)
    if isinstance(scope, Mapping | AtLeast):
        raise ValueError(
            "`scope` of at_least must be a name or a callable; a mapping says "
            f"itself what every tensor keeps. Received: scope={scope!r}"
        )
    check_scope(scope)
    return AtLeast(weights, scope)


SCOPES: dict[str, Callable[[Shapes, float], Densities]] = {
    "layer": uniform,
    "erk": erk,
    "smart_ratio": SmartRatio(),
    "smart_ratio_v3": SmartRatio("v3"),
}
"""``{name: scope}``, yours too: how `tf_tickets.prune` spreads a budget.

A scope is called with ``{path: shape}`` and a density and returns ``{path:
density}``. `"global"`, which compares all scores, is none of them.
"""


def pools(
    scope: Scope,
    shapes: Shapes,
    sparsity: float | None,
    capacity: Mapping[str, int],
) -> list[Pool]:
    """Spread a budget over tensors.

    Args:
        scope: ``"global"`` or a name in `SCOPES`; ``{pattern: sparsity}``,
            where a tensor takes the sparsity of the first pattern found in
            its path and stays as dense as it is if there is none, and a
            pattern that is a whole path names its tensor alone; or a
            callable ``(shapes, density) -> {path: density}``.
        shapes: ``{path: shape}``.
        sparsity: Fraction of all weights to prune; `None` with a mapping.
        capacity: ``{path: how many weights may still be kept}``.

    Returns:
        Pools whose counts add up to the request, to the weight.

    Raises:
        ValueError: If the scope is unknown, a pattern matches nothing, or the
            request exceeds what may still be kept.
    """
    sizes = {p: int(np.prod(s, dtype=np.int64)) for p, s in shapes.items()}
    if isinstance(scope, AtLeast):
        found = pools(scope.scope, shapes, sparsity, capacity)
        return _raised(found, scope.weights, capacity)
    if isinstance(scope, Mapping):
        if sparsity is not None:
            raise ValueError(
                "With a mapping as `scope` the mapping says the sparsity of "
                f"each tensor. Received: sparsity={sparsity!r} as well"
            )
        wanted = _mapped(scope, shapes)
        return [
            Pool(
                (p,),
                _checked(kept_count(wanted[p], sizes[p]), capacity[p], p)
                if p in wanted
                else capacity[p],
            )
            for p in shapes
        ]
    check_scope(scope)
    total = kept_count(checks.sparsity(sparsity), sum(sizes.values()))
    _checked(total, sum(capacity.values()), "all tensors")
    if scope == "global":
        return [Pool(tuple(shapes), total)]
    allocate = scope if callable(scope) else SCOPES[scope]
    # What has no weights has no share, and a number of inputs of zero.
    some = {p: shape for p, shape in shapes.items() if sizes[p]}
    share = total / max(sum(sizes.values()), 1)
    densities = dict(allocate(some, share)) if some else {}
    if set(densities) != set(some):
        raise ValueError(
            "A scope must give a density for every tensor. Received: "
            f"{sorted(set(densities) ^ set(some))} missing or unknown"
        )
    densities |= dict.fromkeys(set(shapes) - set(some), 1.0)
    ideal = {p: densities[p] * sizes[p] for p in shapes}
    if abs(sum(ideal.values()) - total) > len(ideal):
        raise ValueError(
            f"The densities of a scope must add up to the {total} weights "
            f"to keep. Received: {sum(ideal.values()):.0f} from {densities}"
        )
    return [
        Pool((p,), keep)
        for p, keep in apportion(ideal, total, capacity).items()
    ]


def kept_count(sparsity: float, size: int) -> int:
    """How many of ``size`` weights a sparsity keeps, everywhere here.

    Sparsities are compared by these counts. A fraction that was asked for is
    seldom one that a whole number of weights can have, so that masks which
    meet it may lie on either side.

    Args:
        sparsity: In [0, 1).
        size: How many weights there are.

    Example:

    >>> kept_count(0.8, 192)  # a sparsity of 0.802
    38
    """
    return round((1 - sparsity) * size)


def at_progress(
    scope: Scope, target: float | None, initial: float, progress: float
) -> tuple[float | None, Scope]:
    """``(sparsity, scope)`` part of the way to a target.

    Densities fall by equal factors: $d = d_0 (d_1 / d_0)^t$.

    Args:
        scope: As in `pools`; a mapping holds the targets itself and starts
            from dense tensors.
        target: Sparsity at ``progress`` 1; `None` with a mapping.
        initial: Sparsity at ``progress`` 0.
        progress: t in [0, 1].
    """
    if isinstance(scope, Mapping):
        return target, {
            pattern: _fall(0.0, end, progress) for pattern, end in scope.items()
        }
    checks.sparsity(target)
    return _fall(initial, float(target or 0.0), progress), scope


def _fall(initial: float, target: float, progress: float) -> float:
    if progress == 1:
        return target  # as it was written, with no rounding
    return 1 - (1 - initial) ** (1 - progress) * (1 - target) ** progress


def check_scope(scope: Scope) -> None:
    """Raise unless ``scope`` is a known name, a mapping or a callable."""
    if not (
        callable(scope)
        or isinstance(scope, Mapping | AtLeast)
        or (isinstance(scope, str) and scope in {"global", *SCOPES})
    ):
        raise ValueError(
            f"`scope` must be one of {['global', *sorted(SCOPES)]}, a mapping "
            f"or a callable. Received: scope={scope!r}"
        )


def apportion(
    ideal: Mapping[str, float], total: int, capacity: Mapping[str, int]
) -> dict[str, int]:
    """Whole counts near ``ideal`` that add up to ``total``.

    Largest remainders first; what a tensor cannot hold goes to the others.
    """
    counts = {p: min(int(x), capacity[p]) for p, x in ideal.items()}
    missing = total - sum(counts.values())
    order = sorted(ideal, key=lambda p: counts[p] - ideal[p])
    while missing > 0:
        open_paths = [p for p in order if counts[p] < capacity[p]]
        # Usually one each; after a cap, an equal share.
        share = max(1, missing // len(open_paths))
        for p in open_paths:
            step = min(share, capacity[p] - counts[p], missing)
            counts[p] += step
            missing -= step
    while missing < 0:
        for p in reversed(order):
            if missing < 0 and counts[p] > 0:
                counts[p] -= 1
                missing += 1
    return counts


def _raised(
    found: list[Pool], least: int, capacity: Mapping[str, int]
) -> list[Pool]:
    """The pools with a floor, which the fullest pay for.

    A pool of several tensors only gets to know the floor; `select` keeps it.
    """
    floors = [
        sum(min(least, capacity[p]) for p in pool.paths) for pool in found
    ]
    total = sum(pool.keep for pool in found)
    if sum(floors) > total:
        raise ValueError(
            f"{total} weights are too few to keep at least {least} in each of "
            f"{len(capacity)} tensors. Received: at_least({least})"
        )
    keeps = [max(pool.keep, f) for pool, f in zip(found, floors, strict=True)]
    while sum(keeps) > total:
        spare = [k - f for k, f in zip(keeps, floors, strict=True)]
        keeps[int(np.argmax(spare))] -= 1
    return [
        Pool(pool.paths, keep, least)
        for pool, keep in zip(found, keeps, strict=True)
    ]


def _mapped(scope: Mapping[str, float], shapes: Shapes) -> dict[str, float]:
    if not scope:
        raise ValueError(f"The mapping is empty. Received: scope={scope!r}")
    wanted: dict[str, float] = {}
    for pattern, sparsity in scope.items():
        checks.sparsity(sparsity, f"scope[{pattern!r}]")
        # A whole path names its tensor alone, though it may be found in others.
        hits = (
            [pattern]
            if pattern in shapes
            else [p for p in shapes if matches(pattern, p)]
        )
        if not hits:
            raise ValueError(
                f"A pattern matches no prunable weight of {list(shapes)}. "
                f"Received: scope={{{pattern!r}: {sparsity}}}"
            )
        if wanted.keys() >= set(hits):
            checks.warn(
                "A pattern decides nothing, because the patterns before it "
                "take every weight that it matches: put the narrower one "
                f"first. Received: scope={{{pattern!r}: {sparsity}}} after "
                f"{list(scope)[: list(scope).index(pattern)]}"
            )
        for path in hits:
            wanted.setdefault(path, float(sparsity))
    return wanted


def _checked(keep: int, capacity: int, what: str) -> int:
    if keep > capacity:
        raise ValueError(
            "The target is below the current sparsity: pruned weights do not "
            f"come back. Received: {keep} weights to keep in {what}, where "
            f"{capacity} are left"
        )
    return keep
