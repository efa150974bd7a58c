"""Grids in LaTeX: a document that compiles by itself, whose tables can be taken out one by one (booktabs)."""

from collections.abc import Sequence

from ablations.writing.grids import Grid
from ablations.writing.text import blocks, left

HEAD = r"""\documentclass[10pt]{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage[landscape,margin=15mm]{geometry}
\usepackage{array,booktabs}
\usepackage[labelformat=empty]{caption}
\begin{document}
"""
SIGNS = {
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
END = r"\\[0pt]"  # of a line: a `[` or `*` that begins the next one would belong to it
WORDS = ("p{46mm}", "p{62mm}", "p{52mm}")  # columns of sentences: claim, statement, remarks


def escape(words: str) -> str:
    """Text that LaTeX sets as it stands."""
    return "".join(SIGNS.get(sign, sign) for sign in words)


def table(grid: Grid) -> str:
    """One table environment."""
    claims = "statement" in grid.header
    wraps = iter(WORDS)
    kinds = [
        (next(wraps) if claims and grid.header[i] in ("claim", "statement", "remarks") else "l")
        if left(grid, i)
        else "r"
        for i in range(len(grid.header))
    ]
    kinds = [rf">{{\raggedright\arraybackslash}}{kind}" if kind[0] == "p" else kind for kind in kinds]
    found = [
        r"\begin{table}[htbp]",
        r"\centering\footnotesize",
        rf"\caption{{{escape(grid.title)}}}",
        rf"\begin{{tabular}}{{@{{}}{''.join(kinds)}@{{}}}}",
        r"\toprule",
        heads(grid.header),
    ]
    for title, lines in blocks(grid):
        found.append(r"\midrule")
        if title:
            wide = rf"\multicolumn{{{len(grid.header)}}}{{@{{}}l}}"
            found.append(rf"{wide}{{\textit{{{escape(title)}}}}} {END}")
        found += map(line, lines)
    found += [r"\bottomrule", r"\end{tabular}"]
    found += [rf"\par\smallskip {escape(note)}" for note in grid.notes]
    return "\n".join([*found, r"\end{table}"])


def heads(names: Sequence[str]) -> str:
    """The header, a word a line: a name is wider than the numbers below it."""
    stacks = [escape(name).replace(" ", r"\\") for name in names]
    return " & ".join(rf"\shortstack[r]{{{s}}}" if r"\\" in s else s for s in stacks) + r" \\"


def line(cells: Sequence[str]) -> str:
    return " & ".join(map(escape, cells)) + f" {END}"


def document(grids: Sequence[Grid], sentences: Sequence[str]) -> str:
    """All of it."""
    parts = [*map(escape, sentences), *map(table, grids), r"\clearpage"]
    return HEAD + "".join(f"{part}\n\n" for part in parts) + "\\end{document}\n"
