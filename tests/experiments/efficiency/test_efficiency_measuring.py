"""The measuring code is measured: known times at least, known operations and bytes exactly, calls counted."""

import time
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from factories import make_model, picture
from torch import nn

from connectors.tiling import Tiling
from experiments.efficiency import measuring, timing
from experiments.efficiency.memory import measure_peak_bytes
from experiments.efficiency.subject import LLM, QUERY_PART, TOWER, CellSubject
from experiments.models.random_model import set_placeholder_ids

CPU = torch.device("cpu")
AS_A_CELL = SimpleNamespace(blind=False, tiles=lambda _: 1, image=SimpleNamespace(layout="square"))


class Sleeper(nn.Module):
    """Sleeps, then passes on what `inner` makes of its input."""

    def __init__(self, seconds, inner=None):
        super().__init__()
        self.seconds, self.inner = seconds, inner or nn.Identity()

    def forward(self, x):
        time.sleep(self.seconds)
        return self.inner(x)


class Ticker(nn.Module):
    """Adds to `ticks`, then passes on what `inner` makes of its input; `extract` adds 5 more before."""

    def __init__(self, count, inner=None):
        super().__init__()
        self.count, self.inner = count, inner or nn.Identity()

    def forward(self, x):
        self.ticks.append(self.count)
        return self.inner(x)

    def extract(self, x):
        self.ticks.append(5)
        return self(x)


def subject(compressor="sap", **options):
    model = make_model("phi", compressor, "embq", **options)
    set_placeholder_ids(model)
    return CellSubject("tiny", AS_A_CELL, model, model.vision_tower.image_size)


def case(rows=1, images=1, tokens=4):
    return measuring.BenchmarkCase(subject(), [[picture()] * images] * rows, text=10, new_tokens=tokens)


def test_a_part_within_another_counts_as_its_own():
    inner = Sleeper(0.03)
    outer = Sleeper(0.05, inner)
    with timing.Ledger({"outer": [outer], "inner": [inner]}, timing.read_clock) as ledger:
        time.sleep(0.02)
        start = time.perf_counter()
        outer(torch.ones(1))
        took = time.perf_counter() - start
    assert ledger.shares["inner"] >= 0.03 and ledger.shares["outer"] >= 0.05
    assert ledger.shares["other"] >= 0.02
    assert ledger.shares["inner"] + ledger.shares["outer"] <= took
    with timing.Ledger({"outer": [outer]}, timing.read_clock) as again:
        inner(torch.ones(1))
    assert again.shares["outer"] == 0 and not outer._forward_hooks


def test_a_method_counts_as_the_part_that_it_is_of():
    inner, ticks = Ticker(20), []
    outer = Ticker(30, inner)
    for module in (outer, inner):
        module.ticks = ticks
    parts, methods = {"outer": [outer], "inner": [inner]}, {"outer": [timing.PartMethod(outer, "extract")]}
    with timing.Ledger(parts, lambda: sum(ticks), methods) as ledger:
        outer.extract(torch.ones(1))
    assert ledger.shares == {"outer": 30 + 5, "inner": 20, "other": 0}
    with timing.Ledger(parts, lambda: sum(ticks)) as again:
        outer.extract(torch.ones(1))
    assert again.shares == {"outer": 30, "inner": 20, "other": 5} and "extract" not in vars(outer)


def test_flops_of_linear_layers_and_attention():
    first, second = nn.Linear(10, 20), nn.Linear(20, 30)
    model = nn.Sequential(first, nn.Sequential(second))
    found = timing.count_flops_by_part(
        lambda: model(torch.ones(3, 10)), {"whole": [model], "second": [second]}
    )
    assert found == {"whole": 2 * 3 * 10 * 20, "second": 2 * 3 * 20 * 30, "other": 0}
    q, k = torch.empty(2, 4, 5, 8, device="meta"), torch.empty(2, 4, 7, 8, device="meta")
    assert timing.count_flops(lambda: F.scaled_dot_product_attention(q, k, k)) == 2 * (2 * 2 * 4 * 5 * 7 * 8)


def test_peak_of_known_allocations():
    weight = torch.ones(1000)

    def call():
        a = weight + 1  # 4000 bytes
        b = a * 2  # and 4000 more
        del a
        c = b.view(10, 100)  # none
        del b
        return c + c  # again two at once

    with torch.no_grad():
        assert measure_peak_bytes(call, CPU) == 8000
        assert measure_peak_bytes(lambda: [weight + i for i in range(5)], CPU) == 20_000
        assert measure_peak_bytes(lambda: weight.view(10, 100), CPU) == 0


def test_peak_of_a_backward_pass_holds_what_autograd_keeps():
    layer, x = nn.Linear(100, 100, bias=False), torch.ones(8, 100)
    gradient, output = 4 * 100 * 100, 4 * 8 * 100
    assert measure_peak_bytes(lambda: layer(x).sigmoid().sum().backward(), CPU) >= gradient + output


def test_the_first_token_follows_the_whole_prefill(monkeypatch):
    """Nothing from pictures to the first token is left out, nothing after it is counted."""
    order, made = [], case(tokens=3)
    model, layers = made.subject.model, made.subject.model.language_model
    for name in ("vision_tower", "compressor", "projector", "query_module"):
        getattr(model, name).register_forward_hook(lambda *_, name=name: order.append(name))
    layers.register_forward_hook(lambda *_: order.append("language_model"))
    pixels, put = made.subject.prepare_pixels, measuring.TokenClock.put
    made.subject.prepare_pixels = lambda given: order.append("pixels") or pixels(given)
    monkeypatch.setattr(measuring.TokenClock, "put", lambda *given: order.append("token") or put(*given))
    lap = made.time_answer()
    first = ["pixels", "token", "vision_tower", "compressor", "projector", "query_module", "language_model"]
    assert order == [*first, "token", "language_model", "token", "language_model", "token"]
    assert lap.ttft > 0 and lap.decode > 0


def test_a_slow_tower_and_a_slow_llm_show_where_they_are():
    made = case(tokens=3)
    model = made.subject.model
    model.vision_tower.register_forward_hook(lambda *_: time.sleep(0.06))
    model.language_model.get_decoder().register_forward_hook(lambda *_: time.sleep(0.04))
    lap = made.time_answer()
    assert lap.ttft >= 0.10 and lap.decode >= 0.04
    shares = made.time_parts()
    assert shares[LLM] >= 0.04 and shares[QUERY_PART] > 0 and shares[TOWER] > 0
    assert sum(shares.values()) >= 0.10


def test_rounds_in_turn():
    cases = {"a": case(), "b": case(rows=2, images=2)}
    done = []
    found = measuring.measure_cases(cases, 2, lambda: done.append(1))
    assert len(done) == measuring.count_measuring_steps(len(cases), 2)
    for name, each in found.items():
        assert each.ttft.low <= each.ttft.median <= each.ttft.high
        weights = sum(p.nbytes for p in cases[name].subject.model.parameters())
        assert each.peak_bytes > weights
    assert found["b"].peak_bytes > found["a"].peak_bytes


def test_answers_are_as_long_as_asked():
    made = case(rows=2, tokens=5)
    prompt = made.prompt["input_ids"]
    out = made.generate(made.subject.prepare_pixels(made.pictures), 5)
    assert out.shape == (2, prompt.shape[1] + 5)
    assert case(tokens=1).time_answer().decode is None


@torch.inference_mode()
def test_a_cache_of_fixed_size_is_of_its_own_case():
    """Whatever was measured before with the same model."""
    measured = subject()

    def static_case(images):
        pictures = [[picture()] * images]
        return measuring.BenchmarkCase(measured, pictures, text=10, new_tokens=4, static=True)

    alone = static_case(1).measure_peak()
    assert static_case(8).measure_peak() > alone
    assert static_case(1).measure_peak() == alone


@pytest.mark.parametrize("tiles", [1, 2])
def test_visual_tokens_are_those_of_the_prompt(tiles):
    made = subject()
    made.tiling = Tiling(tiles, made.size)
    pixels = made.prepare_pixels([[picture(), picture()]] * 3)
    prompt = made.prompt(pixels, 3, 10)
    found = (prompt["input_ids"] == made.model.config.image_token_id).sum()
    assert found == made.count_visual_tokens(pixels) == 3 * 2 * (1 if tiles == 1 else 5) * 4


@torch.inference_mode()
@pytest.mark.parametrize("name", ["cdpruner", "trim"])
def test_a_compressor_that_compares_patches_with_the_question_is_timed(name):
    measured = subject(name, compressor_knobs={"tokens": 4})
    lap = measuring.BenchmarkCase(measured, [[picture()] * 2] * 2, text=10, new_tokens=3).time_answer()
    assert lap.ttft > 0 and lap.decode > 0


def test_the_towers_own_layers_are_compiled(monkeypatch):
    """Not those of its text encoder, where these are more."""
    measured = subject("cdpruner", compressor_knobs={"tokens": 4})
    tower = measured.model.vision_tower
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compiled.append(self))
    text_layers = tower.text_encoder.model.text_model.encoder.layers
    text_layers.extend([nn.Identity(), nn.Identity()])
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=False):
        measured.compile_layers()
    assert len(text_layers) > len(tower.blocks)
    assert compiled == [*tower.blocks, *measured.model.language_model.get_decoder().layers]


@torch.inference_mode()
def test_all_layers_of_all_models_are_compiled_and_answer_alike():
    uncompiled = case()
    pixels = uncompiled.subject.prepare_pixels(uncompiled.pictures)
    expected = uncompiled.generate(pixels, 3)
    torch._dynamo.reset()
    # the settings are the process's: put back behind the test
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=False):
        for compiled in (case(), case()):
            compiled.subject.model.load_state_dict(uncompiled.subject.model.state_dict())
            compiled.subject.compile_layers("eager")
            assert torch._dynamo.config.fail_on_recompile_limit_hit
            assert compiled.generate(pixels, 3).equal(expected)
    torch._dynamo.reset()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
