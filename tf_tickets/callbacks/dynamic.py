"""Train sparse from the start, and let the zeros move."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tf_tickets import checks, masking
from tf_tickets.callbacks.base import (
    DrawingCallback,
    Logs,
    StepCounter,
)
from tf_tickets.callbacks.directory import Directory
from tf_tickets.callbacks.gradients import (
    let_see,
    of_watched,
    on_each_replica,
)
from tf_tickets.pruning import criteria, patterns, scopes
from tf_tickets.pruning.exchange import exchanged, exchanged_in
from tf_tickets.pruning.prune import budget, current_masks, describe
from tf_tickets.selection import Filters, named_weights, view_of
from tf_tickets.ticket import Ticket

Method = Literal["rigl", "set"]
_METHODS = ("rigl", "set")


class DynamicSparseTraining(DrawingCallback):
    r"""Exchange the smallest kept weights for others, again and again.

    The network is sparse from its first step to its last. Every ``every``
    steps, until a part ``until`` of the training is over, each tensor drops
    the fraction $\frac{\alpha}{2} (1 + \cos(\pi t / T_{end}))$ of its kept
    weights, those of the smallest magnitude, and grows as many among all that
    are not kept now: where the gradient of the loss is largest, or at random.
    What grows starts at zero, and so do the optimizer's slots there; how many
    weights a tensor keeps never changes.

    The gradient is that of the training step itself, which an update follows,
    as the optimizer gets it: no data is read twice, and a custom
    ``train_step`` is what it is. (The publication leaves out the weights'
    update in that step.) Where it is not finite, as when loss scaling steps
    back, that update is left out.

    Args:
        method: `"rigl"`, the default, grows where the gradient is largest;
            `"set"` at random.
        sparsity: Of the network, in [0, 1). `None` if ``scope`` is a mapping.
        every: Steps from one update to the next; 100 by default.
        until: The part of the training after which the masks stand still, in
            (0, 1]; 0.75 by default.
        drop_fraction: $\alpha$, the fraction of the kept weights that the
            first update exchanges, in (0, 1]; 0.3 by default.
        criterion: How the first masks are drawn, as in `tf_tickets.prune`:
            `"random"`, the default, as published, for new networks;
            `"magnitude"` for trained ones. A model that has masks of this
            sparsity keeps them to start with.
        scope: How the budget is spread, as in `tf_tickets.prune`. `None`, the
            default, is `"erk"`, and `"layer"` for a pattern N:M.
        pattern: As in `tf_tickets.prune`; `None` by default. Groups that are
            kept whole are exchanged whole, by the means of magnitudes and of
            gradients; they must be of one size in each tensor. With N:M a
            dropped weight makes room for another of its group of M.
        data: What that criterion scores on, for criteria that need it.
        filters: As in `tf_tickets.prunable_weights`; by default all prunable
            weights.
        directory: Where to keep the run; by default nowhere. Every epoch is
            saved there; the same call after a kill goes on after the last
            whole epoch. List the callback after
            `keras.callbacks.BackupAndRestore` then.
        seed: Of the first masks and of random growth; 0 by default.

    Attributes:
        ticket: After `fit`: the last masks, and the trained weights as start
            weights.

    Raises:
        ValueError: On bad arguments; when training begins, if the length of an
            epoch is not known, the model has nothing prunable, weights that
            are not finite, or is sparser already; at the first update, if the
            training step does not use the model's optimizer.

    Reference:
        Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML
        2020; SET: Mocanu et al., "Scalable training of artificial neural
        networks with adaptive sparse connectivity", 2018.

    Example:

    >>> model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(10)])
    >>> model.compile("adam", "mse")
    >>> sparse = DynamicSparseTraining(sparsity=0.8, every=2)
    >>> _ = model.fit(
    ...     np.ones((8, 10)), np.ones((8, 10)), batch_size=1, verbose=0,
    ...     callbacks=[sparse],
    ... )
    >>> sparse.ticket.sparsity
    0.8
    """

    def __init__(
        self,
        method: Method = "rigl",
        *,
        sparsity: float | None = None,
        every: int = 100,
        until: float = 0.75,
        drop_fraction: float = 0.3,
        criterion: str | criteria.Criterion = "random",
        scope: scopes.Scope | None = None,
        pattern: patterns.Pattern | None = None,
        data: Any = None,
        filters: Filters = None,
        directory: Directory | None = None,
        seed: int = 0,
    ) -> None:
        if scope is None:
            n_of_m = isinstance(patterns.get(pattern), patterns.NofM)
            scope = "layer" if n_of_m else "erk"
        super().__init__(criterion, scope, data, filters, seed, pattern)
        sparsity = patterns.sparsity_for(pattern, sparsity, scope)
        checks.choice("method", method, _METHODS)
        if not isinstance(scope, Mapping):
            sparsity = checks.sparsity(sparsity)
        self.method = method
        self.sparsity = sparsity
        self.every = checks.whole("every", every)
        self.until = checks.number("until", until, "(0, 1]")
        self.drop_fraction = checks.number(
            "drop_fraction", drop_fraction, "(0, 1]"
        )
        self.ticket: Ticket | None = None
        self._steps = StepCounter()
        self._counted_to: int | None = None
        self._last_update: float | None = None
        self._gradients: _Gradients | None = None
        self._keep_in(directory, self._provenance())

    def begin(self) -> None:
        self.ticket = None
        self._last_update = None
        if self.params.get("steps") is None:
            raise ValueError(
                "The drop fraction falls over the whole training, so its "
                "length must be known: call fit with steps_per_epoch. "
                "Received: a dataset that does not tell how many batches it has"
            )
        remembered = self._resume()
        self._counted_to = remembered.get("step")
        masks = self._check()
        budget(self.sparsity, self.scope, masks, self._layout(masks))
        if self._counted_to is None:
            masks = self._draw(self.sparsity, self.scope, self.seed)
        self._check_groups(masks)
        if self.method == "rigl":
            self._watch()

    def epoch_begin(self, epoch: int) -> None:
        self._steps.new_epoch()
        if self._last_update is None:
            start = self._counted_to or 0
            self._steps = StepCounter(start)
            left = self.params["steps"] * (self.params["epochs"] - epoch)
            self._last_update = self.until * (start + left)

    def on_train_batch_begin(
        self, batch: int, logs: Logs | None = None
    ) -> None:
        if self._gradients is not None:
            first = self._steps.step + 1
            last = first + int(getattr(self.model, "steps_per_execution", 1))
            if self._due(range(first, last)) is not None:
                self._gradients.wanted.assign(True)

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        step = self._due(self._steps.advance(batch))
        if step is not None:
            with self._undone_on_error():
                self._update(step)

    def epoch_end(self, epoch: int, logs: Logs) -> None:
        self._save(epoch + 1, {"step": self._steps.step})

    def end(self) -> None:
        self.ticket = Ticket.from_model(self.model, metadata=self._provenance())

    def settle(self) -> None:
        # Others may have restored weights when training ended.
        if self.ticket is not None:
            self.end()

    def _provenance(self) -> dict[str, Any]:
        return {
            "source": "DynamicSparseTraining",
            "method": self.method,
            "every": self.every,
            "until": self.until,
            "drop_fraction": self.drop_fraction,
            **describe(
                self.sparsity,
                self.criterion,
                self.scope,
                self.seed,
                self.pattern,
            ),
        }

    def _check_groups(self, masks: Mapping[str, np.ndarray]) -> None:
        """Meet groups that cannot be exchanged one for one."""
        layout = self._layout(dict(masks))
        if layout is None:
            return
        if isinstance(layout.pattern, patterns.NofM):
            low = [
                path
                for path, mask in masks.items()
                if np.count_nonzero(mask) != layout.floor({path: mask})
                or layout.floor({path: mask})
                != layout.floor({path: np.ones_like(mask)})
            ]
            if low:
                raise ValueError(
                    "The model has masks that keep other than N of each M: "
                    "release them, or draw them by the same pattern. "
                    f"Received: pattern={patterns.name_of(self.pattern)!r}, "
                    f"{low[:5]}"
                )
            return
        for path, mask in masks.items():
            whole = layout.units(path, np.zeros(mask.shape), ~mask | mask)
            kept = layout.units(path, np.zeros(mask.shape), mask)
            if len({*whole.sizes.tolist()}) > 1:
                raise ValueError(
                    "Groups are exchanged one for one, so they must be of one "
                    "size: take a block that divides the matrix, or leave the "
                    "weight out with `filters`. "
                    f"Received: pattern={patterns.name_of(self.pattern)!r}, "
                    f"{path} of shape {mask.shape}"
                )
            if ((kept.sizes > 0) & (kept.sizes < whole.sizes)).any():
                raise ValueError(
                    "The model has masks that keep parts of groups: release "
                    "them, or draw them by the same pattern. "
                    f"Received: pattern={patterns.name_of(self.pattern)!r}, "
                    f"{path}"
                )

    def _watch(self) -> None:
        """See the gradients of the step while this training lasts."""
        model = self.model
        weights = named_weights(model)
        paths = current_masks(model, self.filters)
        with model.distribute_strategy.scope():
            self._gradients = _Gradients({p: weights[p] for p in paths})
        let_see(model, self._gradients.see, self._undo, "method='rigl'")
        self._undo.callback(setattr, self, "_gradients", None)

    def _due(self, steps: Iterable[int]) -> int | None:
        """The last of ``steps`` that an update follows."""
        last = self._last_update or 0.0
        due = [s for s in steps if s % self.every == 0 and s < last]
        return due[-1] if due else None

    def _update(self, step: int) -> None:
        last = self._last_update or 1.0
        fraction = (
            self.drop_fraction / 2 * (1 + math.cos(math.pi * step / last))
        )
        masks = current_masks(self.model, self.filters)
        named = named_weights(self.model)
        layout = self._layout(masks)
        sizes = {
            path: _wide(np.abs(view_of(named[path])))
            if layout
            else _wide(np.abs(view_of(named[path])[mask]))
            for path, mask in masks.items()
        }
        checks.finite(
            "Weights that are ranked", sizes, "has training diverged?"
        )
        growth = self._growth(masks, step)
        if growth is None:
            return
        fresh = {
            path: exchanged_in(
                layout, path, mask, sizes[path], growth[path], fraction
            )
            if layout
            else exchanged(mask, sizes[path], growth[path], fraction)
            for path, mask in masks.items()
        }
        fresh = dict(masking.enforce(self.model, fresh))
        _clear_slots(
            self.model,
            {path: fresh[path] & ~mask for path, mask in masks.items()},
        )

    def _growth(
        self, masks: Mapping[str, np.ndarray], step: int
    ) -> dict[str, np.ndarray] | None:
        """What ranks the weights that may grow."""
        if self._gradients is None:
            return {
                path: np.random.default_rng((self.seed, step, i)).random(
                    mask.shape, np.float32
                )
                for i, (path, mask) in enumerate(masks.items())
            }
        return self._gradients.take()


def _wide(array: np.ndarray) -> np.ndarray:
    """bfloat16 cannot be ranked."""
    return array if array.dtype.kind == "f" else array.astype(np.float32)


class _Gradients:
    """The size of the gradients that an optimizer gets, when it is wanted.

    Args:
        weights: ``{path: variable}`` of those that are watched.
    """

    def __init__(self, weights: Mapping[str, keras.Variable]) -> None:
        self.weights = dict(weights)
        self.wanted = tf.Variable(False, trainable=False)
        self.caught = on_each_replica(0)
        self.values = {
            path: on_each_replica(tf.zeros(weight.shape, weight.dtype))
            for path, weight in weights.items()
        }

    def see(
        self, grads: Sequence[Any], variables: Sequence[keras.Variable]
    ) -> None:
        """Inside the step: keep the gradients, if they are wanted."""
        found = of_watched(grads, variables, self.weights)

        def keep() -> tf.Tensor:
            for path, grad in found.items():
                self.values[path].assign(grad)
            self.caught.assign(1)
            return tf.constant(0)

        # A step in which nobody asks writes nothing.
        tf.cond(self.wanted, keep, lambda: tf.constant(0))

    def take(self) -> dict[str, np.ndarray] | None:
        """``{path: |gradient|}`` of the last step; `None` if not finite.

        Raises:
            ValueError: If the step has not been seen.
        """
        self.wanted.assign(False)
        if not int(tf.convert_to_tensor(self.caught)):
            raise ValueError(
                "The training step gave the model's optimizer no gradient, so "
                "that RigL knows none: let train_step call "
                "self.optimizer.apply(gradients, variables), or take "
                "method='set'. Received: an update without a gradient"
            )
        sizes = {
            path: _wide(tf.abs(tf.convert_to_tensor(value)).numpy())
            for path, value in self.values.items()
        }
        # A sum is not finite if one of its numbers is not.
        sums = [np.sum(size, dtype=np.float64) for size in sizes.values()]
        return sizes if np.isfinite(sums).all() else None


def _clear_slots(model: keras.Model, grown: Mapping[str, np.ndarray]) -> None:
    """Zero what the optimizer remembers of the weights that have grown."""
    optimizer = getattr(model, "optimizer", None)
    for path, slots in slots_of(optimizer, named_weights(model)).items():
        if path in grown and grown[path].any():
            for slot in slots:
                stays = tf.convert_to_tensor(~grown[path])
                slot.assign(masking.masked(slot.value, stays))


def slots_of(
    optimizer: keras.optimizers.Optimizer | None,
    weights: Mapping[str, keras.Variable],
) -> dict[str, list[keras.Variable]]:
    """What an optimizer remembers of each weight, element by element.

    Keras tells whose a slot is by its name alone, the path of the weight and
    what it is for. Weights of one path have slots of one name, in the same
    order.

    Args:
        optimizer: One that is built, or `None`.
        weights: ``{key: variable}`` of all weights of the model.

    Returns:
        ``{key: variables of the weight's shape}``.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("adam")
    >>> model.optimizer.build(model.trainable_variables)
    >>> [len(s) for s in slots_of(
    ...     model.optimizer, named_weights(model)).values()]
    [2, 2]
    """
    stems: dict[str, list[str]] = {}
    for key, weight in weights.items():
        stems.setdefault(weight.path.replace("/", "_") + "_", []).append(key)
    found: dict[str, list[keras.Variable]] = {key: [] for key in weights}
    seen: dict[str, int] = {}
    for slot in getattr(optimizer, "variables", ()):
        fitting = [stem for stem in stems if slot.name.startswith(stem)]
        if not fitting:
            continue
        # The longest: "a/b" may stand beside "a/b_c".
        keys = stems[max(fitting, key=len)]
        key = keys[seen.get(slot.path, 0) % len(keys)]
        seen[slot.path] = seen.get(slot.path, 0) + 1
        if tuple(slot.shape) == tuple(weights[key].shape):
            found[key].append(slot)
    return found
