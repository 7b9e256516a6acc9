"""
Title: Winning lottery tickets with `model.fit`
Author: The authors of tf_tickets
Date created: 2026/11/21
Last modified: 2026/11/21
Description: Prune a network to a twentieth of its weights, check that the mask
    matters, and export it small.
Accelerator: None
"""

"""
## Introduction

A dense network holds *winning tickets*: sparse subnetworks that train as well
as the whole from the weights they started with
([Frankle and Carbin, 2019](https://arxiv.org/abs/1803.03635)). They are found
by *iterative magnitude pruning*: train, drop the smallest weights, put those
that stay back to where they began, and again.

In this example we

- draw a ticket with one callback, in one `fit`;
- compare it with its controls: the same mask over new weights, and the same
  weights under a shuffled mask;
- train it, and export a SavedModel that stores what was kept alone.
"""

"""
## Setup

`tf_tickets` runs on the TensorFlow backend. The data are the 1,797 handwritten
digits that come with scikit-learn, so nothing is downloaded.
"""

"""shell
pip install -q keras tensorflow scikit-learn tf_tickets
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import sklearn.datasets
import sklearn.model_selection
import tensorflow as tf
import tf_tickets as tt

keras.utils.set_random_seed(0)

"""
## The data
"""

images, labels = sklearn.datasets.load_digits(return_X_y=True)
images = (images / 16).astype("float32")
train_x, test_x, train_y, test_y = sklearn.model_selection.train_test_split(
    images, labels, test_size=300, stratify=labels, random_state=0
)
print(f"{len(train_x)} images to train on, {len(test_x)} to test on")

"""
## A network

It is an ordinary Keras model, and stays one: a mask is a constraint on a
kernel, with no wrapper around the layer.
"""


def build_model():
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(300, activation="relu", name="wide"),
            keras.layers.Dense(100, activation="relu", name="narrow"),
            keras.layers.Dense(10, activation="softmax", name="head"),
        ]
    )
    model.compile(
        "adam", "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model


model = build_model()

"""
## Draw the ticket

The callback trains, prunes and rewinds for five rounds. Densities fall by an
equal factor each round. `imp.epochs` is how long `fit` has to run.
"""

imp = tt.callbacks.IterativeMagnitudePruning(
    target_sparsity=0.95, rounds=5, epochs_per_round=15
)
model.fit(
    train_x,
    train_y,
    validation_data=(test_x, test_y),
    epochs=imp.epochs,
    callbacks=[imp],
    verbose=0,
)
ticket = imp.ticket
print(ticket)
for row in imp.history:
    print(
        f"round {row['round']}: trained at sparsity "
        f"{row['trained_sparsity']:.3f}, accuracy {row['val_accuracy']:.3f}"
    )

"""
Where the weights went: the last layer keeps the most of what it has.
"""

for key, density in ticket.densities().items():
    print(f"{key:<28} density {density:.3f}")

"""
## Is it the mask, or the weights?

A ticket is a value. Its controls are tickets too, and all of them are trained
alike. `apply` puts the start weights in and keeps the zeros from then on.
"""


def trained_accuracy(candidate):
    network = build_model()
    candidate.apply(network)
    network.fit(train_x, train_y, epochs=15, verbose=0)
    assert tt.Ticket.from_model(network).kept == candidate.kept
    return network, network.evaluate(test_x, test_y, verbose=0)[1]


model, accuracy = trained_accuracy(ticket)
results = {
    "ticket": accuracy,
    "same mask, new weights": trained_accuracy(ticket.reinitialize(model))[1],
    "same weights, mask shuffled": trained_accuracy(ticket.shuffle())[1],
}
for name, value in results.items():
    print(f"{name:<28} {value:.3f}")

"""
## Ship it

The export holds the kept values and their places, and is decoded once, when it
is loaded. Whoever serves it needs neither Keras nor tf_tickets.
"""

report = tt.export.saved_model(model, "served_ticket", format="packed")
served = tf.saved_model.load("served_ticket")
np.testing.assert_allclose(
    served.serve(test_x), model.predict(test_x, verbose=0), atol=1e-5
)
dense = sum(weight.numpy().nbytes for weight in model.weights)
print(f"{dense / 1e3:.0f} kB of weights, dense")
print(f"{report.total('packed_bytes') / 1e3:.0f} kB packed")
print(f"{report.disk_bytes / 1e3:.0f} kB shipped, the graph among it")

"""
## Where to go from here

- `tt.callbacks.GradualPruning` prunes within one training,
  `tt.callbacks.DynamicSparseTraining` trains sparsely from the first step.
- `tt.supermask` finds a ticket before any weight is trained.
- `tt.callbacks.EarlyBird` and `tt.structured.shrink` take whole channels out,
  for a network that is faster everywhere.
"""
