"""VisionSelector, arXiv 2510.16598 (repository JulietChoo/VisionSelector): a learned choice of patches.

    score of i = query(i) . mean over j of key(j) / sqrt(width)

Those with the largest scores are the tokens, as they are. In training the choice is softened: a patch weighs
p = sigmoid(score + t), with the t at which the weights of an image sum to its count of tokens.

    H*W -> the tokens of `rate` x `rate` windows, in raster order        729 -> 81 at rate = 3

The released code trains the scorer alone, with all patches before a frozen LLM, each times its p, and a loss
that draws p to the hard choice, of growing weight. Here training has as many tokens as evaluation: what is
not chosen joins, times its p, the chosen patch that is most like it, so that every score has a gradient; and
the weights themselves go from p to the hard choice, linearly, in the first `anneal` steps of training. From
then on the scorer has no gradient. Both stages count: 1000 steps are used up in stage 1, which has 3000 at
preset tiny and 2180 with LLaVA's 558k captions, and stage 2 trains the scorer only where `anneal` is larger.
In the released code the scorer reads merged patches, at the LLM's width; here those of the tower, before the
projector.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from compressors.base import MaybeTensor, register
from compressors.checks import check_at_least
from compressors.grid import GridPolicy
from compressors.selection import SubsetCompressor, choose_in_float32, choose_largest, without_autocast

STD = 0.02  # the released code's 0.0001 is less than half precision tells from zero
BISECTIONS = 40  # more than float32 has digits
MARGIN = 10.0  # beyond which a sigmoid is 0 or 1


def soften_choice(scores: Tensor, count: int) -> Tensor:
    """Weights (B, N) in (0, 1) of scores (B, N) that sum to `count`: a differentiable top-k. With v the
    sigmoid's slopes the gradient of a loss g is v * (g - (g . v) / sum v)."""
    with torch.no_grad():
        low = -scores.amax(1, keepdim=True) - MARGIN
        high = -scores.amin(1, keepdim=True) + MARGIN
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            is_low = (scores + middle).sigmoid().sum(1, keepdim=True) < count
            low = torch.where(is_low, middle, low)
            high = torch.where(is_low, high, middle)
        shift = (low + high) / 2
        slope = torch.sigmoid(scores + shift)
        slope = (slope * (1 - slope)).sum(1, keepdim=True)
    # one step of Newton's method, which moves nothing but has the gradient of the exact shift. Scores far
    # apart are all at the sigmoid's ends, where nothing has a slope, nor a gradient
    total = (scores + shift).sigmoid().sum(1, keepdim=True)
    step = (total - total.detach()) / slope.clamp(min=torch.finfo(slope.dtype).tiny)
    return (scores + shift - step).sigmoid()


@choose_in_float32
def assign_to_chosen(patches: Tensor, chosen: Tensor) -> Tensor:
    """Which of the chosen (B, K) each of the patches (B, N, C) is most like, itself for a chosen one: places
    among them (B, N)."""
    unit = F.normalize(patches, dim=-1)
    similarity = torch.take_along_dim(unit, chosen.unsqueeze(-1), 1) @ unit.mT  # (B, K, N)
    return similarity.scatter(2, chosen.unsqueeze(-1), torch.inf).argmax(1)


@register("visionselector")
class VisionSelector(SubsetCompressor):
    """As many patches as `rate` x `rate` windows or `tokens`, by scores of queries and keys of `width`;
    `anneal` steps of training, those of all stages together, until their choice is hard and the scorer learns
    nothing more (0: from the start)."""

    steps: Tensor

    def __init__(
        self,
        dim: int,
        *,
        rate: int = 3,
        tokens: int | float | None = None,
        width: int = 1792,
        anneal: int = 1000,
        grid_policy: GridPolicy = "error",
    ):
        super().__init__(dim, rate=rate, tokens=tokens, grid_policy=grid_policy)
        check_at_least(1, width=width)
        check_at_least(0, anneal=anneal)
        self.width = width
        self.anneal = anneal
        self.query = nn.Linear(dim, width)
        self.key = nn.Linear(dim, width)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))  # begun, in all of its training
        self.counts_itself = True  # until a trainer does
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.query, self.key):
            nn.init.normal_(linear.weight, std=STD)
            nn.init.zeros_(linear.bias)

    def begin_step(self) -> None:
        self.counts_itself = False
        if self.training:  # where it is frozen there is nothing to anneal
            self.steps += 1

    def score_patches(self, patches: Tensor) -> Tensor:
        """(B, N, C) -> (B, N), in float32: close scores would tie in half precision. The layers are read by
        their weights, so that LoRA of PEFT on them does nothing: train them whole (`modules_to_save`)."""
        with without_autocast(patches.device.type):
            patches = patches.float()
            mean = patches.mean(1)  # keys are linear: the mean key is the key of the mean patch
            key = F.linear(mean, self.key.weight.float(), self.key.bias.float())
            query = F.linear(patches, self.query.weight.float(), self.query.bias.float())
            return (query @ key.unsqueeze(-1)).squeeze(-1) * self.width**-0.5

    def kept(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        scores = self.score_patches(rearrange(features, "b h w c -> b (h w) c"))
        return choose_largest(scores, self.num_tokens(*features.shape[1:3]))

    def forward(
        self,
        features: Tensor,
        text: MaybeTensor = None,
        text_mask: MaybeTensor = None,
        kept: MaybeTensor = None,
    ) -> Tensor:
        if not self.training or not self.anneal:
            return super().forward(features, text, text_mask, kept)
        patches = rearrange(features, "b h w c -> b (h w) c")
        count = self.num_tokens(*features.shape[1:3])
        scores = self.score_patches(patches)
        chosen = choose_largest(scores, count) if kept is None else kept
        is_chosen = torch.zeros_like(scores).scatter(1, chosen, 1)
        if self.counts_itself:
            self.steps += 1
        # a tensor: nothing is read from the device
        softness = (1 - (self.steps - 1) / self.anneal).clamp(0, 1)
        weights = is_chosen + softness * (soften_choice(scores, count) - is_chosen)  # (B, N)
        cells = F.one_hot(assign_to_chosen(patches, chosen), count).mT  # (B, K, N)
        shares = (cells * weights.unsqueeze(1)).to(patches.dtype)
        return shares @ patches
