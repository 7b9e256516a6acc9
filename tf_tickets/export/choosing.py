"""What is faster, decided by measurement, and the choice that it leads to.

Differences within the noise count as none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import progress
from tf_tickets.export.kernels import (
    Choice,
    Method,
    methods_for,
    outputs_of,
)
from tf_tickets.export.source import DEFAULT, Source, concrete, sample
from tf_tickets.network.inputs import replaced_call
from tf_tickets.selection import layers_of
from tf_tickets.timing import Latency, interleaved

# Denser or smaller kernels never won a measurement.
_MOST_DENSITY = 0.3
_FEWEST_WEIGHTS = 4096

# Runs that differ by less than this cannot be told apart on a shared machine.
NOISE = 0.05


def compared(
    functions: Mapping[str, Callable[..., Any]],
    signature: Sequence[Any],
    batch: int,
    *,
    runs: int = 30,
    seconds: float = 2.0,
) -> tuple[dict[str, Latency], dict[str, list[np.ndarray]]]:
    """Run functions on one random batch, in turns.

    Args:
        functions: ``{name: function}`` of what ``signature`` says.
        signature: One structure of `tf.TensorSpec` for each argument.
        batch: Batch size.
        runs: At most so many of each.
        seconds: At most about so long in all.

    Returns:
        ``({name: latency}, {name: outputs})``.

    Raises:
        ValueError: If a function refuses the batch.
    """
    inputs = sample(signature, batch)
    calls = {
        name: functools.partial(_outputs, function, inputs)
        for name, function in functions.items()
    }
    try:
        outputs = {name: call() for name, call in calls.items()}
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            "The model refuses the inputs that latency is measured on: normal "
            "numbers, zeros and empty strings. A lookup that takes no unknown "
            "words does; measure the model from behind it. Received: "
            + str(error.message).partition("\n")[0]
        ) from error
    return _latencies(calls, runs, seconds), outputs


def difference(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """The largest difference of an output, over the largest of ``one``.

    Example:

    >>> difference([np.array([1.0, 4.0])], [np.array([1.0, 3.0])])
    0.25
    >>> difference([np.array([1.0, np.nan])], [np.array([np.nan, np.nan])])
    inf
    """
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        a, b = a.astype(np.float64), b.astype(np.float64)
        differ = (a != b) & ~(np.isnan(a) & np.isnan(b))
        gap = np.abs(np.subtract(a, b, where=differ, out=np.zeros_like(a)))
        gap[np.isnan(gap)] = np.inf
        largest = np.abs(a[np.isfinite(a)]).max(initial=0) or 1.0
        worst = max(worst, float(gap.max(initial=0) / largest))
    return worst


def gain(ratio: float, word: str) -> str:
    """A ratio in words: ``"no gain"`` if it may be noise.

    Example:

    >>> gain(2.0, "faster"), gain(1.01, "faster")
    ('2.00x faster', 'no gain')
    """
    if ratio > 1 + NOISE:
        return f"{ratio:.2f}x {word}"
    if ratio < 1 / (1 + NOISE):
        return f"no gain: {1 / ratio:.2f}x not {word}"
    return "no gain"


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

    def medians(self) -> dict[str, dict[str, float]]:
        """``{batch size: {method: seconds}}`` as JSON values."""
        return {
            str(batch): {name: one.median for name, one in row.items()}
            for batch, row in self.latencies.items()
        }


def choose(
    source: Source, batch_sizes: Sequence[int]
) -> tuple[dict[str, Choice], dict[str, Measured]]:
    """Measure every layer that could be sparse, and keep what wins.

    A method is chosen if it is faster than the dense layer, by more than the
    noise, at every batch size; of several the one with the best mean ratio.

    Args:
        source: The model.
        batch_sizes: At which to measure.

    Returns:
        ``({key: choice}, {key: measured})``; the first has winners only.
    """
    choices, measured = {}, {}
    sites = sites_of(source, max(batch_sizes))
    with progress.bar(
        "Measuring which layers are faster sparse", len(sites), unit="layer"
    ) as step:
        for site in sites:
            methods = methods_for(site.layer, site.kernel)
            with source.traceable():
                result = _measure(site, methods, batch_sizes)
            measured[site.key] = result
            if result.method in methods:
                choices[site.key] = Choice(site.layer, methods[result.method])
            step()
    return choices, measured


def sites_of(source: Source, batch: int) -> list[Site]:
    """The layers of a model that a sparse method can compute."""
    by_id = {id(v): key for key, v in source.weights.items()}
    sites: dict[str, Site] = {}
    owners: dict[str, int] = {}
    for layer in layers_of(source.model):
        # The public property may compute something (adapters, quantization).
        key = by_id.get(id(getattr(layer, "kernel", None)))
        if key is None:
            continue
        owners[key] = owners.get(key, 0) + 1
        kernel = source.values[key]
        if (
            kernel.size >= _FEWEST_WEIGHTS
            and source.kept[key] <= _MOST_DENSITY * kernel.size
            and methods_for(layer, kernel)
        ):
            sites[key] = Site(key, layer, [], kernel)
    sites = {k: s for k, s in sites.items() if owners[k] == 1}
    if sites:
        _record_shapes(list(sites.values()), source, batch)
    return [site for site in sites.values() if site.shapes]


def _record_shapes(sites: list[Site], source: Source, batch: int) -> None:
    function, signature = source.endpoints[DEFAULT]
    with source.traceable(), contextlib.ExitStack() as stack:
        for site in sites:
            stack.enter_context(
                replaced_call(site.layer, _recorder(site, batch))
            )
        # Traced, not run: only the shapes matter.
        tf.function(function, autograph=False).get_concrete_function(
            *concrete(signature, batch)
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
) -> dict[str, Callable[[], Any]]:
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
        row = _latencies(functions, 50, 0.15 * len(functions))
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


def _latencies(
    calls: Mapping[str, Callable[[], Any]], runs: int, seconds: float
) -> dict[str, Latency]:
    times = interleaved(calls, rounds=runs, seconds=seconds)
    return {name: Latency.of(one) for name, one in times.items()}


def _outputs(
    function: Callable[..., Any], inputs: Sequence[Any]
) -> list[np.ndarray]:
    return [np.asarray(y) for y in keras.tree.flatten(function(*inputs))]


def _caller(
    layer: keras.layers.Layer,
    call: Callable[..., Any] | None,
    inputs: list[tf.Tensor],
) -> Callable[[], Any]:
    @tf.function(autograph=False)
    def run(*tensors: tf.Tensor) -> list[tf.Tensor]:
        with contextlib.ExitStack() as stack:
            if call is not None:
                stack.enter_context(replaced_call(layer, call))
            return [layer(tensor) for tensor in tensors]

    return functools.partial(
        _outputs, run.get_concrete_function(*inputs), inputs
    )


def _prepared(method: Method, kernel: np.ndarray) -> dict[str, tf.Variable]:
    flat = kernel.transpose(method.order).ravel()
    positions = np.flatnonzero(flat)
    made = method.prepare(
        (tf.constant(flat[positions]), tf.constant(positions, tf.int64))
    )
    # Variables, so that the graph cannot fold what a served one must read.
    return {name: tf.Variable(value) for name, value in made.items()}
