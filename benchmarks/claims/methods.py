"""From a unit to what it found: every method in a network that is traced once.

Each method draws tickets; what is common to all comes after: the ticket is
looked at as it is, trained at each learning rate, and its controls with it.
Batches and random numbers begin anew before each training, with the seed of
the unit: so methods are paired, and none depends on what ran before it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias, cast

import keras
import numpy as np

import tf_tickets as tt
from benchmarks.claims import tasks
from benchmarks.claims.units import Row, Unit

# Passes that are not searched over, for methods that have no more to set.
NOTHING = (0.0,)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A ticket and what it took.

    Attributes:
        density: What was asked for.
        ticket: Masks and weights.
        epochs: Of training until it was there.
        told: More numbers for its rows.
    """

    density: float
    ticket: tt.Ticket
    epochs: float
    told: dict[str, Any] = dataclasses.field(default_factory=dict)


Draw: TypeAlias = Callable[..., Iterator[Drawn]]


def measure(unit: Unit) -> list[Row]:
    """Do a unit.

    Args:
        unit: What to do.

    Returns:
        A row for each network that was trained.
    """
    if unit.method in WHOLE:
        return WHOLE[unit.method](unit, **dict(unit.options))
    bench = tasks.bench(unit.task)
    rows: list[Row] = []
    for drawn in METHODS[unit.method](bench, unit, **dict(unit.options)):
        told = {
            "asked": round(drawn.density, 6),
            "density": round(drawn.ticket.density, 6),
            "search_epochs": drawn.epochs,
            "before": before(bench, unit, drawn.ticket),
            "layers": layers(drawn.ticket),
            **drawn.told,
        }
        for rate in unit.train_rates:
            for control, accuracy in spent(bench, unit, drawn, rate):
                rows.append(
                    {
                        **told,
                        "control": control,
                        "train_rate": rate,
                        "after": accuracy,
                    }
                )
                # What is of the ticket stands in its own row only.
                told = {k: told[k] for k in ("asked", "density")}
    return rows


def before(bench: tasks.Bench, unit: Unit, ticket: tt.Ticket) -> float:
    """The accuracy of a ticket as it is drawn."""
    bench.begin(unit.seed)
    ticket.apply(bench.dense.model)
    return bench.dense.accuracy(unit.split)


def spent(
    bench: tasks.Bench, unit: Unit, drawn: Drawn, rate: float
) -> Iterator[tuple[str, float]]:
    """The accuracy of a ticket after training, and those of its controls."""

    def train(model: keras.Model) -> float:
        del model  # the one of the bench
        bench.dense.begin(rate, bench.setting.epochs)
        bench.dense.fit(bench.setting.epochs)
        return bench.dense.accuracy(unit.split)

    model = bench.begin(unit.seed)
    if not unit.controls or unit.controlled not in (0.0, drawn.density):
        drawn.ticket.apply(model)
        yield "none", train(model)
        return
    report = tt.analysis.sanity_checks(
        drawn.ticket,
        model,
        train=train,
        controls=list(unit.controls),
        seeds=(unit.seed,),
        verbose=0,
    )
    yield "none", report.ticket[0]
    for control, accuracies in report.controls.items():
        yield control, accuracies[0]


def layers(ticket: tt.Ticket) -> list[float]:
    """The density of each layer, first to last."""
    return [round(float(mask.mean()), 5) for mask in ticket.masks.values()]


# Drawn without training.


def dense(bench: tasks.Bench, unit: Unit) -> Iterator[Drawn]:
    """Everything is kept."""
    yield Drawn(1.0, tt.Ticket.from_model(bench.begin(unit.seed)), 0.0)


def random(bench: tasks.Bench, unit: Unit) -> Iterator[Drawn]:
    """Setting 1 has densities by Erdős–Rényi kernels, 0 one for all layers."""
    for density in unit.densities:
        ticket = tt.prune(
            bench.begin(unit.seed),
            1 - density,
            criterion="random",
            scope="erk" if unit.setting else "global",
            seed=unit.seed,
        )
        yield Drawn(density, ticket, 0.0)


def smart_ratio(
    bench: tasks.Bench, unit: Unit, *, version: str = "v1"
) -> Iterator[Drawn]:
    """The setting is the density of the classifier; `version` of Table 16."""
    residual = any(
        isinstance(layer, keras.layers.Add)
        for layer in bench.dense.model.layers
    )
    for density in unit.densities:
        ends, epochs = None, 0.0
        if version == "v2":
            [drawn] = gem(
                bench,
                dataclasses.replace(
                    unit, densities=(density,), setting=GEM_RATE
                ),
            )
            ends, epochs = drawn.ticket, drawn.epochs
        model = bench.begin(unit.seed)
        *_, classifier = tt.prunable_weights(model)
        scope = tt.pruning.smart_ratio(
            cast(Any, version),
            ends=ends,
            linear_density=unit.setting,
            residual=residual,
            linear=f"^{classifier}$",
        )
        yield Drawn(
            density,
            tt.prune(
                model,
                1 - density,
                criterion="random",
                scope=scope,
                seed=unit.seed,
            ),
            epochs,
        )


def saliency(
    bench: tasks.Bench, unit: Unit, *, criterion: str
) -> Iterator[Drawn]:
    """SNIP or GraSP; the setting is how many examples of a class it sees."""
    for density in unit.densities:
        model = bench.begin(unit.seed)
        data = bench.task.sample(int(unit.setting))
        ticket = tt.prune(
            model, 1 - density, criterion=criterion, data=data, verbose=0
        )
        yield Drawn(density, ticket, 0.0)


def synflow(bench: tasks.Bench, unit: Unit) -> Iterator[Drawn]:
    """SynFlow, which has nothing to set."""
    for density in unit.densities:
        ticket = tt.prune(
            bench.begin(unit.seed), 1 - density, criterion="synflow"
        )
        yield Drawn(density, ticket, 0.0)


def prospr(bench: tasks.Bench, unit: Unit) -> Iterator[Drawn]:
    """Three steps and the loss after them; the setting is their rate."""
    criterion = functools.partial(
        tt.pruning.criteria.prospr, learning_rate=unit.setting
    )
    for density in unit.densities:
        model = bench.begin(unit.seed)
        data = bench.task.batches(4)
        ticket = tt.prune(
            model, 1 - density, criterion=criterion, data=data, verbose=0
        )
        yield Drawn(density, ticket, 0.0)


# Rounds of train, prune and rewind.


def imp(
    bench: tasks.Bench,
    unit: Unit,
    *,
    rewind: Literal["weights", "learning_rate"] = "weights",
    rewind_epoch: int = 0,
    share: float = 1.0,
) -> Iterator[Drawn]:
    """One run for all densities; the setting is the rate of its rounds.

    Args:
        bench: Where.
        unit: What.
        rewind: As in `tt.callbacks.IterativeMagnitudePruning`.
        rewind_epoch: As there.
        share: Of a whole training, what a round has.
    """
    setting = bench.setting
    rounds = {
        density: rounds_to(density, setting) for density in unit.densities
    }
    drawing = tt.callbacks.IterativeMagnitudePruning(
        prune_fraction=setting.fraction,
        rounds=max(rounds.values()),
        epochs_per_round=max(1, round(setting.epochs * share)),
        rewind=rewind,
        rewind_epoch=rewind_epoch,
    )
    bench.begin(unit.seed)
    bench.dense.begin(unit.setting, setting.epochs)
    bench.dense.fit(drawing.epochs, drawing)
    for density, count in rounds.items():
        ticket = drawing.tickets[count - 1]
        yield Drawn(density, ticket, float(drawing.found_at[count - 1]))


def rounds_to(density: float, setting: tasks.Setting) -> int:
    """How many rounds of pruning lead nearest to a density."""
    return max(1, round(math.log(density) / math.log(1 - setting.fraction)))


# Scores are trained, weights are not.

# What the search found best for `gem`, for methods that mine on the side.
GEM_RATE = 4.0


def gem(
    bench: tasks.Bench,
    unit: Unit,
    *,
    epochs: int | None = None,
    share: float = 1.0,
    scores: str = "uniform",
    weights: str = "signed_constant",
    penalty: str = "l2",
    invert: bool = False,
    warm: int = 0,
) -> Iterator[Drawn]:
    """Gem-Miner with a steered penalty; the setting is the rate of its scores.

    Args:
        bench: Where.
        unit: What.
        epochs: Of mining.
        share: Of the usual epochs of mining, and of the freezing period.
        scores: As in `tt.supermask`.
        weights: As there.
        penalty: As there.
        invert: Freeze the highest scores.
        warm: Epochs of training before; the weights they lead to are mined in.
    """
    length = max(2, round((epochs or bench.setting.mining) * share))
    every = max(1, round(bench.setting.every * share))
    for density in unit.densities:
        bench.begin(unit.seed)
        if warm:
            bench.dense.begin(unit.train_rates[0], warm)
            bench.dense.fit(warm)
        miner = bench.miner(
            unit.seed,
            scores=scores,
            weights="keep" if warm else weights,
            penalty=penalty,
            score_penalty="auto",
        )
        freezing = tt.callbacks.IterativeFreezing(
            1 - density, every=every, invert=invert
        )
        yield _mined(miner, unit, density, length, freezing, float(warm))


def edge_popup(
    bench: tasks.Bench,
    unit: Unit,
    *,
    scope: str = "layer",
    gradual: bool = False,
    regularized: bool = False,
) -> Iterator[Drawn]:
    """Edge-Popup and the ways from it to Gem-Miner, Table 3 of Rare Gems.

    Args:
        bench: Where.
        unit: What.
        scope: `"layer"` or `"global"`.
        gradual: Whether the mask becomes sparse little by little.
        regularized: Whether scores have the penalty of the task.
    """
    for density in unit.densities:
        bench.begin(unit.seed)
        miner = bench.miner(
            unit.seed,
            mask="top_k",
            sparsity=0.5,
            scope=scope,
            score_penalty=bench.setting.score_penalty if regularized else 0.0,
        )
        miner.model.supermask.set_sparsity(1 - density)
        freezing = (
            tt.callbacks.IterativeFreezing(
                1 - density, every=bench.setting.every
            )
            if gradual
            else None
        )
        yield _mined(miner, unit, density, bench.setting.mining, freezing)


def _mined(
    miner: tasks.Traced,
    unit: Unit,
    density: float,
    epochs: int,
    freezing: tt.callbacks.IterativeFreezing | None,
    more: float = 0.0,
) -> Drawn:
    miner.begin(unit.setting, epochs)
    miner.fit(epochs, *([freezing] if freezing else []))
    collapsed = freezing is not None and freezing.collapsed
    mask: Any = "frozen" if collapsed else "effective"
    ticket = tt.Ticket.from_supermask(miner.model, mask)
    return Drawn(density, ticket, epochs + more, {"collapsed": collapsed})


METHODS: dict[str, Draw] = {
    "dense": dense,
    "random": random,
    "smart_ratio": smart_ratio,
    "saliency": saliency,
    "synflow": synflow,
    "prospr": prospr,
    "imp": imp,
    "gem": gem,
    "edge_popup": edge_popup,
}

# Spending.

WAYS: dict[str, tuple[str, ...]] = {
    "vanilla": (),
    "activations": ("activations",),
    "skips": ("skips",),
    "rescale": ("rescale",),
    "labels": ("labels",),
    "AT": ("activations", "skips"),
    "TRT": ("rescale", "labels"),
    "AT+TRT": ("activations", "skips", "rescale", "labels"),
}
RESCALING_STEPS = 60


def spending(
    unit: Unit,
    *,
    kind: str = "ticket",
    ways: tuple[str, ...] = tuple(WAYS),
    rates: tuple[tuple[str, float], ...] = (),
) -> list[Row]:
    """Tickets of IMP, or one-shot ones, spent in every way.

    The setting is the rate that the tickets are drawn with.

    Args:
        unit: What.
        kind: `"ticket"`: masks of IMP over the first weights; `"rewound"`:
            over those of epoch 2; `"one-shot"`: pruned once, first weights;
            `"random"`: random positions, first weights.
        ways: Some of `WAYS`.
        rates: ``((way, learning rate), ...)`` in place of `train_rates`.
    """
    bench = tasks.bench(unit.task)
    if kind == "one-shot":
        bench.begin(unit.seed)
        start = tt.Ticket.from_model(bench.dense.model)
        bench.dense.begin(unit.setting, bench.setting.epochs)
        bench.dense.fit(bench.setting.epochs)
        drawn = [
            Drawn(
                density,
                tt.Ticket(
                    tt.prune(bench.dense.model, 1 - density).masks,
                    start.weights,
                ),
                float(bench.setting.epochs),
            )
            for density in unit.densities
        ]
    elif kind == "random":
        drawn = list(random(bench, dataclasses.replace(unit, setting=1.0)))
    else:
        epoch = 2 if kind == "rewound" else 0
        drawn = list(imp(bench, unit, rewind_epoch=epoch))
    rows: list[Row] = []
    for one in drawn:
        for way in ways:
            own = [rate for known, rate in rates if known == way]
            for rate in own or unit.train_rates:
                rows.append(
                    {
                        "asked": round(one.density, 6),
                        "density": round(one.ticket.density, 6),
                        "kind": kind,
                        "way": way,
                        "train_rate": rate,
                        **_spent_as(bench, unit, one.ticket, way, rate),
                    }
                )
    return rows


_tweaked: dict[Any, tuple[tasks.Traced, list[np.ndarray]]] = {}


def _spent_as(
    bench: tasks.Bench, unit: Unit, ticket: tt.Ticket, way: str, rate: float
) -> Row:
    tweaks = WAYS[way]
    bench.begin(unit.seed)
    key = unit.task, *(t for t in tweaks if t != "rescale")
    if key not in _tweaked:
        model = keras.models.clone_model(bench.dense.model)
        if "activations" in tweaks:
            model = tt.retraining.replace_activations(model, "swish")
        if "skips" in tweaks:
            model = tt.retraining.inject_skip_connections(model)
        ticket.apply(model)
        loss = tt.retraining.LabelSmoothing(0.1) if "labels" in tweaks else None
        made = tasks.Traced(bench, model, keras.optimizers.Adam, loss)
        _tweaked[key] = made, model.get_weights()
    traced, start = _tweaked[key]
    # The branches of skips as they began, all else as the ticket has it.
    traced.model.set_weights(start)
    if "rescale" in tweaks:
        keras.utils.set_random_seed(unit.seed)
        bench.task.restart()
        tt.retraining.rescale_initialization(
            traced.model,
            bench.task.data.train,
            ticket=ticket,
            iterations=RESCALING_STEPS,
            step_size=rate,
            optimizer="adam",
            gradient_norm=_adam_bound(bench),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            verbose=0,
        )
        # The factors are in the weights; pruned ones stay pruned.
        ticket = tt.Ticket.from_model(traced.model)
    ticket.apply(traced.model)
    traced.begin(rate, bench.setting.epochs)
    traced.fit(bench.setting.epochs)
    row: Row = {
        "after": traced.accuracy(unit.split),
        "parameters": int(
            sum(np.prod(w.shape) for w in traced.model.trainable_weights)
        )
        - bench.size
        + ticket.kept,
    }
    if way in ("vanilla", "activations"):
        batches = list(
            (bench.task.data.validation or bench.task.data.test).take(1)
        )
        found = tt.analysis.activation_sparsity(traced.model, batches)
        row["zeros"] = round(float(found.total), 5)
        if unit.split == "final":
            top = tt.analysis.hessian_top_eigenvalue(
                traced.model, batches, tolerance=1e-2, seed=0, verbose=0
            )
            row["eigenvalue"] = round(float(top.value), 4)
    return row


def _adam_bound(bench: tasks.Bench) -> float:
    """The bound of the sum of magnitudes, for as many weights as there are.

    GradInit's bound of 1 is of a Euclidean norm; a sum of n magnitudes is up
    to √n times as large.
    """
    return math.sqrt(bench.size)


# Whole channels.


CHANNEL_WAYS = ("early", "late", "random", "swapped", "first")


def early_bird(
    unit: Unit,
    *,
    epsilon: float = 0.1,
    ways: tuple[str, ...] = CHANNEL_WAYS,
    bits: int | None = None,
) -> list[Row]:
    """Channels drawn when their mask stands still, late, early, at random.

    The setting is the rate of the search. All are trained on for as many
    epochs, at `train_rates`.

    Args:
        unit: What; densities are shares of the channels.
        epsilon: Of `tt.callbacks.EarlyBird`.
        ways: `"early"`, `"late"`: weights and channels of that moment;
            `"random"`: the early weights and as many channels of each layer;
            `"swapped"`: early weights, late channels; `"first"`: both as they
            are after one epoch.
        bits: Of the numbers that the search computes with; by default all.
    """
    bench = tasks.bench(unit.task, affine=True)
    setting, traced = bench.setting, bench.dense
    model = bench.begin(unit.seed)
    tt.release(model)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(keras.ops.full(layer.gamma.shape, 0.5))
    search = tt.callbacks.EarlyBird(
        [1 - density for density in unit.densities],
        epsilon=epsilon,
        stop=False,
    )
    first = _AfterFirst([1 - density for density in unit.densities])
    traced.begin(unit.setting, setting.mining)
    rounding = [tt.callbacks.LowPrecision(bits=bits)] if bits else []
    traced.fit(setting.mining, *rounding, search, first)
    rows: list[Row] = [
        {
            "way": "dense",
            "density": 1.0,
            "after": traced.accuracy(unit.split),
            "distances": {
                f"{1 - s:g}": [round(float(x), 4) for x in found]
                for s, found in search.distances.items()
            },
            "epochs": setting.mining,
        }
    ]
    late = {
        1 - density: tt.structured.draw_channels(model, 1 - density)
        for density in unit.densities
    }
    for sparsity, last in late.items():
        early = search.tickets.get(sparsity)
        begin = early or last
        tickets = {
            "early": begin,
            "late": last,
            # Other channels of the same weights, as many of each layer.
            "random": tt.structured.ChannelTicket(
                {
                    key: np.random.default_rng((unit.seed, i)).permutation(mask)
                    for i, (key, mask) in enumerate(begin.masks.items())
                },
                begin.weights,
            ),
            "swapped": tt.structured.ChannelTicket(last.masks, begin.weights),
            "first": first.tickets[sparsity],
        }
        for way in ways:
            ticket = tickets[way]
            for rate in unit.train_rates:
                tt.release(model)
                ticket.apply(model)
                traced.begin(rate, setting.epochs)
                traced.fit(setting.epochs)
                rows.append(
                    {
                        "asked": round(1 - sparsity, 6),
                        "density": round(ticket.density, 6),
                        "way": way,
                        "train_rate": rate,
                        "after": traced.accuracy(unit.split),
                        "found_at": search.found_at.get(sparsity),
                        "distance": round(
                            float(begin.hamming_distance(last)), 5
                        ),
                        "epochs": setting.mining,
                        "macs_left": round(macs_left(model, ticket), 5),
                    }
                )
    tt.release(model)
    tt.prune(model, 0.0).apply(model)
    return rows


def macs_left(model: keras.Model, ticket: tt.structured.ChannelTicket) -> float:
    """The share of the multiplications that the small network has."""
    small = tt.structured.shrink(model, ticket, weights="start")
    return tt.analysis.flops(small).macs / tt.analysis.flops(model).macs


class _AfterFirst(keras.callbacks.Callback):
    """Draws channels when the first epoch is over."""

    def __init__(self, sparsities: list[float]) -> None:
        super().__init__()
        self.sparsities = sparsities

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Draw, once."""
        if epoch == 0:
            self.tickets = {
                sparsity: tt.structured.draw_channels(self.model, sparsity)
                for sparsity in self.sparsities
            }


# Linear mode connectivity.


def instability(
    unit: Unit, *, epochs: tuple[int, ...] = (0, 1, 3), points: int = 11
) -> list[Row]:
    """Two copies of a ticket, trained on other batches from one rewind point.

    The setting is the rate of the rounds.

    Args:
        unit: What.
        epochs: Where to rewind to.
        points: On the line between the two.
    """
    bench = tasks.bench(unit.task)
    rows: list[Row] = []
    for epoch in epochs:
        for drawn in imp(bench, unit, rewind_epoch=epoch):
            rate = unit.train_rates[0]
            ends, accuracies = [], []
            for copy in range(2):
                model = bench.begin(unit.seed)
                drawn.ticket.apply(model)
                bench.task.seed = unit.seed + 1000 * copy
                bench.dense.begin(rate, bench.setting.epochs)
                bench.dense.fit(bench.setting.epochs)
                accuracies.append(bench.dense.accuracy(unit.split))
                ends.append(tt.Snapshot.take(model))
            curve = tt.analysis.linear_connectivity(
                model,
                ends[0],
                bench.task.data.test
                if unit.split == "final"
                else bench.task.data.validation,
                points=points,
                verbose=0,
            )
            rows.append(
                {
                    "asked": round(drawn.density, 6),
                    "density": round(drawn.ticket.density, 6),
                    "way": f"epoch {epoch}",
                    "train_rate": rate,
                    "after": float(np.mean(accuracies)),
                    "barrier": round(float(curve.barriers["error"]), 5),
                }
            )
    return rows


WHOLE: dict[str, Callable[..., list[Row]]] = {
    "spending": spending,
    "early_bird": early_bird,
    "instability": instability,
}
