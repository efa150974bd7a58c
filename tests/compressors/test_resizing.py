"""adaptive_avg_pool, interpolate and dct against torch, transformers and their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel
from transformers.models.perception_lm.modeling_perception_lm import PerceptionLMAdaptiveAvgPooling

import compressors
from compressors import UsageError
from compressors.dct import make_cosine_matrix

RESIZERS = ["adaptive_avg_pool", "interpolate", "dct"]


def make(name, **knobs):
    return compressors.create(name, dim=4, **knobs)


@pytest.mark.parametrize("ratio", [1, 2, 3, 5])
def test_adaptive_average_is_perception_lms(ratio):
    """Theirs floors: 13 patches at ratio 3 make 4, each of them read."""
    features = torch.randn(2, 13, 13, 4)
    expected = PerceptionLMAdaptiveAvgPooling(ratio)(features.flatten(1, 2))
    part = make("adaptive_avg_pool", rate=ratio, grid_policy="floor")
    torch.testing.assert_close(part(features), expected)


@pytest.mark.parametrize("grid", [(12, 12), (6, 9)])
def test_adaptive_average_of_divisible_grids_is_average_pooling(grid):
    features = torch.randn(2, *grid, 4)
    torch.testing.assert_close(make("adaptive_avg_pool")(features), make("avg_pool")(features))


@pytest.mark.parametrize("side", [12, 13])
def test_interpolate_is_llava_onevisions(side):
    class Stub:
        class config:
            class vision_config:
                image_size, patch_size = 14 * side, 14

    features = torch.randn(2, side, side, 4)
    expected = LlavaOnevisionModel.apply_pooling(Stub, features.flatten(1, 2))
    part = make("interpolate", rate=2, grid_policy="ceil")
    torch.testing.assert_close(part(features), expected)


def test_area_is_the_mean_and_bilinear_at_an_odd_rate_the_middle():
    features = torch.randn(2, 12, 9, 4)
    torch.testing.assert_close(make("interpolate", mode="area")(features), make("avg_pool")(features))
    torch.testing.assert_close(make("interpolate")(features), make("uniform")(features))


@pytest.mark.parametrize(
    "name, knobs",
    [
        ("adaptive_avg_pool", {}),
        ("interpolate", {"mode": "area"}),
        ("interpolate", {"mode": "bilinear"}),
    ],
)
@pytest.mark.parametrize("policy", ["floor", "ceil"])
def test_attention_is_where_the_tokens_come_from(name, knobs, policy):
    part, features = make(name, grid_policy=policy, **knobs), torch.randn(2, 7, 10, 4)
    weighted = torch.einsum("bhw,bhwc->bc", part.attention(features), features)
    torch.testing.assert_close(weighted, part(features).mean(1))


def test_attention_where_no_token_reads_a_patch():
    """Of one row of patches, filled up to three, bilinear tokens read the middle one."""
    part, features = make("interpolate", grid_policy="pad"), torch.randn(1, 1, 9, 4)
    assert not part(features).any() and part.attention(features).equal(torch.zeros(1, 1, 9))


@pytest.mark.parametrize("name", RESIZERS)
def test_grid_and_rate_say_the_same_where_both_can(name):
    features = torch.randn(2, 7, 10, 4)
    for policy, grid in (("floor", (2, 3)), ("ceil", (3, 4))):
        by_rate, by_grid = make(name, grid_policy=policy), make(name, grid=grid)
        assert by_rate.out_grid(7, 10) == by_grid.out_grid(7, 10) == grid
        torch.testing.assert_close(by_rate(features), by_grid(features))
    padded = F.pad(features, (0, 0, 0, 2, 0, 2))
    torch.testing.assert_close(make(name, grid_policy="pad")(features), make(name)(padded))


@pytest.mark.parametrize("name", [*RESIZERS, "c_abstractor"])
def test_grid_larger_than_the_patches(name):
    part = compressors.create(name, dim=4, llm_dim=4, grid=(4, 9))
    for ask in (lambda: part.num_tokens(9, 8), lambda: part(torch.randn(1, 9, 8, 4))):
        with pytest.raises(UsageError, match=r"grid=\(4, 9\) is larger than the 9x8 patch grid; choose a "):
            ask()


def dct_by_formula(values, count):
    """One axis, written out: sums of cosines, the first `count` of them, at `count` places."""
    size = len(values)
    tokens = []
    for place in range(count):
        token = values.sum() / size
        for k in range(1, count):
            waves = [math.cos(math.pi * k * (2 * n + 1) / (2 * size)) for n in range(size)]
            coefficient = 2 / size * sum(value * wave for value, wave in zip(values, waves))
            token += coefficient * math.cos(math.pi * k * (2 * place + 1) / (2 * count))
        tokens.append(token)
    return torch.stack(tokens)


@pytest.mark.parametrize("size, count", [(9, 3), (10, 4), (7, 7), (5, 1)])
def test_dct_is_its_formula(size, count):
    values = torch.randn(size, dtype=torch.float64)
    part = make("dct", grid=(count, 1))
    features = values.float().view(1, size, 1, 1).expand(-1, -1, 1, 4)
    expected = dct_by_formula(values, count).float()
    torch.testing.assert_close(part(features)[0, :, 2], expected)
    other_way = make("dct", grid=(1, count))(features.transpose(1, 2))
    torch.testing.assert_close(other_way[0, :, 2], expected)


def test_dct_is_orthonormal_and_keeps_what_is_low():
    torch.testing.assert_close(make_cosine_matrix(9) @ make_cosine_matrix(9).T, torch.eye(9))
    constant = torch.full((1, 9, 12, 4), 2.5)
    torch.testing.assert_close(make("dct")(constant), torch.full((1, 12, 4), 2.5))
    # a wave of two half periods is the same wave on fewer places; a fast one is gone
    waves = {n: torch.cos(math.pi * k * (torch.arange(n) + 0.5) / n) for n, k in ((12, 2), (4, 2))}
    features = waves[12].view(1, 12, 1, 1).expand(-1, -1, 9, 4)
    expected = waves[4].view(1, 4, 1, 1).expand(-1, -1, 3, 4).flatten(1, 2)
    torch.testing.assert_close(make("dct")(features), expected, atol=1e-6, rtol=0)
    fast = torch.cos(math.pi * 5 * (torch.arange(12) + 0.5) / 12).view(1, 12, 1, 1).expand(-1, -1, 9, 4)
    torch.testing.assert_close(make("dct")(fast), torch.zeros(1, 12, 4), atol=1e-6, rtol=0)
