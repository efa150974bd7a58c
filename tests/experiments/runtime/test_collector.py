"""Cycles are looked for again after imports, however these end, unless they were not before."""

import gc
import importlib
import sys

import pytest

from experiments.runtime.collector import spare_modules_from_collector


@pytest.fixture(autouse=True)
def thaw():
    yield
    gc.unfreeze()


def test_the_search_goes_on_behind_the_imports():
    with pytest.raises(KeyError), spare_modules_from_collector():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()


def test_one_within_another_leaves_the_search_off():
    with spare_modules_from_collector():
        with spare_modules_from_collector():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_what_is_loaded_is_left_out_and_nothing_else_is():
    gc.unfreeze()
    with spare_modules_from_collector():
        made = [object() for _ in range(3)]
    assert gc.get_freeze_count() == 0 and len(made) == 3
    sys.modules.pop("colorsys", None)
    with spare_modules_from_collector():
        importlib.import_module("colorsys")
    assert gc.get_freeze_count() > 0
