"""What lies below an output directory, and what of it no cell needs."""

import json
import shutil

import pytest
import torch
from fakes import FakeRunner, names, stages

from experiments import runs
from experiments.config.presets import read_yaml
from experiments.runtime import provenance
from experiments.runtime.files import share_folder
from experiments.store import results, store
from experiments.sweep import __main__ as sweep
from experiments.sweep.worker import run_slurm_job


@pytest.fixture
def out(tmp_path):
    """Two cells that share a stage 1."""
    folder = tmp_path / "out"
    assert run_sweep(folder, "compressor=sap,sap+embq", "blind=false") == 0
    return folder


def run_sweep(folder, *arguments):
    runner = FakeRunner(folder.parent / "log")
    return sweep.main([*names(folder), *arguments], runner, lambda _: None)


def list_files(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def test_sizes_and_users(out, capsys):
    capsys.readouterr()
    before = list_files(out)
    assert runs.main([f"out={out}"]) == 0
    text = capsys.readouterr().out
    assert "stages that no cell needs: 0, 0 B" in text
    [stage_one] = [line for line in text.splitlines() if line.startswith("pretrain/")]
    assert "sap_seed=0-" in stage_one or "sap+embq_seed=0-" in stage_one
    assert stage_one.endswith(" and 1 more")
    assert text.count("finetune/") == text.count("evaluate/") == 2
    assert list_files(out) == before


def test_a_cell_without_its_weights_is_marked(out, capsys):
    [cell] = out.glob("cells/sap_*")
    [weights] = [name for name in json.loads((cell / "stages.json").read_text()) if name.startswith("fine")]
    shutil.rmtree(out / weights)
    shutil.rmtree(out / "pretrain")
    capsys.readouterr()
    assert runs.main([f"out={out}"]) == 0
    text = capsys.readouterr().out
    assert f"{cell.name} ({weights} gone)" in text and text.count(" gone") == 1


def test_what_a_removed_cell_needed_is_cleared(out, capsys):
    shutil.rmtree(next(out.glob("cells/sap+embq_*")))
    theirs = out / "finetune" / "notes"  # of somebody's own
    theirs.mkdir()
    before = list_files(out)
    assert runs.main([f"out={out}"]) == 0
    assert "stages that no cell needs: 2, " in capsys.readouterr().out and list_files(out) == before
    assert runs.main([f"out={out}", "clear=true"]) == 0
    assert [len(list(out.glob(f"{kind}/*/done.json"))) for kind in ("pretrain", "finetune", "evaluate")] == [
        1,
        1,
        1,
    ]
    assert theirs.is_dir()
    [notes] = out.glob("cells/*/stages.json")
    assert all((out / name / "done.json").is_file() for name in json.loads(notes.read_text()))


def test_what_is_begun_is_kept_unless_it_is_asked_for(out, capsys):
    begun = out / "finetune" / "0123456789abcdef.partial"
    begun.mkdir()
    assert runs.main([f"out={out}", "clear=true"]) == 0
    assert begun.is_dir() and "begun, which a sweep resumes: 1" in capsys.readouterr().out
    assert runs.main([f"out={out}", "clear=true", "begun=true"]) == 0
    assert not begun.exists()


def test_nothing_is_cleared_while_a_sweep_runs(out, capsys):
    shutil.rmtree(out / "cells")
    with share_folder(out):
        before = list_files(out)
        assert runs.main([f"out={out}", "clear=true"]) == 2
        assert "a sweep runs there; clear when it has ended" in capsys.readouterr().err
        assert list_files(out) == before
    assert runs.main([f"out={out}", "clear=true"]) == 0
    assert not list(out.glob("*/*/done.json"))


def test_a_sweep_shares_its_directory(tmp_path, capsys):
    folder = tmp_path / "out"
    exit_codes = []

    def run_meanwhile(kind):
        def run(*arguments, **keywords):
            exit_codes.append(runs.main([f"out={folder}", "clear=true"]))
            FakeRunner(tmp_path / "log")(kind)(*arguments, **keywords)

        return run

    assert sweep.main([*names(folder), "blind=false"], run_meanwhile, lambda _: None) == 0
    assert set(exit_codes) == {2} and "a sweep runs there" in capsys.readouterr().err


def test_a_job_shares_its_directory_without_its_command(tmp_path):
    """Slurm's jobs go on where the command that has submitted them was killed."""
    folder = tmp_path / "out"
    exit_codes = []

    def run_meanwhile(kind):
        def run(*arguments, **keywords):
            exit_codes.append(runs.main([f"out={folder}", "clear=true", "begun=true"]))
            FakeRunner(tmp_path / "log")(kind)(*arguments, **keywords)

        return run

    outcome = run_slurm_job(stages()["data"], tmp_path / "job.log", folder, run_meanwhile, None)
    assert outcome.kind == "done" and exit_codes == [2]


def test_a_sweep_that_was_killed_while_it_wrote_a_cell_still_tells_its_stages(out, capsys, monkeypatch):
    shutil.rmtree(out / "cells")

    def write_one(path, content):
        path.write_bytes(content)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(results, "write_if_changed", write_one)
        assert run_sweep(out, "compressor=sap", "blind=false") == 130
    assert len(list(out.glob("cells/*/*"))) == 1
    capsys.readouterr()
    assert runs.main([f"out={out}"]) == 0
    # of the two cells that were there
    assert "stages that no cell needs: 2, " in capsys.readouterr().out


def test_a_cell_without_its_stages_is_written_again(out, capsys):
    notes = next(out.glob("cells/sap_*/stages.json"))
    notes.unlink()
    assert runs.main([f"out={out}", "clear=true"]) == 2
    assert "run its sweep's command again, which writes it" in capsys.readouterr().err
    assert run_sweep(out, "compressor=sap", "blind=false") == 0
    assert runs.main([f"out={out}"]) == 0 and notes.is_file()


@pytest.mark.parametrize("content", [None, "{}", "[3]"])
def test_bad_input_is_one_line(out, capsys, content):
    notes = next(out.glob("cells/*/stages.json"))
    notes.unlink() if content is None else notes.write_text(content)
    capsys.readouterr()
    assert runs.main([f"out={out}", "clear=true"]) == 2
    error = capsys.readouterr().err
    assert str(notes) in error and error.count("\n") == 1
    assert runs.main(["out=no/where"]) == 2
    assert "out=no/where: no such directory" in capsys.readouterr().err


def test_each_cell_tells_how_it_came_about(out):
    folders = list((out / "cells").iterdir())
    assert len(folders) == 2
    for folder in folders:
        facts = read_yaml(folder / "run.yaml")
        assert list(facts) == json.loads((folder / "stages.json").read_text())
        for fact in facts.values():
            assert {"torch", "transformers", "slothkit"} <= fact["versions"].keys()
            assert (
                fact["command"].startswith("slothkit sweep ") and "compressor=sap,sap+embq" in fact["command"]
            )
            assert fact["device"] and fact["python"] and fact["seconds"] >= 0


def test_it_stays_told_when_an_input_is_gone(out):
    [before] = [read_yaml(path / "run.yaml") for path in out.glob("cells/sap_*")]
    shutil.rmtree(out / "pretrain")
    assert run_sweep(out, "compressor=sap", "blind=false") == 0  # another command, which computes nothing
    [after] = [read_yaml(path / "run.yaml") for path in out.glob("cells/sap_*")]
    assert after == before


def test_workers_know_the_command(tmp_path):
    folder = tmp_path / "out"
    assert run_sweep(folder, "blind=false", "launch.workers=2") == 0
    [path] = folder.glob("cells/*/run.yaml")
    assert all("launch.workers=2" in fact["command"] for fact in read_yaml(path).values())


def test_commits_are_of_repositories_alone(tmp_path):
    assert provenance.read_commit(tmp_path) == ""
    commits = dict(provenance.find_commits())
    if (provenance.CODE_FOLDER / ".git").exists():
        assert len(commits["slothkit"].partition(" ")[0]) == 40


def test_a_change_of_tracked_files_shows(tmp_path, monkeypatch):
    identity = ["-c", "user.name=x", "-c", "user.email=x@y", "-c", "commit.gpgsign=false"]
    assert provenance.ask_git(tmp_path, "init", "-q") is not None
    (tmp_path / "a.txt").write_text("one")
    provenance.ask_git(tmp_path, "add", "a.txt")
    assert provenance.ask_git(tmp_path, *identity, "commit", "-qm", "one") is not None
    commit = provenance.read_commit(tmp_path)
    assert len(commit) == 40
    (tmp_path / "b.txt").write_text("not tracked")
    assert provenance.read_commit(tmp_path) == commit
    (tmp_path / "a.txt").write_text("two")
    assert provenance.read_commit(tmp_path) == f"{commit} + changes"
    # installed below somebody else's repository, which does not have our files
    installed = tmp_path / ".venv" / "site-packages"
    installed.mkdir(parents=True)
    (installed / "slothkit.py").touch()
    monkeypatch.setattr(provenance, "CODE_FOLDER", installed)
    monkeypatch.chdir(tmp_path)
    provenance.find_commits.cache_clear()
    assert dict(provenance.find_commits()) == {"here": f"{commit} + changes"}
    provenance.find_commits.cache_clear()


@pytest.mark.parametrize(
    ("devices", "trained", "evaluated"),
    [
        ("auto", "2 x H200, A100", "H200"),
        ("1", "H200", "H200"),
        ("2", "2 x H200", "H200"),
        ("[2]", "A100", "A100"),
        ("[1,2]", "H200, A100", "H200"),
    ],
)
def test_the_device_of_a_run_is_what_it_ran_on(devices, trained, evaluated, monkeypatch):
    """Not every card of the machine."""
    cards = ["H200", "H200", "A100"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: cards[number])
    by_kind = stages(f"trainer.devices={devices}")
    names = {kind: store.describe_stage_run(stage)["device"] for kind, stage in by_kind.items()}
    assert names["finetune"] == trained and names["evaluate"] == evaluated
    assert "threads" in names["data"]
