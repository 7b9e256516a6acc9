"""Tickets of today are those of yesterday, bit for bit, ties included.

Digests of what was drawn when they were recorded. All weights and scores are
whole numbers, so that no machine rounds them in another way. A digest may
change only with what a ticket means: then say so in the change log.
"""

import functools
import hashlib

import keras
import numpy as np
import pytest

import tf_tickets as tt
from tf_tickets.pruning import at_least

# Below and above the size from which selection takes a sample first.
SIZES = {"small": (40, 30, 20), "large": (640, 500, 300)}
WEIGHTS = ("distinct", "ties", "zeros", "equal")
SCOPES = {
    "global": "global",
    "layer": "layer",
    "erk": "erk",
    "at_least": at_least(30),
    "mapping": {"first": 0.5, "last": 0.25},
}
PATTERNS = {"none": None, "2:4": "2:4", "block": (4, 2), "rows": "rows"}


@functools.cache
def model_of(size, weights):
    """Three kernels and a convolution's, of whole numbers."""
    a, b, c = SIZES[size]
    model = keras.Sequential(
        [
            keras.Input((a,)),
            keras.layers.Dense(b, name="first"),
            keras.layers.Dense(c, name="middle"),
            keras.layers.Reshape((c // 10, 10)),
            keras.layers.Conv1D(6, 3, padding="same", name="window"),
            keras.layers.Flatten(),
            keras.layers.Dense(4, name="last"),
        ]
    )
    rng = np.random.default_rng(len(size) + 7 * len(weights))
    count = sum(np.prod(w.shape) for w in model.weights)
    values = {
        "distinct": rng.permutation(count) - count // 2,
        "ties": rng.integers(-3, 4, count),
        "zeros": rng.integers(-900, 900, count) * (rng.random(count) < 0.3),
        "equal": np.full(count, 2),
    }[weights].astype("float32")
    start = 0
    for weight in model.weights:
        stop = start + int(np.prod(weight.shape))
        weight.assign(values[start:stop].reshape(weight.shape))
        start = stop
    return model


def digest(ticket):
    """Of masks, start weights, scores and counts; not of names."""
    found = hashlib.sha256()
    parts = (ticket.masks, ticket.weights or {}, ticket.scores or {})
    for part in parts:
        for array in part.values():
            found.update(f"{array.shape}{array.dtype}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
    found.update(f"{ticket.kept} of {ticket.size}".encode())
    return found.hexdigest()[:16]


def drawn(size, weights, criterion, scope, pattern):
    """A first ticket, and a second under the masks of the first."""
    model = model_of(size, weights)
    tt.release(model)
    steps = (0.4, 0.9)
    if pattern == "2:4":
        steps = (0.5,)
    if scope == "mapping":
        steps = (None,)
    for sparsity in steps:
        if pattern == "2:4" and scope == "mapping":
            given = {"first": 0.5, "last": 0.5}
        else:
            given = SCOPES[scope]
        ticket = tt.prune(
            model,
            sparsity,
            criterion=criterion,
            scope=given,
            pattern=PATTERNS[pattern],
            filters=["first", "middle", "window", "last"],
            seed=3,
            verbose=0,
        )
        yield ticket
        before = model.get_weights()
        ticket.apply(model, weights="keep")
        model.set_weights(before)  # what is pruned has a score as before
    tt.release(model)
    model.set_weights(before)


def case(size, weights, criterion, scope, pattern, path):
    """Digests of the tickets, and of what a file holds of them."""
    found = []
    for ticket in drawn(size, weights, criterion, scope, pattern):
        ticket.save(path / "ticket")
        again = tt.Ticket.load(path / "ticket")
        assert digest(again) == digest(ticket)
        found.append(digest(ticket))
    return " ".join(found)


CASES = [
    *(("large", w, "magnitude", "global", "none") for w in WEIGHTS),
    *(("small", "ties", "magnitude", s, "none") for s in SCOPES),
    *(("small", "ties", "magnitude", "layer", p) for p in PATTERNS),
    *(("small", w, "lamp", "global", "none") for w in WEIGHTS),
    ("large", "ties", "random", "global", "none"),
    ("large", "ties", "magnitude", "at_least", "none"),
    ("large", "zeros", "lamp", "layer", "none"),
    ("large", "ties", "magnitude", "global", "block"),
]
CASES = list(dict.fromkeys(CASES))

GOLDEN = {
    "large-distinct-magnitude-global-none": "229c18f8c1df936a 481810527b05fe15",
    "large-ties-magnitude-global-none": "2467347f52e55e95 50b65c1137eb7436",
    "large-zeros-magnitude-global-none": "abfab9a15e316556 7303f44f7896e112",
    "large-equal-magnitude-global-none": "6f9644ce80045da9 80521fae170e6ec0",
    "small-ties-magnitude-global-none": "5281549e4f054992 b373033b7700c0c7",
    "small-ties-magnitude-layer-none": "e22150e5f8c6e7c0 0fc4d97b734f900d",
    "small-ties-magnitude-erk-none": "70b97c01344a539d dbde73a7f8371ce8",
    "small-ties-magnitude-at_least-none": "0624924dc83195a9 963b06e0734a3733",
    "small-ties-magnitude-mapping-none": "81583d588ff87dcf",
    "small-ties-magnitude-layer-2:4": "4ffba4b0c5a18ad2",
    "small-ties-magnitude-layer-block": "4893d7f7255bf1f0 bd20bc439749a28c",
    "small-ties-magnitude-layer-rows": "09b41c3c2ef145ac 93871daeab7a5b77",
    "small-distinct-lamp-global-none": "151a15c0d02bc52c 3144ea3c7cdcf9b8",
    "small-ties-lamp-global-none": "c958fd7bd7e248b2 cf1b721fb671ea40",
    "small-zeros-lamp-global-none": "4c1977a1eaebda4b 2fbbc13b6cbde80a",
    "small-equal-lamp-global-none": "f0518d7c93a41758 83db34d9ddd75da3",
    "large-ties-random-global-none": "7202b94d98df1df6 6b87eed85f8dd560",
    "large-ties-magnitude-at_least-none": "2467347f52e55e95 8d33f5024e4cad3c",
    "large-zeros-lamp-layer-none": "ca962dfb13178ea3 9a94be68b871ba6f",
    "large-ties-magnitude-global-block": "9627064638a475e1 cef4b197b734b4e9",
    "rounds": "a086f197384f6cb4 281697fb035574c6 1ad35f2aa3fd752e",
    "supermask": "3457899fafded722",
}


@pytest.mark.parametrize("which", CASES, ids="-".join)
@pytest.mark.filterwarnings("ignore:No weight is kept")
def test_a_draw_gives_the_ticket_it_gave(which, tmp_path):
    assert case(*which, tmp_path) == GOLDEN["-".join(which)]


def test_rounds_give_the_tickets_they_gave():
    x, y = np.ones((8, 40), "float32"), np.ones((8, 4), "float32")
    model = keras.models.clone_model(model_of("small", "ties"))
    model.set_weights(model_of("small", "ties").get_weights())
    model.compile(keras.optimizers.SGD(0.0), "mse")
    imp = tt.callbacks.IterativeMagnitudePruning(
        target_sparsity=0.9, rounds=3, epochs_per_round=1
    )
    model.fit(x, y, epochs=imp.epochs, verbose=0, callbacks=[imp])
    assert " ".join(map(digest, imp.tickets)) == GOLDEN["rounds"]


def test_a_supermask_gives_the_ticket_it_gave():
    model = keras.models.clone_model(model_of("small", "ties"))
    model.set_weights(model_of("small", "ties").get_weights())
    miner = tt.supermask(model, mask="top_k", sparsity=0.75)
    rng = np.random.default_rng(5)
    for score in miner.supermask.scores.values():
        score.assign(rng.integers(-4, 5, score.shape).astype("float32"))
    assert digest(tt.Ticket.from_supermask(miner)) == GOLDEN["supermask"]
