"""Training on data that are streamed: killed runs, several processes, a teacher, bad rows on the way."""

import json

import pytest
import small_runs
import torch
from small_runs import Losses, align, record, run, write_backbones
from test_teacher import save_teacher

datasets = pytest.importorskip("datasets")

from shards import FEATURES, WRITERS, cut_rows, make_row, own_cache, write_parquet  # noqa: E402

from compressors.errors import UsageError  # noqa: E402
from experiments.runtime.progress import Reporter  # noqa: E402
from experiments.stages.checks import check_cell_config  # noqa: E402
from experiments.stages.training.ranks import launch_processes  # noqa: E402


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))  # of other processes
    write_backbones(tmp_path)
    with own_cache(tmp_path, monkeypatch):
        yield


def make_config(folder, kind="parquet", **trainer):
    config = small_runs.make_config(folder, **trainer)
    config.data.streaming, config.data.shuffle_buffer = True, 6
    entry = WRITERS[kind](folder / "shards")
    config.data.pretrain = config.data.train = [entry]
    return config


@pytest.mark.parametrize(
    ("stage", "kind", "workers", "devices"),
    [
        ("pretrain", "parquet", "0", "1"),
        ("finetune", "lines", "0", "1"),
        ("finetune", "parquet", "2", "1"),
        pytest.param("finetune", "saved", "0", "2", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_as_the_undisturbed_one(tmp_path, stage, kind, workers, devices):
    config = make_config(tmp_path, kind, checkpoint_every=2)
    config.parts["sap"]["dropout"] = 0.2  # what is drawn must be drawn again
    config.pretrain.max_steps = config.finetune.max_steps = 11  # of 8 rows: nearly three epochs
    config.finetune.query_warmup, config.finetune.query_warmup_form = 0.7, "fade"
    config.data.workers, config.trainer.devices = workers, devices
    if devices != "1":
        config.trainer.strategy = "fsdp"
    inputs = align(config, tmp_path) if stage == "finetune" else {}
    undisturbed, resumed = Losses(), Losses()
    wanted = run(stage, config, inputs, tmp_path / "whole", undisturbed)
    assert undisturbed.total == 11 and undisturbed.losses
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(stage, config, inputs, tmp_path / "killed", Losses(die_at=7))
    checkpoint = torch.load(tmp_path / "killed/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["stream"][0] > 0  # rows before it are not read again
    found = run(stage, config, inputs, tmp_path / "killed", resumed)
    assert resumed.done in (6, 8) and resumed.total == 11
    assert resumed.losses == undisturbed.losses
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_two_processes_have_the_gradients_of_one(tmp_path):
    config = make_config(tmp_path)
    config.finetune.clip, config.finetune.max_steps = 0.0, 1
    inputs = align(config, tmp_path)
    gradients = []
    for world, devices in ((0, "1"), (2, "2")):
        out = tmp_path / f"world{world}"
        out.mkdir()
        config.trainer.devices = devices
        if world:
            launch_processes(record, world, Reporter(), config, "finetune", inputs, out, world)
        else:
            record(config, "finetune", inputs, out, 0, Reporter())
        gradients.append(torch.load(out / "gradients.0")[0])
    alone, together = gradients
    assert alone.keys() == together.keys() and alone
    for name, gradient in alone.items():
        torch.testing.assert_close(together[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


class Warnings(Losses):
    """The losses and the warnings of a run."""

    def __init__(self):
        super().__init__()
        self.warnings = []

    def write_warning(self, text):
        self.warnings.append(text)


def test_a_bad_row_ends_a_run_unless_it_may_be_left_out(tmp_path):
    config = make_config(tmp_path, checkpoint_every=1)
    config.pretrain.max_steps = 8  # two epochs
    path = tmp_path / "shards" / "train-00001.parquet"
    rows = cut_rows()[1]
    rows[-1]["images"] = [{"bytes": b"no picture", "path": None}]
    datasets.Dataset.from_list(rows, features=FEATURES).to_parquet(path)
    named = r"train-00001.parquet, row 11 \(id 18\): image .* is truncated or no image"
    with pytest.raises(UsageError, match=named) as caught:
        run("pretrain", config, {}, tmp_path / "out", Losses())
    assert "data.bad_rows=N goes on" in str(caught.value) and "\n" not in str(caught.value)
    assert (tmp_path / "out/checkpoints/last.ckpt").exists()
    # a run goes on without the row, to what it would have been from the first step on
    config.data.bad_rows = 2
    resumed, whole = Warnings(), Warnings()
    found = run("pretrain", config, {}, tmp_path / "out", resumed)
    wanted = run("pretrain", config, {}, tmp_path / "whole", whole)
    assert 0 < resumed.done < 8 and whole.done == 0
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert len(whole.warnings) == 2 and all("left out: " in text for text in whole.warnings)
    config.data.bad_rows = 1
    with pytest.raises(UsageError, match=rf"{named}.* has met 2, and data.bad_rows=1"):
        run("pretrain", config, {}, tmp_path / "few", Losses())


def test_a_step_of_bad_rows_alone_ends_a_run(tmp_path):
    config = make_config(tmp_path)
    config.data.bad_rows = 1000
    for path in sorted((tmp_path / "shards").iterdir())[1:]:
        rows = [make_row(number) for number in range(40)]
        for row in rows:
            row["messages"][1]["content"] = ""
        datasets.Dataset.from_list(rows, features=FEATURES).to_parquet(path)
    with pytest.raises(UsageError, match="message 1, from assistant, is empty"):
        run("pretrain", config, {}, tmp_path / "out", Losses())


def test_a_row_that_is_too_long_for_the_teacher_may_be_left_out(tmp_path):
    """Of several images, which the student has fewer tokens of."""
    config = make_config(tmp_path)
    inputs = align(config, tmp_path)
    save_teacher(small_runs.make_config(tmp_path, "identity"), tmp_path / "teacher")
    path = tmp_path / "teacher" / "config.json"
    settings = json.loads(path.read_text())
    settings["text_config"]["max_position_embeddings"] = 200
    path.write_text(json.dumps(settings))
    rows = cut_rows()[1]
    rows[-1]["images"] = 8 * rows[-1]["images"]
    shard = tmp_path / "shards" / "train-00001.parquet"
    datasets.Dataset.from_list(rows, features=FEATURES).to_parquet(shard)
    config.finetune.max_steps = 8  # two epochs
    assert run("finetune", config, inputs, tmp_path / "alone")
    config.finetune.teacher = str(tmp_path / "teacher")
    named = r"finetune.teacher=.*row 11 \(id 18\): .* do not fit into the language model's 200 positions"
    with pytest.raises(UsageError, match=named):
        run("finetune", config, inputs, tmp_path / "out", Losses())
    config.data.bad_rows = 2
    report = Warnings()
    assert run("finetune", config, inputs, tmp_path / "out", report)
    assert len(report.warnings) >= 1 and all("finetune.teacher=" in text for text in report.warnings)


def test_a_teacher_reads_the_stream_too(tmp_path):
    config = make_config(tmp_path)
    save_teacher(small_runs.make_config(tmp_path, "identity"), tmp_path / "teacher")
    inputs = align(config, tmp_path)
    config.finetune.max_steps = 2
    weights = [run("finetune", config, inputs, tmp_path / "alone")]
    config.finetune.teacher = str(tmp_path / "teacher")
    check_cell_config(config)
    weights.append(run("finetune", config, inputs, tmp_path / "taught"))
    assert any(not torch.equal(weights[0][name], value) for name, value in weights[1].items())


def test_rows_of_text_alone(tmp_path):
    """For a model with a compressor, and for one without."""
    config = make_config(tmp_path)
    folder = tmp_path / "texts"
    write_parquet(folder)
    for path, rows in zip(sorted(folder.iterdir()), cut_rows()):
        texts = [{**row, "images": []} for row in rows]
        datasets.Dataset.from_list(texts, features=FEATURES).to_parquet(path)
    config.data.train = [f"{folder}/*.parquet"]
    config.finetune.max_steps = 2
    assert run("finetune", config, align(config, tmp_path), tmp_path / "seeing")
    config.compressor = "none"
    assert run("finetune", config, {}, tmp_path / "blind")
