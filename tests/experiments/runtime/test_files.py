"""Disk space is taken before a map is written to; words of a table stay words wherever it is opened."""

import csv
import io
import os

import pytest

from experiments.runtime.files import allocate_file
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
