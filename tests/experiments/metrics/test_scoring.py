"""`evaluate.metric`: who scores which question, what is in a key, what is refused."""

import importlib
import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from string import ascii_uppercase

import pytest
from fakes import config, stages, write_llava

from compressors.errors import UsageError
from compressors.key_value import parse_settings
from experiments.config import metric_names
from experiments.config.cells import make_cells
from experiments.data.llava import Sample, load_samples, split_questions
from experiments.metrics.chance import average_scores
from experiments.metrics.choice import name_true_option, read_options
from experiments.metrics.scoring import QuestionScorer
from experiments.registries import metrics
from experiments.runtime.memory import begin_request
from experiments.store.part_code import refuse_edited_code
from experiments.sweep import request
from llm_adapters.conversation import Turn

OPTIONS = "<image>\nWhich animal is it?\nA. the fox\nB. the owl\n(C) a cat\nAnswer with the letter."
OWN_METRIC = '''
class Length:
    """Longer answers are better."""

    def score(self, said, truth):
        return min(1.0, len(said) / 10)
'''


def ask(answer, family="reading", question="<image>\nwhat is written?", number=0):
    return Sample(f"s#{number}", (), (Turn(question, answer),), (family,))


@pytest.fixture
def own_metric(tmp_path, monkeypatch):
    """An outside package's metric `length`; writes another version of it when called."""
    path = tmp_path / "outside_metric.py"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    point = EntryPoint("length", "outside_metric:Length", "slothkit.metrics")
    monkeypatch.setitem(metrics.__dict__, "entry_points", {**metrics.entry_points, "length": point})

    def write(content=OWN_METRIC):
        path.write_text(content)
        begin_request()
        sys.modules.pop("outside_metric", None)
        metrics._classes.pop("length", None)

    write()
    yield write
    metrics._classes.pop("length", None)
    sys.modules.pop("outside_metric", None)


@pytest.mark.parametrize(
    ("setting", "names", "words"),
    [
        ("exact", {"default": "exact"}, ""),
        ("anls", {"default": "anls"}, "scored by anls"),
        ({"reading": "anls"}, {"reading": "anls", "default": "exact"}, "scored by exact, reading by anls"),
        ({"reading": "anls", "default": "anls"}, {"default": "anls"}, "scored by anls"),
        ({"reading": "exact"}, {"default": "exact"}, ""),
    ],
)
def test_names(setting, names, words):
    assert metric_names.list_metric_names(setting) == names
    assert metric_names.describe_metrics(setting) == words
    assert metric_names.is_exact(setting) == (words == "")


def test_each_family_has_its_metric():
    scorer = QuestionScorer({"reading": "anls", "presence": "pope"})
    assert scorer.score_answer("stopp", ask("stop")) == pytest.approx(0.8)
    assert scorer.score_answer("a cat", ask("cat", "recognition")) == 1.0
    assert scorer.score_answer("catt", ask("cat", "recognition")) == 0.0
    assert scorer.score_answer("There is no fox.", ask("no", "presence")) == 1.0


def test_options_stand_in_the_question():
    assert read_options(OPTIONS) == ["the fox", "the owl", "a cat"]
    lines = [f"{letter}. option {letter}" for letter in ascii_uppercase]
    assert len(read_options("\n".join([*lines, "A. and once more"]))) == len(ascii_uppercase)
    options = ["the fox", "the owl", "a cat"]
    letters = [name_true_option(answer, options) for answer in ("B", "B. the owl", "The owl", "cat")]
    assert letters == list("BBBC")
    scorer = QuestionScorer("choice")
    assert scorer.score_answer("It is the owl.", ask("B", "mmb", OPTIONS)) == 1.0
    assert scorer.score_answer("A", ask("B", "mmb", OPTIONS)) == 0.0
    with pytest.raises(UsageError, match="evaluate.metric=choice: question s#0: no options in its question"):
        scorer.check_questions([ask("B")])
    with pytest.raises(UsageError, match="its answer 'a dog' is none of its 3 options"):
        scorer.check_questions([ask("a dog", "mmb", OPTIONS)])


def test_several_answers_may_be_right():
    people = ("stop", "stop", "stop sign", "stop", "halt")
    question = ask("stop")._replace(accepted=(people,))
    assert QuestionScorer("exact").score_answer("The halt.", question) == 1.0
    assert QuestionScorer("anls").score_answer("stop signs", question) == pytest.approx(0.9)
    # of the others one agrees with none, and three (two where it is left out) with one
    assert QuestionScorer("vqa").score_answer("stop", question) == pytest.approx((3 * 2 / 3 + 2 * 1) / 5)
    assert QuestionScorer("pope").score_answer("Yes.", ask("yes")._replace(accepted=(("yes", "Yes"),))) == 1.0


def test_accepted_answers_are_read_from_the_file(tmp_path):
    path = write_llava(tmp_path / "test.json", samples=1)
    [record] = json.loads(path.read_text())
    record["accepted"] = [["yes"], ["no"], ["yes", "yep"], ["fox", "red fox"]]
    path.write_text(json.dumps([record]))
    questions = split_questions(load_samples(path))
    assert [question.accepted for question in questions][2:] == [(("yes", "yep"),), (("fox", "red fox"),)]
    for wrong in (["yes"], [[], [], [], []], "yes", [["yes"], ["no"], ["yes"], [3]]):
        path.write_text(json.dumps([{**record, "accepted": wrong}]))
        with pytest.raises(UsageError, match='test.json, sample 0 .*: "accepted"'):
            load_samples(path)


def test_chance_is_scored_by_the_metric():
    questions = [ask(word, number=number) for number, word in enumerate(["stop", "stop", "stoq", "exit"])]
    chance = QuestionScorer("anls").score_majority_answers(questions)
    assert chance["overall"] == pytest.approx((1 + 1 + 0.75 + 0) / 4) and chance["counts"] == {"reading": 4}


def test_averages():
    assert average_scores({"b": [0.1] * 10, "a": [1.0, 0.0]}) == {
        "overall": pytest.approx(2 / 12),
        "families": {"a": 0.5, "b": pytest.approx(0.1)},
        "counts": {"a": 2, "b": 10},
        "n": 12,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("anl", "evaluate.metric=anl: unknown metric; did you mean 'anls'?"),
        ("{reading: anl}", "evaluate.metric=anl of family 'reading': unknown metric"),
        ("[anls]", "evaluate.metric="),
        ("3", "evaluate.metric="),
    ],
)
def test_unknown_names_are_refused_before_work(text, message):
    with pytest.raises(UsageError) as info:
        config(f"evaluate.metric={text}")
    assert message in str(info.value)


def test_what_cannot_score_a_question_is_refused():
    with pytest.raises(UsageError, match="evaluate.metric=mme: does not score questions one by one; take "):
        QuestionScorer("mme")
    with pytest.raises(UsageError, match="no question is of the family 'readin'; did you mean 'reading'"):
        QuestionScorer({"readin": "anls"}).check_questions([ask("stop")])
    with pytest.raises(UsageError, match="evaluate.metric=pope: question s#0: answer='fox'"):
        QuestionScorer("pope").check_questions([ask("fox")])


def test_the_key_of_an_evaluation():
    usual = stages("compressor=sap")
    same = stages("compressor=sap", "evaluate.metric={reading: exact}")
    assert usual["evaluate"].key == same["evaluate"].key and "metric" not in usual["evaluate"].depends
    other = stages("compressor=sap", "evaluate.metric={reading: relaxed,default: exact}")
    assert other["evaluate"].key != usual["evaluate"].key
    assert other["finetune"].key == usual["finetune"].key
    assert other["evaluate"].depends["metric"] == {"names": {"default": "exact", "reading": "relaxed"}}
    changed = stages("compressor=sap", "evaluate.metric=anls")["evaluate"]
    assert changed.depends["metric"] == {"names": {"default": "anls"}, "its code": {"anls": 1}}


def test_a_preset_may_have_a_mapping(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("preset: tiny\nevaluate:\n  metric: {reading: anls}\n  batch_size: 8\n")
    [cell] = make_cells({"preset": [str(path)], "compressor": ["sap"]})
    assert cell.config.evaluate.metric == {"reading": "anls"} and cell.config.evaluate.batch_size == 8


def test_metrics_make_rows_of_their_own():
    asked = request.read_request(parse_settings(["compressor=sap", "evaluate.metric=exact,{reading: anls}"]))
    assert len({stage.key for _, stage in asked.jobs}) == 4  # and a blind one each
    assert len({stage.inputs["finetune"].key for _, stage in asked.jobs}) == 2


def test_an_own_metric(own_metric):
    assert QuestionScorer("length").score_answer("12345", ask("anything")) == 0.5
    first = stages("evaluate.metric=length")["evaluate"]
    assert set(first.depends["metric"]) == {"names", "its code"}
    own_metric()
    assert stages("evaluate.metric=length")["evaluate"].key == first.key
    own_metric(OWN_METRIC.replace("10", "20"))
    assert stages("evaluate.metric=length")["evaluate"].key != first.key


@pytest.mark.usefixtures("own_metric")
def test_an_own_metric_that_is_edited_after_its_import_is_refused():
    """Python goes on scoring by the old code, which the new key would stand for."""
    refuse_edited_code(stages("evaluate.metric=length")["evaluate"].depends)  # as an evaluation begins
    path = Path(sys.modules["outside_metric"].__file__)
    path.write_text(OWN_METRIC.replace("10", "20"))
    with pytest.raises(
        UsageError, match="metric 'length' was edited after Python had imported its .* reload"
    ):
        stages("evaluate.metric=length")
    importlib.reload(sys.modules["outside_metric"])
    assert stages("evaluate.metric=length")
    assert QuestionScorer("length").score_answer("12345", ask("anything")) == 0.25


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("return 7", "a score of 7.0 for 'x'; scores are from 0 to 1"),
        ("return float('nan')", "a score of nan"),
        ("return said.nothing", "metric 'length': AttributeError: .*outside_metric.py, line"),
    ],
)
def test_an_own_metric_that_fails_is_one_line(own_metric, line, message):
    own_metric(OWN_METRIC.replace("return min(1.0, len(said) / 10)", line))
    with pytest.raises(UsageError, match=f"evaluate.metric=length: question s#0: .*{message}"):
        QuestionScorer("length").score_answer("x", ask("y"))


def test_a_metric_without_a_file_is_refused(monkeypatch):
    monkeypatch.setitem(metrics.__dict__, "entry_points", {})
    monkeypatch.setitem(metrics._classes, "loose", type("Loose", (), {"__module__": "__nowhere__"}))
    with pytest.raises(UsageError, match="metric 'loose' of module __nowhere__ stands in no file"):
        stages("evaluate.metric=loose")
