"""One sweep on two "nodes" of this machine (gloo, CPU): the weights of one node with two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from safetensors.torch import load_file

from compressors.errors import UsageError
from compressors.key_value import parse_settings
from experiments.store.plan import plan_stages
from experiments.sweep import run
from experiments.sweep.__main__ import main
from experiments.sweep.request import read_request

SMALL = (
    "compressor=sap+embq",
    "blind=false",
    "data.scale=0.005",
    "pretrain.max_steps=2",
    "finetune.max_steps=3",
    "evaluate.limit=8",
    "trainer.accelerator=cpu",
)
# a softmax is the same whatever these are: their gradient is rounding alone, of which AdamW makes whole steps
UNSEEN = ("scorer.3.bias", "k_proj.bias")
WEIGHTS = ("pretrain/*/aligned.safetensors", "finetune/*/model/model.safetensors")


def start(*settings: str, **variables: str) -> subprocess.Popen:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.sweep", *SMALL, *settings],
        # one thread each, whoever starts them: the last bits of a sum depend on it
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def list_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.slow
def test_two_nodes_train_what_one_does(tmp_path, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()), "LOCAL_RANK": "0"}
    sweeps = [start(f"out={two}", "trainer.nodes=2", NODE_RANK=str(rank), **meeting) for rank in range(2)]
    code = main([*SMALL, f"out={one}", "trainer.devices=2"])
    first, second = outputs = [sweep.communicate(timeout=600)[0] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0] and code == 0, (outputs, capsys.readouterr())

    # keys and all: nothing tells which of them trained on several machines
    assert list_files(two) == list_files(one)
    for pattern in WEIGHTS:
        [path] = one.glob(pattern)
        compare_weights(load_file(two / path.relative_to(one)), load_file(path))
    assert f"{two}/table.md" in first
    names = [next(two.glob(f"{kind}/*")).relative_to(two) for kind in ("pretrain", "finetune")]
    assert second.split("\n") == [
        "  node 1 follows node 0",
        *(f"  node 1 takes part in {name}" for name in names),
        "",
    ]


def compare_weights(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        tolerance = 1e-3 if name.endswith(UNSEEN) else 1e-5
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=tolerance, msg=name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["trainer.nodes=1,2"], "trainer.nodes=1,2: takes one value"),
        (
            ["trainer.nodes=2", "launch.workers=2"],
            "trainer.nodes=2: several nodes train one cell after another",
        ),
        (["trainer.nodes=2", "launch.threads=1"], "leave out launch, launch.workers and launch.threads"),
        (["trainer.nodes=2", "launch=slurm", "launch.workers=2"], "start the command itself with srun or"),
    ],
)
def test_workers_and_nodes_do_not_go_together(settings, message):
    with pytest.raises(UsageError, match=message):
        read_request(parse_settings([*SMALL, *settings]))


def test_a_number_of_nodes_is_in_no_key():
    keys = set()
    for nodes in (1, 2):
        [(cell, stage)] = read_request(parse_settings([*SMALL, f"trainer.nodes={nodes}"])).jobs
        assert cell.config.trainer.nodes == nodes
        keys |= plan_stages(cell.config).collect_stages().keys() | {stage.key}
    assert len(keys) == 6


def test_torchrun_without_nodes_is_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    monkeypatch.setenv("WORLD_SIZE", "1")
    run.refuse_lone_sweeps()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        UsageError, match="torchrun has started 2 processes; for several nodes set trainer.nodes"
    ):
        run.refuse_lone_sweeps()
