"""The report as one HTML page: tables, claims and plots inline, nothing to load."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape

from ablations.claims.verdicts import FAILS, HOLDS, UNRESOLVED
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
.note { color: #555; font-size: .85em; margin: .3em 0; } svg, img { max-width: 100%; height: auto; }
"""
VERDICT_CLASSES = {HOLDS: "holds", FAILS: "fails", UNRESOLVED: "open"}


def render_html_table(grid: WordGrid) -> str:
    """A table and its notes."""
    kinds = [' class="l"' if holds_words(grid, i) else "" for i in range(len(grid.header))]
    cells = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, grid.header))
    found = [f"<h2>{escape(grid.title)}</h2>", '<div class="wide"><table>', f"<tr>{cells}</tr>"]
    for title, lines in group_by_block(grid):
        if title:
            found.append(f'<tr class="block"><td colspan="{len(kinds)}">{escape(title)}</td></tr>')
        for line in lines:
            found.append(
                f"<tr>{''.join(render_html_cell(kind, word) for kind, word in zip(kinds, line))}</tr>"
            )
    return "\n".join([*found, "</table></div>", *map(render_html_note, grid.notes)])


def render_html_cell(kind: str, word: str) -> str:
    if word in VERDICT_CLASSES:
        kind = f' class="l {VERDICT_CLASSES[word]}"'
    return f"<td{kind}>{escape(word)}</td>"


def render_html_note(words: str) -> str:
    return f'<p class="note">{escape(words)}</p>'


def render_html_page(
    title: str, sentences: Sequence[str], parts: Sequence[WordGrid | tuple[str, str]], end: Sequence[str]
) -> str:
    """`parts`: grids, and (caption, SVG) pictures, in order."""
    body = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(sentence)}</p>" for sentence in sentences)]
    for part in parts:
        body.append(render_html_table(part) if isinstance(part, WordGrid) else render_html_picture(*part))
    head = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f"<title>{escape(title)}</title>",
        f"<style>{PAGE_STYLE}</style></head><body>",
    ]
    return "\n".join([*head, *body, *map(render_html_note, end), "</body></html>", ""])


def render_html_picture(caption: str, svg: str) -> str:
    return f'<figure>{svg}<figcaption class="note">{escape(caption)}</figcaption></figure>'


def embed_png(content: bytes) -> str:
    """A PNG file as it stands inside a page."""
    return f'<img src="data:image/png;base64,{b64encode(content).decode()}" alt="attention map">'


def prefix_svg_ids(svgs: Mapping[str, str]) -> dict[str, str]:
    """SVG files as they stand inside a page: without XML head, ids made unlike those of the others."""
    found = {}
    for name, svg in svgs.items():
        body = svg[svg.index("<svg") :]
        for before, after in (('id="', f'id="{name}-'), ('"#', f'"#{name}-'), ("url(#", f"url(#{name}-")):
            body = body.replace(before, after)
        found[name] = body
    return found
