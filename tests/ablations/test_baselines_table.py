"""The table of baselines: rows share one training, and have the tokens of their labels."""

import pytest
from test_field import TRAINING_FREE

import compressors
from ablations.claims import spec
from experiments.config import signatures, tables
from experiments.store.plan import plan_stages

SIDE = 12  # patches of the preset tiny


@pytest.fixture(scope="module")
def baselines():
    return tables.load_table_file("baselines", {})


def test_all_rows_share_the_uncompressed_training(baselines):
    finetunes = {plan_stages(row.cells[0].config).inputs["finetune"].key for row in baselines.rows}
    assert len(finetunes) == 1
    evaluations = {plan_stages(row.cells[0].config).key for row in baselines.rows}
    assert len(evaluations) == len(baselines.rows)


def test_rows_have_the_tokens_of_their_labels(baselines):
    for row in baselines.rows[1:]:
        name, _, tokens = row.label.partition(" at ")
        config = row.cells[0].config
        assert config.evaluated_compressor == name
        part = compressors.create(name, dim=128, llm_dim=128, **config.knobs(name))
        side = SIDE // part.image_rate
        assert part.num_tokens(side, side) == int(tokens), row.label
        assert not list(part.parameters()), row.label


def test_every_training_free_compressor_is_there_at_each_budget(baselines):
    by_block = {}
    for row in baselines.rows[1:]:
        by_block.setdefault(row.block, set()).add(row.cells[0].config.evaluated_compressor)
    choosing = {"divprune", "tome", "prumerge", "random"} | TRAINING_FREE
    assert len(by_block) == 3
    assert all(names >= choosing for names in by_block.values())
    assert set(signatures.compressors().list_built_in()) >= TRAINING_FREE


def test_claims_are_about_its_rows(baselines):
    claims = spec.read_claims(baselines)
    assert [claim.kind for claim in claims] == ["better", "gains_grow", "better", "better"]
    assert claims[1].statement == "(divprune at 16 - visionzip at 16) > (divprune at 72 - visionzip at 72)"
