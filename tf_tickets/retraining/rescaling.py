"""One learned factor for each tensor of a ticket's start: masked GradInit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import keras

from tf_tickets.loss.objective import Loss, Objective, computing_in
from tf_tickets.retraining.scalars import ScaleOptimizer
from tf_tickets.retraining.search import Search, endless, without_dropout
from tf_tickets.selection import named_weights
from tf_tickets.ticket import Ticket, check_ticket

Row = dict[str, Any]
_NEEDED_BY = "rescale_initialization"
# Offsets may vanish; a factor of zero would kill any other tensor.
_OFFSETS = ("bias", "beta", "recurrent_bias")


@dataclasses.dataclass(frozen=True)
class Rescaling:
    """Factors for the tensors of a model.

    Attributes:
        scales: ``{path: factor}`` of the trainable weights; tensors that are
            all zero have none.
        history: One row per iteration: ``iteration``, ``loss``,
            ``gradient_norm``, ``constrained`` (whether it was above the
            bound, so that it was lowered) and, where not, ``loss_after``,
            the loss after the first step.

    Example:

    >>> from tf_tickets.retraining import Rescaling
    >>> model = keras.Sequential(
    ...     [keras.Input((1,)), keras.layers.Dense(1, name="dense")])
    >>> model.layers[0].kernel.assign([[3.0]]) is not None
    True
    >>> Rescaling({model.layers[0].kernel.path: 0.5}).apply(model)
    >>> float(model.layers[0].kernel.numpy()[0, 0])
    1.5
    """

    scales: Mapping[str, float]
    history: Sequence[Row] = ()

    def apply(self, model: keras.Model) -> None:
        """Multiply the weights of ``model``, in place."""
        named = named_weights(model)
        missing = sorted(set(self.scales) - set(named))
        if missing:
            raise ValueError(
                "These weights are not in the model. "
                f"Received: scales of {missing}"
            )
        for path, scale in self.scales.items():
            value = named[path].numpy()
            named[path].assign((value * scale).astype(value.dtype))

    def ticket(self, ticket: Ticket) -> Ticket:
        """The ticket with rescaled start weights and the same masks."""
        if ticket.weights is None:
            raise ValueError(
                "This ticket has no start weights to rescale. "
                f"Received: ticket={ticket!r}"
            )
        missing = sorted(set(self.scales) - set(ticket.weights))
        if missing:
            raise ValueError(
                "The ticket has no start weights for these. "
                f"Received: scales of {missing}"
            )
        return Ticket(
            ticket.masks,
            {
                key: (value * self.scales.get(key, 1.0)).astype(value.dtype)
                for key, value in ticket.weights.items()
            },
            {**ticket.metadata, "rescaled": dict(self.scales)},
            scores=ticket.scores,
        )


def rescale_initialization(
    model: keras.Model,
    data: Any,
    *,
    ticket: Ticket | None = None,
    iterations: int = 180,
    step_size: float = 0.1,
    gradient_norm: float = 1.0,
    optimizer: Literal["sgd", "adam"] = "sgd",
    learning_rate: float = 1e-2,
    minimum: float = 0.01,
    clip: float = 1.0,
    batch_size: int = 64,
    loss: Loss | None = None,
    on_iteration: Callable[[Row], None] | None = None,
    jit_compile: bool = False,
) -> Rescaling:
    r"""Learn a factor for each tensor that makes the first step count.

    Each weight tensor starts as $w = \alpha w_0$. An iteration looks at the
    gradient $g$ of the loss on a batch $S$. If $\|g\| > \gamma$, it lowers
    $\|g\|$; else it lowers $L(w - \eta\,g/\|g\|)/\eta$, the loss after one
    step, on half of $S$ and new data, $g$ taken as given. The $\alpha$ follow
    Adam with separate first moments for the two kinds of iteration.

    Everything happens in the masked network: $w_0$ and $g$ are zero where the
    mask prunes. Normalization uses the statistics of the batch, dropout is
    off, and no running statistic moves.

    Args:
        model: A built model; its weights are multiplied in place at the end.
            Masks enforced on it hold.
        data: To train on; see `tf_tickets.loss.batches.batches`. Batches of
            another size than the first are left out.
        ticket: Applied to the model first, start weights included.
        iterations: How many, at least 1. A third of them can be enough.
        step_size: $\eta$, the learning rate of the training to come.
        gradient_norm: $\gamma$.
        optimizer: Whose first step it is: `"sgd"` as above, or `"adam"`, with
            the step $\eta\,\mathrm{sign}(g)$ and the sum of magnitudes as the
            norm.
        learning_rate: Of the factors.
        minimum: Least factor of a weight; that of a bias is 0.
        clip: Bound of a factor's gradient.
        batch_size: Of the batches that arrays are cut into; $S$ has two.
        loss: `None` for the loss that the model is compiled with, without
            regularization.
        on_iteration: Called with each row of the history, to show progress.
        jit_compile: Compile with XLA.

    Returns:
        The factors and the history.

    Raises:
        ValueError: If an option is out of its range, the data or the loss is
            missing, the ticket does not fit, or the loss is not finite. The
            weights are as before then, or as the ticket has them.

    Reference:
        Zhu et al., "GradInit: Learning to Initialize Neural Networks for
        Stable and Efficient Training", NeurIPS 2021, algorithm 1; Jaiswal et
        al., "Spending Your Winning Lottery Better After Drawing It", 2021.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([
    ...     keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(3)])
    >>> data = np.eye(4, dtype="float32"), np.array([0, 1, 2, 0])
    >>> rescaling = tt.retraining.rescale_initialization(
    ...     model, data, ticket=tt.prune(model, sparsity=0.5), iterations=3,
    ...     loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> len(rescaling.scales), len(rescaling.history)
    (2, 3)
    """
    _validate(
        iterations=iterations,
        step_size=step_size,
        gradient_norm=gradient_norm,
        learning_rate=learning_rate,
        minimum=minimum,
        clip=clip,
    )
    if optimizer not in ("sgd", "adam"):
        raise ValueError(
            "`optimizer` must be 'sgd' or 'adam'. "
            f"Received: optimizer={optimizer!r}"
        )
    if loss is None and getattr(model, "compiled", False):
        compiled_loss = getattr(model, "loss", None)
        if isinstance(compiled_loss, str) or callable(compiled_loss):
            loss = compiled_loss
    objective = Objective(model, needed_by=_NEEDED_BY, loss=loss, training=True)
    feed = endless(data, _NEEDED_BY, batch_size, objective.needs_labels)
    if ticket is not None:
        check_ticket(ticket)
        ticket.apply(model)
    with computing_in(model), without_dropout(model):
        search = Search(objective, step_size, optimizer, jit_compile)
        scales = ScaleOptimizer(
            [
                0.0 if key.split("#")[0].endswith(_OFFSETS) else minimum
                for key in search.scaled
            ],
            learning_rate,
            clip,
        )
        history: list[Row] = []
        for iteration in range(1, iterations + 1):
            row = search.iterate(scales, feed, gradient_norm)
            history.append({"iteration": iteration, **row})
            if on_iteration is not None:
                on_iteration(dict(history[-1]))
    rescaling = Rescaling(
        {
            key: float(scale)
            for key, scale in zip(search.scaled, scales.values, strict=True)
        },
        history,
    )
    rescaling.apply(model)
    return rescaling


def _validate(**options: Any) -> None:
    for name, value in options.items():
        whole = name == "iterations"
        fine = (
            isinstance(value, int)
            and not isinstance(value, bool)
            and value >= 1
            if whole
            else value >= 0
            if name == "minimum"
            else value > 0
        )
        if not fine:
            wanted = "a whole number of at least 1" if whole else "positive"
            raise ValueError(
                f"`{name}` must be {wanted}. Received: {name}={value!r}"
            )
