"""Trained models in keys: by what is in them, not by where they lie; and how they are named."""

import json
import os
import shutil

import huggingface_hub.constants
import pytest
from fakes import SOURCES, FakeRunner, cells, config, stages, write_llava
from omegaconf import OmegaConf
from rich.console import Console

from compressors.errors import UnreachableError, UsageError
from compressors.key_value import parse_settings
from experiments.config.cells import make_blind_cells
from experiments.config.trained import find_trained_model
from experiments.models import saved
from experiments.models.saved import find_named_model, load_trained_model
from experiments.runtime.memory import begin_request
from experiments.store import part_code
from experiments.store.edited_files import refuse_edited_files
from experiments.store.folder import list_settings
from experiments.store.store import Store
from experiments.sweep.plan_view import make_plan, make_plan_tables
from experiments.sweep.request import read_request


@pytest.fixture
def trained(tmp_path):
    """A folder that says that it is a model of ours, with something for weights."""
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "slothkit"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def keys(*overrides: str) -> dict[str, str]:
    return {kind: stage.key for kind, stage in stages(*overrides).items()}


def changed(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {kind for kind in one.keys() | other.keys() if one.get(kind) != other.get(kind)}


def test_stage_2_from_a_trained_model_has_no_stage_1(trained):
    found = stages(f"finetune.init={trained}")
    assert list(found) == ["data", "features test", "features pretrain", "finetune", "evaluate"]
    usual = stages()
    for kind in ("data", "features test", "features pretrain"):  # which are there already
        assert found[kind].key == usual[kind].key
    assert changed(keys(), keys(f"pretrain.init={trained}")) == {"pretrain", "finetune", "evaluate"}
    assert changed(keys(), keys(f"finetune.teacher={trained}")) == {"finetune", "evaluate"}


def test_without_a_stage_1_its_files_are_not_asked_for(trained, tmp_path):
    path = write_llava(tmp_path / "data.json", images=True)
    files = ["data.dataset=null", f"data.train={path}", f"data.test={path}"]
    found = stages(f"finetune.init={trained}", "data.pretrain=[]", *files)
    assert found["features train"].roles == ("train",)
    with pytest.raises(UsageError, match="data.pretrain: no data"):
        stages("data.pretrain=[]", *files)


def test_what_is_not_used_is_in_no_key(trained):
    usual = keys()
    assert keys(f"finetune.teacher={trained}", "finetune.teacher_weight=0") == usual


def test_a_moved_model_keeps_the_key_and_a_changed_one_does_not(trained, tmp_path):
    for setting in ("finetune.init", "pretrain.init", "finetune.teacher"):
        before = keys(f"{setting}={trained}")
        moved = tmp_path / setting
        shutil.copytree(trained, moved)
        assert keys(f"{setting}={moved}") == before
        (moved / "merges.txt").write_text("a b")  # of a tokenizer
        with_merges = keys(f"{setting}={moved}")
        assert "finetune" in changed(before, with_merges)
        (moved / "model.safetensors").write_bytes(b"Weights")
        assert "finetune" in changed(with_merges, keys(f"{setting}={moved}"))


def test_a_file_that_changes_under_the_same_size_in_one_process(trained):
    before = keys(f"finetune.init={trained}")
    weights = trained / "model.safetensors"
    weights.write_bytes(b"WEIGHTS")
    os.utime(weights, ns=(1, 1))
    assert changed(before, keys(f"finetune.init={trained}")) == {"finetune", "evaluate"}


def test_parts_are_in_the_key_and_spelling_out_all_is_not(trained):
    every = f"finetune.init={trained}", "compressor=sap"
    spelled = keys(*every, "finetune.init_parts=[llm,projector,tower,compressor]")
    assert spelled == keys(*every)
    assert changed(spelled, keys(*every, "finetune.init_parts=llm")) == {"finetune", "evaluate"}


def test_without_a_stage_1_nobody_reads_its_data(trained, tmp_path):
    usual = keys(f"finetune.init={trained}")
    for entry in ("nowhere.json", str(write_llava(tmp_path / "mine.json", images=True))):
        found = stages(f"finetune.init={trained}", f"data.pretrain={entry}")
        assert found["finetune"].key == usual["finetune"]
        assert found["features train"].roles == ("train",)


def test_query_modules_share_a_stage_1_that_starts_from_trained_weights(trained):
    one = keys(f"pretrain.init={trained}", "compressor=sap")
    other = keys(f"pretrain.init={trained}", "compressor=sap+embq")
    assert changed(one, other) == {"finetune", "evaluate"}


def test_the_knobs_of_a_teacher_are_in_the_key(trained):
    base = keys(f"finetune.teacher={trained}")
    for knob in ("teacher_weight=0.5", "teacher_temperature=2"):
        other = keys(f"finetune.teacher={trained}", f"finetune.{knob}")
        assert changed(base, other) == {"finetune", "evaluate"}


def test_the_code_of_a_teacher_s_own_parts_is_in_the_key(trained, monkeypatch):
    """Which answers otherwise than before it was edited, though its folder is as it was."""
    settings = {
        "model_type": "slothkit",
        "compressor": "matryoshka",
        "query_module": "embq",
        "projector": "linear",
    }
    (trained / "config.json").write_text(json.dumps({**settings, "compressor_knobs": {"host": "sap"}}))
    shipped = keys(f"finetune.teacher={trained}", "compressor=avg_pool")
    versions: dict[str, str] = {}
    monkeypatch.setattr(part_code, "find_version", lambda _, name: versions.get(name, 0))
    for name in ("matryoshka", "sap", "embq", "linear"):
        found = []
        for version in ("one", "two"):
            versions[name] = version
            found.append(keys(f"finetune.teacher={trained}", "compressor=avg_pool"))
        assert changed(*found) == changed(shipped, found[0]) == {"finetune", "evaluate"}
        versions.clear()
    assert keys(f"finetune.teacher={trained}", "compressor=avg_pool") == shipped


def test_a_blind_row_starts_from_the_same_llm(trained):
    [blind] = make_blind_cells(cells(f"pretrain.init={trained}", f"finetune.teacher={trained}"))
    start = blind.config.find_start("finetune")
    assert start.source == str(trained) and start.parts == ("llm",)
    assert blind.config.pretrain.init is None and not blind.config.has_teacher
    [blind] = make_blind_cells(cells(f"finetune.init={trained}", "finetune.init_parts=[compressor]"))
    assert blind.config.find_start("finetune") is None
    both = make_blind_cells(cells(f"finetune.init=null,{trained}"))
    assert [cell.label for cell in both] == ["blind finetune.init=null", f"blind finetune.init={trained}"]


def test_the_plan_shows_it(trained, tmp_path):
    words = [f"finetune.init={trained}", f"finetune.teacher={trained}", "finetune.init_parts=[llm]"]
    request = read_request(parse_settings([*words, "compressor=sap", "llm.source=a/b", "tower.source=a/b"]))
    console = Console(record=True, width=400)
    plan = make_plan(request.jobs, Store(tmp_path, runner=FakeRunner(tmp_path / "log")))
    for table in make_plan_tables(plan, request):
        console.print(table)
    assert f"finetune (from {trained}: llm, teacher {trained})" in console.export_text()


# ---- names ----


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["finetune.init_parts=[llm,towr]"], "finetune.init_parts=towr: must be one of tower, compressor, "),
        (["pretrain.init=a", "finetune.init=b"], "pretrain.init=a: finetune.init=b leaves stage 1 out"),
        (
            ["pretrain.init=a", "compressor=none"],
            "no stage 1; give finetune.init=a finetune.init",
        ),
        (
            ["pretrain.init=a", "finetune.init_parts=[llm]"],
            "starts from pretrain.init=a; give pretrain",
        ),
        (
            ["finetune.init=a", "pretrain.init_parts=[llm]"],
            "starts from finetune.init=a; give finetune",
        ),
        (["finetune.teacher=a", "compressor=none"], "finetune.teacher=a: compressor=none sees no image"),
        (["pretrain.teacher=a"], "unknown setting 'pretrain.teacher'"),
        (["finetune.teacher_temperature=0"], "teacher_temperature=0.0: must be at least 0.001"),
        (["finetune.teacher_weight=-1"], "teacher_weight=-1.0: must be at least 0"),
    ],
)
def test_settings_that_are_refused(overrides, message):
    with pytest.raises(UsageError) as caught:
        config(*overrides)
    assert message in str(caught.value)


def finish_cell(root, name: str, trained) -> None:
    """A finished cell's directory below an output directory."""
    cell = root / "cells" / name
    cell.mkdir(parents=True)
    (cell / "stages.json").write_text(json.dumps(["data/0", "finetune/1", "evaluate/2"]))
    shutil.copytree(trained, root / "finetune/1/model")


def test_a_cell_has_a_name_and_a_path(trained, tmp_path):
    finish_cell(tmp_path / "out", "sap_seed=0-12345678", trained)
    model = tmp_path / "out/finetune/1/model"
    out = f"out={tmp_path / 'out'}"
    expected = keys(out, f"finetune.init={trained}")
    for name in ("sap_seed=0-12345678", tmp_path / "out/cells/sap_seed=0-12345678", model.parent, model):
        assert keys(out, f"finetune.init={name}") == expected


def test_a_cell_needs_no_seed_and_key_where_it_is_the_only_one(trained, tmp_path):
    finish_cell(tmp_path, "sap_seed=0-12345678", trained)
    model = tmp_path / "finetune/1/model"
    for name in ("sap", "sap_seed=0", "sap_seed=0-12345678"):
        assert find_named_model(name, None, tmp_path, f"load({name!r})") == model
    names = ("sap_seed=1-12345678", "1_query_seed=0-12345678", "wide-sap_seed=0-12345678")
    for name in names:
        shutil.copytree(tmp_path / "cells/sap_seed=0-12345678", tmp_path / "cells" / name)
    for name in ("1 query", "sap_seed=1", "wide-sap"):
        assert find_named_model(name, None, tmp_path, "") == model
    with pytest.raises(UsageError) as caught:
        load_trained_model("sap", out=tmp_path)
    cells = "sap_seed=0-12345678, sap_seed=1-12345678"
    assert str(caught.value) == f"load('sap'): several finished cells below {tmp_path}: {cells}; give one"
    (tmp_path / "cells" / "wide-sap_seed=0-12345678" / "stages.json").write_text("{}")
    with pytest.raises(UsageError, match=r"^load\('wide-sap'\): .*stages.json: names no finetune stage"):
        load_trained_model("wide-sap", out=tmp_path)
    # a label that another one begins with, as far as a hyphen
    with pytest.raises(UsageError, match=r"^load\('wide'\): neither a finished cell"):
        load_trained_model("wide", out=tmp_path)
    with pytest.raises(UsageError, match=r"^load\('spa'\): neither a finished cell .*Known: 1_query"):
        load_trained_model("spa", out=tmp_path)


@pytest.mark.parametrize("setting", ["finetune.teacher", "finetune.init", "pretrain.init"])
def test_a_cell_that_a_sweep_makes_of_another_one_of_its_name(trained, tmp_path, setting):
    """It may finish before the next seed's stages look for the first one, and the line is typed again."""
    finish_cell(tmp_path, "sap_seed=0-12345678", trained)
    line = parse_settings(["compressor=sap", "seed=0,1", "blind=false", f"out={tmp_path}", f"{setting}=sap"])
    asked = read_request({**SOURCES, **line})
    made = tmp_path / "cells/sap_seed=0-87654321"
    shutil.copytree(tmp_path / "cells/sap_seed=0-12345678", made)
    cell, stage = asked.jobs[0]
    (made / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(list_settings(cell.config))))
    refuse_edited_files(stage.inputs["finetune"])
    again = read_request({**SOURCES, **line})
    assert [stage.key for _, stage in again.jobs] == [stage.key for _, stage in asked.jobs]
    (made / "config.yaml").write_text("compressor: sap\n")
    with pytest.raises(UsageError, match=f"^{setting}=sap: several finished cells below"):
        read_request({**SOURCES, **line})


def test_without_a_name_the_cell_that_finished_last_is_loaded(trained, tmp_path, monkeypatch):
    for number, name in enumerate(("sap_seed=0-12345678", "avg_pool_seed=0-12345678")):
        finish_cell(tmp_path / str(number), name, trained)
        cell = tmp_path / str(number) / "cells" / name
        (cell / "config.yaml").write_text("compressor: sap\n")
        os.utime(cell / "stages.json", (number, number))
    shutil.copytree(tmp_path / "0/cells", tmp_path / "1/cells", dirs_exist_ok=True)
    os.utime(tmp_path / "1/cells/sap_seed=0-12345678/stages.json", (9, 9))
    loaded = []
    monkeypatch.setattr(saved, "find_named_model", lambda model, *_: loaded.append(model) or trained)
    monkeypatch.setattr(saved.saved, "load_saved_model", lambda *_: ("model", "processor"))
    assert load_trained_model(out=tmp_path / "1") == ("model", "processor")
    assert [path.name for path in loaded] == ["sap_seed=0-12345678"]


@pytest.mark.parametrize("name", ["sap_seed=0-1234567", "nowhere/at/all", "", "cells/x"])
def test_a_name_that_nothing_has(trained, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    finish_cell(tmp_path, "sap_seed=0-12345678", trained)
    with pytest.raises(UsageError) as caught:
        find_trained_model(name, ".", "finetune.init")
    line = str(caught.value)
    assert line.startswith(f"finetune.init={name}: neither a finished cell below . nor a folder")
    assert "\n" not in line and "sap_seed=0-12345678; give " in line


def test_cells_that_begin_as_a_name_does_are_listed(trained, tmp_path):
    names = ["sap_metric=contains_seed=0-12345678", "sap_metric=exact_seed=0-12345678"]
    finish_cell(tmp_path, names[0], trained)
    for name in (names[1], "avg_pool_seed=0-12345678"):
        shutil.copytree(tmp_path / "cells" / names[0], tmp_path / "cells" / name)
    with pytest.raises(UsageError, match=f"nor a folder; of those that begin so: {', '.join(names)}; give "):
        find_trained_model("sap", str(tmp_path), "model")
    with pytest.raises(UsageError, match="nor a folder; no cell has finished there; give "):
        find_trained_model("sap", str(tmp_path / "empty"), "model")


def test_a_cell_without_its_weights_says_so(trained, tmp_path):
    name = "sap_seed=0-12345678"
    finish_cell(tmp_path, name, trained)
    gone = r"^model=sap: its weights \(finetune/1\) are gone; run its sweep's command again$"
    (tmp_path / "finetune/1/model/model.safetensors").unlink()
    with pytest.raises(UsageError, match=gone):
        find_named_model("sap", None, tmp_path, "model=sap")
    shutil.rmtree(tmp_path / "finetune")
    with pytest.raises(UsageError, match=gone):
        find_named_model("sap", None, tmp_path, "model=sap")


def test_damaged_cells_are_passed_over_for_the_newest(trained, tmp_path):
    finish_cell(tmp_path, "sap_seed=0-12345678", trained)
    whole = tmp_path / "cells/sap_seed=0-12345678"
    (whole / "config.yaml").write_text("compressor: sap\n")
    for age, name in enumerate(("unset", "untrained")):
        cell = tmp_path / "cells" / name
        shutil.copytree(whole, cell)
        os.utime(cell / "stages.json", (2e9 + age, 2e9 + age))
    (tmp_path / "cells/unset/config.yaml").unlink()
    (tmp_path / "cells/untrained/stages.json").write_text('["finetune/2"]')
    os.utime(tmp_path / "cells/untrained/stages.json", (3e9, 3e9))
    assert saved.find_newest_cell(tmp_path) == whole
    shutil.rmtree(whole)
    with pytest.raises(UsageError, match=r"is whole: .*/untrained: its weights \(finetune/2\) are gone; run"):
        saved.find_newest_cell(tmp_path)
    shutil.rmtree(tmp_path / "cells/untrained")
    with pytest.raises(UsageError, match=r"is whole: .*/unset/config.yaml: no such file; run its sweep's"):
        saved.find_newest_cell(tmp_path)


def test_a_folder_that_is_no_model_of_ours(trained):
    (trained / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UsageError, match="^finetune.init=.*: a model of type llama, not slothkit"):
        stages(f"finetune.init={trained}")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's cache of a machine that reaches no hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    begin_request()
    return tmp_path / "hub"


def test_a_model_of_the_hub_by_its_revision(hub, trained):
    repository = hub / "models--me--sloth"
    shutil.copytree(trained, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("a" * 40)
    shutil.copytree(trained, repository / "snapshots" / ("b" * 40))
    (repository / "snapshots" / ("b" * 40) / "model.safetensors").write_bytes(b"others")
    main = keys("finetune.init=me/sloth")
    folder = repository / "snapshots" / ("a" * 40)
    assert find_named_model("me/sloth", None, "runs", "") == folder
    assert find_named_model("me/sloth", "a" * 40, "runs", "") == folder
    assert main == keys(f"finetune.init={trained}") == keys(f"finetune.init=me/sloth@{'a' * 40}")
    assert changed(main, keys(f"finetune.init=me/sloth@{'b' * 40}")) == {"finetune", "evaluate"}


@pytest.mark.usefixtures("hub")
def test_a_hub_that_is_out_of_reach():
    with pytest.raises(UnreachableError, match="^finetune.teacher=me/sloth@v2: cannot be fetched") as caught:
        stages("finetune.teacher=me/sloth@v2")
    assert "\n" not in str(caught.value)
