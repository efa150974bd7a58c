"""The parts of the core rows with real backbones on a GPU: what each runs, and how the recipe is chosen."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "ablations" / "results" / "small" / "on_a_gpu.sh"
# stands in for Python: notes its words, writes the table of the trials, and runs the script's own code
STAND_IN = """#!/usr/bin/env bash
if [ "$1" = - ]; then exec python3 "$@"; fi
echo "$@" >> "$NOTES"
for word; do
    case $word in
        out=*)
            mkdir -p "${word#out=}"
            cp "$TABLE" "${word#out=}/table.csv"
            echo made > "${word#out=}/table.md" ;;
    esac
done
sleep "${SLEEP:-0}"
"""
HEADER = "questions,row,seeds,overall\n"


def make_table(first, second, third):
    """Scores at each learning rate, of identity; avg_pool has ten points less everywhere."""
    lines = ["test,chance (majority),,20\n"]
    for compressor, less in (("identity", 0), ("avg_pool", 10)):
        for rate, score in (("1e-4", first), ("3e-4", second), ("1e-3", third)):
            lines.append(f"test,{compressor} finetune.lr={rate},1,{score - less}\n")
    return HEADER + "".join(lines)


@pytest.fixture
def script(tmp_path):
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    table = tmp_path / "trials.csv"
    table.write_text(make_table(60, 70, 65))
    settings = {name: str(tmp_path / name.lower()) for name in ("OUT", "RUNS", "NOTES")}
    settings |= {"PYTHON": str(stand_in), "TABLE": str(table)}

    def run(*parts, **changes):
        environment = {**os.environ, **settings, **changes}
        return subprocess.run(["bash", str(SCRIPT), *parts], env=environment, capture_output=True, text=True)

    return run


def test_all_parts_have_the_recipe_that_was_chosen(script, tmp_path):
    done = script(SETTINGS="tower.source=there/tower")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "recipe.txt").read_text() == "finetune.lr=3e-4\n"
    trials, *seeds, report = (tmp_path / "notes").read_text().splitlines()
    assert "compressor=identity,avg_pool finetune.lr=1e-4,3e-4,1e-3 data.test=tune" in trials
    assert [line.split(" table=core ")[1] for line in seeds] == [
        f"finetune.lr=3e-4 seed={seed}" for seed in range(3)
    ]
    assert report.startswith("ablations.report preset=small", 3)
    assert report.endswith(f"table=core finetune.lr=3e-4 seed=0,1,2 to={tmp_path / 'out'}")
    for line in (trials, *seeds, report):
        assert f" preset=small tower.source=there/tower out={tmp_path / 'runs'} " in line


def test_a_recipe_is_chosen_once(script, tmp_path):
    assert script("recipe").returncode == 0
    notes = (tmp_path / "notes").read_text()
    assert "finetune.lr=3e-4, chosen before" in script("recipe").stdout
    assert (tmp_path / "notes").read_text() == notes


def test_the_lower_of_two_equal_rates_is_taken(script, tmp_path):
    (tmp_path / "trials.csv").write_text(make_table(70, 60, 70))
    assert script("recipe").returncode == 0
    assert (tmp_path / "out" / "recipe.txt").read_text() == "finetune.lr=1e-4\n"


def test_a_table_without_all_trials_chooses_nothing(script, tmp_path):
    (tmp_path / "trials.csv").write_text(make_table(60, 70, 65).replace("avg_pool finetune.lr=1e-3", "other"))
    assert script("recipe").returncode == 1
    assert not (tmp_path / "out" / "recipe.txt").exists()


def test_what_is_wrong_is_named(script):
    wrong = script("seed3")
    assert wrong.returncode == 2 and wrong.stderr.startswith("seed3: no such part; there are recipe seed0 ")
    early = script("seed0")
    assert early.returncode == 2 and "run the part recipe first" in early.stderr
    assert script(QUICK="1", OUT="").returncode == 2
    slow = script("recipe", SLEEP="5", LIMIT="1")
    assert slow.returncode == 124 and "goes on where it was" in slow.stderr
