"""`python -m compressors`: what it says of every registered compressor is what the compressor does."""

from importlib.metadata import EntryPoint

import pytest
import torch

import compressors
from compressors import Compressor
from compressors.__main__ import main
from compressors.base import registry
from compressors.listing import DIM, LLM_DIM, NO, YES, collect_facts, format_count

EVERY = compressors.names()
OF_NO_PAPER = {"avg_pool", "identity", "random", "slothmix", "uniform"}
every_name = pytest.mark.parametrize("name", EVERY)


def shown(capsys, *arguments: str) -> list[str]:
    assert main(arguments) == 0
    return capsys.readouterr().out.splitlines()


def test_lists_all_with_their_knobs(capsys):
    lines = shown(capsys)
    assert max(map(len, lines)) <= 110
    assert [line.split()[0] for line in lines[1:] if line[0] != " "] == EVERY
    words = " ".join(lines).split()
    for name in EVERY:
        assert {f"{knob}=" for knob in compressors.knobs(name)} <= {f"{w.partition('=')[0]}=" for w in words}
    assert torch.get_default_device().type == "cpu"


@every_name
def test_tokens_width_and_parameters(name):
    found, part = collect_facts(name), meta(name)
    grid, _, count = found.tokens.partition(" -> ")
    height, width = (int(side) // part.image_rate for side in grid.split("x"))
    assert part.num_tokens(height, width) == int(count) and int(found.width) == part.out_dim
    assert (found.learned == NO) == (not list(part.parameters()))


def meta(name: str) -> Compressor:
    with torch.device("meta"):
        return compressors.create(name, dim=DIM, llm_dim=LLM_DIM)


@every_name
def test_what_it_is_and_where_it_is_from(name):
    found = collect_facts(name)
    assert found.title.endswith(".") and found.summary.endswith(".")
    assert found.rule.startswith("H*W") and "->" in found.rule
    assert (found.source == NO) == (name in OF_NO_PAPER)


@every_name
def test_flags_are_those_of_the_class(name):
    found, part = collect_facts(name), meta(name)
    for shown_as, flag in (
        (found.text, part.needs_text),
        (found.projects, part.projects),
        (found.levels, part.needs_levels),
    ):
        assert (shown_as == YES) == bool(flag)


def test_flags_that_a_knob_turns_on():
    assert collect_facts("qformer").text == "text=true"
    assert (
        collect_facts("pixel_shuffle").projects
        == collect_facts("window_attention_pool").projects
        == "projector=true"
    )
    assert collect_facts("token_packer").levels == "levels=[...]"
    assert collect_facts("visionzip").cues == "attention, keys" and collect_facts("sap").cues == ""
    assert collect_facts("matryoshka").text == collect_facts("matryoshka").levels == "host's"


def test_one_alone_and_a_typo(capsys):
    lines = shown(capsys, "sap")
    assert lines[1].split() == ["sap", "27x27", "->", "81", "1152", "1.3", "M", *"---", "arXiv", "2412.04317"]
    assert len(lines) == 6
    assert main(["sapp"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown compressor 'sapp'; did you mean 'sap'?")


def test_what_it_asks_the_tower_for(capsys):
    assert "    asks the tower for: attention, keys" in shown(capsys, "visionzip")
    assert not any("asks the tower" in line for line in shown(capsys, "sap"))


def test_one_that_says_nothing_is_listed(capsys):
    class Bare(Compressor):
        def __init__(self, dim: int, *, cut: int | None = None):
            super().__init__()
            self.out_dim, self.cut = dim, cut

        def num_tokens(self, height, width):
            raise compressors.UsageError(f"{height}x{width}: nothing fits")

    registry.register("bare")(Bare)
    try:
        found = collect_facts("bare")
        assert (found.tokens, found.summary, found.rule, found.knobs) == ("?", "", "", ("cut=null",))
        assert shown(capsys, "bare")[1].startswith("bare ")
    finally:
        del registry._classes["bare"]


def test_broken_ones_leave_the_others_listed(capsys, monkeypatch):
    """A line each below the others; one asked for by name is an error."""

    class Swallows(Compressor):
        def __init__(self, dim: int, **kw: int):
            super().__init__()
            self.out_dim, self.kw = dim, kw

    class Raises(Compressor):
        def __init__(self, dim: int):
            super().__init__()
            self.out_dim = dim

        def num_tokens(self, height, width):
            raise KeyError(f"{height}x{width}")

    monkeypatch.setitem(registry._classes, "raises", Raises)
    monkeypatch.setitem(registry._classes, "swallows", Swallows)
    monkeypatch.setitem(registry.entry_points, "gone", EntryPoint("gone", "no_such:Part", registry.group))
    lines = shown(capsys)
    begun = [line.split()[0] for line in lines[1:] if line[0] != " "]
    assert begun == [*EVERY, "not", "not", "not"]
    assert lines[-3].startswith("not listed: compressor 'gone' of entry point no_such:Part does not load: ")
    assert lines[-2].startswith("not listed: compressor 'raises': KeyError: '27x27' (")
    assert lines[-1] == "not listed: compressor 'swallows' takes **kw; spell its knobs out"
    assert main(["sap", "swallows"]) == 2
    assert capsys.readouterr().err == "error: compressor 'swallows' takes **kw; spell its knobs out\n"


def test_one_that_cannot_be_built_at_these_widths_is_listed(monkeypatch):
    class Narrow(Compressor):
        def __init__(self, dim: int, *, count: int):
            super().__init__()
            self.out_dim, self.count = dim, count

    monkeypatch.setitem(registry._classes, "narrow", Narrow)
    found = collect_facts("narrow")
    assert (found.tokens, found.cues, found.knobs) == ("?", "?", ("count=?",))


def test_amounts():
    assert [format_count(n) for n in (1_329_409, 12_500, 900)] == ["1.3 M", "12.5 k", "900"]
