"""A network small enough for its whole Hessian, and points for it."""

import numpy as np
import pytest

from tests import gallery
from tests.conftest import compiled


def tiny():
    return compiled(gallery.tiny())


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    return rng.normal(size=(20, 3)).astype("float32"), rng.integers(0, 3, 20)
