"""The command over the shipped backbones: what only a model's sizes can tell, and runs that are killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.sweep import __main__ as sweep

SMALL = [
    "compressor=sap+embq",
    "blind=false",
    "data.scale=0.005",
    "evaluate.limit=24",
    "trainer.accelerator=cpu",
    "trainer.checkpoint_every=3",
    "pretrain.batch_size=4",
    "finetune.batch_size=4",
    "pretrain.max_steps=24",
    "finetune.max_steps=24",
    "pretrain.epochs=24",
    "finetune.epochs=24",
]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sap.rate=5"], "rate=5 does not divide the 12x12 patch grid"),
        (["embq.at=7"], "embq.at=7: the LLM has decoder layers 1 to 6"),
        (["embq.heads=3"], "embq.heads=3 does not divide embq.dim=64"),
        (["embq.dim=63"], "embq.heads=4 does not divide embq.dim=63"),
        (["embq.released=true", "embq.fusion=gated"], "embq.released=true"),
        (["image.size=10"], "image"),
        (["tower.select_layer=-9"], "select_layer=-9: the vision tower has 6 blocks"),
        (
            ["compressor=ldpv2", "ldpv2.grid=[20,20]", "ldpv2.rate=null"],
            "grid=(20, 20) is larger than the 12x12",
        ),
        (["projector=identity", "compressor=pixel_shuffle"], "identity"),
        (["llm.source=nowhere/at/all"], "llm.source=nowhere/at/all: cannot be loaded"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--plan"]])
def test_what_does_not_fit_is_one_line(capsys, tmp_path, overrides, message, flags):
    assert sweep.main([f"out={tmp_path / 'runs'}", *overrides, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_backbone_out_of_reach_can_be_planned(capsys, tmp_path, monkeypatch):
    """A plan is made where the hub cannot be reached, and waits for it once; a sweep is not."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments = [f"out={tmp_path / 'runs'}", "llm.source=nowhere/model", "compressor=sap+embq,avg_pool"]
    assert sweep.main([*arguments, "--plan"]) == 0
    out = capsys.readouterr().out
    assert "not checked: sap+embq: llm.source=nowhere/model: cannot be loaded" in out and "pretrain" in out
    assert "not checked: avg_pool: its models are out of reach, as above" in out
    assert sweep.main(arguments) == 2
    assert "llm.source=nowhere/model: cannot be loaded" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_of_a_table_the_row_that_does_not_fit_is_named(capsys, tmp_path):
    table = tmp_path / "mine.yaml"
    table.write_text(
        "title: mine\nblocks:\n- title: rates\n  rows:\n"
        "  - {label: a third, overrides: [compressor=sap]}\n"
        "  - {label: a fifth, overrides: [compressor=sap, sap.rate=5]}\n"
    )
    assert sweep.main([f"out={tmp_path / 'runs'}", f"table={table}"]) == 2
    assert capsys.readouterr().err.startswith("error: a fifth: rate=5 does not divide the 12x12 patch grid")


def start(out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.sweep", f"out={out}", *SMALL],
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(out: Path) -> dict[str, bytes]:
    process = start(out)
    output = process.communicate(timeout=400)[0]
    assert process.returncode == 0, output
    return {name: (out / name).read_bytes() for name in ("table.csv", "table.md")} | {
        path.name: path.read_bytes() for path in out.glob("cells/*/*.json*") if path.name != "stages.json"
    }


def kill_in(stage: str, out: Path) -> None:
    """kill -9 once the stage has written a checkpoint."""
    process, deadline = start(out), time.monotonic() + 300
    while not list(out.glob(f"{stage}/*.partial/checkpoints/last.ckpt")):
        assert process.poll() is None, f"over before it was killed: {process.stdout.read()}"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not list(out.glob(f"{stage}/*/done.json"))


@pytest.mark.slow
def test_a_sweep_killed_in_either_stage_ends_with_the_same_results(tmp_path):
    undisturbed = finish(tmp_path / "whole")
    kill_in("pretrain", tmp_path / "killed")
    kill_in("finetune", tmp_path / "killed")
    assert finish(tmp_path / "killed") == undisturbed
