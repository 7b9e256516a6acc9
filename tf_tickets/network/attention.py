"""Einsum layers, and the operations that attention is made of.

A tensor of heads is (..., heads, size of a head). What is followed along it
are the heads: the first of the axes that an `EinsumDense` makes. Queries, keys
and values of one head belong together, and where several heads of queries
share one of keys and values, all of these do.
"""

from __future__ import annotations

import string
from typing import Any

import keras
import numpy as np

from tf_tickets.network.channels import (
    Atoms,
    Channels,
    Flow,
    Read,
    Unfollowed,
    call_name,
)
from tf_tickets.network.constants import (
    Constants,
    entering,
    input_constants,
    present,
    unchanged,
    weight,
)
from tf_tickets.network.graph import Call
from tf_tickets.network.kinds import kind_of, register
from tf_tickets.network.weighted import (
    check_weights,
)
from tf_tickets.network.weightless import (
    axis_set,
    bent,
    check_activation,
    elementwise,
    merge,
    those_of,
)

# --- einsum ------------------------------------------------------------------


def spelled(equation: str, ranks: tuple[int, ...]) -> tuple[list[str], str]:
    """The letters of each operand and of the result, dots written out.

    Raises:
        Unfollowed: If an axis is named twice in one operand.

    Example:

    >>> spelled("...a,ab->...b", (3, 2))
    (['ABa', 'ab'], 'ABb')
    """
    left, _, right = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    free = max(
        (
            rank - len(names.replace(".", ""))
            for names, rank in zip(operands, ranks, strict=True)
            if "." in names
        ),
        default=0,
    )
    dots = string.ascii_uppercase[:free]
    found = []
    for names, rank in zip(operands, ranks, strict=True):
        count = rank - len(names.replace(".", ""))
        found.append(names.replace("...", dots[len(dots) - count :]))
    result = right.replace("...", dots)
    if any(len(set(names)) < len(names) for names in (*found, result)):
        raise Unfollowed("names an axis twice")
    return found, result


def made_letter(layer: Any, rank: int) -> tuple[str, list[str], str]:
    """``(the letter of what an EinsumDense makes, operands, result)``.

    It is the first letter that only the kernel and the result have; empty
    where there is none.
    """
    operands, result = spelled(layer.equation, (rank, len(layer.kernel.shape)))
    read, kernel = operands
    new = [c for c in result if c in kernel and c not in read]
    return (new[0] if new else ""), operands, result


def made_axis(layer: Any, variable: keras.Variable) -> int:
    """Along which axis a kernel or bias of an `EinsumDense` counts heads.

    The last one where it makes no new axis.

    Example:

    >>> layer = keras.layers.EinsumDense("abc,cde->abde", (None, 2, 4))
    >>> layer.build((None, 5, 8))
    >>> made_axis(layer, layer.kernel)
    1
    """
    names = layer.equation.replace(" ", "").split(",")[0]
    rank = len(names.replace(".", "")) + (1 if "." in names else 0)
    letter, operands, result = made_letter(layer, rank)
    if not letter:
        return len(variable.shape) - 1
    if variable.name == "bias":
        return result.index(letter) - len(result) + len(variable.shape)
    return operands[1].index(letter)


def einsum_dense(channels: Channels, call: Call) -> Flow:
    layer = call.operation
    check_weights(layer)
    flow = channels.entering(call)
    rank = len(channels.shape(call.inputs[0]))
    letter, (read, kernel), result = made_letter(layer, rank)
    followed = "" if flow.axis is None else read[flow.axis]
    if flow.atoms is not None and followed in result:
        if followed in kernel:
            channels.claim(layer, "kernel", kernel.index(followed), flow.atoms)
            raise Unfollowed("has a kernel for each channel")
        # It works at every channel alike; its own are not followed.
        _check_bias(layer, result, followed)
        return Flow(flow.atoms, result.index(followed))
    contracted = [c for c in read if c in kernel and c not in result]
    if not followed and contracted:
        followed = contracted[-1]
    if not followed:
        raise Unfollowed("sums over no axis")
    atoms = channels.along(call, read.index(followed))
    into = kernel.find(followed)
    if into >= 0:
        channels.claim(layer, "kernel", into, atoms)
    if not letter or into < 0:
        channels.hold(atoms)
    if not letter:
        return Flow(why=f"{call_name(call)} makes no channels")
    place, out = result.index(letter), kernel.index(letter)
    made = channels.make(layer, int(layer.kernel.shape[out]))
    channels.claim(layer, "kernel", out, made)
    if into < 0:
        channels.hold(made)
    else:
        axis = read.index(followed)
        channels.reads.append(
            Read(
                call,
                layer,
                "kernel",
                atoms,
                made,
                axis,
                False,
                None,
                (into, out),
            )
        )
    bias = getattr(layer, "bias", None)
    if bias is not None:
        axis = place - len(result) + len(bias.shape)
        if axis >= 0 and tuple(bias.shape)[axis] == made.size:
            channels.claim(layer, "bias", axis, made)

    def shape_of(count: int) -> tuple[Any, ...]:
        shape = layer.get_config()["output_shape"]
        shape = list(shape) if isinstance(shape, list | tuple) else [shape]
        shape[place - len(result)] = count
        return tuple(shape)

    channels.configure(layer, "output_shape", shape_of, made)
    try:
        check_activation(layer, place == len(result) - 1)
    except Unfollowed as reason:
        why = f"{call_name(call)} {reason}"
        channels.freeze(made, why)
        return Flow(why=why)
    return Flow(made, place)


def _check_bias(layer: Any, result: str, letter: str) -> None:
    bias = getattr(layer, "bias", None)
    if bias is None:
        return
    axis = result.index(letter) - len(result) + len(bias.shape)
    if axis >= 0 and tuple(bias.shape)[axis] > 1:
        raise Unfollowed("has a bias for each channel")


def einsum(channels: Channels, call: Call) -> Flow:
    """Heads that meet in one letter are one; the letter stays."""
    _only_tensors(call)
    ranks = tuple(len(channels.shape(t)) for t in call.inputs)
    operands, result = spelled(call.operation.subscripts, ranks)
    letters = {
        names[flow.axis]
        for names, flow in zip(
            operands, (channels.flows[t] for t in call.inputs), strict=True
        )
        if flow.atoms is not None and flow.axis is not None
    }
    if not letters:
        return channels.flows[call.inputs[0]]
    letter = letters.pop()
    if letters or letter not in result:
        raise Unfollowed("sums over channels, or joins those of other axes")
    lists = [
        channels.along(call, names.index(letter), i)
        for i, names in enumerate(operands)
        if letter in names
    ]
    return _tied(channels, lists, Flow(None, result.index(letter)))


def attend(channels: Channels, call: Call) -> Flow:
    """`keras.ops.dot_product_attention`: (batch, length, heads, size)."""
    count = 3
    tensors = call.inputs[:count]
    if len(tensors) < count or any(
        not isinstance(x, keras.KerasTensor) for x in call.args[:count]
    ):
        raise Unfollowed("attends to arrays")
    heads = int(channels.shape(tensors[0])[2] or 0)
    for other in (
        *call.args[count:],
        *(call.kwargs.get(name) for name in ("bias", "mask")),
    ):
        shape = getattr(other, "shape", ())
        if len(shape) > count and shape[-count] != 1:
            raise Unfollowed("has a mask or bias for each head")
    lists = []
    for i in range(count):
        atoms = channels.along(call, 2, i)
        if not atoms.size or heads % atoms.size:
            raise Unfollowed("has an unknown number of heads")
        lists.append(np.repeat(atoms, heads // atoms.size))
    return _tied(channels, lists, Flow(None, 2))


def _tied(channels: Channels, lists: list[Atoms], flow: Flow) -> Flow:
    for atoms in lists[1:]:
        if atoms.size != lists[0].size:
            for each in lists:
                channels.freeze(each, "it is spread over others")
            raise Unfollowed("spreads one channel over others")
        channels.tie(lists[0], atoms)
    return Flow(lists[0], flow.axis)


def _only_tensors(call: Call) -> None:
    for one in keras.tree.flatten((call.args, dict(call.kwargs))):
        if not isinstance(one, keras.KerasTensor) and np.ndim(one):
            raise Unfollowed("reads an array")


# --- what else heads meet ----------------------------------------------------


def softmax_layer(channels: Channels, call: Call) -> Flow:
    """Along other axes than the heads'; under a mask for all of them."""
    tensor, *masks = call.inputs
    flow = channels.flows[tensor]
    if flow.atoms is None or flow.axis is None:
        return flow
    rank = len(channels.shape(tensor))
    if flow.axis in axis_set(getattr(call.operation, "axis", -1), rank):
        raise Unfollowed("mixes its channels")
    shapes = [channels.shape(mask) for mask in masks]
    shapes += [
        tuple(one.shape)
        for one in keras.tree.flatten((call.args, dict(call.kwargs)))
        if not isinstance(one, keras.KerasTensor) and np.ndim(one)
    ]
    for shape in shapes:
        place = flow.axis - rank + len(shape)
        if place >= 0 and shape[place] != 1:
            raise Unfollowed("has a mask for each channel")
    return flow


def scaled(channels: Channels, call: Call) -> Flow:
    """A tensor and an array that is the same for every channel, or a merge."""
    arrays = [
        tuple(one.shape) if hasattr(one, "shape") else np.shape(one)
        for one in (*call.args, *call.kwargs.values())
        if not isinstance(one, keras.KerasTensor) and np.ndim(one)
    ]
    if not arrays or len(call.inputs) != 1:
        return merge(channels, call)
    flow = channels.flows[call.inputs[0]]
    rank = len(channels.shape(call.outputs[0]))
    if flow.atoms is None or flow.axis is None:
        return flow
    if len(channels.shape(call.inputs[0])) != rank or any(
        len(shape) > rank - flow.axis and shape[flow.axis - rank] != 1
        for shape in arrays
    ):
        return merge(channels, call)
    if any(
        len(shape) == rank - flow.axis and shape[0] != 1 for shape in arrays
    ):
        return merge(channels, call)
    return flow


def repeated(channels: Channels, call: Call) -> Flow:
    flow = channels.entering(call)
    operation = call.operation
    if flow.atoms is None or flow.axis is None:
        return flow
    rank = len(channels.shape(call.inputs[0]))
    if operation.axis is None or not isinstance(operation.repeats, int):
        raise Unfollowed("repeats each channel another time")
    if operation.axis % rank != flow.axis:
        return flow
    return Flow(np.repeat(flow.atoms, operation.repeats), flow.axis)


def moved(channels: Channels, call: Call) -> Flow:
    """`moveaxis` and `transpose`: the channels go along."""
    flow = channels.entering(call)
    if flow.atoms is None:
        return flow
    operation = call.operation
    places = np.arange(len(channels.shape(call.inputs[0])))
    if hasattr(operation, "axes"):
        axes = operation.axes
        order = places[::-1] if axes is None else places[list(axes)]
    else:
        order = _moveaxis(places, operation.source, operation.destination)
    return Flow(flow.atoms, order.tolist().index(flow.axis))


def _moveaxis(places: np.ndarray, source: Any, target: Any) -> np.ndarray:
    # Of an array with these sizes, moved: which size is where?
    sizes = np.moveaxis(np.empty(places + 1), source, target).shape
    return np.array(sizes) - 1


def split(channels: Channels, call: Call) -> list[Flow]:
    """Along other axes than the channels'."""
    flow = channels.entering(call)
    rank = len(channels.shape(call.inputs[0]))
    if flow.atoms is not None and call.operation.axis % rank == flow.axis:
        raise Unfollowed("splits its channels")
    return [flow for _ in call.outputs]


def stacked(channels: Channels, call: Call) -> Flow:
    """Along a new axis; the channels of all its tensors are one."""
    _only_tensors(call)
    flows = [channels.flows[t] for t in call.inputs]
    axes = {flow.axis for flow in flows if flow.atoms is not None}
    if not axes:
        return flows[0]
    axis = axes.pop()
    if axes or axis is None:
        raise Unfollowed("joins tensors whose channels run along other axes")
    lists = [channels.along(call, axis, i) for i in range(len(call.inputs))]
    new = call.operation.axis % len(channels.shape(call.outputs[0]))
    return _tied(channels, lists, Flow(None, axis + (new <= axis)))


def expanded(channels: Channels, call: Call) -> Flow:
    flow = channels.entering(call)
    if flow.atoms is None or flow.axis is None:
        return flow
    rank = len(channels.shape(call.outputs[0]))
    axis = flow.axis
    for new in sorted(axis_set(call.operation.axis, rank)):
        axis += new <= axis
    return Flow(flow.atoms, axis)


def refolded(channels: Channels, call: Call) -> Flow:
    """`keras.ops.reshape` that leaves the axis of the channels whole."""
    flow = channels.entering(call)
    if flow.atoms is None or flow.axis is None:
        return flow
    before = channels.shape(call.inputs[0])
    after = channels.shape(call.outputs[0])
    if None in before[1:] or None in after[1:] or not flow.axis:
        raise Unfollowed("rearranges axes of unknown size")
    ahead = np.prod([int(size or 1) for size in before[: flow.axis]])
    for axis, size in enumerate(after):
        sizes = [int(size or 1) for size in after[:axis]]
        if axis and size == flow.atoms.size and np.prod(sizes) == ahead:
            break
    else:
        raise Unfollowed("rearranges its channels")

    def shape_of(count: int) -> tuple[int, ...]:
        shape = [-1 if size is None else size for size in after]
        shape[axis] = count
        return tuple(shape)

    channels.configure(call.operation, "newshape", shape_of, flow.atoms)
    return Flow(flow.atoms, axis)


# --- constants ---------------------------------------------------------------


def varying(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    """Nothing is known to be constant."""
    atoms = channels.flows[call.outputs[0]].atoms
    return np.full(0 if atoms is None else atoms.size, np.nan)


def einsum_made(channels: Channels, call: Call, known: Constants) -> np.ndarray:
    """What hears nothing but zeros is its bias."""
    result = varying(channels, call, known)
    read = next((r for r in channels.reads if r.call is call), None)
    if read is None:
        return result
    heard = present(channels, read)[input_constants(channels, read, known) != 0]
    bias = weight(channels, read.layer, "bias")
    if bias.ndim < 2:
        result[~heard.any(0)] = 0
        result = result + bias
    return bent(call, result)


def repeated_values(
    channels: Channels, call: Call, known: Constants
) -> np.ndarray:
    values = entering(channels, call, known)
    size = varying(channels, call, known).size
    return np.repeat(values, size // max(values.size, 1))


def equal_values(
    channels: Channels, call: Call, known: Constants
) -> np.ndarray:
    """What is constant and the same in all tensors."""
    values = [
        entering(channels, call, known, index=i)
        for i in range(len(call.inputs))
    ]
    return np.where(
        np.all([v == values[0] for v in values], axis=0), values[0], np.nan
    )


def _unless_arrays(rule: Any) -> Any:
    def constants(
        channels: Channels, call: Call, known: Constants
    ) -> np.ndarray:
        each = (*call.args, *call.kwargs.values())
        if any(
            not isinstance(one, keras.KerasTensor) and np.ndim(one)
            for one in each
        ):
            return varying(channels, call, known)
        values: np.ndarray = rule(channels, call, known)
        return values

    return constants


# --- the entries -------------------------------------------------------------

register(
    keras.layers.EinsumDense,
    like=keras.layers.EinsumDense,
    channels=einsum_dense,
    constants=einsum_made,
)
register(keras.ops.einsum, channels=einsum)
register(keras.ops.dot_product_attention, channels=attend)
register(
    keras.layers.Softmax, like=keras.layers.Softmax, channels=softmax_layer
)
for function in those_of(keras.ops, "add subtract multiply divide"):
    kind = kind_of(function)
    register(
        function,
        like=function,
        channels=scaled,
        constants=_unless_arrays(kind.constants),
    )
register(
    *those_of(keras.ops, "repeat"),
    channels=repeated,
    constants=repeated_values,
)
for name, rule in {
    "moveaxis": moved,
    "transpose": moved,
    "split": split,
    "expand_dims": expanded,
    "reshape": refolded,
}.items():
    register(*those_of(keras.ops, name), channels=rule, constants=unchanged)
register(
    *those_of(keras.ops, "stack"), channels=stacked, constants=equal_values
)
register(
    *those_of(keras.ops, "cast"), channels=elementwise, constants=unchanged
)
