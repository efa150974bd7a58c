"""Every kind of stage has the function that computes it, and asking which one costs a planner no torch."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import stages

from experiments.stages import evaluate, features, train
from experiments.stages.runners import find_runner
from experiments.store.plan import STAGE_KINDS
from experiments.store.store import Store


def test_every_kind_of_stage_has_its_function():
    functions = {kind: find_runner(kind) for kind in STAGE_KINDS}
    assert all(callable(function) for function in functions.values())
    assert functions["pretrain"] is train.pretrain and functions["finetune"] is train.finetune
    assert functions["features"] is features.run and functions["evaluate"] is evaluate.run
    with pytest.raises(ValueError, match="no stage of kind prune"):
        find_runner("prune")


def test_workers_can_have_it_and_it_imports_no_torch():
    assert pickle.loads(pickle.dumps(find_runner)) is find_runner
    code = "import sys; from experiments.stages import runners; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0


def test_a_store_without_a_runner_only_reads(tmp_path):
    stage = stages()["data"]
    store = Store(tmp_path)
    assert store.find_status(stage) == "missing"
    with pytest.raises(ValueError, match="is not finished, and this store has no runner"):
        store.compute(stage)
    assert store.find_status(stage) == "missing"
