"""The sockets of `experiments`: whatever is offered in an entry-point group is what its room says it is."""

import sys
import types
from importlib.metadata import EntryPoint

import pytest
from torchmetrics import Metric

import compressors.registry
from compressors.errors import UsageError
from compressors.registry import Registry
from experiments.data.embedded import EmbeddedDataset
from experiments.registries import datasets, launchers, metrics


@pytest.mark.parametrize("name", datasets.names())
def test_data_sets_write_what_they_count(name, tmp_path):
    dataset = datasets.create(name, seed=3, scale=0.001)
    assert isinstance(dataset, EmbeddedDataset) and dataset.version >= 1
    scenes = []
    dataset.write(tmp_path / name, lambda done, total: scenes.append((done, total)))
    assert scenes[-1] == (dataset.count_scenes(), dataset.count_scenes()) and len(scenes) == scenes[-1][0]
    assert all((tmp_path / name / f"{split}.json").is_file() for split in dataset.splits)


@pytest.mark.parametrize("name", metrics.names())
def test_metrics_are_torchmetrics(name):
    assert isinstance(metrics.create(name), Metric)


def test_exact_match_scores_one_answer():
    exact = metrics.create("exact")
    assert exact.score("The fox.", "fox") == 1 and exact.score("a dog", "fox") == 0


@pytest.mark.parametrize("name", launchers.names())
def test_launchers_load(name):
    assert launchers.get(name).registered_name == name


def test_names_are_there_without_importing_anything():
    assert {"picture_vqa"} <= set(datasets.names())
    assert {"exact", "vqa", "anls", "relaxed", "choice", "pope", "mme"} <= set(metrics.names())
    assert {"local", "slurm"} <= set(launchers.names())


def test_an_outside_package_offers_a_data_set(monkeypatch):
    module = types.ModuleType("outside_data")
    module.Outside = type("Outside", (EmbeddedDataset,), {"version": 7, "splits": ("train",)})
    monkeypatch.setitem(sys.modules, "outside_data", module)
    point = EntryPoint("outside", "outside_data:Outside", "slothkit.datasets")
    monkeypatch.setattr(compressors.registry, "entry_points", lambda group: {point.group: [point]}[group])
    registry = Registry("data set", group="slothkit.datasets")
    assert registry.names() == ["outside"] and registry.get("outside").version == 7
    with pytest.raises(UsageError, match="unknown data set 'outsid'; did you mean 'outside'"):
        registry.get("outsid")
