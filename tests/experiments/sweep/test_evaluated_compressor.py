"""`evaluate.compressor`: a compressor without weights in the place of `identity`, in evaluation alone."""

import json

import pytest
from fakes import config, stages

from compressors.errors import UsageError
from experiments.store.workload import derive_workload
from experiments.sweep import __main__ as sweep

# trained for seconds over the shipped backbones
UNCOMPRESSED = [
    "compressor=identity",
    "blind=false",
    "data.scale=0.005",
    "evaluate.limit=24",
    "trainer.accelerator=cpu",
    *(f"{stage}.batch_size=4" for stage in ("pretrain", "finetune")),
    *(f"{stage}.max_steps=8" for stage in ("pretrain", "finetune")),
]


def test_training_is_shared_with_the_uncompressed_cell():
    plain = stages("compressor=identity")
    replaced = stages("compressor=identity", "evaluate.compressor=divprune")
    for kind in ("data", "features test", "features pretrain", "pretrain", "finetune"):
        assert plain[kind].key == replaced[kind].key
    assert plain["evaluate"].key != replaced["evaluate"].key
    other = stages("compressor=identity", "evaluate.compressor=divprune", "divprune.tokens=9")
    assert other["evaluate"].key != replaced["evaluate"].key
    spelled = stages("compressor=identity", "evaluate.compressor=divprune", "divprune.rate=3")
    assert spelled["evaluate"].key == replaced["evaluate"].key


def test_what_the_tower_gives_beside_is_cached_for_the_test_alone():
    plain = stages("compressor=identity")
    cued = stages("compressor=identity", "evaluate.compressor=visionzip")
    assert plain["features test"].key != cued["features test"].key
    assert cued["features test"].depends["cues"] == ["attention", "keys"]
    assert plain["features pretrain"].key == cued["features pretrain"].key
    shrunk = stages("compressor=identity", "evaluate.compressor=downsample")
    assert shrunk["features test"].depends["image_rate"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compressor=sap", "evaluate.compressor=divprune"], "trained with compressor=sap"),
        (["compressor=none", "evaluate.compressor=divprune"], "compressor=none sees no image"),
        (["compressor=identity", "evaluate.compressor=divprun"], "did you mean 'divprune'"),
        (["compressor=identity", "divprune.rate=2"], "no cell uses 'divprune'"),
    ],
)
def test_what_cannot_be(words, message):
    with pytest.raises(UsageError, match=message):
        config(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate.compressor=sap"], "evaluate.compressor=sap: it has weights, which nobody has trained"),
        (["evaluate.compressor=pixel_shuffle"], "its tokens have 1152 channels, not 128"),
        (["evaluate.compressor=visionzip", "visionzip.cls=true"], "this vision tower has no CLS token"),
        (
            ["evaluate.compressor=hiprune", "hiprune.block=9"],
            "block=9 (cue 'received:9'): level 9: this tower was built",
        ),
        (["evaluate.compressor=divprune", "divprune.tokens=0"], "tokens=0: must be how many tokens"),
        (["evaluate.compressor=divprune", "divprune.tokens=145"], "tokens=145: the 12x12 patch grid has 144"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_work(capsys, tmp_path, words, message):
    assert sweep.main([f"out={tmp_path / 'runs'}", *UNCOMPRESSED, *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_the_scale_is_of_the_evaluated_compressor(tmp_path):
    """Training rows are measured without either."""
    words = ["compressor=identity", "evaluate.compressor=matryoshka", "evaluate.scale=2", "blind=false"]
    assert sweep.main([f"out={tmp_path / 'runs'}", *words, "--plan"]) == 0


def test_estimates_tell_evaluated_compressors_apart():
    plain = derive_workload(stages("compressor=identity")["evaluate"])
    replaced = derive_workload(stages("compressor=identity", "evaluate.compressor=divprune")["evaluate"])
    assert plain.model != replaced.model


@pytest.mark.slow
def test_a_real_cell(tmp_path, capsys):
    """Evaluated with all patches, with a quarter of them, and by cues, on one training."""
    out = tmp_path / "runs"
    compressors = "evaluate.compressor=null,divprune,visionzip,identity"
    assert sweep.main([f"out={out}", *UNCOMPRESSED, compressors]) == 0, capsys.readouterr()
    assert len(list((out / "finetune").glob("*/done.json"))) == 1
    tokens = {}
    answers = {}
    for evaluation in (out / "evaluate").glob("*/metrics.json"):
        settings = json.loads((evaluation.parent / "done.json").read_text())
        key = settings["key"]
        tokens[key] = json.loads(evaluation.read_text())["efficiency"]["visual_tokens"]
        answers[key] = (evaluation.parent / "predictions.jsonl").read_text()
    assert sorted(tokens.values()) == [16, 16, 144, 144]
    # identity in the place of identity changes nothing
    whole = [answers[key] for key, count in tokens.items() if count == 144]
    assert whole[0] == whole[1]
