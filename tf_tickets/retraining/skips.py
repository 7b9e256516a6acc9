"""Skip connections around convolutions that had none."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, Literal, overload

import keras
import numpy as np

from tf_tickets import checks
from tf_tickets.network.copier import Copier, Replace, count
from tf_tickets.network.graph import (
    Call,
    Graph,
    graphs_of,
    require_graph,
    trace,
)
from tf_tickets.network.layer_copy import copy_of, scope_of
from tf_tickets.retraining.annealing import SkipShare
from tf_tickets.selection import Filters, prunable_weights

_DENSE = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_PADS = (
    keras.layers.ZeroPadding1D,
    keras.layers.ZeroPadding2D,
    keras.layers.ZeroPadding3D,
)


@dataclasses.dataclass(frozen=True)
class SkipReport:
    """Where skip connections went and what they cost.

    Attributes:
        branches: ``{convolution: "conv" or "identity"}``.
        refused: ``{convolution: reason}`` of those without a branch.
        added: Trainable parameters in the branches. No mask covers them.
        kept: Prunable weights of the model that are not zero.
        size: Prunable weights of the model.
        keys: ``{key in the model: key in the new model}`` of the weights.

    Example:

    >>> from tf_tickets.retraining import SkipReport
    >>> report = SkipReport({"conv": "conv"}, {}, added=30, kept=10, size=100)
    >>> report.sparsity, round(report.sparsity_with_skips, 3)
    (0.9, 0.692)
    """

    branches: Mapping[str, str]
    refused: Mapping[str, str]
    added: int
    kept: int
    size: int
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """Sparsity of the model's own weights, as papers report it."""
        return 1 - self.kept / self.size

    @property
    def sparsity_with_skips(self) -> float:
        """Sparsity when what was added counts as kept."""
        return 1 - (self.kept + self.added) / (self.size + self.added)

    def __str__(self) -> str:
        lines = [
            f"{len(self.branches)} skip connections, {self.added:,} "
            f"parameters: {self.added / max(self.kept, 1):.2f} times the "
            f"{self.kept:,} weights kept; sparsity {self.sparsity:.4f}, "
            f"{self.sparsity_with_skips:.4f} with what was added"
        ]
        lines += [f"  {k}: {kind}" for k, kind in self.branches.items()]
        lines += [f"  none at {k}: {why}" for k, why in self.refused.items()]
        return "\n".join(lines)


@overload
def inject_skip_connections(
    model: keras.Model,
    *,
    branch: Literal["conv", "identity"] = ...,
    scale: float = ...,
    epsilon: float = ...,
    temporary: bool = ...,
    filters: Filters = ...,
    return_report: Literal[False] = ...,
) -> keras.Model: ...


@overload
def inject_skip_connections(
    model: keras.Model,
    *,
    branch: Literal["conv", "identity"] = ...,
    scale: float = ...,
    epsilon: float = ...,
    temporary: bool = ...,
    filters: Filters = ...,
    return_report: Literal[True],
) -> tuple[keras.Model, SkipReport]: ...


def inject_skip_connections(
    model: keras.Model,
    *,
    branch: Literal["conv", "identity"] = "conv",
    scale: float = 1e-4,
    epsilon: float = 1e-5,
    temporary: bool = False,
    filters: Filters = None,
    return_report: bool = False,
) -> keras.Model | tuple[keras.Model, SkipReport]:
    r"""Add the input of each spatial convolution to its normalized output.

    $y = BN(k * x) + BN'(k' * x)$, before the activation, where $k'$ is a
    1x1 kernel with the stride of $k$, so that shapes always agree. All of
    $k'$ starts at ``scale``. The normalization undoes so small a scale in
    part: a branch whose channel sum has the deviation $\sigma$ leaves it with
    $s\sigma/\sqrt{s^2\sigma^2+\epsilon}$, which is 0.25 at $\sigma=8$ for the
    defaults; with Keras' usual ``epsilon`` of 1e-3 it would be 0.025.

    Every convolution with a kernel larger than one pixel gets a branch, but
    for those that read the model's input: in ResNets of basic blocks those
    are the two of each block, as in the paper; in a bottleneck block it is
    the middle one; in a depthwise convolution the branch is depthwise too.
    Names, weights, masks and weight keys stay; the branches' layers are
    called ``<convolution>_skip_...``, those of a second injection
    ``<convolution>_2_skip_...``. A sequential model comes back
    functional.

    Args:
        model: A functional model or a sequential one with a known input
            shape, nested or not. It is not changed.
        branch: `"conv"` as above; `"identity"` adds the input itself, with
            no parameters, where input and output agree in shape, and the
            1x1 form elsewhere. Default `"conv"`.
        scale: Number: start value of the 1x1 kernels. 0 changes no output at
            first. Default 1e-4.
        epsilon: Positive number: that of the branches' normalization.
            Default 1e-5.
        temporary: Boolean: give each branch a share that `AnnealSkips` leads
            to 0 while the ticket trains. Default `False`.
        filters: Which convolutions, by their kernels, as in
            `tf_tickets.prunable_weights`. Default: as described above.
        return_report: Boolean: also return where branches went and what they
            cost. Default `False`.

    Returns:
        The new model; with ``return_report`` a pair of it and a `SkipReport`.

    Raises:
        ValueError: If no branch fits anywhere, saying why, an option is out
            of its range, or the calls inside the model are not known.

    Reference:
        Jaiswal et al., "Spending Your Winning Lottery Better After Drawing
        It", 2021, figure 3.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 1)),
    ...     keras.layers.Conv2D(4, 3, padding="same", name="one"),
    ...     keras.layers.Conv2D(4, 3, padding="same", name="two"),
    ...     keras.layers.BatchNormalization(),
    ... ])
    >>> deeper, report = tt.retraining.inject_skip_connections(
    ...     model, return_report=True)
    >>> report.added, dict(report.branches)
    (24, {'two': 'conv'})
    """
    injection = Injection(
        model,
        branch=branch,
        scale=scale,
        epsilon=epsilon,
        temporary=temporary,
        filters=filters,
    )
    copier = injection.copier()
    deeper = copier.copy(model)
    return (deeper, injection.report(copier.keys)) if return_report else deeper


# What the layers of a branch are called, behind its prefix.
_PARTS = ("conv", "bn", "share", "add", "activation")


class Injection:
    """Lays the branches while a model is copied.

    Model, options and errors are those of `inject_skip_connections`.

    Args:
        replace: Another change to make in the same copy, as `Copier` takes
            it. It is also asked about the activations that move behind the
            branches, which are not layers of the model. Default: none.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        branch: Literal["conv", "identity"] = "conv",
        scale: float = 1e-4,
        epsilon: float = 1e-5,
        temporary: bool = False,
        filters: Filters = None,
        replace: Replace = lambda layer: None,
    ) -> None:
        checks.choice("branch", branch, ("conv", "identity"))
        self.branch = branch
        self.scale = checks.number("scale", scale)
        self.epsilon = checks.number("epsilon", epsilon, "(0, inf)")
        checks.choice("temporary", temporary, (True, False))
        self.temporary = temporary
        require_graph(
            model,
            "Adding skip connections",
            "In a subclassed model, add the branch in its `call`.",
        )
        sites, self.refused = find_sites(model, filters)
        if not sites:
            raise ValueError(
                "No convolution can have a skip connection around it. "
                f"Received: model={model.name!r}, "
                + (
                    f"refused: {self.refused}"
                    if self.refused
                    else "no spatial convolution"
                )
            )
        self.model = model
        self.branches: dict[str, str] = {}
        self._other = replace
        self._sites = {id(site.conv): site for site in sites}
        self._joins = {id(s.norm or s.conv): s for s in sites}
        self._pads = {id(s.pad) for s in sites if s.pad is not None}
        self._layers: list[keras.layers.Layer] = []
        self._prefixes: dict[int, tuple[int, str]] = {}
        self._before: dict[int, Any] = {}
        self._sources: dict[int, Any] = {}

    def copier(self) -> Copier:
        """A `Copier` of the model that makes this change and the other."""
        return Copier(
            replace=self._replace,
            connect=self._connect,
            rewired={id(site.model) for site in self._sites.values()},
        )

    def report(self, keys: Mapping[str, str]) -> SkipReport:
        """What was laid; ``keys`` are `Copier.keys` of the copy."""
        values = [v.numpy() for v in prunable_weights(self.model).values()]
        return SkipReport(
            self.branches,
            self.refused,
            added=count(
                [v for x in self._layers for v in x.trainable_variables]
            ),
            kept=sum(int(np.count_nonzero(v)) for v in values),
            size=sum(v.size for v in values),
            keys=keys,
        )

    def _replace(self, layer: Any) -> Any:
        if id(layer) not in self._sites or is_linear(layer):
            return self._other(layer)
        # Its activation comes after the branch.
        bare = copy_of(layer, activation="linear")
        return self._other(bare) or bare

    def _connect(
        self, layer: Any, copy: Any, args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        made = copy(*args, **kwargs)
        if id(layer) in self._pads:
            self._before[id(made)] = args[0]
        if id(layer) in self._sites:
            self._sources[id(layer)] = self._before.get(id(args[0]), args[0])
        site = self._joins.get(id(layer))
        if site is None:
            return made
        return self._join(site, made, self._sources[id(site.conv)])

    def _join(self, site: Site, made: Any, source: Any) -> Any:
        conv: Any = site.conv
        policy = conv.dtype_policy
        identity = self.branch == "identity" and site.keeps_shape
        self.branches[conv.name] = "identity" if identity else "conv"
        with scope_of(conv):
            side = source
            if not identity:
                small = self._small(site)
                norm = self._norm(site)
                self._layers += [small, norm]
                side = norm(small(source))
            if self.temporary:
                name = f"{self._prefix(site)}_share"
                side = SkipShare(name=name, dtype=policy)(side)
            add = keras.layers.Add(
                name=f"{self._prefix(site)}_add", dtype=policy
            )
            out = add([made, side])
            if not is_linear(conv):
                activation: Any = keras.layers.Activation(
                    conv.activation,
                    name=f"{self._prefix(site)}_activation",
                    dtype=policy,
                )
                out = (self._other(activation) or activation)(out)
        return out

    def _prefix(self, site: Site) -> str:
        """How the names of a branch's layers begin, unlike all in its model."""
        model, conv = id(site.model), site.conv
        if id(conv) not in self._prefixes:
            taken = {layer.name for layer in site.model.layers}
            numbers = itertools.count(2)
            prefix = f"{conv.name}_skip"
            while (model, prefix) in self._prefixes.values() or any(
                f"{prefix}_{part}" in taken for part in _PARTS
            ):
                prefix = f"{conv.name}_{next(numbers)}_skip"
            self._prefixes[id(conv)] = model, prefix
        return self._prefixes[id(conv)][1]

    def _small(self, site: Site) -> keras.layers.Layer:
        """The convolution of the branch: one pixel, the same strides."""
        conv: Any = site.conv
        options = {
            "kernel_size": 1,
            "strides": conv.strides,
            "data_format": conv.data_format,
            "use_bias": False,
            "name": f"{self._prefix(site)}_conv",
            "dtype": conv.dtype_policy,
        }
        fill = keras.initializers.Constant(self.scale)
        kinds = (*_DEPTHWISE, *_DENSE)
        kind = next(kind for kind in kinds if isinstance(conv, kind))
        if is_depthwise(conv):
            return kind(
                depth_multiplier=conv.depth_multiplier,
                depthwise_initializer=fill,
                depthwise_regularizer=conv.depthwise_regularizer,
                **options,
            )
        return kind(
            conv.filters,
            groups=conv.groups,
            kernel_initializer=fill,
            kernel_regularizer=conv.kernel_regularizer,
            **options,
        )

    def _norm(self, site: Site) -> keras.layers.Layer:
        like: Any = site.norm
        return keras.layers.BatchNormalization(
            axis=channel_axis(site.conv) if like is None else like.axis,
            momentum=0.9 if like is None else like.momentum,
            epsilon=self.epsilon,
            synchronized=like is not None and like.synchronized,
            gamma_regularizer=like and like.gamma_regularizer,
            beta_regularizer=like and like.beta_regularizer,
            name=f"{self._prefix(site)}_bn",
            dtype=site.conv.dtype_policy,
        )


@dataclasses.dataclass(frozen=True)
class Site:
    """A convolution around which a branch can go.

    Attributes:
        conv: The convolution.
        norm: The batch normalization that alone reads its output, or `None`;
            the branch joins after it.
        pad: The zero padding in front of a "valid" convolution, or `None`;
            the branch starts before it.
        input_shape: Shape of what enters the branch.
        model: The model, the outermost or a nested one, that calls it.
    """

    conv: keras.layers.Layer
    norm: keras.layers.Layer | None
    pad: keras.layers.Layer | None
    input_shape: tuple[int | None, ...]
    model: keras.Model

    @property
    def keeps_shape(self) -> bool:
        """Whether input and output have the same shape."""
        conv: Any = self.conv
        channels = self.input_shape[channel_axis(conv)]
        made = (
            (channels or 0) * conv.depth_multiplier
            if is_depthwise(conv)
            else conv.filters
        )
        return set(conv.strides) == {1} and channels == made


def find_sites(
    model: keras.Model, filters: Filters
) -> tuple[list[Site], dict[str, str]]:
    """Find the convolutions around which a branch can go.

    Args:
        model: A functional or sequential model, nested or not.
        filters: As in `tf_tickets.prunable_weights`; `None` for all
            convolutions but those that read the model's input.

    Returns:
        The sites, and ``{layer: reason}`` of the other convolutions.
    """
    asked = {id(v) for v in prunable_weights(model, filters).values()}
    graphs = [(graph, trace(graph, inline=False)) for graph in graphs_of(model)]
    sites: list[Site] = []
    refused: dict[str, str] = {}
    for graph, calls in graphs:
        for call in calls.calls:
            conv = call.operation
            if not _is_spatial(conv) or id(conv.kernel) not in asked:
                continue
            if sum(c.uses(conv) for _, c in graphs) > 1:
                refused[conv.name] = "it is shared between several places"
                continue
            found = _site(graph, calls, call)
            if isinstance(found, str):
                refused[conv.name] = found
            elif filters is None and graph is model and _first(calls, call):
                refused[conv.name] = "it reads the model's input"
            else:
                sites.append(found)
    return sites, refused


def channel_axis(conv: Any) -> int:
    """The axis of the channels in a convolution's input."""
    return 1 if conv.data_format == "channels_first" else -1


def is_depthwise(conv: Any) -> bool:
    """Whether a convolution keeps every input channel to itself."""
    return isinstance(conv, _DEPTHWISE)


def is_linear(layer: Any) -> bool:
    """Whether a layer applies no activation."""
    return layer.activation in (None, keras.activations.linear)


def reach(conv: Any) -> list[int]:
    """How many pixels the kernel spans in each direction."""
    return [
        (size - 1) * gap + 1
        for size, gap in zip(conv.kernel_size, conv.dilation_rate, strict=True)
    ]


def _site(graph: keras.Model, calls: Graph, call: Call) -> Site | str:
    conv: Any = call.operation
    source, pad = call.inputs[0], None
    if conv.padding == "valid":
        maker = calls.maker(source)
        if maker is None or not _pads_half(maker.operation, conv):
            return "its output is smaller than its input (padding='valid')"
        if calls.uses(maker.operation) > 1:
            return "its padding is shared between several places"
        pad, source = maker.operation, maker.inputs[0]
    elif conv.padding != "same":
        return f"padding={conv.padding!r}"
    norm = None
    made = call.outputs[0]
    readers = calls.readers(made)
    if (
        len(readers) == 1
        and isinstance(readers[0].operation, keras.layers.BatchNormalization)
        and calls.uses(readers[0].operation) == 1
        and made not in calls.outputs
        and is_linear(conv)
    ):
        norm = readers[0].operation
    return Site(conv, norm, pad, calls.shapes[source], graph)


def _first(calls: Graph, call: Call) -> bool:
    maker = calls.maker(call.inputs[0])
    if maker is not None and isinstance(maker.operation, _PADS):
        call = maker
    return call.inputs[0] in calls.inputs or (
        (maker := calls.maker(call.inputs[0])) is not None
        and isinstance(maker.operation, keras.layers.InputLayer)
    )


def _is_spatial(operation: Any) -> bool:
    return isinstance(operation, (*_DENSE, *_DEPTHWISE)) and (
        set(operation.kernel_size) != {1}
    )


def _pads_half(pad: Any, conv: Any) -> bool:
    if not isinstance(pad, _PADS):
        return False
    padding = pad.padding
    if isinstance(pad, keras.layers.ZeroPadding1D):
        padding = (padding,)
    elif pad.data_format != conv.data_format:
        return False
    return [tuple(p) for p in padding] == [
        (span // 2, span // 2) for span in reach(conv)
    ] and all(span % 2 for span in reach(conv))
