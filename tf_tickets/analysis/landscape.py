"""Loss landscapes: over the weights and over the input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import checks, progress
from tf_tickets.figures import Path, axes_or_new, save
from tf_tickets.loss.batches import Batch
from tf_tickets.loss.objective import Loss, Tensors, value_and_gradient
from tf_tickets.loss.over_data import LossOverData, moved
from tf_tickets.network.kinds import output_axes
from tf_tickets.selection import named_weights, owners
from tf_tickets.ticket import Ticket


@dataclasses.dataclass(frozen=True, eq=False)
class LossSurface:
    """The loss over a plane.

    Attributes:
        x: Multiples of the first direction; 0 is the model.
        y: Multiples of the second one.
        losses: ``losses[i, j]`` at ``y[i]`` and ``x[j]``.
        title: What the plane lies in.

    Example:

    >>> from tf_tickets.analysis import LossSurface
    >>> at = np.array([-1.0, 0.0, 1.0])
    >>> surface = LossSurface(at, at, at[:, None] ** 2 + at**2)
    >>> surface.center, round(surface.area_below(1.0), 2)
    (0.0, 0.56)
    """

    x: np.ndarray
    y: np.ndarray
    losses: np.ndarray
    title: str = ""

    @property
    def center(self) -> float:
        """The loss of the model itself."""
        return float(
            self.losses[np.abs(self.y).argmin(), np.abs(self.x).argmin()]
        )

    def area_below(self, rise: float) -> float:
        """Share of the plane where the loss is at most ``rise`` above it."""
        return float((self.losses <= self.center + rise).mean())

    def plot(self, path: Path | None = None, *, axes: Any = None) -> Any:
        """Draw the loss as colors and contours; see `tf_tickets.figures`.

        A cross marks the model itself. Losses that are not finite stay white.

        Args:
            path: An image file to write, or `None`.
            axes: Matplotlib axes to draw on; a new figure if `None`.

        Returns:
            The axes.
        """
        axes = axes_or_new(axes, (5, 4))
        shown = np.where(np.isfinite(self.losses), self.losses, np.nan)
        filled = axes.contourf(self.x, self.y, shown, levels=20)
        lines = axes.contour(filled, levels=filled.levels[::2], colors="w")
        lines.set_linewidth(0.6)
        axes.clabel(lines, fontsize=7)
        axes.plot(0, 0, "+", color="w", ms=10, mew=2)
        axes.figure.colorbar(filled, ax=axes, label="loss")
        kind = "relative size, " if "input" in self.title else ""
        axes.set(
            title=self.title,
            xlabel=f"first direction ({kind}0 is the model)",
            ylabel=f"second direction ({kind}0 is the model)",
            aspect="equal",
        )
        save(axes.figure, path)
        return axes


def loss_landscape(
    model: keras.Model,
    data: Any,
    *,
    span: float = 1.0,
    steps: int = 21,
    seed: int = 0,
    ticket: Ticket | None = None,
    loss: Loss | None = None,
    training: bool = False,
    batch_size: int = 256,
    batches: int | None = None,
    on_point: Callable[[int, int], None] | None = None,
    verbose: progress.Verbosity = "auto",
) -> LossSurface:
    r"""The loss over a random plane through the weights.

    Two random directions, each filter of which has the length of the model's
    filter: $d_{ij} \leftarrow d_{ij}\,\|w_{ij}\|/\|d_{ij}\|$. Thus networks
    whose weights differ in scale can be compared. Biases and normalization
    parameters stay, and so do pruned weights.

    Args:
        model: A built model; compiled, unless there is a ``loss``. Nothing
            in it changes.
        data: See `tf_tickets.loss.batches.batches`.
        span: The plane goes from -span to span in both directions; 1 by
            default.
        steps: Points on a side, odd so that the model is one of them; 21 by
            default.
        seed: Equal ones draw equal directions; 0 by default.
        ticket: As in `hessian_top_eigenvalue`.
        loss: Instead of the compiled loss.
        training: Whether normalization uses the statistics of the batch.
            `False` by default.
        batch_size: Samples in a batch where arrays are cut into batches; 256
            by default.
        batches: Read at most this many batches; `None` for all.
        on_point: Called with (points done, points in all).
        verbose: `"auto"`, the default, shows a bar once this has taken a
            second, 1 at once, 2 one line at the end, 0 nothing.

    Returns:
        The surface.

    Raises:
        ValueError: If an option is out of its range, or there is no data.

    Reference:
        Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS
        2018, section 4.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> model.compile(loss="mse")
    >>> data = np.ones((8, 4)), np.ones((8, 2))
    >>> surface = tt.analysis.loss_landscape(model, data, steps=3)
    >>> surface.losses.shape
    (3, 3)
    """
    grid = _grid(span, steps)
    function = LossOverData(
        model,
        data,
        needed_by="loss_landscape",
        ticket=ticket,
        loss=loss,
        training=training,
        batch_size=batch_size,
        batches=batches,
    )
    weights = function.weights()
    first, second = (
        _filter_normalized(function.random(s), weights, model)
        for s in (2 * seed, 2 * seed + 1)
    )

    def at(a: float, b: float) -> float:
        return function.value(
            moved(
                weights,
                {k: a * d for k, d in first.items()},
                {k: b * d for k, d in second.items()},
            )
        )

    with progress.shown(verbose):
        return _surface(grid, at, "weight space", on_point)


def input_landscape(
    model: keras.Model,
    data: Any,
    *,
    span: float = 0.5,
    steps: int = 21,
    seed: int = 0,
    loss: Loss | None = None,
    batch_size: int = 256,
    batches: int | None = None,
    on_point: Callable[[int, int], None] | None = None,
    verbose: progress.Verbosity = "auto",
) -> LossSurface:
    """The loss when inputs are perturbed along two directions.

    For every sample the first direction is the gradient of its loss with
    respect to the input, the second a random one at a right angle to it; both
    have the length of the sample, so that ``span`` is a relative size. (The
    paper's figure does not say which directions it shows.)

    Args:
        model: A built model with one input; nothing in it changes.
        data: See `tf_tickets.loss.batches.batches`.
        span: The plane goes from -span to span in both directions; 0.5 by
            default.
        steps: Points on a side, odd so that the unchanged samples are one of
            them; 21 by default.
        seed: Equal ones draw equal second directions; 0 by default.
        loss: Instead of the compiled loss.
        batch_size: Samples in a batch where arrays are cut into batches; 256
            by default.
        batches: Read at most this many batches; `None` for all.
        on_point: Called with (points done, points in all).
        verbose: `"auto"`, the default, shows a bar once this has taken a
            second, 1 at once, 2 one line at the end, 0 nothing.

    Returns:
        The surface.

    Raises:
        ValueError: If an option is out of its range, there is no data, or the
            model has several inputs.

    Reference:
        Jaiswal et al., "Spending Your Winning Lottery Better After Drawing
        It", 2021, section 4.6.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> model.compile(loss="mse")
    >>> data = np.ones((8, 4)), np.ones((8, 2))
    >>> surface = tt.analysis.input_landscape(model, data, steps=3)
    >>> bool(surface.losses[1, 2] > surface.center)
    True
    """
    grid = _grid(span, steps)
    function = LossOverData(
        model,
        data,
        needed_by="input_landscape",
        loss=loss,
        batch_size=batch_size,
        batches=batches,
    )
    weights = function.weights()
    rng = np.random.default_rng(seed)
    originals = function.batches
    planes = []

    def input_slope(x: tf.Tensor, batch: Batch) -> tf.Tensor:
        return value_and_gradient(
            lambda x: function.objective(weights, batch._replace(x=x)), x
        )[1]

    for batch in originals:
        if not tf.is_tensor(batch.x):
            raise ValueError(
                "An input landscape needs a model with one input. "
                f"Received: inputs of the structure {type(batch.x).__name__}"
            )
        x = tf.cast(batch.x, tf.float32)
        slope = input_slope(x, batch)
        noise = rng.normal(size=slope.shape)
        planes.append(_plane(x.numpy(), slope.numpy(), noise))

    def at(a: float, b: float) -> float:
        function.batches = [
            Batch(tf.constant(x + a * u + b * v, tf.float32), *batch[1:])
            for batch, (x, u, v) in zip(originals, planes, strict=True)
        ]
        return function.value(weights)

    with progress.shown(verbose):
        return _surface(grid, at, "input space", on_point)


def _grid(span: float, steps: int) -> np.ndarray:
    span = checks.number("span", span, "(0, inf)")
    if checks.whole("steps", steps) < 3 or steps % 2 == 0:
        raise ValueError(
            "`steps` must be an odd number of at least 3. "
            f"Received: steps={steps!r}"
        )
    return np.linspace(-span, span, steps)


def _surface(
    grid: np.ndarray,
    at: Callable[[float, float], float],
    title: str,
    on_point: Callable[[int, int], None] | None,
) -> LossSurface:
    losses = np.empty((grid.size, grid.size))
    with progress.bar(
        f"Loss landscape in {title}", losses.size, unit="point"
    ) as step:
        for i, b in enumerate(grid):
            for j, a in enumerate(grid):
                losses[i, j] = at(float(a), float(b))
                step()
                if on_point is not None:
                    on_point(i * grid.size + j + 1, losses.size)
    return LossSurface(grid, grid.copy(), losses, title)


def _filter_normalized(
    direction: Tensors, weights: Tensors, model: keras.Model
) -> Tensors:
    """Each output's filter at the model's length; vectors are left out."""
    variables, owner = named_weights(model), owners(model)
    normalized = {}
    for key, d in direction.items():
        w = weights[key]
        if len(w.shape) < 2:
            continue
        variable = variables[key]
        outputs = output_axes(owner.get(id(variable)), variable)
        axes = [axis for axis in range(len(w.shape)) if axis not in outputs]
        length, target = (
            tf.sqrt(tf.reduce_sum(t * t, axis=axes, keepdims=True))
            for t in (d, w)
        )
        normalized[key] = tf.math.divide_no_nan(d * target, length)
    return normalized


def _plane(
    x: np.ndarray, slope: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    flat_x, u, v = (a.reshape(len(a), -1) for a in (x, slope, noise))
    length = np.linalg.norm(flat_x, axis=1, keepdims=True)
    u = u / np.maximum(np.linalg.norm(u, axis=1, keepdims=True), 1e-20)
    v = v - (v * u).sum(1, keepdims=True) * u
    v = v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-20)
    return x, (length * u).reshape(x.shape), (length * v).reshape(x.shape)
