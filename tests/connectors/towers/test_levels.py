"""Several hidden states of the tower in the channels, for compressors that read more than its output."""

import pytest
import torch
from factories import vision_config

from compressors.errors import UsageError
from connectors.towers.build import build_tower


def test_levels_follow_the_output_in_the_channels():
    tower, pixels = build_tower(vision_config()).eval(), torch.randn(2, 3, 84, 56)
    assert torch.equal(tower.extract_features(pixels, ()), tower(pixels))
    found = tower.extract_features(pixels, (1, -2))
    assert found.shape == (2, 6, 4, 3 * tower.dim)
    output, first, second = found.chunk(3, -1)
    assert torch.equal(output, tower(pixels)) and torch.equal(second, output)  # select_layer is -2
    assert torch.equal(first, tower(pixels, levels=[1])[0]) and not torch.equal(first, output)


def test_levels_that_were_not_built():
    tower = build_tower(vision_config())  # 3 blocks, 2 of them built
    tower.check_needs((1, 2, -2))
    with pytest.raises(UsageError, match="level -1: this tower was built with select_layer=-2; choose -3"):
        tower.check_needs((1, -1))
