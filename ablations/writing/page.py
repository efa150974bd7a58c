"""The report as one HTML page: tables, claims and plots inline, nothing to load."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from ablations.claims.verdicts import FAILS, HOLDS, TIE, UNRESOLVED
from ablations.writing.grids import WordGrid
from ablations.writing.text import group_by_block, holds_words

PAGE_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em;
  color: #1c1c1e; }
h1 { font-size: 1.6em; } h2 { font-size: 1.25em; margin-top: 2em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87em; font-variant-numeric: tabular-nums; }
th, td { padding: .22em .7em; text-align: right; vertical-align: top; }
th { border-bottom: 1.5px solid #444; font-weight: 600; }
.l { text-align: left; } tr:hover td { background: #f3f5f8; }
.block td { text-align: left; font-style: italic; color: #555; padding-top: .6em; }
.holds { color: #0a7d32; font-weight: 600; }
.fails { color: #b3261e; font-weight: 600; } .open { color: #666; }
.tie { color: #2f5fa7; font-weight: 600; }
.note { color: #555; font-size: .85em; margin: .3em 0; } svg, img { max-width: 100%; height: auto; }
"""
VERDICT_CLASSES = {HOLDS: "holds", FAILS: "fails", TIE: "tie", UNRESOLVED: "open"}
WORDS_CLASS = ' class="l"'  # of a column of words; numbers need none


class PagePicture(NamedTuple):
    """A picture of the page, as HTML, and what stands below it."""

    caption: str
    html: str


def render_html_page(
    title: str,
    sentences: Sequence[str],
    parts: Sequence[WordGrid | PagePicture],
    notes: Sequence[str],
) -> str:
    """The page: sentences at the top, tables and pictures in order, notes at the end."""
    lines = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f"<title>{escape(title)}</title>",
        f"<style>{PAGE_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
    ]
    for sentence in sentences:
        lines.append(f"<p>{escape(sentence)}</p>")
    for part in parts:
        if isinstance(part, WordGrid):
            lines.append(render_html_table(part))
        else:
            caption = f'<figcaption class="note">{escape(part.caption)}</figcaption>'
            lines.append(f"<figure>{part.html}{caption}</figure>")
    lines += map(render_html_note, notes)
    return "\n".join([*lines, "</body></html>", ""])


def render_html_table(grid: WordGrid) -> str:
    """A table and its notes."""
    classes = []  # the class attribute of each column
    header = ""
    for column, name in enumerate(grid.header):
        classes.append(WORDS_CLASS if holds_words(grid, column) else "")
        header += f"<th{classes[column]}>{escape(name)}</th>"
    lines = [f"<h2>{escape(grid.title)}</h2>", '<div class="wide"><table>', f"<tr>{header}</tr>"]
    for block_title, rows in group_by_block(grid):
        if block_title:
            lines.append(f'<tr class="block"><td colspan="{len(classes)}">{escape(block_title)}</td></tr>')
        for row in rows:
            lines.append(f"<tr>{''.join(map(render_html_cell, classes, row))}</tr>")
    lines.append("</table></div>")
    lines += map(render_html_note, grid.notes)
    return "\n".join(lines)


def render_html_cell(class_attribute: str, words: str) -> str:
    """A cell of a table; verdicts have their colours."""
    if words in VERDICT_CLASSES:
        class_attribute = f' class="l {VERDICT_CLASSES[words]}"'
    return f"<td{class_attribute}>{escape(words)}</td>"


def render_html_note(words: str) -> str:
    """A sentence in small letters."""
    return f'<p class="note">{escape(words)}</p>'


def embed_png(content: bytes) -> str:
    """A PNG file as it stands inside a page."""
    return f'<img src="data:image/png;base64,{b64encode(content).decode()}" alt="attention map">'


def prefix_svg_ids(svgs: Mapping[str, str]) -> dict[str, str]:
    """SVG files as they stand inside a page: without XML head, ids made unlike those of the others, since a
    page's ids are one name space."""
    bodies: dict[str, str] = {}
    for name, svg in svgs.items():
        body = svg[svg.index("<svg") :]
        # where ids are given, linked to, and used as clip paths
        for before in ('id="', '"#', "url(#"):
            body = body.replace(before, f"{before}{name}-")
        bodies[name] = body
    return bodies
