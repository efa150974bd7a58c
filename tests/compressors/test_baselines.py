"""identity, avg_pool, uniform, random and downsample against their definitions."""

import pytest
import torch
import torch.nn.functional as F

import compressors
from compressors.uniform import find_centres


def image(height=7, width=10, batch=2, dim=4):
    return torch.randn(batch, height, width, dim)


def rows(features):
    return features.flatten(1, 2)


@pytest.mark.parametrize("rate", [2, 3, 5])
@pytest.mark.parametrize("policy", ["floor", "ceil", "pad"])
def test_average_is_torch_pooling(policy, rate):
    features = image()
    channels_first = features.permute(0, 3, 1, 2)
    if policy == "pad":
        channels_first = F.pad(channels_first, (0, -10 % rate, 0, -7 % rate))
    expected = F.avg_pool2d(channels_first, rate, ceil_mode=policy == "ceil", count_include_pad=False)
    part = compressors.create("avg_pool", dim=4, rate=rate, grid_policy=policy)
    torch.testing.assert_close(part(features), expected.flatten(2).mT)


@pytest.mark.parametrize("name", ["avg_pool", "uniform", "random"])
@pytest.mark.parametrize("policy", ["floor", "ceil", "pad"])
def test_attention_is_where_the_tokens_come_from(name, policy):
    """The tokens' mean is the attention-weighted sum of the patches."""
    part = compressors.create(name, dim=4, rate=3, grid_policy=policy).eval()
    features = image()
    weighted = torch.einsum("bhw,bhwc->bc", part.attention(features), features)
    expected = part(features).mean(1)
    if (name, policy) == ("avg_pool", "pad"):  # the filled border has weight too, which pictures leave out
        expected *= part.num_tokens(7, 10) * 9 / 70
    torch.testing.assert_close(weighted, expected)


def test_average_of_one_window_larger_than_the_grid():
    features = image(2, 2)
    part = compressors.create("avg_pool", dim=4, rate=5, grid_policy="ceil")
    torch.testing.assert_close(part(features), rows(features).mean(1, keepdim=True))


def test_identity_and_downsample_keep_everything():
    features = image()
    for name in ("identity", "downsample"):
        assert compressors.create(name, dim=4)(features).equal(rows(features))
    assert compressors.create("identity", dim=4).image_rate == 1
    assert compressors.create("downsample", dim=4, rate=2).image_rate == 2


@pytest.mark.parametrize(
    "size, count, rate, policy, expected",
    [
        (9, 3, 3, "error", [1, 4, 7]),
        (8, 4, 2, "error", [0, 2, 4, 6]),
        (7, 2, 3, "floor", [1, 4]),
        (7, 3, 3, "ceil", [1, 4, 6]),
        (8, 3, 3, "ceil", [1, 4, 6]),
        (7, 3, 3, "pad", [1, 4, 6]),  # the full window's centre, 7, is beyond the grid: its nearest patch
        (8, 3, 3, "pad", [1, 4, 7]),
    ],
)
def test_uniform_centres(size, count, rate, policy, expected):
    assert find_centres(size, count, rate, policy) == expected


def test_uniform_takes_the_centre_patches():
    features = image(6, 9)
    tokens = compressors.create("uniform", dim=4, rate=3)(features)
    assert tokens.equal(rows(features[:, 1::3, 1::3]))


def subset(part, batch=1, grid=(12, 12)):
    """Which patches `random` keeps, as raster indices (B, N)."""
    numbers = torch.arange(float(grid[0] * grid[1])).reshape(1, *grid, 1)
    return part(numbers.expand(batch, -1, -1, -1)).squeeze(-1)


def test_random_in_evaluation_depends_on_seed_and_grid_alone():
    first, again, other = (compressors.create("random", dim=1, seed=seed).eval() for seed in (1, 1, 2))
    kept, state = subset(first, batch=3), torch.get_rng_state()
    assert kept[0].equal(kept[1]) and kept.shape == (3, 16)
    assert subset(again).equal(kept[:1])
    assert not subset(other).equal(kept[:1])
    assert torch.get_rng_state().equal(state)  # evaluation leaves the training's draws alone


def test_random_in_training_draws_per_image_from_the_global_generator():
    part = compressors.create("random", dim=1).train()
    torch.manual_seed(0)
    kept = subset(part, batch=400)
    assert not kept[0].equal(kept[1])
    torch.manual_seed(0)
    assert subset(part, batch=400).equal(kept)
    counts = kept.long().flatten().bincount(minlength=144)  # each patch 44 times on average
    assert counts.min() > 15 and counts.max() < 90


@pytest.mark.parametrize("training", [True, False])
def test_random_is_a_subset_in_raster_order(training):
    kept = subset(compressors.create("random", dim=1).train(training), batch=5)
    assert (kept.diff(dim=1) > 0).all()
