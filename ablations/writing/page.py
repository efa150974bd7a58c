"""The report as one HTML page: tables, claims and plots inline, nothing to load."""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from ablations.claims.verdicts import FAILS, HOLDS, TIE, UNRESOLVED
from ablations.writing.grids.word_grid import WordGrid, group_by_block, holds_words

# tables fit a window of 1280 pixels; in a narrower one they scroll beside their labels, which stay, and
# plots scroll, whose letters could not be read otherwise
PAGE_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5em auto; max-width: 82em; padding: 0 1em;
  color: #1c1c1e; overflow-wrap: break-word; }
h1 { font-size: 1.6em; } h2 { font-size: 1.25em; margin-top: 2em; } p { max-width: 60em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87em; font-variant-numeric: tabular-nums; }
th, td { padding: .22em .55em; text-align: right; vertical-align: top; white-space: nowrap; }
th { border-bottom: 1.5px solid #444; font-weight: 600; vertical-align: bottom; white-space: normal; }
.l { text-align: left; } td.l { white-space: normal; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; max-width: 22em; }
tr:hover td { background: #f3f5f8; }
.block td { text-align: left; font-style: italic; color: #555; padding-top: .6em; }
.holds { color: #0a7d32; font-weight: 600; }
.fails { color: #b3261e; font-weight: 600; } .open { color: #666; }
.tie { color: #2f5fa7; font-weight: 600; }
.note { color: #555; font-size: .85em; margin: .3em 0; }
figure { margin: 1.2em 0; } svg, img { max-width: 100%; height: auto; display: block; margin-bottom: .8em; }
@media (max-width: 640px) { th:first-child, td:first-child { max-width: 9em; white-space: normal; }
  h1 { overflow-wrap: anywhere; }
  figure { overflow-x: auto; } figure svg, figure img { width: 56em; max-width: none; } }
"""
VERDICT_CLASSES = {HOLDS: "holds", FAILS: "fails", TIE: "tie", UNRESOLVED: "open"}
WORDS_CLASS = ' class="l"'  # of a column of words; numbers need none


class PagePicture(NamedTuple):
    """A picture of the page, as HTML, and what stands below it."""

    caption: str
    html: str


class PageSection(NamedTuple):
    """A heading and sentences below it."""

    heading: str
    sentences: Sequence[str]


def render_html_page(
    title: str, parts: Sequence[WordGrid | PagePicture | PageSection], notes: Sequence[str]
) -> str:
    """The page: a title, tables, pictures and sections in order, notes at the end."""
    lines = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{PAGE_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
    ]
    for part in parts:
        if isinstance(part, WordGrid):
            lines.append(render_html_table(part))
        elif isinstance(part, PageSection):
            lines.append(f"<h2>{escape(part.heading)}</h2>")
            lines += [f"<p>{escape(sentence)}</p>" for sentence in part.sentences]
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
        header += f"<th{classes[column]}>{break_words(name)}</th>"
    lines = [f"<h2>{escape(grid.title)}</h2>", '<div class="wide"><table>', f"<tr>{header}</tr>"]
    for block_title, rows in group_by_block(grid):
        if block_title:
            lines.append(f'<tr class="block"><td colspan="{len(classes)}">{escape(block_title)}</td></tr>')
        for number, row in rows:
            cells = ""
            for column, words in enumerate(row):
                cells += render_html_cell(classes[column], words, (number, column) in grid.bold)
            lines.append(f"<tr>{cells}</tr>")
    lines.append("</table></div>")
    lines += map(render_html_note, grid.notes)
    return "\n".join(lines)


def render_html_cell(class_attribute: str, words: str, is_bold: bool) -> str:
    """A cell of a table; verdicts have their colours."""
    if words in VERDICT_CLASSES:
        class_attribute = f' class="l {VERDICT_CLASSES[words]}"'
    content = break_words(words) if class_attribute else escape(words)
    if is_bold:
        content = f"<b>{content}</b>"
    return f"<td{class_attribute}>{content}</td>"


def break_words(words: str) -> str:
    """Words in which a line may end where a setting's name does: finetune.|query_|warmup=|0.2."""
    return re.sub(r"(?<=[._=+])(?=\w)", "<wbr>", escape(words))


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
    for number, (name, svg) in enumerate(svgs.items(), 1):
        body = svg[svg.index("<svg") :]
        # where ids are given, linked to, and used as clip paths
        for before in ('id="', '"#', "url(#"):
            body = body.replace(before, f"{before}plot{number}-")
        bodies[name] = body
    return bodies
