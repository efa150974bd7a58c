"""Parts of what is measured on a GPU: the script that runs them, and the figures that they are for."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from ablations.costs.on_a_gpu import FIGURES, main

SCRIPT = Path(__file__).parents[3] / "ablations" / "results" / "efficiency" / "on_a_gpu.sh"
# stands in for Python: notes its words and writes what is asked for, or fails halfway
RECORDER = """#!/usr/bin/env bash
echo "$@" >> "$NOTES"
for word; do
    case $word in to=*) mkdir -p "${word#to=}"; echo '{}' > "${word#to=}/efficiency.json" ;; esac
done
exit "${FAIL:-0}"
"""


@pytest.fixture
def script(tmp_path):
    recorder = tmp_path / "python"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    settings = {"PYTHON": str(recorder), "OUT": str(tmp_path / "out"), "NOTES": str(tmp_path / "notes")}

    def run(*words, **changes):
        environment = {**os.environ, **settings, **changes}
        return subprocess.run(["bash", str(SCRIPT), *words], env=environment, capture_output=True, text=True)

    return run


def test_a_part_that_is_done_is_left_out_and_one_that_failed_is_done_again(script, tmp_path):
    failed = script("answers", "decoding", FAIL="3")
    assert failed.returncode == 1 and failed.stderr.strip() == "not done: answers decoding"
    assert not (tmp_path / "out" / "answers").exists()
    assert script("answers").returncode == 0
    assert (tmp_path / "out" / "answers" / "efficiency.json").is_file()
    assert "answers: done\n" in script("list").stdout and "decoding\n" in script("list").stdout
    before = (tmp_path / "notes").read_text()
    assert script("answers").stdout == "answers: done before\n"
    assert (tmp_path / "notes").read_text() == before
    assert script().returncode == 0
    assert not list((tmp_path / "out").glob("*.unfinished"))
    assert all(word.endswith(": done") for word in script("list").stdout.splitlines())


def test_what_is_wrong_is_named(script):
    answer = script("answer")
    assert answer.returncode == 2 and answer.stderr.startswith("answer: no such part; there are answers ")
    assert script(QUICK="1", OUT="").returncode == 2


def test_every_figure_has_its_part(script):
    parts = script("list").stdout.split()
    for figure in FIGURES:
        assert set(figure.parts) <= set(parts)


def make_part(folder, part, device="NVIDIA H100 80GB HBM3", rows=(), training=()):
    made = {"device_name": device, "torch": "2", "transformers": "5", "dtype": "bfloat16"}
    result = {"made": made, "rows": list(rows), "training": list(training)}
    (folder / part).mkdir()
    (folder / part / "efficiency.json").write_text(json.dumps(result))


def make_row(label, batch, ttft, decode=None):
    measured = {"ttft": [ttft] * 3, "decode": decode and [decode] * 3}
    counts = {"visual": 81, "query": 9, "text": 40, "llm_bytes": 5e9}
    return {"label": label, "batch": batch, "counts": counts, "measured": measured}


def test_figures_are_those_of_their_definitions(tmp_path, capsys):
    slow, fast = make_row("identity", 8, 0.7), make_row("sap+embq", 8, 0.2)
    make_part(tmp_path, "answers", rows=[make_row("identity", 1, 9.0), slow, fast])
    make_part(tmp_path, "decoding", rows=[make_row("sap+embq", 1, 0.1, decode=5e9 / (0.5 * 3.35e12))])
    step_seconds = 1.5 * 5e9 / (0.5 * 3.35e12)
    make_part(tmp_path, "decoding_dynamic", rows=[make_row("sap+embq", 1, 0.1, decode=step_seconds)])
    step = {"label": "sap+embq", "stage": "finetune", "seconds": [2.0, 1.0, 9.0], "flops": 2 * 0.42 * 989e12}
    make_part(tmp_path, "training_flashsloth", training=[step])
    assert main([str(tmp_path)]) == 0
    heading, *others = capsys.readouterr().out.splitlines()
    tokens = "81 visual, 9 query, 40 text tokens"
    assert heading.endswith(f"bfloat16; sap+embq: {tokens}; identity: {tokens}")
    lines = [line.strip("| ").split(" | ") for line in others if "|" in line]
    measured = {words[0].strip(): words[1].strip() for words in lines[2:]}
    assert measured == {
        "TTFT, batch 8": "3.50x",
        "TTFT, batch 1, compiled": "part not run",
        "training, stage 2": "42 %",
        "decoding, batch 1": "50 %",
        "decoding, static over dynamic cache": "1.50x",
    }


def test_bad_folders_are_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "run ablations/results/efficiency/on_a_gpu.sh first" in capsys.readouterr().err
    make_part(tmp_path, "answers")
    assert main([str(tmp_path)]) == 2
    assert "no row of label sap+embq, batch 8" in capsys.readouterr().err
    make_part(tmp_path, "decoding", device="another")
    assert main([str(tmp_path)]) == 2
    assert "give each device a folder of its own" in capsys.readouterr().err
