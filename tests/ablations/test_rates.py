"""The table of rates: a row has the tokens that its label says, and its claims are about its rows."""

import pytest
import torch

import compressors
from ablations.claims import spec
from experiments.config import tables
from experiments.store.plan import plan_stages

SIDE = 12  # patches of the preset tiny
TOKENS = {36, 16, 9, 4}


@pytest.fixture(scope="module")
def rates():
    return tables.load_table_file("rates", {})


def test_rows_make_the_tokens_of_their_labels(rates):
    assert rates.rows
    for row in rates.rows:
        compressor, _, tokens = row.label.partition(" at ")
        config = row.cells[0].config
        assert config.compressor == compressor.replace(" in windows", "")
        name = config.compressor_name
        with torch.device("meta"):
            part = compressors.create(name, dim=128, llm_dim=256, **config.knobs(name))
        if config.evaluate.scale:
            part.pick(config.evaluate.scale)
        assert part.num_tokens(SIDE, SIDE) == int(tokens), row.label


def test_all_rates_have_the_same_compressors(rates):
    by_tokens = {tokens: set() for tokens in TOKENS}
    for row in rates.rows:
        compressor, _, tokens = row.label.partition(" at ")
        by_tokens[int(tokens)].add(compressor)
    with_embq = {"avg_pool", "sap", "random", "slothmix"}
    without = {"slothmix in windows", "ldpv2", "divprune"}
    expected = with_embq | {f"{name}+embq" for name in with_embq} | without
    few_only = "slothmix in windows+embq"
    for tokens, found in by_tokens.items():
        assert found - {"matryoshka", few_only} == expected, tokens
    assert [tokens for tokens, found in by_tokens.items() if "matryoshka" not in found] == [16]
    assert [tokens for tokens, found in by_tokens.items() if few_only in found] == [4]


def test_matryoshka_is_trained_once_for_all_its_rates(rates):
    cells = [row.cells[0] for row in rates.rows if row.label.startswith("matryoshka")]
    evaluations = [plan_stages(cell.config) for cell in cells]
    assert len({stage.key for stage in evaluations}) == 3
    assert len({stage.inputs["finetune"].key for stage in evaluations}) == 1


def test_claims_are_about_its_rows(rates):
    *before, windows_at_9, windows_at_4, windows_with_embq, by_rate = spec.read_claims(rates)
    at_every_rate, *ours, rescue, growing, larger, crossing = before
    assert len(at_every_rate.pairs) == len(TOKENS)
    assert [claim.pairs for claim in ours] == [
        ((f"slothmix at {tokens}", f"sap+embq at {tokens}"),) for tokens in (16, 9, 4)
    ]
    assert rescue.statement == "sap+embq at 4 > sap at 4"
    assert growing.row_labels[:2] == ("sap+embq at 4", "sap at 4") and len(growing.row_labels) == 8
    assert larger.statement == "(random+embq at 4 - random at 4) > (sap+embq at 4 - sap at 4)"
    assert crossing.pairs == (("sap at 36", "divprune at 36"), ("divprune at 4", "sap at 4"))
    assert windows_at_9.statement == "slothmix in windows at 9 > sap+embq at 9"
    assert windows_at_4.statement == "slothmix in windows at 4 > sap+embq at 4"
    assert windows_with_embq.statement == "slothmix in windows+embq at 4 > sap+embq at 4"
    assert by_rate.pairs == (
        ("slothmix at 16", "slothmix in windows at 16"),
        ("slothmix in windows at 4", "slothmix at 4"),
    )
