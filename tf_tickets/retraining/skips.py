"""Skip connections around convolutions that had none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, overload

import keras

from tf_tickets.network.copier import Copier, count
from tf_tickets.network.graph import require_graph
from tf_tickets.network.layer_copy import copy_of, scope_of
from tf_tickets.retraining.sites import (
    Site,
    channel_axis,
    find_sites,
    is_linear,
    weights_and_kept,
)
from tf_tickets.selection import Filters


@dataclasses.dataclass(frozen=True)
class SkipReport:
    """Where skip connections went and what they cost.

    Attributes:
        branches: ``{convolution: "conv" or "identity"}``.
        refused: ``{convolution: reason}``.
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
    filters: Filters = ...,
    return_report: Literal[True],
) -> tuple[keras.Model, SkipReport]: ...


def inject_skip_connections(
    model: keras.Model,
    *,
    branch: Literal["conv", "identity"] = "conv",
    scale: float = 1e-4,
    epsilon: float = 1e-5,
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
    called ``<convolution>_skip_...``. A sequential model comes back
    functional.

    Args:
        model: A functional model or a sequential one with a known input
            shape, nested or not. It is not changed.
        branch: `"conv"` as above; `"identity"` adds the input itself, with
            no parameters, where input and output agree in shape, and the
            1x1 form elsewhere.
        scale: Start value of the 1x1 kernels. 0 changes no output at first.
        epsilon: Of the branches' normalization.
        filters: Which convolutions, by their kernels, as in
            `tf_tickets.prunable_weights`.
        return_report: Also return where branches went and what they cost.

    Returns:
        The new model; with ``return_report`` a pair of it and the report.

    Raises:
        ValueError: If no branch fits anywhere, saying why, or the calls
            inside the model are not known.

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
    if branch not in ("conv", "identity"):
        raise ValueError(
            "`branch` must be 'conv' or 'identity'. "
            f"Received: branch={branch!r}"
        )
    if not epsilon > 0:
        raise ValueError(
            f"`epsilon` must be positive. Received: epsilon={epsilon!r}"
        )
    require_graph(
        model,
        "Adding skip connections",
        "In a subclassed model, add the branch in its `call`.",
    )
    sites, refused = find_sites(model, filters)
    if not sites:
        raise ValueError(
            "No convolution can have a skip connection around it. Received: "
            f"model={model.name!r}, "
            + (f"refused: {refused}" if refused else "no spatial convolution")
        )
    injection = _Injection(sites, branch, scale, epsilon)
    copier = Copier(
        replace=injection.replace,
        connect=injection.connect,
        rewired={id(site.model) for site in sites},
    )
    deeper = copier.copy(model)
    if not return_report:
        return deeper
    size, kept = weights_and_kept(model)
    return deeper, SkipReport(
        injection.branches,
        refused,
        count(injection.parameters()),
        kept,
        size,
        copier.keys,
    )


class _Injection:
    """Lays the branches while a model is copied."""

    def __init__(
        self, sites: list[Site], branch: str, scale: float, epsilon: float
    ) -> None:
        self.sites = {id(site.conv): site for site in sites}
        self.joins = {id(s.norm or s.conv): s for s in sites}
        self.pads = {id(s.pad) for s in sites if s.pad is not None}
        self.branch = branch
        self.scale = scale
        self.epsilon = epsilon
        self.branches: dict[str, str] = {}
        self._layers: list[keras.layers.Layer] = []
        self._before: dict[int, Any] = {}
        self._sources: dict[int, Any] = {}

    def replace(self, layer: Any) -> Any:
        """The convolution without its activation, which comes later."""
        if id(layer) not in self.sites or is_linear(layer):
            return None
        return copy_of(layer, activation="linear")

    def connect(
        self, layer: Any, copy: Any, args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        made = copy(*args, **kwargs)
        if id(layer) in self.pads:
            self._before[id(made)] = args[0]
        if id(layer) in self.sites:
            self._sources[id(layer)] = self._before.get(id(args[0]), args[0])
        site = self.joins.get(id(layer))
        if site is None:
            return made
        return self._join(site, made, self._sources[id(site.conv)])

    def parameters(self) -> list[keras.Variable]:
        return [v for x in self._layers for v in x.trainable_variables]

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
            add = keras.layers.Add(name=f"{conv.name}_skip_add", dtype=policy)
            out = add([made, side])
            if not is_linear(conv):
                out = keras.layers.Activation(
                    conv.activation,
                    name=f"{conv.name}_skip_activation",
                    dtype=policy,
                )(out)
        return out

    def _small(self, site: Site) -> keras.layers.Layer:
        """The convolution of the branch: one pixel, the same strides."""
        conv: Any = site.conv
        options = {
            "kernel_size": 1,
            "strides": conv.strides,
            "data_format": conv.data_format,
            "use_bias": False,
            "name": f"{conv.name}_skip_conv",
            "dtype": conv.dtype_policy,
        }
        fill = keras.initializers.Constant(self.scale)
        kind = next(
            kind
            for kind in (
                keras.layers.DepthwiseConv1D,
                keras.layers.DepthwiseConv2D,
                keras.layers.Conv1D,
                keras.layers.Conv2D,
                keras.layers.Conv3D,
            )
            if isinstance(conv, kind)
        )
        if site.depthwise:
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
            name=f"{site.conv.name}_skip_bn",
            dtype=site.conv.dtype_policy,
        )
