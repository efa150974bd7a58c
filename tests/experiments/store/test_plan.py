"""Keys: what shares a stage and what does not."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
from fakes import FakeRunner, cells, config, names, stages, write_llava

import compressors
from compressors.errors import UsageError
from experiments.data.roles import locate_role_files
from experiments.runtime.memory import begin_request
from experiments.store import keys
from experiments.store.estimate import Estimator
from experiments.store.key_settings import find_image_rate
from experiments.store.plan import Stage, plan_stages
from experiments.store.store import Store
from experiments.store.workload import derive_workload
from experiments.sweep import __main__ as sweep


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


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("seed=1", {"pretrain", "finetune", "evaluate"}),
        ("finetune.lr=0.5", {"finetune", "evaluate"}),
        ("pretrain.lr=0.5", {"pretrain", "finetune", "evaluate"}),
        ("sap.rate=2", {"pretrain", "finetune", "evaluate"}),
        ("sap.rate=3", set()),  # the default
        ("embq.dim=65", {"finetune", "evaluate"}),
        ("projector=linear", {"pretrain", "finetune", "evaluate"}),
        ("mlp2x_gelu.depth=3", {"pretrain", "finetune", "evaluate"}),
        ("mlp2x_gelu.depth=2", set()),  # the default
        ("tower.select_layer=-2", {"features test", "features pretrain", "pretrain", "finetune", "evaluate"}),
        ("llm.source=hub/other", {"pretrain", "finetune", "evaluate"}),
        ("prompt.user=Q:", {"pretrain", "finetune", "evaluate"}),
        ("evaluate.limit=5", {"evaluate"}),
        ("data.test=tune", {"features test", "evaluate"}),
        ("data.seed=1", {"data", "features test", "features pretrain", "pretrain", "finetune", "evaluate"}),
        ("data.workers=3", set()),
        ("evaluate.cache=static", set()),
        ("data.validation=[tune]", set()),
        ("data.validation=[tune] validate.every=5", set()),
        ("data.train_weights=[2]", {"finetune", "evaluate"}),
        ("data.train_weights=[1]", set()),  # each row once
        ("data.pretrain_weights=[0.5]", {"pretrain", "finetune", "evaluate"}),
        ("trainer.logger=none", set()),
        ("trainer.strategy=fsdp", set()),
        ("trainer.gradient_checkpointing=true", set()),
        ("pretrain.checkpointing=true", set()),
        ("finetune.checkpointing=false", set()),
        ("trainer.frozen=bfloat16", {"pretrain", "finetune", "evaluate"}),
        ("trainer.frozen=float32", set()),
        ("trainer.compile=true", set()),
        ("lora.rank=8", {"finetune", "evaluate"}),
        ("finetune.group_by_length=true", {"finetune", "evaluate"}),
        ("pretrain.group_by_length=true", {"pretrain", "finetune", "evaluate"}),
        ("finetune.group_by_length=false", set()),
        ("finetune.query_warmup=0.1", {"finetune", "evaluate"}),
        ("finetune.query_warmup=0", set()),
        ("evaluate.blank_queries=true", {"evaluate"}),
        ("evaluate.blank_queries=false", set()),
        ("out=elsewhere", set()),
    ],
)
def test_what_a_setting_changes(override, changed):
    before, after = stages("compressor=sap+embq"), stages("compressor=sap+embq", *override.split())
    assert {kind for kind in before if before[kind].key != after[kind].key} == changed


def test_every_query_warmup_is_a_stage_of_its_own():
    usual = ["compressor=sap+embq"]
    found = {stages(*usual)["finetune"].key}
    for share in (0.1, 0.2):
        for form in ("step", "fade"):
            settings = [f"finetune.query_warmup={share}", f"finetune.query_warmup_form={form}"]
            found.add(stages(*usual, *settings)["finetune"].key)
            assert same("pretrain", usual, [*usual, *settings])
    assert len(found) == 5


def test_keys_are_older_than_the_query_warmup():
    """What they hold of the recipe and of the evaluation is what the committed study's keys hold."""
    found = stages("compressor=sap+embq")
    settings = {"lr", "batch_size", "accumulate", "epochs", "max_steps", "warmup", "weight_decay", "clip"}
    for kind in ("pretrain", "finetune"):
        assert set(found[kind].depends["optimisation"]) == {*settings, "schedule"}
    assert set(found["evaluate"].depends["evaluate"]) == {"batch_size", "max_new_tokens", "limit"}


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
    assert not same(
        "features test", ["compressor=downsample"], ["compressor=downsample", "downsample.rate=2"]
    )
    assert same("features test", ["compressor=sap"], ["compressor=avg_pool"])


def test_keys_outlive_the_process():
    """A change of this key means that everybody's finished runs are computed again: do it on purpose."""
    stage = stages()["data"]
    text = json.dumps(stage.describe_for_key(), sort_keys=True, separators=(",", ":"))
    assert stage.key == keys.digest_value(json.loads(text))
    assert stage.name == f"data/{stage.key[:16]}"


def fresh(*overrides: str):
    begin_request()
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


def test_features_are_known_by_their_images(tmp_path):
    """A text that is corrected leaves them as they are; it is in the keys of all who read it."""
    path = write_llava(tmp_path / "mine.json", images=True)
    settings = [f"data.{role}={path}" for role in ("pretrain", "train", "test")]
    before = fresh(*settings)
    path.write_text(path.read_text().replace("fox", "dog"))
    after = fresh(*settings)
    kinds = {name for name in before if before[name].key == after[name].key}
    assert kinds == {name for name in before if before[name].kind == "features"} != set()
    os.utime(tmp_path / "0.png", (1, 1))
    assert not kinds & {name for name in kinds if fresh(*settings)[name].key == before[name].key}


def test_features_of_the_embedded_data_keep_their_keys():
    """Those that lie on disks are found again."""
    features = stages()["features test"]
    assert features.depends["data"] == {"test": ["test"]}


def test_local_weights_are_known_by_names_sizes_and_times(tmp_path):
    (tmp_path / "model.safetensors").write_text("weights")
    with pytest.raises(UsageError, match="a folder without config.json"):  # any folder, all of which is read
        fresh(f"llm.source={tmp_path}")["finetune"].key  # noqa: B018
    (tmp_path / "config.json").write_text("{}")
    key = fresh(f"llm.source={tmp_path}")["finetune"].key
    os.utime(tmp_path / "model.safetensors", (1, 1))
    assert fresh(f"llm.source={tmp_path}")["finetune"].key != key


def test_a_checkpoint_of_open_clip_is_known_by_its_content(tmp_path):
    def find_key(source):
        return fresh(f"tower.source={source}")["features test"].key

    path = tmp_path / "weights.pt"
    path.write_text("weights")
    key = find_key(f"open_clip:ViT-B-32:{path}")
    assert find_key(f"open_clip:ViT-B-16:{path}") != key
    moved = path.rename(tmp_path / "moved.pt")
    assert find_key(f"open_clip:ViT-B-32:{moved}") == key
    moved.write_text("others ")
    assert find_key(f"open_clip:ViT-B-32:{moved}") != key
    tag = "open_clip:ViT-B-32:openai"  # of the hub: by its name
    assert fresh(f"tower.source={tag}")["features test"].depends["tower"] == tag


def test_the_dot_of_a_gemma_is_in_the_key_of_those_that_begin_there(tmp_path):
    """They once began at the row of its table, which Gemma scales."""
    (tmp_path / "config.json").write_text('{"model_type": "gemma2"}')
    for source, is_gemma in ((str(tmp_path), True), ("google/gemma-2b", True), ("Qwen/Qwen3-0.6B", False)):
        for knobs, begins_there in (([], True), (["embq.init=random"], False)):
            found = stages("compressor=sap+embq", f"llm.source={source}", *knobs)
            assert ("dot" in found["finetune"].depends) == (is_gemma and begins_there)
    assert "dot" not in stages("compressor=sap", f"llm.source={tmp_path}")["finetune"].depends


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.train=trian"], "data.train=trian: no split of picture_vqa; did you mean 'train'"),
        (["data.dataset=null"], "data.dataset is null"),
        (["data.train=[]"], "data.train: no data; give data.train=FILE.json"),
        (["data.train=missing.json"], "^data.train=missing.json: no such file"),
        (["data.train_weights=[1,2]"], "2 weight.s., but data.train has 1 entries; give one for each"),
        (["data.train_weights=[0]"], "must be more than 0"),
    ],
)
def test_bad_data(overrides, message):
    with pytest.raises(UsageError, match=message):
        plan_stages(config(*overrides))


def test_a_folder_called_like_a_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    with pytest.raises(UsageError, match=r"the folder of that name is data.train=./saved"):
        plan_stages(config("data.train=saved"))


def test_a_split_without_the_embedded_data_set_is_named(tmp_path):
    """The first mistake of somebody with one file: every role has a split until it is given a file."""
    path = write_llava(tmp_path / "mine.json", images=True)
    given = {role: f"data.{role}={path}" for role in ("pretrain", "train", "test")}
    for role in given:
        others = [setting for name, setting in given.items() if name != role]
        # splits are called as the roles are
        with pytest.raises(UsageError, match=rf"^data.{role}={role}: data.dataset is null, so give a path"):
            stages("data.dataset=null", *others)


def test_files_of_a_role(tmp_path):
    path = write_llava(tmp_path / "mine.json")
    found = config(f"data.train=[train,{path}]", "data.images=pictures")
    data = Path("runs/data/0123")
    assert locate_role_files(found, {"data": data}, "train") == [
        (data / "picture_vqa" / "train.json", None),
        (path, Path("pictures")),
    ]


def test_a_thousand_cells_share_what_they_agree_on():
    lrs, dims = (",".join(map(str, range(1, 11))) for _ in range(2))
    found = cells("compressor=sap,sap+embq", "seed=0,1,2,3,4", f"embq.dim={dims}", f"finetune.lr={lrs}")
    stages_found = {k: s for cell in found for k, s in plan_stages(cell.config).collect_stages().items()}
    assert len(found) == 1000
    assert Counter(s.kind for s in stages_found.values())["pretrain"] == 5


def finished(store: Store, stage: Stage, seconds: float, steps: int | None, resumed: bool = False) -> None:
    """A stage that has been measured."""
    path = store.locate_result(stage)
    path.mkdir(parents=True)
    note = {
        "key": stage.key,
        "seconds": seconds,
        "steps": steps,
        "resumed": resumed,
        "finished": "2026-01-01T00:00:00+0000",
        "versions": {},
        "files": {},
        "load": asdict(derive_workload(stage)),
    }
    (path / "done.json").write_text(json.dumps(note))


def estimated(store: Store, *overrides: str) -> float | None:
    """Seconds that the fine-tuning of a cell is expected to take."""
    stage = stages(*overrides)["finetune"]
    return Estimator([stage], store).estimate_seconds(stage)


def test_estimates_grow_with_the_rows(tmp_path):
    store, base = Store(tmp_path), "finetune.batch_size=32"
    assert estimated(store) is None
    finished(store, stages(base)["finetune"], 100.0, 400)  # two epochs: 12,800 rows
    finished(store, stages(base, "seed=7")["finetune"], 5.0, 400, resumed=True)
    finished(store, stages(base)["pretrain"], 7.0, 100)
    assert estimated(store, "seed=1") == pytest.approx(100)
    assert estimated(store, "seed=1", "finetune.epochs=3") == pytest.approx(150)
    assert estimated(store, "seed=1", "finetune.batch_size=8") == pytest.approx(100)
    assert estimated(store, "seed=1", "finetune.max_steps=40", base) == pytest.approx(10)
    assert estimated(store, "seed=1", "finetune.max_steps=4000", base) == pytest.approx(100)  # all there are
    assert estimated(store, "seed=1", "data.scale=0.1") == pytest.approx(10)


def test_estimates_rather_compare_the_same_model(tmp_path):
    store = Store(tmp_path)
    for seed, seconds in enumerate((10.0, 20.0, 30.0)):
        finished(store, stages("compressor=sap", f"seed={seed}")["finetune"], seconds, 100)
    finished(store, stages("compressor=identity")["finetune"], 300.0, 100)
    assert estimated(store, "compressor=sap", "seed=9") == pytest.approx(20)
    assert estimated(store, "compressor=identity", "seed=9") == pytest.approx(300)
    assert estimated(store, "compressor=avg_pool") == pytest.approx(25)


def test_stages_that_have_not_noted_their_steps(tmp_path):
    store = Store(tmp_path)
    finished(store, stages()["finetune"], 100.0, None)
    assert estimated(store, "seed=1", "finetune.epochs=1") == pytest.approx(50)
    assert estimated(store, "seed=1", "finetune.max_steps=40") is None


def test_a_short_trial_tells_nothing_of_a_long_stage(tmp_path):
    """It is mostly start."""
    store = Store(tmp_path)
    finished(store, stages("finetune.max_steps=6", "data.scale=0.01")["finetune"], 50.0, 6)
    finished(store, stages("data.scale=0.01")["finetune"], 20.0, 15)
    assert estimated(store) is None  # so that a study's times are asked
    assert estimated(store, "finetune.max_steps=30") == pytest.approx(30 * (50 / 6 + 20 / 15) / 2)


def test_passes_over_other_data_tell_nothing_of_ones_own(tmp_path):
    first = write_llava(tmp_path / "mine.json", images=True)
    second = write_llava(tmp_path / "other.json", images=True, samples=3)
    store = Store(tmp_path)
    finished(store, stages()["finetune"], 100.0, 1500)
    usual = ("data.dataset=null", f"data.pretrain={first}", f"data.test={first}")
    assert estimated(store, *usual, f"data.train={first}") is None
    finished(store, stages(*usual, f"data.train={first}")["finetune"], 3.0, 2)
    # and rows of the same data tell more of them than others
    assert estimated(store, *usual, f"data.train={first}", "seed=1") == pytest.approx(3)
    assert estimated(store, *usual, f"data.train={second}", "seed=1") is None


def test_what_the_plan_says_of_the_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "160")
    command = [*names(tmp_path), "compressor=sap", "seed=0,1,2", "blind=false", "--plan"]
    store = Store(tmp_path)
    for kind, seconds in (
        ("data", 7.0),
        ("features test", 7.0),
        ("features pretrain", 7.0),
        ("pretrain", 60.0),
        ("finetune", 500.0),
    ):
        finished(store, stages("compressor=sap")[kind], seconds, 100)
    assert sweep.main([*command, "launch.workers=2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "at least 18:40 min of work left, about 9:20 min with 2 workers (as measured in this output "
        "directory; no estimate: 3 x evaluate)"
    )
    finished(store, stages("compressor=sap")["evaluate"], 1.0, 100)
    assert sweep.main([*command, "launch.workers=9"]) == 0  # no faster than the longest chain
    assert "about 9:21 min with 9 workers" in capsys.readouterr().out


def test_a_stage_notes_what_estimates_need(tmp_path):
    found = stages("compressor=sap")
    store = Store(tmp_path, runner=FakeRunner(tmp_path / "log"))
    store.compute(found["evaluate"])
    estimator = Estimator([], store)
    assert not estimator.measured  # nothing of these kinds is asked
    again = Estimator([stages("compressor=avg_pool")["pretrain"]], store)
    assert [(m.load, m.steps) for m in again.measured.values()] == [(derive_workload(found["pretrain"]), 10)]
    assert store.read_note(found["evaluate"])["load"] == asdict(derive_workload(found["evaluate"]))


def test_image_rates_do_not_wait_for_torch():
    for name in ("downsample", "downsample rate=4", "sap"):
        given = config(f"compressor={name.split()[0]}", *(f"downsample.{w}" for w in name.split()[1:]))
        part = compressors.create(
            given.compressor_name, dim=8, llm_dim=8, **given.knobs(given.compressor_name)
        )
        assert find_image_rate(given, given.compressor_name) == part.image_rate
    code = (
        "import sys; sys.path.insert(0, 'tests/helpers'); from fakes import stages; "
        "stages('compressor=downsample'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0


def test_features_of_files_that_were_moved_are_other_ones(tmp_path):
    """They are found by their images' paths; whoever reads them is the same."""
    found = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        path = write_llava(tmp_path / name / "own.json", images=True)
        for image in (tmp_path / name).glob("*.png"):
            os.utime(image, (1, 1))
        files = [f"data.{role}={path}" for role in ("pretrain", "train", "test")]
        found.append(
            {kind: stage.key for kind, stage in stages("compressor=sap", "data.dataset=null", *files).items()}
        )
    assert {kind for kind in found[0] if found[0][kind] != found[1][kind]} == {
        "features pretrain",
        "features test",
    }
