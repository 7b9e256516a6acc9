"""Time of a training step under a mask against the dense step.

For a convolutional network and for a parameter-bound MLP, with and without
``jit_compile``: a Keras 3 model under a ticket against the same model without,
and the TensorFlow Model Optimization toolkit's ``prune_low_magnitude`` against
the same model in tf_keras. A fifth side has RigL watching its gradients, with
no update due. All take turns in one process.

    python -m benchmarks.masked_step
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import keras
import numpy as np
from absl import app

import tf_tickets as tt
from benchmarks import networks, script, timing
from tf_tickets import masking
from tf_tickets.pruning.prune import draw_masks

FLAGS = script.define(
    __name__,
    network=script.NETWORK,
    jit_compile=script.JIT_COMPILE,
    sparsity=(0.9, "Of the masks."),
    rounds=(100, "Timed steps of each side."),
    redraws=(5, "Timed redraws of the masks."),
    image_batch=(64, "Batch size of the ResNet."),
    mlp_batch=(32, "Batch size of the MLP."),
    tfmot=(True, "Time the toolkit beside it."),
)

DENSE, MASKED = "dense, Keras 3", "masked, tf_tickets"
RIGL = "masked, RigL between updates"
TWIN, TOOLKIT = "dense, tf_keras", "masked, tfmot"

# A frequency at which the toolkit draws its masks in the first step and not
# again while steps are timed.
_NEVER = 10**9


class Toolkit:
    """``prune_low_magnitude`` around a tf_keras model.

    Args:
        model: A tf_keras model, not compiled.
        sparsity: Of every layer.

    Attributes:
        model: The wrapped model.
    """

    def __init__(self, model: Any, sparsity: float) -> None:
        import tensorflow_model_optimization as tfmot

        self._api = tfmot.sparsity.keras
        self.model = self._api.prune_low_magnitude(
            model,
            self._api.ConstantSparsity(
                sparsity, begin_step=1, frequency=_NEVER
            ),
        )

    def begin(self) -> None:
        """What the toolkit's callback does when `fit` begins."""
        callback = self._api.UpdatePruningStep()
        callback.set_model(self.model)
        callback.on_train_begin()

    def redraw_next(self) -> None:
        """Let the next step be one that draws masks."""
        for layer in self._wrapped():
            layer.pruning_step.assign(0)

    def masks(self) -> list[np.ndarray]:
        """The masks, as they lie in memory."""
        return [
            mask.numpy()
            for layer in self._wrapped()
            for _, mask, _ in layer.pruning_vars
        ]

    def _wrapped(self) -> list[Any]:
        # All layers but the input.
        return [x for x in self.model.layers if hasattr(x, "pruning_vars")]


def main(argv: Sequence[str]) -> None:
    """Time every network with every setting of ``jit_compile``."""
    del argv
    if FLAGS.tfmot:
        script.need("tf_keras", "tfmot")
    rows: list[timing.Row] = []
    notes: dict[str, Any] = {"sparsity": FLAGS.sparsity}
    for name in FLAGS.network:
        for setting in FLAGS.jit_compile:
            keras.utils.clear_session()
            timed = time_network(name, setting == "true", notes)
            # Shown at once: all of them take a quarter of an hour.
            shown = timing.table(timed, unit="ms", per_unit=1e-3)
            print(shown, file=sys.stderr, flush=True)
            rows += timed
    script.report("masked_step", rows, output=FLAGS.output, notes=notes)


def time_network(
    name: str, jit_compile: bool, notes: dict[str, Any]
) -> list[timing.Row]:
    """The rows of one network; ``notes`` gets what its masks take."""
    build = functools.partial(networks.build, name, smoke=FLAGS.smoke)

    def stepper(module: ModuleType, model: Any) -> networks.Step:
        return networks.step_of(
            networks.compile_for_training(
                module, model, jit_compile=jit_compile
            ),
            batches,
        )

    dense, masked = build(keras), build(keras)
    batch_size = FLAGS.image_batch if name == "resnet20" else FLAGS.mlp_batch
    batches = networks.random_batches(
        dense.input_shape[1:], 4 if FLAGS.smoke else batch_size
    )
    steps = {DENSE: stepper(keras, dense)}
    # Masks are held as suits the step, so it must be known.
    networks.compile_for_training(keras, masked, jit_compile=jit_compile)
    redraw(masked)
    steps[MASKED] = stepper(keras, masked)
    redraws: dict[str, Callable[[], None]] = {MASKED: lambda: redraw(masked)}
    masks = {
        MASKED: [
            weight.constraint.mask.numpy()
            for weight in tt.prunable_weights(masked).values()
        ]
    }
    pairs = [(MASKED, DENSE)]
    moving = build(keras)
    rigl = watched()
    networks.compile_for_training(keras, moving, jit_compile=jit_compile)
    rigl.set_model(moving)
    rigl.on_train_begin()  # before the step is traced
    steps[RIGL] = networks.step_of(moving, batches)
    if FLAGS.tfmot:
        import tf_keras

        toolkit = Toolkit(build(tf_keras), FLAGS.sparsity)
        steps[TWIN] = stepper(tf_keras, build(tf_keras))
        steps[TOOLKIT] = stepper(tf_keras, toolkit.model)
        toolkit.begin()
        redraws[TOOLKIT] = toolkit.redraw_next
        masks[TOOLKIT] = toolkit.masks()
        pairs.append((TOOLKIT, TWIN))
    for side, arrays in masks.items():
        notes[f"mask bytes per weight, {side}"] = sum(
            a.nbytes for a in arrays
        ) / sum(a.size for a in arrays)

    def redrawing(side: str) -> networks.Step:
        return lambda: (redraws[side](), steps[side]())

    case = f"{name}, {'XLA' if jit_compile else 'no XLA'}"
    times = timing.interleaved(steps, rounds=3 if FLAGS.smoke else FLAGS.rounds)
    rigl.on_train_end()
    del steps[RIGL]
    redrawn = timing.interleaved(
        {
            side: redrawing(side) if side in redraws else step
            for side, step in steps.items()
        },
        rounds=1 if FLAGS.smoke else FLAGS.redraws,
        warmup=1,
    )
    rows = [
        timing.compare(times, *pair, case=case)
        for pair in [*pairs, (RIGL, DENSE)]
    ]
    rows.append(
        timing.compare(
            times, RIGL, MASKED, case=case, label=f"{RIGL}, over masked"
        )
    )
    return rows + [
        timing.compare(
            redrawn, *pair, case=case, label=f"{pair[0]}, masks redrawn"
        )
        for pair in pairs
    ]


def watched() -> tt.callbacks.DynamicSparseTraining:
    """What keeps an eye on the gradients and has no update to make."""
    rigl = tt.callbacks.DynamicSparseTraining(
        sparsity=FLAGS.sparsity, every=_NEVER
    )
    rigl.set_params({"steps": 1, "epochs": 1})
    return rigl


def redraw(model: keras.Model) -> None:
    """Draw masks from the weights of the moment and enforce them."""
    masks, _ = draw_masks(
        model, FLAGS.sparsity, criterion="magnitude", scope="layer"
    )
    masking.enforce(model, masks)


if __name__ == "__main__":
    app.run(main)
