"""Pixel shuffle against the implementations in transformers and torch."""

import pytest
import torch
from transformers import InternVLConfig, InternVLVisionConfig, Qwen2Config
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector
from transformers.models.llama4.modeling_llama4 import pixel_shuffle as llama4_pixel_shuffle

import compressors


def make(**knobs):
    return compressors.create("pixel_shuffle", dim=6, **knobs)


@pytest.fixture
def features():
    return torch.randn(2, 12, 12, 6)


@pytest.mark.parametrize("rate", [2, 3, 4])
def test_equals_idefics3_and_llama4(features, rate):
    tokens = make(rate=rate)(features)
    patches = features.flatten(1, 2)
    assert tokens.equal(Idefics3Connector.pixel_shuffle(None, patches, rate))
    if rate != 3:  # theirs takes 1 / rate, which must be exact
        assert tokens.equal(llama4_pixel_shuffle(patches, 1 / rate))


@pytest.mark.parametrize("grid", [(12, 12), (8, 12)])
def test_equals_internvl(grid):
    features = torch.randn(2, *grid, 6)
    expected = InternVLModel.pixel_shuffle(None, features, 0.5)
    assert make()(features).equal(expected.flatten(1, 2))
    assert make().out_grid(*grid) == tuple(expected.shape[1:3])


@pytest.mark.parametrize("rate", [2, 3])
def test_channel_space_equals_torch(features, rate):
    expected = torch.pixel_unshuffle(features.permute(0, 3, 1, 2), rate)
    assert make(rate=rate, order="channel_space")(features).equal(expected.flatten(2).mT)


@pytest.mark.parametrize("order", ["space_channel", "channel_space"])
def test_nothing_is_lost(features, order):
    tokens = make(rate=3, order=order)(features)
    assert tokens.flatten().sort().values.equal(features.flatten().sort().values)


def test_ragged_grids_are_filled_with_zeros(features):
    ragged = features[:, :11, :9]
    filled = torch.zeros(2, 12, 10, 6)
    filled[:, :11, :9] = ragged
    for policy in ("ceil", "pad"):
        assert make(grid_policy=policy)(ragged).equal(make()(filled))
    assert make(grid_policy="floor")(ragged).equal(make()(ragged[:, :10, :8]))


def test_projector_equals_internvl(features):
    vision = InternVLVisionConfig(hidden_size=6, num_hidden_layers=1, num_attention_heads=2)
    text = Qwen2Config(hidden_size=16)
    theirs = InternVLMultiModalProjector(InternVLConfig(vision_config=vision, text_config=text)).eval()
    ours = make(llm_dim=16, projector=True)
    assert ours.projects and ours.out_dim == 16
    keys = zip(ours.projector.state_dict(), theirs.state_dict().values(), strict=True)
    ours.projector.load_state_dict(dict(keys))
    expected = theirs(InternVLModel.pixel_shuffle(None, features, 0.5).flatten(1, 2))
    torch.testing.assert_close(ours(features), expected, rtol=0, atol=1e-6)
