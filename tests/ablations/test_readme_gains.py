"""The pages' table of what EmbQ adds has the gains of the committed study."""

import re
from pathlib import Path

import pytest

from ablations import report_files
from ablations.study import TINY_FOLDER
from ablations.writing.grids.gains_grid import make_gains_grid

PAGE = (Path(__file__).parents[1].parent / "ablations" / "README.md").read_text()
TOKEN_COUNTS = ("36", "16", "9", "4")
HEADER = f"| EmbQ behind | {' tokens | '.join(TOKEN_COUNTS)} tokens |"
TABLE = PAGE.partition(HEADER)[2].partition("\n\n")[0]
ROWS = [line.split(" | ") for line in re.findall(r"^\| (.+) \|$", TABLE, re.M)]


@pytest.fixture(scope="module")
def gains():
    """The words of a gain by its name."""
    tables = {table.name: table for table in report_files.load_report(TINY_FOLDER).tables}
    grid = make_gains_grid(tables["rates"])
    reading = grid.header.index("reading")
    return {words[0]: f"{words[4]} ({words[5].rstrip('°')}); {words[reading]}" for _, words in grid.lines}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_gains_are_those_of_the_study(row, gains):
    name, *cells = row
    assert cells == [gains.get(f"{name.strip('`')} at {count}", "") for count in TOKEN_COUNTS]


def test_the_table_is_found():
    assert len(ROWS) >= 4
