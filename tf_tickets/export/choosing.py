"""Which layers are served by a sparse method: decided by measurement."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets.export import signatures
from tf_tickets.export.kernels import methods_for, outputs_of
from tf_tickets.export.latency import NOISE, Latency, interleaved
from tf_tickets.export.products import Method
from tf_tickets.export.serving import Choice, replaced_call
from tf_tickets.selection import layers_of, named_weights, view_of

# Denser or smaller kernels never won a measurement.
_MOST_DENSITY = 0.3
_FEWEST_WEIGHTS = 4096


@dataclasses.dataclass
class Site:
    """A layer that a sparse method can compute.

    Attributes:
        key: Of its kernel.
        layer: The layer.
        shapes: Of its inputs, one for each call in the model; the first axis
            for one example, since layers may fold others into it.
        kernel: The kernel's value.
    """

    key: str
    layer: keras.layers.Layer
    shapes: list[tuple[float, list[int | None]]]
    kernel: np.ndarray


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured for one layer.

    Attributes:
        method: The method chosen; ``"dense"`` if no other won.
        latencies: ``{batch size: {method: latency}}``, a sparse method's
            only as long as it was in the running.
    """

    method: str
    latencies: dict[int, dict[str, Latency]]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "method": self.method,
            "latencies": {
                str(batch): {n: one.to_json() for n, one in row.items()}
                for batch, row in self.latencies.items()
            },
        }


def choose(
    model: keras.Model,
    endpoint: tuple[Callable[..., Any], list[Any]],
    batch_sizes: Sequence[int],
) -> tuple[dict[str, Choice], dict[str, Measured]]:
    """Measure every layer that could be sparse, and keep what wins.

    A method is chosen if it is faster than the dense layer, by more than the
    noise, at every batch size; of several the one with the best mean ratio.

    Args:
        model: A built model.
        endpoint: ``(function, input signature)``.
        batch_sizes: At which to measure.

    Returns:
        ``({key: choice}, {key: measured})``; the first has winners only.
    """
    choices, measured = {}, {}
    for site in sites_of(model, endpoint, max(batch_sizes)):
        methods = methods_for(site.layer, site.kernel)
        result = _measure(site, methods, batch_sizes)
        measured[site.key] = result
        if result.method in methods:
            choices[site.key] = Choice(site.layer, methods[result.method])
    return choices, measured


def sites_of(
    model: keras.Model,
    endpoint: tuple[Callable[..., Any], list[Any]],
    batch: int,
) -> list[Site]:
    """The layers of ``model`` that a sparse method can compute."""
    by_id = {id(v): key for key, v in named_weights(model).items()}
    sites: dict[str, Site] = {}
    owners: dict[str, int] = {}
    for layer in layers_of(model):
        # The public property may compute something (adapters, quantization).
        variable = getattr(layer, "kernel", None)
        key = by_id.get(id(variable))
        if key is None:
            continue
        owners[key] = owners.get(key, 0) + 1
        kernel = view_of(variable)
        kept = np.count_nonzero(kernel)
        if (
            kernel.size >= _FEWEST_WEIGHTS
            and kept <= _MOST_DENSITY * kernel.size
            and methods_for(layer, kernel)
        ):
            sites[key] = Site(key, layer, [], kernel)
    sites = {k: s for k, s in sites.items() if owners[k] == 1}
    if sites:
        _record_shapes(list(sites.values()), endpoint, batch)
    return [site for site in sites.values() if site.shapes]


def _record_shapes(
    sites: list[Site],
    endpoint: tuple[Callable[..., Any], list[Any]],
    batch: int,
) -> None:
    function, signature = endpoint
    with contextlib.ExitStack() as stack:
        for site in sites:
            stack.enter_context(
                replaced_call(site.layer, _recorder(site, batch))
            )
        # Traced, not run: only the shapes matter.
        tf.function(function, autograph=False).get_concrete_function(
            *signatures.concrete(signature, batch)
        )
    for site in sites:
        if any(None in rest for _, rest in site.shapes):
            site.shapes.clear()


def _recorder(site: Site, batch: int) -> Callable[..., Any]:
    call = site.layer.call

    def record(inputs: tf.Tensor, *args: Any, **kwargs: Any) -> Any:
        shape = inputs.shape.as_list()
        site.shapes.append(((shape[0] or batch) / batch, shape[1:]))
        return call(inputs, *args, **kwargs)

    return record


def callers(
    site: Site, methods: Mapping[str, Method], batch: int
) -> dict[str, Callable[[], None]]:
    """``{name: function}`` that compute a layer, ``"dense"`` among them.

    Args:
        site: The layer.
        methods: In which other ways to compute it.
        batch: Batch size.
    """
    inputs = [
        tf.random.stateless_normal(
            [max(1, round(first * batch)), *rest], (0, 0)
        )
        for first, rest in site.shapes
    ]
    functions = {"dense": _caller(site.layer, None, inputs)}
    for name, method in methods.items():
        call = outputs_of(site.layer, method, _prepared(method, site.kernel))
        functions[name] = _caller(site.layer, call, inputs)
    return functions


def _measure(
    site: Site, methods: dict[str, Method], batch_sizes: Sequence[int]
) -> Measured:
    running = dict(methods)
    latencies: dict[int, dict[str, Latency]] = {}
    for batch in sorted(batch_sizes, reverse=True):
        functions = callers(site, running, batch)
        row = interleaved(functions, seconds=0.15 * len(functions), runs=50)
        latencies[batch] = row
        limit = row["dense"].median * (1 - NOISE)
        running = {n: m for n, m in running.items() if row[n].median < limit}
        if not running:
            return Measured("dense", latencies)
    best = min(
        running,
        key=lambda name: sum(
            math.log(row[name].median / row["dense"].median)
            for row in latencies.values()
        ),
    )
    return Measured(best, latencies)


def _caller(
    layer: keras.layers.Layer,
    call: Callable[..., Any] | None,
    inputs: list[tf.Tensor],
) -> Callable[[], None]:
    @tf.function(autograph=False)
    def run(*tensors: tf.Tensor) -> list[tf.Tensor]:
        with contextlib.ExitStack() as stack:
            if call is not None:
                stack.enter_context(replaced_call(layer, call))
            return [layer(tensor) for tensor in tensors]

    function = run.get_concrete_function(*inputs)

    def wait() -> None:
        for output in function(*inputs):
            output.numpy()

    return wait


def _prepared(method: Method, kernel: np.ndarray) -> dict[str, tf.Variable]:
    flat = kernel.transpose(method.order).ravel()
    positions = np.flatnonzero(flat)
    made = method.prepare(
        (tf.constant(flat[positions]), tf.constant(positions, tf.int64))
    )
    # Variables, so that the graph cannot fold what a served one must read.
    return {name: tf.Variable(value) for name, value in made.items()}
