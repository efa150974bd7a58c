"""Constants of a grid are made once, and are right wherever the module that reads them goes."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import compressors
from compressors.constants import keep_constant

DIM = 16
NAMES = ("dct", "resampler_2d", "d_abstractor")


def make_part(name):
    torch.manual_seed(0)
    knobs = {
        "d_abstractor": {"width": 16, "heads": 2, "num_layers": 1, "grid": (3, 3)},
        "resampler_2d": {"grid": (3, 3), "heads": 2},
    }
    return compressors.create(name, dim=DIM, llm_dim=DIM, **knobs.get(name, {})).eval()


def count_calls():
    calls = []

    @keep_constant
    def make_ramp(size, device):
        calls.append(size)
        return torch.arange(size, dtype=torch.float32, device=device)

    return make_ramp, calls


def test_one_is_made_for_each_size_and_device():
    make_ramp, calls = count_calls()
    cpu = torch.device("cpu")
    assert make_ramp(3, cpu) is make_ramp(3, cpu) and make_ramp(4, cpu).shape == (4,)
    assert make_ramp(3, torch.device("meta")).is_meta and not make_ramp(3, cpu).is_meta
    assert calls == [3, 4, 3]


def test_one_made_in_inference_mode_serves_training():
    make_ramp, _ = count_calls()
    with torch.inference_mode():
        make_ramp(3, torch.device("cpu"))
    weight = torch.ones(3, requires_grad=True)
    (make_ramp(3, torch.device("cpu")) * weight).sum().backward()
    assert weight.grad.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("fake", [False, True])
def test_autocast_does_not_round_one(fake):
    @keep_constant
    def multiply_ramps(size, device):
        ramp = torch.arange(size, dtype=torch.float32, device=device)
        return ramp[:, None] @ ramp[None]

    shapes_only = FakeTensorMode() if fake else nullcontext()
    with shapes_only, torch.autocast("cpu", torch.bfloat16):
        assert multiply_ramps(30, torch.device("cpu")).dtype == torch.float32


def test_a_pass_under_autocast_leaves_later_ones_exact():
    part = compressors.create("dct", dim=4, rate=3)
    features = torch.full((1, 51, 51, 4), 5.0)  # a size that no other test has
    with torch.autocast("cpu", torch.bfloat16):
        part(features)
    torch.testing.assert_close(part(features), torch.full((1, 289, 4), 5.0))


@pytest.mark.parametrize("name", NAMES)
def test_constants_follow_a_module(name):
    part = make_part(name)
    features = torch.randn(2, 9, 9, DIM)
    state = list(part.state_dict())
    with torch.device("meta"):
        shapes = make_part(name)
    assert shapes(features.to("meta")).is_meta
    with torch.inference_mode():
        expected = part(features)
    for other in (part, copy.deepcopy(part)):
        assert other(features).equal(expected)
    assert list(part.state_dict()) == state
    assert part.double()(features.double()).dtype == torch.float64
    torch.testing.assert_close(part.float()(features), expected)


@pytest.mark.parametrize("name", NAMES)
def test_constants_are_exported_and_compiled(name):
    part = make_part(name)
    features = torch.randn(2, 9, 9, DIM)
    # with and without what is kept already, and what is kept is whole behind it
    program = torch.export.export(part, (features,))
    expected = part(features)
    again = torch.export.export(part, (features,))
    for exported in (program, again):
        torch.testing.assert_close(exported.module()(features), expected)
    torch._dynamo.reset()
    compiled = torch.compile(part, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(features), expected)
    assert part(features).equal(expected)
