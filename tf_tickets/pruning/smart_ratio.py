"""Smart-Ratio: layerwise densities good enough for random masks."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

import numpy as np

from tf_tickets.pruning.scopes import Densities, Shapes, meet_budget
from tf_tickets.ticket import Ticket

Variant = Literal["v1", "v2", "v3"]


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
        variant: `"v1"` as above; `"v2"` gives the first and the last layer the
            densities ``ends``; `"v3"` leaves both dense.
        ends: For `"v2"`: a Gem-Miner ticket, or its first and last density.
        linear_density: Of linear layers; the last ones give way where all
            convolutions are full.
        residual: Whether the network has skip connections.
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
    for name, value in (
        ("linear_density", linear_density),
        *(("ends", value) for value in ends or ()),
    ):
        if not 0 < value <= 1:
            raise ValueError(
                f"`{name}` must lie in (0, 1]. Received: {name}={value!r}"
            )
    return SmartRatio(
        variant, ends, float(linear_density), residual, linear, rescale
    )


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
            found = {p for p in shapes if re.search(self.linear, p)}
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
