"""Search in eight bits, train in full precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import keras
import tensorflow as tf

from tf_tickets import checks
from tf_tickets.callbacks.base import TicketCallback
from tf_tickets.masking import MaskConstraint
from tf_tickets.network.kinds import output_axes
from tf_tickets.selection import check_model, layers_of, own_weights, owners
from tf_tickets.tracing import retrace

Scheme = Literal["kernels", "published"]
# Axes of a tensor each index of which is a block.
Axes = tuple[int, ...]

# Whose outputs the published code rounds.
_COMPUTING = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    *(getattr(keras.layers, f"Conv{n}D") for n in (1, 2, 3)),
    *(getattr(keras.layers, f"Conv{n}DTranspose") for n in (1, 2, 3)),
    *(getattr(keras.layers, f"DepthwiseConv{n}D") for n in (1, 2)),
    *(getattr(keras.layers, f"SeparableConv{n}D") for n in (1, 2)),
)


# What an optimizer keeps that is no part of its step: averages of the weights
# and gradients that are collected.
_WHOLE = ("_average", "_accumulator")


def block_floating_point(
    x: tf.Tensor, seed: tf.Tensor, axis: int | Axes | None, bits: int
) -> tf.Tensor:
    r"""Round to ``bits`` bits with one exponent for each block, stochastically.

    With $e = \lfloor \log_2 \max_{j \in B} |x_j| \rfloor$ for a block B and
    the step $\Delta = 2^{e - (b - 2)}$, the result is $\Delta \cdot \lfloor
    x / \Delta + u \rfloor$ with u uniform in [0, 1), within $\pm (2^{b-1} -
    1) \Delta$. Its expectation is x, but for what is cut at the upper end.

    Args:
        x: A float tensor.
        seed: Two integers; equal seeds round equally.
        axis: Each index along this axis, or these, is a block; `None`: all of
            x is one.
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
    rank = x.shape.rank or 0
    chosen = () if axis is None else (axis,) if isinstance(axis, int) else axis
    blocks = {one % rank for one in chosen}
    others = [i for i in range(rank) if i not in blocks]
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
    model: keras.Model,
    *,
    bits: int = 8,
    seed: int = 0,
    scheme: Scheme = "kernels",
) -> Iterator[None]:
    """Train ``model`` in block floating point inside this block.

    A plain ``model.fit`` in the block computes with weights, activations,
    gradients and errors of ``bits`` bits, stochastically rounded; leaving it
    puts full precision back, and the weights stay what they were trained to.
    The values are rounded, the arithmetic is not done in eight bits: this
    shows what a search on such hardware finds, it saves no time here.

    Rounded are, by `"kernels"`, the default: kernels and embeddings after each
    step, a block for each output channel; the outputs of every layer with
    weights, and the errors that come back into them, a block for each sample;
    the gradients of the kernels. The last layer stays in full precision, and
    so do vectors, biases and normalization: they are a thousandth of all
    weights, and a channel is pruned by its scale.

    `"published"` is what the published code of Early-Bird does: every trained
    weight, the last layer's and vectors among them (of which each number is a
    block of its own), its gradient and the optimizer's slots for it, momentum
    say; and of outputs and errors only those of dense layers and convolutions,
    but for the last. (It also averages the weights late in training, after
    every search: give the optimizer ``use_ema=True`` for that.)

    Args:
        model: A built, compiled model.
        bits: Bits per value, from 2 to 16; 8 by default.
        seed: Of the rounding.
        scheme: What is rounded: `"kernels"` or `"published"`.

    Raises:
        ValueError: If the model is not compiled or not built, ``bits`` is out
            of range, or ``scheme`` is not known.

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
    checks.choice("scheme", scheme, ("kernels", "published"))
    seed = checks.whole("seed", seed, least=0)
    rounding = _Rounding(model, bits, seed)
    weights, layers = _rounded(model, scheme)
    with contextlib.ExitStack() as undo:
        for variable, axes in weights:
            constraint = _RoundedWeight(rounding, axes)
            _put_under_mask(variable, constraint)
            undo.callback(_take_out, variable, constraint)
        for layer in layers:
            _replace(layer, "call", rounding.around(layer.call), undo)
        _replace(
            model.optimizer,
            "apply",
            rounding.during(
                model.optimizer, weights, slots=scheme == "published"
            ),
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
        scheme: As in `low_precision`.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    >>> model.compile("sgd", "mse")
    >>> _ = model.fit(
    ...     np.ones((8, 8)), np.ones((8, 2)), verbose=0,
    ...     callbacks=[LowPrecision()],
    ... )
    """

    def __init__(
        self, *, bits: int = 8, seed: int = 0, scheme: Scheme = "kernels"
    ) -> None:
        super().__init__()
        self.bits = _checked_bits(bits)
        self.seed = checks.whole("seed", seed, least=0)
        checks.choice("scheme", scheme, ("kernels", "published"))
        self.scheme = scheme

    def begin(self) -> None:
        self._undo.enter_context(
            low_precision(
                self.model, bits=self.bits, seed=self.seed, scheme=self.scheme
            )
        )


def _checked_bits(bits: int) -> int:
    if checks.whole("bits", bits, least=2) > 16:
        raise ValueError(f"`bits` must be at most 16. Received: bits={bits}")
    return int(bits)


Weights = list[tuple[keras.Variable, Axes]]


class _Rounding:
    """The quantizers of one model, with one stream of random numbers."""

    def __init__(self, model: keras.Model, bits: int, seed: int) -> None:
        self.bits = bits
        # Made there, each replica has a copy, and all draw the same numbers:
        # kernels must stay equal.
        with model.distribute_strategy.scope():
            self.seeds = keras.random.SeedGenerator(seed)

    def __call__(self, x: tf.Tensor, axis: Axes) -> tf.Tensor:
        return block_floating_point(x, self._next(), axis, self.bits)

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A layer's ``call`` with its output and the errors into it rounded."""

        def rounded(*args: Any, **kwargs: Any) -> Any:
            return keras.tree.map_structure(
                self._both_ways, call(*args, **kwargs)
            )

        return rounded

    def during(
        self, optimizer: Any, weights: Weights, *, slots: bool
    ) -> Callable[..., Any]:
        """An optimizer's ``apply`` with gradients rounded before it.

        With ``slots`` also what it keeps for each weight, after it.
        """
        apply = optimizer.apply
        axes = {id(variable): one for variable, one in weights}

        def rounded(
            grads: list[Any], trainable_variables: Any = None, **kwargs: Any
        ) -> Any:
            variables = list(trainable_variables or [])
            if variables:
                grads = [
                    self(tf.convert_to_tensor(g), axes[id(v)])
                    if g is not None and id(v) in axes
                    else g
                    for g, v in zip(grads, variables, strict=True)
                ]
            made = apply(grads, trainable_variables, **kwargs)
            if slots:
                for slot, one in _slots_of(optimizer, weights):
                    slot.assign(self(tf.convert_to_tensor(slot), one))
            return made

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


class _RoundedWeight(keras.constraints.Constraint):
    """c(Q(w)) after each update, with the variable's own constraint c.

    A mask stands around it: zero is zero in any precision.
    """

    def __init__(
        self,
        rounding: _Rounding,
        axes: Axes,
        inner: Callable[..., Any] | None = None,
    ) -> None:
        self.rounding = rounding
        self.axes = axes
        self.inner = inner

    def __call__(self, w: Any) -> tf.Tensor:
        rounded = self.rounding(tf.convert_to_tensor(w), self.axes)
        return rounded if self.inner is None else self.inner(rounded)


def _rounded(
    model: keras.Model, scheme: Scheme
) -> tuple[Weights, list[keras.layers.Layer]]:
    """The weights that are rounded, and the layers whose outputs are."""
    holders = [layer for layer in layers_of(model) if own_weights(layer)]
    owner = owners(model)
    weights: dict[int, tuple[keras.Variable, Axes]] = {}
    if scheme == "kernels":
        layers = holders[:-1]
        chosen = [v for layer in layers for v in layer.weights]
        chosen = [v for v in chosen if len(v.shape) > 1]
    else:
        layers = [one for one in holders if isinstance(one, _COMPUTING)][:-1]
        chosen = list(model.trainable_variables)
    for variable in chosen:
        axes: Axes = (0,)  # of a vector, each number
        if len(variable.shape) > 1:
            axes = output_axes(owner.get(id(variable)), variable)
        if len(variable.shape) > 0:
            weights[id(variable)] = variable, axes
    return list(weights.values()), layers


def _slots_of(optimizer: Any, weights: Weights) -> Weights:
    """What an optimizer keeps for each weight, by the name that Keras gives."""
    names = sorted(
        (
            (variable.path.replace("/", "_") + "_", variable.shape, axes)
            for variable, axes in weights
        ),
        key=lambda one: -len(one[0]),
    )
    found: Weights = []
    for slot in optimizer.variables:
        if slot.name.endswith(_WHOLE):
            continue
        for name, shape, axes in names:
            if slot.name.startswith(name) and slot.shape == shape:
                found.append((slot, axes))
                break
    return found


def _put_under_mask(
    variable: keras.Variable, constraint: _RoundedWeight
) -> None:
    """Constrain a variable, but leave its mask, if it has one, on top."""
    top = variable.constraint
    if isinstance(top, MaskConstraint):
        constraint.inner, top.inner = top.inner, constraint
    else:
        constraint.inner, variable.constraint = top, constraint


def _take_out(variable: keras.Variable, constraint: _RoundedWeight) -> None:
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
