"""Small networks with every way in which channels depend on each other."""

import keras
import numpy as np
from keras import layers

from tests import gallery
from tf_tickets.network.channels import follow, owners
from tf_tickets.network.graph import trace
from tf_tickets.selection import layers_of, named_weights

NETWORKS = {n: gallery.GALLERY[n] for n in gallery.names("channels")}
nested, sequential = gallery.nested_images, gallery.chain


def settle(model, seed=0, batch=4):
    """Random statistics, scales and offsets under which signals survive.

    Returns a batch of inputs.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, *model.input_shape[1:]))
    for layer in layers_of(model):
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0
    model(x, training=True)  # statistics of this batch
    for weight in named_weights(model).values():
        if weight.name in ("gamma", "alpha"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif weight.name in ("beta", "bias"):
            weight.assign(rng.normal(size=weight.shape) * 0.2)
    return x


def coupled_masks(model, sparsity, seed=0):
    """``{scale: mask}`` that agree wherever channels are tied."""
    channels = follow(trace(model))
    rng = np.random.default_rng(seed)
    going = rng.random(channels.size) < sparsity
    for entry in channels.layers.values():
        if entry.made is not None:  # no layer may lose all
            going[channels.roots(entry.made)[0]] = False
    return {
        key: ~going[channels.roots(atoms)]
        for key, atoms in owners(channels, model).items()
        if key.rpartition("/")[2].startswith("gamma")
    }


def zeroed(model, masks):
    """Zero scale and offset of the pruned channels, in the model itself."""
    weights = named_weights(model)
    for key, mask in masks.items():
        for name in (key, "beta".join(key.rsplit("gamma", 1))):
            weights[name].assign(np.where(mask, weights[name], 0))


def outputs(model, x):
    return np.concatenate(
        [
            np.asarray(y).reshape(len(x), -1)
            for y in keras.tree.flatten(model(x, training=False))
        ],
        axis=1,
    )
