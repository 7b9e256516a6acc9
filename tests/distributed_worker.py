"""One process of the two-worker test: trains, then saves what it holds."""

import json
import os
import sys
import warnings


def main(index: int, ports: list[str], out: str, alone: bool) -> None:
    if not alone:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        os.environ["TF_CONFIG"] = json.dumps(
            {
                "cluster": {"worker": [f"127.0.0.1:{p}" for p in ports]},
                "task": {"type": "worker", "index": index},
            }
        )
    import keras
    import numpy as np
    import tensorflow as tf

    import tf_tickets as tt

    strategy = (
        tf.distribute.get_strategy()
        if alone
        else tt.distribute.MultiWorkerMirroredStrategy()
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8)).astype("float32")
    y = (x @ rng.normal(size=(8, 4))).argmax(1)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(
        16, drop_remainder=True
    )
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA
    )
    data = data.with_options(options)
    results = {}

    def fit(name, *callbacks, epochs, validation=None, norm=(), wrap=None):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = keras.Sequential(
                [
                    keras.Input((8,)),
                    keras.layers.Dense(32, activation="relu", name="hidden"),
                    *norm,
                    keras.layers.Dense(4, name="head"),
                ],
                name="mlp",
            )
            if wrap is not None:
                model = wrap(model)
            model.compile(
                keras.optimizers.SGD(0.1, momentum=0.9),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")],
            )
            # As Keras has it, the first step makes the optimizer's variables,
            # and is traced again without them. Seeing that twice is enough.
            if name not in ("imp", "gradual"):
                model.optimizer.build(model.trainable_variables)
        model.fit(
            data.repeat(),
            epochs=epochs,
            steps_per_epoch=4,  # of one iterator: workers are slow to make one
            verbose=0,
            callbacks=callbacks,
            validation_data=validation,
        )
        for i, weight in enumerate(model.get_weights()):
            results[f"{name}/weight{i}"] = weight
        return model

    directory = f"{out}.run{index}"
    imp = tt.callbacks.IterativeMagnitudePruning(
        target_sparsity=0.8,
        rounds=2,
        epochs_per_round=2,
        rewind_epoch=1,
        directory=directory,
    )
    fit("imp", imp, epochs=imp.epochs + 1, validation=data)
    results["imp/files"] = np.array(
        sorted(os.listdir(directory)) if os.path.isdir(directory) else [], str
    )
    for i, ticket in enumerate(imp.tickets):
        for path, mask in ticket.masks.items():
            results[f"imp/ticket{i}/mask/{path}"] = mask
        for path, weight in ticket.weights.items():
            results[f"imp/ticket{i}/start/{path}"] = weight
    gradual = tt.callbacks.GradualPruning(
        target_sparsity=0.8, end_step=6, every=2
    )
    fit("gradual", gradual, tt.callbacks.SparsityLogger(), epochs=2)
    rewind = tt.callbacks.Rewind(step=3)
    fit("rewind", tt.callbacks.EnforceTicket(imp.ticket), rewind, epochs=2)
    freezing = tt.callbacks.IterativeFreezing(target_sparsity=0.7, every=2)
    miner = fit(
        "freezing",
        freezing,
        epochs=6,
        wrap=lambda model: tt.supermask(model, score_penalty=1e-3),
    )
    gem = tt.Ticket.from_supermask(miner)
    for path, mask in gem.masks.items():
        results[f"freezing/mask/{path}"] = mask
    with strategy.scope():
        norm = keras.layers.BatchNormalization(synchronized=True, name="norm")
    search = tt.callbacks.EarlyBird([0.5], epsilon=0.5, window=3)
    fit("early_bird", search, epochs=8, norm=[norm])
    results["early_bird/epoch"] = search.found_at[0.5]
    for name, mask in search.tickets[0.5].masks.items():
        results[f"early_bird/mask/{name}"] = mask
    # Each worker scores on images of its own; movement's sums are of all.
    own = np.random.default_rng(index).permutation(64)[:16]
    for name, options in {
        "snip": {"data": (x[own], y[own])},
        "movement": {"directory": f"{directory}.movement"},
    }.items():
        pruning = tt.callbacks.GradualPruning(
            target_sparsity=0.7,
            end_step=4,
            every=2,
            criterion=name,
            **options,
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(name, pruning, epochs=1)
        results[f"{name}/warned"] = sum(
            "take the chief's" in str(w.message) for w in caught
        )
        for path, mask in pruning.ticket.masks.items():
            results[f"{name}/mask/{path}"] = mask
    if not alone:
        results["refused"] = refusals(strategy, imp, fit, index)
    np.savez(out, **results)


def refusals(strategy, imp, fit, index):
    """What is said to hosts that cannot go on together."""
    import numpy as np

    from tf_tickets.distribute import agreed

    said = []
    for bad in (
        # Only the first host has the directory of the run that has ended.
        lambda: fit("again", imp, epochs=imp.epochs),
        lambda: agreed(strategy, {"kernel": np.ones(2 + index, bool)}),
    ):
        try:
            bad()
            said.append("nothing")
        except ValueError as error:
            said.append(str(error))
    return np.array(said)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[3:], sys.argv[2], alone=False)
