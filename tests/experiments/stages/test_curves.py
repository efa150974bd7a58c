"""Where curves go: a run a stage, named and grouped, with its settings and rates, closed at its end."""

import dataclasses
import os
import struct
from pathlib import Path

import pytest
import torch
from small_runs import align, make_config, run, write_backbones, write_data

from compressors.errors import UsageError
from compressors.key_value import parse_settings
from experiments.config.schema import CurveRun
from experiments.runtime.progress import Reporter
from experiments.stages import checks
from experiments.stages.training import curves
from experiments.sweep import request
from experiments.sweep.units import name_runs

RATES = {"loss", "lr", "gradient_norm", "tokens_per_second"}
GROUP = "compressor=sap,sap+embq seed=0,1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    write_backbones(folder)
    write_data(folder, 12)
    return folder


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    """W&B offline, with nothing of the user's."""
    module = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    module.teardown()  # it reads the environment once
    yield module
    module.teardown()


def log_with(logger, folder, out, kind="pretrain"):
    """A stage whose curves a logger takes; the weights that it leaves."""
    config = make_config(folder, logger=logger)
    config = dataclasses.replace(
        config, curves=CurveRun(f"{kind} sap seed=0", GROUP, kind, "0123abcd", str(out))
    )
    inputs = {} if kind == "pretrain" else align(config, folder)
    out.mkdir(exist_ok=True)
    return run(kind, config, inputs, out / f"{kind}.partial")


def read_payloads(path: Path) -> list[bytes]:
    """The records of a file in LevelDB's log format: blocks of 32 KiB, and in them pieces with a checksum, a
    length and a kind (whole, first, middle, last), behind W&B's own seven bytes."""
    data, place, payloads = path.read_bytes(), 7, []
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # the rest of a block
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        piece = data[place + 7 : place + 7 + length]
        if kind in (1, 2):
            payloads.append(piece)
        else:
            payloads[-1] += piece
        place += 7 + length
    return payloads


def read_records(root: Path) -> list[dict[str, list]]:
    """What W&B has written offline, run by run as they began: records by their kind."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its service writes what is left, which may be after a run has finished
    runs = []
    for path in root.glob("wandb/offline-run-*/*.wandb"):
        found: dict[str, list] = {}
        for payload in read_payloads(path):
            record = Record.FromString(payload)
            kind = record.WhichOneof("record_type")
            found.setdefault(kind, []).append(getattr(record, kind))
        runs.append(found)
    # names of folders tell seconds, in which two runs may begin
    return sorted(runs, key=lambda found: found["run"][0].start_time.ToNanoseconds())


def test_tensorboard_has_a_run_of_each_stage(folder, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plain = log_with("none", folder, tmp_path / "plain")
    logged = log_with("tensorboard", folder, tmp_path / "logged")
    assert all(torch.equal(plain[name], logged[name]) for name in plain)
    log_with("tensorboard", folder, tmp_path / "logged", "finetune")
    files = sorted((tmp_path / "logged").rglob("events.out.*"))
    names = {str(file.parent.relative_to(tmp_path / "logged/tensorboard")) for file in files}
    group = "compressor=sap,sap+embq_seed=0,1"
    assert names == {f"{group}/{kind}_sap_seed=0-0123abcd" for kind in ("pretrain", "finetune")}
    for file in {file.parent for file in files}:
        events = EventAccumulator(str(file)).Reload()
        curves_shown = set(events.Tags()["scalars"])
        assert curves_shown >= RATES and "hp_metric" not in curves_shown
        [last] = events.Scalars("tokens_per_second")  # four steps: the last one alone
        assert last.step == 3 and last.value > 0
        assert events.Scalars("gradient_norm")[0].value > 0
        assert "compressor: sap+embq" in (file / "hparams.yaml").read_text()


@pytest.mark.slow
def test_wandb_has_a_run_of_each_stage(folder, tmp_path, wandb):
    for kind in ("pretrain", "finetune"):
        log_with("wandb", folder, tmp_path / "runs", kind)
        assert wandb.run is None  # closed, and no other run was taken
    table = tmp_path / "table.md"
    table.write_text("| a |\n")
    table.with_suffix(".csv").write_text("a\n")
    curves.publish_table("wandb", GROUP, tmp_path / "runs", table)
    *stages, last = read_records(tmp_path / "runs")
    assert len(stages) == 2
    for kind, records in zip(("pretrain", "finetune"), stages):
        [about] = records["run"][:1]
        assert (about.display_name, about.run_group, about.job_type) == (f"{kind} sap seed=0", GROUP, kind)
        keys = set()
        for history in records["history"]:
            keys |= {item.key or item.nested_key[0] for item in history.item}
        assert keys >= RATES
        settings = {
            item.key for update in (about.config, *records.get("config", ())) for item in update.update
        }
        assert settings >= {"compressor", "pretrain", "trainer"}
        assert [end.exit_code for end in records["exit"]] == [0]
    assert last["run"][0].job_type == "table"
    assert [artifact.type for artifact in last["artifact"]] == ["table"]


def test_a_stage_that_fails_ends_its_run_as_failed_and_goes_on_with_it(tmp_path, wandb):  # noqa: ARG001
    config = make_config(tmp_path, logger="wandb")
    config.curves = CurveRun("finetune sap", GROUP, "finetune", "0123abcd", str(tmp_path))
    out = tmp_path / "finetune.partial"
    out.mkdir()
    with (
        pytest.raises(RuntimeError, match="diverged"),
        curves.open_logger(config, out, Reporter()) as logger,
    ):
        first_id = logger.experiment.id
        raise RuntimeError("diverged")
    [records] = read_records(tmp_path)
    assert [end.exit_code for end in records["exit"]] == [1]
    with curves.open_logger(config, out, Reporter()) as logger:
        assert logger.experiment.id == first_id


def test_other_processes_log_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "LOCAL_RANK", "1")
    with curves.open_logger(make_config(tmp_path, logger="wandb"), tmp_path, Reporter()) as logger:
        assert isinstance(logger, curves.DummyLogger)
    assert not list(tmp_path.iterdir())


def test_a_logger_that_is_not_here_is_named(monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="^trainer.logger=wandb: wandb is not installed; pip install"):
        checks.check_logger("wandb")
    checks.check_logger("csv")


def test_without_an_account_one_line_says_what_to_do(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    wandb.teardown()
    run = CurveRun("finetune sap", GROUP, "finetune", "", str(tmp_path))
    match = "^trainer.logger=wandb: .*; run `wandb login`, or set WANDB_MODE"
    with pytest.raises(UsageError, match=match), curves.open_wandb_run(run):
        pass


def test_runs_are_named_after_cells_and_shared_ones_after_parts():
    settings = ["compressor=sap,sap+embq", "seed=0", "sap.rate=3", "data.scale=0.01"]
    jobs = request.read_request(parse_settings(settings)).jobs
    names = set()
    for _, stage in name_runs(jobs):
        names |= {part.run_name for part in stage.collect_stages().values()}
    assert {"finetune sap seed=0", "finetune sap+embq seed=0", "pretrain sap sap.rate=3 seed=0"} <= names
    assert "pretrain sap+embq seed=0" not in names
    keys = [stage.key for _, stage in jobs]
    assert [stage.key for _, stage in name_runs(jobs)] == keys
