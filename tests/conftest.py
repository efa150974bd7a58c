"""Two cores are shared with xdist's workers: one thread a test. Tiny models and tokenizers are in `factories.py`."""
import os

import pytest
import torch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    """A test's random numbers do not depend on the tests before it."""
    torch.manual_seed(0)
