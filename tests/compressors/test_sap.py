"""SAP against a plain loop over windows, and its known limits."""

import pytest
import torch
import torch.nn.functional as F

import compressors
from compressors.sap import softmax_in_windows, sum_windows

POLICIES = ["floor", "ceil", "pad"]


def by_loop(part, features, rate, policy):
    """SAP one window at a time; what is cropped or padded is spelled out."""
    batch, height, width, dim = features.shape
    if policy == "floor":
        features = features[:, : height - height % rate, : width - width % rate]
    if policy == "pad":
        features = F.pad(features, (0, 0, 0, -width % rate, 0, -height % rate))
    tokens = []
    for top in range(0, features.shape[1], rate):
        for left in range(0, features.shape[2], rate):
            window = features[:, top : top + rate, left : left + rate].reshape(batch, -1, dim)
            tokens.append((part.scorer(window).softmax(1) * window).sum(1))
    return torch.stack(tokens, 1)


def make(rate=3, policy="error", dim=16):
    torch.manual_seed(0)
    return compressors.create("sap", dim=dim, rate=rate, grid_policy=policy).double().eval()


@pytest.mark.parametrize("rate", [1, 2, 3, 5])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("grid", [(9, 9), (8, 11), (5, 7)])
def test_equals_a_loop_over_windows(grid, policy, rate):
    """Values and gradients."""
    part = make(rate, policy)
    features = torch.randn(2, *grid, 16, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, part.num_tokens(*grid), 16, dtype=torch.float64)
    results = []
    for tokens in (part(features), by_loop(part, features, rate, policy)):
        part.zero_grad()
        gradient, *others = torch.autograd.grad((tokens * upstream).sum(), [features, *part.parameters()])
        results.append([tokens, gradient, *others])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("policy", POLICIES)
def test_zero_scorer_is_average_pooling(policy):
    part = make(policy=policy)
    torch.nn.init.zeros_(part.scorer[3].weight)
    features = torch.randn(2, 8, 10, 16, dtype=torch.float64)
    average = compressors.create("avg_pool", dim=16, rate=3, grid_policy=policy)
    torch.testing.assert_close(part(features), average(features))


def test_weights_sum_to_one_per_window_and_respect_the_mask():
    scores, real = torch.randn(2, 6, 9), torch.rand(6, 9) > 0.5
    real[::3, ::3] = True  # no window is empty
    weights = softmax_in_windows(scores, 3, real)
    assert (weights[:, ~real] == 0).all()
    per_window = sum_windows(torch.ones(2, 6, 9, 1), weights, 3)
    torch.testing.assert_close(per_window, torch.ones(2, 2, 3, 1))


def test_last_bias_has_no_effect():
    part, features = make(), torch.randn(1, 9, 9, 16, dtype=torch.float64)
    before = part(features)
    part.scorer[3].bias.data += 5
    torch.testing.assert_close(part(features), before)


def test_softmax_is_fp32_in_half_precision():
    part, features = make().half(), torch.randn(1, 9, 9, 16).half()
    assert part.attention(features).dtype == torch.float32
    part.scorer[3].weight.data *= 1e4
    assert part(features).isfinite().all()


def test_published_size():
    with torch.device("meta"):
        part = compressors.create("sap", dim=1152)
    assert sum(p.numel() for p in part.parameters()) == 1_329_409
    assert part.num_tokens(27, 27) == 81
