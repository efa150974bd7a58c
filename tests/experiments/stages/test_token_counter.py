"""Visual tokens of images whose number follows from their content, counted in an evaluation."""

import pytest
import torch

import compressors
from experiments.stages.own_counts import TokenCounter


def test_what_fills_rows_is_not_counted():
    part = compressors.create("scope", dim=6, tokens=9, coverage=0.7)
    features = torch.randn(3, 6, 6, 7)
    features[1] = 1 + features[1] / 9  # nearly alike
    features[..., 6] = features[..., 6].abs()  # attention
    features[2] = 0
    counter = TokenCounter()
    with counter.count_tokens(part):
        part(features)
        part(features[:1], None, None, kept=part.kept(features[:1]))
    part(features)  # nobody counts
    first, second, _ = part.present(features).sum(1).tolist()
    assert first != second
    assert counter.find_mean() == pytest.approx((2 * first + second) / 3, abs=1e-3)


def test_one_number_for_all_is_not_measured():
    part = compressors.create("scope", dim=6, tokens=9)
    counter = TokenCounter()
    with counter.count_tokens(part):
        part(torch.rand(1, 6, 6, 7))
    assert counter.find_mean() is None
