"""The table of the first page has the scores of the committed study."""

import csv
import math
import re
from pathlib import Path

import pytest
from scipy.stats import t

from ablations.study import TINY_FOLDER

ROOT = Path(__file__).parents[2]
TABLE_ROW = re.compile(r"^\| (.+) \|$", re.M)
PAGE_ROWS = [line.split(" | ") for line in TABLE_ROW.findall((ROOT / "README.md").read_text())]
HEADER = next(row for row in PAGE_ROWS if row[0].startswith("test: "))
FAMILIES = HEADER[HEADER.index("overall") + 1 :]
SCORE_ROWS = [
    row for row in PAGE_ROWS if len(row) == len(HEADER) and row is not HEADER and "chance" not in row[0]
]


@pytest.fixture(scope="module")
def committed():
    """Rows of scores.csv by label; those of `field` last, which has every compressor."""
    with open(TINY_FOLDER / "scores.csv", encoding="utf-8") as file:
        return {row["row"]: row for row in csv.DictReader(file) if row["seeds"]}


@pytest.mark.parametrize("row", SCORE_ROWS, ids=lambda row: row[0])
def test_scores_are_those_of_the_study(row, committed):
    label, visual_tokens, query_tokens, overall, *families = row
    scores = committed[label.partition(" (")[0]]
    assert (visual_tokens, query_tokens) == (scores["visual_tokens"], scores["query_tokens"])
    assert families == [f"{float(scores[family]):.1f}" for family in FAMILIES]
    mean, _, deviation = overall.partition(" ±")
    assert mean == f"{float(scores['overall']):.1f}"
    if not scores["overall_pm"]:  # one seed
        assert not deviation
        return
    seeds = int(scores["seeds"])  # the file has half the 95 % t-interval of the mean
    found = float(scores["overall_pm"]) * math.sqrt(seeds) / t.ppf(0.975, seeds - 1)
    assert float(deviation) == pytest.approx(found, abs=0.05)


def test_the_table_is_found():
    assert len(SCORE_ROWS) >= 8 and FAMILIES[0] == "attribute"
