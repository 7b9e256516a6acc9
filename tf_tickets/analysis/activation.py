"""How many activations of a network are zero."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets.analysis.figures import new_axes, save
from tf_tickets.loss.batches import batches as read
from tf_tickets.loss.objective import call
from tf_tickets.selection import layers_of

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

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw a bar for each layer, into an image file."""
        figure, axes = new_axes((max(4.0, 0.4 * len(self.layers)), 3))
        axes.bar(range(len(self.layers)), list(self.layers.values()))
        axes.set_xticks(
            range(len(self.layers)), list(self.layers), rotation=90, fontsize=7
        )
        axes.set_ylabel("share of zeros")
        save(figure, path)


def activation_sparsity(
    model: keras.Model,
    data: Any,
    *,
    threshold: float = 1e-3,
    batch_size: int = 256,
    batches: int | None = None,
) -> ActivationSparsity:
    """Count the activations that are zero, layer by layer.

    Looked at are `Activation`, `ReLU` and the like, ``activation=`` arguments
    and activation functions called in a functional model, nested models
    included; not softmax.

    Args:
        model: A built model of any kind; only read. It runs eagerly, in
            inference mode.
        data: See `tf_tickets.loss.batches.batches`; labels are not needed.
        threshold: Count magnitudes up to this. The paper does not give its
            own; with 0 a swish would never be counted, and the shares under
            one percent in its table are what 1e-3 gives.
        batch_size: Of the batches that arrays are cut into.
        batches: Read at most so many batches.

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
    if threshold < 0:
        raise ValueError(
            f"`threshold` must be at least 0. Received: threshold={threshold}"
        )
    zeros: dict[str, int] = {}
    sizes: dict[str, int] = {}

    def record(name: str, tensor: Any) -> None:
        for value in keras.tree.flatten(tensor):
            value = keras.ops.convert_to_numpy(value)
            near = np.abs(value.astype(np.float32)) <= threshold
            zeros[name] = zeros.get(name, 0) + int(np.count_nonzero(near))
            sizes[name] = sizes.get(name, 0) + value.size

    with _recording(model, record):
        for batch in read(
            data,
            needed_by="activation_sparsity",
            batch_size=batch_size,
            limit=batches,
            labels=False,
        ):
            call(model, batch.x, training=False)
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
                undo.callback(delattr, operation, "call")
                operation.call = _watched(
                    operation.call, operation.name, record
                )
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
