"""Grids in LaTeX: a document that compiles by itself, whose tables can be taken out one by one (booktabs)."""

import re
from collections.abc import Sequence

from ablations.writing.grids.word_grid import WordGrid, group_by_block, holds_words, spell_line

DOCUMENT_HEAD = r"""\documentclass[10pt]{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage[landscape,margin=15mm]{geometry}
\usepackage{array,booktabs,longtable}
\usepackage[labelformat=empty]{caption}
\setlength{\LTcapwidth}{\linewidth}
\begin{document}
"""
LATEX_SIGNS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "°": r"$^\circ$",
    "×": r"$\times$",
    '"': r"\textquotedbl{}",
}
# before a number that stands by itself: sap.rate=-1 keeps its hyphen
MINUS = re.compile(r"(?<![^\s(])-(?=\d)")
LINE_END = r"\\[0pt]"  # of a line: a `[` or `*` that begins the next one would belong to it
SENTENCE_WIDTHS = {"claim": "46mm", "statement": "62mm", "remarks": "52mm"}  # columns that wrap


def escape_latex(words: str) -> str:
    """Text that LaTeX sets as it stands; negative numbers with a minus."""
    escaped = "".join(LATEX_SIGNS.get(sign, sign) for sign in words)
    return MINUS.sub("$-$", escaped)


def render_latex_table(grid: WordGrid) -> str:
    """A table with its title and notes, which goes on over the page where it has more lines than one."""
    head = [r"\toprule", render_latex_header(grid.header), r"\midrule"]
    parts = [
        r"{\footnotesize",
        rf"\begin{{longtable}}{{@{{}}{list_column_kinds(grid)}@{{}}}}",
        rf"\caption{{{escape_latex(grid.title)}}}\\",
        *head,
        r"\endfirsthead",
        *head,
        r"\endhead",
        r"\bottomrule",
        r"\endfoot",
        *render_latex_lines(grid)[1:],  # the head has the first rule already
        r"\end{longtable}",
    ]
    for note in grid.notes:
        parts.append(rf"\par\noindent {escape_latex(note)}\par")
    return "\n".join([*parts, "}"])


def render_latex_tabular(grid: WordGrid) -> str:
    """The table alone, as a paper takes it with \\input (booktabs and array)."""
    parts = [
        rf"\begin{{tabular}}{{@{{}}{list_column_kinds(grid)}@{{}}}}",
        r"\toprule",
        render_latex_header(grid.header),
        *render_latex_lines(grid),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(parts)


def render_latex_lines(grid: WordGrid) -> list[str]:
    """The lines of a grid, each block below a rule."""
    parts = []
    for block_title, lines in group_by_block(grid):
        parts.append(r"\midrule")
        if block_title:
            whole_line = rf"\multicolumn{{{len(grid.header)}}}{{@{{}}l}}"
            parts.append(rf"{whole_line}{{\textit{{{escape_latex(block_title)}}}}} {LINE_END}")
        for number, _ in lines:
            words = spell_line(grid, number, escape_latex, r"\textbf{{{}}}".format)
            parts.append(" & ".join(words) + f" {LINE_END}")
    return parts


def list_column_kinds(grid: WordGrid) -> str:
    """How LaTeX sets all columns."""
    return "".join(pick_column_kind(grid, column) for column in range(len(grid.header)))


def pick_column_kind(grid: WordGrid, column: int) -> str:
    """How LaTeX sets a column: numbers to the right, words to the left, sentences of claims wrapped."""
    if not holds_words(grid, column):
        return "r"
    heading = grid.header[column]
    # a table of scores may have a family of questions that is called `claim`
    if "statement" in grid.header and heading in SENTENCE_WIDTHS:
        return rf">{{\raggedright\arraybackslash}}p{{{SENTENCE_WIDTHS[heading]}}}"
    return "l"


def render_latex_header(names: Sequence[str]) -> str:
    """The header, a word a line: a name is wider than the numbers below it."""
    headings = []
    for name in names:
        stack = escape_latex(name).replace(" ", r"\\")
        if r"\\" in stack:
            stack = rf"\shortstack[r]{{{stack}}}"
        headings.append(stack)
    return " & ".join(headings) + r" \\"


def render_latex_document(grids: Sequence[WordGrid], sentences: Sequence[str]) -> str:
    """All of it."""
    parts = [*map(escape_latex, sentences), *map(render_latex_table, grids), r"\clearpage"]
    return DOCUMENT_HEAD + "\n\n".join([*parts, "\\end{document}\n"])
