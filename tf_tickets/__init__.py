"""Lottery tickets for Keras 3: find them, spend them well, ship them small.

Example:

>>> import keras, numpy as np, tf_tickets as tt
>>> model = keras.Sequential([
...     keras.Input((8,)),
...     keras.layers.Dense(32, activation="relu"),
...     keras.layers.Dense(2),
... ])
>>> model.compile("adam", "mse")
>>> x, y = np.ones((16, 8)), np.ones((16, 2))
>>> imp = tt.callbacks.IterativeMagnitudePruning(
...     target_sparsity=0.9, rounds=3, epochs_per_round=2)
>>> _ = model.fit(x, y, epochs=imp.epochs, callbacks=[imp], verbose=0)
>>> imp.ticket
<Ticket: 32 of 320 weights in 2 tensors, sparsity 0.9000>
"""

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "tf_tickets works with the TensorFlow backend of Keras: set the "
        "environment variable KERAS_BACKEND=tensorflow. Received: "
        f"KERAS_BACKEND={keras.backend.backend()}"
    )

from tf_tickets import (  # noqa: E402
    analysis,
    callbacks,
    data,
    distribute,
    export,
    layers,
    network,
    pruning,
    retraining,
    structured,
)
from tf_tickets.layers.supermask import supermask  # noqa: E402
from tf_tickets.masking import release  # noqa: E402
from tf_tickets.pruning import prune  # noqa: E402
from tf_tickets.selection import prunable_weights  # noqa: E402
from tf_tickets.snapshot import Snapshot  # noqa: E402
from tf_tickets.ticket import Ticket, enforce_zeros  # noqa: E402
from tf_tickets.version import __version__  # noqa: E402

__all__ = [
    "Snapshot",
    "Ticket",
    "__version__",
    "analysis",
    "callbacks",
    "data",
    "distribute",
    "enforce_zeros",
    "export",
    "layers",
    "network",
    "prunable_weights",
    "prune",
    "pruning",
    "release",
    "retraining",
    "structured",
    "supermask",
]
