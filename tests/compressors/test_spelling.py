"""Commands as their reader calls them."""

from compressors import command_line
from compressors.spelling import spell_as, spell_commands

TEXT = "run `python -m experiments.sweep seed=0`, python -m experiments.sweeper or python -m compressors."


def test_commands_of_a_script_are_spelled_as_its_own():
    assert spell_commands(TEXT) == TEXT
    with spell_as({"experiments.sweep": "slothkit sweep", "compressors": "slothkit compressors"}):
        assert spell_commands(TEXT) == (
            "run `slothkit sweep seed=0`, python -m experiments.sweeper or slothkit compressors."
        )
    assert spell_commands(TEXT) == TEXT


def test_an_error_says_what_can_be_typed(capsys):
    with spell_as({"experiments.sweep": "slothkit sweep"}):
        assert command_line.report_error("none here; run python -m experiments.sweep", 2) == 2
    assert capsys.readouterr().err == "error: none here; run slothkit sweep\n"
