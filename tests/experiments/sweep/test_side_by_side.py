"""How many cells are computed at once where nobody says it."""

import re
from functools import partial
from pathlib import Path

import pytest
from fakes import FakeRunner

from compressors.key_value import parse_settings
from experiments.sweep import __main__ as sweep
from experiments.sweep import comparison, side_by_side
from experiments.sweep.plan_view import format_seconds, make_plan
from experiments.sweep.request import read_request
from experiments.sweep.run import open_store, run_here
from experiments.sweep.units import WorkUnit

FOUR_CELLS = ("compressor=sap", "seed=0,1,2,3", "blind=false")
SIX_CELLS = ("compressor=sap", "seed=0,1,2,3,4,5", "blind=false")
GIB = 2**30


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many cores, as much memory, and no GPU."""

    def set_up(cores: int, memory: int = 24 * GIB) -> None:
        monkeypatch.setattr(side_by_side, "count_cores", lambda: cores)
        monkeypatch.setattr(side_by_side, "read_memory_bytes", lambda: memory)
        monkeypatch.setattr(side_by_side, "list_gpus", lambda _: [])
        monkeypatch.setattr(side_by_side.sys, "platform", "linux")

    return set_up


def count_workers(tmp_path, *settings: str) -> int | str | None:
    """Workers that a sweep with these settings takes, by the committed study's times."""
    request = read_request(parse_settings([f"out={tmp_path}", *settings]))
    store = open_store(request, FakeRunner(tmp_path / "log"))
    times = comparison.find_comparison(request.jobs, store).list_times
    find_plan = partial(make_plan, request.jobs, store, times)
    return side_by_side.choose_launch(request.jobs, request.launch, store, find_plan).workers


def test_several_tiny_cells_run_side_by_side(tmp_path, machine):
    machine(cores=2)
    assert count_workers(tmp_path, *FOUR_CELLS) == 2
    assert count_workers(tmp_path, *FOUR_CELLS, "data.scale=0.5") == 2  # a setting that no study has
    assert count_workers(tmp_path, *FOUR_CELLS, "trainer.devices=1") == 2
    machine(cores=4)
    assert count_workers(tmp_path, *FOUR_CELLS) == 4
    machine(cores=4, memory=7 * GIB)
    assert count_workers(tmp_path, *SIX_CELLS) == 3
    assert count_workers(tmp_path, *FOUR_CELLS) == 1  # three cells and then one


@pytest.mark.parametrize(
    "settings",
    [
        ("compressor=sap+embq", "blind=false"),
        ("compressor=sap+embq",),  # with the blind cell: nearly all of it is one chain
        ("compressor=sap,avg_pool", "data.scale=0.005", "pretrain.max_steps=2", "finetune.max_steps=2"),
        (*FOUR_CELLS, "llm.source=hub/llm"),
        (*FOUR_CELLS, "trainer.devices=2"),
        (*FOUR_CELLS, "trainer.nodes=2"),
        (*FOUR_CELLS, "trainer.accelerator=gpu"),
        (*FOUR_CELLS, "launch=slurm"),
        (*FOUR_CELLS, "launch.threads=2"),
        (*FOUR_CELLS, "launch.workers=1"),
    ],
)
def test_what_runs_in_turn(tmp_path, machine, settings):
    machine(cores=2)
    assert count_workers(tmp_path, *settings) == 1


def test_machines_that_compute_in_turn(tmp_path, machine, monkeypatch):
    machine(cores=1)
    assert count_workers(tmp_path, *FOUR_CELLS) == 1
    machine(cores=8, memory=3 * GIB)
    assert count_workers(tmp_path, *FOUR_CELLS) == 1
    machine(cores=8)
    monkeypatch.setattr(side_by_side, "list_gpus", lambda wanted: ["0"] if wanted else [])
    assert count_workers(tmp_path, *FOUR_CELLS) == 1
    assert count_workers(tmp_path, *FOUR_CELLS, "trainer.accelerator=cpu") == 8
    machine(cores=8)
    monkeypatch.setattr(side_by_side.sys, "platform", "darwin")  # Lightning takes its GPU
    assert count_workers(tmp_path, *FOUR_CELLS) == 1


def test_what_was_asked_for_stays(tmp_path, machine):
    machine(cores=2)
    for workers in (3, "auto"):
        assert count_workers(tmp_path, "compressor=sap", f"launch.workers={workers}") == workers
    assert count_workers(tmp_path, *FOUR_CELLS, "launch.workers=null") == 2


def test_a_script_s_sweep_runs_in_its_process(tmp_path):
    """What it has registered itself is not known to workers."""
    request = read_request(parse_settings([f"out={tmp_path}", *FOUR_CELLS]))
    assert request.launch.workers is None and run_here(request).launch.workers == 1
    asked = read_request(parse_settings([f"out={tmp_path}", *FOUR_CELLS, "launch.workers=2"]))
    assert run_here(asked) == asked


def test_workers_are_simulated_as_they_are_handed_out():
    alone = [WorkUnit(KeyedStage(name), "", Path("log"), frozenset()) for name in "abc"]
    units = {unit.key: unit for unit in alone}
    assert side_by_side.simulate_workers(units, dict.fromkeys(units, 10.0), 2) == 20
    assert side_by_side.simulate_workers(units, {"a": 20.0, "b": 10.0, "c": 10.0}, 2) == 20
    assert side_by_side.simulate_workers(units, dict.fromkeys(units, 10.0), 3) == 10
    units["d"] = WorkUnit(KeyedStage("d"), "", Path("log"), frozenset("a"))
    assert side_by_side.simulate_workers(units, {"a": 30.0, "b": 5.0, "c": 5.0, "d": 5.0}, 2) == 35
    assert side_by_side.simulate_workers({}, {}, 2) == 0


class KeyedStage:
    """A stage of which only the key is asked."""

    def __init__(self, key: str):
        self.key = key


def test_the_command_starts_them_and_says_so(tmp_path, machine, capsys):
    machine(cores=2)
    log = tmp_path / "log"
    command = [f"out={tmp_path / 'out'}", *FOUR_CELLS]
    assert sweep.main(command, FakeRunner(log), lambda _: None) == 0
    output = capsys.readouterr()
    assert "2 cells at once, one thread each: sooner here than one after another" in output.out + output.err
    assert set(log.with_suffix(".told").read_text().splitlines()) == {"1 None"}
    logs = {re.sub(r"-\w{8}\.log", "", path.name) for path in (tmp_path / "out" / "logs").iterdir()}
    assert {"sap_seed=0", "sap_seed=3"} <= logs
    assert sweep.main(command, FakeRunner(log), lambda _: None) == 0  # nothing is left: no workers
    assert "at once" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (12.4, "12 s"),
        (99.4, "99 s"),
        (99.7, "1:40 min"),
        (119.7, "2:00 min"),
        (779.8, "13:00 min"),
        (5399.7, "1.5 h"),
    ],
)
def test_durations_are_rounded_before_they_are_divided(seconds, words):
    assert format_seconds(seconds) == words
