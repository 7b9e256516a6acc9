"""The networks and data that claims are tested on, and one trace for many runs.

Tracing and compiling a training step takes longer than many of the trainings.
So a process has one network of each kind, compiled once: weights, masks,
statistics, optimizer slots and learning rates are assigned.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tf_tickets as tt
from tf_tickets.zoo import recipes
from tf_tickets.zoo.experiments import Task
from tf_tickets.zoo.models.blocks import NormalizedBlocks, SequenceBlocks


def resnet1d_short(
    input_shape: tuple[int, int] = (40, 1),
    classes: int = 10,
    bias: bool = True,
    affine: bool = True,
    widths: tuple[int, ...] = (32, 64, 64),
) -> keras.Model:
    """Three residual blocks along one axis, 56,096 weights in 10 layers.

    A convolution of width 5 and stride 2, then basic blocks of 32, 64 and 64
    filters of width 3, whose shortcuts are convolutions where shapes change.

    Args:
        input_shape: Length and channels of a sequence.
        classes: Number of logits.
        bias: Whether the classifier has biases.
        affine: Whether normalization learns a scale and an offset.
        widths: Filters of the blocks.
    """
    blocks: Any = SequenceBlocks(
        input_shape=input_shape,
        classes=classes,
        bias=bias,
        affine=affine,
    )
    sequence = keras.Input(input_shape, name="image")
    x = blocks.conv(sequence, widths[0], 5, strides=2, name="stem_conv")
    x = blocks.norm_relu(x, name="stem")
    for number, filters in enumerate(widths, start=1):
        name, strides, carried = f"block{number}", 1 if number == 1 else 2, x
        if strides > 1 or x.shape[-1] != filters:
            carried = blocks.conv(
                x, filters, 1, strides=strides, name=f"{name}_shortcut_conv"
            )
            carried = blocks.norm(carried, name=f"{name}_shortcut_bn")
        x = blocks.conv(x, filters, 3, strides=strides, name=f"{name}_conv1")
        x = blocks.norm_relu(x, name=f"{name}_conv1")
        x = blocks.conv(x, filters, 3, name=f"{name}_conv2")
        x = blocks.norm(x, name=f"{name}_conv2_bn")
        x = keras.layers.Add(name=f"{name}_add")([x, carried])
        x = keras.layers.ReLU(name=f"{name}_relu")(x)
    return keras.Model(sequence, blocks.classify(x), name="resnet1d_short")


def resnet_short(
    input_shape: tuple[int, int, int] = (8, 8, 1),
    classes: int = 10,
    bias: bool = True,
    affine: bool = True,
    widths: tuple[int, ...] = (16, 32, 64),
) -> keras.Model:
    """Two residual blocks for the digits, 72,400 weights in 8 layers.

    A 3x3 convolution, then basic blocks of 32 and 64 filters, each after a
    pooling of 2x2, with 1x1 convolutions as shortcuts. (Pooling in place of
    strides: the gradient of a strided convolution takes twice as long here.)

    Args:
        input_shape: Height, width and channels of an image.
        classes: Number of logits.
        bias: Whether the classifier has biases.
        affine: Whether normalization learns a scale and an offset.
        widths: Filters of the stem and the blocks.
    """
    blocks = NormalizedBlocks(
        input_shape=input_shape, classes=classes, bias=bias, affine=affine
    )
    image = keras.Input(input_shape, name="image")
    x = blocks.conv(image, widths[0], 3, name="stem_conv")
    x = blocks.norm_relu(x, name="stem")
    for number, filters in enumerate(widths[1:], start=1):
        name = f"block{number}"
        x = keras.layers.AveragePooling2D(2, name=f"{name}_pool")(x)
        carried = blocks.conv(x, filters, 1, name=f"{name}_shortcut_conv")
        carried = blocks.norm(carried, name=f"{name}_shortcut_bn")
        x = blocks.conv(x, filters, 3, name=f"{name}_conv1")
        x = blocks.norm_relu(x, name=f"{name}_conv1")
        x = blocks.conv(x, filters, 3, name=f"{name}_conv2")
        x = blocks.norm(x, name=f"{name}_conv2_bn")
        x = keras.layers.Add(name=f"{name}_add")([x, carried])
        x = keras.layers.ReLU(name=f"{name}_relu")(x)
    return keras.Model(image, blocks.classify(x), name="resnet_short")


def tiny(
    input_shape: tuple[int, ...] = (8, 8, 1),
    classes: int = 10,
    bias: bool = True,
    affine: bool = True,
) -> keras.Model:
    """A network for tests that shows that everything runs."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Conv2D(
                4, 3, strides=2, padding="same", use_bias=False, name="conv1"
            ),
            layers.BatchNormalization(scale=affine, center=affine, name="bn1"),
            layers.ReLU(name="relu1"),
            layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv2"),
            layers.BatchNormalization(scale=affine, center=affine, name="bn2"),
            layers.ReLU(name="relu2"),
            layers.GlobalAveragePooling2D(name="average"),
            layers.Dense(classes, use_bias=bias, name="classifier"),
        ]
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """A network, its data, and how long everything takes.

    Args:
        about: Both in a few words, for the page.
        network: As in `tf_tickets.zoo.models.get`.
        dataset: As in `tf_tickets.zoo.datasets.load`.
        batch_size: Examples in a batch.
        epochs: Of a training: the last one, and of each round of pruning.
        mining: Epochs of training scores.
        every: How many epochs from one freezing to the next.
        fraction: Of the remaining weights, what a round of pruning takes.
        rates: Learning rates that every training of weights is searched over.
        score_rates: The same, for training scores.
        score_penalty: λ of regularized Edge-Popup, as in `recipes`.
        jit_compile: Whether XLA compiles the steps.
        steps_per_execution: As in `keras.Model.compile`.
        claims: What is tested on it; everything by default.
    """

    about: str
    network: str | Callable[..., keras.Model]
    dataset: str
    batch_size: int
    epochs: int
    mining: int
    every: int
    fraction: float = 0.3
    rates: tuple[float, ...] = (1e-3, 4e-3, 1.6e-2)
    score_rates: tuple[float, ...] = (1.0, 4.0, 16.0)
    score_penalty: float = 1e-3
    jit_compile: bool = True
    steps_per_execution: int = 1
    claims: tuple[str, ...] = ()

    def recipe(self) -> recipes.Recipe:
        """What `Task` makes network and data by."""
        name = self.network if isinstance(self.network, str) else "resnet1d"
        return recipes.Recipe(
            model=name,
            dataset=self.dataset,
            epochs=self.epochs,
            batch_size=self.batch_size,
            algorithm="adam",
            initial_learning_rate=self.rates[0],
            schedule="cosine",
            affine=False,
            bias=False,
        )


_MNIST1D = Setting(
    about="MNIST-1D, residual network of 56,096 weights",
    network=resnet1d_short,
    dataset="mnist1d",
    batch_size=128,
    epochs=10,
    mining=16,
    every=1,
    rates=(4e-3, 1.6e-2, 6.4e-2),
    score_rates=(0.25, 1.0, 4.0),
    score_penalty=2e-4,
    steps_per_execution=7,
)

TASKS: dict[str, Setting] = {
    "mnist1d": _MNIST1D,
    "digits": Setting(
        about="8×8 digits, residual network of 72,400 weights",
        network=resnet_short,
        dataset="digits",
        batch_size=64,
        epochs=10,
        mining=30,
        every=2,
        jit_compile=False,
        steps_per_execution=9,
    ),
    # What is said of deeper networks.
    "mnist1d_deep": dataclasses.replace(
        _MNIST1D,
        about="MNIST-1D, ResNet-20 along one axis, of 92,336 weights",
        network="resnet1d",
        claims=(
            "gems_before",
            "gems_imp",
            "gems_random",
            "gems_sanity",
            "winning_tickets",
            "rewinding",
            "densities_per_layer",
        ),
    ),
    # For tests: shows that everything runs.
    "tiny": Setting(
        about="nothing",
        network=tiny,
        dataset="digits",
        batch_size=512,
        epochs=2,
        mining=3,
        every=1,
        fraction=0.6,
        jit_compile=False,
    ),
}


@keras.saving.register_keras_serializable("benchmarks")
class Cosine(keras.optimizers.schedules.LearningRateSchedule):
    """From a rate to zero along a cosine; both ends can be set later.

    Attributes:
        rate: The first learning rate.
        steps: When it has come to zero.
    """

    def __init__(self, rate: float = 1e-3, steps: float = 100.0) -> None:
        self.rate = tf.Variable(rate, dtype=tf.float32)
        self.steps = tf.Variable(steps, dtype=tf.float32)

    def __call__(self, step: Any) -> tf.Tensor:
        done = tf.minimum(tf.cast(step, tf.float32) / self.steps, 1.0)
        return self.rate * 0.5 * (1.0 + tf.cos(np.pi * done))

    def get_config(self) -> dict[str, Any]:
        """The numbers of now."""
        return {"rate": float(self.rate), "steps": float(self.steps)}


class Traced:
    """A compiled model whose step is traced once, for trainings without end.

    Args:
        bench: What it belongs to.
        model: Built, not compiled.
        optimizer: Makes an optimizer of a schedule.
        loss: Of the compiled model; cross-entropy by default.
    """

    def __init__(
        self,
        bench: Bench,
        model: keras.Model,
        optimizer: Callable[[Any], keras.optimizers.Optimizer],
        loss: keras.losses.Loss | None = None,
    ) -> None:
        self.bench, self.model = bench, model
        self.schedule = Cosine()
        model.compile(
            optimizer(self.schedule),
            loss
            or keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=bench.setting.jit_compile,
            steps_per_execution=bench.setting.steps_per_execution,
        )
        model.optimizer.build(model.trainable_variables)

    def begin(self, rate: float, epochs: int) -> None:
        """A new optimizer, and batches and random numbers anew."""
        task = self.bench.task
        for variable in self.model.optimizer.variables:
            variable.assign(np.zeros(variable.shape, variable.dtype))
        self.schedule.rate.assign(rate)
        self.schedule.steps.assign(float(epochs * task.data.steps_per_epoch))
        task.restart()

    def fit(self, epochs: int, *callbacks: keras.callbacks.Callback) -> None:
        """Train on."""
        self.model.fit(
            self.bench.task.data.train,
            epochs=epochs,
            shuffle=False,
            verbose=0,
            callbacks=list(callbacks),
        )

    def accuracy(self, split: str) -> float:
        """Of the validation data of a search, else of the test data."""
        data = self.bench.task.data
        held = data.validation if split == "search" else data.test
        found = self.model.evaluate(held, verbose=0, return_dict=True)
        return round(float(found["accuracy"]), 5)


class Bench:
    """Networks of one setting, and what they are trained with.

    Args:
        setting: One of `TASKS`.
        affine: Whether normalization learns a scale and an offset, which only
            a search for channels needs.
    """

    def __init__(self, setting: Setting, *, affine: bool = False) -> None:
        self.setting = setting
        self.affine = affine
        self.task = self._prepare(0)
        self._starts: dict[int, list[np.ndarray]] = {}
        model = self.task.model
        # Masks from the start: any ticket then is an assignment.
        tt.prune(model, 0.0).apply(model)
        self.dense = Traced(self, model, keras.optimizers.Adam)
        self._miners: dict[Any, Traced] = {}

    def _prepare(self, seed: int) -> Task:
        return Task.prepare(
            self.setting.recipe(),
            model=self.setting.network,
            dataset=self.setting.dataset,
            seed=seed,
            affine=self.affine,
        )

    def begin(self, seed: int) -> keras.Model:
        """The dense network with the weights of a seed, and nothing pruned."""
        if seed not in self._starts:
            self._starts = {seed: self._prepare(seed).model.get_weights()}
        self.task.seed = seed
        self.task.restart()
        model = self.dense.model
        whole = {
            key: np.ones(weight.shape, bool)
            for key, weight in tt.prunable_weights(model).items()
        }
        tt.Ticket(whole).apply(model, weights="keep")
        model.set_weights(self._starts[seed])
        return model

    def miner(self, seed: int, **options: Any) -> Traced:
        """A supermask of a seed, with scores and frozen weights as they begin.

        Args:
            seed: Of scores and weights.
            **options: Those of `tf_tickets.supermask`. Only those share a
                trace that differ in ``scores`` and ``weights`` alone.
        """
        made = tt.supermask(self.dense.model, seed=seed, **options)
        traced = {k: v for k, v in options.items() if k not in START}
        key = tuple(sorted(traced.items()))
        if key not in self._miners:
            self._miners[key] = Traced(
                self, tt.supermask(self.dense.model, **options), _momentum
            )
        found = self._miners[key]
        for mine, theirs in zip(
            found.model.variables, made.variables, strict=True
        ):
            mine.assign(keras.ops.convert_to_numpy(theirs))
        return found

    @functools.cached_property
    def size(self) -> int:
        """How many weights can be pruned."""
        return int(
            sum(
                np.prod(weight.shape)
                for weight in tt.prunable_weights(self.dense.model).values()
            )
        )


# Options of a supermask that say where it begins, and no more.
START = ("scores", "weights")


def _momentum(schedule: Any) -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(schedule, momentum=0.9)


@functools.cache
def bench(name: str, affine: bool = False) -> Bench:
    """The one of this process."""
    return Bench(TASKS[name], affine=affine)
