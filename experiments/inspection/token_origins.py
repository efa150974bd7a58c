"""Where a compressor's tokens come from: how much each token changes with each patch."""

import torch
from torch import Tensor

from compressors import Compressor

PROBE_DIRECTIONS = 8  # random directions in which a token is looked at


def estimate_origins(
    part: Compressor, features: Tensor, *text: Tensor, probes: int = PROBE_DIRECTIONS
) -> Tensor:
    """Each token's share of every patch, (N, H, W), a token's sum 1, for one image (1, H, W, C).

    The size of a token's gradient with respect to a patch, estimated in `probes` random directions. For a
    method that takes weighted sums of patches these are its weights, whatever the directions. What a token
    owes to the choice of patches, rather than to what they are, has no gradient. `text`: as for `forward`.
    """
    count = part.num_tokens(*features.shape[1:3])
    # each token has an image of its own, so that one backward pass tells all of them apart
    copies = features.detach().repeat(count, 1, 1, 1).requires_grad_()
    with torch.enable_grad():
        repeated_text = [embeddings.repeat_interleave(count, 0) for embeddings in text]
        tokens = part(copies, *repeated_text)  # (N images, N, D)
        token_of_image = tokens.diagonal().mT  # (N, D), token i of image i
    # a generator of its own: a picture does not depend on what was drawn before it
    generator = torch.Generator().manual_seed(0)
    squares = torch.zeros(copies.shape[:3])
    for _ in range(probes):
        direction = torch.randn(token_of_image.shape, generator=generator)
        projection = (token_of_image * direction).sum()
        (gradient,) = torch.autograd.grad(projection, copies, retain_graph=True)  # (N, H, W, C)
        squares += gradient.square().sum(-1)
    sizes = squares.sqrt()
    return sizes / sizes.sum((1, 2), keepdim=True)
