"""A few sequences of the state machine; `benchmarks.attack` runs thousands."""

import gc

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.stress.machine import Attack


@pytest.mark.filterwarnings("ignore")
def test_nothing_is_wrong_in_any_order(tmp_path):
    # What other tests have left is not looked through for models.
    gc.collect()
    gc.freeze()
    try:
        Attack.root = str(tmp_path)
        run_state_machine_as_test(
            Attack,
            settings=settings(
                max_examples=8,
                stateful_step_count=5,
                derandomize=True,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        Attack.root = None
        gc.unfreeze()
    assert Attack.sequences >= 8 and Attack.resumed
