"""What a page of the site takes from elsewhere, in double braces.

include("experiments/README.md")                 a whole page of the repository
include("experiments/README.md", "From Python")  its section of that heading
settings("lora")                                 a table of the settings below a name; "": without dots
launch_settings()                                the same of where cells run
help("runs")                                     what `slothkit runs --help` says

Loops of the reference read `sections`, `knobs`, `commands`, `classes` and `compressors`.
"""

import inspect
import os
import re
from collections.abc import Iterable
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from sphinx.application import Sphinx

import compressors
import slothkit
from compressors.base import registry as compressor_registry
from compressors.registry import Registry
from compressors.setting_fields import Setting, collect_settings, format_value
from experiments.config import signatures
from experiments.config.schema import Config
from experiments.sweep.help import SLURM_HELP, format_knobs
from experiments.sweep.options import LaunchOptions, name_launch_option

SITE = Path(__file__).parent
ROOT = SITE.parents[1]
FENCE = re.compile(r"^\s*(```|~~~)")
HEADING = re.compile(r"^(#{1,6}) (.+?)\s*$")
# the words of a link may go on in the next line, not beyond a blank one
WORDS = r"(?:[^\[\]\n]|\n(?!\s*\n))"
LINK = re.compile(rf"(!?)\[((?:{WORDS}|\[{WORDS}*\])*)\]\(([^)\s]+)\)")
EXTERNAL = re.compile(r"[a-z]+:")
WHOLE_PAGE = re.compile(r"""\{\{ *include\("([^"]+)"(?:, level=\d)?\) *\}\}""")


class MissingSection(LookupError):
    """A heading that a page of the site asks for and a page of the repository does not have."""


def find_homes() -> dict[str, str]:
    """Pages of the repository that a page of the site shows whole: path -> the page, from the site's root."""
    homes: dict[str, str] = {}
    for page in sorted(SITE.rglob("*.md")):
        for path in WHOLE_PAGE.findall(page.read_text()):
            homes[path] = "/" + page.relative_to(SITE).as_posix()
    return homes


def mark_code(lines: Iterable[str]) -> list[tuple[str, bool]]:
    """Each line, and whether it belongs to a code block."""
    marked = []
    inside = False
    for line in lines:
        fence = FENCE.match(line) is not None
        marked.append((line, inside or fence))
        inside ^= fence
    return marked


def take_section(text: str, heading: str, path: str) -> str:
    """From the line of a heading up to the next heading that is not below it."""
    section: list[str] = []
    depth = 0
    for line, is_code in mark_code(text.splitlines()):
        match = None if is_code else HEADING.match(line)
        if match and depth and len(match[1]) <= depth:
            break
        if match and not depth and match[2] == heading:
            depth = len(match[1])
        if depth:
            section.append(line)
    if not section:
        raise MissingSection(f"{path} has no heading '{heading}'")
    return "\n".join(section)


def shift_headings(text: str, level: int) -> str:
    """The text with its first heading at a level, and the others below it as they were."""
    marked = mark_code(text.splitlines())
    shift = None
    lines = []
    for line, is_code in marked:
        match = None if is_code else HEADING.match(line)
        if match:
            if shift is None:
                shift = level - len(match[1])
            line = f"{'#' * (len(match[1]) + shift)} {match[2]}"
        lines.append(line)
    return "\n".join(lines)


def move_links(text: str, path: str, page: Path, homes: dict[str, str]) -> str:
    """The links of a repository's page, from where a page of the site stands: to the site's own pages where
    there is one, else to the file itself."""

    def move(link: re.Match[str]) -> str:
        picture, words, target = link.groups()
        if EXTERNAL.match(target):
            return link[0]
        name, _, anchor = target.partition("#")
        file = Path(path)  # a link to an anchor alone stays on its page
        if name:
            file = Path(os.path.normpath(Path(path).parent / name))
        if file.as_posix() in homes:
            address = homes[file.as_posix()]
            if anchor:
                address += f"#{anchor}"
            return f"{picture}[{words}]({address})"
        if not (ROOT / file).is_file():
            return words
        moved = Path(os.path.relpath(ROOT / file, page.parent)).as_posix()
        scheme = "path:" if file.suffix == ".md" else ""  # else MyST looks for a page of the site
        return f"{picture}[{words}]({scheme}{moved})"

    parts = []
    for is_code, marked in groupby(mark_code(text.splitlines()), key=lambda line_mark: line_mark[1]):
        part = "\n".join(line for line, _ in marked)
        parts.append(part if is_code else LINK.sub(move, part))
    return "\n".join(parts)


def list_settings(prefix: str) -> dict[str, Setting]:
    """Those of a section, or of none, by path."""
    settings = {}
    for path, item in collect_settings(Config).items():
        if path.rpartition(".")[0] == prefix:
            settings[path] = item
    return settings


def list_sections() -> list[tuple[str, str]]:
    """Name and meaning of each part of the settings that is a dataclass of its own."""
    sections = []
    for name, value in inspect.get_annotations(Config).items():
        if inspect.isclass(value) and hasattr(value, "__dataclass_fields__"):
            sections.append((name, inspect.cleandoc(value.__doc__ or "")))
    return sections


def format_table(rows: Iterable[tuple[str, str, str]]) -> str:
    """Rows of setting, default and meaning in Markdown."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for row in rows:
        name, default, meaning = (cell.replace("|", "\\|") for cell in row)
        default = f"`{default}`" if default else ""
        lines.append(f"| `{name}` | {default} | {meaning} |")
    return "\n".join(lines)


def describe_setting(item: Setting) -> str:
    """Meaning and choices of a setting."""
    choices = [f"`{format_value(choice)}`" for choice in item.choices if choice is not None]
    if len(choices) > 1:
        return f"{item.help} ({', '.join(choices)})"
    return item.help


def make_settings_table(prefix: str) -> str:
    """The settings below a name."""
    settings = list_settings(prefix)
    if not settings:
        raise MissingSection(f"no settings below '{prefix}'")
    return format_table(
        (path, format_value(item.default), describe_setting(item)) for path, item in settings.items()
    )


def make_launch_table() -> str:
    """Where cells run, and how many at once."""
    rows = []
    for name, item in collect_settings(LaunchOptions).items():
        rows.append((name_launch_option(name), format_value(item.default), describe_setting(item)))
    rows.append(("launch.slurm.KEY", "", SLURM_HELP))
    return format_table(rows)


def make_help(word: str) -> str:
    """What a command of `slothkit` says of itself."""
    module, _ = slothkit.COMMANDS[word]
    text: str = import_module(module).COMMAND.help()
    return text.strip()


def list_knobs() -> list[tuple[str, str]]:
    """Each kind of part, with a table of its names and knobs."""
    tables = []
    for registry in signatures.registries():
        lines = ["| name | knobs |", "|---|---|"]
        for name in registry.names():
            knobs = [f"`{knob}`" for knob in format_knobs(registry, name).split("  ") if knob]
            lines.append(f"| `{name}` | {', '.join(knobs)} |".replace("\\", ""))
        tables.append((f"{registry.kind.capitalize()}s", "\n".join(lines)))
    return tables


def list_classes(registry: Registry) -> list[tuple[str, str]]:
    """Each name of a registry with the path of its class."""
    classes = []
    for name in registry.names():
        part = registry.get(name)
        classes.append((name, f"{part.__module__}.{part.__qualname__}"))
    return classes


def list_compressors() -> list[tuple[str, str]]:
    """The same of the compressors, which are imported when they are asked for."""
    compressors.names()
    return list_classes(compressor_registry)


def weave(app: Sphinx, document: str, source: list[str]) -> None:
    """Fill in a page, as Sphinx reads it."""
    page = Path(str(app.env.doc2path(document)))
    if page.suffix not in (".md", ".rst"):
        return
    homes = find_homes()

    def include(path: str, heading: str | None = None, level: int = 0) -> str:
        app.env.note_dependency(str(ROOT / path))
        text = (ROOT / path).read_text()
        if heading is not None:
            text = take_section(text, heading, path)
        return move_links(shift_headings(text, level or (1 if heading is None else 2)), path, page, homes)

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    names: dict[str, Any] = {
        "include": include,
        "settings": make_settings_table,
        "launch_settings": make_launch_table,
        "help": make_help,
        "commands": slothkit.COMMANDS,
        "sections": list_sections,
        "knobs": list_knobs,
        "classes": list_classes,
        "compressors": list_compressors,
        "import_module": import_module,
    }
    source[0] = environment.from_string(source[0]).render(names)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", weave)
    return {"parallel_read_safe": True}
