"""`prune=` in cells: what it shares with its unpruned cell, what is refused, evaluation, FLOPs."""

import json

import pytest
import small_runs
from factories import picture
from fakes import cells, config, stages

from ablations.costs.prefill import PREFILL_TEXT_TOKENS, count_prefill, digest_prefill, look_up_counts
from compressors.errors import UsageError
from experiments.config.cells import make_blind_cells
from experiments.efficiency.counting import count_cell_prefill_flops
from experiments.efficiency.subject import LLM
from experiments.efficiency.table1 import build_cell_subject
from experiments.models import build
from experiments.runtime.progress import Reporter
from experiments.stages import evaluate
from experiments.store.plan import plan_stages
from experiments.store.results import identify_questions
from llm_adapters.pruning import registry
from llm_adapters.saved import MODEL_FOLDER

BASE = ["compressor=sap+embq"]


def keys(*overrides: str) -> dict[str, str]:
    return {kind: stage.key for kind, stage in stages(*BASE, *overrides).items()}


@pytest.mark.parametrize("name", registry.names())
def test_only_the_evaluation_is_the_pruners_own(name):
    plain, pruned, other = keys(), keys(f"prune={name}"), keys(f"prune={name}", f"{name}.average=0.7")
    assert pruned.pop("evaluate") != plain.pop("evaluate") != other.pop("evaluate")
    assert plain == pruned == other


def test_knobs_that_came_later_are_in_a_key_where_they_change_something():
    fastv = "prune=fastv"
    plain = keys(fastv)["evaluate"]
    assert keys(fastv, "fastv.rotary=true", "fastv.uniform=0")["evaluate"] == plain
    changed = {keys(fastv, knob)["evaluate"] for knob in ("fastv.rotary=false", "fastv.uniform=0.5")}
    assert len(changed | {plain}) == 3


def test_no_pruner_is_in_no_key():
    assert keys("prune=null") == keys()
    assert "prune" not in stages(*BASE)["evaluate"].depends


def test_a_calibration_depends_on_the_training_data():
    assert "calibration" not in stages(*BASE, "prune=fastv")["evaluate"].depends
    assert stages(*BASE, "prune=fitprune")["evaluate"].depends["calibration"] == ["train"]
    given = stages(*BASE, "prune=fitprune", "fitprune.recipe=[0.5]")["evaluate"]
    assert "calibration" not in given.depends  # the recipe is known
    assert given.depends["prune"]["fitprune"]["recipe"] == (0.5,)


def test_a_calibration_asks_no_other_questions(tmp_path):
    """Rows of one table, where the questions are a file's and the calibration reads embedded data."""
    picture(1).save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "a fox"}]
    (tmp_path / "test.json").write_text(json.dumps([{"id": "a", "image": "a.png", "conversations": turns}]))
    asked = [f"data.test={tmp_path / 'test.json'}", "compressor=identity"]
    evaluations = [stages(*asked, f"prune={name}")["evaluate"] for name in ("null", "fastv", "fitprune")]
    assert "data" in evaluations[2].inputs
    assert len({identify_questions(evaluation) for evaluation in evaluations}) == 1
    other = stages("compressor=identity", "data.seed=1")["evaluate"]
    assert identify_questions(other) != identify_questions(stages("compressor=identity")["evaluate"])


def test_rows_and_their_labels():
    found = cells(*BASE, "prune=null,fastv", "fastv.ratio=0.25,0.5")
    assert [cell.label for cell in found][2:] == [
        "sap+embq prune=fastv fastv.ratio=0.25",
        "sap+embq prune=fastv fastv.ratio=0.5",
    ]
    assert len({plan_stages(cell.config).key for cell in found}) == 3  # unpruned ones are the same
    assert all(cell.config.prune is None and not cell.config.parts for cell in make_blind_cells(found))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prune=fastvv"], "unknown pruner 'fastvv'; did you mean 'fastv'"),
        (["fastv.ratio=0.5"], "no cell uses 'fastv'.*it needs prune=fastv"),
        (["prune=fastv", "fastv.rate=2"], "has no knob 'rate'; did you mean 'ratio'"),
        (["prune=fastv", "fastv.layer=two"], "fastv.layer='two'"),
        (["compressor=none", "prune=fastv"], "prune=fastv: compressor=none has no visual tokens"),
    ],
)
def test_bad_input(overrides, message):
    with pytest.raises(UsageError, match=message):
        config(*([] if overrides[0].startswith("compressor") else BASE), *overrides)


@pytest.mark.parametrize(("prune", "knobs"), [("fastv", {"ratio": 0.5}), ("fitprune", {"samples": 3})])
def test_evaluation_of_a_pruned_cell(tmp_path, prune, knobs):
    small_runs.write_backbones(tmp_path)
    small_runs.write_data(tmp_path, 5, text_only=frozenset([1]))
    cell = small_runs.make_config(tmp_path, "identity+embq")
    cell.data.test, cell.prune, cell.evaluate.max_new_tokens = cell.data.train, prune, 3
    cell.parts[prune] = knobs
    model, processor = build.build_model(cell)
    model.save_pretrained(tmp_path / "finetune" / MODEL_FOLDER)
    processor.save_pretrained(tmp_path / "finetune" / MODEL_FOLDER)
    metrics = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        evaluate.run(cell, {"finetune": tmp_path / "finetune"}, tmp_path / name, Reporter())
        metrics.append(json.loads((tmp_path / name / "metrics.json").read_text()))
    assert metrics[0] == metrics[1]
    found, left = metrics[0]["pruner"][prune], metrics[0]["efficiency"]["average_visual_tokens"]
    assert found.items() >= knobs.items()
    if prune == "fitprune":  # 36 tokens of an image, half of them on average over 4 layers
        assert 1 + sum(found["recipe"]) == pytest.approx(2, abs=1e-4)
    else:
        assert left == model.num_image_tokens() * (1 + 3 * 0.5) / 4


def test_the_check_before_a_run_knows_the_depth(tmp_path):
    small_runs.write_backbones(tmp_path)
    cell = small_runs.make_config(tmp_path, "identity")
    cell.prune, cell.parts["fastv"] = "fastv", {"layer": 9}
    with pytest.raises(UsageError, match="from 1 to 3"):
        build.check_model_config(cell)


def test_prefill_counts_fewer_flops(tmp_path):
    def flops(*overrides: str) -> int:
        tiny = ["tower.source=asset:tiny/tower", "llm.source=asset:tiny/llm", "compressor=identity"]
        return config(*tiny, *overrides)

    plain, half, all_ = flops(), flops("prune=fastv"), flops("prune=fastv", "fastv.ratio=1.0")
    assert len({digest_prefill(each) for each in (plain, half, all_)}) == 3
    scoring = count_prefill(all_) - count_prefill(plain)
    assert 0 < scoring < 0.001 * count_prefill(plain)  # one query row in one layer
    # without positions the projections of one layer come on top
    unrotated = count_prefill(flops("prune=fastv", "fastv.ratio=1.0", "fastv.rotary=false"))
    assert 0.005 * count_prefill(plain) < unrotated - count_prefill(all_) < 0.05 * count_prefill(plain)
    # a random choice costs nothing, pivots next to it, a graph its cosines
    names = ("random_drop", "dart", "gprune", "vtw")
    counts = {name: count_prefill(flops(f"prune={name}")) for name in names}
    assert counts["random_drop"] < counts["dart"] < counts["gprune"] < 1.02 * counts["random_drop"]
    assert counts["random_drop"] + scoring == count_prefill(half)
    llm = count_cell_prefill_flops(build_cell_subject("", plain), PREFILL_TEXT_TOKENS)[LLM]
    assert count_prefill(half) < count_prefill(plain) - 0.3 * llm
    assert counts["vtw"] < count_prefill(plain) - 0.3 * llm
    assert look_up_counts([flops("prune=sparsevlm", "sparsevlm.adaptive=0.5")], tmp_path / "kept.json") == [
        None
    ]
