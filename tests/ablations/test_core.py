"""The core rows: cells that the paper's tables and ours have, at any preset, and claims about them."""

from ablations import study
from ablations.claims import spec
from experiments.config import tables
from experiments.store.plan import plan_stages


def test_its_rows_are_other_tables_cells_too():
    """So that the committed study has them all, and `earlier=tiny` computes nothing."""
    rows = tables.load_table_file("core", {}).rows
    assert len(rows) == 8
    finished_keys = study.read_evaluation_keys(study.TINY_FOLDER)
    assert {plan_stages(row.cells[0].config).key for row in rows} <= finished_keys


def test_claims_are_about_its_rows():
    table = tables.load_table_file("core", {})
    labels = {row.label for row in table.rows}
    claims = spec.read_claims(table)
    assert claims
    for claim in claims:
        for pair in claim.pairs:
            assert set(pair) <= labels, claim.text


def test_it_has_cells_with_other_backbones():
    rows = tables.load_table_file("core", {"preset": ["small"]}).rows
    assert {row.cells[0].config.llm.source for row in rows} == {"cache:small/llm"}
