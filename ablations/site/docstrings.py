"""Our docstrings are plain text: paragraphs, `names`, aligned columns, indented examples. Sphinx reads
reStructuredText, so that is what they become on the way."""

import re
from itertools import groupby

from sphinx.application import Sphinx

ROW = re.compile(r"([\w.,|/+\[\]()*= -]*?\S) {2,}(\S.*)")
CODE = re.compile(r"(`[^`]+`)")
EMPHASIS = re.compile(r"(?<!\S)\\\*(\w(?:[^*\\]*\w)?)\\\*(?!\w)")
MARKUP = re.compile(r"([*|\\]|_\b|`)")


def escape_markup(lines: list[str]) -> list[str]:
    """What stands between backticks as code, the rest with nothing that reStructuredText would act on."""
    pieces = []
    for piece in CODE.split("\n".join(lines)):
        if CODE.fullmatch(piece):
            pieces.append(f"`{piece}`")
        else:
            pieces.append(EMPHASIS.sub(r"*\1*", MARKUP.sub(r"\\\1", piece)))
    return "".join(pieces).split("\n")


def indent(lines: list[str], width: int) -> list[str]:
    """Lines behind so many spaces."""
    return [" " * width + line for line in lines]


def convert_block(lines: list[str]) -> list[str]:
    """The lines between two empty ones."""
    if lines[0].startswith(" "):  # an example
        return ["::", "", *indent(lines, 4), ""]
    units: list[tuple[str, list[str]]] = []  # a row's name, an item's dash or nothing, and the text
    for line in lines:
        row = ROW.fullmatch(line)
        if row:
            units.append((row[1], [row[2]]))
        elif line.startswith("- "):
            units.append(("-", [line[2:]]))
        elif units and (line.startswith(" ") or not units[-1][0]):  # goes on
            units[-1][1].append(line.strip())
        else:
            units.append(("", [line]))
    converted: list[str] = []
    for name, text in units:
        escaped = escape_markup(text)
        if name == "-":
            first_line, *further_lines = escaped
            converted += [f"- {first_line}", *indent(further_lines, 2), ""]
        elif name:
            converted += [f"``{name}``", *indent(escaped, 4), ""]
        else:
            converted += [*escaped, ""]
    return converted


def convert_docstring(lines: list[str]) -> list[str]:
    """A docstring's lines in reStructuredText."""
    converted: list[str] = []
    for is_text, block in groupby(lines, key=lambda line: bool(line.strip())):
        if is_text:
            converted += convert_block([line.rstrip() for line in block])
    return converted


def process(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:  # noqa: ARG001
    """In place, as autodoc wants it."""
    lines[:] = convert_docstring(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True}
