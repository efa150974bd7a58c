"""Cycles are looked for again after a pause, however it ends, unless they were not before."""

import gc

import pytest

from experiments.runtime.collector import pause_cycle_collector


def test_a_pause_ends_with_its_block():
    with pytest.raises(KeyError), pause_cycle_collector():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()


def test_a_pause_within_a_pause_leaves_it_on():
    with pause_cycle_collector():
        with pause_cycle_collector():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
