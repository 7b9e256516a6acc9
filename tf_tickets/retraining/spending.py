"""Apply a set of tweaks to a model and its ticket, in one copy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import keras

from tf_tickets import checks
from tf_tickets.network.copier import Copier, compile_like
from tf_tickets.network.graph import require_graph
from tf_tickets.retraining.activations import ActivationReport, Exchange
from tf_tickets.retraining.rescaling import Rescaling, rescale_initialization
from tf_tickets.retraining.skips import Injection, SkipReport
from tf_tickets.retraining.soft_labels import LabelSmoothing, smoothed
from tf_tickets.selection import named_weights, values_of
from tf_tickets.ticket import Ticket, check_ticket

_ORDER = ("activations", "skips", "rescale", "labels")
TWEAKS: Mapping[str, tuple[str, ...]] = {
    "architecture": ("activations", "skips"),
    "recipe": ("rescale", "labels"),
    "paper": _ORDER,
}
"""``{name: tweaks}``: what `spend` takes for several, in their order."""


@dataclasses.dataclass(frozen=True)
class Spending:
    """What `spend` did.

    Attributes:
        tweaks: Names of the tweaks that were applied.
        ticket: The ticket under the keys of the new model: the masks that
            were given, the start weights that training begins with.
        activations: Report of the activations, if they were exchanged.
        skips: Report of the skip connections, if there are any.
        rescaling: The factors of the start weights, if they were rescaled.
        loss: The smoothed loss, if labels were smoothed.

    Example:

    >>> import tf_tickets as tt
    >>> ticket = tt.Ticket({"kernel": np.array([[True, False]])})
    >>> print(tt.retraining.Spending(("activations",), ticket))
    activations on <Ticket: 1 of 2 weights in 1 tensors, sparsity 0.5000>;
    0 parameters added, sparsity 0.5000 with them
    """

    tweaks: tuple[str, ...]
    ticket: Ticket
    activations: ActivationReport | None = None
    skips: SkipReport | None = None
    rescaling: Rescaling | None = None
    loss: LabelSmoothing | None = None

    @property
    def added_parameters(self) -> int:
        """Trainable parameters that the model did not have before."""
        return self.skips.added if self.skips else 0

    @property
    def sparsity(self) -> float:
        """Sparsity with what was added counted as kept."""
        kept = self.ticket.kept + self.added_parameters
        return 1 - kept / (self.ticket.size + self.added_parameters)

    def __str__(self) -> str:
        lines = [
            f"{', '.join(self.tweaks)} on {self.ticket!r}; "
            f"{self.added_parameters:,} parameters added, sparsity "
            f"{self.sparsity:.4f} with them"
        ]
        lines += [str(r) for r in (self.activations, self.skips) if r]
        if self.rescaling:
            scales = self.rescaling.scales.values()
            lines.append(
                f"{len(scales)} tensors rescaled by {min(scales):.3f} to "
                f"{max(scales):.3f}"
            )
        if self.loss:
            lines.append(f"labels smoothed by {self.loss.alpha}")
        return "\n".join(lines)


@overload
def spend(
    ticket: Ticket,
    model: keras.Model,
    tweaks: str | Sequence[str] = ...,
    *,
    data: Any = ...,
    options: Mapping[str, Mapping[str, Any]] | None = ...,
    return_report: Literal[False] = ...,
) -> keras.Model: ...


@overload
def spend(
    ticket: Ticket,
    model: keras.Model,
    tweaks: str | Sequence[str] = ...,
    *,
    data: Any = ...,
    options: Mapping[str, Mapping[str, Any]] | None = ...,
    return_report: Literal[True],
) -> tuple[keras.Model, Spending]: ...


def spend(
    ticket: Ticket,
    model: keras.Model,
    tweaks: str | Sequence[str] = "paper",
    *,
    data: Any = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    return_report: bool = False,
) -> keras.Model | tuple[keras.Model, Spending]:
    """A model that retrains a ticket better than the one that drew it.

    The tweaks change architecture and recipe; no mask changes. The new model
    holds the ticket, its start weights and masks, and is compiled like the
    model, with a fresh optimizer and, for `"labels"`, a smoothed loss: what
    is left to do is ``fit``.

    Args:
        ticket: A `Ticket` of ``model``, with or without start weights.
        model: A functional model or a sequential one with a known input
            shape. It is not changed.
        tweaks: Name of a tweak or of a set, or a list of names, whose order
            does not matter. Default `"paper"`. The tweaks are

            - `"activations"`: `replace_activations`, to swish;
            - `"skips"`: `inject_skip_connections`;
            - `"rescale"`: `rescale_initialization`, on ``data``;
            - `"labels"`: `LabelSmoothing` of 0.1 over the other classes;

            and the sets `"architecture"` (the paper's AT: the first two),
            `"recipe"` (TRT: the last two) and `"paper"` (all).
        data: For `"rescale"`: what to train on. Default `None`.
        options: ``{tweak: {option: value}}``: options of the functions named
            above; for `"labels"` those of `smoothed`. Default: none. As one
            copy of the model takes all tweaks, ``in_place`` is not among
            them.
        return_report: Boolean: also return what each tweak did. Default
            `False`.

    Returns:
        The model; with ``return_report`` a pair of it and a `Spending`.

    Raises:
        ValueError: If a tweak is unknown or cannot be applied to this model,
            saying why; nothing is done halfway.

    Reference:
        Jaiswal et al., "Spending Your Winning Lottery Better After Drawing
        It", 2021.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 1)),
    ...     keras.layers.Conv2D(4, 3, padding="same", activation="relu"),
    ...     keras.layers.Conv2D(4, 3, padding="same", activation="relu"),
    ...     keras.layers.Flatten(), keras.layers.Dense(3)])
    >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(
    ...     from_logits=True))
    >>> x, y = np.ones((8, 8, 8, 1), "float32"), np.arange(8) % 3
    >>> ticket = tt.prune(model, sparsity=0.9)
    >>> better = tt.retraining.spend(
    ...     ticket, model, ["architecture", "labels"])
    >>> _ = better.fit(x, y, verbose=0)
    >>> better.loss.alpha
    0.1
    """
    chosen = _chosen(tweaks)
    check_ticket(ticket)
    checks.mapping("options", options)
    for name, value in (options or {}).items():
        checks.mapping(name, value)
    given = {name: dict(value) for name, value in (options or {}).items()}
    strangers = sorted(set(given) - set(chosen))
    if strangers:
        raise ValueError(
            f"`options` are for the tweaks {list(chosen)}. "
            f"Received: options for {strangers}"
        )
    if "rescale" in chosen and data is None:
        raise ValueError(
            "The tweak 'rescale' needs `data` to train on. Received: data=None"
        )
    require_graph(
        model,
        "Spending a ticket",
        "For another model use the tweaks one by one: "
        "replace_activations(..., in_place=True), rescale_initialization and "
        "LabelSmoothing work with it.",
    )
    loss = None
    if "labels" in chosen:
        if not getattr(model, "compiled", False):
            raise ValueError(
                "The tweak 'labels' smooths the compiled loss: compile the "
                f"model first. Received: model={model.name!r}, not compiled"
            )
        loss = smoothed(model.loss, **given.get("labels", {}))
    exchange = injection = None
    if "activations" in chosen:
        exchange = Exchange(**given.get("activations", {}))
    replace = exchange.replace if exchange else lambda layer: None
    if "skips" in chosen:
        injection = Injection(model, replace=replace, **given.get("skips", {}))
    copier = injection.copier() if injection else Copier(replace=replace)
    better = copier.copy(model)
    reports: dict[str, Any] = {}
    if exchange is not None:
        reports["activations"] = exchange.report(model, copier.keys)
    if injection is not None:
        reports["skips"] = injection.report(copier.keys)
    keyed = ticket.renamed(model, copier.keys)
    keyed.apply(better, weights="start" if ticket.weights else "keep")
    if "rescale" in chosen:
        reports["rescaling"] = rescale_initialization(
            better, data, **given.get("rescale", {})
        )
    if loss is not None:
        compile_like(model, better, loss=loss)
        reports["loss"] = loss
    if not return_report:
        return better
    final = _final(keyed, better, chosen, reports.get("rescaling"))
    return better, Spending(chosen, final, **reports)


def _chosen(tweaks: str | Sequence[str]) -> tuple[str, ...]:
    asked = [tweaks] if isinstance(tweaks, str) else list(tweaks)
    unknown = [t for t in asked if t not in TWEAKS and t not in _ORDER]
    if unknown:
        raise ValueError(
            f"Tweaks are {list(_ORDER)} and the sets {list(TWEAKS)}. "
            f"Received: {unknown}"
        )
    wanted = {name for t in asked for name in TWEAKS.get(t, (t,))}
    return tuple(name for name in _ORDER if name in wanted)


def _final(
    ticket: Ticket,
    model: keras.Model,
    tweaks: tuple[str, ...],
    rescaling: Rescaling | None,
) -> Ticket:
    """The ticket with a start weight for every weight of the new model."""
    start = values_of(named_weights(model))
    # The ticket's own are not masked, as those of the model are.
    own = ticket.weights or {}
    start |= rescaling.scaled(own) if rescaling else own
    return Ticket(
        ticket.masks,
        start,
        {**ticket.metadata, "tweaks": list(tweaks)},
        scores=ticket.scores,
    )
