"""The short version of `stress.py`: everything that may happen to a sweep, once."""

import pytest
from stress import EVENTS, stress


@pytest.mark.slow
def test_a_sweep_under_stress(tmp_path):
    assert stress(tmp_path, len(EVENTS)).happened[: len(EVENTS)] == list(EVENTS)
