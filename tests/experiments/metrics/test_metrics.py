"""Scores against counts made by hand."""

import pytest
from torchmetrics.utilities import dim_zero_sum

from experiments.data.llava import Sample, Turn
from experiments.metrics.answers import normalise_answer
from experiments.metrics.chance import score_majority_answers
from experiments.metrics.families import FamilyScores


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The fox.", "fox"),
        (" Yes ", "yes"),
        ("A", "a"),
        ("a red ball!", "red ball"),
        ("3.5", "3.5"),
        ("1,000", "1000"),
        ("T-shirt", "t-shirt"),
        ("'hello'", "hello"),
        ("left of the fox", "left of fox"),
        ("(b)", "b"),
        ("-3", "-3"),
        ("yes, it is", "yes it is"),
        ("$5", "$5"),
        ("", ""),
        ("C#", "c#"),
        (".5", ".5"),
        ("(.5)", ".5"),
        ("5°", "5°"),
        ("50 %.", "50 %"),
        ("?", "?"),
        ("`fox`", "fox"),
        ("cafe\u0301", "caf\u00e9"),
    ],
)
def test_normalise(answer, normal):
    assert normalise_answer(answer) == normal


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("✓", "✗"),
        ("🐱", "🐶"),
        ("<", ">"),
        ("=", "≠"),
        ("", "."),
        ("?", "!"),
        ("की", "का"),
        ("ไม่", "ไม้"),
        (".5", "5"),
        ("C#", "C"),
        ("5°", "5"),
    ],
)
def test_signs_with_a_meaning_are_no_punctuation(one, other):
    """Whatever the script; marks belong to their letters."""
    assert normalise_answer(one) != normalise_answer(other)


def test_family_accuracy():
    metric = FamilyScores(["counting", "presence", "unasked"])
    metric.update(["Yes.", "no", "3"], ["yes", "yes", "3"], ["presence", "presence", "counting"])
    metric.update(["a fox", "2"], ["the fox", "3"], ["presence", "counting"])
    assert metric.compute() == {
        "overall": pytest.approx(3 / 5),
        "families": {"counting": 0.5, "presence": pytest.approx(2 / 3)},
        "counts": {"counting": 2, "presence": 3},
        "n": 5,
    }
    assert metric.compute()["overall"] == 3 / 5


def test_family_accuracy_adds_up_over_processes():
    """What torchmetrics does with states of two processes: it sums them."""
    parts = [FamilyScores(["a", "b"]) for _ in range(2)]
    parts[0].update(["x"], ["x"], ["a"])
    parts[1].update(["x", "y"], ["y", "y"], ["a", "b"])
    whole = FamilyScores(["a", "b"])
    whole.update([], [], [])
    for name in ("scores", "question_counts"):
        assert whole._reductions[name] is dim_zero_sum
        setattr(whole, name, sum(getattr(part, name) for part in parts))
    assert whole.compute()["families"] == {"a": 0.5, "b": 1.0}


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="zip"):
        FamilyScores(["a"]).update(["x"], ["x", "y"], ["a"])


def test_majority():
    samples = [
        Sample("0", (), (Turn("?", "Yes"), Turn("?", "3")), ("presence", "counting")),
        Sample("1", (), (Turn("?", "yes."), Turn("?", "4")), ("presence", "counting")),
        Sample("2", (), (Turn("?", "no"), Turn("?", "4")), ("presence", "counting")),
    ]
    assert score_majority_answers(samples) == {
        "overall": 4 / 6,
        "families": {"counting": 2 / 3, "presence": 2 / 3},
        "counts": {"counting": 3, "presence": 3},
        "n": 6,
    }


def test_majority_without_families():
    assert score_majority_answers([Sample("0", (), (Turn("?", "x"), Turn("?", "y")))])["families"] == {
        "all": 0.5
    }
