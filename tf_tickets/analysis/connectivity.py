"""Linear mode connectivity: is there a barrier between two networks?"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import checks, progress
from tf_tickets.figures import Path, axes_or_new, save
from tf_tickets.loss.batches import Batch
from tf_tickets.loss.objective import (
    Loss,
    Tensors,
    call,
    compiled,
    computing_in,
    mean_over,
    substituted,
)
from tf_tickets.loss.over_data import LossOverData
from tf_tickets.selection import match_keys, named_weights, values_of
from tf_tickets.snapshot import Snapshot

# `(y_true, y_pred) -> the error of each example`.
Error: TypeAlias = Callable[[Any, Any], Any]
End: TypeAlias = keras.Model | Snapshot | Mapping[str, Any]

# "We say that a network is stable if its instability is near 0 (we use < 2 %
# as a threshold)": section 2 of the paper, of the error.
_STABLE = 0.02


@dataclasses.dataclass(frozen=True, eq=False)
class ConnectivityCurve:
    """Loss and error on the straight line between two networks.

    Attributes:
        positions: Where on the line, from 0 (the first network) to 1.
        curves: What is measured there: `"loss"`, and `"error"` where labels
            are classes, as a share between 0 and 1; and of test data
            `"test_loss"` and `"test_error"`.

    Example:

    >>> from tf_tickets.analysis import ConnectivityCurve
    >>> curve = ConnectivityCurve(
    ...     np.array([0.0, 0.5, 1.0]), {"error": np.array([0.1, 0.4, 0.2])})
    >>> round(curve.barrier, 2), curve.is_stable
    (0.25, False)
    """

    positions: np.ndarray
    curves: Mapping[str, np.ndarray]

    @property
    def barriers(self) -> dict[str, float]:
        """How far each curve rises above the mean of its two ends."""
        return {
            name: float(np.max(values) - (values[0] + values[-1]) / 2)
            for name, values in self.curves.items()
        }

    @property
    def barrier(self) -> float:
        """That of the error, or of the loss if there is none; of test data.

        Of the training data if there were no others. Ends that are not
        equally good make at least half of their difference.
        """
        return self.barriers[self._shown()[-1]]

    @property
    def is_stable(self) -> bool:
        """Whether the error barrier is below 2 %, the paper's threshold.

        Raises:
            ValueError: If no error was measured.
        """
        name = self._shown()[-1]
        if not name.endswith("error"):
            raise ValueError(
                "Stable is said of an error, and labels that are no classes "
                "have none: give linear_connectivity an `error`. "
                f"Received: curves of {', '.join(self.curves)}"
            )
        return self.barrier < _STABLE

    def _shown(self) -> list[str]:
        found = [name for name in self.curves if name.endswith("error")]
        return found or [n for n in self.curves if n.endswith("loss")]

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{name.replace('_', ' ')} {value:.4g}"
            for name, value in self.barriers.items()
        )
        return f"<ConnectivityCurve: barriers of {parts}>"

    def plot(self, path: Path | None = None, *, axes: Any = None) -> Any:
        """Draw the error, or the loss without one; see `tf_tickets.figures`.

        A dashed line joins the ends of each curve: what rises above it is in
        the way.

        Args:
            path: An image file to write, or `None`.
            axes: Matplotlib axes to draw on; a new figure if `None`.

        Returns:
            The axes.
        """
        axes = axes_or_new(axes)
        names = self._shown()
        barriers = self.barriers
        for name in names:
            values = self.curves[name]
            [line] = axes.plot(
                self.positions,
                values,
                "o-",
                ms=3,
                label=f"{name.replace('_', ' ')}, barrier {barriers[name]:.3g}",
            )
            axes.plot(
                [self.positions[0], self.positions[-1]],
                [values[0], values[-1]],
                "--",
                color=line.get_color(),
                lw=0.8,
            )
        axes.set_xlabel("from the first network (0) to the second (1)")
        axes.set_ylabel(names[-1].rpartition("_")[2])
        axes.legend()
        save(axes.figure, path)
        return axes


def linear_connectivity(
    first: keras.Model,
    second: End,
    data: Any,
    *,
    test_data: Any = None,
    points: int = 30,
    error: Error | None = None,
    loss: Loss | None = None,
    training: bool = False,
    batch_size: int = 256,
    batches: int | None = None,
    verbose: progress.Verbosity = "auto",
) -> ConnectivityCurve:
    r"""Loss and error of $(1 - \alpha)\,w_1 + \alpha\,w_2$, and their barriers.

    The barrier is the highest point of the line less the mean of its ends:
    $\max_\alpha E_\alpha - (E_0 + E_1) / 2$. Two networks with none lie in one
    valley of the loss. `instability` asks this of two copies of one network.

    All weights move, moving statistics of normalization included, which far
    from both ends say little; ``training=True`` takes those of each batch in
    their place. Whole numbers stay those of the first network.

    Args:
        first: A built model; compiled, unless there is a ``loss``. Nothing
            in it changes.
        second: A model of the same architecture, a `Snapshot` of one, or all
            of its weights as ``{key: array}``.
        data: The training data; see `tf_tickets.loss.batches.batches`.
        test_data: The same of test data, or `None`.
        points: Networks on the line, both ends included; 30 by default, as in
            the paper.
        error: ``(y_true, y_pred) -> error of each example``. `None` counts
            wrong classes, where labels are classes, by number or one-hot,
            and outputs a score for each of at least two; other labels get no
            error.
        loss: Instead of the compiled loss.
        training: Whether normalization uses the statistics of the batch, and
            dropout is active. `False` by default.
        batch_size: Samples in a batch where arrays are cut into batches; 256
            by default.
        batches: Read at most this many batches; `None` for all.
        verbose: `"auto"`, the default, shows a bar once this has taken a
            second, 1 at once, 2 one line at the end, 0 nothing.

    Returns:
        The curves, their barriers and a plot. Sample weights count in the
        loss and not in the error.

    Raises:
        ValueError: If the two are one model or of different architectures, an
            option is out of its range, there is no loss or no data, or the
            loss of an end is not finite.

    Reference:
        Frankle et al., "Linear Mode Connectivity and the Lottery Ticket
        Hypothesis", 2020, section 2.

    Example:

    >>> import tf_tickets as tt
    >>> def at(weight):
    ...     model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    ...     model.compile(loss="mse")
    ...     model.layers[0].kernel.assign([[weight]])
    ...     return model
    >>> data = np.ones((4, 1)), np.zeros((4, 1))  # the loss is weight²
    >>> curve = tt.analysis.linear_connectivity(
    ...     at(-1.0), at(2.0), data, points=4)
    >>> np.round(curve.curves["loss"], 2).tolist(), curve.barrier
    ([1.0, 0.0, 1.0, 4.0], 1.5)
    """
    if second is first:
        raise ValueError(
            "`first` and `second` must be two networks; of one that is "
            "trained twice, take a Snapshot of one end. "
            f"Received: the model {getattr(first, 'name', first)!r} as both"
        )
    measure = _Measure(
        first,
        {"": data, "test_": test_data},
        needed_by="linear_connectivity",
        points=points,
        error=error,
        loss=loss,
        training=training,
        batch_size=batch_size,
        batches=batches,
    )
    with progress.shown(verbose):
        return measure.between(values_of(named_weights(first)), second)


def instability(
    model: keras.Model,
    train: Callable[[keras.Model, int], Any],
    data: Any,
    *,
    seeds: Sequence[int] = (0, 1),
    test_data: Any = None,
    points: int = 30,
    error: Error | None = None,
    loss: Loss | None = None,
    training: bool = False,
    batch_size: int = 256,
    batches: int | None = None,
    verbose: progress.Verbosity = "auto",
) -> ConnectivityCurve:
    """Does it matter in which order a network sees its data from here?

    The model is trained twice from the state it is in, optimizer included,
    with different noise: another order of the data, another augmentation.
    Then the line between the two ends is looked at. A barrier there means
    that the noise decides where training leads. In the paper rewinding finds
    winning tickets where there is none any more, and fails where there is.

    To ask it of the point that pruning rewinds to, train up to there, or put
    a `Snapshot` of it back; to ask it of a ticket, apply the ticket.

    Args:
        model: A built model, compiled unless ``train`` needs no optimizer and
            there is a ``loss``. Afterwards it is in the state that it was in,
            also after an interrupt.
        train: ``(model, seed) -> anything``: trains the model in place, in an
            order that follows from the seed. Two that end with equal weights
            are an error.
        data: As in `linear_connectivity`: what to measure on, not what to
            train on.
        seeds: The two that ``train`` gets; 0 and 1 by default.
        test_data: As in `linear_connectivity`.
        points: Networks on the line, both ends included; 30 by default.
        error: As in `linear_connectivity`.
        loss: Instead of the compiled loss.
        training: As in `linear_connectivity`. `False` by default.
        batch_size: Samples in a batch where arrays are cut into batches; 256
            by default.
        batches: Read at most this many batches; `None` for all.
        verbose: `"auto"`, the default, shows a bar once this has taken a
            second, 1 at once, 2 one line at the end, 0 nothing. What
            ``train`` shows is its own affair.

    Returns:
        The curves, their barriers and a plot.

    Raises:
        ValueError: As `linear_connectivity`, before anything is trained; and
            if both trainings end with the same weights, or not finite.

    Reference:
        Frankle et al., "Linear Mode Connectivity and the Lottery Ticket
        Hypothesis", 2020, algorithm 1.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(
    ...     from_logits=True))
    >>> x, y = np.random.default_rng(0).normal(size=(32, 4)), np.arange(32) % 2
    >>> def train(model, seed):
    ...     ordered = tt.data.shuffled((x, y), seed=seed).batch(8)
    ...     model.fit(ordered, epochs=2, verbose=0)
    >>> tt.analysis.instability(model, train, (x, y)).is_stable
    True
    """
    _check_callable("train", train, "(model, seed)")
    if not isinstance(seeds, Sequence) or len(seeds) != 2:
        raise ValueError(f"`seeds` must be two. Received: seeds={seeds!r}")
    seeds = [checks.whole("seeds", seed, least=0) for seed in seeds]
    measure = _Measure(
        model,
        {"": data, "test_": test_data},
        needed_by="instability",
        points=points,
        error=error,
        loss=loss,
        training=training,
        batch_size=batch_size,
        batches=batches,
    )
    start = Snapshot.take(model)
    optimizer = getattr(model, "optimizer", None)
    ends = []
    for seed in seeds:
        try:
            train(model, seed)
            ends.append(values_of(named_weights(model)))
        finally:
            # One that `train` compiled the model with begins anew each time.
            own = getattr(model, "optimizer", None) is optimizer
            state = start if own else Snapshot(start.variables, {})
            state.restore(model)
    if all(np.array_equal(ends[0][key], ends[1][key]) for key in ends[0]):
        raise ValueError(
            "Both trainings ended with the same weights, so nothing is said "
            "about noise: `train` must order its data by the seed it gets "
            f"(tf_tickets.data.shuffled), and train. Received: seeds={seeds}"
        )
    with progress.shown(verbose):
        return measure.between(*ends)


class _Measure:
    """Loss and error over data, traced once for all weights of a model."""

    def __init__(
        self,
        model: keras.Model,
        data: Mapping[str, Any],
        *,
        needed_by: str,
        points: int,
        error: Error | None,
        loss: Loss | None,
        training: bool,
        batch_size: int,
        batches: int | None,
    ) -> None:
        self.points = checks.whole("points", points, least=3, most=100_000)
        self.model, self.needed_by = model, needed_by
        if error is not None:
            _check_callable("error", error, "(y_true, y_pred)")
        self.parts: dict[str, tuple[LossOverData, Any]] = {}
        for prefix, one in data.items():
            if one is None and prefix:
                continue
            over = LossOverData(
                model,
                one,
                needed_by=needed_by,
                loss=loss,
                training=training,
                batch_size=batch_size,
                batches=batches,
            )
            chosen = error or _wrong_class(over, training)
            self.parts[prefix] = over, _at(over, chosen, training)

    def between(
        self, first: Mapping[str, np.ndarray], second: End
    ) -> ConnectivityCurve:
        """The curves from one end to the other."""
        begin = _tensors(first)
        end = _tensors(_weights(self.model, second))
        positions = np.linspace(0, 1, self.points)
        curves: dict[str, list[float]] = {}
        with (
            computing_in(self.model),
            progress.bar(
                "The line between two networks",
                len(positions) * len(self.parts),
                unit="point",
            ) as step,
        ):
            for prefix, (over, at) in self.parts.items():
                for alpha in positions:
                    weights = _mixed(begin, end, float(alpha))
                    means = mean_over(
                        over.batches, functools.partial(at, weights)
                    )
                    for name, mean in means.items():
                        curve = curves.setdefault(prefix + name, [])
                        curve.append(float(mean))
                    step()
        found = {name: np.array(values) for name, values in curves.items()}
        for name, values in found.items():
            if not np.isfinite(values[[0, -1]]).all():
                raise ValueError(
                    f"{self.needed_by} needs two networks whose loss is "
                    "finite: has training diverged? Received: "
                    f"{name} {values[0]} and {values[-1]} at the ends"
                )
        return ConnectivityCurve(positions, found)


def _at(over: LossOverData, error: Error | None, training: bool) -> Any:
    """``(weights, batch) -> {"loss": ..., "error": ...}``, traced."""
    objective = over.objective

    def at(weights: Tensors, batch: Batch) -> dict[str, Any]:
        found = {"loss": objective(weights, batch)}
        if error is not None:
            with substituted(objective.variables, weights):
                outputs = call(over.model, batch.x, training)
            wrong = tf.cast(error(batch.y, outputs), "float32")
            found["error"] = tf.reduce_mean(wrong)
        return found

    return compiled(at, jit_compile=False, often=True)


def _wrong_class(over: LossOverData, training: bool) -> Error | None:
    """Which examples are put into a wrong class, if labels are classes."""
    batch = over.batches[0]
    with computing_in(over.model):
        # A forward pass for the outputs' shape; it may not change statistics.
        with substituted(over.objective.variables, {}):
            outputs = call(over.model, batch.x, training)
    labels = batch.y
    if not (tf.is_tensor(labels) and tf.is_tensor(outputs)):
        return None
    classes = outputs.shape[-1] if outputs.shape.rank > 1 else None
    if not classes or classes < 2:
        return None
    values = labels.numpy()
    if not np.issubdtype(values.dtype, np.number):
        return None
    places = outputs.shape[:-1]
    if values.shape in (tuple(places), (*places, 1)):
        if not (values == np.round(values)).all():
            return None

        def by_number(y_true: Any, y_pred: Any) -> Any:
            chosen = tf.argmax(y_pred, axis=-1)
            true = tf.reshape(tf.cast(y_true, "int64"), tf.shape(chosen))
            return true != chosen

        return by_number
    one_hot = np.isin(values, (0, 1)).all() and (values.sum(-1) == 1).all()
    if values.shape == tuple(outputs.shape) and one_hot:
        return lambda y_true, y_pred: (
            tf.argmax(y_true, axis=-1) != tf.argmax(y_pred, axis=-1)
        )
    return None


def _check_callable(name: str, value: Any, arguments: str) -> None:
    if not callable(value):
        raise ValueError(
            f"`{name}` must be a function of {arguments}. "
            f"Received: {name}={value!r}"
        )


def _weights(model: keras.Model, end: End) -> dict[str, np.ndarray]:
    """All weights of an end, by the keys of ``model``."""
    if isinstance(end, Snapshot):
        return end.weights_of(model)
    if isinstance(end, Mapping):
        checks.mapping("second", end)
        values = {key: np.asarray(value) for key, value in end.items()}
    else:
        values = values_of(named_weights(end))
    present = named_weights(model)
    keys = match_keys({k: v.shape for k, v in values.items()}, present)
    found = {keys[key]: value for key, value in values.items()}
    missing = [key for key in present if key not in found]
    if missing:
        raise ValueError(
            "The second network must have every weight of the first. "
            f"Received: none for {missing[:8]}"
        )
    return found


def _tensors(values: Mapping[str, np.ndarray]) -> Tensors:
    """In float32 at least, as `Objective.values` has them."""
    tensors = {}
    for key, value in values.items():
        tensor = tf.convert_to_tensor(value)
        if tensor.dtype in (tf.float16, tf.bfloat16):
            tensor = tf.cast(tensor, tf.float32)
        tensors[key] = tensor
    return tensors


def _mixed(first: Tensors, second: Tensors, alpha: float) -> Tensors:
    """Exactly the ends at both ends."""
    return {
        key: tf.cast(1 - alpha, one.dtype) * one
        + tf.cast(alpha, one.dtype) * tf.cast(second[key], one.dtype)
        if one.dtype.is_floating
        else one
        for key, one in first.items()
    }
