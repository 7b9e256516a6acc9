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
from tf_tickets.pruning import criteria, scopes
from tf_tickets.pruning.prune import budget, current_masks, describe
from tf_tickets.pruning.topk import keep_largest
from tf_tickets.selection import Filters, named_weights, view_of
from tf_tickets.ticket import Ticket
from tf_tickets.tracing import retrace

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
        scope: How the budget is spread, as in `tf_tickets.prune`; `"erk"` by
            default.
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
        scope: scopes.Scope = "erk",
        data: Any = None,
        filters: Filters = None,
        directory: Directory | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(criterion, scope, data, filters, seed)
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
        budget(self.sparsity, self.scope, masks)
        if self._counted_to is None:
            self._draw(self.sparsity, self.scope, self.seed)
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
            **describe(self.sparsity, self.criterion, self.scope, self.seed),
        }

    def _watch(self) -> None:
        """See the gradients of the step while this training lasts."""
        model = self.model
        optimizer = getattr(model, "optimizer", None)
        if optimizer is None:
            raise ValueError(
                "RigL grows by the gradients that the model's optimizer gets: "
                "compile the model with one, or take method='set'. "
                f"Received: model={model.name!r} without an optimizer"
            )
        weights = named_weights(model)
        paths = current_masks(model, self.filters)
        with model.distribute_strategy.scope():
            self._gradients = _Gradients({p: weights[p] for p in paths})
        # Not around what an interrupted training may have left.
        hook = self._gradients.seen_by(
            getattr(optimizer.apply, "inner", optimizer.apply)
        )
        vars(optimizer)["apply"] = hook
        retrace(model, "train")

        def forget() -> None:
            self._gradients = None
            if vars(optimizer).get("apply") is hook:
                del vars(optimizer)["apply"]
                retrace(model, "train")

        self._undo.callback(forget)

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
        sizes = {
            path: _wide(np.abs(view_of(named[path])[mask]))
            for path, mask in masks.items()
        }
        checks.finite(
            "Weights that are ranked", sizes, "has training diverged?"
        )
        growth = self._growth(masks, step)
        if growth is None:
            return
        fresh = {
            path: exchanged(mask, sizes[path], growth[path], fraction)
            for path, mask in masks.items()
        }
        masking.enforce(self.model, fresh)
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


def exchanged(
    mask: np.ndarray,
    sizes: np.ndarray,
    growth: np.ndarray,
    fraction: float,
) -> np.ndarray:
    """One update of a tensor's mask: drop the smallest, grow as many.

    Args:
        mask: What is kept now.
        sizes: Of the weights that are kept now, in the order of their index;
            the smallest are dropped.
        growth: At least 0, of the mask's shape: what ranks all that is not
            kept after that. A dropped weight that is back at once was never
            gone.
        fraction: Of the kept weights to exchange; rounded to a whole count.

    Returns:
        A mask that keeps as many.

    Example:

    >>> mask = np.array([True, True, False, False])
    >>> sizes, slope = np.array([0.1, 2.0]), np.array([0.0, 0.0, 5.0, 7.0])
    >>> exchanged(mask, sizes, slope, 0.5)
    array([False,  True, False,  True])
    """
    count = int(np.count_nonzero(mask))
    moved = round(fraction * count)
    if not moved or count == mask.size:
        return mask
    stay = mask.copy()
    stay[mask] = keep_largest(sizes, count - moved)
    # What stays comes behind all that may grow, of which there is enough.
    ranked = np.where(stay, np.full((), -1, growth.dtype), growth)
    return stay | keep_largest(ranked.ravel(), moved).reshape(mask.shape)


def _wide(array: np.ndarray) -> np.ndarray:
    """bfloat16 cannot be ranked."""
    return array if array.dtype.kind == "f" else array.astype(np.float32)


class _Gradients:
    """The size of the gradients that an optimizer gets, when it is wanted.

    Args:
        weights: ``{path: variable}`` of those that are watched.
    """

    def __init__(self, weights: Mapping[str, keras.Variable]) -> None:
        # Each replica has its own; what is read is the sum.
        options: dict[str, Any] = {
            "trainable": False,
            "synchronization": tf.VariableSynchronization.ON_READ,
            "aggregation": tf.VariableAggregation.SUM,
        }
        self.wanted = tf.Variable(False, trainable=False)
        self.caught = tf.Variable(
            0,
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )
        self.values = {
            path: tf.Variable(tf.zeros(weight.shape, weight.dtype), **options)
            for path, weight in weights.items()
        }
        self._places = {id(weight): path for path, weight in weights.items()}

    def seen_by(self, apply: Any) -> Any:
        """``optimizer.apply`` that also leaves the gradients here."""

        def seeing(
            grads: Sequence[Any],
            trainable_variables: Sequence[keras.Variable] | None = None,
        ) -> Any:
            grads = list(grads)
            if trainable_variables is not None:
                trainable_variables = list(trainable_variables)
                self._see(grads, trainable_variables)
            return apply(grads, trainable_variables)

        setattr(seeing, "inner", apply)  # noqa: B010
        return seeing

    def _see(
        self, grads: Sequence[Any], variables: Sequence[keras.Variable]
    ) -> None:
        found = {
            self._places[id(variable)]: tf.convert_to_tensor(grad)
            for grad, variable in zip(grads, variables, strict=False)
            if id(variable) in self._places and grad is not None
        }

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
