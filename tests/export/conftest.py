"""Wide models, pruned at random; sparse methods without measuring."""

import keras
import numpy as np
import pytest

from tests import gallery
from tf_tickets.export import choosing
from tf_tickets.export.kernels import Choice, methods_for
from tf_tickets.selection import prunable_weights


def prune_at_random(model, density, seed=0):
    """Zero weights at random; the rest, and the statistics, are not alike."""
    rng = np.random.default_rng(seed)
    prunable = prunable_weights(model)
    for variable in model.weights:
        value = keras.ops.convert_to_numpy(variable)
        if any(variable is one for one in prunable.values()):
            value = np.where(rng.random(value.shape) < density, value, 0)
        elif "float" in str(value.dtype):
            value = value + 0.1 * rng.random(value.shape)
        variable.assign(value)
    return model


def choose_all(prefer=()):
    """Like `choosing.choose`, but each layer takes a method unmeasured."""

    def choose(source, batch_sizes):
        choices = {}
        for site in choosing.sites_of(source, max(batch_sizes)):
            methods = methods_for(site.layer, site.kernel)
            names = [name for name in prefer if name in methods] or [*methods]
            choices[site.key] = Choice(site.layer, methods[names[0]])
        return choices, {}

    return choose


def make_all_sparse(monkeypatch):
    """Every layer that can be sparse is; also a whole that is slower."""
    from tf_tickets.export import savedmodel

    monkeypatch.setattr(choosing, "choose", choose_all())
    monkeypatch.setattr(savedmodel, "_slower_than_dense", lambda *_: {})


@pytest.fixture
def all_sparse(monkeypatch):
    """As `make_all_sparse` has it."""
    make_all_sparse(monkeypatch)


# Wide enough to be sparse.
MODELS = {
    "subclassed": lambda: gallery.subclassed(80, width=64, outputs=5),
    "pairs": lambda: gallery.pairs(80, 64, 100, code=True),
    "convolutions": gallery.convolutions,
    "sequences": gallery.sequences,
    "text": gallery.text,
    "mixed": gallery.mixed,
    "int8": lambda: gallery.int8(80, (400, 100), density=0.05),
}


def close(a, b, tolerance=1e-5):
    """Equal to ``tolerance`` of the largest output."""
    for one, other in zip(
        keras.tree.flatten(a), keras.tree.flatten(b), strict=True
    ):
        one = np.asarray(one, "float64")
        other = np.asarray(other, "float64")
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max()
