"""Read a LiteRT file: its operations, and what of its constants is zero.

The schema comes from ``ai-edge-litert``, whose interpreter runs the files: the
one is built from the other, release by release. (The package ``tflite`` on
PyPI is a release of 2024; the copy in TensorFlow is private.)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_HEADROOM = 1024
_ADVICE = (
    "LiteRT files are read and checked with its interpreter: "
    "pip install ai-edge-litert"
)


@functools.cache
def _schema() -> Any:
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise ImportError(_ADVICE) from error
    return schema_py_generated


@functools.cache
def _names(enum: str) -> dict[int, str]:
    members = vars(getattr(_schema(), enum)).items()
    return {v: k for k, v in members if not k.startswith("_")}


@dataclasses.dataclass(frozen=True)
class Constant:
    """A constant tensor.

    Attributes:
        shape: Its shape.
        type: Of the values that are stored, such as ``"FLOAT32"``.
        sparse: Whether only kept values and their places are stored.
        densified: Whether that is undone before it is computed with.
        kept: Where it is not zero; `None` for what holds no numbers.
        values: The stored ones.
    """

    shape: tuple[int, ...]
    type: str
    sparse: bool
    densified: bool
    kept: np.ndarray | None
    values: np.ndarray | None

    @property
    def zeros(self) -> int:
        """How many of its values are zero."""
        if self.kept is None:
            return 0
        return int(self.kept.size - np.count_nonzero(self.kept))


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        kind: Such as ``"CONV_2D"``.
        inputs: Numbers of the tensors it reads, -1 for one left out.
        outputs: Numbers of the tensors it makes.
        options: The schema's object with its options, or `None`.
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any


@dataclasses.dataclass(frozen=True)
class File:
    """The one function of a LiteRT file.

    Attributes:
        operations: In the order in which they run, without those that only
            make constants dense.
        constants: By the number of the tensor that is computed with.
        shapes: Of all tensors.
        types: Of all tensors.
        names: Of all tensors.
        inputs: Numbers of the inputs.
        outputs: Numbers of the outputs.
    """

    operations: list[Operation]
    constants: dict[int, Constant]
    shapes: list[tuple[int, ...]]
    types: list[str]
    names: list[str]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @classmethod
    def of(cls, content: bytes) -> File:
        """Read the file.

        Raises:
            ImportError: If ai-edge-litert is not installed.
            ValueError: If it is no LiteRT file.
        """
        model = _model(content)
        graph = model.subgraphs[0]
        types = [_names("TensorType")[t.type] for t in graph.tensors]
        constants = {
            i: _constant(tensor, model.buffers[tensor.buffer].data, types[i])
            for i, tensor in enumerate(graph.tensors)
            if model.buffers[tensor.buffer].data is not None
        }
        operations = []
        for one in graph.operators:
            kind = _kind(model, one)
            inputs, outputs = tuple(one.inputs), tuple(one.outputs)
            if kind in ("DENSIFY", "DEQUANTIZE") and inputs[0] in constants:
                constants[outputs[0]] = dataclasses.replace(
                    constants[inputs[0]],
                    densified=kind == "DENSIFY"
                    or constants[inputs[0]].densified,
                )
                continue
            operations.append(
                Operation(kind, inputs, outputs, one.builtinOptions)
            )
        return cls(
            operations,
            constants,
            [tuple(map(int, _list(t.shape))) for t in graph.tensors],
            types,
            [(t.name or b"").decode(errors="replace") for t in graph.tensors],
            tuple(graph.inputs),
            tuple(graph.outputs),
        )

    def readers(self) -> dict[int, list[int]]:
        """``{tensor: numbers of the operations that read it}``."""
        found: dict[int, list[int]] = {}
        for index, one in enumerate(self.operations):
            for tensor in dict.fromkeys(one.inputs):
                found.setdefault(tensor, []).append(index)
        return found

    def makers(self) -> dict[int, int]:
        """``{tensor: number of the operation that makes it}``."""
        return {
            tensor: index
            for index, one in enumerate(self.operations)
            for tensor in one.outputs
        }


def same_padding(
    size: int, window: int, stride: int, dilation: int = 1
) -> tuple[int, int]:
    """What ``"same"`` pads on one axis: ``(before, after)``.

    Example:

    >>> same_padding(224, 3, 2), same_padding(225, 3, 2)
    ((0, 1), (1, 1))
    """
    reach = (window - 1) * dilation + 1
    whole = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return whole // 2, whole - whole // 2


def with_explicit_padding(content: bytes) -> bytes:
    """The file with padding of its own where the converter took it away.

    The converter makes ``"same"`` of every padding that is equal to it. Of
    stride 2 on an odd number of pixels that is a symmetric padding, which
    XNNPACK computes sparsely if an operation of its own says it, and not if
    the convolution does.

    Args:
        content: A LiteRT file.

    Returns:
        An equal one; the very same if there is nothing to do.
    """
    schema = _schema()
    model = _model(content)
    graph = model.subgraphs[0]
    operators = []
    changed = False
    for one in graph.operators:
        padding = _symmetric(model, graph, one)
        if padding:
            tensor = graph.tensors[one.inputs[0]]
            pads = np.array([[0, 0], *([[padding] * 2] * 2), [0, 0]], "int32")
            made = schema.TensorT()
            made.__dict__.update(vars(tensor))
            made.name = b"padded_" + (tensor.name or b"")
            made.shape = [
                int(n) + int(a + b)
                for n, (a, b) in zip(tensor.shape, pads, strict=True)
            ]
            made.buffer = 0
            made.shapeSignature = None
            graph.tensors += [_pads_tensor(schema, model, pads), made]
            pad = schema.OperatorT()
            pad.opcodeIndex = _code(schema, model, "PAD")
            pad.inputs = [one.inputs[0], len(graph.tensors) - 2]
            pad.outputs = [len(graph.tensors) - 1]
            pad.builtinOptionsType = schema.BuiltinOptions.PadOptions
            pad.builtinOptions = schema.PadOptionsT()
            operators.append(pad)
            one.inputs = [pad.outputs[0], *list(one.inputs)[1:]]
            one.builtinOptions.padding = schema.Padding.VALID
            changed = True
        operators.append(one)
    if not changed:
        return content
    graph.operators = operators
    return _packed(model, len(content))


def _model(content: bytes) -> Any:
    if content[4:8] != b"TFL3":
        raise ValueError(
            "A LiteRT file says so in its first bytes, and this one does not. "
            f"Received: {content[:8]!r}..."
        )
    # A bytearray, since the schema's reader wants a buffer to look into.
    return _schema().ModelT.InitFromPackedBuf(bytearray(content), 0)


def _packed(model: Any, size: int) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(size + _HEADROOM)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _kind(model: Any, operator: Any) -> str:
    code = model.operatorCodes[operator.opcodeIndex]
    # Files from before 2020 have the older field only.
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    return _names("BuiltinOperator").get(number, f"operation {number}")


def _symmetric(model: Any, graph: Any, operator: Any) -> int:
    """How much an operation pads on every side, if that can be said apart."""
    kind = _kind(model, operator)
    if kind not in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return 0
    options = operator.builtinOptions
    stride = {options.strideH, options.strideW}
    if options.padding != _schema().Padding.SAME or stride != {2}:
        return 0
    sizes = list(graph.tensors[operator.inputs[0]].shape)[1:3]
    window = list(graph.tensors[operator.inputs[1]].shape)[1:3]
    dilation = (options.dilationHFactor, options.dilationWFactor)
    found = {
        same_padding(int(size), int(k), 2, int(d))
        for size, k, d in zip(sizes, window, dilation, strict=True)
    }
    before, after = found.pop()
    return before if not found and before == after else 0


def _pads_tensor(schema: Any, model: Any, pads: np.ndarray) -> Any:
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(pads.tobytes(), np.uint8)
    model.buffers.append(buffer)
    tensor = schema.TensorT()
    tensor.shape = list(pads.shape)
    tensor.type = schema.TensorType.INT32
    tensor.buffer = len(model.buffers) - 1
    tensor.name = b"padding"
    tensor.hasRank = True
    return tensor


def _code(schema: Any, model: Any, kind: str) -> int:
    """The place of an operation in the file's table, made if need be."""
    number = getattr(schema.BuiltinOperator, kind)
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == number:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = number
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _list(value: Any) -> Sequence[Any]:
    return [] if value is None else list(value)


_TYPES = {
    "FLOAT32": np.float32,
    "FLOAT16": np.float16,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
}


def _constant(tensor: Any, data: Any, type_: str) -> Constant:
    shape = tuple(map(int, _list(tensor.shape)))
    sparse = tensor.sparsity is not None
    if type_ not in _TYPES:
        return Constant(shape, type_, sparse, False, None, None)
    values = np.frombuffer(np.asarray(data, np.uint8).tobytes(), _TYPES[type_])
    if not sparse:
        kept = values.reshape(shape) != 0
    else:
        kept = np.zeros(shape, bool)
        places = _places(tensor.sparsity, shape)
        kept[tuple(places.T)] = values[: len(places)] != 0
    return Constant(shape, type_, sparse, False, kept, values)


def _places(sparsity: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Where each stored value of a sparse tensor stands, in their order.

    Reference:
        The comments on ``SparsityParameters`` in LiteRT's ``schema.fbs``: one
        level for each axis, then for each axis that is cut into blocks.
    """
    levels = np.zeros((1, 0), np.int64)  # one row for each value so far
    sizes = []
    for level in sparsity.dimMetadata:
        if level.format == _schema().DimensionType.DENSE:
            sizes.append(int(level.denseSize))
            counts = np.full(len(levels), level.denseSize)
            own = np.tile(np.arange(level.denseSize), len(levels))
        else:
            segments = np.array(level.arraySegments.values, np.int64)
            own = np.array(level.arrayIndices.values, np.int64)
            sizes.append(0)
            counts = np.diff(segments)
        levels = np.column_stack([np.repeat(levels, counts, axis=0), own])
    order = [int(axis) for axis in sparsity.traversalOrder]
    places = np.zeros((len(levels), len(shape)), np.int64)
    for column, axis in enumerate(order):
        if axis < len(shape):
            places[:, axis] += levels[:, column] * _block(sparsity, axis, sizes)
        else:
            inside = int(sparsity.blockMap[axis - len(shape)])
            places[:, inside] += levels[:, column]
    return places


def _block(sparsity: Any, axis: int, sizes: list[int]) -> int:
    """How many values of an axis are one block."""
    blocks = [int(one) for one in _list(sparsity.blockMap)]
    if axis not in blocks:
        return 1
    return sizes[len(sizes) - len(blocks) + blocks.index(axis)]


def operations_named(file: File, kinds: Sequence[str]) -> Iterator[Operation]:
    """The operations of some kinds."""
    return (one for one in file.operations if one.kind in kinds)
