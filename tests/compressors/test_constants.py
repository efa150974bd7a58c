"""Constants of a grid are made once, and are right wherever the module that reads them goes."""

import copy

import pytest
import torch

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
