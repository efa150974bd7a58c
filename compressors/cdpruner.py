"""CDPruner, arXiv 2506.10967 (repository Theia-4869/CDPruner), conditional diversity: training-free.

Patches are chosen one at a time by a determinantal point process: the one whose projection, times its
relevance to the question, is worst explained by those chosen so far.

    relevance of i   minus its cosine with the question in the space that tower and text encoder share, scaled
                     over an image's patches to (0, 1]. The minus is the released code's: single patches of
                     CLIP are least like the texts that they are about
    kernel           relevance of i x cosine of i and j behind the projector x relevance of j

    H*W -> the tokens of `rate` x `rate` windows, in raster order        576 -> 64

The released code scales over a whole batch and divides by zero once no patch is left that others do not
explain; here it is each image by itself, and such places go to the most relevant patches. Without a question
all patches are as relevant.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from compressors.base import MaybeTensor, register
from compressors.relevance import compare_with_text, find_texts, split_joint
from compressors.selection import SubsetCompressor, choose_in_float32

LEAST_RELEVANCE = 1e-6
# of its own share of the kernel: below it float32 cannot tell what is left of a patch from nothing
LEAST_REMAINDER = 1e-5


def scale_relevance(scores: Tensor) -> Tensor:
    """Scores (B, N) to (0, 1], each row by itself; 1 everywhere in a row of equal ones."""
    least = scores.amin(-1, keepdim=True)
    spread = scores.amax(-1, keepdim=True) - least
    return (scores - least + LEAST_RELEVANCE) / spread.clamp(min=LEAST_RELEVANCE)


@choose_in_float32
def choose_by_determinant(tokens: Tensor, relevance: Tensor, count: int) -> Tensor:
    """Indices (B, count), ascending, of the greedy MAP of a determinantal point process over (B, N, D), whose
    kernel is weighted by relevance (B, N). Ties: the first one."""
    unit = F.normalize(tokens, dim=-1) * relevance.unsqueeze(-1)
    kernel = unit @ unit.mT  # (B, N, N)
    rows = torch.arange(len(tokens), device=tokens.device)
    whole = kernel.diagonal(dim1=1, dim2=2)
    remainder = whole.clone()  # (B, N): what those chosen do not explain
    is_chosen = torch.zeros_like(remainder, dtype=torch.bool)
    directions = kernel.new_zeros(len(tokens), count, tokens.shape[1])
    chosen = []
    for step in range(count):
        is_spent = remainder <= LEAST_REMAINDER * whole
        # below all that is left of others; relevance is at most about 1
        gain = torch.where(is_spent, relevance - 2, remainder)
        best = gain.masked_fill(is_chosen, -torch.inf).argmax(-1)  # (B,)
        explained = torch.einsum("bt,btn->bn", directions[rows, :, best], directions)
        length = remainder[rows, best].clamp(min=torch.finfo(remainder.dtype).tiny).sqrt()
        direction = (kernel[rows, best] - explained) / length.unsqueeze(-1)
        direction = direction.masked_fill(is_spent[rows, best].unsqueeze(-1), 0)
        directions[:, step] = direction
        remainder = remainder - direction.square()
        is_chosen = is_chosen.scatter(1, best[:, None], True)
        chosen.append(best)
    return torch.stack(chosen, 1).sort(-1).values


@register("cdpruner")
class CDPruner(SubsetCompressor):
    """As many patches as `rate` x `rate` windows or `tokens`, relevant to the question and unlike each
    other."""

    needs_projected = True
    needs_cues = ("joint",)

    def kept(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        _, joint, projected = split_joint(features, self.out_dim, text, "cdpruner")
        assert text is not None  # it would have been refused
        is_text = find_texts(text, text_mask)
        relevance = scale_relevance(-compare_with_text(joint, text, is_text))
        return choose_by_determinant(projected, relevance, self.num_tokens(*features.shape[1:3]))
