"""What flows through a network: zero activations, gradients of kept weights."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import checks, progress
from tf_tickets.figures import Path, bars, save
from tf_tickets.loss.batches import batches as read
from tf_tickets.loss.objective import Loss, call
from tf_tickets.loss.over_data import LossOverData
from tf_tickets.network.inputs import replaced_call
from tf_tickets.selection import layers_of
from tf_tickets.ticket import Ticket

_LAYERS = (
    keras.layers.ELU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ReLU,
)
_NEVER = (keras.activations.linear, keras.activations.softmax)
# Functions called in a functional model, by the names of their nodes.
_FUNCTIONS = {
    *("relu", "relu6", "silu", "gelu", "mish", "elu", "selu", "celu"),
    *("leakyrelu", "hardsilu", "tanh", "sigmoid", "softplus"),
}


@dataclasses.dataclass(frozen=True)
class ActivationSparsity:
    """Share of a network's activations that are zero.

    Attributes:
        layers: ``{layer: share}`` in the order in which they first run.
        total: Share of all activations together.
        threshold: What counts as zero: magnitudes up to this.

    Example:

    >>> from tf_tickets.analysis import ActivationSparsity
    >>> print(ActivationSparsity({"relu": 0.5}, total=0.5, threshold=1e-3))
    50.00% of the activations are at most 0.001
      relu: 50.00%
    """

    layers: Mapping[str, float]
    total: float
    threshold: float

    def __str__(self) -> str:
        lines = [
            f"{self.total:.2%} of the activations are at most "
            f"{self.threshold:g}"
        ]
        lines += [f"  {name}: {v:.2%}" for name, v in self.layers.items()]
        return "\n".join(lines)

    def plot(self, path: Path | None = None, *, axes: Any = None) -> Any:
        """Draw a bar for each layer; see `tf_tickets.figures`.

        Args:
            path: An image file to write, or `None`.
            axes: Matplotlib axes to draw on; a new figure if `None`.

        Returns:
            The axes.
        """
        label = f"share of activations up to {self.threshold:g}"
        axes = bars(self.layers, label, axes=axes, form="{:.1%}")
        axes.set_xlim(0, 1.1)
        save(axes.figure, path)
        return axes


def activation_sparsity(
    model: keras.Model,
    data: Any,
    *,
    threshold: float = 1e-2,
    batch_size: int = 256,
    batches: int | None = None,
    verbose: progress.Verbosity = "auto",
) -> ActivationSparsity:
    """Count the activations that are zero, layer by layer.

    Counted are `Activation`, `ReLU` and the like, ``activation=`` arguments
    and activation functions called in a functional model, nested models
    included; not softmax.

    Args:
        model: A built model of any kind; only read. It runs eagerly, in
            inference mode.
        data: See `tf_tickets.loss.batches.batches`; labels are not needed.
        threshold: Count magnitudes up to this; 1e-2 by default. The paper
            does not give its own, its published code has 1e-2. With 0 a swish
            would never be counted.
        batch_size: Samples in a batch where arrays are cut into batches; 256
            by default.
        batches: Read at most this many batches; `None` for all.
        verbose: `"auto"`, the default, shows a bar once this has taken a
            second, 1 at once, 2 one line at the end, 0 nothing.

    Returns:
        The shares.

    Raises:
        ValueError: If the model has no activations, or there is no data.

    Reference:
        Jaiswal et al., "Spending Your Winning Lottery Better After Drawing
        It", 2021, Table A1.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential(
    ...     [keras.Input((2,)), keras.layers.ReLU(name="relu")])
    >>> x = np.array([[1.0, -1.0], [-2.0, -3.0]], "float32")
    >>> tt.analysis.activation_sparsity(model, x).layers
    {'relu': 0.75}
    """
    threshold = checks.number("threshold", threshold, "[0, inf)")
    zeros: dict[str, int] = {}
    sizes: dict[str, int] = {}

    def record(name: str, tensor: Any) -> None:
        for value in keras.tree.flatten(tensor):
            value = keras.ops.convert_to_numpy(value)
            near = np.abs(value.astype(np.float32)) <= threshold
            zeros[name] = zeros.get(name, 0) + int(np.count_nonzero(near))
            sizes[name] = sizes.get(name, 0) + value.size

    with (
        _recording(model, record),
        progress.shown(verbose),
        progress.bar("Activations of the data", batches, unit="batch") as step,
    ):
        for batch in read(
            data,
            needed_by="activation_sparsity",
            batch_size=batch_size,
            limit=batches,
            labels=False,
        ):
            call(model, batch.x, training=False)
            step()
    if not sizes:
        raise ValueError(
            "The model has no activations to look at. "
            f"Received: model={model.name!r}"
        )
    return ActivationSparsity(
        {name: zeros[name] / sizes[name] for name in sizes},
        sum(zeros.values()) / sum(sizes.values()),
        threshold,
    )


@contextlib.contextmanager
def _recording(
    model: keras.Model, record: Callable[[str, Any], None]
) -> Iterator[None]:
    """Inside, what activations return is recorded."""
    operations: dict[int, Any] = {}
    for layer in layers_of(model):
        operations[id(layer)] = layer
        if isinstance(layer, keras.Function):
            operations |= {id(o): o for o in layer.operations}
    with contextlib.ExitStack() as undo:
        for operation in operations.values():
            activation = vars(operation).get("activation")
            if isinstance(operation, _LAYERS) or (
                not isinstance(operation, keras.layers.Layer)
                and type(operation).__name__.lower() in _FUNCTIONS
            ):
                seen = _watched(operation.call, operation.name, record)
                undo.enter_context(replaced_call(operation, seen))
            elif (
                callable(activation)
                and activation not in _NEVER
                and not isinstance(activation, keras.layers.Layer)
            ):
                undo.callback(setattr, operation, "activation", activation)
                operation.activation = _watched(
                    activation, operation.name, record
                )
        yield


def _watched(
    function: Callable[..., Any],
    name: str,
    record: Callable[[str, Any], None],
) -> Callable[..., Any]:
    def watched(*args: Any, **kwargs: Any) -> Any:
        made = function(*args, **kwargs)
        # Loops of recurrent layers are symbolic: nothing to count there.
        if all(
            isinstance(t, tf.Tensor) and hasattr(t, "numpy")
            for t in keras.tree.flatten(made)
        ):
            record(name, made)
        return made

    return watched


@dataclasses.dataclass(frozen=True)
class GradientFlow:
    """Norms of the gradient in the kept weights.

    Attributes:
        layers: ``{key: norm}`` of each weight tensor.
        kept: ``{key: how many of its weights are kept}``.
        norm: Norm of the whole gradient.
        effective: Mean of the tensors' norms.

    Example:

    >>> from tf_tickets.analysis import GradientFlow
    >>> GradientFlow({"a": 3.0, "b": 4.0}, {"a": 2, "b": 9}, 5.0, 3.5).effective
    3.5
    """

    layers: Mapping[str, float]
    kept: Mapping[str, int]
    norm: float
    effective: float

    def plot(self, path: Path | None = None, *, axes: Any = None) -> Any:
        """Draw a bar for each tensor, from zero; see `tf_tickets.figures`.

        Args:
            path: An image file to write, or `None`.
            axes: Matplotlib axes to draw on; a new figure if `None`.

        Returns:
            The axes.
        """
        return bars(
            self.layers,
            "norm of the gradient in the kept weights",
            path,
            axes=axes,
        )


def gradient_flow(
    model: keras.Model,
    data: Any,
    *,
    ticket: Ticket | None = None,
    order: Literal[1, 2] = 2,
    loss: Loss | None = None,
    training: bool = True,
    only: Literal["all", "prunable"] = "prunable",
    batch_size: int = 256,
    batches: int | None = None,
    verbose: progress.Verbosity = "auto",
) -> GradientFlow:
    r"""Norms of $\partial L/\partial w \odot m$, by tensor and in all.

    Args:
        model: A built model; compiled, unless there is a ``loss``. Nothing
            in it changes.
        data: See `tf_tickets.loss.batches.batches`.
        ticket: Whose masks say which weights are there; `None` for the masks
            enforced on the model, if any.
        order: Which norm: 1 or 2, the default.
        loss: Instead of the compiled loss.
        training: Whether the model runs as in training, as it does by
            default.
        only: The `"prunable"` weights, the default, or `"all"` trainable
            ones.
        batch_size: Samples in a batch where arrays are cut into batches; 256
            by default.
        batches: Read at most this many batches; `None` for all.
        verbose: `"auto"`, the default, shows a bar once this has taken a
            second, 1 at once, 2 one line at the end, 0 nothing.

    Returns:
        The norms.

    Raises:
        ValueError: If an option is out of its range, or there is no data.

    Reference:
        Tessera et al., "Keep the Gradients Flowing", 2021, section 3.1
        (effective gradient flow); Evci et al., "Gradient Flow in Sparse
        Neural Networks", AAAI 2022.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential(
    ...     [keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.layers[0].kernel.assign([[1.0], [1.0]]) is not None
    True
    >>> model.compile(loss="mse")
    >>> flow = tt.analysis.gradient_flow(
    ...     model, (np.array([[3.0, 4.0]]), np.array([[6.5]])))
    >>> flow.norm
    5.0
    """
    checks.choice("order", order, (1, 2))
    function = LossOverData(
        model,
        data,
        needed_by="gradient_flow",
        ticket=ticket,
        loss=loss,
        training=training,
        only=only,
        batch_size=batch_size,
        batches=batches,
    )
    with progress.shown(verbose):
        gradient = function.slope(function.weights())
    slopes = {
        key: slope.numpy().astype(np.float64).ravel()
        for key, slope in gradient.items()
    }
    norms = {
        key: float(np.linalg.norm(slope, order))
        for key, slope in slopes.items()
    }
    return GradientFlow(
        norms,
        {
            key: int(np.count_nonzero(function.masks[key]))
            if key in function.masks
            else slope.size
            for key, slope in slopes.items()
        },
        float(np.linalg.norm(np.concatenate(list(slopes.values())), order)),
        float(np.mean(list(norms.values()))),
    )
