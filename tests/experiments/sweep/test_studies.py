"""Finished studies: whoever offers to read one is asked, and nobody is looked for by name."""

import sys
import types
from pathlib import Path

import pytest
from outside import offer_parts

from compressors.errors import UsageError
from experiments.sweep import studies


def read_nothing(folder):  # noqa: ARG001  what a package offers takes one
    return None


def complain(folder):
    raise UsageError(f"earlier={folder}: not one of ours")


def read_two_keys(folder):
    assert folder == Path("theirs")
    return ["a", "b"]


@pytest.fixture
def offer(monkeypatch):
    """Make packages offer functions, and nobody else."""

    def call(*functions):
        module = types.ModuleType("outside_studies")
        monkeypatch.setitem(sys.modules, "outside_studies", module)
        offers = []
        for number, function in enumerate(functions):
            setattr(module, f"read_{number}", function)
            offers.append((f"package{number}", f"outside_studies:read_{number}"))
        offer_parts(monkeypatch, studies.STUDY_GROUP, *offers)

    return call


def test_the_first_that_knows_the_study_tells(offer):
    offer(read_nothing, complain, read_two_keys)
    assert studies.read_finished_keys(Path("theirs")) == {"a", "b"}


def test_the_first_complaint_is_told(offer):
    offer(read_nothing, complain)
    with pytest.raises(UsageError, match="earlier=x: not one of ours"):
        studies.read_finished_keys(Path("x"))
    offer(read_nothing)
    with pytest.raises(UsageError, match="earlier=x: no study that an installed package knows"):
        studies.read_finished_keys(Path("x"))


def test_without_an_installed_package_one_line_says_what_to_do(offer):
    offer()
    with pytest.raises(UsageError, match="slothkit.studies; `pip install -e .`"):
        studies.read_finished_keys(Path("x"))
