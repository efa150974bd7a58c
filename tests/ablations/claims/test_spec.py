"""The project's tables and their claims; what is wrong with a claim is said in one line."""

import pytest

from ablations.claims import spec
from ablations.costs import prefill
from compressors.errors import UsageError
from connectors.versions import is_at_least
from experiments.config import tables
from experiments.config.cells import make_cells
from experiments.store.plan import plan_stages


@pytest.fixture(scope="module")
def project():
    return {table.name: table for table in tables.load_table_files([tables.ALL_TABLES], {})}


def rows_of(table):
    return {row.label: row for row in table.rows}


def test_the_tables_of_the_paper_are_there(project):
    assert list(project) == ["3", "4", "5", "6"]
    assert [len(table.rows) for table in project.values()] == [14, 11, 3, 18]
    assert all(spec.read_claims(table) for table in project.values())


def test_rows_at_the_preset_s_own_values_are_one_cell(project):
    own = plan_stages(make_cells({"compressor": ["sap+embq"]})[0].config).key
    same = {
        name: [label for label, row in rows_of(table).items() if plan_stages(row.cells[0].config).key == own]
        for name, table in project.items()
    }
    assert same == {
        "3": ["sap+embq", "dot token", "4 queries"],
        "5": ["add"],
        "6": ["sap+embq"],
        "4": ["1/2 of the tower's width", "1 layer", "middle"],
    }


def test_all_other_rows_differ(project):
    keys = [plan_stages(row.cells[0].config).key for table in project.values() for row in table.rows]
    assert len(set(keys)) == len(keys) - 7 - 5  # sap+embq eight times, five of Table 3 in Table 6 again


def test_pretraining_is_shared(project):
    """By all EmbQ variants of a compressor."""
    roots = [plan_stages(row.cells[0].config) for table in project.values() for row in table.rows]
    stages = {key: stage for root in roots for key, stage in root.collect_stages().items()}
    assert sum(stage.kind == "pretrain" for stage in stages.values()) == 9  # one a compressor


def test_values_grow_with_the_model(project):
    knobs = {label: row.cells[0].config.knobs("embq") for label, row in rows_of(project["4"]).items()}
    assert [knobs[label]["dim"] for label in list(knobs)[:4]] == [32, 64, 128, 256]
    assert [knobs[label]["at"] for label in ("shallow", "middle", "deep", "several")] == [1, 3, 5, (1, 3, 5)]
    assert all(rows_of(project["4"])[label].ours for label in ("shallow", "deep", "several"))


def test_baselines_stand_beside_compressors(project):
    for name in ("3", "6"):
        assert all(rows_of(project[name])[label].ours for label in ("random", "downsample"))


def test_their_flops_are_shipped(project):
    """If not: python -m ablations.costs.prefill."""
    known = prefill.read_flop_counts(prefill.SHIPPED_COUNTS)
    assert all(
        prefill.digest_prefill(row.cells[0].config) in known for t in project.values() for row in t.rows
    )


def test_shipped_flops_are_right(project):
    rows = rows_of(project["3"])
    known = prefill.read_flop_counts(prefill.SHIPPED_COUNTS)
    config = rows["1 query"].cells[0].config
    # before 5.19 transformers turns positions into angles by a matrix product, which is counted
    exact = known[prefill.digest_prefill(config)]
    assert prefill.count_prefill(config) == (exact if is_at_least("5.19") else pytest.approx(exact, rel=1e-5))
    counts = {label: known[prefill.digest_prefill(row.cells[0].config)] for label, row in rows.items()}
    order = ["downsample", "avg_pool", "sap", "1 query", "sap+embq", "uncompressed"]
    assert sorted(order, key=counts.get) == order


def test_counts_are_kept(tmp_path):
    kept = tmp_path / "report" / "prefill.json"
    config = make_cells({"compressor": ["uniform"], "uniform.rate": ["2"]})[0].config
    first = prefill.look_up_counts([config], kept)
    assert kept.is_file()
    kept.write_text(kept.read_text().replace(str(first[0]), "7"))
    assert prefill.look_up_counts([config], kept) == [7]
    kept.write_text("no JSON")
    assert prefill.look_up_counts([config], kept) == first
    away = make_cells({"compressor": ["sap"], "llm.source": ["no/where"]})[0].config
    assert prefill.look_up_counts([away], kept) == [None]


TABLE = """
rows:
- {label: a, overrides: [compressor=sap]}
- {label: b, overrides: [compressor=avg_pool]}
- {label: c, overrides: [compressor=random]}
claims:
- text: words
  source: somebody
"""


def read_all(tmp_path, text: str):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return spec.read_claims(tables.load_table_file(str(path), {}))


def read(tmp_path, claim: str):
    return read_all(tmp_path, TABLE + claim)[0]


def test_kinds_of_claims(tmp_path):
    found = read(tmp_path, "  best: {row: a, of: [b, c]}\n  family: reading")
    assert found.pairs == (("a", "b"), ("a", "c")) and found.families == ("reading",)
    assert found.statement == "a > each of b, c  (reading)"
    found = read(tmp_path, "  better: [{row: a, than: b}, {row: b, than: [c]}]")
    assert found.pairs == (("a", "b"), ("b", "c")) and found.row_labels == ("a", "b", "c")
    found = read(tmp_path, "  within: {row: a, of: b, points: 2}\n  ours: the 2")
    assert (found.points, found.ours, found.statement) == (2.0, "the 2", "a > b - 2")


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ("  better: {row: a, than: d}", "claim 'words': no row 'd'"),
        ("  better: {row: a, then: b}", "better: .*expected {row: ..., than: ...}"),
        ("  better: {row: a, than: a}", "better: 'a' is compared with itself"),
        ("  better: {row: a, than: []}", "than is empty"),
        ("  best: {row: a, than: b}", "best: .*expected {row: ..., of: ...}"),
        ("  better: {row: a, than: b}\n  family:", "family: expected a name or a list of them, found None"),
        ("  within: {row: a, of: b}", "within: .*expected {row: ..., of: ..., points: ...}"),
        ("  within: {row: a, of: b, points: -1}", "points: -1: expected one number of percentage points"),
        ("  within: {row: a, of: b, points: many}", "points: 'many'"),
        ("  bettr: {row: a, than: b}", "unknown key 'bettr'; did you mean 'better'"),
        ("  better: {row: a, than: b}\n  best: {row: a, of: b}", "gains_grow, found better, best"),
        ("", "expected one of better, best, within, gains_more, gains_grow, found none"),
        ("- better: {row: a, than: b}", "claim 'words': expected one of"),
    ],
)
def test_bad_claims(tmp_path, claim, message):
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path, claim)
    assert "\n" not in str(caught.value) and "mine.yaml" in str(caught.value)


WITHIN = """
- text: words
  source: somebody
  within: {row: a, of: b, points: 2}
"""


def read_with_tie(tmp_path, tie: str):
    return read_all(tmp_path, f"tie: {tie}" + TABLE + "  better: {row: a, than: b}\n" + WITHIN)


def test_ties_are_of_claims_without_a_limit(tmp_path):
    better, within = read_with_tie(tmp_path, "{points: 1, reason: two runs of a cell differ so}")
    assert (better.tie, better.tie_reason) == (1.0, "two runs of a cell differ so")
    assert (within.tie, within.tie_reason) == (0.0, "")


@pytest.mark.parametrize(
    ("tie", "message"),
    [
        ("1", "tie: 1: expected {points: ..., reason: ...}"),
        ("{points: 1}", "tie: .*expected {points: ..., reason: ...}"),
        ("{points: 1, reason: so, of: a}", "tie: .*expected {points: ..., reason: ...}"),
        ("{points: 0, reason: so}", "more than 0 points and a reason in words"),
        ("{points: 1, reason: ' '}", "more than 0 points and a reason in words"),
        ("{points: few, reason: so}", "tie: points: 'few': expected one number"),
        ("{points: 100, reason: so}", "tie: points: 100: expected one number"),
    ],
)
def test_bad_ties(tmp_path, tie, message):
    with pytest.raises(UsageError, match=message) as caught:
        read_with_tie(tmp_path, tie)
    assert "\n" not in str(caught.value) and "mine.yaml" in str(caught.value)
