import pytest

from tests.pruning.criteria.oracle import tiny_net


@pytest.fixture
def tiny():
    return tiny_net("float64")
