"""Table files: rows and blocks, values that scale with the model, several tables, what is malformed."""

import csv
import json
from pathlib import Path

import pytest
from fakes import FakeRunner, names, read_log

from compressors.errors import UsageError
from experiments.config import table_files, tables
from experiments.runtime.memory import begin_request
from experiments.sweep import __main__ as sweep
from experiments.sweep.request import list_cells_by_table, read_request

TINY = {"seed": ["0", "1"]}  # sources of the preset: 6 layers, 128 wide, 4 heads


def write(path: Path, *rows: str) -> str:
    path.write_text("rows:\n" + "".join(f"- {row}\n" for row in rows))
    return str(path)


@pytest.fixture
def scaled(tmp_path):
    """The values of a `scaled` rule in a row of the preset tiny."""

    def values(rule: str, *overrides: str, **axes: list[str]) -> list[object]:
        words = ", ".join(["compressor=sap+embq", *overrides])
        name = write(tmp_path / "mine.yaml", f"{{label: a, overrides: [{words}], scaled: {rule}}}")
        (row,) = tables.load_table_file(name, axes).rows
        key = rule.strip("{").partition(":")[0].partition(".")
        return [cell.config.parts[key[0]][key[2]] for cell in row.cells]

    return values


def test_blocks_rows_and_seeds(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "title: Mine\nblocks:\n"
        "- {title: one, rows: [{label: a, overrides: [compressor=avg_pool], ours: silent}]}\n"
        "- {title: two, rows: [{label: b, overrides: [compressor=sap]}, {label: 3}]}\n"
        "claims: [{text: anything, source: me, better: {row: a, than: b}}]\n"
    )
    found = tables.load_table_file(str(path), TINY)
    assert (found.name, found.title, found.path, found.heading) == ("mine", "Mine", path, "mine")
    assert [(r.block, r.label, r.ours) for r in found.rows] == [
        ("one", "a", "silent"),
        ("two", "b", ""),
        ("two", "3", ""),
    ]
    assert [c.config.compressor for r in found.rows for c in r.cells] == [
        "avg_pool",
        "avg_pool",
        "sap",
        "sap",
        "sap+embq",
        "sap+embq",
    ]
    assert [c.config.seed for c in found.rows[0].cells] == [0, 1]


def test_a_row_that_cannot_be_says_why(tmp_path):
    name = write(tmp_path / "mine.yaml", "{label: a}", "{label: b, absent: no such tower}")
    first, second = tables.load_table_file(name, {}).rows
    assert first.cells and not first.absent
    assert (second.label, second.cells, second.absent) == ("b", (), "no such tower")
    for entry, message in (
        (
            "{label: b, absent: why, overrides: [seed=1]}",
            "a row with absent has no cell: it takes no overrides",
        ),
        ("{label: b, absent: ' '}", "absent: ' ': expected words that say why"),
        ("{label: b, absent: true}", "absent: True: expected words"),
    ):
        with pytest.raises(UsageError, match=message):
            tables.load_table_file(write(tmp_path / "mine.yaml", entry), {})
    for rows in (["sap", "4 queries"], ["[sap,4 queries]"], ["[sap]", "'4 queries'"]):
        axes = {"rows": rows}
        assert tables.take_row_labels(axes, ["3"]) == ["sap", "4 queries"] and not axes
    with pytest.raises(UsageError, match="rows=sap: rows of which table"):
        tables.take_row_labels({"rows": ["sap"]}, None)
    with pytest.raises(UsageError, match="rows=cdpruner: has no cell in baselines: compares patches"):
        list_cells_by_table(["baselines"], ["cdpruner"], {})
    name = write(tmp_path / "mine.yaml", "{label: b, absent: no such tower}")
    for earlier in ({}, {"earlier": ["ablations/results/tiny"]}):
        with pytest.raises(UsageError, match=f"^table={name}: none of its rows has a cell here"):
            read_request({"table": [name], **earlier})


def test_a_setting_that_no_wanted_row_uses_is_refused(tmp_path):
    """As it is without a table; rows that are left out have no use for anything."""
    name = write(
        tmp_path / "mine.yaml",
        "{label: a, overrides: [compressor=avg_pool]}",
        "{label: b, overrides: [compressor=sap]}",
    )
    axes = {"sap.rate": ["4"]}
    assert len(list_cells_by_table([name], None, axes)[0][1]) == 2
    [(_, [cell])] = list_cells_by_table([name], ["b"], axes)
    assert cell.config.parts["sap"]["rate"] == 4
    with pytest.raises(UsageError, match="no cell uses 'sap'"):
        list_cells_by_table([name], ["a"], axes)
    with pytest.raises(UsageError, match="rows=c: no row of table mine is called so"):
        list_cells_by_table([name], ["c"], axes)


def test_the_command_line_wins(tmp_path):
    name = write(
        tmp_path / "mine.yaml",
        "{label: a, overrides: [compressor=sap+embq, embq.dim=32]}",
        "{label: b, overrides: [compressor=sap+embq], scaled: {embq.dim: {tower_width: 0.25}}}",
    )
    rows = tables.load_table_file(name, {"embq.dim": ["16"]}).rows
    assert [row.cells[0].config.parts["embq"]["dim"] for row in rows] == [16, 16]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("{embq.dim: {tower_width: 0.5}}", 64),
        ("{embq.dim: {tower_width: 0.3}}", 40),  # 38.4: 4 heads
        ("{embq.dim: {tower_width: 0.001}}", 4),
        ("{embq.at: {depth: 0.85}}", 5),
        ("{embq.at: {depth: 0.01}}", 1),
        ("{embq.at: {depth: 1}}", 6),
        ("{embq.at: {depth: [0.1, preset, 0.85]}}", (1, 3, 5)),
        ("{embq.at: {depth: [0.5, preset]}}", 3),  # equal layers are one, and one is the same cell as at=3
    ],
)
def test_values_that_scale(scaled, rule, expected):
    assert scaled(rule) == [expected]


def test_scaled_values_follow_a_row_s_own_overrides(scaled):
    assert scaled("{embq.dim: {tower_width: 0.3}}", "embq.heads=16") == [32]
    assert scaled("{embq.dim: {tower_width: 0.3}}", **{"embq.heads": ["8", "16"]}) == [40, 32]


def config_at(folder: Path, **content) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(content))
    return str(folder)


def test_scaled_values_follow_the_model(scaled, tmp_path):
    """Nested configurations, other names for the same thing, several models in one product."""
    tower = config_at(tmp_path / "tower", vision_config={"hidden_size": 1152}, hidden_size=7)
    llm = config_at(tmp_path / "llm", text_config={"n_layer": 32, "n_head": 32})
    axes = {"tower.source": ["asset:tiny/tower", tower], "llm.source": [llm], "embq.heads": ["32"]}
    assert scaled("{embq.dim: {tower_width: 0.5}}", **axes) == [64, 576]
    assert scaled("{embq.at: {depth: 0.85}}", **axes) == [27, 27]
    assert scaled("{embq.dim: {tower_width: 0.5}}", **{"tower.source": ["open_clip:ViT-B-16"]}) == [384]


def test_a_hub_model_s_configuration_comes_from_the_cache(scaled, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--lab--tower" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"hidden_size": 1024}')
    (tmp_path / "models--lab--tower" / "refs").mkdir()
    (tmp_path / "models--lab--tower" / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert scaled("{embq.dim: {tower_width: 0.5}}", **{"tower.source": ["lab/tower"]}) == [512]


def test_sizes_that_cannot_be_had(scaled, tmp_path):
    begin_request()
    empty = config_at(tmp_path / "empty")
    with pytest.raises(UsageError, match=r"row 'a': tower.source=.*empty: its config.json has no hidden_"):
        scaled("{embq.dim: {tower_width: 0.5}}", **{"tower.source": [empty]})
    (tmp_path / "empty" / "config.json").write_text("[")
    begin_request()
    with pytest.raises(UsageError, match=r"llm.source=.*empty: no readable config.json"):
        scaled("{embq.at: {depth: 0.5}}", **{"llm.source": [empty]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows: 3", "expected rows"),
        ("rows: [{label: a}, {overrides: []}]", "mine.yaml, row 2 has no label; expected rows"),
        ("rows: [{label: yes}]", "row 1: label true is how YAML reads yes, no, on or off; put it in quotes"),
        ("rows: [{label: [a, b]}]", "row 1: label ['a', 'b'] is a list; put it in quotes"),
        ("title: a", "expected rows"),
        ("rows: []", "expected rows"),
        ("blocks: 3", "expected a list of"),
        ("blocks: [{title: x, rows: [3]}]", "block 'x', row 1: 3 is no row; expected rows"),
        ("blocks: []\nrows: []", "one of the two"),
        ("rowz: []", "unknown key 'rowz'; did you mean 'rows'"),
        ("rows: [{label: a, override: []}]", "row 'a': unknown key 'override'; did you mean 'overrides'"),
        ("rows: [{label: a, overrides: compressor=sap}]", "overrides: 'compressor=sap': expected a list"),
        ("rows: [{label: a, overrides: [sap]}]", "row 'a': 'sap': expected key=value"),
        ("rows: [{label: a, overrides: [compressor=sap, embq.dim=3]}]", "embq.dim=3: no cell uses 'embq'"),
        (
            "rows: [{label: a, overrides: [compressor=sapp]}]",
            "row 'a': unknown compressor 'sapp'; did you mean",
        ),
        ("rows: [{label: a}, {label: a}]", "row 'a': a row of that label is there already"),
        ("rows: [{label: a, scaled: 3}]", "row 'a': scaled: 3: expected KEY"),
        # before anything is computed, not by the report
        ("rows: [{label: a}]\nclaims: [{better: {row: a, than: b}}]", "claim '1': "),
        (
            "rows: [{label: a}]\nclaims: [{text: x, source: y, better: {row: a, than: b}}]",
            "claim 'x': no row 'b'",
        ),
        ("rows: [{label: a}]\ntie: {points: -3}", "tie: "),
        (
            "rows: [{label: a, scaled: {embq.at: 3}}]",
            "row 'a': scaled: embq.at: 3: expected {depth: FRACTION}",
        ),
        ("rows: [{label: a, scaled: {embq.at: {deep: 1}}}]", "expected {depth: FRACTION}"),
        ("rows: [{label: a, scaled: {embq.at: {depth: 2}}}]", "depth=2: expected a number more than 0 and"),
        ("rows: [{label: a, scaled: {embq.at: {depth: middle}}}]", "depth=middle: expected a number"),
        ("rows: [{label: a, scaled: {embq.at: {depth: []}}}]", "give at least one fraction"),
        ("rows: [{label: a, scaled: {embq.fusion: {depth: preset}}}]", "a value that is not a number: 'add'"),
        (
            "rows: [{label: a, overrides: [embq.at=2], scaled: {embq.at: {depth: 1}}}]",
            "in both overrides and",
        ),
        (
            "rows: [{label: a, overrides: [compressor=sap], scaled: {embq.at: {depth: 1}}}]",
            "no cell uses 'embq'",
        ),
        ("title: [a]\nrows: [{label: a}]", "title: ['a']: expected words"),
        ("rows: [", "not readable as YAML"),
    ],
)
def test_a_malformed_file(tmp_path, capsys, text, message):
    mine = tmp_path / "mine.yaml"
    mine.write_text(text)
    assert sweep.main([f"table={mine}", f"out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {mine}") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_tables_of_the_project():
    """Every table that ships is read, and by name, by path and as one of all it is the same."""
    assert {"3", "4", "5", "6"} <= set(table_files.list_paper_tables())
    for table in tables.load_table_files([tables.ALL_TABLES], {"seed": ["0"]}):
        assert table.heading == f"Table {table.name}" and table.title
        again = tables.load_table_file(str(table.path), {"seed": ["0"]})
        assert [r.cells for r in again.rows] == [r.cells for r in table.rows]


def test_a_knob_that_only_one_of_several_tables_uses(tmp_path):
    one = write(tmp_path / "one.yaml", "{label: a, overrides: [compressor=sap]}")
    two = write(tmp_path / "two.yaml", "{label: a, overrides: [compressor=sap+embq]}")
    assert len(tables.load_table_files([one, two, one], {"embq.dim": ["32"]})) == 2
    with pytest.raises(UsageError, match="embq.dim=32: no cell uses 'embq'"):
        tables.load_table_file(one, {"embq.dim": ["32"]})


def test_several_tables_share_their_cells_and_show_all_their_rows(tmp_path, capsys):
    one = write(
        tmp_path / "one.yaml",
        "{label: average, overrides: [compressor=avg_pool]}",
        "{label: nine, overrides: [compressor=sap+embq, embq.num_queries=4]}",
        "{label: dot, overrides: [compressor=sap+embq, embq.init=dot]}",
    )
    two = write(tmp_path / "two.yaml", "{label: add, overrides: [compressor=sap+embq, embq.fusion=add]}")
    log, out = tmp_path / "log", tmp_path / "out"
    assert sweep.main([*names(out), f"table={one},{two}", "seed=0,1"], FakeRunner(log), lambda _: None) == 0
    assert read_log(log).count("evaluate") == 5  # avg_pool and sap+embq at two seeds, blind
    with open(out / "table.csv") as file:
        rows = [(row["questions"], row["row"], row["seeds"]) for row in csv.DictReader(file)]
    assert rows == [
        ("one, test", "chance", "1"),
        ("one, test", "blind", "1"),
        ("one, test", "average", "2"),
        ("one, test", "nine", "2"),
        ("one, test", "dot", "2"),
        ("two, test", "chance", "1"),
        ("two, test", "blind", "1"),
        ("two, test", "add", "2"),
    ]
    assert "### two, test: 8 questions" in capsys.readouterr().out


def test_a_product_in_a_row_is_a_row_each(tmp_path):
    name = write(
        tmp_path / "mine.yaml",
        '{label: pooled, overrides: ["compressor=avg_pool,identity"]}',
        "{label: sap, overrides: [compressor=sap]}",
    )
    found = tables.load_table_file(name, TINY)
    assert [(row.label, [c.config.compressor for c in row.cells]) for row in found.rows] == [
        ("pooled avg_pool", ["avg_pool"] * 2),
        ("pooled identity", ["identity"] * 2),
        ("sap", ["sap"] * 2),
    ]


def test_two_tables_of_one_name(tmp_path):
    paths = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        paths.append(write(tmp_path / folder / "mine.yaml", "{label: a, overrides: [compressor=sap]}"))
    with pytest.raises(UsageError, match="two/mine.yaml: .*one/mine.yaml is called mine too; rename"):
        tables.load_table_files(paths, TINY)
