"""Knobs that cannot work are one-line errors at construction, before any feature is seen."""

import typing
from functools import partial

import pytest
import torch

import compressors
from compressors import UsageError
from compressors.checks import check_at_least, check_positive, check_probability, check_share
from compressors.grid import count_windows, fit_to_windows, weigh_patches

RATED = [name for name in compressors.names() if "rate" in compressors.knobs(name)]
NUMBERS = [
    (name, knob)
    for name in compressors.names()
    for knob, parameter in compressors.knobs(name).items()
    if float in (parameter.annotation, *typing.get_args(parameter.annotation))
]
POLICED = [name for name in compressors.names() if "grid_policy" in compressors.knobs(name)]


def refused(message, name, **knobs):
    with pytest.raises(UsageError, match=message) as caught:
        compressors.create(name, dim=8, llm_dim=8, **knobs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", RATED)
def test_rate(name):
    refused("rate=0: must be at least 1", name, rate=0)
    refused("rate=-2: must be at least 1", name, rate=-2)


@pytest.mark.parametrize("name", POLICED)
def test_grid_policy_without_the_registry(name):
    cls = compressors.base.registry.get(name)
    arguments = {"llm_dim": 8} if "llm_dim" in compressors.base.registry.parameters(name) else {}
    with pytest.raises(UsageError, match="grid_policy='cel': choose one of error, floor, ceil, pad"):
        cls(8, grid_policy="cel", **arguments)


@pytest.mark.parametrize(
    "name, knobs, message",
    [
        ("sap", {"dropout": 1.0}, r"dropout=1.0: must be at least 0 and below 1"),
        ("qformer", {"num_queries": 0}, "num_queries=0: must be at least 1"),
        ("qformer", {"num_layers": 0}, "num_layers=0: must be at least 1"),
        ("qformer", {"cross_every": 0}, "cross_every=0: must be at least 1"),
        ("qformer", {"heads": 0}, "heads=0: must be at least 1"),
        (
            "qformer",
            {"heads": 5, "width": 32},
            "heads=5 does not divide width=32; choose one of 1, 2, 4, 8, 16",
        ),
        ("qformer", {"dropout": -0.1}, "dropout=-0.1: must be at least 0 and below 1"),
        ("ldpv2", {"grid": (0, 4)}, r"grid=\(0, 4\): must be \(height, width\), both at least 1"),
        ("slothmix", {"depth": -1}, "depth=-1: must be at least 0"),
        ("slothmix", {"heads": 3}, "heads=3 does not divide width=8; choose one of 1, 2, 4, 8"),
        ("slothmix", {"grid": (0, 4)}, r"grid=\(0, 4\): must be \(height, width\), both at least 1"),
        ("random", {"seed": -1}, "seed=-1: must be at least 0"),
        ("interpolate", {"grid": (3, 0)}, r"grid=\(3, 0\): must be \(height, width\), both at least 1"),
        ("resampler", {"num_queries": 0}, "num_queries=0: must be at least 1"),
        ("resampler", {"num_layers": 0}, "num_layers=0: must be at least 1"),
        ("resampler", {"width": 0}, "width=0: must be at least 1"),
        ("resampler", {"head_dim": 0}, "head_dim=0: must be at least 1"),
        ("resampler_2d", {"grid": (0, 1)}, r"grid=\(0, 1\): must be \(height, width\), both at least 1"),
        ("c_abstractor", {"width": 0}, "width=0: must be at least 1"),
        ("c_abstractor", {"mlp_layers": 0}, "mlp_layers=0: must be at least 1"),
        ("c_abstractor", {"positions": (0, 9)}, r"positions=\(0, 9\): must be \(height, width\), both at"),
        ("d_abstractor", {"num_points": 0}, "num_points=0: must be at least 1"),
        ("d_abstractor", {"heads": 3}, "heads=3 does not divide width=1024; choose one of 1, 2, 4, 8"),
        ("token_packer", {"heads": 3}, "heads=3 does not divide dim=8; choose one of 1, 2, 4, 8"),
        ("conv_downsample", {"width": 0}, "width=0: must be at least 1"),
        ("window_attention_pool", {"heads": 0}, "heads=0: must be at least 1"),
        ("window_attention_pool", {"projector": True, "mlp_width": 0}, "mlp_width=0: must be at least 1"),
        ("prumerge", {"neighbours": -1}, "neighbours=-1: must be at least 0"),
        ("hiprune", {"block": 0}, "block=0: blocks count from 1, or from the end with -1"),
        ("vscan", {"block": 0}, "block=0: blocks count from 1, or from the end with -1"),
    ],
)
def test_others(name, knobs, message):
    refused(message, name, **knobs)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name, knob", NUMBERS)
def test_numbers_are_finite(name, knob, value):
    refused(rf"^{name}\.{knob}={value}: must be ", name, **{knob: value})


@pytest.mark.parametrize(
    "check", [check_positive, check_probability, check_share, partial(check_at_least, 0)]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_every_check_refuses_what_is_not_finite(check, value):
    with pytest.raises(UsageError, match=f"^knob={value}: must be a finite number$"):
        check(knob=value)


def test_qformer_text_needs_the_width_of_the_text():
    with pytest.raises(UsageError, match="qformer with text=true needs llm_dim"):
        compressors.create("qformer", dim=8, text=True)
    small = {"width": 8, "heads": 2, "num_layers": 1}
    part = compressors.create("qformer", dim=8, llm_dim=4, text=True, max_text=3, **small)
    with pytest.raises(UsageError, match="max_text=3: too short for a question of 5 tokens"):
        part(torch.randn(1, 2, 2, 8), torch.randn(1, 5, 4))


def test_ldpv2_grid_larger_than_the_patches():
    part = compressors.create("ldpv2", dim=8, llm_dim=8)
    with pytest.raises(UsageError, match=r"grid=\(12, 12\) is larger than the 9x16 patch grid; choose a "):
        part(torch.randn(1, 9, 16, 8))


@pytest.mark.parametrize("policy, expected", [("floor", (2, 3)), ("ceil", (3, 4)), ("pad", (3, 4))])
def test_windows(policy, expected):
    assert count_windows(8, 10, 3, policy) == expected
    assert count_windows(9, 12, 3, policy) == count_windows(9, 12, 3, "error") == (3, 4)


@pytest.mark.parametrize(
    "grid, rate, policy, message",
    [
        (
            (8, 9),
            3,
            "error",
            r"rate=3 does not divide the 8x9 patch grid; choose another rate or grid_policy=",
        ),
        ((2, 9), 3, "floor", "rate=3 leaves no token of the 2x9 patch grid with grid_policy=floor; choose"),
        ((0, 9), 3, "ceil", "height=0: must be at least 1"),
        ((9, 9), 0, "ceil", "rate=0: must be at least 1"),
    ],
)
def test_windows_refuses(grid, rate, policy, message):
    with pytest.raises(UsageError, match=message):
        count_windows(*grid, rate, policy)


@pytest.mark.parametrize("policy", ["floor", "ceil", "pad"])
def test_unfit_undoes_fit(policy):
    features = torch.rand(2, 7, 10, 1) + 1
    fitted, real = fit_to_windows(features, 3, policy)
    weights = weigh_patches(fitted.squeeze(-1) if real is None else fitted.squeeze(-1) * real, 7, 10)
    kept = features.squeeze(-1) * (weights > 0)
    torch.testing.assert_close(weights, kept / kept.sum((1, 2), keepdim=True))
    assert (weights == 0).sum() == (2 * (70 - 54) if policy == "floor" else 0)
