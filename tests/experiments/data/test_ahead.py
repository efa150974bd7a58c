"""Work done ahead: in order, with the errors of doing it at once, by as many processes as were asked for."""

import os

import pytest
import torch

from experiments.data import ahead
from experiments.data.ahead import count_workers, read_ahead


def name_process(number: int) -> tuple[int, int]:
    return number, os.getpid()


@pytest.mark.parametrize("workers", [0, 3])
def test_items_come_in_order(workers):
    results = list(read_ahead(name_process, range(10), workers))
    assert [number for number, _ in results] == list(range(10))
    processes = {process for _, process in results}
    assert len(processes) == max(1, workers)
    assert (os.getpid() in processes) == (workers == 0)


def test_auto_takes_the_cores_beside_a_gpu(monkeypatch):
    monkeypatch.setattr(ahead, "count_cores", lambda: 16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert count_workers("auto") == 0
    assert count_workers("3") == 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert count_workers("auto") == 8
    assert count_workers("auto", world=4) == 3
    assert count_workers("auto", world=16) == 1
