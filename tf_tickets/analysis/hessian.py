"""The sharpest direction of a loss: the Hessian's top eigenvalue."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np

from tf_tickets import checks, progress
from tf_tickets.figures import Path, axes_or_new, save
from tf_tickets.loss.objective import Loss, Tensors
from tf_tickets.loss.over_data import LossOverData, inner, moved, scaled
from tf_tickets.ticket import Ticket

Which = Literal["magnitude", "algebraic"]


@dataclasses.dataclass(frozen=True, eq=False)
class TopEigenvalue:
    """An eigenvalue of the Hessian and its direction.

    Attributes:
        value: The eigenvalue.
        vector: ``{key: array}``, of length 1 over all weights; zero where
            masks prune.
        iterations: Products of the Hessian that it took.
        converged: Whether the last two estimates agree to the tolerance.
        estimates: The estimate after each product.

    Example:

    >>> from tf_tickets.analysis import TopEigenvalue
    >>> TopEigenvalue(2.5, {"w": np.ones(1)}, 3, True, (1.0, 2.4, 2.5))
    <TopEigenvalue: 2.5 after 3 products>
    """

    value: float
    vector: Mapping[str, np.ndarray]
    iterations: int
    converged: bool
    estimates: Sequence[float]

    def __repr__(self) -> str:
        state = "" if self.converged else ", not converged"
        return (
            f"<TopEigenvalue: {self.value:.6g} after {self.iterations} "
            f"products{state}>"
        )

    def plot(self, path: Path | None = None, *, axes: Any = None) -> Any:
        """Draw how the estimate settled; see `tf_tickets.figures`.

        Args:
            path: An image file to write, or `None`.
            axes: Matplotlib axes to draw on; a new figure if `None`.

        Returns:
            The axes.
        """
        axes = axes_or_new(axes)
        axes.plot(range(1, len(self.estimates) + 1), self.estimates, "o-")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("Hessian-vector products")
        axes.set_ylabel("estimate of the top eigenvalue")
        save(axes.figure, path)
        return axes


@dataclasses.dataclass(frozen=True, eq=False)
class LossCurve:
    """The loss along a line through a model's weights.

    Attributes:
        distances: How far the weights are moved; 0 is the model.
        losses: The loss there.
        eigenvalue: The curvature at 0 along the line, if it is known.

    Example:

    >>> from tf_tickets.analysis import LossCurve
    >>> float(LossCurve(np.ones(2), np.array([0.5, 0.7])).losses[0])
    0.5
    """

    distances: np.ndarray
    losses: np.ndarray
    eigenvalue: float | None = None

    def plot(self, path: Path | None = None, *, axes: Any = None) -> Any:
        """Draw the loss against the distance; see `tf_tickets.figures`.

        Args:
            path: An image file to write, or `None`.
            axes: Matplotlib axes to draw on; a new figure if `None`.

        Returns:
            The axes.
        """
        axes = axes_or_new(axes)
        axes.plot(self.distances, self.losses, "o-")
        axes.set_xlabel("distance along the direction")
        axes.set_ylabel("loss")
        if self.eigenvalue is not None:
            axes.set_title(f"curvature {self.eigenvalue:.4g}")
        save(axes.figure, path)
        return axes


def hessian_top_eigenvalue(
    model: keras.Model,
    data: Any,
    *,
    ticket: Ticket | None = None,
    which: Which = "magnitude",
    iterations: int = 100,
    tolerance: float = 1e-3,
    seed: int = 0,
    loss: Loss | None = None,
    training: bool = False,
    only: Literal["all", "prunable"] = "all",
    batch_size: int = 256,
    batches: int | None = None,
    jit_compile: bool = False,
    verbose: progress.Verbosity = "auto",
) -> TopEigenvalue:
    r"""Power iteration on the Hessian of the loss, which is never built.

    $v \leftarrow Hv/\|Hv\|$ and $\lambda = v^T H v$, with a second
    differentiation for each product. Under a mask, $H$ is that of the kept
    weights: rows and columns of pruned ones are zero.

    Args:
        model: A built model; compiled, unless there is a ``loss``. Nothing
            in it changes.
        data: See `tf_tickets.loss.batches.batches`. The loss is the mean over
            all of it.
        ticket: Whose masks say which weights are there; `None` for the masks
            enforced on the model, if any.
        which: The eigenvalue of greatest `"magnitude"`, the default, as
            PyHessian takes it, or the `"algebraic"` greatest one.
        iterations: At most this many products; 100 by default.
        tolerance: Stop when an estimate changes by less than this share;
            1e-3 by default.
        seed: Equal ones draw equal start vectors; 0 by default.
        loss: Instead of the compiled loss.
        training: Whether normalization uses the statistics of the batch, and
            dropout is active. `False` by default.
        only: `"all"` trainable weights, the default, or the `"prunable"`
            ones.
        batch_size: Samples in a batch where arrays are cut into batches; 256
            by default.
        batches: Read at most this many batches; `None` for all.
        jit_compile: Compile with XLA. `False` by default.
        verbose: `"auto"`, the default, shows a bar once this has taken a
            second, 1 at once, 2 one line at the end, 0 nothing.

    Returns:
        The eigenvalue, its vector and how it was found.

    Raises:
        ValueError: If an option is out of its range, there is no data or no
            loss, or the Hessian is not finite.

    Reference:
        Yao et al., "PyHessian: Neural Networks Through the Lens of the
        Hessian", 2020.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential(
    ...     [keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.compile(loss="mse")
    >>> data = np.array([[2.0, 0.0], [0.0, 1.0]]), np.zeros((2, 1))
    >>> top = tt.analysis.hessian_top_eigenvalue(model, data)
    >>> round(top.value, 3)
    4.0
    """
    validate(iterations=iterations, tolerance=tolerance, which=which)
    function = LossOverData(
        model,
        data,
        needed_by="hessian_top_eigenvalue",
        ticket=ticket,
        loss=loss,
        training=training,
        only=only,
        batch_size=batch_size,
        batches=batches,
        jit_compile=jit_compile,
    )
    with progress.shown(verbose):
        return power_iteration(function, which, iterations, tolerance, seed)


def power_iteration(
    function: LossOverData,
    which: Which = "magnitude",
    iterations: int = 100,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> TopEigenvalue:
    """`hessian_top_eigenvalue` of a loss that is traced already."""
    # SciPy's `eigsh` is no dependency, and to the same tolerance it took more
    # products here: 21 by default and 7 to 10 with the smallest basis, where
    # this took 5 to 7.
    top = _iterate(function, 0.0, iterations, tolerance, seed)
    if which == "algebraic" and top.value < 0:
        # Moved up by the lowest eigenvalue, the highest one is the greatest.
        return _iterate(function, -top.value, iterations, tolerance, seed)
    return top


def loss_along_eigenvector(
    model: keras.Model,
    data: Any,
    direction: TopEigenvalue | Mapping[str, np.ndarray],
    *,
    distances: Sequence[float] | np.ndarray | None = None,
    loss: Loss | None = None,
    training: bool = False,
    batch_size: int = 256,
    batches: int | None = None,
    verbose: progress.Verbosity = "auto",
) -> LossCurve:
    """The loss when the weights move along the sharpest direction.

    Args:
        model: The model for which the direction was found; only read.
        data: See `tf_tickets.loss.batches.batches`: test data, in the paper.
        direction: What `hessian_top_eigenvalue` returned, or
            ``{key: array}``, taken at the length it has.
        distances: Multiples of the direction; 21 from -0.5 to 0.5 if `None`.
        loss: Instead of the compiled loss.
        training: As in `hessian_top_eigenvalue`.
        batch_size: Samples in a batch where arrays are cut into batches; 256
            by default.
        batches: Read at most this many batches; `None` for all.
        verbose: `"auto"`, the default, shows a bar once this has taken a
            second, 1 at once, 2 one line at the end, 0 nothing.

    Returns:
        The distances and the losses.

    Raises:
        ValueError: If the direction is not of this model.

    Reference:
        Jaiswal et al., "Spending Your Winning Lottery Better After Drawing
        It", 2021, figure 10.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential(
    ...     [keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.layers[0].kernel.assign([[0.0]]) is not None
    True
    >>> model.compile(loss="mse")
    >>> data = np.ones((1, 1)), np.zeros((1, 1))
    >>> top = tt.analysis.hessian_top_eigenvalue(model, data)
    >>> curve = tt.analysis.loss_along_eigenvector(
    ...     model, data, top, distances=[-1.0, 0.0, 2.0])
    >>> curve.losses.tolist()
    [1.0, 0.0, 4.0]
    """
    vector = (
        direction.vector if isinstance(direction, TopEigenvalue) else direction
    )
    checks.mapping("direction", vector)
    function = LossOverData(
        model,
        data,
        needed_by="loss_along_eigenvector",
        loss=loss,
        training=training,
        batch_size=batch_size,
        batches=batches,
    )
    weights = function.weights()
    misfits = [
        key
        for key, v in vector.items()
        if key not in weights or tuple(weights[key].shape) != np.shape(v)
    ]
    if misfits:
        raise ValueError(
            "The direction must be one of this model's weights. "
            f"Received: {misfits}"
        )
    steps = np.linspace(-0.5, 0.5, 21) if distances is None else distances
    losses = []
    with (
        progress.shown(verbose),
        progress.bar("Loss along a line", len(steps), unit="point") as step,
    ):
        for d in steps:
            step_by = {k: float(d) * v for k, v in vector.items()}
            losses.append(function.value(moved(weights, step_by)))
            step()
    return LossCurve(
        np.asarray(steps, np.float64),
        np.array(losses),
        getattr(direction, "value", None),
    )


def validate(
    *, iterations: int, tolerance: float, which: str = "magnitude"
) -> None:
    """Raise if an option of the power iteration is out of its range."""
    checks.whole("iterations", iterations)
    checks.number("tolerance", tolerance, "(0, inf)")
    checks.choice("which", which, ("magnitude", "algebraic"))


def _iterate(
    function: LossOverData,
    shift: float,
    iterations: int,
    tolerance: float,
    seed: int,
) -> TopEigenvalue:
    weights = function.weights()
    vector = _unit(function.random(seed))
    estimates: list[float] = []
    converged = False
    with progress.bar(
        "Power iteration on the Hessian", iterations, unit="product"
    ) as step:
        while not converged and len(estimates) < iterations:
            product = function.product(weights, vector)
            value = inner(vector, product)
            if not np.isfinite(value):
                raise ValueError(
                    "The Hessian is not finite: does the data hold NaN, or has "
                    f"training diverged? Received: {value} after "
                    f"{len(estimates) + 1} products"
                )
            estimates.append(value)
            step()
            converged = len(estimates) > 1 and abs(
                estimates[-1] - estimates[-2]
            ) <= tolerance * (abs(value) + 1e-12)
            found = vector
            product = (
                moved(product, scaled(vector, shift)) if shift else product
            )
            if inner(product, product) == 0:
                converged = True  # a loss without curvature
                break
            vector = _unit(product)
    return TopEigenvalue(
        estimates[-1],
        {key: v.numpy() for key, v in found.items()},
        len(estimates),
        converged,
        tuple(estimates),
    )


def _unit(vector: Tensors) -> Tensors:
    return scaled(vector, 1 / np.sqrt(inner(vector, vector)))
