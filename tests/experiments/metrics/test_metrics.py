"""Scores against counts made by hand."""

import pytest

from experiments.data.llava import Sample, Turn
from experiments.metrics.answers import normalise_answer
from experiments.metrics.chance import score_majority_answers


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
