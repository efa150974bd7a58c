"""Settings that act on nothing: refused where no cell has a use for them, no row of their own elsewhere."""

import pytest
from fakes import cells

from compressors.errors import UsageError
from compressors.setting_fields import collect_settings
from experiments.config.idle_settings import REQUIREMENTS
from experiments.config.schema import Config


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("lora.alpha=8,64", "acts on nothing without lora.rank; add it, or leave lora.alpha out"),
        ("lora.target=[q_proj]", "without lora.rank"),
        ("finetune.teacher_weight=0.5", "without finetune.teacher;"),
        ("finetune.init_parts=[llm]", "without finetune.init;"),
        ("pretrain.init_parts=[llm]", "without pretrain.init;"),
        ("finetune.query_warmup_form=thin", "without finetune.query_warmup;"),
        ("image.layout=anyres", "without image.tiles;"),
        ("judge.model=./x", "without evaluate.metric=judge;"),
        ("validate.every=10", "without data.validation;"),
        ("data.images=nowhere", "without files of your own"),
    ],
)
def test_what_acts_on_nothing_is_refused(setting, words):
    with pytest.raises(UsageError, match=words) as caught:
        cells("compressor=sap+embq", setting)
    assert str(caught.value).startswith(f"{setting}: ")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["pretrain.lr=1e-3,3e-3", "finetune.init=x"], "without stage 1, which finetune.init and"),
        (["data.pretrain=train,test", "finetune.init=x", "compressor=sap,avg_pool"], "without stage 1"),
        (["pretrain.epochs=1,7", "compressor=none"], "without stage 1"),
        (["image.tiles=1,3", "compressor=none"], "without images, which compressor=none does not see"),
        (["tower.select_layer=-1,-2", "compressor=none"], "without images"),
    ],
)
def test_values_that_would_make_rows_alike_are_refused(line, words):
    with pytest.raises(UsageError, match=words):
        cells(*line)


def test_one_value_of_what_a_cell_leaves_out_may_be_said_for_all_lines():
    line = ["pretrain.batch_size=4", "data.pretrain=test", "finetune.init=x"]
    assert [cell.label for cell in cells("compressor=sap", *line)] == ["sap"]
    line = ["pretrain.epochs=1", "image.tiles=2", "tower.source=x", "projector=linear"]
    assert [cell.label for cell in cells("compressor=none", *line)] == ["none"]


def test_settings_of_what_another_cell_leaves_out_are_its_own():
    rows = cells("compressor=none,sap", "pretrain.epochs=1,2", "image.size=100")
    assert [cell.label for cell in rows] == ["none", "none", "sap pretrain.epochs=1", "sap pretrain.epochs=2"]


def test_knobs_of_the_projector_that_auto_would_take():
    """They act; behind a compressor that projects itself there is none."""
    rows = cells("compressor=avg_pool,ldp", "mlp2x_gelu.depth=2,3")
    assert [cell.label for cell in rows] == [
        "avg_pool mlp2x_gelu.depth=2",
        "avg_pool mlp2x_gelu.depth=3",
        "ldp",
        "ldp",
    ]
    assert [cell.config.projector for cell in rows] == ["auto", "mlp2x_gelu", "auto", "auto"]
    assert [cell.config.parts.get("mlp2x_gelu") for cell in rows] == [None, {"depth": 3}, None, None]
    with pytest.raises(UsageError, match="mlp2x_gelu.depth=3: no cell uses 'mlp2x_gelu'; compressor=ldp"):
        cells("compressor=ldp", "mlp2x_gelu.depth=3")


def test_what_a_setting_is_without_being_set_is_no_error():
    assert (
        len(cells("image.layout=square", "finetune.init_parts=[]", "lora.alpha=16", "judge.model=null")) == 1
    )


def test_of_use_to_one_cell_is_of_use():
    rows = [cell.label for cell in cells("compressor=sap", "lora.rank=0,8", "lora.alpha=8,64")]
    assert rows == [
        "sap lora.rank=0",
        "sap lora.rank=0",  # one cell, as its row says
        "sap lora.rank=8 lora.alpha=8",
        "sap lora.rank=8 lora.alpha=64",
    ]


def test_requirements_are_about_settings_that_there_are():
    settings = collect_settings(Config)
    for requirement in REQUIREMENTS:
        for beginning in requirement.paths:
            assert beginning in settings or any(path.startswith(beginning) for path in settings), beginning
