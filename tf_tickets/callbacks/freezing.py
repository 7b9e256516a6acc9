"""Freeze the lowest scores of a supermask, little by little."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from tf_tickets import checks
from tf_tickets.callbacks.base import Logs, ResumableCallback
from tf_tickets.callbacks.directory import Directory
from tf_tickets.callbacks.rounds import warn_of_comparing
from tf_tickets.distribute import agreed
from tf_tickets.layers import Supermask, steering
from tf_tickets.pruning import scopes
from tf_tickets.pruning.prune import describe, excess
from tf_tickets.pruning.topk import select
from tf_tickets.selection import layers_of, values_of

RateKind = Literal["code", "paper"]
RATES = ("code", "paper")
# The share of mining after which a steered density is at its target. Later
# leaves no time to learn under the final mask, and steps too small to steer.
REACHED = 0.8
Arrays = dict[str, np.ndarray]


def freezing_rate(
    target_sparsity: float,
    *,
    epochs: int,
    every: int,
    rate: RateKind = "code",
) -> float:
    r"""Fraction of the weights still unfrozen that one freeze takes.

    With density s in E epochs, a freeze every T of them: $1 - s^{1/n}$, where
    $n = \lfloor (E - 1)/T \rfloor$ is the number of freezes in the published
    runs (`"code"`), or $1 - s^{T/E} = 1 - e^{-cT}$ (`"paper"`; algorithm 1
    prints the exponent without its sign).

    Args:
        target_sparsity: 1 − s, the fraction that is frozen in the end.
        epochs: E, how many epochs the training has.
        every: T, how many epochs lie from one freeze to the next.
        rate: `"code"`, the default, or `"paper"`: whose formula.

    Raises:
        ValueError: On numbers out of range, or if no freeze fits into the
            epochs.

    Example:

    >>> round(freezing_rate(1 - 0.0144, epochs=150, every=5), 5)
    0.13604
    >>> round(freezing_rate(1 - 0.0144, epochs=150, every=5, rate="paper"), 5)
    0.13182
    """
    checks.sparsity(target_sparsity, "target_sparsity")
    checks.choice("rate", rate, RATES)
    checks.whole("epochs", epochs)
    checks.whole("every", every)
    count = epochs // every if rate == "paper" else (epochs - 1) // every
    if not count:
        raise ValueError(
            "No freeze fits into the epochs: train longer, or freeze more "
            f"often. Received: epochs={epochs}, every={every}, rate={rate!r}"
        )
    exponent = 1 / count if rate == "code" else every / epochs
    return 1 - (1 - target_sparsity) ** exponent


class IterativeFreezing(ResumableCallback):
    r"""Bring a supermask to a sparsity while its scores are trained.

    For masks by threshold or at random (Gem-Miner): every few epochs the
    lowest scores of those that are unfrozen are frozen; their weights are out
    for good (q ← 0). Density falls by equal factors. For top-k masks
    (Edge-Popup): the sparsity of the mask rises along the same curve, from 0
    when training begins; weights may come back. No step is traced again.

    A supermask with ``score_penalty="auto"``, or with none given, has its λ
    steered here: every training step moves it so that the effective density
    falls by equal factors to the target within four fifths of the epochs, and
    stays there. In the end the scores that freezing has left are lifted over
    the threshold, so that the effective mask has the target to the weight, too.
    In a later `fit` without this callback λ is what it was at last.

    The logs get ``density_effective``, of the mask that the model computes
    with, ``density_frozen``, of q, which is at least as large, and, where it is
    steered, λ as ``score_penalty``; all after the freeze of that epoch, if
    there was one. (An epoch's other logs are from before it.)

    If the score penalty has pushed every score under the threshold, the mask
    is empty and training cannot go on. Then q is brought to the target at
    once, to the weight, by the scores, training is stopped, and a warning says
    so. (The rule is ours. The published code, too, ends the search and goes on
    to finetuning, after one more freeze of the fraction 1 - s of what is left,
    which can end below the target.) What is left is a ticket:
    ``Ticket.from_supermask(miner, mask="frozen")``.

    Args:
        target_sparsity: Fraction of the prunable weights that are frozen in
            the end. The default, `None`, takes it from a top-k mask.
        every: T: how many epochs lie from one freeze to the next; 5 by
            default. ("Long" Gem-Miner is the same with more epochs and a
            longer period.)
        exact: Whether to freeze to the weight, and end at the target, which is
            the default; of equal scores the first are kept. With `False` as
            published: the fraction `freezing_rate` of the unfrozen, rounded up,
            gives a threshold, and everything at or below it goes. Scores are
            clipped at zero, so a freeze can take far more than its share: the
            target is then only the most that remains.
        rate: `"code"`, the default: freezes after the epochs T + 1, 2T + 1,
            ...; `"paper"`: after T, 2T, ..., see `freezing_rate`. So with
            top-k masks, which become sparser then.
        scope: Among which weights the lowest are looked for: `"global"`, the
            default, `"layer"`, or another of `tf_tickets.prune` that is no
            mapping. A top-k mask has its own.
        invert: Freeze the highest scores instead of the lowest: the paper's
            sanity check inside the search, whose ticket should be bad. `False`
            by default; not for top-k masks. As soon as no score above the
            threshold is left, which is soon, the search stops as above,
            without a warning.
        directory: Where to keep the run; by default nowhere. Every epoch is
            saved there; the same call after a kill goes on after the last
            whole epoch. List the callback after
            `keras.callbacks.BackupAndRestore` then.

    Attributes:
        collapsed: Whether the mask became empty.

    Raises:
        ValueError: On bad arguments; when training begins, if the model has
            no supermask, its density is below the target, or no freeze fits
            into the epochs.

    Reference:
        Sreenivasan et al., "Rare Gems: Finding Lottery Tickets at
        Initialization", NeurIPS 2022, algorithm 1 and table 3.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(10)])
    >>> miner = tt.supermask(model)
    >>> miner.compile(keras.optimizers.SGD(0.1), "mse")
    >>> freezing = IterativeFreezing(target_sparsity=0.9, every=1)
    >>> history = miner.fit(
    ...     np.ones((4, 10)), np.ones((4, 10)), epochs=3, verbose=0,
    ...     callbacks=[freezing])
    >>> [round(d, 2) for d in history.history["density_frozen"]]
    [1.0, 0.32, 0.1]
    """

    def __init__(
        self,
        target_sparsity: float | None = None,
        *,
        every: int = 5,
        exact: bool = True,
        rate: RateKind = "code",
        scope: scopes.Scope = "global",
        invert: bool = False,
        directory: Directory | None = None,
    ) -> None:
        super().__init__()
        if target_sparsity is not None:
            checks.sparsity(target_sparsity, "target_sparsity")
        checks.choice("rate", rate, RATES)
        scopes.check_scope(scope)
        if isinstance(scope, Mapping) or (
            not exact and scope not in ("global", "layer")
        ):
            raise ValueError(
                "`scope` must be no mapping, and with exact=False 'global' or "
                f"'layer'. Received: scope={scope!r}, exact={exact}"
            )
        self.target_sparsity = target_sparsity
        self.every = checks.whole("every", every)
        self.exact = exact
        self.rate = rate
        self.scope = scope
        checks.choice("invert", invert, (True, False))
        self.invert = invert
        self.collapsed = False
        self._supermasks: list[Supermask] = []
        self._helm: steering.Helm | None = None
        # Sparsities after the freezes to come, by epoch.
        self._plan: dict[int, float] | None = None
        self._to_come = False
        self._fraction = 0.0
        self._remembered: dict[str, Any] = {}
        self._keep_in(
            directory,
            {
                "source": "IterativeFreezing",
                "target_sparsity": target_sparsity,
                "every": self.every,
                "exact": exact,
                "rate": rate,
                "scope": describe(None, "magnitude", scope, 0)["scope"],
                **({"invert": True} if invert else {}),
            },
        )

    def begin(self) -> None:
        self.collapsed = False
        self._plan = None
        self._to_come = True
        self._remembered = self._resume()
        self._supermasks = [
            layer
            for layer in layers_of(self.model)
            if isinstance(layer, Supermask)
        ]
        kinds = {layer.options.mask == "top_k" for layer in self._supermasks}
        if len(kinds) != 1:
            raise ValueError(
                "The model needs supermasks, all of them top-k or none: make "
                "one with tf_tickets.supermask. Received: "
                f"{[layer.options.mask for layer in self._supermasks]}"
            )
        if self._top_k and self.invert:
            raise ValueError(
                "`invert` is for masks by threshold: a top-k mask keeps the "
                "highest scores in any case. Received: invert=True"
            )
        target = self._target()
        freezing_rate(
            target, epochs=self._epochs, every=self.every, rate=self.rate
        )
        # A run that goes on may be beyond it: without `exact` a tie can take
        # more than was asked.
        if not self._remembered and self._excess(target) < 0:
            raise ValueError(
                "The target is below the current sparsity: frozen weights do "
                f"not come back. Received: target_sparsity={target}, sparsity "
                f"{1 - self._density('frozen'):.6f} now"
            )
        if self._top_k and any(
            isinstance(layer.options.scope, Mapping)
            for layer in self._supermasks
        ):
            raise ValueError(
                "The scope of a top-k mask that becomes sparser must be no "
                "mapping. Received: a mapping"
            )
        self._helm = steering.Helm(self.model, self._supermasks)
        if self._helm:
            self._undo.callback(self._helm.hold)

    def epoch_begin(self, epoch: int) -> None:
        if self._plan is None:
            self._begin_at(epoch)
        if self._helm:
            # Keras may not know how many steps an epoch has, before it had one.
            steps = self._remembered.get("steps", self.params.get("steps"))
            self._helm.aim(
                self._goal(epoch), self._goal(epoch + 1), self._speed(), steps
            )

    def _begin_at(self, epoch: int) -> None:
        if not self._remembered:
            if self._top_k and epoch == 0:
                for layer in self._supermasks:
                    layer.set_sparsity(0.0)
            self._remembered = {
                "first_epoch": epoch,
                "first_density": self._density("frozen"),
                "first_effective": self._density("effective"),
            }
            if not self._top_k and not self._remembered["first_effective"]:
                raise ValueError(
                    "No score is above the threshold ½, so no weight is in the "
                    "mask: nothing comes out of the model, and no score gets a "
                    "gradient. Begin with other scores. Received: "
                    f"model={self.model.name!r}, whose effective density is 0"
                )
            if self._helm:
                self._helm.start(self._density("effective"), self._goal(epoch))
        self._make_plan(
            self._remembered["first_epoch"], self._remembered["first_density"]
        )
        warn_of_comparing(
            self,
            self._beside,
            self._behind,
            max(self._plan or {}, default=-1) + 1,
            acts_between=True,
        )
        if not self._plan and self._excess(self._target()) > 0:
            raise ValueError(
                "No freeze fits into the epochs that are left: train longer, "
                "or freeze more often. Received: a training from epoch "
                f"{epoch} to {self._epochs}, every={self.every}"
            )

    def epoch_end(self, epoch: int, logs: Logs) -> None:
        plan = self._plan or {}
        if epoch in plan:
            self._freeze(plan[epoch])
        self._to_come = any(later > epoch for later in plan)
        if not self._top_k and self._density("effective") == 0:
            self._collapse()
        if self._helm:
            self._remembered["steps"] = self._helm.hold()
            logs["score_penalty"] = self._helm.penalty
            if epoch == self._epochs - 1:
                self._fill_up()
        if not self._top_k:
            logs["density_frozen"] = self._density("frozen")
        logs["density_effective"] = self._density("effective")
        if not self.collapsed:
            self._save(epoch + 1, self._remembered)

    def end(self) -> None:
        self._fill_up()
        if self._to_come and not self.collapsed:
            which = "effective" if self._top_k else "frozen"
            warnings.warn(
                "Training ended before the last freeze: the sparsity is "
                f"{1 - self._density(which):.4f}, the target "
                f"{self._target():g}.",
                stacklevel=3,  # Keras, which called
            )

    @property
    def _epochs(self) -> int:
        return int(self.params["epochs"])

    @property
    def _top_k(self) -> bool:
        return self._supermasks[0].options.mask == "top_k"

    def _target(self) -> float:
        if self.target_sparsity is not None:
            return float(self.target_sparsity)
        found = {layer.options.sparsity for layer in self._supermasks}
        target = found.pop() if len(found) == 1 else None
        if target is None:
            raise ValueError(
                "`target_sparsity` is needed, unless all supermasks are top-k "
                f"with one sparsity. Received: target_sparsity=None, {found}"
            )
        return float(target)

    def _make_plan(self, first_epoch: int, first_density: float) -> None:
        """Freezes from the epoch and the density that training began with."""
        target = self._target()
        first, start = first_epoch, first_density
        epochs = [
            e
            for e in _freezes(self._epochs, self.every, self.rate)
            if e >= first
        ]
        share = (
            self.every / (self._epochs - first)
            if self.rate == "paper"
            else 1 / max(len(epochs), 1)
        )
        fall = (1 - target) / start
        # Whole counts may have met the target from below.
        self._fraction = max(0.0, 1 - fall**share)
        self._plan = {
            e: 1 - start * fall ** (share * i) for i, e in enumerate(epochs, 1)
        }
        if epochs:
            self._plan[epochs[-1]] = target  # with no rounding

    def _goal(self, epoch: int) -> float:
        """The effective density that is wanted when this epoch begins."""
        first = self._remembered["first_epoch"]
        progress = (epoch - first) / (REACHED * (self._epochs - first))
        fall = self._fall()
        return (1 - self._target()) * math.exp(fall * max(1 - progress, 0.0))

    def _fall(self) -> float:
        """How much the logarithm of the goal falls in this training."""
        target = 1 - self._target()
        return math.log(max(self._remembered["first_effective"] / target, 1.0))

    def _speed(self) -> float:
        """How fast the density may be expected to move, by the epoch."""
        epochs = self._epochs - self._remembered["first_epoch"]
        # Where the goal hardly falls, weights still come and go.
        return (self._fall() + 0.5) / (REACHED * epochs)

    def _fill_up(self) -> None:
        if not (self._to_come or self.collapsed):
            for layer in self._supermasks:
                if layer.state.steering is not None:
                    layer.fill_up()

    def _freeze(self, sparsity: float) -> None:
        if self._top_k:
            for layer in self._supermasks:
                layer.set_sparsity(sparsity)
        elif self.exact:
            self._assign(self._lowest_counted(sparsity))
        else:
            self._assign(self._above_threshold())

    def _collapse(self) -> None:
        self.collapsed = True
        if self._density("frozen"):
            self._assign(self._lowest_counted(self._target()))
        self.model.stop_training = True
        if self.invert:  # what it was made for
            return
        warnings.warn(
            "Every score is under the threshold: the mask keeps no weight. "
            "The search stops, and the scores as they are bring the frozen "
            "mask to the target. Use Ticket.from_supermask(..., mask='frozen'),"
            " or a lower score_penalty or learning rate.",
            stacklevel=4,  # Keras, which called
        )

    def _lowest_counted(self, sparsity: float) -> Arrays:
        scores, kept = self._arrays()
        capacity = {key: int(q.sum()) for key, q in kept.items()}
        shapes = {key: q.shape for key, q in kept.items()}
        total = sum(q.size for q in kept.values())
        # Ties of exact=False may have left less than the target.
        sparsity = max(sparsity, 1 - sum(capacity.values()) / total)
        pools = scopes.pools(self.scope, shapes, sparsity, capacity)
        return select(scores, pools, kept)

    def _above_threshold(self) -> Arrays:
        scores, kept = self._arrays()
        groups = [list(kept)] if self.scope == "global" else [[k] for k in kept]
        for group in groups:
            unfrozen = np.concatenate([scores[k][kept[k]] for k in group])
            count = math.ceil(self._fraction * unfrozen.size)
            if count:
                threshold = np.partition(unfrozen, count - 1)[count - 1]
                for key in group:
                    kept[key] = kept[key] & (scores[key] > threshold)
        return kept

    def _arrays(self) -> tuple[Arrays, Arrays]:
        """Scores and q of all supermasks, under keys of their own."""
        scores: Arrays = {}
        kept: Arrays = {}
        for i, layer in enumerate(self._supermasks):
            masks = layer.masks("frozen")
            values = values_of(layer.scores)
            sign = -1 if self.invert else 1
            scores.update({f"{i}:{key}": sign * p for key, p in values.items()})
            kept.update({f"{i}:{key}": q for key, q in masks.items()})
        return scores, kept

    def _assign(self, kept: Arrays) -> None:
        kept = dict(agreed(self.model.distribute_strategy, kept))
        for i, layer in enumerate(self._supermasks):
            layer.freeze({key: kept[f"{i}:{key}"] for key in layer.scores})

    def _excess(self, sparsity: float) -> int:
        """How many weights are still to go on the way to a sparsity."""
        if self._top_k:  # each with a budget of its own
            return sum(
                excess(layer.masks("effective"), sparsity)
                for layer in self._supermasks
            )
        return excess(self._arrays()[1], sparsity)

    def _density(self, which: str) -> float:
        masks = [
            mask
            for layer in self._supermasks
            for mask in layer.masks(
                "effective" if self._top_k else which
            ).values()
        ]
        return sum(int(m.sum()) for m in masks) / sum(m.size for m in masks)


def _freezes(epochs: int, every: int, rate: str) -> list[int]:
    """Epochs, counted from 0, at whose end there is a freeze."""
    if rate == "paper":
        return [e for e in range(epochs) if (e + 1) % every == 0]
    return [e for e in range(1, epochs) if e % every == 0]
