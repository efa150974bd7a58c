"""Tables as data: a YAML file of rows, each a label and the overrides that make it.

    title: Query tokens
    blocks:
    - title: number of query tokens
      rows:
      - {label: 9 query tokens, overrides: [compressor=sap+embq, embq.num_queries=9]}
      - {label: deep, overrides: [compressor=sap+embq], scaled: {embq.at: {depth: 0.85}}, ours: "..."}
      - {label: cdpruner, absent: "the tower has no text encoder"}

`rows` may stand at the top: one block without a title. `scaled` gives values that grow with the model (see
`scaling.py`); `ours` says why a value is our own choice. A row with `absent` has no cell: it says why what
one would look for is not there. `claims` and `tie` are read by `ablations`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compressors.errors import UsageError, quote
from compressors.key_value import parse_settings, split_at_commas, unquote_text
from compressors.registry import suggest
from compressors.setting_fields import format_value
from experiments.config.cells import Cell, RowKey, make_labelled_cells, refuse_unused_paths
from experiments.config.presets import read_yaml
from experiments.config.scaling import scale_overrides
from experiments.config.schema import Config
from experiments.config.table_files import (
    ALL_TABLES,
    CHECK_GROUP,
    check_table_name,
    find_table_file,
    find_table_folders,
    is_table_path,
    list_paper_tables,
)
from experiments.registries import load_offers

CLAIM_KEYS = {"claims", "tie"}  # which `CHECK_GROUP` reads
TABLE_KEYS = {"title", "blocks", "rows", "name", *CLAIM_KEYS}
BLOCK_KEYS = {"title", "rows"}
ROW_KEYS = {"label", "overrides", "scaled", "ours", "absent"}
ABSENT_KEYS = {"label", "absent"}
ROWS_FORMAT = "expected rows: [{label: ..., overrides: [KEY=VALUE, ...]}, ...]"

Axes = Mapping[str, list[str]]  # key -> its alternatives, of the command line


@dataclass(frozen=True)
class TableRow:
    """One line of a table; a cell for each seed, and for whatever else the command line varies. None where
    `absent` says why there can be none."""

    block: str
    label: str
    ours: str
    cells: tuple[Cell, ...]
    absent: str = ""


@dataclass(frozen=True)
class TableFile:
    """A table with the cells of its rows. `left_out`: labels of the rows that are not asked for."""

    name: str
    title: str
    path: Path
    rows: tuple[TableRow, ...]
    left_out: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        """Table 3, or the name of a file of the user's own."""
        if self.path.stem == f"table{self.name}":
            return f"Table {self.name}"
        return self.name


def expand_table_names(wanted: Sequence[str]) -> list[str]:
    """Names and paths, each once, with those that `all` stands for in its place."""
    names: list[str] = []
    for name in wanted:
        if name == ALL_TABLES:
            names += list_paper_tables()
        else:
            names.append(name)
    return list(dict.fromkeys(names))


def load_table_file(name: str, axes: Axes) -> TableFile:
    """A table by name or path, its rows under the command line's overrides, which win. UsageError for a file
    that is malformed, a row that cannot be, and a knob of the command line that no row has a use for."""
    return load_table_files([name], axes)[0]


def load_table_files(
    wanted: Sequence[str], axes: Axes, row_labels: Sequence[str] | None = None
) -> list[TableFile]:
    """Several tables, each once; `all` stands for those of the paper. A knob of the command line has to be
    of use to one of them, where `row_labels` are given to one of these rows."""
    names = expand_table_names(wanted)
    if not names:
        folders = ", ".join(map(str, find_table_folders().values()))
        raise UsageError(f"table={','.join(wanted)}: there are no tables in {folders}")
    tables: list[TableFile] = []
    cells: list[Cell] = []
    idle_sets: list[set[str]] = []
    for name in names:
        table, idle_paths = read_table_file(name, axes, row_labels)
        # results are called by the table's name
        twin = next((earlier for earlier in tables if earlier.name == table.name), None)
        if twin is not None:
            raise UsageError(f"table={name}: {twin.path} is called {table.name} too; rename one of them")
        tables.append(table)
        for row in table.rows:
            if row_labels is None or row.label in row_labels:
                cells += row.cells
        if idle_paths is not None:
            idle_sets.append(idle_paths)
    if idle_sets:  # else no row is called as one of those wanted, which `select_rows` says
        # of use to one table is of use
        refuse_unused_paths(set.intersection(*idle_sets), axes, cells)
    return tables


def take_row_labels(axes: dict[str, list[str]], table_names: Sequence[str] | None) -> list[str] | None:
    """rows=, taken out of the axes: labels, with commas between them or in a list in brackets. None where it
    is not given. UsageError where no table is named."""
    if "rows" not in axes:
        return None
    labels: list[str] = []
    for text in axes.pop("rows"):
        if text.startswith("[") and text.endswith("]"):
            labels += map(unquote_text, split_at_commas(text[1:-1]))
        else:
            labels.append(unquote_text(text))
    if not table_names:
        raise UsageError(f"rows={','.join(labels)}: rows of which table? name it with table=")
    return list(dict.fromkeys(labels))


def select_rows(tables: Sequence[TableFile], labels: Sequence[str] | None) -> list[TableFile]:
    """The tables that have one of these rows, with these alone; all where none are named. UsageError for a
    label that no table has."""
    if labels is None:
        return list(tables)
    names_seen = [row.label for table in tables for row in table.rows]
    for label in labels:
        if label not in names_seen:
            names = ",".join(table.name for table in tables)
            raise UsageError(
                f"rows={label}: no row of table {names} is called so{suggest(label, set(names_seen))}"
            )
    selected = []
    for table in tables:
        rows = tuple(row for row in table.rows if row.label in labels)
        if rows:
            left_out = tuple(row.label for row in table.rows if row.label not in labels)
            selected.append(replace(table, rows=rows, left_out=left_out))
    return selected


def read_table_file(
    name: str, axes: Axes, row_labels: Sequence[str] | None = None
) -> tuple[TableFile, set[str] | None]:
    """A table, and what of the command line none of its rows uses, or of these alone; None where it has no
    such row."""
    path = find_table_file(name)
    content = read_yaml(path)
    check_keys(content, TABLE_KEYS, f"{path}")
    rows: list[TableRow] = []
    idle_sets: list[set[str]] = []
    for block, entry in list_row_entries(content, path):
        where = f"{path}, row '{entry['label']}'"
        try:
            if "absent" in entry:
                entry_rows = [make_absent_row(block, entry)]
            else:
                entry_rows, idle_paths = make_table_rows(block, entry, axes)
                if row_labels is None or any(row.label in row_labels for row in entry_rows):
                    idle_sets.append(idle_paths)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
        if {row.label for row in entry_rows} & {row.label for row in rows}:
            raise UsageError(f"{where}: a row of that label is there already; labels must differ in a table")
        rows += entry_rows
    title = content.get("title", "")
    if not isinstance(title, str):
        raise UsageError(f"{path}: title: {title!r}: expected words")
    # table3.yaml of the project is called 3; somebody's own ./table3.yaml is not
    table_name = check_table_name(path.stem if is_table_path(name) else name)
    unused_paths: set[str] | None = None
    if idle_sets:  # a file of no blocks has no rows either
        unused_paths = set.intersection(*idle_sets)
    table = TableFile(table_name, title, path, tuple(rows))
    if CLAIM_KEYS & content.keys():
        # now, not when a report is made after hours of training
        for check_claims in load_offers(CHECK_GROUP).values():
            check_claims(table)
    return table, unused_paths


def list_row_entries(content: dict[str, Any], path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(block's title, row) of a file, checked for what they must have."""
    if ("rows" in content) == ("blocks" in content):
        raise UsageError(
            f"{path}: {ROWS_FORMAT}, or blocks: [{{title: ..., rows: [...]}}, ...], one of the two"
        )
    blocks = content.get("blocks")
    if "rows" in content:
        blocks = [{"rows": content["rows"]}]  # one block without a title
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise UsageError(f"{path}: blocks: expected a list of {{title: ..., rows: [...]}}")
    entries: list[tuple[str, dict[str, Any]]] = []
    for block in blocks:
        check_keys(block, BLOCK_KEYS, f"{path}, block '{block.get('title', '')}'")
        rows = block.get("rows")
        where = f"{path}"
        if "title" in block:
            where += f", block '{block['title']}'"
        if not isinstance(rows, list) or not rows:
            raise UsageError(f"{where}: {ROWS_FORMAT}")
        for number, row in enumerate(rows, 1):
            check_label(row, f"{where}, row {number}")
            check_keys(row, ROW_KEYS, f"{path}, row '{row['label']}'")
            entries.append((str(block.get("title", "")), row))
    return entries


def check_label(row: object, where: str) -> None:
    """UsageError for a list's entry without what every row must have: a label, which may be a number."""
    if not isinstance(row, dict):
        raise UsageError(f"{where}: {quote(row)} is no row; {ROWS_FORMAT}")
    label = row.get("label")
    if label is None or not str(label).strip():
        raise UsageError(f"{where} has no label; {ROWS_FORMAT}")
    # `label: yes` is True in YAML, and nothing that anybody wants to read in a table
    if isinstance(label, bool):
        value = format_value(label)
        raise UsageError(f"{where}: label {value} is how YAML reads yes, no, on or off; put it in quotes")
    if not isinstance(label, (str, int, float)):
        raise UsageError(f"{where}: label {quote(label)} is a {type(label).__name__}; put it in quotes")


def check_keys(mapping: dict[str, Any], keys: set[str], where: str) -> None:
    """UsageError for a key that nobody reads: a misspelt `overrides` would silently be another row."""
    for key in mapping:
        if key not in keys:
            raise UsageError(f"{where}: unknown key '{key}'{suggest(str(key), keys)}")


def make_absent_row(block: str, entry: dict[str, Any]) -> TableRow:
    """The row of an entry that says why it has no cell. UsageError for one that would have some, and for no
    words."""
    superfluous_keys = sorted(entry.keys() - ABSENT_KEYS)
    if superfluous_keys:
        raise UsageError(f"a row with absent has no cell: it takes no {superfluous_keys[0]}")
    reason = entry["absent"]
    if not isinstance(reason, str) or not reason.strip():
        raise UsageError(f"absent: {reason!r}: expected words that say why")
    return TableRow(block, str(entry["label"]), "", (), reason)


def make_table_rows(block: str, entry: dict[str, Any], axes: Axes) -> tuple[list[TableRow], set[str]]:
    """An entry's row, or one for each combination where its own overrides are a product; and what of
    the command line it has no use for."""
    label = str(entry["label"])
    entry_axes, rules = read_row_overrides(entry)
    for key in axes.keys() & rules.keys():
        del rules[key]  # the command line wins over a rule too

    def complete(config: Config) -> dict[str, str]:
        return scale_overrides(rules, config)

    cells, idle_paths = make_labelled_cells({**entry_axes, **axes}, label, complete if rules else None)
    rule_axes = {key: [str(rule)] for key, rule in rules.items()}
    refuse_unused_paths(idle_paths - axes.keys(), {**rule_axes, **entry_axes}, cells)

    # what the entry itself varies makes rows; what the command line varies makes cells of a row
    row_keys: set[str] = set()
    for key, values in entry_axes.items():
        if len(values) > 1 and key != "seed" and key not in axes:
            row_keys.add(key)
    cells_by_row: dict[RowKey, list[Cell]] = {}
    for cell in cells:
        combination = tuple(pair for pair in cell.row if pair[0] in row_keys)
        cells_by_row.setdefault(combination, []).append(cell)
    reason = str(entry.get("ours") or "")
    rows: list[TableRow] = []
    for row_cells in cells_by_row.values():
        row_label = row_cells[0].label if len(cells_by_row) > 1 else label
        rows.append(TableRow(block, row_label, reason, tuple(row_cells)))
    return rows, idle_paths & axes.keys()


def read_row_overrides(entry: dict[str, Any]) -> tuple[dict[str, list[str]], dict[str, object]]:
    """A row's `overrides` as axes, and its `scaled` rules by knob; a UsageError for what is neither."""
    overrides = entry.get("overrides") or []
    if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
        raise UsageError(f"overrides: {overrides!r}: expected a list of KEY=VALUE")
    axes = parse_settings(overrides)
    rules = entry.get("scaled") or {}
    if not isinstance(rules, dict):
        raise UsageError(f"scaled: {rules!r}: expected KEY: {{depth: 0.5}} or KEY: {{tower_width: 0.5}}")
    doubled_keys = axes.keys() & rules.keys()
    if doubled_keys:
        raise UsageError(f"'{min(doubled_keys)}' is in both overrides and scaled; leave one of them out")
    return axes, dict(rules)
