"""The store: finished or not there, resumed after kill -9, computed once."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from fakes import SOURCES, FakeRunner, read_log, spawn, stages, wait_for, write_llava

from compressors.errors import UsageError
from experiments.runtime.files import find_disk_error, hold_lock, write_atomic
from experiments.runtime.memory import begin_request
from experiments.runtime.progress import Reporter
from experiments.store.store import StageFailed, Store
from experiments.sweep.request import read_request

ONE = ("compressor=sap+embq", "blind=false")
ALL = ["data", "features test", "features pretrain", "pretrain", "finetune", "evaluate"]


class Notes(Reporter):
    def __init__(self):
        self.lines = []

    def write_note(self, text):
        self.lines.append(text)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def store(tmp_path, log):
    return Store(tmp_path / "out", Notes(), FakeRunner(log))


def again(store: Store) -> Store:
    """The store as another process sees it."""
    return Store(store.root, Notes(), store.runner)


def tree(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*"))


def test_everything_is_computed_once(store, log):
    evaluate = stages("compressor=sap")["evaluate"]
    path = store.compute(evaluate)
    assert sorted(read_log(log)) == sorted(ALL)
    assert path == store.root / evaluate.name
    store.compute(evaluate)
    again(store).compute(stages("compressor=sap+embq")["evaluate"])
    assert read_log(log)[len(ALL) :] == ["finetune", "evaluate"]
    assert not [p for p in tree(store.root) if p.endswith((".lock", ".partial", ".draft"))]


def test_inputs_reach_the_stage(store):
    found = stages()
    store.compute(found["evaluate"])
    for kind, before in (("evaluate", "finetune"), ("finetune", "pretrain")):
        seen = json.loads((store.locate_result(found[kind]) / "inputs.json").read_text())
        assert seen == ["data", "features", before]


def test_what_is_noted(store):
    stage = stages()["data"]
    path = store.compute(stage)
    done = store.read_note(stage)
    assert done["key"] == stage.key and done["seconds"] >= 0 and not done["resumed"]
    assert done["versions"]["torch"]
    assert done["files"]["finished"][0] == 2
    assert "dataset: picture_vqa" in (path / "config.yaml").read_text()


@pytest.mark.parametrize("harm", ["cut", "delete", "flip", "no done", "broken done"])
def test_damage_is_repaired(store, log, harm):
    stage = stages()["data"]
    path = store.compute(stage)
    if harm == "cut":
        os.truncate(path / "finished", 1)
    elif harm == "delete":
        (path / "finished").unlink()
    elif harm == "flip":
        (path / "finished").write_text("11")
    elif harm == "no done":
        (path / "done.json").unlink()
    else:
        os.truncate(path / "done.json", 20)
    other = again(store)
    assert other.find_status(stage) == ("done" if harm == "flip" else "damaged")
    other.compute(stage)
    assert read_log(log) == ["data", "data"]
    assert (path / "finished").read_text() == "10"
    assert other.report.lines[0].startswith(f"warning: {path} is damaged")


@pytest.mark.parametrize("harm", ["flip", "gone"])
def test_damage_behind_a_link_is_left_there(store, tmp_path, harm):
    """A stage that somebody has moved to another disk."""
    stage = stages()["data"]
    path = store.compute(stage)
    moved = path.rename(tmp_path / "moved")
    path.symlink_to(moved)
    if harm == "gone":
        moved.rename(tmp_path / "away")
    else:
        (moved / "finished").write_text("11")
    before = tree(tmp_path / "moved") if harm == "flip" else []
    other = again(store)
    other.compute(stage)
    assert other.report.lines[0].startswith(f"warning: {path} is damaged") and not path.is_symlink()
    assert again(store).find_fault(stage) is None
    if harm == "flip":
        assert tree(moved) == before


def test_damage_before_a_finished_stage_does_not_matter(store, log):
    found = stages()
    store.compute(found["evaluate"])
    (store.locate_result(found["pretrain"]) / "finished").unlink()
    again(store).compute(found["evaluate"])
    assert len(read_log(log)) == len(ALL)


def test_a_failed_stage_is_not_finished_and_keeps_its_work(store):
    stage = stages()["data"]

    def broken(_config, _inputs, out, _report):
        (out / "half.txt").write_text("half")
        raise RuntimeError("first line\nlast line")

    bad = Store(store.root, runner=lambda _: broken)
    with pytest.raises(StageFailed, match=f"{stage.name}: RuntimeError: last line"):
        bad.compute(stage)
    assert bad.find_status(stage) == "partial"
    path = store.compute(stage)
    assert (path / "half.txt").exists() and store.read_note(stage)["resumed"]


def test_a_partial_that_cannot_be_resumed_is_started_over(store, log):
    """A checkpoint, or what stands for it here, that was cut short or changed."""
    stage = stages()["data"]
    draft = store.root / f"{stage.name}.partial"
    draft.mkdir(parents=True)
    (draft / "finished").write_bytes(bytes([205, 206]))
    path = store.compute(stage)
    assert (path / "finished").read_text() == "10" and not store.read_note(stage)["resumed"]
    assert len(store.report.lines) == 1
    assert store.report.lines[0].startswith(f"warning: cannot go on from what is left of {stage.name}: U")
    assert read_log(log) == ["data", "data"]


@pytest.mark.parametrize("steps", [0, 1])
def test_what_cannot_be_resumed_is_kept_until_something_better_is_there(store, steps):
    """Whatever stands in the way, a network share that is gone, say, is there for the second try as well."""
    stage = stages()["data"]
    draft = store.root / f"{stage.name}.partial"
    draft.mkdir(parents=True)
    (draft / "last.ckpt").write_text("hours")
    tries = []

    def broken(_config, _inputs, out, report):
        tries.append((out / "last.ckpt").exists())
        if len(tries) == 2 and steps:
            report.advance_steps()
        raise RuntimeError("no network")

    aside = store.root / f"{stage.name}.left.partial"
    with pytest.raises(StageFailed, match="no network"):
        Store(store.root, runner=lambda _: broken).compute(stage)
    assert tries == [True, False]
    kept = aside if steps else draft
    assert (kept / "last.ckpt").read_text() == "hours" and aside.exists() == bool(steps)
    store.compute(stage)
    assert not aside.exists()


def test_a_lack_of_memory_is_no_reason_to_start_over(store):
    stage, tries = stages()["data"], []
    (store.root / f"{stage.name}.partial").mkdir(parents=True)

    def broken(*_):
        tries.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(StageFailed, match="out of memory"):
        Store(store.root, runner=lambda _: broken).compute(stage)
    assert len(tries) == 1 and store.find_status(stage) == "partial"


def test_a_stage_that_fails_after_a_step_keeps_its_work(store):
    stage, steps = stages()["data"], []

    def broken(_config, _inputs, out, report):
        steps.append((out / "half.txt").exists())
        (out / "half.txt").write_text("half")
        report.advance_steps()
        raise RuntimeError("again")

    for _ in range(2):
        with pytest.raises(StageFailed, match="again"):
            Store(store.root, runner=lambda _: broken).compute(stage)
    assert steps == [False, True]


def test_bad_input_leaves_nothing(tmp_path):
    def broken(_config, _inputs, out, _report):
        (out / "half.txt").write_text("half")
        raise UsageError("bad")

    store = Store(tmp_path / "a" / "b", runner=lambda _: broken)
    with pytest.raises(UsageError), store.open_root():
        store.compute(stages()["data"])
    assert tree(tmp_path) == []


def test_bad_input_after_a_step_keeps_the_work(store):
    """A row of a stream that is met after hours: the advice is to go on from the last checkpoint."""
    stage = stages()["data"]

    def broken(_config, _inputs, out, report):
        (out / "last.ckpt").write_text("hours")
        report.advance_steps()
        raise UsageError("bad row")

    with pytest.raises(UsageError):
        Store(store.root, runner=lambda _: broken).compute(stage)
    assert store.find_status(stage) == "partial"
    assert (store.compute(stage) / "last.ckpt").read_text() == "hours"


def test_files_that_were_edited_since_the_plan_are_refused(tmp_path, store):
    """Of each kind of file that a stage reads."""
    data = write_llava(tmp_path / "mine.json", images=True)
    stage = stages(f"data.train={data}")["finetune"]
    write_llava(data, images=True, samples=3)
    with pytest.raises(UsageError, match="^features .*: a data file, or an image, changed after this run"):
        store.compute(stage)
    assert store.find_status(stage) == "missing"
    begin_request()
    stage = stages(f"data.train={data}")["finetune"]
    picture = min(tmp_path.rglob("*.png"))
    content = picture.read_bytes()
    picture.write_bytes(content + b"\0")
    with pytest.raises(UsageError, match="^features .*: a data file, or an image, changed after this run"):
        store.compute(stage)
    begin_request()
    store.compute(stages(f"data.train={data}")["finetune"])

    (tmp_path / "llm").mkdir()
    config = tmp_path / "llm/config.json"
    config.write_text("{}")
    stage = stages(f"llm.source={tmp_path / 'llm'}")["pretrain"]
    config.write_text("{ }")
    with pytest.raises(
        UsageError, match="^pretrain: the folder of llm.source changed after this run was pla"
    ):
        store.compute(stage)


def test_what_an_edited_file_holds_is_read_again_by_the_next_request(tmp_path):
    data = write_llava(tmp_path / "mine.json")
    settings = {**SOURCES, "compressor": ["none"], "data.train": [str(data)], "out": [str(tmp_path / "out")]}
    keys = []
    for samples in (2, 3, 2):
        write_llava(data, samples=samples)
        keys.append(read_request(settings).jobs[0][1].key)
    assert keys[0] == keys[2] != keys[1]
    preset = tmp_path / "mine.yaml"
    rates = []
    for rate in (0.1, 0.2):
        preset.write_text(f"preset: tiny\nfinetune: {{lr: {rate}}}\n")
        [(cell, _)] = read_request({**settings, "preset": [str(preset)]}).jobs
        rates.append(cell.config.finetune.lr)
    assert rates == [0.1, 0.2]


def test_ctrl_c_inside_lightning(tmp_path):
    def interrupted(*_):
        raise SystemExit(1)

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path, runner=lambda _: interrupted).compute(stages()["data"])


def test_kill_and_resume(tmp_path, log):
    """kill -9 in every stage leaves no finished directory; the next run goes on from what was left."""
    root, stage = tmp_path / "out", stages()["evaluate"]
    for kind in ("data", "pretrain", "evaluate"):
        process = spawn(root, log, 0.6, *ONE)
        progress = root / f"{stages()[kind].name}.partial" / "finished"
        wait_for(lambda file=progress: file.exists() and file.read_text() > "2")
        process.kill()
        process.wait()
        assert Store(root).find_status(stages()[kind]) == "partial"
    report = Notes()
    path = Store(root, report, FakeRunner(log)).compute(stage)
    assert int((path / "started_at.txt").read_text()) > 0
    assert report.lines == []
    runs = read_log(log)
    assert {kind: runs.count(kind) for kind in runs} == {
        "data": 2,
        "features test": 1,
        "features pretrain": 1,
        "pretrain": 2,
        "finetune": 1,
        "evaluate": 2,
    }


def test_killed_before_the_rename(store, log):
    stage = stages()["data"]
    path = store.compute(stage)
    path.rename(path.with_name(f"{path.name}.partial"))
    assert again(store).compute(stage) == path
    assert read_log(log) == ["data"]


def test_two_processes_compute_once(tmp_path, log):
    both = [spawn(tmp_path / "out", log, 0.2, *ONE) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert sorted(read_log(log)) == sorted(ALL)


def test_a_killed_process_holds_no_lock(tmp_path, log):
    process = spawn(tmp_path / "out", log, 60, *ONE)
    wait_for(lambda: log.exists())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with hold_lock(tmp_path / "out" / f"{stages()['data'].name}.lock", lambda: pytest.fail("still locked")):
        pass


def test_a_lock_that_a_kill_left_beside_a_finished_stage_goes(store):
    stage = stages()["data"]
    lock = store.compute(stage).with_suffix(".lock")
    lock.touch()
    again(store).compute(stage)
    assert not lock.exists()


def test_write_atomic(tmp_path):
    path = tmp_path / "a.txt"
    write_atomic(path, "one")
    write_atomic(path, b"two")
    assert path.read_text() == "two" and tree(tmp_path) == ["a.txt"]
    with pytest.raises(OSError, match="nowhere"):
        write_atomic(tmp_path / "nowhere" / "a.txt", "one")


def test_full_disks_are_recognised():
    where = Path("runs/x")
    assert find_disk_error(OSError(28, "No space left on device"), where).filename == "runs/x"
    assert find_disk_error(RuntimeError("PytorchStreamWriter failed writing file data/0"), where)
    assert find_disk_error(ValueError("I/O error: No space left on device (os error 28)"), where)
    assert find_disk_error(FileNotFoundError(2, "No such file"), where) is None
    assert find_disk_error(RuntimeError("shapes do not match"), where) is None
