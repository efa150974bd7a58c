"""Words of a report's tables: amounts, and what stands beside a claim."""

import numpy as np
import pytest

from ablations.claims.spec import Claim
from ablations.outcomes import Report, ReportRow, ReportTable
from ablations.writing import write
from ablations.writing.grids import comparison
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


def make_compared(rates: dict[str, float], **baselines: str) -> ReportTable:
    """A table of rows with one seed, compared with `a` or with what `baselines` says."""
    rows = []
    for number, (label, rate) in enumerate(rates.items()):
        right = np.random.default_rng(number).random(100) < rate
        row = ReportRow("", label, outcomes={0: right}, settings={"compressor": label})
        row.baseline = baselines.get(label, "a")
        row.efficiency = {"visual_tokens": 16}
        rows.append(row)
    ids = np.array([f"{number}#0" for number in range(100)])
    chance = {"overall": 0.2, "families": {"all": 0.2}}
    return ReportTable(
        "x", "Mine", "", (), rows, ids, np.full(100, "all"), np.arange(100), chance, baseline="a"
    )


def test_a_comparison_tells_what_is_no_number():
    table = make_compared({"a": 0.5, "b": 0.7, "same": 0.5})
    table.rows[2].outcomes = table.rows[0].outcomes
    table.rows.append(ReportRow("", "cdpruner", absent="the tower has no text encoder"))
    grid = comparison.make_comparison_grid(table, "")
    lines = {words[0]: words for _, words in grid.lines}
    assert lines["same"][3:5] == ["+0.0", "no question differs"]
    assert lines["b"][4].endswith("*")
    assert lines["cdpruner‡"][2] == "cannot be"
    assert "‡ cdpruner: the tower has no text encoder." in grid.notes
    assert len(grid.bold) == 1
    for row in table.rows[:3]:
        row.outcomes = table.rows[0].outcomes
    assert not comparison.make_comparison_grid(table, "").bold  # none is better than another


def test_several_baselines_are_told():
    table = make_compared({"a lr=1": 0.5, "a lr=2": 0.7}, **{"a lr=1": "a lr=1", "a lr=2": "a lr=2"})
    notes = comparison.make_comparison_grid(table, "").notes
    assert any("2 baselines" in note and "'baseline=a lr=1' compares all with one" in note for note in notes)
    notes = comparison.make_comparison_grid(make_compared({"a": 0.5, "b": 0.7}), "").notes
    assert not any("baselines" in note for note in notes)


def test_rows_without_families_and_of_one_cost_are_ranked():
    table = make_compared({"a": 0.5, "b": 0.7})
    assert list(write.draw_plots(Report([table], {}), {"x": []})) == ["tablex-ranking"]
    table.rows[1].efficiency = {"visual_tokens": 4}
    assert list(write.draw_plots(Report([table], {}), {"x": []})) == ["tablex-pareto"]
