"""The verdict on a file agrees with what LiteRT computes in WebAssembly.

What is expected here was measured: ``python -m benchmarks.web
--part=variants`` makes the whole table, of which this is a part.
"""

import pytest

import tf_tickets as tt
from benchmarks import web
from benchmarks.web_variants import VARIANTS
from tf_tickets.export.clusters import judge

pytest.importorskip("ai_edge_litert")

# ``{variant: (sparse, what the first failing condition says)}``
MEASURED = {
    "as it should be": (True, ""),
    "stem `same`, even": (False, "pads as `same` does"),
    "stem padded by 1, odd": (False, "pads as `same` does"),
    "stem padded above": (False, "pads 1 above, 0 below, 1 left, 0 right"),
    "stem on 1 channel": (False, "on 1 channels, not on 3"),
    "depthwise 5x5 padded by 2": (True, ""),
    "sum with a branch": (True, ""),
    "joined channels": (False, "CONCATENATION"),
    "gate by a sigmoid": (True, ""),
    "gate by a hard sigmoid": (False, "MUL"),
    "hard swish": (True, ""),
    "flattened": (False, "RESHAPE"),
    "large dense head": (True, ""),
    "read inside and outside": (False, "is an output of the model, too"),
    "66 % zeros": (False, "it takes more than two thirds"),
    "67 % zeros": (True, ""),
}
# Where XNNPACK computes something else than the model, or nothing at all.
WRONG = (
    "depthwise `same`, even",
    "max pooling",
    "ends in a 1x1 on one pixel",
    "a map as second output",
)


@pytest.mark.parametrize("name", MEASURED)
def test_the_file_says_what_was_measured(name):
    sparse, reason = MEASURED[name]
    found = judge(web.converted(VARIANTS[name](), sparse=True))
    assert found.sparse == sparse and not found.wrong, str(found)
    if not sparse:
        assert all(reason in one.reason for one in found.clusters), str(found)
    assert ("computed sparsely" in str(found)) or not found.clusters


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_would_be_computed_wrong_is_stored_densely(name, tmp_path):
    model = VARIANTS[name]()
    found = judge(web.converted(model, sparse=True))
    assert "cannot end one" in found.wrong
    path = tmp_path / "m.tflite"
    made = tt.export.write(model, path, format="litert")
    assert made.sparse_tensors == 0
    assert any("stored densely" in note for note in made.notes)
    assert not tt.export.sparse_inference(path).wrong


def test_a_dense_file_is_computed_densely():
    found = judge(web.converted(VARIANTS["as it should be"](), sparse=False))
    assert not found.sparse
    assert "stored sparsely" in found.clusters[0].reason


def test_the_table_of_measurements_agrees_in_webassembly():
    web.FLAGS.unparse_flags()
    web.FLAGS(["web"])
    if web.missing() or not web._installed().exists():
        pytest.skip("@litertjs/core is not installed in benchmarks/web")
    names = ["as it should be", "flattened", "max pooling"]
    text, wrong = web.variants(names, rounds=1)
    assert wrong == 0 and text.count("| sparse | sparse |") == 1, text
