"""Keys: what shares a stage and what does not."""
import json
import os
from collections import Counter
from pathlib import Path

import pytest
from fakes import cells, config, stages, write_llava

from compressors.errors import UsageError
from experiments import fingerprint
from experiments.plan import files, plan


def same(kind: str, one: list[str], other: list[str]) -> bool:
    return stages(*one)[kind].key == stages(*other)[kind].key


def test_the_stages_of_a_cell():
    found = stages("compressor=sap+embq")
    assert list(found) == ["data", "features test", "features pretrain", "pretrain", "finetune", "evaluate"]
    assert set(found["evaluate"].inputs) == {"data", "features", "finetune"}
    assert set(found["finetune"].inputs) == {"data", "features", "pretrain"}
    assert found["features pretrain"].roles == ("pretrain", "train")


def test_blind_has_neither_features_nor_pretraining():
    assert list(stages("compressor=none")) == ["data", "finetune", "evaluate"]


@pytest.mark.parametrize("override", ["tower.train=true", "tower.cache=false"])
def test_no_features_of_a_tower_that_runs_along(override):
    assert list(stages(override)) == ["data", "pretrain", "finetune", "evaluate"]


def test_query_modules_share_pretraining():
    base = ["compressor=sap"]
    for other in (["compressor=sap+embq"], ["compressor=sap+embq", "embq.at=2", "embq.dim=32"]):
        assert same("pretrain", base, other)
        assert not same("finetune", base, other)


@pytest.mark.parametrize(("override", "changed"), [
    ("seed=1", {"pretrain", "finetune", "evaluate"}),
    ("finetune.lr=0.5", {"finetune", "evaluate"}),
    ("pretrain.lr=0.5", {"pretrain", "finetune", "evaluate"}),
    ("sap.rate=2", {"pretrain", "finetune", "evaluate"}),
    ("sap.rate=3", set()),  # the default
    ("embq.dim=65", {"finetune", "evaluate"}),
    ("projector=linear", {"pretrain", "finetune", "evaluate"}),
    ("mlp2x_gelu.depth=3", {"pretrain", "finetune", "evaluate"}),
    ("tower.select_layer=-2", {"features test", "features pretrain", "pretrain", "finetune", "evaluate"}),
    ("llm.source=hub/other", {"pretrain", "finetune", "evaluate"}),
    ("prompt.user=Q:", {"pretrain", "finetune", "evaluate"}),
    ("evaluate.limit=5", {"evaluate"}),
    ("data.test=tune", {"features test", "evaluate"}),
    ("data.seed=1", {"data", "features test", "features pretrain", "pretrain", "finetune", "evaluate"}),
    ("data.workers=3", set()),
    ("trainer.logger=none", set()),
    ("out=elsewhere", set()),
])
def test_what_a_setting_changes(override, changed):
    before, after = stages("compressor=sap+embq"), stages("compressor=sap+embq", override)
    assert {kind for kind in before if before[kind].key != after[kind].key} == changed


def test_other_training_data_keeps_pretraining(tmp_path):
    """Features come in groups, but a training stage's key does not depend on who shares its cache."""
    path = write_llava(tmp_path / "mine.json", images=True)
    before, after = stages(), stages(f"data.train={path}")
    assert before["pretrain"].key == after["pretrain"].key
    assert before["features pretrain"].key != after["features pretrain"].key
    assert same("pretrain", [], ["tower.cache=false"])


def test_tiles_do_not_touch_stage_1():
    tiled = stages("image.tiles=2")
    assert tiled["pretrain"].key == stages()["pretrain"].key
    assert [s.roles for s in tiled.values() if s.kind == "features"] == [("test",), ("pretrain",), ("train",)]


def test_image_rate_has_features_of_its_own():
    assert not same("features test", ["compressor=sap"], ["compressor=downsample"])
    assert not same("features test", ["compressor=downsample"],
                    ["compressor=downsample", "downsample.rate=2"])
    assert same("features test", ["compressor=sap"], ["compressor=avg_pool"])


def test_keys_outlive_the_process():
    """A change of this key means that everybody's finished runs are computed again: do it on purpose."""
    stage = stages()["data"]
    text = json.dumps(stage.describe(), sort_keys=True, separators=(",", ":"))
    assert stage.key == fingerprint.digest_of(json.loads(text))
    assert stage.name == f"data/{stage.key[:16]}"


def fresh(*overrides: str):
    fingerprint.data_file.cache_clear()
    fingerprint.source.cache_clear()
    return stages(*overrides)


def test_files_are_known_by_content(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    write_llava(one / "a.json", images=True)
    one.joinpath("b.json").write_bytes((one / "a.json").read_bytes())
    key = fresh(f"data.train={one / 'a.json'}")["finetune"].key
    assert fresh(f"data.train={one / 'b.json'}")["finetune"].key == key
    one.rename(two)
    assert fresh(f"data.train={two / 'a.json'}")["finetune"].key == key
    os.utime(two / "0.png", (1, 1))
    assert fresh(f"data.train={two / 'a.json'}")["finetune"].key != key
    blind = fresh(f"data.train={two / 'a.json'}", "compressor=none")["finetune"].key
    os.utime(two / "0.png", (2, 2))
    assert fresh(f"data.train={two / 'a.json'}", "compressor=none")["finetune"].key == blind


def test_local_weights_are_known_by_names_sizes_and_times(tmp_path):
    (tmp_path / "model.safetensors").write_text("weights")
    key = fresh(f"llm.source={tmp_path}")["finetune"].key
    os.utime(tmp_path / "model.safetensors", (1, 1))
    assert fresh(f"llm.source={tmp_path}")["finetune"].key != key


@pytest.mark.parametrize(("overrides", "message"), [
    (["data.train=trian"], "data.train=trian: no split of picture_vqa; did you mean 'train'"),
    (["data.dataset=null"], "data.dataset is null"),
    (["data.train=[]"], "data.train: no data; give data.train=FILE.json"),
    (["data.train=missing.json"], "missing.json: no such file"),
])
def test_bad_data(overrides, message):
    with pytest.raises(UsageError, match=message):
        plan(config(*overrides))


def test_files_of_a_role(tmp_path):
    path = write_llava(tmp_path / "mine.json")
    found = config(f"data.train=[train,{path}]", "data.images=pictures")
    data = Path("runs/data/0123")
    assert files(found, {"data": data}, "train") == [
        (data / "picture_vqa" / "train.json", None), (path, Path("pictures"))]


def test_a_thousand_cells_share_what_they_agree_on():
    lrs, dims = (",".join(map(str, range(1, 11))) for _ in range(2))
    found = cells("compressor=sap,sap+embq", "seed=0,1,2,3,4", f"embq.dim={dims}", f"finetune.lr={lrs}")
    stages_found = {k: s for cell in found for k, s in plan(cell.config).ancestors().items()}
    assert len(found) == 1000
    assert Counter(s.kind for s in stages_found.values())["pretrain"] == 5
