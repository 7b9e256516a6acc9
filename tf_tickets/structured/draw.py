"""Network slimming: push channels apart while training, rank them, cut.

A penalty separates the scales, scores rank the channels, a draw says which the
model would lose now and how sure that is.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, get_args

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import checks
from tf_tickets.network.channels import Channels, follow, owners
from tf_tickets.network.graph import trace
from tf_tickets.selection import layers_of, named_weights, values_of
from tf_tickets.structured.selects import selectable, with_selects
from tf_tickets.structured.ticket import ChannelTicket, channel_axis
from tf_tickets.tracing import retrace

Criterion = Literal["auto", "gamma", "filter_norm"]
CRITERIA = get_args(Criterion)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Channel masks, and the channels whose fate only a tie decides.

    Attributes:
        masks: ``{key: boolean vector}``, `True` = kept.
        undecided: ``{key: boolean vector}``: channels whose score equals that
            of another on the other side of the cut.
    """

    masks: Mapping[str, np.ndarray]
    undecided: Mapping[str, np.ndarray]

    def distance(self, other: Drawing) -> float:
        """Normalized Hamming distance; what a tie decides counts as different.

        A distance of 0 thus says that the scores demand the same masks, not
        that ties were broken alike.
        """
        size = differing = 0
        for key, mask in self.masks.items():
            differs = mask != other.masks[key]
            differs |= self.undecided[key] | other.undecided[key]
            size += mask.size
            differing += int(np.count_nonzero(differs))
        return differing / size


class ChannelScores:
    """Scores the channels of one model, again and again.

    Args:
        model: A built model.
        criterion: `"gamma"`: the magnitude of the scale in every
            `BatchNormalization`; any model has these. `"filter_norm"`: the
            L2 norm of every filter over the mean norm of its layer; the model
            must be functional or sequential. `"auto"`: scales where there is
            a `BatchNormalization`, else filters.
        coupled: Score channels that can only go together as one, by the mean
            of their scores, and leave out those that cannot go. Needs a
            functional or sequential model.
        select: Whether a normalization can lose channels of a tensor that
            others read: it counts as coupled to what comes behind it only.

    Raises:
        ValueError: On an unknown criterion, or where nothing is scored.
    """

    def __init__(
        self,
        model: keras.Model,
        criterion: Criterion,
        coupled: bool = False,
        *,
        select: bool = False,
    ) -> None:
        checks.choice("criterion", criterion, CRITERIA)
        self.model = model
        scales = _scales(model)
        if criterion == "auto":
            criterion = "gamma" if scales else "filter_norm"
        self.criterion = criterion
        self._channels: Channels | None = None
        self._atoms: dict[str, np.ndarray] = {}
        if coupled or criterion == "filter_norm":
            graph = trace(model)
            if select:
                norms = {id(call.operation) for call in selectable(graph)}
                graph, _ = with_selects(graph, norms)
            self._channels = follow(graph)
            self._atoms = owners(self._channels, model)
        if criterion == "gamma":
            self._variables = scales
        else:
            self._variables = self._filters()
        self._units = self._grouped() if coupled else None
        if not self._variables:
            raise ValueError(
                "The model has no channels to score: no scale of a "
                "BatchNormalization for criterion='gamma', no filter whose "
                "channel could go for criterion='filter_norm'. "
                f"Received: criterion={criterion!r}, model={model.name!r}"
            )

    def scores(self) -> dict[str, np.ndarray]:
        """``{key: one number per channel}``.

        Raises:
            ValueError: If a weight is not finite.
        """
        found = {}
        for key, variable in self._variables.items():
            value = np.array(keras.ops.convert_to_numpy(variable), np.float64)
            if not np.isfinite(value).all():
                raise ValueError(
                    "Weights must be finite to rank channels; has training "
                    f"diverged? Received: NaN or infinity in {key}"
                )
            if self.criterion == "gamma":
                found[key] = np.abs(value)
                continue
            axis = channel_axis(self.model, variable)
            norms = np.sqrt(
                np.square(np.moveaxis(value, axis, -1))
                .reshape(-1, value.shape[axis])
                .sum(0)
            )
            found[key] = norms / max(float(norms.mean()), 1e-30)
        return found

    def draw(self, sparsity: float) -> tuple[Drawing, dict[str, np.ndarray]]:
        """``(masks and ties, scores)`` at a sparsity.

        The count of kept channels is exact; with ``coupled`` it is the
        nearest above it that whole groups allow.
        """
        scores = self.scores()
        flat = np.concatenate(list(scores.values()))
        keep = max(round((1 - sparsity) * flat.size), 1)
        if self._units is None:
            kept, undecided = cut(flat, np.ones(flat.size, np.int64), keep)
        else:
            units, frozen = self._units
            sizes = np.bincount(units)
            means = np.bincount(units, flat) / sizes
            # What cannot go is kept before anything else is ranked.
            means[frozen] = np.inf
            kept, undecided = (a[units] for a in cut(means, sizes, keep))
        ends = np.cumsum([s.size for s in scores.values()])[:-1]
        return (
            Drawing(
                dict(zip(scores, np.split(kept, ends), strict=True)),
                dict(zip(scores, np.split(undecided, ends), strict=True)),
            ),
            scores,
        )

    def _filters(self) -> dict[str, keras.Variable]:
        if self._channels is None:
            return {}
        frozen = set(self._channels.frozen())
        named = named_weights(self.model)
        return {
            key: named[key]
            for key, atoms in self._atoms.items()
            if len(named[key].shape) > 1
            and not frozen & set(self._channels.roots(atoms).tolist())
        }

    def _grouped(self) -> tuple[np.ndarray, np.ndarray]:
        channels = self._channels
        if channels is None or not self._variables:
            return np.zeros(0, np.int64), np.zeros(0, bool)
        roots = np.concatenate(
            [channels.roots(self._atoms[key]) for key in self._variables]
        )
        unique, units = np.unique(roots, return_inverse=True)
        return units, np.isin(unique, list(channels.frozen()))


def draw_channels(
    model: keras.Model,
    sparsity: float,
    *,
    criterion: Criterion = "auto",
    coupled: bool = False,
) -> ChannelTicket:
    """Draw a channel ticket from the weights that ``model`` has now.

    All channels are ranked together; the lowest scores go, of equal ones the
    last.

    Args:
        model: A built model. It is only read.
        sparsity: Fraction of the channels that go, in [0, 1).
        criterion: `"gamma"`: magnitudes of the scales of BatchNormalization;
            `"filter_norm"`: norms of filters, relative to their layer's mean;
            `"auto"`: the first where there is any.
        coupled: Rank channels that can only go together as one. Otherwise, as
            in the paper, each scale stands for itself, and a channel that
            several scales share goes only when all of them are pruned.

    Returns:
        A ticket with the model's present weights and the scores.

    Raises:
        ValueError: On bad arguments, weights that are not finite, or a model
            without channels to score.

    Reference:
        Liu et al., "Learning Efficient Convolutional Networks through Network
        Slimming", ICCV 2017: channels ranked globally by |γ|.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([
    ...     keras.Input((8,)),
    ...     keras.layers.Dense(10, activation="relu"),
    ...     keras.layers.Dense(2),
    ... ])
    >>> ticket = tt.structured.draw_channels(model, 0.5)
    >>> tt.structured.shrink(model, ticket).layers[0].units
    5
    """
    sparsity = checks.sparsity(sparsity)
    ranking = ChannelScores(model, criterion, coupled)
    drawing, scores = ranking.draw(sparsity)
    return ChannelTicket(
        drawing.masks,
        values_of(named_weights(model)),
        {
            "source": "draw_channels",
            "requested_sparsity": sparsity,
            "criterion": ranking.criterion,
            "coupled": coupled,
        },
        scores=scores,
    )


class Slimming(keras.regularizers.Regularizer):
    r"""Adds $s \cdot \operatorname{sign}(\gamma)$ to the gradient of γ.

    Its value is zero, so that the losses which training shows and callbacks
    watch are the model's own.

    Args:
        strength: s.
        inner: The regularizer that the variable had before, or `None`.
    """

    def __init__(
        self,
        strength: float,
        inner: Callable[[tf.Tensor], tf.Tensor] | None = None,
    ) -> None:
        self.strength = strength
        self.inner = inner

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        penalty = self.strength * keras.ops.sum(keras.ops.abs(x))
        penalty = penalty - keras.ops.stop_gradient(penalty)
        return penalty if self.inner is None else self.inner(x) + penalty


@contextlib.contextmanager
def slimming(model: keras.Model, strength: float = 1e-4) -> Iterator[None]:
    r"""Train with an L1 penalty on the scale of every `BatchNormalization`.

    Inside the block each training step adds $s \cdot \operatorname{sign}
    (\gamma)$ to the gradient of every trainable scale γ. Values of losses and
    the layers' own regularizers stay as they are, and everything is put back
    at the end of the block.

    Args:
        model: A built model.
        strength: s, at least 0; 1e-4 in the paper.

    Raises:
        ValueError: If ``strength`` is negative or not a number.

    Reference:
        Liu et al., "Learning Efficient Convolutional Networks through Network
        Slimming", ICCV 2017, equation 1.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([
    ...     keras.Input((8,)),
    ...     keras.layers.Dense(4),
    ...     keras.layers.BatchNormalization(),
    ... ])
    >>> model.compile("sgd", "mse")
    >>> with tt.structured.slimming(model, 1e-3):
    ...     _ = model.fit(np.ones((8, 8)), np.ones((8, 4)), verbose=0)
    """
    strength = checks.number("strength", strength, "[0, inf)")
    attached = [
        gamma
        for gamma in scale_variables(model)
        if strength and not isinstance(gamma.regularizer, Slimming)
    ]
    for gamma in attached:
        gamma.regularizer = Slimming(strength, gamma.regularizer)
    if attached:
        retrace(model, "train")
    try:
        yield
    finally:
        for gamma in attached:
            gamma.regularizer = gamma.regularizer.inner
        if attached:
            retrace(model, "train")


def scale_variables(model: keras.Model) -> list[keras.Variable]:
    """The scale γ of every `BatchNormalization` in ``model``, each once."""
    found: dict[int, keras.Variable] = {}
    for layer in layers_of(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma = getattr(layer, "gamma", None)
            if gamma is not None:
                found[id(gamma)] = gamma
    return list(found.values())


def _scales(model: keras.Model) -> dict[str, keras.Variable]:
    gammas = {id(v) for v in scale_variables(model)}
    return {
        key: variable
        for key, variable in named_weights(model).items()
        if id(variable) in gammas
    }


def cut(
    scores: np.ndarray, sizes: np.ndarray, keep: int
) -> tuple[np.ndarray, np.ndarray]:
    """Keep the best scores until ``keep`` is reached; and the ties there."""
    order = np.argsort(-scores, kind="stable")
    count = int(np.searchsorted(np.cumsum(sizes[order]), keep)) + 1
    kept = np.zeros(scores.size, bool)
    kept[order[:count]] = True
    undecided = np.zeros(scores.size, bool)
    if count < scores.size and scores[order[count - 1]] == scores[order[count]]:
        undecided = scores == scores[order[count]]
    return kept, undecided
