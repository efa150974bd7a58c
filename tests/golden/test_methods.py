"""Training-free methods against what their public functions made of random tensors.

Each file of vectors names the function, the seed and the sizes in its metadata; inputs stand beside outputs.
"""

from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file

import compressors

FOLDER = Path(__file__).parent / "methods"
SIDE = 12


def as_maps(patches):
    """(B, N, ...) -> (B, H, W, ...)."""
    return patches.unflatten(1, (SIDE, SIDE))


@pytest.mark.parametrize(("dominant", "contextual"), [(14, 3), (8, 8), (62, 10)])
def test_visionzip(dominant, contextual):
    vectors = load_file(FOLDER / "visionzip.safetensors")
    states = vectors["states"]
    cls = states[:, :1].expand(-1, SIDE * SIDE, -1)
    features = torch.cat(
        [
            as_maps(states[:, 1:]),
            as_maps(vectors["attention"][:, 1:]).unsqueeze(-1),
            as_maps(vectors["keys"][:, 1:]),
            as_maps(cls),
        ],
        -1,
    )
    count = dominant + contextual
    part = compressors.create(
        "visionzip", dim=states.shape[-1], tokens=count, context=contextual / count, cls=True
    )
    tokens = part(features)
    torch.testing.assert_close(tokens, vectors[f"tokens_{dominant}_{contextual}"])
    # rows are their own: the released code works on the batch as a whole
    alone = torch.cat([part(image) for image in features.split(1)])
    torch.testing.assert_close(alone, tokens)
    # without CLS one more patch is dominant, the rest is as it was
    plain = compressors.create(
        "visionzip", dim=states.shape[-1], tokens=count - 1, context=contextual / (count - 1)
    )
    torch.testing.assert_close(plain(features[..., : -states.shape[-1]]), tokens[:, 1:])


def test_visionzip_s_pictures_are_of_its_tokens():
    vectors = load_file(FOLDER / "visionzip.safetensors")
    features = torch.cat(
        [
            as_maps(vectors["states"][:, 1:]),
            as_maps(vectors["attention"][:, 1:]).unsqueeze(-1),
            as_maps(vectors["keys"][:, 1:]),
        ],
        -1,
    )
    part = compressors.create("visionzip", dim=vectors["states"].shape[-1], tokens=16, context=0)
    weights = rearrange(part.attention(features), "b h w -> b (h w)")
    assert ((weights == 0) | (weights == 1 / 16)).all()
    expected = vectors["attention"][:, 1:].topk(16).indices.sort().values
    assert torch.equal(weights.nonzero()[:, 1].view(2, 16), expected)
