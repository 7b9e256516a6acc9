"""Run as a script, in a process that knows nothing of tf_tickets.

Serves every artifact below the directory given, through every way to load a
SavedModel, and writes what comes out beside it.
"""

import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import keras
import numpy as np
import tensorflow as tf


def numbers(outputs):
    flat = keras.tree.flatten(outputs)
    return {f"output_{i}": np.asarray(o) for i, o in enumerate(flat)}


def serve_v1(path, named):
    v1 = tf.compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        meta_graph = v1.saved_model.load(session, ["serve"], str(path))
        signature = meta_graph.signature_def["serving_default"]
        feed = {signature.inputs[key].name: x for key, x in named.items()}
        fetch = {key: one.name for key, one in signature.outputs.items()}
        return session.run(fetch, feed)


def serve(path):
    with np.load(path / "inputs.npz") as file:
        named = dict(file)
    artifact = path / "export"
    only = next(iter(named.values()))
    argument = named if len(named) > 1 else only
    found = {}
    loaded = tf.saved_model.load(artifact)
    tensors = keras.tree.map_structure(tf.constant, argument)
    found["load"] = numbers(loaded.serve(tensors))
    loaded.serve(keras.tree.map_structure(lambda x: x[:1], tensors))
    kernels = [v.numpy() for v in loaded.kept if len(v.shape) == 2]
    zeros = sorted(int((kernel == 0).sum()) for kernel in kernels)
    np.save(path / "zeros.npy", zeros)
    layer = keras.layers.TFSMLayer(str(artifact))
    found["layer"] = numbers(layer(tensors))
    signature = loaded.signatures["serving_default"]
    keys = list(signature.structured_input_signature[1])
    assert len(keys) == len(named)
    by_key = dict(
        zip(sorted(keys), [named[k] for k in sorted(named)], strict=True)
    )
    served = signature(**keras.tree.map_structure(tf.constant, by_key))
    found["signature"] = {k: v.numpy() for k, v in served.items()}
    found["v1"] = serve_v1(artifact, by_key)
    for way, outputs in found.items():
        np.savez(path / f"{way}.npz", **outputs)


def main():
    assert "tf_tickets" not in sys.modules
    for path in sorted(Path(sys.argv[1]).iterdir()):
        serve(path)
    # An editable install is there to be found; nothing may have looked.
    assert "tf_tickets" not in sys.modules


main()
