"""Search in eight bits, train in full precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tf_tickets import checks
from tf_tickets.callbacks.base import TicketCallback
from tf_tickets.masking import MaskConstraint
from tf_tickets.selection import check_model, layers_of, own_weights
from tf_tickets.tracing import retrace


def block_floating_point(
    x: tf.Tensor, seed: tf.Tensor, axis: int | None, bits: int
) -> tf.Tensor:
    r"""Round to ``bits`` bits with one exponent for each block, stochastically.

    With $e = \lfloor \log_2 \max_{j \in B} |x_j| \rfloor$ for a block B and
    the step $\Delta = 2^{e - (b - 2)}$, the result is $\Delta \cdot \lfloor
    x / \Delta + u \rfloor$ with u uniform in [0, 1), within $\pm (2^{b-1} -
    1) \Delta$. Its expectation is x, but for what is cut at the upper end.

    Args:
        x: A float tensor.
        seed: Two integers; equal seeds round equally.
        axis: Each index along this axis is a block; `None`: all of x is one.
        bits: b, the sign included.

    Returns:
        A tensor like x.

    Example:

    >>> import tensorflow as tf
    >>> x = tf.constant([0.75, 0.1, 0.0])
    >>> rounded = block_floating_point(x, tf.constant([1, 2]), None, 4)
    >>> (rounded * 8).numpy() % 1  # the step is 2⁻¹ / 2²
    array([0., 0., 0.], dtype=float32)
    """
    wide = tf.cast(x, tf.float32)
    others = [i for i in range(x.shape.rank or 0) if i != axis]
    if axis is not None and axis < 0:
        others = [i for i in range(x.shape.rank) if i != axis % x.shape.rank]
    largest = tf.reduce_max(tf.abs(wide), axis=others, keepdims=True)
    # Without its mantissa bits a float is the power of two below it.
    exponent = tf.bitwise.bitwise_and(
        tf.bitcast(largest, tf.int32), tf.constant(0x7F800000, tf.int32)
    )
    # The floor keeps the step of an empty block a normal number.
    power = tf.maximum(tf.bitcast(exponent, tf.float32), 2.0**-100)
    step = power * 2.0 ** (2 - bits)
    noise = tf.random.stateless_uniform(tf.shape(wide), tf.cast(seed, tf.int32))
    limit = 2.0 ** (bits - 1) - 1
    levels = tf.clip_by_value(tf.floor(wide / step + noise), -limit, limit)
    return tf.cast(levels * step, x.dtype)


@contextlib.contextmanager
def low_precision(
    model: keras.Model, *, bits: int = 8, seed: int = 0
) -> Iterator[None]:
    """Train ``model`` in block floating point inside this block.

    A plain ``model.fit`` in the block computes with weights, activations,
    gradients and errors of ``bits`` bits, stochastically rounded; leaving it
    puts full precision back, and the weights stay what they were trained to.
    The values are rounded, the arithmetic is not done in eight bits: this
    shows what a search on such hardware finds, it saves no time here.

    Rounded are: kernels and embeddings after each step, a block for each
    output channel; the outputs of every layer with weights, and the errors
    that come back into them, a block for each sample; the gradients of the
    kernels. The last layer stays in full precision, and so do vectors:
    biases and normalization are a thousandth of all weights, and at eight
    bits most of the scales that rank channels would be equal.

    Args:
        model: A built, compiled model.
        bits: Bits per value, from 2 to 16; 8 by default.
        seed: Of the rounding.

    Raises:
        ValueError: If the model is not compiled or not built, or ``bits`` is
            out of range.

    Reference:
        You et al., "Drawing Early-Bird Tickets", ICLR 2020, section 3.3; Yang
        et al., "SWALP: Stochastic Weight Averaging in Low-Precision
        Training", ICML 2019, section 3 (block floating point).

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((8,)),
    ...     keras.layers.Dense(16, activation="relu"),
    ...     keras.layers.Dense(2),
    ... ])
    >>> model.compile("sgd", "mse")
    >>> with low_precision(model):
    ...     _ = model.fit(np.ones((8, 8)), np.ones((8, 2)), verbose=0)
    >>> kernel = model.layers[0].kernel.numpy()
    >>> bool((kernel * 2.0**20 % 1 == 0).all())  # few bits are left
    True
    """
    bits = _checked_bits(bits)
    check_model(model)
    if not model.built or getattr(model, "optimizer", None) is None:
        raise ValueError(
            "The model must be built and compiled before it is trained in "
            f"low precision. Received: model={model.name!r}"
        )
    seed = checks.whole("seed", seed, least=0)
    rounding = _Rounding(model, bits, seed)
    layers = _rounded_layers(model)
    with contextlib.ExitStack() as undo:
        kernels = _round_kernels(layers, rounding, undo)
        for layer in layers:
            _replace(layer, "call", rounding.around(layer.call), undo)
        _replace(
            model.optimizer,
            "apply",
            rounding.before(model.optimizer.apply, kernels),
            undo,
        )
        retrace(model)
        undo.callback(retrace, model)
        yield


class LowPrecision(TicketCallback):
    """`low_precision` from the beginning to the end of one ``model.fit``.

    Put it before `EarlyBird` in the list to search in eight bits; the next
    ``fit`` is in full precision again. Masks that are drawn or released in the
    same ``fit`` stay what they are when it ends.

    Args:
        bits: Bits per value, from 2 to 16; 8 by default.
        seed: Of the rounding.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    >>> model.compile("sgd", "mse")
    >>> _ = model.fit(
    ...     np.ones((8, 8)), np.ones((8, 2)), verbose=0,
    ...     callbacks=[LowPrecision()],
    ... )
    """

    def __init__(self, *, bits: int = 8, seed: int = 0) -> None:
        super().__init__()
        self.bits = _checked_bits(bits)
        self.seed = checks.whole("seed", seed, least=0)

    def begin(self) -> None:
        self._undo.enter_context(
            low_precision(self.model, bits=self.bits, seed=self.seed)
        )


def _checked_bits(bits: int) -> int:
    if checks.whole("bits", bits, least=2) > 16:
        raise ValueError(f"`bits` must be at most 16. Received: bits={bits}")
    return int(bits)


class _Rounding:
    """The quantizers of one model, with one stream of random numbers."""

    def __init__(self, model: keras.Model, bits: int, seed: int) -> None:
        self.bits = bits
        # Made there, each replica has a copy, and all draw the same numbers:
        # kernels must stay equal.
        with model.distribute_strategy.scope():
            self.seeds = keras.random.SeedGenerator(seed)

    def __call__(self, x: tf.Tensor, axis: int | None) -> tf.Tensor:
        return block_floating_point(x, self._next(), axis, self.bits)

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A layer's ``call`` with its output and the errors into it rounded."""

        def rounded(*args: Any, **kwargs: Any) -> Any:
            return keras.tree.map_structure(
                self._both_ways, call(*args, **kwargs)
            )

        return rounded

    def before(
        self, apply: Callable[..., Any], kernels: dict[int, int]
    ) -> Callable[..., Any]:
        """An optimizer's ``apply`` with the gradients of kernels rounded."""

        def rounded(
            grads: list[Any], trainable_variables: Any = None, **kwargs: Any
        ) -> Any:
            variables = list(trainable_variables or [])
            if variables:
                grads = [
                    self(tf.convert_to_tensor(g), kernels[id(v)])
                    if g is not None and id(v) in kernels
                    else g
                    for g, v in zip(grads, variables, strict=True)
                ]
            return apply(grads, trainable_variables, **kwargs)

        return rounded

    def _both_ways(self, x: Any) -> Any:
        if isinstance(x, keras.KerasTensor) or not x.dtype.is_floating:
            return x
        return _rounded_both_ways(
            x, self._next(), self._next(), tf.constant(self.bits)
        )

    def _next(self) -> tf.Tensor:
        return tf.cast(self.seeds.next(), tf.int32)


@tf.custom_gradient
def _rounded_both_ways(
    x: tf.Tensor, forward: tf.Tensor, backward: tf.Tensor, bits: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[Any, ...]]]:
    r"""$y = Q(x)$ and $\partial L / \partial x = Q(\partial L / \partial y)$.

    One block for each sample in both directions.
    """
    width = int(tf.get_static_value(bits))

    def gradient(error: tf.Tensor) -> tuple[Any, ...]:
        return (
            block_floating_point(error, backward, 0, width),
            None,
            None,
            None,
        )

    return block_floating_point(x, forward, 0, width), gradient


class _RoundedKernel(keras.constraints.Constraint):
    """c(Q(w)) after each update, with the variable's own constraint c.

    A mask stands around it: zero is zero in any precision.
    """

    def __init__(
        self,
        rounding: _Rounding,
        axis: int,
        inner: Callable[..., Any] | None = None,
    ) -> None:
        self.rounding = rounding
        self.axis = axis
        self.inner = inner

    def __call__(self, w: Any) -> tf.Tensor:
        rounded = self.rounding(tf.convert_to_tensor(w), self.axis)
        return rounded if self.inner is None else self.inner(rounded)


def _rounded_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Layers with weights of their own, but for the last."""
    return [layer for layer in layers_of(model) if own_weights(layer)][:-1]


def _round_kernels(
    layers: list[keras.layers.Layer],
    rounding: _Rounding,
    undo: contextlib.ExitStack,
) -> dict[int, int]:
    """Constrain the kernels; ``{id(variable): axis of its blocks}``."""
    axes: dict[int, int] = {}
    for layer in layers:
        for variable in layer.weights:
            if len(variable.shape) < 2 or id(variable) in axes:
                continue
            # Channels come last, but in kernels of one filter per channel.
            depthwise = "Depthwise" in type(layer).__name__ or (
                variable.name == "depthwise_kernel"
            )
            axis = len(variable.shape) - (2 if depthwise else 1)
            axes[id(variable)] = axis
            rounded = _RoundedKernel(rounding, axis)
            _put_under_mask(variable, rounded)
            undo.callback(_take_out, variable, rounded)
    return axes


def _put_under_mask(
    variable: keras.Variable, constraint: _RoundedKernel
) -> None:
    """Constrain a variable, but leave its mask, if it has one, on top."""
    top = variable.constraint
    if isinstance(top, MaskConstraint):
        constraint.inner, top.inner = top.inner, constraint
    else:
        constraint.inner, variable.constraint = top, constraint


def _take_out(variable: keras.Variable, constraint: _RoundedKernel) -> None:
    """Remove a constraint alone, whatever came or went around it since."""
    if variable.constraint is constraint:
        variable.constraint = constraint.inner
        return
    outer = variable.constraint
    while outer is not None:
        if getattr(outer, "inner", None) is constraint:
            outer.inner = constraint.inner
            return
        outer = getattr(outer, "inner", None)


def _replace(
    thing: Any, name: str, value: Any, undo: contextlib.ExitStack
) -> None:
    if name in vars(thing):
        undo.callback(setattr, thing, name, vars(thing)[name])
    else:  # the class's own method shows again
        undo.callback(delattr, thing, name)
    setattr(thing, name, value)
