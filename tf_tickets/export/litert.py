"""LiteRT (TensorFlow Lite) files that store a ticket's zeros as zeros.

The converter stores a kernel that is sparse enough as its kept values and
their places. Whether it is also computed sparsely is another matter; the
report says for which layers it can be, and why not for the others.

A kernel that is stored sparsely is computed sparsely in two cases only.

*Dense layers*, by LiteRT's own kernel, if the zeros come in blocks: of all
blocks of 4 neighbouring inputs of one unit, the fraction that is zero must be
above 0.9 times the fraction of weights that is. That is so for a mask in such
blocks at any density, and for a mask without structure below a density of
about 0.03. It is faster below a density of about 0.15, and slower above.

*1x1 convolutions*, by XNNPACK's sparse inference, in a part of a network that

- starts with a 3x3 convolution of stride 2 on 3 channels, padded by 1 on each
  side (`ZeroPadding2D(1)` and ``padding="valid"``, or ``padding="same"`` on an
  odd number of pixels: on an even one, TensorFlow pads on one side only),
- ends with a global average pooling,
- holds 1x1 convolutions, of whose weights at least two thirds are zero, and
  between them depthwise 3x3 and 5x5 convolutions with such padding, additions
  and elementwise activations.

So prune the 1x1 convolutions, and nothing else, to a sparsity of two thirds or
more: ``tt.prune(model, sparsity, filters=tt.export.prunable_for_xnnpack)``.
On x86 processors with AVX, XNNPACK leaves sparse inference off, since its
dense kernels are faster there; ARM and WebAssembly are what it is for.

Reference:
    Elsen et al., "Fast Sparse ConvNets", CVPR 2020; the XNNPACK delegate's
    documentation, section "Sparse inference".
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import checks
from tf_tickets.export.choosing import difference
from tf_tickets.export.folding import without_normalization
from tf_tickets.export.report import Report, Written
from tf_tickets.export.source import DEFAULT, Source, sample
from tf_tickets.network.kinds import kind_of
from tf_tickets.selection import layers_of, owners

# Kernels of the interpreter sum in another order than those of TensorFlow.
_TOLERANCE = 1e-3

_FEWEST_ZEROS = 2 / 3

# How the converter decides that a dense layer's zeros come in blocks.
_BLOCK = 4
_BLOCK_RATIO = 0.9


# Where this is run need not be where the file is meant to be used.
_HERE = (
    "XNNPACK leaves sparse inference of convolutions off on an x86 processor "
    "with AVX, as this one may be: its dense kernels are faster there"
)


class LiteRT:
    """The writer of LiteRT files."""

    def __call__(
        self,
        source: Source,
        target: Path,
        *,
        sparse: bool = True,
        batch_size: int = 1,
        fold: bool = True,
    ) -> Written:
        """Write ``source`` to ``target``, as `litert` says."""
        _interpreter()
        batch_size = checks.whole("batch_size", batch_size)
        if len(source.endpoints) > 1:
            raise ValueError(
                "A LiteRT file has one function, that of the model. "
                f"Received: endpoints={[*source.endpoints]}"
            )
        _check_floats(source.model)
        function, signature = source.endpoints[DEFAULT]
        inputs = sample(signature, batch_size)
        outputs = keras.tree.flatten(function(*inputs))
        expected = [output.numpy() for output in outputs]
        notes = _notes()
        if fold:
            source, note = without_normalization(source)
            notes.append(note)
        for stores in dict.fromkeys((sparse, False)):
            with source.traceable():
                content = _convert(source, inputs, sparse=stores)
            run, sparse_tensors = _runner(content)
            off = _difference(expected, run(*inputs))
            if off <= _TOLERANCE:
                break
            # Seen with dense layers whose inputs are no multiple of the
            # blocks.
            notes.append(
                "stored densely: the interpreter computes the sparse file "
                f"wrong, by {off:.1e} of the largest output"
            )
        else:
            raise ValueError(
                "The LiteRT interpreter computes something else than the "
                f"model: outputs differ by {off:.1e} of the largest. "
                f"Received: model={source.model.name!r}"
            )
        rows = sparse_inference_policy(source) if stores else {}
        notes.append(f"outputs differ from the Keras model's by {off:.1e}")
        target.write_bytes(content)
        return Written(
            source,
            # How the converter packs a tensor is its own business.
            rows={
                key: {**rows.get(key, {}), "packed_bytes": None}
                for key in source.weights
            },
            notes=notes,
            batch_size=batch_size,
            sparse_tensors=sparse_tensors,
            takes_zip=True,
        )

    def load(self, path: str | os.PathLike[str]) -> Callable[..., Any]:
        """The function of the file at ``path``, on one thread."""
        return _runner(Path(path).read_bytes())[0]

    def baseline(self, made: Report) -> tuple[str, dict[str, Any]]:
        """What `report` compares a file with: the same one, stored densely."""
        return made.format, {"sparse": False, "batch_size": made.batch_size}


# Kernels of these are computed with as they are stored.
_REFUSED = ("int8", "float8")


def _check_floats(model: keras.Model) -> None:
    modes = {
        layer.name: layer.dtype_policy.quantization_mode
        for layer in layers_of(model)
        if getattr(layer.dtype_policy, "quantization_mode", None) in _REFUSED
    }
    if modes:
        raise ValueError(
            "The LiteRT converter does not take layers that Keras has "
            "quantized to int8 or float8: export the model from before "
            "`model.quantize`. Received: "
            f"model={model.name!r} with {len(modes)} such layers: "
            + ", ".join(f"{k} ({v})" for k, v in [*modes.items()][:5])
        )


def prunable_for_xnnpack(path: str, variable: keras.Variable) -> bool:
    """A filter for `tf_tickets.prune`: kernels of 1x1 convolutions.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 3)),
    ...     keras.layers.Conv2D(16, 3),
    ...     keras.layers.Conv2D(32, 1, name="pointwise"),
    ... ])
    >>> ticket = tt.prune(
    ...     model, sparsity=0.75, filters=tt.export.prunable_for_xnnpack)
    >>> [key.split("/")[-2] for key in ticket.masks]
    ['pointwise']
    """
    shape = tuple(variable.shape)
    return len(shape) == 4 and shape[:2] == (1, 1) and variable.name == "kernel"


def sparse_inference_policy(source: Source) -> dict[str, dict[str, str]]:
    """Which prunable weights can be computed sparsely, and why not the others.

    Args:
        source: The model.

    Returns:
        ``{key: {"method": ..., "reason": ...}}``: ``"LiteRT"``, ``"XNNPACK"``
        or ``"dense"``, and a reason where it is dense. What this cannot see is
        whether an unusual operation stands between two layers; measure.
    """
    owner = owners(source.model)
    layers = {
        key: owner[id(variable)]
        for key, variable in source.weights.items()
        if key in source.prunable
    }
    methods = {key: _methods_of(layer) for key, layer in layers.items()}
    pointwise = [key for key in layers if "XNNPACK" in methods[key]]
    size = sum(source.values[key].size for key in pointwise)
    zeros = size - sum(source.kept[key] for key in pointwise)
    missing = _missing(source.model)
    rows = {}
    for key in layers:
        by, reason = "XNNPACK", ""
        if "LiteRT" in methods[key]:
            by, reason = "LiteRT", _not_in_blocks(source.values[key])
        elif key not in pointwise:
            reason = "neither a dense layer nor a 1x1 convolution of stride 1"
        elif missing:
            reason = missing
        elif zeros < _FEWEST_ZEROS * size:
            reason = (
                f"only {zeros / size:.2f} of the weights of the 1x1 "
                "convolutions are zero, and it takes two thirds"
            )
        rows[key] = {"method": "dense" if reason else by, "reason": reason}
    return rows


def _not_in_blocks(kernel: np.ndarray) -> str:
    inputs, units = kernel.shape
    padded = np.pad(kernel != 0, [(0, -inputs % _BLOCK), (0, 0)])
    blocks = padded.reshape(-1, _BLOCK, units).any(axis=1)
    empty, zeros = 1 - blocks.mean(), 1 - (kernel != 0).mean()
    if empty > _BLOCK_RATIO * zeros and empty > 0:
        return ""
    return (
        f"{empty:.2f} of the blocks of {_BLOCK} inputs are zero and {zeros:.2f}"
        " of the weights: not in blocks"
    )


def _notes() -> list[str]:
    """What about this machine decides whether sparse inference is used."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
    return [_HERE] if is_x86 else []


def _methods_of(layer: keras.layers.Layer) -> Collection[str]:
    rule = kind_of(layer).kernels
    return () if rule is None else rule(layer)


def _missing(model: keras.Model) -> str:
    """What the network lacks of the shape that XNNPACK looks for."""
    first = next(
        (
            one
            for one in layers_of(model)
            if isinstance(one, keras.layers.Conv2D)
        ),
        None,
    )
    if (
        first is None
        or first.kernel_size != (3, 3)
        or first.strides != (2, 2)
        or first.kernel.shape[2] != 3
    ):
        return "the first convolution is not 3x3, of stride 2, on 3 channels"
    if first.padding == "same":
        size = getattr(model, "input_shape", None)
        if not isinstance(size, tuple) or any(
            n is None or n % 2 == 0 for n in size[1:3]
        ):
            return (
                "the first convolution pads an even number of pixels: not by "
                "1 on each side"
            )
    if not any(
        isinstance(one, keras.layers.GlobalAveragePooling2D)
        for one in layers_of(model)
    ):
        return "no global average pooling ends the convolutions"
    return ""


def _interpreter() -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ImportError(
            "LiteRT files are checked with its interpreter: "
            "pip install ai-edge-litert"
        ) from error
    return Interpreter


def _convert(source: Source, inputs: list[Any], *, sparse: bool) -> bytes:
    values = [
        (variable, keras.ops.convert_to_numpy(variable))
        for variable in source.model.variables
    ]
    flat = keras.tree.flatten(inputs)
    predict, _ = source.endpoints[DEFAULT]

    def serve(*tensors: tf.Tensor) -> Any:
        # As constants: the converter does not find the variables of Keras 3.
        constants = [(v, tf.constant(value)) for v, value in values]
        with keras.StatelessScope(constants):
            return predict(*keras.tree.pack_sequence_as(inputs, list(tensors)))

    function = tf.function(
        serve,
        autograph=False,
        input_signature=[
            tf.TensorSpec(x.shape, x.dtype, name=f"input_{i}")
            for i, x in enumerate(flat)
        ],
    ).get_concrete_function()
    # Told before the converter fills the screen with them.
    _check_operations(
        source,
        {
            operation.type
            for operation in function.graph.get_operations()
            if operation.type.startswith("LookupTable")
            or any(x.dtype == tf.string for x in operation.outputs)
        },
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
    if sparse:
        converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    try:
        return converter.convert()
    except Exception as error:  # of a class that has no public name
        _check_operations(source, set(_UNKNOWN.findall(str(error))), error)
        raise


_UNKNOWN = re.compile(r"'tf\.(\w+)' op is neither a custom op nor a flex op")


def _check_operations(
    source: Source, unknown: set[str], error: Exception | None = None
) -> None:
    """Meet what LiteRT has no kernels for: tables of words, random numbers."""
    if unknown:
        raise ValueError(
            "LiteRT has no kernels for some of the model's operations. Where "
            "they prepare data, as the look-up of words does, leave that to "
            "the data pipeline and export the model from behind them: "
            "keras.Model(prepared, model.output). Received: "
            f"model={source.model.name!r} with {', '.join(sorted(unknown))}"
        ) from error


def _runner(
    content: bytes,
) -> tuple[Callable[..., list[np.ndarray]], int]:
    """``(function of the model's inputs, how many tensors are sparse)``."""
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
    outputs = [place["index"] for place in interpreter.get_output_details()]

    def run(*inputs: Any) -> list[np.ndarray]:
        flat = keras.tree.flatten(inputs)
        for place, x in zip(places, flat, strict=True):
            interpreter.set_tensor(place["index"], np.asarray(x))
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in outputs]

    return run, sparse_tensors


def _difference(expected: list[np.ndarray], found: list[np.ndarray]) -> float:
    """Between outputs in any order: the converter keeps no names."""
    return max(
        min(
            (difference([y], [z]) for z in found if z.shape == y.shape),
            default=float("inf"),
        )
        for y in expected
    )
