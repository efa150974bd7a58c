"""The measuring code is measured: known times, known bytes, known operations; and the bench runs."""

import time

import pytest
import torch
from torch import nn

import compressors
from experiments import bench
from experiments.efficiency import limits, timing


class Sleeper(nn.Module):
    """Takes `forward_s` and, in backward, `backward_s` seconds."""

    def __init__(self, forward_s: float, backward_s: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.forward_s, self.backward_s = forward_s, backward_s

    def forward(self, x):
        time.sleep(self.forward_s)
        out = x * self.weight
        out.register_hook(lambda _: time.sleep(self.backward_s))
        return out


def test_known_times():
    x = torch.ones(3, requires_grad=True)
    parts = {"slow": Sleeper(0.06, 0.04), "quick": Sleeper(0.02, 0.03)}
    steps = {name: timing.make_training_step(part, x, part.parameters()) for name, part in parts.items()}
    seconds = timing.time_interleaved(steps, rounds=3)
    assert [len(s) for s in seconds.values()] == [3, 3]
    assert min(seconds["slow"]) >= 0.10 and min(seconds["quick"]) >= 0.05


def test_steps_take_turns():
    """The first round is not measured; a round runs each step once."""
    order = []
    steps = {name: lambda name=name: order.append(name) for name in "abc"}
    timing.time_interleaved(steps, rounds=2)
    assert "".join(order) == "abc" * 3


def test_gradients_do_not_pile_up():
    part, x = nn.Linear(4, 4), torch.randn(2, 4, requires_grad=True)
    step = timing.make_training_step(part, x, part.parameters())
    step()
    once = part.weight.grad.clone(), x.grad.clone()
    step()
    assert part.weight.grad.equal(once[0]) and x.grad.equal(once[1])


def test_spread_and_ratios():
    assert timing.find_spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert timing.compare_rounds([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == (2.0, 1.0, 3.0)


def test_kept_bytes():
    """sigmoid keeps its output; a linear layer keeps its input and weight, which are known."""
    part, x = nn.Linear(8, 8), torch.randn(4, 8, requires_grad=True)
    assert timing.count_kept_bytes(part, x, part.parameters()) == 0
    assert timing.count_kept_bytes(lambda y: part(y).sigmoid(), x, part.parameters()) == 4 * 8 * 4


def test_flops():
    part = nn.Linear(10, 20, device="meta")
    assert timing.count_flops(lambda: part(torch.empty(3, 10, device="meta"))) == 2 * 3 * 10 * 20


def test_known_kernels():
    x = torch.ones(4, 4)
    assert limits.count_kernels(lambda: (x @ x).view(16).reshape(4, 4).T) == 1
    assert limits.count_kernels(lambda: torch.empty(3)) == 0
    assert limits.count_kernels(lambda: nn.functional.layer_norm(x, (4,)).relu()) == 2


def test_known_limits():
    x, weight = torch.ones(3, 10), torch.ones(20, 10)
    work = limits.find_limit(lambda: x @ weight.T, [x, weight])
    assert work == (4 * (3 * 10 + 20 * 10 + 3 * 20), 2 * 3 * 10 * 20)


def test_milliseconds_are_short():
    seconds = [0.00017, 0.0234, 0.3446, 14.10754]
    assert [bench.format_milliseconds(value) for value in seconds] == ["0.17", "23.4", "345", "14108"]


def test_all_compressors_have_a_row():
    """Whoever is registered can be measured; the sizes are those of a test."""
    options = bench.BenchOptions(batch=1, grid=6, dim=24, rate=3, rounds=1)
    for name in compressors.names():
        part = bench.make_compressor(name, options).eval()
        inputs = bench.make_inputs(part, options, {"device": "cpu", "dtype": torch.float32})
        with torch.inference_mode():
            assert part(*inputs).shape[1] == part.num_tokens(6, 6), name


@pytest.mark.slow
def test_bench_runs(capsys, monkeypatch):
    monkeypatch.setattr(bench, "check_names", lambda words: words or ["sap", "divprune"])
    assert bench.main(["quick=true"]) == 0
    shown = capsys.readouterr().out
    assert "cpu" in shown and f"torch {torch.__version__}" in shown and "1 threads" in shown
    assert shown.count("SAP, looped") == 2 and "tower trained" in shown and "divprune" in shown


def test_named_compressors_have_one_table(capsys):
    assert bench.main(["sap", "qformer", "quick=true", "rounds=1"]) == 0
    shown = capsys.readouterr().out
    assert "qformer, transformers" in shown and "SAP, looped" not in shown
    for heading in bench.COMPRESSOR_HEADER[2:]:  # an explanation of each stands below the table
        assert heading in shown.rpartition("qformer, transformers")[2]


def test_one_that_is_broken_is_left_out_with_its_reason(monkeypatch, capsys, broken_outside_part):
    monkeypatch.setattr(compressors, "names", lambda: ["avg_pool", broken_outside_part])
    monkeypatch.setattr(bench, "measure_sap_rows", lambda *_: [])
    assert bench.main(["quick=true", "rounds=1"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"left out: compressor '{broken_outside_part}' of entry point no_such:Part does not load" in shown
    assert "avg_pool" in shown.partition("forward")[2]
    assert bench.main([broken_outside_part, "quick=true"]) == 2
    assert capsys.readouterr().err.startswith(f"error: compressor '{broken_outside_part}' of entry point")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["rounds=0"], "rounds=0: must be at least 1"),
        (["grid=4", "dim=8"], "rate=3 does not divide the 4x4 patch grid"),
        (["dtype=int8"], "dtype=int8: must be one of float32, bfloat16"),
        (["sup"], "sup"),
        (["sap", "device=gpu"], "device=gpu: expected cpu, or cuda where there is a GPU"),
        (["sap", "device=cuda:99"], "device=cuda:99: expected cpu, or cuda where there is a GPU"),
        (["--rounds", "3"], "--rounds: settings are spelled KEY=VALUE; write rounds=3"),
    ],
)
def test_bad_arguments(argv, message, capsys):
    assert bench.main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
