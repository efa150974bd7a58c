"""Data loader workers: what goes wrong in one comes out as it does without them."""

import errno
import os

import pytest
import torch
from small_runs import make_config, run, write_backbones, write_data

from compressors.errors import UsageError
from experiments.config.schema_sections import OptimisationSettings
from experiments.data.loader import StepLoader
from experiments.data.order import SampleOrder


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_one_line(tmp_path, workers):
    write_backbones(tmp_path)
    write_data(tmp_path, 8)
    os.truncate(tmp_path / "1.png", 70)
    config = make_config(tmp_path)
    config.data.workers = str(workers)
    with pytest.raises(UsageError) as refused:
        run("pretrain", config, {}, tmp_path / "out")
    line = str(refused.value)
    assert f"image {tmp_path / '1.png'}" in line
    assert "\n" not in line and "Traceback" not in line and len(line) < len(str(tmp_path)) + 300


class Failing:
    """A data set whose rows raise."""

    bad_rows = 0

    def __init__(self, error):
        self.error = error

    def __getitem__(self, index):
        raise self.error


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EIO, "Input/output error", "a.png"), "[Errno 5] Input/output error: 'a.png'"),
        (UsageError("a.png: no picture"), "a.png: no picture"),
    ],
)
def test_an_error_keeps_its_kind_and_words(workers, error, said):
    order = SampleOrder(4, OptimisationSettings(batch_size=2), seed=0)
    with pytest.raises(type(error)) as raised:
        next(iter(StepLoader(Failing(error), order, workers=workers)))
    assert str(raised.value) == said and vars(raised.value) == vars(error)
    assert getattr(raised.value, "errno", None) == getattr(error, "errno", None)


def test_workers_change_no_weight(tmp_path):
    write_backbones(tmp_path)
    write_data(tmp_path, 16, frozenset({3, 7}))
    config = make_config(tmp_path)
    alone = run("pretrain", config, {}, tmp_path / "alone")
    config.data.workers = "2"
    helped = run("pretrain", config, {}, tmp_path / "helped")
    assert alone.keys() == helped.keys() and all(torch.equal(alone[name], helped[name]) for name in alone)
