"""xdist's workers share the cores: one thread a test, and a command that it starts.

Tiny models and tokenizers are in `factories.py`."""

import gc
import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # a hub out of reach is asked six times, for 23 seconds
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# threads that wait for each other on cores that are taken make a step of training ten times as long
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("COLUMNS", None)  # xdist's workers have the width of its terminal
torch.set_num_threads(1)

gc.disable()  # until all tests are collected, which makes millions of objects and throws none away


def pytest_collection_finish() -> None:
    """What collection has made stays to the end: looking through it again is 3 to 4 % of a test's time."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _seed() -> None:
    """A test's random numbers do not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _one_core(monkeypatch) -> None:
    """A sweep that a test runs starts no workers unless the test asks for them."""
    from experiments.sweep import side_by_side

    monkeypatch.setattr(side_by_side, "count_cores", lambda: 1)


@pytest.fixture(scope="session", autouse=True)
def _signature_file() -> None:
    """Commands that tests start answer from this file, which the first would have to import torch for."""
    from experiments.config import signature_cache, signatures

    if signature_cache.read_signature_file(signatures.PLACES) is None:
        signatures.store_signatures()


@pytest.fixture
def broken_outside_part(monkeypatch) -> str:
    """The name of a compressor of an outside package that cannot be imported."""
    from importlib.metadata import EntryPoint

    from compressors.base import registry
    from experiments.config import signatures

    point = EntryPoint("gone", "no_such:Part", registry.group)
    for owner in (registry, signatures.compressors()):
        monkeypatch.setitem(owner.entry_points, point.name, point)
    return point.name


@pytest.fixture(scope="session")
def model():
    """Phi with SAP and EmbQ, for tests that only read it."""
    from factories import make_model  # imports transformers, which reads the environment once

    return make_model()
