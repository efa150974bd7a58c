"""Help texts folded to a width."""

import re

import pytest

import slothkit
from compressors.help_layout import find_width, lay_out_help

TEXT = """\
Usage: python -m command [WORD ...] [first=...] [second=...]
       python -m command other=FILE

A sentence that was folded by hand, at another width
than the terminal has.

  python -m command first=1 second=2 third=3 fourth=4       an example

  first=1   short
  second=2  a meaning that is longer than the rest of its line and was
            folded by hand
  third=3   a  b

  --help  --version
"""
FOLDED = """\
Usage: python -m command [WORD ...]
           [first=...] [second=...]
       python -m command other=FILE

A sentence that was folded by hand, at
another width than the terminal has.

  python -m command first=1 second=2 third=3 fourth=4
      an example

  first=1   short
  second=2
      a meaning that is longer than the
      rest of its line and was folded by
      hand
  third=3   a  b

  --help  --version
"""


def test_sentences_and_entries_are_folded():
    assert lay_out_help(TEXT, 40) == FOLDED
    assert lay_out_help(TEXT, None) == TEXT


def test_an_entry_goes_on_below_its_meaning():
    lines = lay_out_help(TEXT, 60).splitlines()
    assert "  second=2  a meaning that is longer than the rest of its" in lines
    assert "            line and was folded by hand" in lines


def test_the_width_is_that_of_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert find_width() == 100


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("word", slothkit.COMMANDS)
def test_every_help_fits(word, width, monkeypatch, capsys):
    """Command lines to copy aside, which are whole, and in columns that stand below each other."""
    monkeypatch.setenv("COLUMNS", str(width))
    assert slothkit.main([word, "--help"]) == 0
    text = capsys.readouterr().out
    columns = set()
    for line in text.splitlines():
        assert len(line) <= width or re.match(rf" +slothkit {word} \S", line), line
        knobs = re.match(r"  [a-z_0-9]+ +(?=[a-z_]+=)", line)
        if knobs:
            columns.add(knobs.end())
    assert len(columns) == (word == "sweep")


def test_the_list_of_commands_fits_a_terminal():
    assert max(map(len, slothkit.format_help().splitlines())) <= 80
