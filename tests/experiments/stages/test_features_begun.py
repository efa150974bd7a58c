"""Features that a killed run has begun: what is whole is gone on from, all else is computed again."""

import os

import numpy as np
import pytest
from numpy.lib.format import open_memmap

from experiments.data.feature_cache import FEATURES_FILE
from experiments.stages.features import PROGRESS_FILE, _open_features

SHAPE = (6, 2, 2, 3)


@pytest.fixture
def begun(tmp_path):
    array = open_memmap(tmp_path / FEATURES_FILE, mode="w+", dtype=np.float16, shape=SHAPE)
    array[:4] = 1
    array.flush()
    (tmp_path / PROGRESS_FILE).write_text("4")
    return tmp_path


def test_a_whole_one_is_gone_on_from(begun):
    array, done = _open_features(begun, SHAPE)
    assert done == 4 and array[:4].all() and not array[4:].any()


@pytest.mark.parametrize("name", [FEATURES_FILE, PROGRESS_FILE])
@pytest.mark.parametrize("content", [None, b"", b"\xff\x00", b"-3", b"700"])
def test_a_damaged_one_or_a_pipe_is_begun_again(begun, name, content):
    (begun / name).unlink()
    if content is None:
        os.mkfifo(begun / name)
    else:
        (begun / name).write_bytes(content)
    array, done = _open_features(begun, SHAPE)
    assert (done, array.shape, array.dtype) == (0, SHAPE, np.float16)
