"""A few random graphs; `benchmarks.fuzz_channels` checks hundreds."""

import pytest

from tests.stress.graphs import Wrong, check


@pytest.mark.parametrize("seed", range(4))
def test_what_is_smaller_or_folded_says_the_same(seed):
    found = check(seed)
    assert len(found.kinds) > 5


def test_a_mistake_would_be_found(monkeypatch):
    """A bias that takes nothing over is a difference."""
    from tf_tickets.structured.readers import Readers

    monkeypatch.setattr(Readers, "biases", lambda self, removed: {})
    with pytest.raises(Wrong):
        for seed in range(6):
            check(seed)
