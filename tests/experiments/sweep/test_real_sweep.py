"""The command over the shipped backbones: what only a model's sizes can tell. Killed runs: tests/stress."""

import pytest

from experiments.sweep import __main__ as sweep


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sap.rate=5"], "rate=5 does not divide the 12x12 patch grid"),
        (["embq.at=7"], "embq.at=7: the LLM has decoder layers 1 to 6"),
        (["embq.heads=3"], "embq.heads=3 does not divide embq.dim=64"),
        (["embq.dim=63"], "embq.heads=4 does not divide embq.dim=63"),
        (["embq.released=true", "embq.fusion=gated"], "embq.released=true"),
        (["image.size=10"], "image"),
        (["tower.select_layer=-9"], "select_layer=-9: the vision tower has 6 blocks"),
        (
            ["compressor=ldpv2", "ldpv2.grid=[20,20]", "ldpv2.rate=null"],
            "grid=(20, 20) is larger than the 12x12",
        ),
        (["projector=identity", "compressor=pixel_shuffle"], "identity"),
        (["llm.source=nowhere/at/all"], "llm.source=nowhere/at/all: cannot be loaded"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--plan"]])
def test_what_does_not_fit_is_one_line(capsys, tmp_path, overrides, message, flags):
    assert sweep.main([f"out={tmp_path / 'runs'}", *overrides, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_backbone_out_of_reach_can_be_planned(capsys, tmp_path, monkeypatch):
    """A plan is made where the hub cannot be reached, and waits for it once; a sweep is not."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments = [f"out={tmp_path / 'runs'}", "llm.source=nowhere/model", "compressor=sap+embq,avg_pool"]
    assert sweep.main([*arguments, "--plan"]) == 0
    out = capsys.readouterr().out
    assert "not checked: sap+embq: llm.source=nowhere/model: cannot be loaded" in out and "pretrain" in out
    assert "not checked: avg_pool: its models are out of reach, as above" in out
    assert sweep.main(arguments) == 2
    assert "llm.source=nowhere/model: cannot be loaded" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_of_a_table_the_row_that_does_not_fit_is_named(capsys, tmp_path):
    table = tmp_path / "mine.yaml"
    table.write_text(
        "title: mine\nblocks:\n- title: rates\n  rows:\n"
        "  - {label: a third, overrides: [compressor=sap]}\n"
        "  - {label: a fifth, overrides: [compressor=sap, sap.rate=5]}\n"
    )
    assert sweep.main([f"out={tmp_path / 'runs'}", f"table={table}"]) == 2
    assert capsys.readouterr().err.startswith("error: a fifth: rate=5 does not divide the 12x12 patch grid")
