"""The table of baselines: rows share one training, and have the tokens of their labels."""

import pytest
from test_field import ASKS_TOWER, TRAINING_FREE

import compressors
from ablations.claims import spec
from compressors.errors import UsageError
from experiments.config import signatures, tables
from experiments.config.cells import make_cells
from experiments.models.build import check_model_config
from experiments.store.plan import plan_stages

SIDE = 12  # patches of the preset tiny


@pytest.fixture(scope="module")
def baselines():
    return tables.load_table_file("baselines", {})


@pytest.fixture(scope="module")
def rows(baselines):
    """Those that have cells."""
    return [row for row in baselines.rows if not row.absent]


def test_all_rows_share_the_uncompressed_training(rows):
    finetunes = {plan_stages(row.cells[0].config).inputs["finetune"].key for row in rows}
    assert len(finetunes) == 1
    evaluations = {plan_stages(row.cells[0].config).key for row in rows}
    assert len(evaluations) == len(rows)


def test_rows_have_the_tokens_of_their_labels(rows):
    for row in rows[1:]:
        name, _, tokens = row.label.partition(" at ")
        config = row.cells[0].config
        assert config.evaluated_compressor == name
        part = compressors.create(name, dim=128, llm_dim=128, **config.knobs(name))
        side = SIDE // part.image_rate
        assert part.num_tokens(side, side) == int(tokens), row.label
        assert not list(part.parameters()), row.label


def test_every_training_free_compressor_is_there_at_each_budget(rows):
    by_block = {}
    for row in rows[1:]:
        by_block.setdefault(row.block, set()).add(row.cells[0].config.evaluated_compressor)
    choosing = {"divprune", "tome", "prumerge", "random"} | TRAINING_FREE - ASKS_TOWER
    assert len(by_block) == 3
    assert all(names >= choosing for names in by_block.values())
    assert set(signatures.compressors().list_built_in()) >= TRAINING_FREE


def test_what_cannot_be_says_why(baselines):
    """The compressors that the tower of the preset has nothing for, each refused by it."""
    absent = {row.label: row.absent for row in baselines.rows if row.absent}
    assert absent.keys() == ASKS_TOWER
    assert all("text encoder" in reason for reason in absent.values())
    for name in absent:
        (cell,) = make_cells({"compressor": ["identity"], "evaluate.compressor": [name]})
        with pytest.raises(UsageError, match="has no text encoder of its own; give a whole CLIP or SigLIP"):
            check_model_config(cell.config)


def test_claims_are_about_its_rows(baselines):
    claims = spec.read_claims(baselines)
    assert [claim.kind for claim in claims] == ["better", "gains_grow", "better", "better"]
    assert claims[1].statement == "(divprune at 16 - visionzip at 16) > (divprune at 72 - visionzip at 72)"
