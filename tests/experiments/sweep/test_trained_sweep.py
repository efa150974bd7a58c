"""A compressor behind the LLM of an uncompressed cell, which teaches it: over the shipped backbones."""

import pytest

from experiments.sweep import __main__ as sweep
from slothkit import sweep as run_sweep

SMALL = [
    "blind=false",
    "data.scale=0.005",
    "evaluate.limit=12",
    "trainer.accelerator=cpu",
    "pretrain.batch_size=4",
    "finetune.batch_size=4",
    "pretrain.max_steps=1",
    "finetune.max_steps=2",
]


@pytest.mark.slow
def test_a_cell_starts_from_another_and_learns_from_it(tmp_path, capsys):
    out = f"out={tmp_path}"
    uncompressed = run_sweep(out, "compressor=identity", *SMALL, quiet=True)[0]
    name = uncompressed.folder.name
    start = [out, "compressor=sap", f"finetune.init={name}", *SMALL]
    assert sweep.main(start) == 2
    error = capsys.readouterr().err
    assert "missing: compressor.scorer.0.bias" in error and error.count("\n") == 1
    assert error.endswith("take what fits with finetune.init_parts=[tower,projector,llm]\n")
    taught = [*start, "finetune.init_parts=[tower,projector,llm]", f"finetune.teacher={name}"]
    [cell] = run_sweep(*taught, quiet=True)
    assert not any(stage.startswith("pretrain") for stage in cell.run)
    stages = set(cell.run)
    # data and features are those of the uncompressed cell
    shared = {stage for stage in uncompressed.run if stage.startswith(("data", "features"))}
    assert len(shared) == 3 and shared <= stages
    model, processor = cell.load()
    assert processor.image_tokens == 16
    assert sweep.main([*taught, "--plan"]) == 0
    assert "nothing to run" in capsys.readouterr().out
