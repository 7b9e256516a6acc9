"""LiteRT (TensorFlow Lite) files that store a ticket's zeros as zeros.

The converter stores a kernel that is sparse enough as its kept values and
their places. Whether it is also computed sparsely is another matter, of which
`tf_tickets.export.policy` knows the rules: `LiteRTReport` says for which
layers it can be, why not for the others, and what was measured.

Reference:
    Elsen et al., "Fast Sparse ConvNets", CVPR 2020; the XNNPACK delegate's
    documentation, section "Sparse inference".
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import archive, masking
from tf_tickets.export import policy, signatures
from tf_tickets.export.latency import Latency, gain, interleaved

# Kernels of the interpreter sum in another order than those of TensorFlow.
_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class LiteRTReport:
    """What a LiteRT file is worth; made by `litert`.

    Attributes:
        path: The file.
        file_bytes: Its size.
        dense_bytes: Size of the same model stored densely.
        sparse_tensors: How many tensors are stored sparsely.
        layers: For each prunable weight, whether it can be computed
            sparsely, by what, and why not.
        latency: Of the file, in the interpreter, on one thread.
        dense_latency: Of the same model stored densely.
        difference: Largest difference from the Keras model's outputs, over
            the largest output.
        notes: What about this machine decides whether sparse inference is
            used, and whether the sparse file had to be given up.
    """

    path: str
    file_bytes: int
    dense_bytes: int
    sparse_tensors: int
    layers: list[policy.LayerPolicy]
    latency: Latency
    dense_latency: Latency
    difference: float
    notes: list[str]

    def gains(self) -> dict[str, str]:
        """What is gained, in words: ``"no gain"`` where nothing is."""
        return {
            "size": gain(self.dense_bytes / self.file_bytes, "smaller"),
            "speed": gain(
                self.dense_latency.median / self.latency.median, "faster"
            ),
        }

    def to_json(self) -> dict[str, Any]:
        """All fields and gains as JSON values."""
        return {**dataclasses.asdict(self), "gains": self.gains()}

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {self.file_bytes:,} bytes, dense "
            f"{self.dense_bytes:,}; {self.sparse_tensors} tensors stored "
            f"sparsely; outputs differ by {self.difference:.1e}",
            f"{1e3 * self.latency.median:.2f} ms, dense "
            f"{1e3 * self.dense_latency.median:.2f} ms",
            "; ".join(f"{k}: {v}" for k, v in self.gains().items()),
        ]
        lines += [
            f"  {row.key}: "
            + (row.reason or f"can be computed sparsely, by {row.computed_by}")
            for row in self.layers
        ]
        return "\n".join([*lines, *self.notes])


def litert(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    sparse: bool = True,
    batch_size: int = 1,
    input_signature: Sequence[Any] | None = None,
) -> LiteRTReport:
    """Write ``model`` as a LiteRT file and run it once to check it.

    Args:
        model: A built Keras model whose weights hold zeros.
        path: The file; it must not exist.
        sparse: Store sparse kernels sparsely.
        batch_size: The file's; LiteRT is fastest with a fixed one.
        input_signature: As in `saved_model`.

    Returns:
        A `LiteRTReport`.

    Raises:
        ImportError: If ai-edge-litert is not installed.
        ValueError: On a bad option, or if the interpreter's outputs differ
            from the model's; nothing is written then.
        FileExistsError: If ``path`` exists.
        OSError: If it cannot be written.

    Example:

    >>> import tf_tickets as tt
    >>> import tempfile
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(256)])
    >>> tt.prune(model, sparsity=0.95).apply(model)
    >>> where = tempfile.mkdtemp() + "/model.tflite"
    >>> found = tt.export.litert(model, where)  # doctest: +SKIP
    >>> found.file_bytes < found.dense_bytes  # doctest: +SKIP
    True
    """
    _interpreter()
    path = Path(path)
    if path.exists():
        raise FileExistsError(
            f"{str(path)!r} exists: choose a path that does not."
        )
    if (
        not isinstance(batch_size, int)
        or isinstance(batch_size, bool)
        or batch_size < 1
    ):
        raise ValueError(
            "`batch_size` must be a positive whole number. "
            f"Received: batch_size={batch_size!r}"
        )
    masking.project(model)
    signature = list(input_signature or signatures.input_signature(model))
    inputs = signatures.sample(signature, batch_size)
    dense = _convert(model, inputs, sparse=False)
    content = _convert(model, inputs, sparse=True) if sparse else dense
    run, sparse_tensors = _runner(content, inputs)
    run_dense, _ = _runner(dense, inputs)
    expected = [y.numpy() for y in keras.tree.flatten(model(*inputs))]
    difference = _difference(expected, run())
    notes = policy.notes()
    if not difference <= _TOLERANCE and sparse:
        # Seen with dense layers whose inputs are no multiple of the blocks.
        notes.append(
            "stored densely: the interpreter computes the sparse file wrong, "
            f"by {difference:.1e} of the largest output"
        )
        content, run, sparse_tensors = dense, run_dense, 0
        difference = _difference(expected, run())
    if not difference <= _TOLERANCE:
        raise ValueError(
            "The LiteRT interpreter computes something else than the model: "
            f"outputs differ by {difference:.1e} of the largest. "
            f"Received: model={model.name!r}"
        )
    times = interleaved({"file": run, "dense": run_dense}, seconds=2.0)
    _write(path, content)
    return LiteRTReport(
        path=str(path),
        file_bytes=len(content),
        dense_bytes=len(dense),
        sparse_tensors=sparse_tensors,
        layers=policy.sparse_inference_policy(model),
        latency=times["file"],
        dense_latency=times["dense"],
        difference=difference,
        notes=notes,
    )


def _interpreter() -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ImportError(
            "LiteRT files are checked with its interpreter: "
            "pip install ai-edge-litert"
        ) from error
    return Interpreter


def _convert(model: keras.Model, inputs: list[Any], *, sparse: bool) -> bytes:
    values = [
        (variable, keras.ops.convert_to_numpy(variable))
        for variable in model.variables
    ]
    flat = keras.tree.flatten(inputs)

    def serve(*tensors: tf.Tensor) -> Any:
        # As constants: the converter does not find the variables of Keras 3.
        constants = [(v, tf.constant(value)) for v, value in values]
        with keras.StatelessScope(constants):
            return model(*keras.tree.pack_sequence_as(inputs, list(tensors)))

    function = tf.function(
        serve,
        autograph=False,
        input_signature=[
            tf.TensorSpec(x.shape, x.dtype, name=f"input_{i}")
            for i, x in enumerate(flat)
        ],
    ).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
    if sparse:
        converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    return converter.convert()


def _runner(
    content: bytes, inputs: list[Any]
) -> tuple[Callable[[], list[np.ndarray]], int]:
    interpreter = _interpreter()(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    sparse_tensors = sum(
        bool(tensor["sparsity_parameters"])
        for tensor in interpreter.get_tensor_details()
    )
    # In the order of the function's arguments, which their names hold.
    places = sorted(
        interpreter.get_input_details(),
        key=lambda place: int(
            place["name"].split(":")[0].rpartition("input_")[2] or 0
        ),
    )
    for place, x in zip(places, keras.tree.flatten(inputs), strict=True):
        interpreter.set_tensor(place["index"], x.numpy())
    outputs = [place["index"] for place in interpreter.get_output_details()]

    def run() -> list[np.ndarray]:
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in outputs]

    return run, sparse_tensors


def _difference(expected: list[np.ndarray], found: list[np.ndarray]) -> float:
    """Between outputs in any order: the converter keeps no names."""
    worst = 0.0
    for y in expected:
        largest = float(np.abs(y).max(initial=0)) or 1.0
        worst = max(
            worst,
            min(
                (
                    float(np.abs(y - z).max(initial=0)) / largest
                    for z in found
                    if z.shape == y.shape
                ),
                default=float("inf"),
            ),
        )
    return worst


def _write(path: Path, content: bytes) -> None:
    with archive.replacing(path) as file:
        file.write_bytes(content)
