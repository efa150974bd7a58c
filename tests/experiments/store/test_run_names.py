"""What loggers call the runs of a sweep."""

from pathlib import Path

import pytest

from experiments.runtime import provenance
from experiments.store.run_names import LONGEST_NAME, name_group

LONG_LINE = "slothkit sweep data.train=[" + ",".join(f"part{number}.json" for number in range(20)) + "]"


def name(command, monkeypatch):
    monkeypatch.setenv(provenance.COMMAND_VARIABLE, command)
    return name_group(Path("out"))


def test_a_short_line_is_its_own_name(monkeypatch):
    assert name("slothkit sweep compressor=sap,avg_pool", monkeypatch) == "compressor=sap,avg_pool"


@pytest.mark.parametrize("ending", ["", " seed=0,1"])
def test_long_lines_that_begin_alike_are_told_apart(monkeypatch, ending):
    group = name(f"{LONG_LINE} compressor=sap{ending}", monkeypatch)
    other = name(f"{LONG_LINE} compressor=avg_pool{ending}", monkeypatch)
    assert group != other and len(group) == len(other) == LONGEST_NAME
    assert group == name(f"{LONG_LINE} compressor=sap{ending}", monkeypatch)
