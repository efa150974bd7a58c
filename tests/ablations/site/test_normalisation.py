"""The examples of the page on normalisation, scored by the metrics that it tells of."""

import re

import pytest

from ablations.site.weaving import SITE
from experiments.metrics.choice import read_choice
from experiments.metrics.yes_no import means_yes
from experiments.registries import metrics

PAGE = (SITE / "reference/normalisation.md").read_text()
OPTIONS = ("the fox", "the red fox", "12")


def list_rows(heading):
    """The cells of each row of a section's table, without the marks of code, under its heads."""
    section = re.split("^## ", PAGE, flags=re.M)[1:]
    [text] = [text for text in section if text.startswith(f"{heading}\n")]
    lines = [line.strip("| ") for line in text.splitlines() if line.startswith("|")]
    heads, _, *rows = [re.split(r" *\| *", line) for line in lines]
    return [dict(zip(heads, [cell.strip("`") for cell in row], strict=True)) for row in rows]


@pytest.mark.parametrize("name", ["exact", "vqa", "anls", "relaxed"])
def test_texts(name):
    metric = metrics.create(name)
    rows = list_rows("Texts")
    assert len(rows) > 30
    for row in rows:
        assert metric.score(row["said"], row["truth"]) == pytest.approx(float(row[name]), abs=0.005), row
        assert metric.score(row["truth"], row["truth"]) == 1, row


def test_several_accepted_answers():
    rows = list_rows("Several accepted answers")
    assert {row["metric"] for row in rows} == {"exact", "vqa", "anls", "relaxed", "choice", "pope"}
    question = "\n".join(f"{letter}. {option}" for letter, option in zip("ABC", OPTIONS))
    for row in rows:
        metric = metrics.create(row["metric"])
        answers = row["accepted"].split("`, `")
        truth = answers
        if hasattr(metric, "read_truth"):
            truth = metric.read_truth(answers, question)
        assert metric.score(row["said"], truth) == pytest.approx(float(row["score"])), row


def test_options():
    assert "A. the fox, B. the red fox, C. 12:" in PAGE
    rows = list_rows("Options")
    assert {row["option"] for row in rows} == {"A", "B", "C", "none"}
    for row in rows:
        assert (read_choice(row["said"], OPTIONS) or "none") == row["option"], row


def test_yes_and_no():
    rows = list_rows("Yes and no")
    assert {row["answer"] for row in rows} == {"yes", "no"}
    for row in rows:
        assert means_yes(row["said"]) == (row["answer"] == "yes"), row


def test_every_metric_of_a_sweep_is_on_the_page():
    able = {name for name in metrics.names() if hasattr(metrics.get(name), "score")}
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE.partition("## Texts")[0], re.M)) == able
