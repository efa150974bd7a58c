"""The table of what SlothMix is made of: a row differs from ours in the knobs that it names."""

import pytest
import torch

import compressors
from ablations.claims import spec
from experiments.config import signatures, tables

SIDE = 12  # patches of the preset tiny
BASE = {"depth": 2, "width": None, "heads": 8, "groups": "diverse"}
KNOBS = {
    "no residual": {"depth": 0},
    "1 residual": {"depth": 1},
    "4 residuals": {"depth": 4},
    "1/2 of the tower's width": {"width": 64},
    "twice the tower's width": {"width": 256},
    "1 head": {"heads": 1},
    "1 head, no residual": {"heads": 1, "depth": 0},
    "windows": {"groups": "windows"},
}


@pytest.fixture(scope="module")
def table():
    return tables.load_table_file("slothmix", {})


def test_a_row_differs_in_the_knobs_that_it_names(table):
    first, *others = table.rows
    assert first.label == "slothmix"
    assert [row.label for row in others] == list(KNOBS)
    given = first.cells[0].config.knobs("slothmix")
    for row in others:
        config = row.cells[0].config
        assert config.compressor == "slothmix"
        assert config.knobs("slothmix") == {**given, **KNOBS[row.label]}, row.label


def test_the_first_row_has_the_defaults_and_all_have_16_tokens(table):
    for row in table.rows:
        knobs = row.cells[0].config.knobs("slothmix")
        with torch.device("meta"):
            part = compressors.create("slothmix", dim=128, llm_dim=256, **knobs)
        assert part.num_tokens(SIDE, SIDE) == 16
    knobs = table.rows[0].cells[0].config.knobs("slothmix")
    settled = signatures.compressors().settled("slothmix", knobs)
    assert {name: settled[name] for name in BASE} == BASE


def test_claims_are_about_its_rows(table):
    claims = spec.read_claims(table)
    pairs = [pair for claim in claims for pair in claim.pairs]
    others = ["no residual", "4 residuals", "twice the tower's width", "1 head", "windows"]
    assert pairs == [("slothmix", other) for other in others]
    assert [claim.points for claim in claims] == [0, 1, 1, 0, 0]
