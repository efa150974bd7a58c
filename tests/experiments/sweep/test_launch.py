"""Cells by worker processes and by submitit: the same table, what fails, dies or is interrupted."""

import os
import re
import resource
import signal
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from fakes import FakeRunner, alive, children, names, read_log, spawn, table, wait_for

from compressors.key_value import parse_settings
from experiments.registries import launchers
from experiments.runtime.progress import Reporter
from experiments.store.store import Store
from experiments.sweep import __main__ as sweep
from experiments.sweep import options, pool, request, slurm
from experiments.sweep.launcher import Launcher
from experiments.sweep.options import LaunchOptions
from experiments.sweep.pool import ProcessPool
from experiments.sweep.units import make_units
from experiments.sweep.worker import compute_unit, set_threads

CELLS = ("compressor=sap,sap+embq", "seed=0,1")
LOCAL = "launch.slurm.cluster=local"
STAGES = {"data": 1, "features test": 1, "features pretrain": 1, "pretrain": 2, "finetune": 5, "evaluate": 5}


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def command(tmp_path, log):
    """The sweep with fake stages; its exit code."""

    def call(*arguments: str, out: str = "out", cells=CELLS, **faults) -> int:
        runner = FakeRunner(log, **faults)
        return sweep.main([*names(tmp_path / out), *cells, *arguments], runner, lambda _: None)

    return call


def counts(log: Path) -> dict[str, int]:
    runs = read_log(log)
    return {kind: runs.count(kind) for kind in runs}


@pytest.mark.parametrize("how", [["launch.workers=2"], ["launch.threads=1"]])
def test_workers_make_the_same_table(command, log, tmp_path, how):
    assert command(out="alone") == 0
    log.unlink()
    assert command(*how) == 0
    assert counts(log) == STAGES
    assert table(tmp_path / "out") == table(tmp_path / "alone")
    logs = sorted(re.sub(r"-\w{8}\.log", "", p.name) for p in (tmp_path / "out" / "logs").iterdir())
    assert logs == [
        "blind_seed=0",
        "data",
        "features",
        "features",
        "pretrain",
        "pretrain",
        "sap+embq_seed=0",
        "sap+embq_seed=1",
        "sap_seed=0",
        "sap_seed=1",
    ]
    (text,) = (p.read_text() for p in (tmp_path / "out" / "logs").glob("sap_seed=0*"))
    assert re.search(r"finetune \w+: 10 steps, \d+ s  loss 1\n.*evaluate \w+: 10 steps", text, re.S)


def test_nothing_to_do_starts_nothing(command, log, capsys):
    command()
    log.unlink()
    capsys.readouterr()
    assert command("launch.workers=2") == 0
    assert not log.exists() and "[5/5] blind seed=0" in capsys.readouterr().out


def test_units_are_what_several_read_and_every_cell(tmp_path, log):
    asked = request.read_request(parse_settings([*names(tmp_path), *CELLS]))
    store = Store(tmp_path, runner=FakeRunner(log))
    units = make_units(asked.jobs, store)
    kinds = [u.stage.kind for u in units.values()]
    assert sorted(kinds[:4]) == ["data", "features", "features", "pretrain"]
    assert kinds[4:] == ["evaluate", "pretrain", *["evaluate"] * 4]  # no row waits for all of stage 1
    for unit in units.values():
        assert set(list(units)[: list(units).index(unit.key)]) >= unit.needs  # an order of work
    for cell, stage in asked.jobs[:2]:
        assert cell.config.compressor == "sap" and len(units[stage.key].needs) == 4
        store.compute(stage)
    left = [u.stage.kind for u in make_units(asked.jobs, store).values()]
    assert left == ["evaluate"] * 3  # what is shared is there


def test_a_failed_cell_is_told_with_its_last_lines_and_retried(command, log, tmp_path, capsys):
    assert command("launch.workers=2", fail="pretrain") == 1
    out = capsys.readouterr().out
    found = re.findall(r"^failed: (.*): pretrain/\w+: RuntimeError: CUDA out of memory; see (.*)$", out, re.M)
    assert [cell for cell, _ in found] == ["sap seed=1", "sap+embq seed=1"]
    assert re.search(
        rf"^{re.escape(found[0][1])}:$(\n  .*)*\n  RuntimeError: first\n  CUDA out of memory$", out, re.M
    )
    text = Path(found[0][1]).read_text()
    assert "a last word\n" in text and "Traceback" in text
    assert counts(log)["evaluate"] == 3 and counts(log)["pretrain"] == 2
    assert command("launch.workers=2") == 0
    assert command(out="alone") == 0
    assert table(tmp_path / "out") == table(tmp_path / "alone")


def test_a_shared_stage_that_diverges_leaves_the_other_cells_alone(command, log, tmp_path, capsys):
    """Blind cells have no stage 1: theirs is the only row."""
    assert command("launch.workers=2", cells=["compressor=sap,sap+embq"], diverge="pretrain") == 1
    output = capsys.readouterr().out
    for cell in ("sap", "sap+embq"):
        assert re.search(
            rf"^failed: {re.escape(cell)} seed=0: pretrain/\w+: step 2: the loss is not", output, re.M
        )
    assert "Traceback" not in output
    labels = [line.split(",")[1] for line in (tmp_path / "out/table.csv").read_text().splitlines()[1:]]
    assert labels == ["chance", "blind"]
    assert counts(log)["pretrain"] == counts(log)["finetune"] == counts(log)["evaluate"] == 1


def test_a_worker_that_dies_is_replaced_and_its_stage_goes_on(command, tmp_path, capsys):
    deaths = tmp_path / "deaths"
    deaths.write_text("xx")
    assert command("launch.workers=2", deaths=deaths) == 0
    assert capsys.readouterr().out.count("its worker ended by signal 9; it goes on") == 2


def test_a_unit_whose_workers_keep_dying_fails(command, log, tmp_path, capsys):
    deaths = tmp_path / "deaths"
    deaths.write_text("xxx")
    assert command("launch.workers=2", cells=["compressor=sap", "blind=false"], deaths=deaths) == 1
    assert re.search(
        r"^failed: sap seed=0: finetune/\w+: its worker ended by signal 9; see .*/logs/sap",
        capsys.readouterr().out,
        re.M,
    )
    assert counts(log)["finetune"] == 3 and "evaluate" not in counts(log)


def test_a_unit_that_comes_further_with_every_worker_is_not_given_up(command, log, tmp_path):
    """As a stage of Slurm whose time limit is shorter than it."""
    one_cell = ["compressor=sap", "blind=false"]
    assert command("launch.workers=2", cells=one_cell, life=2) == 0
    assert counts(log)["finetune"] == counts(log)["evaluate"] == 5
    assert command(cells=one_cell, out="alone") == 0
    assert table(tmp_path / "out") == table(tmp_path / "alone")


def test_bad_input_in_a_worker_is_one_line(command, capsys):
    assert command("launch.workers=2", refuse="features") == 2
    assert capsys.readouterr().err == "error: picture.png is no picture; delete it\n"


def test_a_full_disk_in_a_worker(tmp_path):
    """A limit on file sizes stands for a full disk."""
    code = "import sys; from experiments.sweep.__main__ import main; sys.exit(main(check=lambda _: None))"
    command = [
        sys.executable,
        "-B",
        "-c",
        code,
        *names(tmp_path / "out"),
        "data.scale=0.002",
        "launch.workers=2",
    ]
    found = subprocess.run(
        command,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)),
    )
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1 and "File too large" in found.stderr and "out=DIR" in found.stderr
    assert not list((tmp_path / "out").rglob("done.json"))


@pytest.mark.parametrize("launch", [[], ["launch.workers=2"]])
def test_a_full_disk_is_told_with_the_same_advice_by_a_worker(command, capsys, launch):
    assert command(*launch, fill="features") == 2
    error = capsys.readouterr().err
    assert "/a.bin: No space left on device; free space there or choose another" in error
    assert error.count("\n") == 1


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_no_worker_outlives_the_command(tmp_path, log, number, code):
    asked = request.read_request(parse_settings([*names(tmp_path / "out"), *CELLS]))
    Store(tmp_path / "out", runner=FakeRunner(tmp_path / "before")).compute(asked.jobs[0][1].inputs["data"])
    process = spawn(tmp_path / "out", log, 600, *CELLS, "launch.workers=2", stderr=subprocess.PIPE)
    try:
        wait_for(lambda: len(read_log(log.with_suffix(".steps"))) == 2, 120)  # both features are under way
        workers = children(process.pid)
        assert len(workers) == 2
        process.send_signal(number)
        assert process.wait(120) == code
        wait_for(lambda: not any(alive(pid) for pid in workers), 120)
    finally:
        process.kill()


def test_two_sweeps_at_once_compute_everything_once(tmp_path, log):
    both = [spawn(tmp_path / "out", log, 0.2, *CELLS, "launch.workers=2") for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert counts(log) == STAGES


def test_what_a_worker_is_told(tmp_path, log, monkeypatch):
    """Its threads and its GPU, before a stage imports torch."""
    asked = request.read_request(parse_settings([*names(tmp_path), *CELLS]))
    store = Store(tmp_path, runner=FakeRunner(log))
    store.compute(asked.jobs[0][1].inputs["data"])
    log.with_suffix(".told").unlink()
    features = list(make_units(asked.jobs, store).values())[:2]
    monkeypatch.setattr(pool, "list_gpus", lambda wanted: ["5", "7"] if wanted else [])
    workers = ProcessPool(tmp_path, store.runner, Reporter(), workers=2, threads=3, uses_gpu=True)
    ended = []
    try:
        workers.submit(features)
        assert workers.free == 0
        while len(ended) < 2:
            ended += workers.poll(0.5)
    finally:
        workers.close()
    assert {unit.key: outcome.kind for unit, outcome in ended} == {unit.key: "done" for unit in features}
    assert sorted(read_log(log.with_suffix(".told"))) == ["3 5", "3 7"]


def test_a_worker_of_a_script_that_imports_torch_has_its_threads_too(monkeypatch):
    """Spawning runs the script's beginning before the worker is told."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    before = torch.get_num_threads()
    try:
        set_threads(before + 1)
        assert torch.get_num_threads() == before + 1 == int(os.environ["OMP_NUM_THREADS"])
    finally:
        torch.set_num_threads(before)


class OneAfterAnother(Launcher):
    """A launcher as an outside package would write it: it takes what it needs of the context."""

    created: list["OneAfterAnother"] = []

    def __init__(self, root: Path, runner: object, parameters: dict):
        self.store, self.parameters, self.unit, self.closed = Store(root, runner=runner), parameters, None, 0
        self.created.append(self)

    @property
    def free(self) -> int:
        return int(self.unit is None)

    def submit(self, units):
        (self.unit,) = units

    def poll(self, seconds):  # noqa: ARG002
        unit, self.unit = self.unit, None
        return [(unit, compute_unit(unit.stage, self.store, wait=False))]

    def close(self):
        self.closed += 1


@pytest.fixture
def outside_launcher(monkeypatch):
    """The registry with a launcher of an outside package."""
    point = EntryPoint("turns", f"{__name__}:OneAfterAnother", launchers.group)
    monkeypatch.setitem(launchers.__dict__, "entry_points", {**launchers.entry_points, "turns": point})
    monkeypatch.setattr(launchers, "_classes", dict(launchers._classes))
    monkeypatch.setattr(OneAfterAnother, "created", [])


@pytest.mark.usefixtures("outside_launcher")
def test_a_launcher_of_an_outside_package_makes_the_same_table(command, log, tmp_path):
    assert command(out="alone") == 0
    log.unlink()
    assert command("launch=turns", "launch.turns.queue=night") == 0
    assert counts(log) == STAGES
    assert table(tmp_path / "out") == table(tmp_path / "alone")
    (launcher,) = OneAfterAnother.created
    assert launcher.parameters == {"queue": "night"} and launcher.closed == 1


@pytest.mark.usefixtures("outside_launcher")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["launch=turn"], "launch=turn: must be one of local, slurm, turns"),
        (["launch.turns.queue=night"], "launch.turns.queue=night: needs launch=turns"),
        (["launch=turns", "launch.slurm.time=1"], "launch.slurm.time=1: needs launch=slurm"),
        (["launch.local.queue=night"], "unknown setting 'launch.local.queue'"),
    ],
)
def test_outside_launchers_are_known_by_name(command, capsys, arguments, message):
    assert command(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not OneAfterAnother.created


def test_names_of_launchers_are_known_without_importing_them():
    code = (
        "import sys; from experiments.sweep.options import take_launch_options; "
        "take_launch_options({'launch': ['slurm'], 'launch.slurm.time': ['1']}); "
        "sys.exit('experiments.sweep.slurm' in sys.modules or 'experiments.sweep.pool' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


def test_submitit_makes_the_same_table(command, log, tmp_path, monkeypatch):
    """Its executor for processes of this machine: real jobs, no Slurm."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])  # a job is a process of its own
    cells = ["compressor=sap", "seed=0,1", "blind=false"]
    slurm = ["launch=slurm", "launch.workers=2", LOCAL, "launch.slurm.partition=gpu"]
    assert command(out="alone", cells=cells) == 0
    log.unlink()
    assert command(*slurm, cells=cells, fail="finetune") == 1
    assert command(*slurm, cells=cells) == 0
    assert counts(log) == STAGES | {"finetune": 3, "evaluate": 2}
    assert table(tmp_path / "out") == table(tmp_path / "alone")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["launch=slurn"], "launch=slurn: must be one of local, slurm"),
        (["launch.workers=0"], "launch.workers=0: must be at least 1"),
        (["launch.workers=two"], "launch.workers='two': expected int"),
        (["launch.workers=1,2"], "launch.workers=1,2: takes one value"),
        (["launch.worker=2"], "unknown setting 'launch.worker'; did you mean 'launch.workers'"),
        (["launch.threads=0"], "launch.threads=0: must be at least 1"),
        (["launch.slurm.partition=gpu"], "launch.slurm.partition=gpu: needs launch=slurm"),
        (["launch=slurm", "launch.workers=auto"], "launch.workers=auto: with launch=slurm"),
    ],
)
def test_options_that_cannot_be(command, tmp_path, capsys, arguments, message):
    assert command(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], 'launch=slurm: Could not detect "srun"'),
        (["launch.slurm.partitio=gpu", LOCAL], "launch.slurm.partitio=gpu: Unknown argument 'partitio'"),
        (["launch.slurm.timeout_min=soon", LOCAL], "launch.slurm.timeout_min=soon: Parameter"),
    ],
)
def test_slurm_that_cannot_be(command, tmp_path, capsys, arguments, message, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "/nowhere")
    assert command("launch=slurm", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_plan_refuses_parameters_that_submitit_does_not_know(command, tmp_path, capsys, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "/nowhere")  # no Slurm here
    assert command("launch=slurm", "launch.slurm.partitoin=gpu", "--plan") == 2
    assert "launch.slurm.partitoin=gpu: Unknown argument 'partitoin'" in capsys.readouterr().err
    assert command("launch=slurm", "launch.slurm.partition=gpu", "launch.slurm.time=240", "--plan") == 0
    assert not (tmp_path / "out").exists()


def test_jobs_have_a_name_in_the_queue(tmp_path):
    pytest.importorskip("submitit")
    for parameters, name in (({}, "slothkit"), ({"name": "mine"}, "mine")):
        executor = slurm.make_executor(tmp_path, 1, {**parameters, "cluster": "local"})
        assert executor.parameters["name"] == name


def test_what_slurm_refuses_is_one_line(command, tmp_path, capsys, monkeypatch):
    pytest.importorskip("submitit")
    programs = tmp_path / "bin"
    programs.mkdir()
    refusal = "echo 'sbatch: error: invalid partition specified: gpuu' >&2; exit 1"
    for name, line in (("srun", "exit 0"), ("sbatch", refusal)):
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    assert command("launch=slurm", "launch.workers=1", "launch.slurm.partition=gpuu") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: launch=slurm: ") and "invalid partition" in lines[-1]


def test_without_submitit(command, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert command("launch=slurm") == 2
    assert capsys.readouterr().err == "error: launch=slurm needs submitit: pip install 'slothkit[slurm]'\n"


def test_launch_options():
    axes = {
        "launch": ["slurm"],
        "launch.workers": ["8"],
        "launch.slurm.gres": ["gpu:1", "nvme"],
        "launch.slurm.time": ["60"],
        "seed": ["0"],
    }
    assert options.take_launch_options(axes) == LaunchOptions(
        "slurm", 8, None, {"gres": "gpu:1,nvme", "time": 60}
    )
    assert axes == {"seed": ["0"]} and options.take_launch_options(axes).in_process


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30:00", "1:30:00"),
        ("0012", "0012"),
        ("on", "on"),
        ("1e3", "1e3"),
        ("240", 240),
        ("0", 0),
        ("true", True),
        ("'a: b'", "a: b"),
        ("'7, 8'", "7, 8"),
        ("a: b", "a: b"),
        ("node[1-3]", "node[1-3]"),
        ("{hint: nomultithread}", {"hint": "nomultithread"}),
    ],
)
def test_a_launcher_gets_what_was_typed(text, value):
    axes = parse_settings(["launch=slurm", f"launch.slurm.x={text}"])
    assert options.take_launch_options(axes).parameters == {"x": value}


def test_gpus_that_are_hidden_are_not_used(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert pool.list_gpus() == []
