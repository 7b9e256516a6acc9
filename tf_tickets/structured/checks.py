"""What the rules of several kinds of layers ask of a call."""

from __future__ import annotations

import keras

from tf_tickets.network.graph import Call
from tf_tickets.structured.channels import Atoms, Channels, Flow, call_name

# Functions of single values: they leave every channel where it is.
_ELEMENTWISE = set(
    "linear relu relu6 leaky_relu elu selu celu gelu silu swish mish sigmoid "
    "hard_sigmoid hard_silu hard_swish hard_tanh hard_shrink soft_shrink "
    "tanh tanh_shrink softplus softsign exponential log_sigmoid squareplus "
    "sparse_plus sparse_sigmoid threshold".split()
)
_WEIGHTS = {"kernel", "depthwise_kernel", "pointwise_kernel", "bias"}


# Layers that are functions of single values.
ELEMENTWISE = (
    "ReLU LeakyReLU ELU Identity Dropout AlphaDropout GaussianDropout "
    "GaussianNoise SpatialDropout1D SpatialDropout2D SpatialDropout3D "
    "ActivityRegularization UnitNormalization"
)


class Unfollowed(Exception):
    """A rule meets a use of its layer that it does not cover."""


def data_axis(channels: Channels, call: Call) -> int:
    rank = len(channels.shape(call.inputs[0]))
    first = getattr(call.operation, "data_format", None) == "channels_first"
    return 1 if first else rank - 1


def other_axis(call: Call) -> str:
    return f"{call_name(call)} reads it along another axis"


def apart_from(
    channels: Channels, call: Call, axes: list[int], why: str
) -> Flow:
    flow = channels.flows[call.inputs[0]]
    rank = len(channels.shape(call.inputs[0]))
    if flow.axis in {a % rank for a in axes}:
        raise Unfollowed(why)
    return flow


def activated(channels: Channels, call: Call, made: Atoms, axis: int) -> Flow:
    """The output of a layer with an activation of its own."""
    rank = len(channels.shape(call.outputs[0]))
    axis %= rank
    try:
        check_activation(call.operation, axis == rank - 1)
    except Unfollowed as reason:
        why = f"{call_name(call)} {reason}"
        channels.freeze(made, why)
        return Flow(why=why)
    return Flow(made, axis)


def check_activation(layer: keras.layers.Layer, last: bool) -> None:
    function = layer.activation
    if isinstance(function, keras.layers.Layer):
        if type(function).__name__ not in ELEMENTWISE.split():
            raise Unfollowed("has an activation that is not elementwise")
        return
    name = getattr(function, "__name__", "")
    known = getattr(keras.activations, name, None) is function
    if known and name in _ELEMENTWISE:
        return
    if known and name in ("softmax", "log_softmax"):
        if last:
            raise Unfollowed(f"mixes its channels by {name}")
        return
    raise Unfollowed(f"has an unknown activation {name or function!r}")


def check_weights(
    layer: keras.layers.Layer, names: set[str] | None = None
) -> None:
    strange = {v.name for v in layer.weights} - (names or _WEIGHTS)
    # Quantized and LoRA layers hold more, packed in their own ways.
    if strange:
        raise Unfollowed(f"has weights of another kind: {sorted(strange)}")
