"""What a training goes on from: no code, nothing damaged, nothing of another's; the rest is begun again."""

import os
import pickle
import signal
import sys
import types

import pytest
import torch
from small_runs import Losses, align, make_config, run, write_backbones, write_data

from experiments.runtime.progress import Reporter
from experiments.stages import train
from experiments.stages.training import checkpoints


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Warnings(Losses):
    def __init__(self):
        super().__init__()
        self.lines = []

    def write_warning(self, text):
        self.lines.append(text)


@pytest.fixture
def folder(tmp_path):
    write_backbones(tmp_path)
    write_data(tmp_path, 16)
    return tmp_path


def killed_run(folder, name, **trainer):
    """A finetuning that was killed after step 3 of 4: its configuration, inputs and checkpoint."""
    config = make_config(folder, checkpoint_every=1, **trainer)
    inputs = align(config, folder)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run("finetune", config, inputs, folder / name, Losses(die_at=3))
    checkpoint = folder / name / "checkpoints/last.ckpt"
    assert checkpoint.is_file()
    return config, inputs, checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["1", "2"])
def test_code_in_a_checkpoint_is_not_run(folder, devices):
    config, inputs, checkpoint = killed_run(folder, "killed", devices=devices)
    wanted = run("finetune", config, inputs, folder / "whole")
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "callbacks": {"evil": Evil(folder / "ran")}}, checkpoint)
    report = Warnings()
    found = run("finetune", config, inputs, folder / "killed", report)
    assert not (folder / "ran").exists()
    assert report.done == 0 and len(report.lines) == 1
    assert f"{checkpoint}: cannot be read as tensors alone (UnpicklingError: " in report.lines[0]
    assert report.lines[0].endswith("; it is removed, and the stage begins again")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_run_that_is_killed_twice_ends_as_the_undisturbed_one(folder):
    """The second time before the next checkpoint; a step adds up two batches."""
    config = make_config(folder, checkpoint_every=2)
    config.finetune.max_steps, config.finetune.batch_size = 5, 4
    inputs = align(config, folder)
    wanted = run("finetune", config, inputs, folder / "whole")
    for _ in range(2):
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run("finetune", config, inputs, folder / "killed", Losses(die_at=3))
        content = torch.load(checkpoints.locate_checkpoint(folder / "killed"), weights_only=True)
        assert content["global_step"] == 2 and checkpoints.count_read_batches(content["loops"]) == 4
    report = Losses()
    found = run("finetune", config, inputs, folder / "killed", report)
    assert report.done == 2 and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_one_in_the_middle_of_a_step_is_removed(tmp_path):
    path = checkpoints.locate_checkpoint(tmp_path)
    path.parent.mkdir()
    loops = {"fit_loop": {"epoch_loop.batch_progress": {"total": {"ready": 6}}}}
    torch.save(training_state(loops=loops), path)
    report = Warnings()
    assert checkpoints.remove_bad_checkpoint(tmp_path, "auto", report, accumulate=2)
    assert not checkpoints.remove_bad_checkpoint(tmp_path, "auto", report, accumulate=4)
    assert "was saved in the middle of a step; it is removed" in report.lines[0] and not path.exists()


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_what_was_trained_is_not_lost_where_it_cannot_be_saved(folder, stage, monkeypatch):
    """The disk is full when the last step is done."""
    config = make_config(folder, checkpoint_every=2)
    inputs = align(config, folder)
    wanted = run(stage, config, inputs, folder / "whole")

    def find_no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full_disk, pytest.raises(OSError, match="No space left"):
        full_disk.setattr(train, "save_file", find_no_space)
        full_disk.setattr(train.FlashSlothForConditionalGeneration, "save_pretrained", find_no_space)
        run(stage, config, inputs, folder / "again")
    report = Losses()
    found = run(stage, config, inputs, folder / "again", report)
    assert report.step == 0 and not report.losses  # no step was left to do
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not (folder / "again" / checkpoints.CHECKPOINTS_FOLDER).exists()


class Handlers(Losses):
    """What answers Slurm's signals while a stage trains."""

    def advance_steps(self, n: int = 1, **fields: object) -> None:
        super().advance_steps(n, **fields)
        self.handler = signal.getsignal(signal.SIGUSR1)


def test_a_scheduler_s_requeueing_neither_saves_nor_resumes(folder, monkeypatch):
    """Lightning's, by a file in the working directory that any other stage would have begun from."""
    config = make_config(folder, checkpoint_every=2)
    inputs = align(config, folder)
    wanted = run("finetune", config, inputs, folder / "whole")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        config.seed = 1
        run("finetune", config, inputs, folder / "other", Losses(die_at=3))
    config.seed = 0
    (folder / "work").mkdir()
    checkpoints.locate_checkpoint(folder / "other").rename(folder / "work" / "hpc_ckpt_1.ckpt")
    monkeypatch.chdir(folder / "work")
    for name, value in {"NTASKS": "1", "JOB_ID": "1", "JOB_NAME": "train", "PROCID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name in ("LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "0")
    report = Handlers()
    found = run("finetune", config, inputs, folder / "own", report)
    assert report.done == 0 and report.handler == signal.SIG_DFL
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_no_file_is_removed_at_the_word_of_a_checkpoint(folder):
    """Lightning removes the checkpoint before the one that it writes, by the name that it finds in it."""
    config, inputs, checkpoint = killed_run(folder, "killed")
    wanted = run("finetune", config, inputs, folder / "whole")
    victim = folder / "mine.txt"
    victim.write_text("dear")
    content = torch.load(checkpoint, weights_only=True)
    (state,) = content["callbacks"].values()
    assert state["best_model_path"] == str(checkpoint)
    state["best_model_path"] = str(checkpoint.parent / "../../mine.txt")
    torch.save(content, checkpoint)
    report = Warnings()
    found = run("finetune", config, inputs, folder / "killed", report)
    assert report.done in (2, 3) and not report.lines
    assert victim.read_text() == "dear"
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def training_state(**changes) -> dict:
    """What Lightning keeps, as far as it is looked at."""
    whole = {"state_dict": {"model.weight": torch.ones(3)}, "global_step": 3}
    return whole | {"optimizer_states": [], "lr_schedulers": [], "loops": {}} | changes


def write_bytes(path, content: bytes):
    path.write_bytes(content)


BAD_CHECKPOINTS = {
    "empty": lambda path: write_bytes(path, b""),
    "text": lambda path: write_bytes(path, b"no checkpoint"),
    "bare pickle": lambda path: write_bytes(path, pickle.dumps(Evil(path.with_name("ran")))),
    "old format": lambda path: torch.save(
        training_state(e=Evil(path.with_name("ran"))), path, _use_new_zipfile_serialization=False
    ),
    "a list": lambda path: torch.save([1, 2], path),
    "weights alone": lambda path: torch.save({"state_dict": {"a": torch.ones(2)}}, path),
    "no weights": lambda path: torch.save(training_state(state_dict=3), path),
    "diverged": lambda path: torch.save(
        training_state(state_dict={"a": torch.tensor([1.0, float("nan")])}), path
    ),
    "pipe": os.mkfifo,
    "folder": os.mkdir,
}


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed"])
def test_what_is_no_checkpoint_is_removed_with_a_line(tmp_path, kind, strategy):
    path = checkpoints.locate_checkpoint(tmp_path)
    path.parent.mkdir()
    BAD_CHECKPOINTS[kind](path)
    report = Warnings()
    assert not checkpoints.remove_bad_checkpoint(tmp_path, strategy, report)
    assert list(path.parent.iterdir()) == []  # no `ran` either
    (line,) = report.lines
    assert line.startswith(f"{path}: ") and "\n" not in line and len(line) < len(str(path)) + 350


def test_a_checkpoint_that_is_cut_or_changed_anywhere(tmp_path):
    path = checkpoints.locate_checkpoint(tmp_path)
    assert not checkpoints.remove_bad_checkpoint(tmp_path, "auto", Reporter())  # there is none
    path.parent.mkdir()
    torch.save(training_state(), path)
    assert checkpoints.remove_bad_checkpoint(tmp_path, "auto", Reporter()) and path.exists()
    whole = path.read_bytes()
    for end in range(0, len(whole), 97):
        path.write_bytes(whole[:end])
        assert checkpoints.find_checkpoint_fault(path)
    for place in range(0, len(whole), 31):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        checkpoints.find_checkpoint_fault(path)  # a fault or none, and nothing is raised


def make_deepspeed_folder(path, content) -> None:
    """A folder as DeepSpeed leaves it."""
    (path / "checkpoint").mkdir(parents=True)
    torch.save({"module": {"a": torch.ones(2)}, "ds_version": "0.18"}, path / "checkpoint/mp_rank_00.pt")
    torch.save(content, path / "checkpoint/zero_pp_rank_0.pt")
    (path / "latest").write_text("checkpoint")


@pytest.mark.parametrize("class_name", ["LossScaler", "SomethingElse"])
def test_deepspeed_reads_what_it_has_written_itself(tmp_path, monkeypatch, class_name):
    """Its own loss scaler is an object; anything else that is one is not read."""
    module_name = "deepspeed.runtime.fp16.loss_scaler"
    module = types.ModuleType(module_name)
    scaler = type(class_name, (), {"__module__": module_name})
    setattr(module, class_name, scaler)
    for parent in ("deepspeed", "deepspeed.runtime", "deepspeed.runtime.fp16"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, module_name, module)
    path = checkpoints.locate_checkpoint(tmp_path)
    make_deepspeed_folder(path, {"loss_scaler": scaler()})
    report = Warnings()
    whole = class_name == "LossScaler"
    assert checkpoints.remove_bad_checkpoint(tmp_path, "deepspeed", report) == whole == path.exists()
    assert whole or f"zero_pp_rank_0.pt in it asks for code ({module_name}.SomethingElse)" in report.lines[0]


def test_other_strategies_read_no_folder(tmp_path):
    """torch.distributed.checkpoint unpickles the `.metadata` of one."""
    path = checkpoints.locate_checkpoint(tmp_path)
    make_deepspeed_folder(path, {})
    assert checkpoints.find_deepspeed_fault(path) is None
    assert checkpoints.find_checkpoint_fault(path) == "is not a file"
    (path / "latest").write_text("../elsewhere")
    assert checkpoints.find_deepspeed_fault(path)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["auto", "fsdp"])
def test_frozen_weights_are_in_no_checkpoint(folder, strategy):
    devices = "1" if strategy == "auto" else "2"
    config = make_config(folder, checkpoint_every=1, devices=devices, strategy=strategy)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run("pretrain", config, {}, folder / "killed", Losses(die_at=2))
    state = torch.load(folder / "killed/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[1] for name in state} == {"compressor", "projector"}
    resumed = run("pretrain", config, {}, folder / "killed")
    whole = run("pretrain", config, {}, folder / "whole")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_checkpoint_that_lacks_a_tensor_is_begun_again(folder):
    config, inputs, checkpoint = killed_run(folder, "killed")
    wanted = run("finetune", config, inputs, folder / "whole")
    content = torch.load(checkpoint, weights_only=True)
    name = next(name for name in content["state_dict"] if "compressor" in name)
    del content["state_dict"][name]
    torch.save(content, checkpoint)
    report = Warnings()
    found = run("finetune", config, inputs, folder / "killed", report)
    assert report.done == 0 and f"{checkpoint}: lacks {name}; it is removed" in report.lines[0]
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
