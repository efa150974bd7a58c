"""Disk space is taken before a map is written to; words of a table stay words wherever it is opened."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.runtime.files import (
    allocate_file,
    hold_lock,
    remove_empty_folders,
    share_folder,
    start_draft_name,
    write_atomic,
)
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


def test_a_folder_that_another_process_fills_just_now_stays(tmp_path, monkeypatch):
    real_rmdir = Path.rmdir

    def rmdir_too_late(folder):
        (folder / "of_another").touch()
        real_rmdir(folder)

    monkeypatch.setattr(Path, "rmdir", rmdir_too_late)
    with remove_empty_folders(tmp_path / "runs"):
        (tmp_path / "runs").mkdir()
    assert (tmp_path / "runs" / "of_another").exists()


@pytest.mark.parametrize("removed", ["runs", "runs/pretrain"])
@pytest.mark.parametrize("use", ["lock", "share"])
def test_a_folder_that_another_process_removes_just_now_is_made_again(tmp_path, monkeypatch, removed, use):
    folder = tmp_path / "runs" / "pretrain"
    real_mkdir = os.mkdir
    removals = []

    def mkdir_in_vain(path, *arguments, **options):
        real_mkdir(path, *arguments, **options)
        if Path(path) == tmp_path / removed and not removals:
            removals.append(path)
            os.rmdir(path)

    monkeypatch.setattr(os, "mkdir", mkdir_in_vain)
    context = hold_lock(folder / "a.lock") if use == "lock" else share_folder(folder)
    with context:
        assert removals and folder.is_dir()
