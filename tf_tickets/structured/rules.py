"""What each kind of layer does with channels.

One function per kind of layer; `RULES` names the layers it covers. A rule
looks at one call, ties and claims atoms in `Channels`, and says what the
output carries. A layer without a rule keeps all channels that reach it.
"""

from __future__ import annotations

from collections.abc import Callable

import keras

from tf_tickets.network.graph import Call, Graph
from tf_tickets.structured import plain_rules as plain
from tf_tickets.structured import weighted_rules as weighted
from tf_tickets.structured.channels import Channels, Flow, call_name
from tf_tickets.structured.checks import ELEMENTWISE, Unfollowed

Rule = Callable[[Channels, Call], Flow]


def follow(graph: Graph) -> Channels:
    """Walk the graph once and collect its channels.

    Args:
        graph: As `tf_tickets.network.graph.trace` made it.

    Returns:
        The channels; those of the model's inputs and outputs are frozen.
    """
    channels = Channels(graph)
    for tensor in graph.inputs:
        channels.flows[tensor] = Flow(why="it meets an input of the model")
    for call in graph.calls:
        for tensor, flow in zip(
            call.outputs, _apply(channels, call), strict=True
        ):
            channels.flows[tensor] = flow
    for tensor in graph.outputs:
        channels.freeze(
            channels.flows[tensor].atoms, "it is an output of the model"
        )
    channels.join_entries()
    return channels


def _apply(channels: Channels, call: Call) -> list[Flow]:
    rule = rule_of(call.operation)
    why = "has no rule to follow its channels"
    if rule is not None:
        try:
            return [rule(channels, call)]
        except Unfollowed as reason:
            why = str(reason)
    why = f"{call_name(call)} {why}"
    for tensor in call.inputs:
        channels.freeze(channels.flows[tensor].atoms, why)
    return [Flow(why=why) for _ in call.outputs]


def rule_of(operation: keras.Operation) -> Rule | None:
    """The rule of a layer, by its exact class, or of a Keras operation."""
    kind = type(operation)
    if isinstance(operation, keras.layers.Layer):
        # A subclass may compute something else.
        return RULES.get(kind)
    # The classes behind keras.ops are not public; their names are those of
    # the functions.
    if kind.__module__.partition(".")[0] == "keras":
        return _OPERATIONS.get(kind.__name__)
    return None


def _table(rule: Rule, names: str) -> dict[type, Rule]:
    """``{layer class: rule}`` for the classes that this Keras has."""
    found = (getattr(keras.layers, name, None) for name in names.split())
    return {kind: rule for kind in found if kind is not None}


RULES: dict[type, Rule] = {
    **_table(weighted.dense, "Dense"),
    **_table(weighted.conv, "Conv1D Conv2D Conv3D"),
    **_table(
        weighted.conv_transpose,
        "Conv1DTranspose Conv2DTranspose Conv3DTranspose",
    ),
    **_table(weighted.depthwise, "DepthwiseConv1D DepthwiseConv2D"),
    **_table(weighted.separable, "SeparableConv1D SeparableConv2D"),
    **_table(weighted.embedding, "Embedding"),
    **_table(weighted.batch_norm, "BatchNormalization"),
    **_table(weighted.group_norm, "GroupNormalization"),
    **_table(weighted.layer_norm, "LayerNormalization RMSNormalization"),
    **_table(weighted.prelu, "PReLU"),
    **_table(plain.elementwise, ELEMENTWISE),
    **_table(plain.activation, "Activation"),
    **_table(plain.softmax, "Softmax"),
    **_table(plain.rescaling, "Rescaling"),
    **_table(
        plain.spatial,
        " ".join(
            f"{kind}{n}D"
            for kind in (
                "MaxPooling",
                "AveragePooling",
                "GlobalMaxPooling",
                "GlobalAveragePooling",
                "AdaptiveMaxPooling",
                "AdaptiveAveragePooling",
            )
            for n in (1, 2, 3)
        )
        + " UpSampling2D UpSampling3D Cropping2D Cropping3D Resizing "
        "CenterCrop",
    ),
    **_table(plain.padding, "ZeroPadding2D ZeroPadding3D"),
    **_table(plain.sequence, "UpSampling1D ZeroPadding1D Cropping1D"),
    **_table(plain.flatten, "Flatten"),
    **_table(plain.reshape, "Reshape"),
    **_table(plain.permute, "Permute"),
    **_table(plain.repeat, "RepeatVector"),
    **_table(plain.merge, "Add Subtract Multiply Average Maximum Minimum"),
    **_table(plain.concatenate, "Concatenate"),
}

_OPERATIONS: dict[str, Rule] = {
    **dict.fromkeys(
        "Relu Relu6 LeakyRelu Elu Selu Celu Gelu Silu Mish Sigmoid "
        "HardSigmoid HardSilu HardTanh LogSigmoid Tanh Softplus Softsign "
        "Negative Absolute Abs Square Sqrt Exp Clip Identity".split(),
        plain.elementwise,
    ),
    **dict.fromkeys(
        "Add Subtract Multiply Maximum Minimum".split(), plain.merge
    ),
    **dict.fromkeys("Divide TrueDivide".split(), plain.merge),
    **dict.fromkeys("Mean Sum Max Min".split(), plain.reduction),
    "Concatenate": plain.concatenate,
}
