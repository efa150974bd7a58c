"""Tables of words on screens of several widths."""

from io import StringIO

import pytest
from rich.console import Console

from ablations.writing.grids.word_grid import WordGrid
from ablations.writing.screen import render_screen_tables
from experiments.runtime.text_tables import make_word_tables, split_columns

HEADER = ["", *(f"number{column} MFLOP" for column in range(12))]
ROWS = [HEADER, *([label, *[f"{row}.{column:03}" for column in range(12)]] for row, label in enumerate("ab"))]


def show(tables, width):
    console = Console(file=StringIO(), width=width)
    console.print(*tables, sep="")
    return console.file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120, 400])
def test_no_column_is_cut_off(width):
    text = show(make_word_tables(ROWS, width, title="Costs", caption="per row"), width)
    for words in [*HEADER[1:], *ROWS[1], *ROWS[2]]:
        for word in words.split():
            assert word in text
    assert text.count("Costs") == text.count("per row") == 1
    assert max(map(len, text.splitlines())) <= width


def test_each_part_has_the_labels():
    assert split_columns([4, 10, 10, 10], 32) == [[0, 1, 2], [0, 3]]
    assert split_columns([4, 100], 30) == [[0, 1]]
    assert split_columns([4], 30) == [[0]]


@pytest.mark.parametrize("width", [80, 120])
def test_a_report_is_shown_whole(width):
    scores = WordGrid(
        "T", ["", "seeds", "overall", *HEADER[1:]], [("", ["a", "2", "88.1 ±7.9", *ROWS[1][1:]])]
    )
    text = show(render_screen_tables(scores, width), width)
    assert all(word in text for word in ROWS[1][1:])
    claim = "Average pooling loses clearly against the uncompressed model"
    words = [claim, "uncompressed > avg_pool", "+33.5 (limit -1.0)", "+20.4 to +46.8", "does not hold"]
    header = ["claim", "statement", "difference", "interval", "verdict", "remarks"]
    claims = WordGrid("C", header, [("", [*words, "without moderation it is not resolved"])])
    shown = show(render_screen_tables(claims, width), width)
    assert all(word in shown for text in [*words, "moderation"] for word in text.split())
    assert (claim in shown) == (width == 80)  # a line of its own where columns are too narrow for it
