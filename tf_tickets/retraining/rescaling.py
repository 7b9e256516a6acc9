"""One learned factor for each tensor of a ticket's start: masked GradInit."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import checks, masking, progress
from tf_tickets.loss.batches import Batch, batches
from tf_tickets.loss.objective import Loss, Objective, Tensors, computing_in
from tf_tickets.masking import masked
from tf_tickets.selection import layers_of, named_weights
from tf_tickets.ticket import Ticket, check_ticket

Row = dict[str, Any]
_NEEDED_BY = "rescale_initialization"
# Offsets may vanish; a factor of zero would kill any other tensor.
_OFFSETS = ("bias", "beta", "recurrent_bias")
_DROPOUT = (
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.AlphaDropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)


@dataclasses.dataclass(frozen=True)
class Rescaling:
    """The learned factors of a model's tensors.

    Attributes:
        scales: ``{path: factor}`` of the trainable weights; tensors that are
            all zero have none.
        history: One row per iteration: ``iteration``, ``loss``,
            ``gradient_norm``, ``constrained`` (whether the norm was above its
            bound, so that the iteration lowered it) and, where it was not,
            ``loss_after``, the loss after the first step. Default empty.

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
        """Multiply the weights of ``model`` by their factors, in place.

        Args:
            model: A model that has every weight with a factor.

        Raises:
            ValueError: If it has not.
        """
        named = named_weights(model)
        missing = sorted(set(self.scales) - set(named))
        if missing:
            raise ValueError(
                "These weights are not in the model. "
                f"Received: scales of {missing}"
            )
        values = {path: named[path].numpy() for path in self.scales}
        for path, value in self.scaled(values).items():
            named[path].assign(value)

    def ticket(self, ticket: Ticket) -> Ticket:
        """The ticket with rescaled start weights and the same masks.

        Args:
            ticket: A `Ticket` with start weights.

        Raises:
            ValueError: If it has no start weights, or none for a factor.
        """
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
            self.scaled(ticket.weights),
            {**ticket.metadata, "rescaled": dict(self.scales)},
            scores=ticket.scores,
        )

    def scaled(self, weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """``{path: array}`` times the factors, those without one as they are.

        Args:
            weights: Arrays by path, masked or not.
        """
        return {
            key: (value * self.scales.get(key, 1.0)).astype(value.dtype)
            for key, value in weights.items()
        }


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
    verbose: progress.Verbosity = "auto",
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
        data: What to train on; see `tf_tickets.loss.batches.batches`.
            Batches of another size than the first are left out.
        ticket: A `Ticket` that is applied to the model first, start weights
            included. Default `None`: the model as it is.
        iterations: Whole number of at least 1. Default 180; a third of them
            can be enough.
        step_size: Positive number $\eta$: the learning rate of the training
            to come. Default 0.1.
        gradient_norm: Positive number $\gamma$: the bound of $\|g\|$.
            Default 1.
        optimizer: The optimizer of the training to come: `"sgd"` as above,
            or `"adam"`, whose first step is $\eta\,\mathrm{sign}(g)$ and whose
            $\|g\|$ is the sum of magnitudes. Default `"sgd"`.
        learning_rate: Positive number: that of the factors. Default 0.01.
        minimum: Number of at least 0: least factor of a weight; that of a
            bias is 0. Default 0.01.
        clip: Positive number: gradients of the factors are clipped to
            [-clip, clip]. Default 1.
        batch_size: Whole number: size of the batches that arrays are cut
            into; $S$ has two of them. Default 64.
        loss: A Keras loss, its name or a callable. Default: the loss that
            the model is compiled with, without regularization.
        on_iteration: Called with each row of the history, to show progress.
            Default: nothing is called.
        jit_compile: Boolean: compile with XLA. Default `False`.
        verbose: `"auto"`, the default, shows a bar once this has taken a
            second, 1 at once, 2 one line at the end, 0 nothing.

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
    iterations = checks.whole("iterations", iterations)
    step_size = checks.number("step_size", step_size, "(0, inf)")
    gradient_norm = checks.number("gradient_norm", gradient_norm, "(0, inf)")
    learning_rate = checks.number("learning_rate", learning_rate, "(0, inf)")
    minimum = checks.number("minimum", minimum, "[0, inf)")
    clip = checks.number("clip", clip, "(0, inf)")
    checks.choice("optimizer", optimizer, ("sgd", "adam"))
    if loss is None and getattr(model, "compiled", False):
        compiled_loss = getattr(model, "loss", None)
        if isinstance(compiled_loss, str) or callable(compiled_loss):
            loss = compiled_loss
    objective = Objective(model, needed_by=_NEEDED_BY, loss=loss, training=True)
    feed = _endless(data, _NEEDED_BY, batch_size, objective.needs_labels)
    if ticket is not None:
        check_ticket(ticket)
        ticket.apply(model)
    with computing_in(model), _without_dropout(model):
        search = _Search(objective, step_size, optimizer, jit_compile)
        scales = ScaleOptimizer(
            [
                0.0 if key.split("#")[0].endswith(_OFFSETS) else minimum
                for key in search.scaled
            ],
            learning_rate,
            clip,
        )
        history: list[Row] = []
        with (
            progress.shown(verbose),
            progress.bar("Rescaling the initialization", iterations) as step,
        ):
            for iteration in range(1, iterations + 1):
                row = search.iterate(scales, feed, gradient_norm)
                history.append({"iteration": iteration, **row})
                step()
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


class ScaleOptimizer:
    r"""Adam with two first moments and one second moment.

    Iterations that lower the gradient norm and those that lower the loss
    point to different places: each kind has its own momentum, corrected by
    its own count. How far the gradients spread is estimated over both.

    Args:
        minima: Least value of each factor; all begin at 1.
        learning_rate: Positive number: the step size.
        clip: Positive number $c$: gradients are clipped to $[-c, c]$.
            Default 1.
        betas: Decay of the first moments and of the second. Default
            ``(0.9, 0.999)``.
        epsilon: Added to the root of the second moment. Default 1e-8.

    Reference:
        Zhu et al., "GradInit", NeurIPS 2021, section 4 and its published
        implementation.

    Example:

    >>> from tf_tickets.retraining.rescaling import ScaleOptimizer
    >>> scales = ScaleOptimizer([0.01, 0.01], learning_rate=0.1)
    >>> scales.step(np.array([2.0, -0.5]), constraint=False)
    >>> scales.values.round(4).tolist()
    [0.9, 1.1]
    """

    def __init__(
        self,
        minima: Sequence[float],
        learning_rate: float,
        clip: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
    ) -> None:
        self.minima = np.asarray(minima, np.float64)
        self.values = np.ones(self.minima.shape)
        self.learning_rate = learning_rate
        self.clip = clip
        self.betas = betas
        self.epsilon = epsilon
        self._first = {
            kind: np.zeros(self.minima.shape) for kind in (False, True)
        }
        self._second = np.zeros(self.minima.shape)
        self._steps = {False: 0, True: 0}

    def step(self, gradient: np.ndarray, *, constraint: bool) -> None:
        """Take one step against ``gradient``.

        Args:
            gradient: One number for each factor.
            constraint: Whether it is the gradient of the constraint.
        """
        gradient = np.clip(
            np.asarray(gradient, np.float64), -self.clip, self.clip
        )
        decay, slow = self.betas
        self._steps[constraint] += 1
        first = self._first[constraint]
        first *= decay
        first += (1 - decay) * gradient
        self._second = slow * self._second + (1 - slow) * gradient**2
        mean = first / (1 - decay ** self._steps[constraint])
        spread = self._second / (1 - slow ** sum(self._steps.values()))
        self.values = np.maximum(
            self.values
            - self.learning_rate * mean / (np.sqrt(spread) + self.epsilon),
            self.minima,
        )


class _Search:
    r"""What one iteration computes in the masked network, at any factors.

    Derivatives are taken by the weights $w = \alpha w_0$ of a tensor. The
    inner product with $w_0$ turns them into derivatives by its factor.
    """

    def __init__(
        self,
        objective: Objective,
        step_size: float,
        optimizer: str,
        jit_compile: bool,
    ) -> None:
        self.objective = objective
        self.step_size = step_size
        self.optimizer = optimizer
        masks = masking.attached_masks(objective.model)
        self.masks = {k: tf.constant(m) for k, m in masks.items()}
        self.start = objective.values(self.masks)
        self.trainable = objective.trainable()
        self.scaled = [
            key
            for key in self.trainable
            if float(tf.reduce_max(tf.abs(self.start[key]))) > 0
        ]
        if not self.scaled:
            raise ValueError(
                "Every trainable weight is zero: there is nothing to rescale. "
                f"Received: model={objective.model.name!r}"
            )
        self._slopes, self._norm, self._after = (
            tf.function(step, jit_compile=jit_compile)
            for step in (self.slopes, self.norm_slope, self.after)
        )
        if not jit_compile:
            # The gradient of TensorFlow's swish holds control dependencies.
            # Differentiated again they can form a cycle, which a graph may
            # not have and eager execution does not know.
            self._norm = self.norm_slope

    def iterate(
        self, scales: ScaleOptimizer, feed: Iterator[Batch], bound: float
    ) -> Row:
        """Take one step of ``scales``; a row of the history says how.

        Args:
            scales: The factors and their optimizer.
            feed: Batches of one size, without end.
            bound: Norm of the gradient above which it is lowered.

        Raises:
            ValueError: If the loss or its gradient is not finite.
        """
        first, second = next(feed), next(feed)
        both = _joined(first, second)
        at = tf.constant(scales.values, tf.float32)
        loss, norm, slopes = self._slopes(at, both)
        row: Row = {
            "loss": float(loss),
            "gradient_norm": float(norm),
            "constrained": float(norm) > bound,
        }
        if not np.isfinite([row["loss"], row["gradient_norm"]]).all():
            raise ValueError(
                "The loss or its gradient is not finite: does the data hold "
                f"NaN, or is `step_size` too large? Received: {row}"
            )
        if row["constrained"]:
            direction = self._norm(at, slopes, both)
        else:
            new = _joined(first, next(feed))
            after, direction = self._after(at, slopes, new)
            row["loss_after"] = float(after)
        scales.step(direction.numpy(), constraint=row["constrained"])
        return row

    def weights(self, scales: tf.Tensor) -> Tensors:
        """All weights, with the factors in."""
        values = dict(self.start)
        for i, key in enumerate(self.scaled):
            values[key] = tf.cast(scales[i], values[key].dtype) * values[key]
        return values

    def slopes(
        self, scales: tf.Tensor, batch: Batch
    ) -> tuple[tf.Tensor, tf.Tensor, Tensors]:
        """Loss, norm of its gradient, and the gradient where masks keep."""
        loss, slopes = self.objective.value_and_gradient(
            self.weights(scales), self.trainable, batch
        )
        slopes = {
            key: masked(slope, self.masks[key]) if key in self.masks else slope
            for key, slope in slopes.items()
        }
        return loss, self._norm_of(slopes), slopes

    def norm_slope(
        self, scales: tf.Tensor, slopes: Tensors, batch: Batch
    ) -> tf.Tensor:
        r"""$\partial \|g\| / \partial \alpha$; by the weights it is $H u$."""
        return self._by_factor(
            self.objective.hessian_product(
                self.weights(scales),
                self.trainable,
                self._direction(slopes),
                batch,
            )
        )

    def after(
        self, scales: tf.Tensor, slopes: Tensors, batch: Batch
    ) -> tuple[tf.Tensor, tf.Tensor]:
        r"""$L(w')$ after the first step, $\partial L(w')/\eta/\partial\alpha$.

        The slopes come masked, so the step leaves pruned weights at zero.
        """
        values = self.weights(scales)
        for key, direction in self._direction(slopes).items():
            values[key] = values[key] - self.step_size * direction
        loss, slopes = self.objective.value_and_gradient(
            values, self.trainable, batch
        )
        return loss, self._by_factor(slopes) / self.step_size

    def _by_factor(self, slopes: Tensors) -> tf.Tensor:
        r"""From derivatives by $w = \alpha w_0$ to those by $\alpha$."""
        products = [
            tf.reduce_sum(slopes[key] * self.start[key]) for key in self.scaled
        ]
        return tf.stack([tf.cast(p, tf.float32) for p in products])

    def _direction(self, slopes: Tensors) -> Tensors:
        r"""$u = \partial \|g\| / \partial g$, which is also the first step."""
        if self.optimizer == "adam":
            return {key: tf.sign(slope) for key, slope in slopes.items()}
        norm = self._norm_of(slopes)
        return {k: s / tf.cast(norm, s.dtype) for k, s in slopes.items()}

    def _norm_of(self, slopes: Tensors) -> tf.Tensor:
        if self.optimizer == "adam":
            return tf.add_n([tf.reduce_sum(tf.abs(s)) for s in slopes.values()])
        squares = tf.add_n([tf.reduce_sum(s * s) for s in slopes.values()])
        # A gradient of zero must not be divided by zero.
        return tf.sqrt(squares + 1e-20)


def _endless(
    data: Any, needed_by: str, batch_size: int, labels: bool
) -> Iterator[Batch]:
    """Batches of one size, again and again; the first is read at once."""

    def read() -> Iterator[Batch]:
        return batches(
            data,
            needed_by=needed_by,
            batch_size=batch_size,
            labels=labels,
        )

    size = next(read()).size

    def feed() -> Iterator[Batch]:
        while True:
            for batch in read():
                if batch.size == size:
                    yield batch

    return feed()


def _joined(a: Batch, b: Batch) -> Batch:
    return Batch(
        *(
            None
            if one is None
            else keras.tree.map_structure(
                lambda s, t: tf.concat([s, t], 0), one, other
            )
            for one, other in zip(a, b, strict=True)
        )
    )


@contextlib.contextmanager
def _without_dropout(model: keras.Model) -> Iterator[None]:
    """Inside, training mode means batch statistics and nothing else."""
    with contextlib.ExitStack() as undo:
        for layer in layers_of(model):
            for name in ("rate", "dropout", "recurrent_dropout"):
                value = vars(layer).get(name)
                known = isinstance(layer, _DROPOUT) or name != "rate"
                if known and isinstance(value, float) and value > 0:
                    undo.callback(setattr, layer, name, value)
                    setattr(layer, name, 0.0)
        yield
