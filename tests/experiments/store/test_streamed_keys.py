"""Keys of stages that read a stream, and what cannot be streamed: one line before anything runs."""

import os

import pytest

datasets = pytest.importorskip("datasets")

from fakes import config, stages  # noqa: E402
from shards import WRITERS, own_cache, write_parquet  # noqa: E402

from compressors.errors import UsageError  # noqa: E402
from experiments.runtime.memory import begin_request  # noqa: E402
from experiments.store.edited_files import refuse_edited_files  # noqa: E402
from experiments.store.estimate import Estimator, MeasuredStage  # noqa: E402
from experiments.store.store import Store  # noqa: E402
from experiments.store.workload import derive_workload  # noqa: E402

STEPS = ["data.streaming=true", "pretrain.max_steps=9", "finetune.max_steps=9"]


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    with own_cache(tmp_path, monkeypatch):
        yield


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.streaming=true"], r"nobody knows how many rows a stream has; give pretrain.max_steps=STEPS"),
        (["data.streaming=true", "compressor=none"], "give finetune.max_steps=STEPS"),
        (
            [*STEPS, "finetune.epochs=2"],
            r"finetune.epochs=2: data.streaming=true trains finetune.max_steps=9",
        ),
        (
            [*STEPS, "finetune.group_by_length=true"],
            "finetune.group_by_length=true: needs the lengths of all",
        ),
        ([*STEPS, "preset=flashsloth"], "preset=flashsloth: finetune.group_by_length=true"),
        (["data.shuffle_buffer=9"], r"data.shuffle_buffer=9: is for streamed data"),
        (["data.bad_rows=9"], r"data.bad_rows=9: is for streamed data"),
    ],
)
def test_settings_that_do_not_go_with_a_stream(overrides, message):
    with pytest.raises(UsageError, match=message) as caught:
        config(*overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("train", "a split of picture_vqa is not streamed; give shards"),
        ("{}/list.json", r"list.json: a JSON list cannot be streamed; write its samples as JSON lines"),
        ("{}/mixed/*", r"files of .jsonl, .parquet cannot be streamed"),
        ("{}/mixed/*.tar", "no such file"),
        ("{}/nowhere", "no such folder; give shards"),
        ("{}/mixed/empty.jsonl", r"empty.jsonl: no sample in it"),
        ("{}/blank.jsonl", r"no sample in .*blank.jsonl"),
        ("hf:{}/shards:trian", "no split 'trian'; did you mean 'train'"),
        ("hf:a@b@c", "expected hf:NAME"),
        ("{}/saved:train", "the folder has no splits"),
    ],
)
def test_what_cannot_be_streamed(tmp_path, entry, message):
    (tmp_path / "list.json").write_text('  [{"id": 1}]')
    (tmp_path / "blank.jsonl").write_text("\n\n")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "empty.jsonl").write_text("")
    (tmp_path / "mixed" / "a.parquet").write_bytes(b"x")
    write_parquet(tmp_path / "shards")
    WRITERS["saved"](tmp_path / "saved")
    entry = entry.format(tmp_path)
    with pytest.raises(UsageError, match=message) as caught:
        stages(*STEPS, f"data.pretrain={entry}", f"data.train={entry}")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("data.train")


def test_a_calibrated_pruner_is_refused(tmp_path):
    entry = write_parquet(tmp_path / "shards")
    roles = [f"data.pretrain={entry}", f"data.train={entry}"]
    stages(*STEPS, *roles, "prune=fastv")
    with pytest.raises(UsageError, match="prune=fitprune: is calibrated on 64 rows of data.train"):
        stages(*STEPS, *roles, "prune=fitprune")


def test_keys_know_shards_and_buffer(tmp_path):
    roles = []

    def find_keys(*overrides):
        begin_request()
        planned = stages(*STEPS, *roles, *overrides)
        assert set(planned) == {"data", "features test", "pretrain", "finetune", "evaluate"}
        return planned["pretrain"].key, planned["finetune"].key

    entry = write_parquet(tmp_path / "here")
    roles += [f"data.pretrain={entry}", f"data.train={entry}"]
    first = find_keys()
    assert find_keys("data.shuffle_buffer=1000", "data.workers=3") == first
    assert (
        find_keys("preset=small", *[f"{stage}.batch_size=8" for stage in ("pretrain", "finetune")]) != first
    )
    for changed in (find_keys("data.shuffle_buffer=999"), find_keys("seed=1")):
        assert changed[0] != first[0] and changed[1] != first[1]
    weighted = find_keys("data.train_weights=[2]")
    assert weighted[0] == first[0] and weighted[1] != first[1]
    (tmp_path / "here").rename(tmp_path / "moved")
    roles[:] = [role.replace("/here/", "/moved/") for role in roles]
    assert find_keys() == first
    os.utime(tmp_path / "moved" / "train-00003.parquet", (1, 1))
    assert find_keys()[0] != first[0]


def test_keys_know_the_image_folder(tmp_path):
    """Rows name their pictures; those of another folder are other ones."""
    entry = write_parquet(tmp_path / "shards")
    roles = [f"data.pretrain={entry}", f"data.train={entry}"]
    found = []
    for folder in ("", "one", "two"):
        images = [f"data.images={tmp_path / folder}"] if folder else []
        found.append(stages(*STEPS, *roles, *images)["pretrain"].key)
    assert len(set(found)) == 3


def test_shards_that_were_written_again_since_the_plan_are_refused(tmp_path):
    entry = write_parquet(tmp_path / "here")
    stage = stages(*STEPS, f"data.pretrain={entry}", f"data.train={entry}")["pretrain"]
    refuse_edited_files(stage)
    os.utime(tmp_path / "here" / "train-00003.parquet", (1, 1))
    with pytest.raises(UsageError, match="^pretrain.*: a data file, or an image, changed after this run"):
        refuse_edited_files(stage)


def test_a_stream_is_read_as_a_blind_row_too(tmp_path):
    entry = write_parquet(tmp_path / "shards")
    planned = stages(*STEPS, "compressor=none", f"data.train={entry}")
    assert set(planned) == {"data", "finetune", "evaluate"}
    assert planned["finetune"].title == "finetune (streamed)"


def test_a_stream_takes_as_long_as_its_steps(tmp_path):
    """Whatever a pass over other data takes."""
    entry = write_parquet(tmp_path / "shards")
    streamed = stages(*STEPS, f"data.pretrain={entry}", f"data.train={entry}")["finetune"]
    whole = stages("finetune.batch_size=8")["finetune"]
    store = Store(tmp_path / "runs", runner=None)
    measured = MeasuredStage(derive_workload(whole), seconds=20.0, steps=4)
    estimator = Estimator([], store, [measured])
    rows = 9 * streamed.config.finetune.batch_size
    assert rows > 32 and estimator.estimate_seconds(streamed) == pytest.approx(20.0 / 32 * rows)
