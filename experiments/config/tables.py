"""Tables as data: a YAML file of rows, each a label and the overrides that make it.

    title: Query tokens
    blocks:
    - title: number of query tokens
      rows:
      - {label: 9 query tokens, overrides: [compressor=sap+embq, embq.num_queries=9]}
      - {label: deep, overrides: [compressor=sap+embq], scaled: {embq.at: {depth: 0.85}}, ours: "..."}

`rows` may stand at the top: one block without a title. `scaled` gives values that grow with the model (see
`model_sizes.py`); `ours` says why a value is our own choice. `claims` are read by `ablations`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressors.command_line import parse_settings
from compressors.errors import UsageError
from compressors.registry import suggest
from experiments.config.cells import Cell, make_labelled_cells, refuse_unused_knobs
from experiments.config.presets import read_yaml
from experiments.config.scaling import scale_overrides
from experiments.config.schema import Config
from experiments.config.table_files import (
    ALL_TABLES,
    find_table_file,
    find_table_folders,
    is_table_path,
    list_paper_tables,
)

TABLE_KEYS, BLOCK_KEYS = {"title", "blocks", "rows", "claims", "name"}, {"title", "rows"}
ROW_KEYS = {"label", "overrides", "scaled", "ours"}
ROWS_FORMAT = "expected rows: [{label: ..., overrides: [KEY=VALUE, ...]}, ...]"

Axes = Mapping[str, list[str]]


@dataclass(frozen=True)
class TableRow:
    """One line of a table; a cell for each seed, and for whatever else the command line varies."""

    block: str
    label: str
    ours: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class TableFile:
    """A table with the cells of its rows."""

    name: str
    title: str
    path: Path
    rows: tuple[TableRow, ...]

    @property
    def heading(self) -> str:
        """Table 3, or the name of a file of the user's own."""
        return f"Table {self.name}" if self.path.stem == f"table{self.name}" else self.name


def expand_table_names(wanted: Sequence[str]) -> list[str]:
    """Names and paths, with those that `all` stands for in its place."""
    return [each for name in wanted for each in (list_paper_tables() if name == ALL_TABLES else [name])]


def load_table_file(name: str, axes: Axes) -> TableFile:
    """A table by name or path, its rows under the command line's overrides, which win. UsageError for a file
    that is malformed, a row that cannot be, and a knob of the command line that no row has a use for."""
    return load_table_files([name], axes)[0]


def load_table_files(wanted: Sequence[str], axes: Axes) -> list[TableFile]:
    """Several tables, each once; `all` stands for those of the paper. A knob of the command line has to be
    of use to one of them."""
    found = expand_table_names(wanted)
    if not found:
        folders = ", ".join(map(str, find_table_folders().values()))
        raise UsageError(f"table={','.join(wanted)}: there are no tables in {folders}")
    tables, unused = [], None
    for name in dict.fromkeys(found):
        table, idle = read_table_file(name, axes)
        tables.append(table)
        unused = idle if unused is None else unused & idle
        twin = next((other for other in tables[:-1] if other.name == table.name), None)
        if twin is not None:
            raise UsageError(f"table={name}: {twin.path} is called {table.name} too; rename one of them")
    refuse_unused_knobs(
        unused or set(), axes, [c for table in tables for row in table.rows for c in row.cells]
    )
    return tables


def read_table_file(name: str, axes: Axes) -> tuple[TableFile, set[str]]:
    """A table, and the knobs of the command line that none of its rows uses."""
    path = find_table_file(name)
    content = read_yaml(path)
    check_keys(content, TABLE_KEYS, f"{path}")
    rows, unused = [], None
    for block, entry in list_row_entries(content, path):
        where = f"{path}, row '{entry['label']}'"
        try:
            new, idle = make_table_rows(block, entry, axes)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
        if {row.label for row in new} & {row.label for row in rows}:
            raise UsageError(f"{where}: a row of that label is there already; labels must differ in a table")
        rows += new
        unused = idle if unused is None else unused & idle
    title = content.get("title", "")
    if not isinstance(title, str):
        raise UsageError(f"{path}: title: {title!r}: expected words")
    return TableFile(
        path.stem if is_table_path(name) else name,
        title,
        path,
        tuple(rows),
    ), unused or set()


def list_row_entries(content: dict[str, Any], path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(block's title, row) of a file, checked for what they must have."""
    if ("rows" in content) == ("blocks" in content):
        raise UsageError(
            f"{path}: {ROWS_FORMAT}, or blocks: [{{title: ..., rows: [...]}}, ...], one of the two"
        )
    blocks = content["blocks"] if "blocks" in content else [{"rows": content["rows"]}]
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise UsageError(f"{path}: blocks: expected a list of {{title: ..., rows: [...]}}")
    found = []
    for block in blocks:
        check_keys(block, BLOCK_KEYS, f"{path}, block '{block.get('title', '')}'")
        rows = block.get("rows")
        if not isinstance(rows, list) or not rows or not all(is_row_entry(row) for row in rows):
            where = f"{path}, block '{block['title']}'" if "title" in block else f"{path}"
            raise UsageError(f"{where}: {ROWS_FORMAT}")
        for row in rows:
            check_keys(row, ROW_KEYS, f"{path}, row '{row['label']}'")
        found += [(str(block.get("title", "")), row) for row in rows]
    return found


def is_row_entry(row: object) -> bool:
    label = row.get("label") if isinstance(row, dict) else None
    return isinstance(label, (str, int, float)) and not isinstance(label, bool) and str(label).strip() != ""


def check_keys(mapping: dict[str, Any], keys: set[str], where: str) -> None:
    """UsageError for a key that nobody reads: a misspelt `overrides` would silently be another row."""
    for key in mapping:
        if key not in keys:
            raise UsageError(f"{where}: unknown key '{key}'{suggest(str(key), keys)}")


def make_table_rows(block: str, entry: dict[str, Any], axes: Axes) -> tuple[list[TableRow], set[str]]:
    """An entry's row, or one for each combination where its own overrides are a product; and the knobs of the
    command line that it has no use for."""
    label, given = str(entry["label"]), entry.get("overrides") or []
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise UsageError(f"overrides: {given!r}: expected a list of KEY=VALUE")
    own, scaled = parse_settings(given), entry.get("scaled") or {}
    if not isinstance(scaled, dict):
        raise UsageError(f"scaled: {scaled!r}: expected KEY: {{depth: 0.5}} or KEY: {{tower_width: 0.5}}")
    twice = own.keys() & scaled.keys()
    if twice:
        raise UsageError(f"'{min(twice)}' is in both overrides and scaled; leave one of them out")
    left = {key: rule for key, rule in scaled.items() if key not in axes}

    def complete(config: Config) -> dict[str, str]:
        return scale_overrides(left, config)

    cells, idle = make_labelled_cells({**own, **axes}, label, complete if left else None)
    refuse_unused_knobs(
        idle - axes.keys(), {**{key: [str(rule)] for key, rule in left.items()}, **own}, cells
    )
    varied = {key for key, values in own.items() if len(values) > 1 and key not in axes} - {"seed"}
    found: dict[tuple, list[Cell]] = {}
    for cell in cells:
        found.setdefault(tuple(pair for pair in cell.row if pair[0] in varied), []).append(cell)
    ours = str(entry.get("ours") or "")
    rows = [
        TableRow(block, each[0].label if len(found) > 1 else label, ours, tuple(each))
        for each in found.values()
    ]
    return rows, idle & axes.keys()
