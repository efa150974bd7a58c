"""LDP and LDPv2: counts, strides and borders; parity with MobileVLM is in tests/golden."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.models._utils import _make_divisible

import compressors
from compressors.ldp import round_squeeze_width


def make(name, **knobs):
    torch.manual_seed(0)
    return compressors.create(name, dim=6, llm_dim=8, **knobs).eval()


def test_squeeze_width_is_mobilenets():
    for width in range(4, 700):
        assert round_squeeze_width(width) == _make_divisible(width // 4, 8)


def test_policies_of_ldp():
    """`ceil` is the convolution's own count; the others crop or fill the projected grid first."""
    features = torch.randn(2, 9, 7, 6)
    ceil = make("ldp", grid_policy="ceil")
    assert ceil(features).shape == (2, 5 * 4, 8)
    cropped = make("ldp")(features[:, :8, :6])
    torch.testing.assert_close(make("ldp", grid_policy="floor")(features), cropped)
    filled = F.pad(ceil.mlp(features), (0, 0, 0, 1, 0, 1))
    torch.testing.assert_close(make("ldp", grid_policy="pad")(features), ceil.blocks(filled).flatten(1, 2))


@pytest.mark.parametrize("rate", [1, 2, 3, 4])
def test_rate_of_ldp(rate):
    assert make("ldp", rate=rate)(torch.randn(1, 12, 24, 6)).shape[1] == 12 * 24 // rate**2


def test_second_block_of_ldp_is_residual_at_rate_1():
    part = make("ldp", rate=1)
    for block in part.blocks:
        torch.nn.init.zeros_(block.pointwise_norm.weight)
    features = torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(part(features), part.mlp(features).flatten(1, 2))


def test_ldpv2_by_rate_is_window_means():
    """On a grid that the rate divides, `rate` and `grid` say the same."""
    features = torch.randn(2, 12, 9, 6)
    torch.testing.assert_close(make("ldpv2", rate=3)(features), make("ldpv2", grid=(4, 3))(features))


def test_ldpv2_rectangular_grid():
    part = make("ldpv2", grid=(2, 5))
    torch.nn.init.zeros_(part.position.weight)
    torch.nn.init.zeros_(part.position.bias)
    features = torch.randn(2, 7, 10, 6)
    pooled = F.adaptive_avg_pool2d(part.mlp(features).permute(0, 3, 1, 2), (2, 5))
    torch.testing.assert_close(part(features), pooled.flatten(2).mT)


@pytest.mark.parametrize(
    ("rate", "policy", "size"),
    [(2, "error", 6), (3, "error", 9), (3, "ceil", 8), (4, "ceil", 7), (4, "pad", 6)],
)
def test_ldp_reads_every_patch(rate, policy, size):
    """Those of the last row and column as well, by the strided convolution itself."""
    part = make("ldp", rate=rate, grid_policy=policy)
    part.blocks[0] = torch.nn.Identity()  # mixes neighbours, which would hide it
    features = torch.randn(1, size, size, 6, requires_grad=True)
    strided = part.blocks[1]
    strided.gate = torch.nn.Identity()  # sees means of all
    tokens = part(features)
    assert tokens.shape[1] == (-(-size // rate)) ** 2
    tokens.square().sum().backward()
    assert (features.grad.abs().sum(-1) > 0).all()
