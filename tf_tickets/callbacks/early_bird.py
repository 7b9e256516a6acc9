"""Find the channels to keep in the first epochs of training."""

from __future__ import annotations

import collections
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from tf_tickets import checks
from tf_tickets.callbacks.base import Logs, ResumableCallback
from tf_tickets.callbacks.directory import Directory
from tf_tickets.distribute import agreed
from tf_tickets.selection import named_weights, values_of
from tf_tickets.structured.draw import (
    CRITERIA,
    ChannelScores,
    Criterion,
    Drawing,
    slimming,
)
from tf_tickets.structured.ticket import ChannelTicket

Compare = Literal["consecutive", "newest"]
COMPARISONS = get_args(Compare)


class EarlyBird(ResumableCallback):
    """Draw a channel ticket as soon as the channels to keep stand still.

    Before the first epoch and after each one, the channels of all
    normalization layers are ranked together by |γ|, and the lowest are masked.
    Distances between masks, the normalized Hamming distances, say how much
    still moves; ``compare`` says between which. When they are small, the ticket
    is drawn: its masks, and the weights of that moment to inherit.
    `tf_tickets.structured.shrink` makes the small network of it.

    Several sparsities are followed in one run, each with its own ticket. A
    channel whose fate only a tie decides counts as different in every
    comparison: before training, when all scales are equal, any mask would do,
    and no mask has been found. The first ticket can thus come one epoch later
    from equal scales than from scales that differ from the start: after six
    epochs instead of five, and with ``compare="newest"`` after five instead of
    four.

    Args:
        sparsities: Fractions of the channels that go, each in [0, 1); 0.3, 0.5
            and 0.7 by default.
        compare: `"consecutive"`, the default, is how the method is told: the
            distance is that from one epoch's mask to the next one's, and the
            last ``window`` of them must all be below ``epsilon``. `"newest"`
            is what the published code does, which is stricter about slow
            drift: the last ``window`` masks wait in a queue, and the newest
            must lie no further than ``epsilon`` from each older one.
        window: How many distances, or with `"newest"` how many masks (at least
            2), are looked at; 5 by default.
        epsilon: How far counts as standing still, in (0, 1], with `"newest"`
            in [0, 1]; 0.1 by default.
        stop: Whether to stop training once every sparsity has its ticket,
            which is the default. `False` trains on, to the end.
        criterion: As in `tf_tickets.structured.draw_channels`: `"gamma"`,
            `"filter_norm"`, or `"auto"`, the default.
        coupled: As there: whether channels that can only go together are
            ranked as one; not by default.
        slimming: Strength s of the L1 penalty while training: s·sign(γ) is
            added to the gradient of every scale γ. 1e-4 by default; 0 for none.
        directory: Where to keep the run; by default nowhere. Every epoch is
            saved there; the same call after a kill goes on after the last
            whole epoch. List the callback after
            `keras.callbacks.BackupAndRestore` then.

    Attributes:
        ticket: The sparsest ticket found, or `None`.
        tickets: ``{sparsity: ticket}`` of those found.
        found_at: For each of them, after how many epochs it was drawn.
        distances: ``{sparsity: distance after each epoch}``, with `"newest"`
            the largest; also in the logs, as ``"mask_distance_<sparsity>"``.
        drawings: ``{sparsity: one ticket of masks alone for each state}``,
            from before the first epoch on: what the heat map of
            `tf_tickets.analysis.mask_distance_matrix` shows.

    Raises:
        ValueError: On bad arguments; when training begins, if the model has
            no channels to rank; later, if a weight is not finite.

    Reference:
        You et al., "Drawing Early-Bird Tickets: Towards More Efficient
        Training of Deep Networks", ICLR 2020, algorithm 1. The published code
        keeps what is strictly above its threshold, which is fewer by one and
        by all ties; here the count is exact, with both ways to compare.

    Example:

    >>> import tf_tickets as tt
    >>> model = keras.Sequential([
    ...     keras.Input((8,)),
    ...     keras.layers.Dense(16, use_bias=False),
    ...     keras.layers.BatchNormalization(),
    ...     keras.layers.ReLU(),
    ...     keras.layers.Dense(2),
    ... ])
    >>> model.compile("sgd", "mse")
    >>> early_bird = EarlyBird([0.5], epsilon=0.5, window=2)
    >>> _ = model.layers[1].gamma.assign(np.arange(1, 17) / 16)
    >>> history = model.fit(
    ...     np.ones((8, 8)), np.ones((8, 2)), epochs=10, verbose=0,
    ...     callbacks=[early_bird],
    ... )
    >>> history.history["mask_distance_0.5"]
    [0.0, 0.0]
    >>> tt.structured.shrink(model, early_bird.tickets[0.5]).layers[0].units
    8
    """

    def __init__(
        self,
        sparsities: Sequence[float] = (0.3, 0.5, 0.7),
        *,
        compare: Compare = "consecutive",
        window: int = 5,
        epsilon: float = 0.1,
        stop: bool = True,
        criterion: Criterion = "auto",
        coupled: bool = False,
        slimming: float = 1e-4,
        directory: Directory | None = None,
    ) -> None:
        super().__init__()
        if (
            isinstance(sparsities, str)
            or not isinstance(sparsities, Sequence)
            or not sparsities
            or len(set(sparsities)) < len(sparsities)
        ):
            raise ValueError(
                "`sparsities` must be a list of different numbers. "
                f"Received: sparsities={sparsities!r}"
            )
        checks.choice("compare", compare, COMPARISONS)
        checks.choice("criterion", criterion, CRITERIA)
        newest = compare == "newest"
        self.sparsities = tuple(
            checks.sparsity(sparsity, "sparsities") for sparsity in sparsities
        )
        self.compare = compare
        self.window = checks.whole("window", window, least=2 if newest else 1)
        self.epsilon = checks.number(
            "epsilon", epsilon, "[0, 1]" if newest else "(0, 1]"
        )
        self.stop = stop
        self.criterion = criterion
        self.coupled = coupled
        self.slimming = checks.number("slimming", slimming, "[0, inf)")
        self._reset()
        self._keep_in(
            directory,
            {
                "source": "EarlyBird",
                "sparsities": list(self.sparsities),
                "compare": compare,
                "window": self.window,
                "epsilon": self.epsilon,
                "criterion": criterion,
                "coupled": coupled,
                "slimming": self.slimming,
            },
        )

    def _reset(self) -> None:
        self.tickets: dict[float, ChannelTicket] = {}
        self.found_at: dict[float, int] = {}
        self.distances: dict[float, list[float]] = {
            s: [] for s in self.sparsities
        }
        self.drawings: dict[float, list[ChannelTicket]] = {
            s: [] for s in self.sparsities
        }
        self._history: dict[float, list[Drawing]] = {
            s: [] for s in self.sparsities
        }
        self._queues: dict[float, collections.deque[Drawing]] = {
            s: collections.deque(
                maxlen=self.window if self.compare == "newest" else 2
            )
            for s in self.sparsities
        }

    @property
    def ticket(self) -> ChannelTicket | None:
        """The sparsest ticket found, or `None`."""
        return self.tickets[max(self.tickets)] if self.tickets else None

    def begin(self) -> None:
        self._reset()
        self._ranking = ChannelScores(self.model, self.criterion, self.coupled)
        remembered = self._resume()
        if remembered:
            self._recall(remembered)
            if self._done:
                self._start_at(self.params["epochs"])
        else:
            for sparsity in self.sparsities:
                drawing, _ = self._draw(sparsity)
                self._push(sparsity, drawing)
        self._undo.enter_context(slimming(self.model, self.slimming))

    def epoch_end(self, epoch: int, logs: Logs) -> None:
        for sparsity in self.sparsities:
            drawing, scores = self._draw(sparsity)
            distance = self._push(sparsity, drawing)
            self.distances[sparsity].append(distance)
            logs[f"mask_distance_{_digits(sparsity)}"] = distance
            if self._stands_still(sparsity):
                self._found(sparsity, drawing, scores, epoch + 1)
        if self._done:
            self.model.stop_training = True
        if self._run is not None:
            tickets = {_file(s): ticket for s, ticket in self.tickets.items()}
            self._save(epoch + 1, self._remembered(), tickets)

    def end(self) -> None:
        missing = [s for s in self.sparsities if s not in self.tickets]
        if missing:
            last = {s: self.distances[s][-1:] for s in missing}
            warnings.warn(
                "Training ended before these sparsities had a ticket; their "
                f"last mask distances are {last}, epsilon is {self.epsilon}.",
                stacklevel=3,  # Keras, which called
            )

    def _draw(self, sparsity: float) -> tuple[Drawing, dict[str, np.ndarray]]:
        strategy = self.model.distribute_strategy
        drawing, scores = self._ranking.draw(sparsity)
        return Drawing(
            agreed(strategy, drawing.masks),
            agreed(strategy, drawing.undecided),
        ), scores

    def _push(self, sparsity: float, drawing: Drawing) -> float:
        """Queue a mask; its largest distance to the others there, or NaN."""
        queue = self._queues[sparsity]
        queue.append(drawing)
        self.drawings[sparsity].append(ChannelTicket(drawing.masks))
        if self._run is not None:
            self._history[sparsity].append(drawing)
        older = list(queue)[:-1]
        return max((drawing.distance(o) for o in older), default=np.nan)

    def _stands_still(self, sparsity: float) -> bool:
        distances = self.distances[sparsity]
        if self.compare == "newest":
            full = len(self._queues[sparsity]) == self.window
            return full and distances[-1] <= self.epsilon
        last = distances[-self.window :]
        return len(last) == self.window and max(last) < self.epsilon

    @property
    def _done(self) -> bool:
        return self.stop and len(self.tickets) == len(self.sparsities)

    def _remembered(self) -> dict[str, Any]:
        """The masks of every state so far, as JSON values."""
        return {
            "found_at": {str(s): e for s, e in self.found_at.items()},
            "drawings": {
                str(s): [
                    [_as_text(d.masks), _as_text(d.undecided)] for d in drawings
                ]
                for s, drawings in self._history.items()
            },
        }

    def _recall(self, remembered: dict[str, Any]) -> None:
        for sparsity in self.sparsities:
            # Layer numbers may be others in this process, their order is not.
            now, _ = self._ranking.draw(sparsity)
            for i, parts in enumerate(remembered["drawings"][str(sparsity)]):
                drawing = Drawing(
                    *(
                        dict(
                            zip(now.masks, _from_text(p).values(), strict=True)
                        )
                        for p in parts
                    )
                )
                distance = self._push(sparsity, drawing)
                if i:  # the first mask is from before the first epoch
                    self.distances[sparsity].append(distance)
            epoch = remembered["found_at"].get(str(sparsity))
            if epoch is not None and self._run is not None:
                self.found_at[sparsity] = epoch
                file = self._run.path / _file(sparsity)
                self.tickets[sparsity] = ChannelTicket.load(file)

    def _found(
        self,
        sparsity: float,
        drawing: Drawing,
        scores: dict[str, np.ndarray],
        epoch: int,
    ) -> None:
        if sparsity in self.tickets:
            return
        self.found_at[sparsity] = epoch
        self.tickets[sparsity] = ChannelTicket(
            drawing.masks,
            values_of(named_weights(self.model)),
            {
                "source": "EarlyBird",
                "requested_sparsity": float(sparsity),
                "epoch": epoch,
                "compare": self.compare,
                "window": self.window,
                "epsilon": float(self.epsilon),
                "criterion": self._ranking.criterion,
                "coupled": self.coupled,
            },
            scores=scores,
        )


def _file(sparsity: float) -> str:
    return f"ticket_{_digits(sparsity)}.safetensors"


def _digits(sparsity: float) -> str:
    """The shortest decimal that is this number and no other."""
    return np.format_float_positional(sparsity, trim="-")


def _as_text(masks: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
    return {
        k: [m.size, np.packbits(m).tobytes().hex()] for k, m in masks.items()
    }


def _from_text(texts: Mapping[str, list[Any]]) -> dict[str, np.ndarray]:
    return {
        key: np.unpackbits(
            np.frombuffer(bytes.fromhex(text), np.uint8), count=size
        ).astype(bool)
        for key, (size, text) in texts.items()
    }
