"""Where work outside Lightning runs."""

import pytest
import torch

from compressors.errors import UsageError
from compressors.key_value import parse_settings
from experiments.config.devices import pick_device
from experiments.config.metric_names import collect_metric_options
from experiments.config.schema_sections import TrainerSettings
from experiments.sweep import checks
from experiments.sweep.request import read_request


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({}, "cuda:0"),
        ({"devices": "2"}, "cuda:0"),
        ({"devices": "[1]"}, "cuda:1"),
        ({"devices": "[2, 3]"}, "cuda:2"),
        ({"accelerator": "cpu", "devices": "[1]"}, "cpu"),
        ({"accelerator": "mps"}, "cpu"),
    ],
)
def test_features_and_answers_are_computed_where_training_begins(monkeypatch, trainer, expected):
    """A card of a shared machine that `trainer.devices=[1]` leaves alone may be somebody else's."""
    settings = TrainerSettings(**trainer)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(settings) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device(settings) == torch.device(expected)


def test_a_judge_runs_where_answers_are_computed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    request = read_request(parse_settings(["compressor=sap", "trainer.devices=[1]", "blind=false"]))
    options = collect_metric_options(request.jobs[0][0].config)
    assert options["judge"]["device"] == torch.device("cuda:1")


@pytest.mark.parametrize("devices", ["2", "[1]", "[0,1]"])
def test_workers_that_have_a_gpu_each_refuse_others(monkeypatch, devices):
    monkeypatch.setattr(checks, "list_gpus", lambda wanted: ["0", "1"] if wanted else [])
    settings = ["compressor=sap", f"trainer.devices={devices}", "blind=false"]

    def check(*more: str) -> None:
        request = read_request(parse_settings([*settings, *more]))
        checks.check_worker_devices(request.jobs[0][0].config, request.launch)

    check()
    check("launch.workers=1")
    check("launch.workers=2", "trainer.accelerator=cpu")
    for option in ("launch.workers=2", "launch.workers=auto", "launch.threads=4"):
        with pytest.raises(UsageError) as error:
            check(option)
        assert str(error.value).startswith(f"trainer.devices={devices}: a worker has one GPU")
