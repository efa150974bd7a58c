"""LaTeX of a report: that it compiles, and that no line is lost."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ablations.study import TINY_FOLDER
from ablations.writing.grids.word_grid import WordGrid
from ablations.writing.latex import escape_latex, render_latex_document, render_latex_tabular

PAPER = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{array,booktabs}
\begin{document}
\begin{table}\footnotesize\input{table.tex}\end{table}
\end{document}
"""


def compile_latex(file: Path) -> str:
    """What pdflatex says of a file; the test fails where it makes no pages of it."""
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", file.name]
    for _ in range(2):  # the columns of long tables have their widths from the first run
        done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, errors="replace")
        assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


def make_grid(lines: int) -> WordGrid:
    rows = [("block [1]" if row < 9 else "", [f"row_{row} [a]", f"{row}.5 ±1.0"]) for row in range(lines)]
    return WordGrid("50 % of $T$", ["", "overall & more"], rows, ["† a_b: ours ~ not theirs."], {(0, 1)})


@pytest.mark.parametrize(
    ("words", "escaped"),
    [
        ("-1.0 to -0.2", "$-$1.0 to $-$0.2"),
        ("not resolved (-1.0 to +0.2)", "not resolved ($-$1.0 to +0.2)"),
        ("sap.rate=-1 2026-11-30", "sap.rate=-1 2026-11-30"),
    ],
)
def test_negative_numbers_have_a_minus(words, escaped):
    assert escape_latex(words) == escaped


needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")


@needs_latex
def test_a_long_table_goes_on_over_the_page(tmp_path):
    (tmp_path / "report.tex").write_text(
        render_latex_document([make_grid(3), make_grid(120)], ["Said: 1 > 0."])
    )
    log = compile_latex(tmp_path / "report.tex")
    assert "too large" not in log and "Overfull" not in log
    assert int(re.search(r"\((\d+) pages", log)[1]) > 2


@needs_latex
def test_a_table_alone_is_taken_into_a_paper(tmp_path):
    (tmp_path / "table.tex").write_text(render_latex_tabular(make_grid(12)) + "\n")
    (tmp_path / "paper.tex").write_text(PAPER)
    assert "Overfull" not in compile_latex(tmp_path / "paper.tex")


@needs_latex
def test_the_committed_report_compiles(tmp_path):
    shutil.copy(TINY_FOLDER / "report.tex", tmp_path)
    assert "too large" not in compile_latex(tmp_path / "report.tex")
