"""Words of a report's tables: amounts, and what stands beside a claim."""

import numpy as np
import pytest

from ablations.claims.spec import Claim
from ablations.outcomes import Report, ReportRow, ReportTable
from ablations.writing import write
from ablations.writing.grids.claims_grid import make_claims_grid
from ablations.writing.grids.number_words import format_amount, format_range, format_signed


@pytest.mark.parametrize(
    ("amount", "words"),
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1 k"),
        (999_400, "999 k"),
        (999_600, "1 M"),
        (999_600_000, "1 G"),
        (1_234_567, "1.23 M"),
    ],
)
def test_amounts_have_three_digits(amount, words):
    assert format_amount(amount) == words


def make_report() -> Report:
    """Of one table, whose two claims come from elsewhere each."""
    answers = np.random.default_rng(0).random((2, 2, 100)) < 0.5
    rows = [ReportRow("", label, outcomes=dict(enumerate(answers[i]))) for i, label in enumerate("ab")]
    claims = (
        Claim("b leads", "a paper, Table 3", "better", (("b", "a"),), ours="one seed"),
        Claim("a leads", "us, before these rows were run", "better", (("a", "b"),)),
    )
    ids = np.array([f"{number}#0" for number in range(100)])
    table = ReportTable("mine", "Mine", "", claims, rows, ids, np.full(100, "all"), np.arange(100))
    return Report([table], {"cells": 0})


def test_each_claim_has_its_own_source():
    [table] = make_report().tables
    grid = make_claims_grid(table, write.claims_grid.judge_own_claims(table))
    assert grid.title == "Mine: claims"
    remarks = [line[-1] for _, line in grid.lines]
    assert remarks[0].endswith("ours: one seed; source: a paper, Table 3")
    assert remarks[1].endswith("source: us, before these rows were run")


def test_a_report_tells_no_facts_of_another_study(monkeypatch):
    monkeypatch.setattr(write, "draw_plots", lambda *_: {})
    rendered = write.render_report(make_report())
    for name in ("report.md", "report.tex", "report.html"):
        assert "Differences in percentage points" in rendered.texts[name]
        assert "had been seen" not in rendered.texts[name]
        assert "Mine: claims" in rendered.texts[name]


def test_plots_have_their_captions_in_markdown():
    words = write.render_markdown_report(make_report(), [], [], [], ["claims", "tablemine-curves"])
    first, second = words.split("![tablemine-curves](plots/tablemine-curves.svg)\n\n")
    assert first.endswith("blue is a tie, grey is not resolved.\n\n")
    assert second.startswith("Mine: accuracy over rates;") and "dashed: with a query module" in second


def test_an_interval_says_on_which_side_of_zero_it_ends():
    assert format_range(-0.006, 4.95) == "-0.0 to +5.0"
    assert format_range(0.006, 4.95) == "+0.0 to +5.0"
    assert format_signed(-0.006) == "+0.0"  # a difference that rounds to nothing is none
