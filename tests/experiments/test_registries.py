"""The sockets of `experiments`: whatever is offered in an entry-point group is what its room says it is."""

import configparser
import sys
import types
from pathlib import Path

import pytest
from outside import offer_parts
from torchmetrics import Metric

from compressors.errors import UsageError
from compressors.registry import Registry
from experiments import registries
from experiments.config.schema import Config
from experiments.config.schema_sections import list_dataset_choices
from experiments.config.settings import conform_setting
from experiments.data.embedded import EmbeddedDataset
from experiments.registries import datasets, launchers, metrics

KINDS = {"datasets": datasets, "metrics": metrics, "launchers": launchers}


def read_own_entry_points() -> list[tuple[str, str, str]]:
    """(registry, name, value) of all that setup.cfg offers to these registries."""
    parser = configparser.ConfigParser()
    parser.read(Path(registries.__file__).parents[1] / "setup.cfg")
    offered = parser["options.entry_points"]
    rows = []
    for key, registry in KINDS.items():
        for line in offered[registry.group].strip().splitlines():
            name, value = line.split("=")
            rows.append((key, name.strip(), value.strip()))
    return rows


OWN = read_own_entry_points()


@pytest.mark.parametrize(("key", "name", "value"), OWN, ids=[f"{key}-{name}" for key, name, _ in OWN])
def test_what_setup_cfg_offers_loads(key, name, value):
    """A name that is not there: `pip install -e .` has to run again."""
    registry = KINDS[key]
    assert name in registry.names()
    offered = registry.get(name)
    module, _, attribute = value.partition(":")
    assert (offered.__module__, offered.__name__) == (module, attribute)
    assert offered.registered_name == name and offered.__doc__


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
    assert {"exact", "vqa", "anls", "relaxed", "choice", "pope", "mme", "judge"} <= set(metrics.names())
    assert {"local", "slurm"} <= set(launchers.names())


def test_an_outside_package_offers_a_data_set(monkeypatch):
    module = types.ModuleType("outside_data")
    module.Outside = type("Outside", (EmbeddedDataset,), {"version": 7, "splits": ("train",)})
    monkeypatch.setitem(sys.modules, "outside_data", module)
    offer_parts(monkeypatch, "slothkit.datasets", ("outside", "outside_data:Outside"))
    registry = Registry("data set", group="slothkit.datasets")
    assert registry.names() == ["outside"] and registry.get("outside").version == 7
    with pytest.raises(UsageError, match="unknown data set 'outsid'; did you mean 'outside'"):
        registry.get("outsid")


def test_data_sets_are_choices_of_their_setting():
    assert list_dataset_choices() == (None, *datasets.names())
    assert Config().data.dataset in datasets.names()
    for name in datasets.names():
        assert conform_setting("data.dataset", name) == name


def test_a_data_set_of_a_notebook_is_a_choice():
    try:
        datasets.register("mine")(type("Mine", (), {}))
        assert conform_setting("data.dataset", "mine") == "mine"
    finally:
        datasets._classes.pop("mine")
    with pytest.raises(ValueError, match="data.dataset=mine: must be one of null, picture_vqa"):
        conform_setting("data.dataset", "mine")
