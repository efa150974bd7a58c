"""Several processes (gloo, CPU): the gradients, losses and weights of one."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_runs import Losses, align, make_config, record, run, write_backbones, write_data
from torch.multiprocessing import ProcessRaisedException

from compressors.errors import UsageError
from experiments.config.schema_sections import TrainerSettings
from experiments.data.order import SampleOrder
from experiments.runtime.progress import Reporter
from experiments.stages.training import strategies
from experiments.stages.training.ranks import launch_processes

ROWS = 24


def gradients(folder, config, stage, world):
    out = folder / f"{config.trainer.strategy}{world}"
    out.mkdir()
    inputs = align(config, folder)
    if world:
        launch_processes(record, world, Reporter(), config, stage, inputs, out, world)
    else:
        record(config, stage, inputs, out, 0, Reporter())
    found = [torch.load(out / f"gradients.{rank}") for rank in range(world or 1)]
    for grads, trained in found:
        assert sorted(grads) == trained and trained
    for grads, _ in found[1:]:
        assert all(torch.equal(grads[name], found[0][0][name]) for name in grads)
    return found[0][0]


def second_rank(config):
    """The rows that the second of two processes reads in the first step."""
    return frozenset(next(SampleOrder(ROWS, config.finetune, config.seed).iterate_batches())[1::2])


@pytest.mark.parametrize("text_only", [False, True], ids=["images", "text on one rank"])
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_two_processes_have_the_gradients_of_one(tmp_path, stage, text_only):
    write_backbones(tmp_path)
    config = make_config(tmp_path, devices="1")
    config.pretrain.clip = config.finetune.clip = 0.0
    config.pretrain.max_steps = config.finetune.max_steps = 1
    config.tower.train = True
    write_data(tmp_path, ROWS, second_rank(config) if text_only else frozenset())
    alone = gradients(tmp_path, config, stage, 0)
    config.trainer.devices = "2"
    for strategy in ("ddp", "fsdp"):
        config.trainer.strategy = strategy
        together = gradients(tmp_path, config, stage, 2)
        assert together.keys() == alone.keys()
        unlike = [
            name
            for name, wanted in alone.items()
            if not torch.allclose(together[name], wanted, rtol=1e-3, atol=1e-6)
        ]
        assert not unlike, strategy


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "form"), [("ddp", "thin"), ("fsdp", "fade")])
def test_a_killed_run_of_two_processes_resumes_to_the_same_loss_and_weights(tmp_path, strategy, form):
    write_backbones(tmp_path)
    config = make_config(tmp_path, strategy=strategy, checkpoint_every=2)
    config.parts["sap"]["dropout"] = 0.2  # what is drawn must be drawn again
    config.finetune.max_steps = 10
    config.finetune.query_warmup, config.finetune.query_warmup_form = 0.7, form  # it dies in between
    write_data(tmp_path, ROWS, frozenset(range(0, ROWS, 5)))
    inputs = align(config, tmp_path)
    config.trainer.devices = "2"
    undisturbed, resumed = Losses(), Losses()
    wanted = run("finetune", config, inputs, tmp_path / "whole", undisturbed)
    assert undisturbed.total == 10 and undisturbed.losses

    with pytest.raises(KeyboardInterrupt):
        run("finetune", config, inputs, tmp_path / "killed", Losses(die_at=5))
    assert (tmp_path / "killed/checkpoints/last.ckpt").exists()
    found = run("finetune", config, inputs, tmp_path / "killed", resumed)
    assert resumed.done in (4, 6)
    assert resumed.losses == undisturbed.losses
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == ["model", "trainable.md"]


def test_the_loss_does_not_depend_on_processes_and_pieces(tmp_path):
    write_backbones(tmp_path)
    config = make_config(tmp_path)
    write_data(tmp_path, ROWS)
    config.pretrain.max_steps = 10
    losses = []
    for devices, accumulate in (("1", 1), ("1", 4), ("2", 2)):
        config.trainer.devices, config.pretrain.accumulate = devices, accumulate
        report = Losses()
        run("pretrain", config, {}, tmp_path / f"{devices}.{accumulate}", report)
        losses.append(report.losses[-1])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and losses[2] == pytest.approx(losses[0], rel=1e-3)


def test_bad_input_in_a_process_is_one_line(tmp_path):
    write_backbones(tmp_path)
    config = make_config(tmp_path, devices="2")
    config.pretrain.batch_size = 2
    write_data(tmp_path, ROWS)
    with pytest.raises(UsageError, match="^accumulate=2: a step has 2 rows, fewer than 2 pieces in 2 "):
        run("pretrain", config, {}, tmp_path / "out")


def dies(how, report):  # noqa: ARG001
    if os.environ["LOCAL_RANK"] == "1":
        raise how("no space left")
    torch.distributed.TCPStore("127.0.0.1", 0, is_master=True).wait(["what never comes"])


@pytest.mark.parametrize(("how", "raised"), [(OSError, OSError), (RuntimeError, ProcessRaisedException)])
def test_a_process_that_fails_ends_the_others(how, raised):
    with pytest.raises(raised, match="no space left"):
        launch_processes(dies, 2, Reporter(), how)


def waits(report):  # noqa: ARG001
    print("waits", flush=True)  # noqa: T201
    time.sleep(600)


@pytest.mark.slow
def test_processes_end_with_a_sweep_that_is_killed():
    source = "import test_distributed as t; t.launch_processes(t.waits, 2, t.Reporter())"
    tests = Path(__file__).parents[2]
    path = os.pathsep.join(map(str, (Path(__file__).parent, tests / "helpers", tests.parent)))
    sweep = subprocess.Popen(
        [sys.executable, "-c", source],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert [sweep.stdout.readline() for _ in range(2)] == ["waits\n"] * 2
    sweep.kill()
    assert sweep.communicate(timeout=300) == ("", None)  # at its end no process is left that could write


def test_deepspeed_is_asked_for_by_name(tmp_path):
    config = make_config(tmp_path, strategy="deepspeed")
    with pytest.raises(UsageError, match="strategy=deepspeed: (deepspeed is not installed; pip|needs a GPU)"):
        run("pretrain", config, {}, tmp_path / "out")


@pytest.mark.parametrize(
    ("devices", "strategy", "processes"),
    [("auto", "auto", 0), ("1", "ddp", 0), ("1", "fsdp", 1), ("2", "auto", 2), ("3", "ddp", 3)],
)
def test_one_device_needs_no_other_process(devices, strategy, processes):
    settings = TrainerSettings(accelerator="cpu", devices=devices, strategy=strategy)
    assert strategies.count_processes(settings) == processes


def test_devices_by_number_and_by_name():
    told = ("auto", "2", "-1", "[0,2]", "[1]")
    assert [strategies.parse_devices(TrainerSettings(devices=each)) for each in told] == [
        "auto",
        2,
        -1,
        "0,2,",
        "1,",
    ]
