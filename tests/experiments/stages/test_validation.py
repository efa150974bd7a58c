"""Validation: what it measures is what the model has, and no weight follows from it."""

import csv
import json

import pytest
import torch
from fakes import config as make_cell_config
from fakes import stages
from small_runs import Losses, align, make_config, run, write_backbones, write_data

from compressors.errors import UsageError
from experiments.data import llava
from experiments.data.loader import ConversationDataset, SampleImages
from experiments.models.build import build_model
from experiments.runtime.progress import Reporter
from experiments.stages import evaluate
from experiments.stages.checks import check_metric
from experiments.stages.training.module import compute_rate_factor
from experiments.stages.training.validation import Validation, make_validation
from llm_adapters import saved


class Notes(Losses):
    """What a run writes down; it may be killed at a step."""

    def __init__(self, die_at=None):
        super().__init__(die_at)
        self.notes = []

    def write_note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validation")
    write_backbones(folder)
    write_data(folder, 12, frozenset({5}))
    return folder


def make_validated(folder, **trainer):
    """A cell that is watched on the first rows of its own data; every part draws in training."""
    config = make_config(folder, **trainer)
    config.parts["sap"]["dropout"] = 0.2
    config.finetune.query_warmup = 0.5
    config.finetune.query_warmup_form = "fade"
    config.data.validation = [str(folder / "data.json")]
    config.data.test = [str(folder / "data.json")]
    config.validate.every, config.validate.score_every, config.validate.limit = 2, 3, 7
    config.evaluate.max_new_tokens = 4
    config.evaluate.limit = 7
    return config


@pytest.fixture(scope="module")
def watched(folder):
    """A whole stage that was watched: its weights, folder and notes."""
    config = make_validated(folder, logger="csv")
    report = Notes()
    out = folder / "watched"
    return config, run("finetune", config, align(config, folder), out, report), out, report.notes


def test_weights_are_the_same_without_it(folder, watched):
    config, weights, _, _ = watched
    bare = make_validated(folder, logger="csv")
    bare.data.validation, bare.validate.score_every = [], None
    alone = run("finetune", bare, align(config, folder), folder / "alone")
    assert alone.keys() == weights.keys()
    assert all(torch.equal(alone[name], weights[name]) for name in alone)


def test_a_killed_run_ends_with_the_same_weights(folder, watched):
    config, weights, _, _ = watched
    killed = make_validated(folder, logger="csv", checkpoint_every=2)
    out = folder / "killed"
    with pytest.raises(SystemExit):
        run("finetune", killed, align(config, folder), out, Notes(die_at=3))
    resumed = run("finetune", killed, align(config, folder), out)
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)


def read_curve(out, name):
    """Step -> value of a curve, over all files of the run."""
    curve = {}
    for path in out.rglob("metrics.csv"):
        for row in csv.DictReader(path.open()):
            if row.get(name):
                curve[int(row["step"])] = float(row[name])
    return curve


def test_the_rate_of_a_step_is_the_one_that_it_was_made_with(watched):
    config, _, out, _ = watched
    settings = config.finetune
    steps = settings.max_steps
    curve = read_curve(out, "lr")
    assert curve
    for step, rate in curve.items():
        factor = compute_rate_factor(step, round(settings.warmup * steps), steps, settings.schedule)
        assert rate == pytest.approx(settings.lr * factor) and (factor > 0 or step == 0)


def test_curves_have_what_the_trained_model_has(folder, watched):
    """The last look is at the weights that are saved: their loss, and the score of an evaluation."""
    config, _, out, notes = watched
    losses, scores = read_curve(out, "validation_loss"), read_curve(out, "validation_score")
    assert sorted(losses) == [1, 3] and sorted(scores) == [2, 3]  # of steps 2 and 4, 3 and 4

    model, processor = saved.load_saved_model(out / "model", torch.device("cpu"))
    samples = llava.load_samples(folder / "data.json")[:7]
    data = ConversationDataset(samples, SampleImages(processor), config.data.max_length)
    total, tokens = 0.0, 0
    for row in range(7):
        batch = Validation(config, data, [], Reporter()).loader.collate([data[row]])
        count = int((batch["labels"] >= 0).sum())
        with torch.no_grad():
            total += float(model.eval()(**batch).loss) * count
        tokens += count
    assert losses[3] == pytest.approx(total / tokens, rel=1e-5)

    (folder / "scored").mkdir()
    evaluate.run(config, {"finetune": out}, folder / "scored", Reporter())
    assert scores[3] == pytest.approx(json.loads((folder / "scored/metrics.json").read_text())["overall"])
    predictions = [json.loads(line) for line in (folder / "scored/predictions.jsonl").open()]
    last = notes[notes.index(next(note for note in notes if note.startswith("step 4: validation score"))) :]
    assert len(last) == 1 + config.validate.shown
    for line, prediction in zip(last[1:], predictions):
        assert line.startswith(f"  {prediction['id']}: what is")
        assert f"-> {llava.quote(prediction['prediction'])!r} (truth: {prediction['answer']!r})" in line


def test_scores_are_those_of_the_chosen_metric(folder, tmp_path):
    (tmp_path / "backbones").mkdir()
    config = make_validated(folder, logger="csv")
    config.evaluate.metric = "anls"
    config.finetune.max_steps = 1
    run("finetune", config, align(config, folder), tmp_path / "out")
    evaluate.run(config, {"finetune": tmp_path / "out"}, tmp_path, Reporter())
    overall = json.loads((tmp_path / "metrics.json").read_text())["overall"]
    assert read_curve(tmp_path / "out", "validation_score") == {0: pytest.approx(overall)}


def test_a_loss_alone(folder, tmp_path):
    config = make_validated(folder, logger="none")
    config.validate.score_every = None
    report = Notes()
    run("finetune", config, align(config, folder), tmp_path / "out", report)
    notes = [note for note in report.notes if "validation" in note]
    assert [note[:24] for note in notes] == ["step 2: validation loss ", "step 4: validation loss "]


def test_nothing_of_it_is_in_a_key():
    """Not even the data set, where a split is looked at and files are trained on."""
    bare = stages("compressor=sap")
    scored = stages("compressor=sap", "data.validation=[tune]", "validate.score_every=5")
    assert {name: stage.key for name, stage in bare.items()} == {
        name: stage.key for name, stage in scored.items()
    }
    assert "validation" in scored["finetune"].inputs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["validate.score_every=5"], "no data.validation; give data.validation=FILE.jsonl"),
        (["validate.score_every=5", "data.validation=tune", "trainer.strategy=fsdp"], "generates nothing"),
        (["data.validation=tnue"], "no split of picture_vqa; did you mean 'tune'"),
        (["data.validation=missing.jsonl"], "missing.jsonl: no such file"),
    ],
)
def test_bad_settings(overrides, message):
    with pytest.raises(UsageError, match=message):
        stages("compressor=sap", *overrides)


def test_a_truth_that_the_metric_cannot_read_is_named_before_training(tmp_path):
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "none of them"}]
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"id": "7", "conversations": turns}]))
    settings = [f"data.validation={path}", "validate.score_every=5", "evaluate.metric=choice"]
    with pytest.raises(UsageError, match="question 7#0"):
        check_metric(make_cell_config("compressor=sap", *settings))


def test_a_family_that_the_embedded_questions_lack_is_named_before_training():
    config = make_cell_config("compressor=sap", "evaluate.metric={readin: anls}")
    with pytest.raises(UsageError, match="no question is of the family 'readin'; did you mean 'reading'"):
        check_metric(config)
    check_metric(make_cell_config("compressor=sap", "evaluate.metric={reading: anls}"))


def test_patches_that_are_left_out_have_positions(folder):
    config = make_config(folder, "random")
    config.parts = {"random": {"positions": "keep"}}
    config.data.validation = [str(folder / "data.json")]
    model, processor = build_model(config)
    model.config.text_config.max_position_embeddings = 120
    with pytest.raises(UsageError, match="positions of patches that are left out .* 120 positions"):
        make_validation(config, "finetune", model, processor, {}, Reporter())


def test_a_blind_cell(folder, tmp_path):
    config = make_validated(folder, logger="csv")
    config.compressor, config.finetune.query_warmup, config.finetune.max_steps = "none", 0.0, 2
    run("finetune", config, {}, tmp_path / "out")
    assert sorted(read_curve(tmp_path / "out", "validation_loss")) == [1]
    assert sorted(read_curve(tmp_path / "out", "validation_score")) == [1]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_measure_what_one_does(folder, tmp_path, strategy):
    """Each of them has a share of the rows; where nothing is drawn, both train alike up to rounding."""
    curves = []
    for settings in ({}, {"strategy": strategy, "devices": "2"}):
        config = make_validated(folder, logger="csv", **settings)
        config.parts["sap"]["dropout"], config.finetune.query_warmup = 0.0, 0.0
        config.finetune.max_steps = 2
        if strategy == "fsdp":
            config.validate.score_every = None
        out = tmp_path / str(len(curves))
        run("finetune", config, align(config, folder), out)
        curves.append({name: read_curve(out, f"validation_{name}") for name in ("loss", "score")})
    alone, together = curves
    assert sorted(alone["loss"]) == [1]
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert together["score"] == pytest.approx(alone["score"], rel=1e-4)


def test_a_mapping_may_name_a_family_that_is_in_none_of_the_first_questions(tmp_path):
    rows = []
    for number, family in enumerate(("reading", "counting")):
        turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "3"}]
        rows.append({"id": str(number), "families": [family], "conversations": turns})
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows))
    settings = [f"data.test={path}", "evaluate.limit=1"]
    check_metric(make_cell_config("compressor=sap", *settings, "evaluate.metric={counting: relaxed}"))
    with pytest.raises(UsageError, match="no question is of the family 'countin'"):
        check_metric(make_cell_config("compressor=sap", *settings, "evaluate.metric={countin: relaxed}"))


def test_files_beside_a_split_are_looked_at_before_training(tmp_path):
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "none of them"}]
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"id": "7", "families": ["charts"], "conversations": turns}]))
    for settings in (
        [f"data.test=[test,{path}]", "evaluate.metric={charts: choice}"],
        [
            "data.test=[test]",
            f"data.validation=[tune,{path}]",
            "validate.score_every=5",
            "evaluate.metric=choice",
        ],
    ):
        with pytest.raises(UsageError, match="question 7#0"):
            check_metric(make_cell_config("compressor=sap", *settings))
    mixed = ["compressor=sap", f"data.test=[test,{path}]"]
    check_metric(make_cell_config(*mixed, "evaluate.metric={charts: anls, reading: anls}"))
    with pytest.raises(UsageError, match="no question is of the family 'chart'; did you mean 'charts'"):
        check_metric(make_cell_config(*mixed, "evaluate.metric={chart: anls}"))
