"""Which 1x1 convolutions of a LiteRT file XNNPACK computes sparsely.

The answer comes from the file, not from the model it was made of: the
converter folds, fuses and replaces, and what counts is what it leaves.

XNNPACK turns connected operations, a *cluster*, to the layout in which it has
sparse kernels, channels before pixels. A cluster

- begins with a 3x3 convolution of stride 2 on 3 channels that pads 1 on each
  side by an operation of its own;
- holds 1x1 convolutions, depthwise 3x3 and 5x5 ones of stride 1 or 2 that pad
  1 or 2 on each side, additions, multiplications, elementwise functions and
  bilinear resizing, of four axes, in floating point;
- ends in a mean over pixels (global average pooling) or in depth-to-space;
- is read from nowhere else, and more than two thirds of the weights of its
  1x1 convolutions are zero.

There is a trap. XNNPACK asks only whether *some* cluster of the file ends
well. Where one does, another is turned that does not end, and what its last
operation makes is read in the wrong order: *wrong outputs without a word*, on
ARM and in WebAssembly, not on x86. `SparseInference.wrong` tells; `litert`
stores such files densely.

Reference:
    ``xnn_subgraph_rewrite_for_nchw`` and ``xnn_check_nchw_compatibility`` in
    XNNPACK's ``subgraph.c`` (2026); Elsen et al., "Fast Sparse ConvNets",
    CVPR 2020. Held to measurement by ``python -m benchmarks.web
    --part=variants``.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tf_tickets.export.flatbuffer import (
    Constant,
    File,
    Operation,
    same_padding,
)

_WINDOWS = re.compile(r"(convolution|depthwise)\d*$")
_FLOATS = ("FLOAT32", "FLOAT16")

# Computed pixel by pixel, whatever the layout.
_ELEMENTWISE = (
    "ABS",
    "CEIL",
    "COS",
    "ELU",
    "EXP",
    "FLOOR",
    "GELU",
    "HARD_SWISH",
    "LEAKY_RELU",
    "LOG",
    "LOGISTIC",
    "NEG",
    "RELU",
    "RELU6",
    "RELU_0_TO_1",
    "RELU_N1_TO_1",
    "ROUND",
    "RSQRT",
    "SIGN",
    "SIN",
    "SQRT",
    "SQUARE",
    "TANH",
)
_MEANS = ("MEAN", "SUM")

# What else the delegate hands to XNNPACK. Any other operation cuts the graph:
# XNNPACK sees what comes before and what comes after as two graphs.
_DELEGATED = (
    "ADD",
    "AVERAGE_POOL_2D",
    "BATCH_MATMUL",
    "CONCATENATION",
    "CONV_2D",
    "DEPTH_TO_SPACE",
    "DEPTHWISE_CONV_2D",
    "DIV",
    "EXPAND_DIMS",
    "FULLY_CONNECTED",
    "MAX_POOL_2D",
    "MAXIMUM",
    "MINIMUM",
    "MUL",
    "PAD",
    "PRELU",
    "RESHAPE",
    "RESIZE_BILINEAR",
    "SLICE",
    "SOFTMAX",
    "SPACE_TO_DEPTH",
    "SPLIT",
    "SQUARED_DIFFERENCE",
    "SUB",
    "STRIDED_SLICE",
    "TRANSPOSE",
    "TRANSPOSE_CONV",
    *_ELEMENTWISE,
    *_MEANS,
)
_SAME = (
    "pads as `same` does, which XNNPACK takes for 1 (2) on each side at "
    "stride 1 only"
)


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A 1x1 convolution of a file.

    Attributes:
        name: What the converter calls its output.
        zeros: How many of its weights are zero.
        weights: How many it has.
        sparse: Whether it is computed sparsely.
        constant: Its weights.
    """

    name: str
    zeros: int
    weights: int
    sparse: bool
    constant: Constant = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Convolutions that are computed in one way, and why.

    Attributes:
        convolutions: The 1x1 convolutions, in their order.
        sparse: Whether they are computed sparsely.
        reason: The first condition that fails; empty if they are.
        wrong: Whether what they make is wrong.
    """

    convolutions: tuple[Convolution, ...]
    sparse: bool
    reason: str
    wrong: bool = False

    @property
    def zeros(self) -> float:
        """Which fraction of the weights is zero."""
        weights = sum(one.weights for one in self.convolutions)
        return sum(one.zeros for one in self.convolutions) / max(weights, 1)

    def __str__(self) -> str:
        first, last = self.convolutions[0].name, self.convolutions[-1].name
        names = first if first == last else f"{first} to {last}"
        how = "computed sparsely" if self.sparse else "not computed sparsely"
        if self.wrong:
            how = "computed WRONG by XNNPACK"
        text = (
            f"{len(self.convolutions)} 1x1 convolutions ({names}), "
            f"{self.zeros:.0%} zeros: {how}"
        )
        return f"{text}: {self.reason}" if self.reason else text


@dataclasses.dataclass(frozen=True)
class SparseInference:
    """What XNNPACK makes of a file on ARM and in WebAssembly.

    Attributes:
        clusters: Its 1x1 convolutions, those together that hang together.
    """

    clusters: tuple[Cluster, ...]

    @property
    def sparse(self) -> bool:
        """Whether at least one convolution is computed sparsely."""
        return any(one.sparse for one in self.clusters)

    @property
    def wrong(self) -> str:
        """Why the outputs are wrong; empty if they are right."""
        return next((one.reason for one in self.clusters if one.wrong), "")

    def __str__(self) -> str:
        return "\n".join(map(str, self.clusters)) or "no 1x1 convolutions"


def sparse_inference(path: str | os.PathLike[str]) -> SparseInference:
    """Read a LiteRT file and say what XNNPACK computes sparsely, and why not.

    It holds for ARM and WebAssembly. On x86 processors with AVX, XNNPACK
    computes everything densely.

    Args:
        path: The file, from this library or any other.

    Returns:
        The verdict, cluster by cluster.

    Raises:
        ImportError: If ai-edge-litert is not installed.
        ValueError: If it is no LiteRT file.

    Example:

    >>> import keras, tempfile, tf_tickets as tt
    >>> model = keras.Sequential([keras.Input((8, 8, 4)),
    ...                           keras.layers.Conv2D(8, 1, name="point")])
    >>> where = tempfile.mkdtemp() + "/model.tflite"
    >>> _ = tt.export.write(model, where, format="litert")  # doctest: +SKIP
    >>> print(tt.export.sparse_inference(where))  # doctest: +SKIP
    1 1x1 convolutions (point), 0% zeros: not computed sparsely: ...
    """
    return judge(Path(path).read_bytes())


def judge(content: bytes) -> SparseInference:
    """`sparse_inference` of a file's bytes."""
    return _Judge(File.of(content)).verdict()


@dataclasses.dataclass
class _Node:
    """An operation as XNNPACK sees it.

    Attributes:
        operation: The operation.
        inputs: The tensors it reads that are no constants.
        enters: Whether it can begin a cluster.
        inside: Whether it can stand in one.
        ends: Whether it can end one.
        why: Why it can do none of these.
        constant: The weights that count, of a 1x1 convolution.
        leader: Of its cluster.
        refused: Whether its cluster is out of the question.
    """

    operation: Operation
    inputs: tuple[int, ...]
    enters: bool = False
    inside: bool = False
    ends: bool = False
    why: str = ""
    constant: Constant | None = None
    leader: int = -1
    refused: bool = False

    @property
    def makes(self) -> bool:
        """Whether a cluster can go on from it."""
        return self.enters or self.inside


class _Judge:
    def __init__(self, file: File) -> None:
        self.file = file
        self.nodes = [*self._nodes()]
        for index, node in enumerate(self.nodes):
            node.leader = index
        self.could_end = [node.ends for node in self.nodes]
        self.graph_of = self._graphs()
        self.maker = {
            tensor: index
            for index, node in enumerate(self.nodes)
            for tensor in node.operation.outputs
        }
        self.readers: dict[int, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for tensor in node.inputs:
                self.readers.setdefault(tensor, []).append(index)
        # The delegate says that there are zeros where it meets such weights.
        self.hinted = any(
            c is not None and c.densified
            for node in self.nodes
            for c in map(file.constants.get, node.operation.inputs)
        )

    # --- what an operation can do ---------------------------------------------

    def _nodes(self) -> Iterator[_Node]:
        file = self.file
        readers, makers = file.readers(), file.makers()
        padded: dict[int, tuple[int, tuple[int, ...]]] = {}
        gone = set()
        for one in file.operations:
            before = makers.get(one.inputs[0]) if one.inputs else None
            pads = before is not None and self._pads(file.operations[before])
            if (
                pads
                and before is not None
                and one.kind in ("CONV_2D", "DEPTHWISE_CONV_2D")
                and len(readers[one.inputs[0]]) == 1
                and one.inputs[0] not in file.outputs
                and self._own_padding(one) is not None
            ):
                padded[id(one)] = file.operations[before].inputs[0], pads
                gone.add(before)
        for index, one in enumerate(file.operations):
            if index in gone:
                continue
            source, pads = padded.get(id(one), (None, (0, 0, 0, 0)))
            inputs = tuple(
                dict.fromkeys(
                    source if place == 0 and source is not None else tensor
                    for place, tensor in enumerate(one.inputs)
                    if tensor >= 0 and tensor not in file.constants
                )
            )
            node = _Node(one, inputs)
            node.why = self._set(node, pads)
            yield node

    def _set(self, node: _Node, pads: tuple[int, ...]) -> str:
        """Set what a node can do; returns why it can do nothing."""
        one, file = node.operation, self.file
        kinds = {file.types[t] for t in (*node.inputs, *one.outputs)}
        if not kinds <= {*_FLOATS}:
            return f"computes with {', '.join(sorted(kinds - {*_FLOATS}))}"
        if one.kind == "CONV_2D":
            return self._convolution(node, pads)
        if one.kind == "DEPTHWISE_CONV_2D":
            return self._depthwise(node, pads)
        if one.kind == "DEPTH_TO_SPACE":
            node.ends = True
            return ""
        axes = [len(file.shapes[t]) for t in one.inputs if t >= 0]
        if one.kind in ("ADD", "MUL"):
            if axes != [4, 4]:
                return "is of something that has no four axes"
            if len(node.inputs) < 2 and any(
                t in file.constants
                and sum(n != 1 for n in file.shapes[one.inputs[0]]) > 1
                for t in one.inputs
            ):
                return "has a constant that is no vector for XNNPACK"
        elif one.kind in ("MINIMUM", "MAXIMUM"):
            # Made one limit of values by XNNPACK.
            constant = file.constants.get(one.inputs[1])
            if constant is None or constant.kept is None:
                return "compares two tensors"
            if constant.kept.size != 1:
                return "compares with more than one number"
        elif one.kind == "RESIZE_BILINEAR":
            if min(file.shapes[one.inputs[0]][1:3]) < 2:
                return "resizes a single row or column"
        elif one.kind not in (*_ELEMENTWISE, *_MEANS):
            return "is no operation that XNNPACK has in this layout"
        if axes[0] != 4:
            return "is of something that has no four axes"
        node.inside = True
        node.ends = one.kind in _MEANS
        return ""

    def _convolution(self, node: _Node, pads: tuple[int, ...]) -> str:
        one, file = node.operation, self.file
        options = one.options
        constant = file.constants.get(one.inputs[1])
        if constant is None or constant.kept is None:
            return "has weights that are computed"
        if constant.type not in _FLOATS:
            return f"has weights of {constant.type}"
        _, height, width, channels = constant.shape
        if file.shapes[one.inputs[0]][3] != channels:
            return "is in groups"
        if (options.dilationHFactor, options.dilationWFactor) != (1, 1):
            return "is dilated"
        stride = (options.strideH, options.strideW)
        own = self._own_padding(one)
        if (height, width) == (1, 1):
            if stride != (1, 1):
                return f"is 1x1 of stride {max(stride)}"
            if any(pads):
                return "is 1x1 and pads"
            node.constant = constant
            node.inside = True
            return ""
        if (height, width) != (3, 3):
            return f"is a {height}x{width} convolution"
        if stride != (2, 2):
            return f"is a 3x3 convolution of stride {max(stride)}"
        if channels != 3:
            return f"is a 3x3 convolution on {channels} channels, not on 3"
        if own is None:
            return _SAME
        whole = tuple(a + b for a, b in zip(own, pads, strict=True))
        if whole != (1, 1, 1, 1):
            return f"pads {_sides(whole)} pixels, not 1 on each side"
        node.enters = True
        return ""

    def _depthwise(self, node: _Node, pads: tuple[int, ...]) -> str:
        one, file = node.operation, self.file
        options = one.options
        constant = file.constants.get(one.inputs[1])
        if constant is None or constant.type not in _FLOATS:
            return "has weights that are computed or not in floating point"
        _, height, width, channels = constant.shape
        if (options.dilationHFactor, options.dilationWFactor) != (1, 1):
            return "is dilated"
        own = self._own_padding(one)
        if own is None:
            return _SAME
        if file.shapes[one.inputs[0]][3] != channels:
            return "makes several channels of one"
        stride = (options.strideH, options.strideW)
        if stride not in ((1, 1), (2, 2)):
            return f"is of stride {stride[0]}x{stride[1]}"
        if (height, width) not in ((3, 3), (5, 5)):
            return f"is a depthwise {height}x{width} convolution"
        whole = tuple(a + b for a, b in zip(own, pads, strict=True))
        if whole != (height // 2,) * 4:
            return (
                f"pads {_sides(whole)} pixels, not {height // 2} on each side"
            )
        node.inside = True
        return ""

    def _own_padding(self, one: Operation) -> tuple[int, ...] | None:
        """Above, below, left, right; `None` if it stays ``"same"``."""
        options = one.options
        if options.padding:  # valid
            return (0, 0, 0, 0)
        if (options.strideH, options.strideW) != (1, 1):
            window = self.file.shapes[one.inputs[1]][1:3]
            # Nothing is padded, and XNNPACK need not be told.
            return (0, 0, 0, 0) if tuple(window) == (1, 1) else None
        _, height, width, _ = self.file.shapes[one.inputs[1]]
        above, below = same_padding(
            1 << 20, height, 1, int(options.dilationHFactor)
        )
        left, right = same_padding(
            1 << 20, width, 1, int(options.dilationWFactor)
        )
        return (above, below, left, right)

    def _pads(self, one: Operation) -> tuple[int, ...]:
        """Above, below, left, right of a padding with zeros; empty if none."""
        if one.kind != "PAD":
            return ()
        constant = self.file.constants.get(one.inputs[1])
        if constant is None or constant.values is None:
            return ()
        pads = constant.values.reshape(constant.shape)
        if pads.shape != (4, 2) or pads[[0, 3]].any():
            return ()
        return tuple(int(n) for n in pads[1:3].ravel())

    # --- what XNNPACK makes of all of them ------------------------------------

    def _graphs(self) -> list[int]:
        """Which of the graphs that XNNPACK gets each node is in.

        The interpreter runs as much as it can of one kind, delegated or not,
        before it turns to the other.
        """
        graphs = [-1] * len(self.nodes)
        ready = {*self.file.inputs}
        delegated, number = True, 0
        while -1 in graphs:
            more = True
            while more:
                more = False
                for index, node in enumerate(self.nodes):
                    if (
                        graphs[index] < 0
                        and (node.operation.kind in _DELEGATED) == delegated
                        and all(tensor in ready for tensor in node.inputs)
                    ):
                        graphs[index] = number
                        ready.update(node.operation.outputs)
                        more = True
            delegated, number = not delegated, number + 1
            if number > 2 * len(self.nodes) + 2:  # reads what nothing makes
                return [0] * len(self.nodes)
        return graphs

    def verdict(self) -> SparseInference:
        turned = self._turned() if self.hinted else set()
        wrong = {
            index: self._misread(node)
            for index, node in enumerate(self.nodes)
            if node.operation.outputs[0] not in turned
            and any(tensor in turned for tensor in node.inputs)
        }
        wrong = {index: why for index, why in wrong.items() if why}
        parts: dict[tuple[int, bool], list[Convolution]] = {}
        roots = self._parts()
        for index, node in enumerate(self.nodes):
            if node.constant is None:
                continue
            sparse = node.operation.outputs[0] in turned
            parts.setdefault((roots[index], sparse), []).append(
                Convolution(
                    self._name(node.operation),
                    node.constant.zeros,
                    node.constant.kept.size,  # type: ignore[union-attr]
                    sparse,
                    node.constant,
                )
            )
        clusters = []
        for (root, sparse), convolutions in parts.items():
            bad = next((w for i, w in wrong.items() if roots[i] == root), "")
            members = [i for i, one in enumerate(roots) if one == root]
            reason = bad or ("" if sparse else self._reason(members))
            clusters.append(
                Cluster(tuple(convolutions), sparse, reason, bool(bad))
            )
        return SparseInference(tuple(clusters))

    def _turned(self) -> set[int]:
        """The tensors that XNNPACK keeps channels first."""
        turned: set[int] = set()
        for graph in sorted({*self.graph_of}):
            turned |= self._turned_in(
                [i for i, one in enumerate(self.graph_of) if one == graph]
            )
        return turned

    def _turned_in(self, graph: list[int]) -> set[int]:
        nodes, file = self.nodes, self.file
        changed = False
        for index in graph:
            if nodes[index].ends:
                changed |= self._join(index)
        if not changed:
            return set()
        while changed:
            changed = False
            for index in graph:
                node = nodes[index]
                if not node.refused and (node.inside or node.ends):
                    changed |= self._join(index)
        for index in graph:
            nodes[nodes[index].leader].refused |= nodes[index].refused

        def alive() -> Iterator[_Node]:
            for index in graph:
                node = nodes[index]
                if not nodes[node.leader].refused and (
                    node.inside or node.ends
                ):
                    yield node

        reads: dict[int, int] = {}
        for node in alive():
            for tensor in node.inputs:
                reads[tensor] = reads.get(tensor, 0) + 1
        for node in [*alive()]:
            for tensor in node.inputs:
                uses = len(self.readers[tensor]) + (tensor in file.outputs)
                if reads[tensor] != uses:
                    nodes[node.leader].refused = True
        zeros: dict[int, int] = {}
        weights: dict[int, int] = {}
        for node in (nodes[index] for index in graph):
            if node.constant is not None and not nodes[node.leader].refused:
                size = int(node.constant.kept.size)  # type: ignore[union-attr]
                zeros[node.leader] = (
                    zeros.get(node.leader, 0) + node.constant.zeros
                )
                weights[node.leader] = weights.get(node.leader, 0) + size
        return {
            tensor
            for node in alive()
            for tensor in node.inputs
            if 3 * zeros.get(node.leader, 0) > 2 * weights.get(node.leader, 0)
        }

    def _join(self, index: int) -> bool:
        """Join a node with those before it; returns whether that was new."""
        node, changed = self.nodes[index], False
        for tensor in node.inputs:
            place = self.maker.get(tensor)
            maker = None if place is None else self.nodes[place]
            if (
                place is None
                or maker is None
                or self.graph_of[place] != self.graph_of[index]
                or not maker.makes
                or maker.refused
            ):
                node.refused = True
                continue
            maker.ends = False
            if maker.leader != node.leader:
                maker.leader = node.leader = max(maker.leader, node.leader)
                changed = True
        return changed

    def _misread(self, node: _Node) -> str:
        """Why what a node makes of turned inputs is wrong; empty if it is not.

        Where there is one pixel or one channel, both orders are the same; but
        behind a mean the sizes are taken for one another, and the file does
        not load.
        """
        one = node.operation
        shape = self.file.shapes[one.outputs[0]]
        if one.kind in (*_MEANS, "DEPTH_TO_SPACE"):
            return ""
        makers = [self.nodes[self.maker[t]].operation for t in node.inputs]
        if (
            len(shape) == 4
            and (shape[1] * shape[2] == 1 or shape[3] == 1)
            and not any(maker.kind in _MEANS for maker in makers)
        ):
            return ""
        return (
            f"{self._describe(one)} is the last of a cluster that XNNPACK "
            "computes sparsely, and cannot end one"
        )

    # --- why not --------------------------------------------------------------

    def _parts(self) -> list[int]:
        """For every node one that stands for all that hang together with it."""
        roots = list(range(len(self.nodes)))

        def root(index: int) -> int:
            while roots[index] != index:
                index = roots[index]
            return index

        for index, node in enumerate(self.nodes):
            if not (node.inside or self.could_end[index]):
                continue
            for tensor in node.inputs:
                maker = self.maker.get(tensor)
                if maker is not None and self.nodes[maker].makes:
                    roots[root(index)] = root(maker)
        return [root(index) for index in range(len(self.nodes))]

    def _reason(self, members: list[int]) -> str:
        """The first condition that a cluster fails."""
        if not self.hinted:
            return "no weights of convolutions are stored sparsely"
        inside = {*members}
        for index in members:
            node = self.nodes[index]
            if node.enters:
                continue
            for tensor in node.inputs:
                maker = self.maker.get(tensor)
                if maker is None:
                    return (
                        f"{self._describe(node.operation)} reads an input of "
                        "the model, and not a 3x3 convolution of stride 2 on "
                        "3 channels"
                    )
                if not self.nodes[maker].makes:
                    return self._cannot(maker)
        for index in members:
            for tensor in self.nodes[index].operation.outputs:
                outside = [
                    i for i in self.readers.get(tensor, []) if i not in inside
                ]
                within = len(self.readers.get(tensor, [])) - len(outside)
                if outside and not self.could_end[index]:
                    return self._cannot(outside[0])
                if within and tensor in self.file.outputs:
                    return (
                        f"what {self._describe(self.nodes[index].operation)} "
                        "makes is an output of the model, too"
                    )
        if not any(self.could_end[index] for index in members):
            return (
                "nothing ends the cluster: no mean over pixels, no "
                "depth-to-space"
            )
        sizes = [
            (node.constant.zeros, int(node.constant.kept.size))  # type: ignore[union-attr]
            for node in (self.nodes[index] for index in members)
            if node.constant is not None
        ]
        zeros, weights = map(sum, zip(*sizes, strict=True))
        if 3 * zeros <= 2 * weights:
            return (
                f"{zeros / weights:.3f} of the weights of the 1x1 "
                "convolutions are zero, and it takes more than two thirds"
            )
        return "it hangs together with what XNNPACK refuses"

    def _cannot(self, index: int) -> str:
        node = self.nodes[index]
        why = node.why or "cannot stand inside a cluster"
        return f"{self._describe(node.operation)} {why}"

    def _describe(self, one: Operation) -> str:
        return f"{one.kind} {self._name(one)!r}"

    def _name(self, one: Operation) -> str:
        # Outputs of the model are called "Identity"; their weights are not.
        tensors = (one.outputs[0], *one.inputs[1:2])
        return _layer(";".join(self.file.names[t] for t in tensors))


def _layer(name: str) -> str:
    """The layer in the name that the converter gives a tensor.

    Fused operations have several names; that of the convolution says most.

    Example:

    >>> _layer("net/relu_1/Relu6;net/stem/add;net/stem/convolution")
    'stem'
    """
    names = name.split(";")
    chosen = next((n for n in names if _WINDOWS.search(n)), names[0])
    parts = [part for part in chosen.split("/") if part]
    return parts[-2] if len(parts) > 1 else chosen


def _sides(pads: Any) -> str:
    above, below, left, right = pads
    return f"{above} above, {below} below, {left} left, {right} right"
