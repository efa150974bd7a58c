"""Disk space is taken before a map is written to; words of a table stay words wherever it is opened."""

import csv
import io
import os
import subprocess
import sys

import pytest

from experiments.runtime.files import allocate_file, start_draft_name, write_atomic
from experiments.runtime.text_tables import format_csv, format_markdown_table

SIZE = 3 << 20


@pytest.mark.parametrize("has_fallocate", [True, False])
def test_a_file_with_holes_takes_its_space(tmp_path, monkeypatch, has_fallocate):
    if not has_fallocate:  # as on macOS
        monkeypatch.delattr(os, "posix_fallocate")
    path = tmp_path / "holes"
    path.write_bytes(b"begin")
    os.truncate(path, SIZE)
    assert path.stat().st_blocks * 512 < SIZE
    allocate_file(path)
    assert path.stat().st_blocks * 512 >= SIZE == path.stat().st_size
    assert path.read_bytes() == b"begin".ljust(SIZE, b"\0")


@pytest.mark.parametrize("sign", [*"=+-@", "\t=", "\r=", " =", "\uff1d", "\uff20"])
def test_a_spreadsheet_runs_no_word(sign):
    word = f"{sign}cmd|' /C calc'!A0"
    text = format_csv([[word, "-1.5000", -2.5, "+3", "a=b", ""]])
    [row] = csv.reader(io.StringIO(text, newline=""))
    assert row == ["'" + word.replace("\r", " "), "-1.5000", "-2.5", "+3", "a=b", ""]


def test_markdown_shows_no_html_of_a_label():
    label = "<img src=x onerror=alert(1)> ![x](http://a/b) [2, 4] a|b\nc"
    lines = format_markdown_table([["", "overall"], [label, "1.0"]])
    assert lines[2].startswith("| &lt;img src=x onerror=alert(1)> ![x]\\(http://a/b) [2, 4] a\\|b c |")
    assert len(lines) == 3


def test_drafts_of_killed_processes_are_removed_by_the_next_write(tmp_path):
    path = tmp_path / "metrics[1].json"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    other_host = f".{path.name}.elsewhere.{ended.pid}.draft"
    living = f"{start_draft_name(path)}{os.getppid()}.draft"
    for name in (f"{start_draft_name(path)}{ended.pid}.draft", living, other_host):
        (tmp_path / name).write_text("half")
    write_atomic(path, "whole")
    assert path.read_text() == "whole"
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([path.name, living, other_host])
