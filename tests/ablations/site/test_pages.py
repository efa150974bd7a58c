"""Pages of the site beside the code and the rooms' pages that they tell of."""

import ast
import re
from pathlib import Path

import pytest

from ablations.site.docstrings import convert_docstring
from ablations.site.weaving import (
    ROOT,
    SITE,
    MissingSection,
    find_homes,
    move_links,
    shift_headings,
    take_section,
)

FLOORS = ("compressors", "connectors", "llm_adapters", "experiments", "ablations")
HIDDEN = {"experiments/assets/pictures/README.md"}  # licences of files, read where these are
MESSAGES = re.findall(r"^### `(.*)`$", (SITE / "faq.md").read_text(), re.M)
PAGE = """# A room

Of [ours](tables/a.yaml).

## One

```bash
## no heading
```

### Below

## Two
"""


def collect_strings() -> set[str]:
    """Every text of the code, with … for what is filled in."""
    texts = set()
    paths = [ROOT / "slothkit.py"]
    for floor in FLOORS:
        paths += (ROOT / floor).rglob("*.py")
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                pieces = [piece.value if isinstance(piece, ast.Constant) else "…" for piece in node.values]
                texts.add(re.sub("…+", "…", "".join(pieces)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)
    return texts


def test_error_messages_are_those_of_the_code():
    assert len(MESSAGES) > 30
    missing = set(MESSAGES) - collect_strings()
    assert not missing, "\n".join(missing)


def test_every_page_of_the_rooms_has_its_place():
    homes = find_homes()
    for floor in FLOORS:
        for page in (ROOT / floor).rglob("README.md"):
            path = page.relative_to(ROOT)
            if "results" not in path.parts and path.as_posix() not in HIDDEN:
                assert path.as_posix() in homes, f"no page of ablations/site includes {path}"


def test_sections():
    assert take_section(PAGE, "One", "x").split()[-2:] == ["###", "Below"]
    assert "## no heading" in take_section(PAGE, "One", "x")
    assert take_section(PAGE, "Two", "x") == "## Two"
    with pytest.raises(MissingSection, match=r"a/README.md has no heading 'no heading'"):
        take_section(PAGE, "no heading", "a/README.md")
    assert shift_headings("## a\n### b\n```\n# c\n```", 1) == "# a\n## b\n```\n# c\n```"


def test_links_lead_to_the_site_s_page_or_to_the_file():
    page, homes = SITE / "how_to/x.md", {"ablations/README.md": "/results/index.md"}

    def move(text):
        return move_links(text, "ablations/tables/README.md", page, homes)

    assert move("[a](../README.md#b)") == "[a](/results/index.md#b)"
    assert move("[a](table3.yaml)") == "[a](../../tables/table3.yaml)"
    assert move("[a](../../CHANGELOG.md)") == "[a](path:../../../CHANGELOG.md)"
    assert move("[a](https://x.y) [b](../results)") == "[a](https://x.y) b"
    assert move("```\n[a](../README.md)\n```") == "```\n[a](../README.md)\n```"
    assert move("see [what\nit is](table3.yaml).") == "see [what\nit is](../../tables/table3.yaml)."
    assert move("[no\n\nlink](table3.yaml)") == "[no\n\nlink](table3.yaml)"


def test_docstrings():
    lines = [
        "A *b* of `C*D` and d_.",
        "",
        "rate    how *many*",
        "        of `them`",
        "Then more.",
        "",
        "    x = 1",
    ]
    assert [line for line in convert_docstring(lines) if line] == [
        r"A *b* of ``C*D`` and d\_.",
        "``rate``",
        "    how *many*",
        "    of ``them``",
        "Then more.",
        "::",
        "        x = 1",
    ]


def test_the_site_is_small_enough_to_find_things_in():
    for folder in {page.parent for page in SITE.rglob("*.*")}:
        assert len([path for path in Path(folder).iterdir() if path.is_file()]) <= 14, folder
