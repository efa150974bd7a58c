"""Which tables there are by name.

A package offers a folder of YAML tables in the entry-point group `slothkit.tables`; ours is
`ablations/tables`. A file `tableNAME.yaml` there is called NAME and is one of those that `table=all` stands
for. Any other file with rows is called by its stem.

What a file says of its rows, its claims above all, is read by a package above this one. That offers a
function in `slothkit.table_checks` which takes a `TableFile` and refuses what it could not read once the rows
are computed.
"""

import re
from pathlib import Path
from typing import NamedTuple

from compressors.errors import UsageError, shorten
from experiments.config.presets import YAML_SUFFIXES
from experiments.registries import load_offers

TABLE_GROUP = "slothkit.tables"
CHECK_GROUP = "slothkit.table_checks"
ALL_TABLES = "all"
PAPER_PREFIX = "table"
TABLE_NAME = re.compile(r"\w[\w .+=,()-]{0,99}")
HAS_ROWS = re.compile("^(rows|blocks):", re.MULTILINE)


class NamedTable(NamedTuple):
    """A table that a package offers."""

    name: str
    package: str  # the entry point's name
    path: Path
    in_all: bool  # whether `table=all` stands for it, too


def find_table_folders() -> dict[str, Path]:
    """The folders of tables by the package that offers them; UsageError if none does."""
    return {package: Path(folder) for package, folder in load_offers(TABLE_GROUP).items()}


def list_named_tables() -> list[NamedTable]:
    """The tables of all packages, sorted by name."""
    tables: list[NamedTable] = []
    for package, folder in find_table_folders().items():
        for path in folder.glob("*.yaml"):
            if path.stem.startswith(PAPER_PREFIX):
                tables.append(NamedTable(path.stem.removeprefix(PAPER_PREFIX), package, path, True))
            elif HAS_ROWS.search(path.read_text(encoding="utf-8")):
                tables.append(NamedTable(path.stem, package, path, False))
    return sorted(tables)


def list_paper_tables() -> list[str]:
    """Names of the tables that `all` stands for: the paper's."""
    return list(dict.fromkeys(table.name for table in list_named_tables() if table.in_all))


def list_project_tables() -> list[str]:
    """Names of the other tables: a project's own."""
    return list(dict.fromkeys(table.name for table in list_named_tables() if not table.in_all))


def check_table_name(name: str) -> str:
    """`name`, after which files of results are called; UsageError for one that would lead elsewhere, or mean
    something to a page that shows it."""
    if not TABLE_NAME.fullmatch(name):
        raise UsageError(
            f"table name {shorten(name)!r}: expected at most 100 letters, digits, spaces and . + - = , ( )"
        )
    return name


def is_table_path(name: str) -> bool:
    """Whether `table=` was given a file rather than a name."""
    return name.endswith(YAML_SUFFIXES)


def find_table_file(name: str) -> Path:
    """The file of a table's name, or of a path that ends in .yaml. UsageError for a name or a file that is
    not there, and for a name that two packages have."""
    if is_table_path(name) and Path(name).is_file():
        return Path(name)
    namesakes = [table for table in list_named_tables() if table.name == name]
    if len(namesakes) > 1:
        places = " and ".join(f"{table.package} ({table.path})" for table in namesakes)
        raise UsageError(f"table={name}: {places} both have a table of that name; give the path of one")
    if namesakes:
        return namesakes[0].path
    if is_table_path(name):
        missing = str(Path(name))
    else:
        missing = f"table of that name in {', '.join(map(str, find_table_folders().values()))}"
    names = ", ".join([*list_paper_tables(), *list_project_tables(), ALL_TABLES])
    if not list_paper_tables():
        names = "none yet"
    raise UsageError(f"table={name}: no {missing}; there are: {names}; or a path that ends in .yaml")


def spell_table(name: str, path: Path) -> str:
    """What `table=` has to say for the table of this name and file: a name if a package offers it."""
    if any(table.name == name and table.path == path for table in list_named_tables()):
        return name
    return str(path)
