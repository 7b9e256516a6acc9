"""Random graphs over every kind of layer that the table knows, and others.

`check` builds the graph of a seed, prunes channels of it at random, and holds
what shrinks, removes or folds against the graph itself. `make test` checks a
few graphs; `benchmarks.fuzz_channels` hundreds.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tf_tickets.export import fold
from tf_tickets.layers import SelectChannels
from tf_tickets.network.channels import follow, owners
from tf_tickets.network.graph import trace
from tf_tickets.network.inside import look_inside
from tf_tickets.network.kinds import kind_of
from tf_tickets.selection import layers_of, named_weights
from tf_tickets.structured import ChannelTicket, remove_dead_channels, shrink

CURVES = (
    "relu relu6 leaky_relu elu selu celu gelu silu sigmoid hard_sigmoid "
    "hard_silu hard_tanh hard_shrink soft_shrink tanh tanh_shrink softplus "
    "softsign log_sigmoid squareplus sparse_plus sparse_sigmoid"
).split()


class ReLU(layers.Layer):
    """It has the name of another, and mixes the channels."""

    def call(self, x: Any) -> Any:
        return ops.relu(x - ops.mean(x, axis=-1, keepdims=True))


@dataclasses.dataclass
class Found:
    """What became of one graph.

    Attributes:
        seed: Of the graph.
        kinds: Names of the classes of its operations.
        pruned: Channels that the masks asked for.
        removed: Those that went.
        selects: Selections that `shrink` put in front of normalizations.
        dead: Dead channels that went.
        folded: Normalizations that were folded.
        compared: Whether `apply` could be compared, too: not where a layer
            kept a channel against its mask.
        worst: The largest difference, over the largest output.
    """

    seed: int
    kinds: list[str]
    pruned: int = 0
    removed: int = 0
    selects: int = 0
    dead: int = 0
    folded: int = 0
    compared: bool = False
    worst: float = 0.0


class Builder:
    """Grows one graph from a seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.rank = int(self.rng.choice([1, 2, 2, 2, 3]))
        size = {1: 12, 2: 8, 3: 5}[self.rank]
        self.inputs = [keras.Input((*[size] * self.rank, 3))]
        self.pool = [self.convolve(self.inputs[0])]
        if self.rank == 1 and self.flip():
            words = keras.Input((size,), dtype="int32")
            self.inputs.append(words)
            self.pool.append(layers.Embedding(7, self.width())(words))

    def flip(self, chance: float = 0.5) -> bool:
        return bool(self.rng.random() < chance)

    def pick(self, choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def width(self) -> int:
        return int(self.rng.integers(3, 8))

    def curve(self) -> Any:
        return self.pick([None, None, *CURVES])

    def model(self, steps: int = 12) -> keras.Model:
        """The graph with so many random steps."""
        moves = [getattr(self, name) for name in dir(self) if name[:3] == "do_"]
        for _ in range(steps):
            x = self.pick(self.pool[-4:])
            made = self.pick(moves)(x)
            if made is None or None in made.shape[1:]:
                continue
            if 0 < np.prod(made.shape[1:]) <= 2500:
                self.pool.append(made)
        ends = [self.flat(x) for x in self.pool[-3:]]
        x = layers.Concatenate()(ends) if len(ends) > 1 else ends[0]
        model = keras.Model(self.inputs, layers.Dense(4, name="end")(x))
        for key, weight in named_weights(model).items():
            shape, name = weight.shape, weight.name
            if name in ("gamma", "alpha", "scale"):
                weight.assign(self.rng.uniform(0.5, 1.5, shape))
            elif name == "moving_variance":
                weight.assign(self.rng.uniform(0.5, 2.0, shape))
            elif name in ("beta", "bias", "moving_mean"):
                weight.assign(self.rng.normal(size=shape) * 0.3)
            del key
        return model

    def flat(self, x: Any) -> Any:
        if len(x.shape) == 2:
            return x
        if self.flip():
            return layers.Flatten()(x)
        kind = self.pick(["GlobalAveragePooling", "GlobalMaxPooling"])
        if len(x.shape) == 5:
            return ops.mean(x, axis=(1, 2, 3))
        return getattr(layers, f"{kind}{len(x.shape) - 2}D")()(x)

    def like(self, x: Any) -> Any:
        """Another tensor of that shape."""
        same = [t for t in self.pool if t.shape == x.shape]
        y = self.pick(same)
        if y is x or self.flip(0.3):
            y = layers.Dense(x.shape[-1])(x)
        return y

    # --- kernels -------------------------------------------------------------

    def convolve(self, x: Any) -> Any:
        n = len(x.shape) - 2
        small = min(x.shape[1:-1]) < 3
        return getattr(layers, f"Conv{n}D")(
            self.width(),
            1 if small else int(self.rng.integers(1, 4)),
            padding=self.pick(["same", "same", "valid"]),
            use_bias=self.flip(),
        )(x)

    def do_convolution(self, x: Any) -> Any:
        n = len(x.shape) - 2
        if not 1 <= n <= 3:
            return None
        channels = x.shape[-1]
        groups = self.pick(
            [1, 1, 1, *(g for g in range(2, channels + 1) if not channels % g)]
        )
        small = min(x.shape[1:-1]) < 4
        size = 1 if small else int(self.rng.integers(1, 4))
        options: dict[str, Any] = {"groups": groups} if n < 3 else {}
        if n == 3:
            groups = 1
        if self.flip(0.3):
            options["strides"] = 2
        elif size == 2 and self.flip():
            options["dilation_rate"] = 2
        x = getattr(layers, f"Conv{n}D")(
            groups * int(self.rng.integers(1, 8 // groups + 2)),
            size,
            padding=self.pick(
                ["same", "valid"] + ["causal"] * (n == 1 and not small)
            ),
            use_bias=self.flip(),
            activation=self.curve(),
            **options,
        )(x)
        return self.do_batch_normalization(x) if self.flip(0.7) else x

    do_convolution_too = do_convolution

    def do_transposed(self, x: Any) -> Any:
        n = len(x.shape) - 2
        if not 1 <= n <= 2:
            return None
        return getattr(layers, f"Conv{n}DTranspose")(
            self.width(),
            self.pick([1, 2, 3]),
            strides=self.pick([1, 1, 2]),
            padding=self.pick(["same", "valid"]),
            use_bias=self.flip(),
        )(x)

    def do_depthwise(self, x: Any) -> Any:
        n = len(x.shape) - 2
        if not 1 <= n <= 2 or min(x.shape[1:-1]) < 3:
            return None
        x = getattr(layers, f"DepthwiseConv{n}D")(
            self.pick([1, 2, 3]),
            padding=self.pick(["same", "valid"]),
            depth_multiplier=self.pick([1, 1, 2]),
            use_bias=self.flip(),
        )(x)
        return self.do_batch_normalization(x) if self.flip() else x

    def do_separable(self, x: Any) -> Any:
        n = len(x.shape) - 2
        if not 1 <= n <= 2 or min(x.shape[1:-1]) < 3:
            return None
        return getattr(layers, f"SeparableConv{n}D")(
            self.width(),
            self.pick([1, 3]),
            padding=self.pick(["same", "valid"]),
            depth_multiplier=self.pick([1, 2]),
            use_bias=self.flip(),
        )(x)

    def do_dense(self, x: Any) -> Any:
        x = layers.Dense(
            self.width(), activation=self.curve(), use_bias=self.flip()
        )(x)
        return self.do_batch_normalization(x) if self.flip() else x

    # --- something for every channel -----------------------------------------

    def do_batch_normalization(self, x: Any) -> Any:
        return layers.BatchNormalization(
            scale=self.flip(0.9), center=self.flip(0.9)
        )(x)

    do_batch_normalization_too = do_batch_normalization

    def do_normalization(self, x: Any) -> Any:
        along = int(self.rng.integers(1, len(x.shape)))
        return self.pick(
            [
                lambda: layers.GroupNormalization(-1)(x),
                lambda: layers.GroupNormalization(1)(x),
                lambda: layers.LayerNormalization(axis=along)(x),
                lambda: layers.RMSNormalization()(x),
                lambda: layers.UnitNormalization(axis=along)(x),
                lambda: layers.Normalization(
                    mean=np.float32(self.rng.normal(size=x.shape[-1])),
                    variance=np.float32(self.rng.uniform(1, 2, x.shape[-1])),
                )(x),
                lambda: layers.PReLU(
                    shared_axes=[*range(1, len(x.shape) - 1)] or None
                )(x),
            ]
        )()

    # --- single values -------------------------------------------------------

    def do_curve(self, x: Any) -> Any:
        name = self.pick(CURVES)
        return self.pick(
            [
                lambda: layers.Activation(name)(x),
                lambda: getattr(ops, name)(x),
                lambda: layers.ReLU(
                    max_value=self.pick([None, 2.0]),
                    negative_slope=self.pick([0.0, 0.2]),
                    threshold=self.pick([0.0, 0.3]),
                )(x),
                lambda: layers.LeakyReLU(0.2)(x),
                lambda: layers.ELU()(x),
                lambda: layers.Activation("softmax")(x),
                lambda: layers.Softmax(
                    axis=int(self.rng.integers(1, len(x.shape)))
                )(x),
            ]
        )()

    do_curve_too = do_curve

    def do_operation(self, x: Any) -> Any:
        return self.pick(
            [
                lambda: ops.negative(x),
                lambda: ops.absolute(x),
                lambda: ops.tanh(ops.square(x)),
                lambda: ops.sqrt(ops.absolute(x) + 0.5),
                lambda: ops.exp(-ops.absolute(x)),
                lambda: ops.clip(x, -0.7, 0.6),
                lambda: ops.threshold(x, 0.1, 0.2),
                lambda: ops.softmax(x, axis=1),
                lambda: ops.log_softmax(x, axis=-1),
                lambda: x + 0.5,
                lambda: 1.0 - x,
                lambda: x * 0.5,
                lambda: ops.maximum(x, 0.2),
                lambda: ops.minimum(x, -0.1),
                lambda: x + np.linspace(0, 1, x.shape[-1]),
                lambda: layers.Rescaling(0.5, self.pick([0.0, 0.3]))(x),
                lambda: layers.Dropout(0.5)(x),
                lambda: layers.GaussianNoise(0.5)(x),
                lambda: layers.AlphaDropout(0.5)(x),
                lambda: layers.GaussianDropout(0.5)(x),
                lambda: layers.Identity()(x),
                lambda: layers.ActivityRegularization(0.1)(x),
            ]
        )()

    # --- positions -----------------------------------------------------------

    def do_pooling(self, x: Any) -> Any:
        n = len(x.shape) - 2
        if not 1 <= n <= 2 or min(x.shape[1:-1]) < 3:
            return None
        kind = self.pick(["MaxPooling", "AveragePooling"])
        if self.flip(0.2) and hasattr(layers, f"Adaptive{kind}{n}D"):
            return getattr(layers, f"Adaptive{kind}{n}D")(2)(x)
        return getattr(layers, f"{kind}{n}D")(
            2, strides=self.pick([1, 2]), padding=self.pick(["same", "valid"])
        )(x)

    def do_positions(self, x: Any) -> Any:
        n = len(x.shape) - 2
        if n < 1:
            return layers.RepeatVector(3)(x)
        if min(x.shape[1:-1]) < 3:
            return getattr(layers, f"UpSampling{n}D")(2)(x)
        choices: list[Callable[[], Any]] = [
            lambda: getattr(layers, f"Cropping{n}D")(1)(x),
            lambda: getattr(layers, f"ZeroPadding{n}D")(1)(x),
            lambda: getattr(layers, f"UpSampling{n}D")(2)(x),
            lambda: getattr(layers, f"SpatialDropout{n}D")(0.5)(x),
        ]
        if n == 2:
            choices += [
                lambda: layers.ZeroPadding2D(
                    ((0, 0), (1, 2)), data_format="channels_first"
                )(x),
                lambda: layers.Resizing(6, 6, interpolation="nearest")(x),
                lambda: layers.CenterCrop(2, 2)(x),
            ]
        return self.pick(choices)()

    def do_reduction(self, x: Any) -> Any:
        if len(x.shape) < 3 or self.flip(0.5):
            return None
        function = self.pick([ops.mean, ops.max, ops.min, ops.sum])
        options: dict[str, Any] = {"keepdims": self.flip()}
        if function in (ops.max, ops.min) and self.flip():
            options["initial"] = self.pick([-0.2, 0.3])
        axis = self.pick([1, tuple(range(1, len(x.shape) - 1)), -1])
        if axis == -1 and len(x.shape) < 4:
            axis = 1
        return function(x, axis=axis, **options) * 0.3

    def do_arrangement(self, x: Any) -> Any:
        if len(x.shape) == 2:
            width = x.shape[-1]
            parts = self.pick([d for d in range(1, width + 1) if not width % d])
            return layers.Reshape((parts, self.pick([-1, width // parts])))(x)
        if len(x.shape) == 3 and self.flip(0.3):
            return layers.Flatten()(x)
        if len(x.shape) == 4 and self.flip():
            return layers.Reshape((-1, x.shape[-1]))(x)
        order = self.rng.permutation(np.arange(1, len(x.shape) - 1))
        if self.flip(0.2):
            order = self.rng.permutation(np.arange(1, len(x.shape)))
            return layers.Permute(tuple(int(i) for i in order))(x)
        return layers.Permute((*(int(i) for i in order), len(x.shape) - 1))(x)

    # --- joints --------------------------------------------------------------

    def do_merge(self, x: Any) -> Any:
        y = self.like(x)
        return self.pick(
            [
                lambda: layers.Add()([x, y]),
                lambda: layers.Add()([x, y, x]),
                lambda: layers.Subtract()([x, y]),
                lambda: layers.Average()([x, y]),
                lambda: layers.Maximum()([x, y]),
                lambda: layers.Minimum()([x, y]),
                lambda: layers.Multiply()([x, ops.tanh(y)]),
                lambda: x + y,
                lambda: x - y,
                lambda: ops.maximum(x, y),
                lambda: ops.minimum(x, y),
                lambda: x * ops.sigmoid(y),
                lambda: x / (2.0 + ops.absolute(y)),
                lambda: ops.true_divide(x, 1.5),
            ]
        )()

    do_merge_too = do_merge

    def do_residual(self, x: Any) -> Any:
        n = len(x.shape) - 2
        if not 1 <= n <= 3:
            return None
        y = layers.BatchNormalization()(x) if self.flip() else x
        for i in range(2):
            y = getattr(layers, f"Conv{n}D")(
                x.shape[-1] if i else self.width(),
                self.pick([1, 3]),
                padding="same",
                use_bias=self.flip(0.3),
            )(layers.ReLU()(y))
            if not i or self.flip(0.4):
                y = layers.BatchNormalization()(y)
        return layers.Add()([x, y])

    def do_gate(self, x: Any) -> Any:
        if len(x.shape) != 4:
            return None
        gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
        gate = layers.Dense(x.shape[-1], activation="sigmoid")(gate)
        return layers.Multiply()([x, gate])

    def do_concatenation(self, x: Any) -> Any:
        same = [t for t in self.pool if t.shape[:-1] == x.shape[:-1]]
        if self.flip(0.7) or len(x.shape) < 3:
            y = self.pick(same)
            if self.flip():
                return ops.concatenate([x, y], axis=-1)
            return layers.Concatenate()([x, y])
        return layers.Concatenate(axis=1)([x, self.like(x)])

    def do_selection(self, x: Any) -> Any:
        size = x.shape[-1]
        indices = self.rng.integers(0, size, int(self.rng.integers(1, 7)))
        return SelectChannels(indices.tolist())(x)

    # --- what is shared, nested or unknown -----------------------------------

    def do_shared(self, x: Any) -> Any:
        y = self.like(x)
        if self.flip(0.3):
            one: Any = layers.BatchNormalization()
        else:
            one = layers.Dense(x.shape[-1], activation=self.curve())
        return layers.Add()([one(x), one(one(y))])

    def do_nested(self, x: Any) -> Any:
        entry = keras.Input(x.shape[1:], dtype=x.dtype)
        y = layers.BatchNormalization()(layers.Dense(x.shape[-1])(entry))
        if self.flip():
            inner = keras.Model(entry, layers.ReLU()(y))
        else:
            inner = keras.Sequential(
                [
                    keras.Input(x.shape[1:], dtype=x.dtype),
                    layers.Dense(self.width(), activation="tanh"),
                    layers.BatchNormalization(),
                    layers.Dense(x.shape[-1]),
                ]
            )
        y = inner(x)
        return layers.Add()([x, inner(y)]) if self.flip() else y

    def do_unknown(self, x: Any) -> Any:
        choices: list[Callable[[], Any]] = [
            lambda: ReLU()(x),
            lambda: ops.roll(x, 1, axis=-1),
            lambda: ops.flip(x, axis=-1),
            lambda: ops.cumsum(x, axis=-1) * 0.3,
        ]
        if len(x.shape) == 3:
            choices += [
                lambda: layers.TimeDistributed(layers.Dense(4))(x),
                lambda: layers.EinsumDense("abc,cd->abd", (None, 5))(x),
                lambda: layers.LSTM(4, return_sequences=True)(x),
                lambda: layers.MultiHeadAttention(2, 3)(x, x),
            ]
        return self.pick(choices)() if self.flip() else None


def inputs_for(model: keras.Model, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, 7, (3, *x.shape[1:])).astype("int32")
        if x.dtype == "int32"
        else rng.normal(size=(3, *x.shape[1:]))
        for x in model.inputs
    ]


def said(model: keras.Model, x: list[np.ndarray]) -> np.ndarray:
    return np.asarray(model(x, training=False))


def masks_for(model: keras.Model, seed: int) -> dict[str, np.ndarray]:
    """Random masks on scales, on kernels, or on both."""
    rng = np.random.default_rng(seed + 1)
    channels = follow(trace(model))
    which = rng.integers(3)
    masks = {}
    for key, atoms in owners(channels, model).items():
        is_scale = key.rpartition("/")[2].startswith(("gamma", "scale"))
        if which == 2 or is_scale == (which == 0):
            if rng.random() < 0.8:
                mask = rng.random(atoms.size) < rng.choice([0.4, 0.7])
                mask[0] |= rng.random() < 0.9
                masks[key] = mask
    return masks


def kill(model: keras.Model, seed: int) -> None:
    """Zero whole filters and whole rows of readers."""
    rng = np.random.default_rng(seed + 2)
    for weight in named_weights(model).values():
        if "kernel" in weight.name and len(weight.shape) > 1:
            value = np.array(weight)
            value[..., rng.random(value.shape[-1]) < 0.3] = 0
            value[..., rng.random(value.shape[-2]) < 0.2, :] = 0
            weight.assign(value)


def unknown_shapes(model: keras.Model) -> list[tuple[Any, ...]]:
    """The shapes that layers without a rule read, in order of their calls."""
    graph = look_inside(model)
    return [
        tuple(graph.shapes[t] for t in call.inputs)
        for call in graph.calls
        if kind_of(call.operation).channels is None
    ]


class Wrong(AssertionError):
    """A graph that something is wrong with."""


def check(seed: int) -> Found:
    """Build the graph of a seed, and hold everything against it.

    Raises:
        Wrong: If something differs, or anything fails.
    """
    rank = Builder(seed).rank
    # TensorFlow has no pooling of blocks and no such convolution in float64.
    policy, tolerance = ("float64", 1e-9) if rank < 3 else ("float32", 1e-4)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Every channel of these")
            return _check(seed, tolerance)
    except Wrong:
        raise
    except Exception as error:
        raise Wrong(f"seed {seed}: {type(error).__name__}: {error}") from error
    finally:
        keras.config.set_dtype_policy(before)


def _check(seed: int, tolerance: float) -> Found:
    keras.utils.set_random_seed(seed)
    model = Builder(seed).model()
    x = inputs_for(model, seed)
    expected = said(model, x)
    start = [np.array(w) for w in model.get_weights()]
    found = Found(
        seed,
        sorted({type(op).__name__ for op in model.operations}),
    )

    def compare(what: str, other: keras.Model, truth: np.ndarray) -> None:
        scale = max(1.0, float(np.abs(truth).max()))
        off = float(np.abs(said(other, x) - truth).max()) / scale
        found.worst = max(found.worst, off)
        if not off <= tolerance:
            raise Wrong(f"seed {seed}: {what} differs by {off:.1e}")
        if "folded" not in what and unknown_shapes(other) != shapes:
            raise Wrong(f"seed {seed}: {what} cut what something unknown reads")

    shapes = unknown_shapes(model)
    if not np.isfinite(expected).all():
        raise Wrong(f"seed {seed}: the graph itself is not finite")
    folded, report = fold(model, return_report=True)
    compare("the folded model", folded, expected)
    found.folded = len(report.folded)

    masks = masks_for(model, seed)
    if masks:
        ticket = ChannelTicket(masks)
        small, shrunk = shrink(model, ticket, return_report=True)
        _check_account(seed, model, small, shrunk)
        picky, picked = shrink(model, ticket, select=True, return_report=True)
        _check_account(seed, model, picky, picked)
        found.selects = selections(picky) - selections(model)
        found.pruned, found.removed = shrunk.asked, shrunk.removed
        found.compared = not shrunk.floored
        for old, new in zip(start, model.get_weights(), strict=True):
            if not np.array_equal(old, new):
                raise Wrong(f"seed {seed}: shrink writes into the model")
        if found.compared:
            _hold_by_hand(model, masks)
            held = [np.array(w) for w in model.get_weights()]
            by_scale = all(
                len(named_weights(model)[k].shape) < 2 for k in masks
            )
            ticket.apply(model, weights="keep")
            if by_scale and not all(
                np.array_equal(a, b)
                for a, b in zip(held, model.get_weights(), strict=True)
            ):
                raise Wrong(f"seed {seed}: apply holds something else")
            truth = said(model, x)
            compare("the shrunk model", small, truth)
            compare("the folded shrunk model", fold(small), truth)
            if not picked.floored:
                compare("the model with selections", picky, truth)
                compare("it, folded", fold(picky), truth)
                again = _again(picky, seed)
                if again is not None:
                    compare("what is shrunk again", *again)
            model.set_weights(start)
            for variable in layers_of(model):
                for weight in variable.weights:
                    weight.constraint = None
            model.set_weights(start)

    kill(model, seed)
    truth = said(model, x)
    smaller, shrunk = remove_dead_channels(model, return_report=True)
    found.dead = shrunk.removed
    compare("what dead channels left", smaller, truth)
    return found


def _again(model: Any, seed: int) -> tuple[Any, np.ndarray] | None:
    """A shrunk model, shrunk once more, and what it should say."""
    masks = masks_for(model, seed + 1)
    if not masks:
        return None
    ticket = ChannelTicket(masks)
    small, report = shrink(
        model, ticket, select=bool(seed % 2), return_report=True
    )
    if report.floored:
        return None
    ticket.apply(model, weights="keep")
    return small, said(model, inputs_for(model, seed))


def selections(model: keras.Model) -> int:
    """How many layers select channels."""
    return sum(isinstance(one, SelectChannels) for one in layers_of(model))


def _hold_by_hand(model: keras.Model, masks: dict[str, np.ndarray]) -> None:
    """Zero scale and offset, in NumPy."""
    named = named_weights(model)
    for key, mask in masks.items():
        if len(named[key].shape) < 2:
            for name in (key, "beta".join(key.rsplit("gamma", 1))):
                if name in named:
                    named[name].assign(np.where(mask, np.array(named[name]), 0))


def _check_account(seed: int, model: Any, small: Any, report: Any) -> None:
    stopped = sum(stop.channels for stop in report.stops)
    if report.asked != report.removed + stopped + (
        report.asked - report.removed - stopped if report.floored else 0
    ):
        raise Wrong(f"seed {seed}: the report does not add up: {report}")
    if report.parameters != (model.count_params(), small.count_params()):
        raise Wrong(f"seed {seed}: the report counts other parameters")
