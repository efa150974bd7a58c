"""Grids in LaTeX: a document that compiles by itself, whose tables can be taken out one by one (booktabs)."""

from collections.abc import Sequence

from ablations.writing.grids import WordGrid
from ablations.writing.text import group_by_block, holds_words

DOCUMENT_HEAD = r"""\documentclass[10pt]{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage[landscape,margin=15mm]{geometry}
\usepackage{array,booktabs}
\usepackage[labelformat=empty]{caption}
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
    "×": r"$\times$",
    '"': r"\textquotedbl{}",
}
LINE_END = r"\\[0pt]"  # of a line: a `[` or `*` that begins the next one would belong to it
SENTENCE_COLUMNS = ("p{46mm}", "p{62mm}", "p{52mm}")  # columns of sentences: claim, statement, remarks


def escape_latex(words: str) -> str:
    """Text that LaTeX sets as it stands."""
    return "".join(LATEX_SIGNS.get(sign, sign) for sign in words)


def render_latex_table(grid: WordGrid) -> str:
    """One table environment."""
    claims = "statement" in grid.header
    wraps = iter(SENTENCE_COLUMNS)
    kinds = [
        (next(wraps) if claims and grid.header[i] in ("claim", "statement", "remarks") else "l")
        if holds_words(grid, i)
        else "r"
        for i in range(len(grid.header))
    ]
    kinds = [rf">{{\raggedright\arraybackslash}}{kind}" if kind[0] == "p" else kind for kind in kinds]
    found = [
        r"\begin{table}[htbp]",
        r"\centering\footnotesize",
        rf"\caption{{{escape_latex(grid.title)}}}",
        rf"\begin{{tabular}}{{@{{}}{''.join(kinds)}@{{}}}}",
        r"\toprule",
        render_latex_header(grid.header),
    ]
    for title, lines in group_by_block(grid):
        found.append(r"\midrule")
        if title:
            wide = rf"\multicolumn{{{len(grid.header)}}}{{@{{}}l}}"
            found.append(rf"{wide}{{\textit{{{escape_latex(title)}}}}} {LINE_END}")
        found += map(render_latex_line, lines)
    found += [r"\bottomrule", r"\end{tabular}"]
    found += [rf"\par\smallskip {escape_latex(note)}" for note in grid.notes]
    return "\n".join([*found, r"\end{table}"])


def render_latex_header(names: Sequence[str]) -> str:
    """The header, a word a line: a name is wider than the numbers below it."""
    stacks = [escape_latex(name).replace(" ", r"\\") for name in names]
    return " & ".join(rf"\shortstack[r]{{{s}}}" if r"\\" in s else s for s in stacks) + r" \\"


def render_latex_line(cells: Sequence[str]) -> str:
    return " & ".join(map(escape_latex, cells)) + f" {LINE_END}"


def render_latex_document(grids: Sequence[WordGrid], sentences: Sequence[str]) -> str:
    """All of it."""
    parts = [*map(escape_latex, sentences), *map(render_latex_table, grids), r"\clearpage"]
    return DOCUMENT_HEAD + "".join(f"{part}\n\n" for part in parts) + "\\end{document}\n"
