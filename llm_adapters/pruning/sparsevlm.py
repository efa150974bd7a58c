"""SparseVLM (arXiv 2410.04417): only words of the question that the image is relevant to rate visual tokens,
and part of what they rate low is merged instead of lost.

    raters    question tokens whose relevance, the mean over visual tokens of softmax(H_v H_q^T), is not below
              the question's mean; by the input embeddings, once
    drop      at each layer the visual tokens that the raters attend to least
    recycle   the best share `recycle` of these becomes clusters (density peaks over nearest neighbours), one
              for `1 / cluster` of them; a cluster becomes one token, the mean, at the place of its centre

A stage's count includes its clusters, so that budgets can be compared.
"""

import torch
from torch import Tensor

from compressors.errors import UsageError
from llm_adapters.adapter import query_positions
from llm_adapters.pruning import schedule
from llm_adapters.pruning.base import Choice, Positions, Prompt, Pruner, View, register, top

DENSITY_NEIGHBOURS = (
    5  # neighbours, itself among them, that a token's density is told by; fewer in small clusters
)


@register("sparsevlm")
class SparseVLM(Pruner):
    """layers     behind how many decoder layers tokens go; None: 3, 7 and 16 of 32, as the released code
    ratio      share of the visual tokens that each leaves; 0.58: near the released 192-token setting
    average    share left on average over the layers, in the place of `ratio`
    adaptive   None, or the paper's factor: a layer drops adaptive * (tokens - rank of the raters' attention)
    recycle    share of the dropped tokens that is merged; 0: none
    cluster    clusters for each merged token
    positions  renumber, as the released code; a merged token has its cluster centre's place
    """

    def __init__(
        self,
        llm_layers: int,
        *,
        layers: tuple[int, ...] | None = None,
        ratio: float = 0.58,
        average: float | None = None,
        adaptive: float | None = None,
        recycle: float = 0.3,
        cluster: float = 0.1,
        positions: Positions = "renumber",
    ):
        schedule.check_shares(
            ratio=ratio, average=average, adaptive=adaptive, recycle=recycle, cluster=cluster
        )
        if adaptive is not None and average is not None:
            raise UsageError(
                f"sparsevlm: adaptive={adaptive} settles the counts, so average={average} "
                "cannot; set one of them"
            )
        layers = schedule.scale_layers(llm_layers, (3, 7, 16)) if layers is None else layers
        schedule.check_schedule(llm_layers, layers, None)
        shares = (
            schedule.geometric_shares(ratio, len(layers))
            if average is None
            else schedule.solve_shares(
                llm_layers, layers, average, lambda r: schedule.geometric_shares(r, len(layers))
            )
        )
        super().__init__(llm_layers, layers, None if adaptive is not None else shares, positions)
        self.adaptive, self.recycle, self.cluster = adaptive, recycle, cluster

    def raters(self, prompt: Prompt) -> Tensor:
        text = prompt.text | (prompt.last & ~prompt.text.any(1, keepdim=True))  # no question: the last token
        chosen = find_relevant_text(prompt.embeds, prompt.visual, text)
        return query_positions(chosen, chosen.shape[1] if chosen.is_meta else None)

    def choose_tokens(self, view: View) -> Choice:
        scores = view.average_attention()
        kept_counts = self.count_kept_tokens(view) if self.adaptive is None else self.count_kept_by_rank(view)
        clusters = [self.count_clusters(left - k) for left, k in zip(view.counts, kept_counts)]
        if self.adaptive is None:  # they are part of the count
            best = [max(k - c, 0) for k, c in zip(kept_counts, clusters)]
            clusters = [k - b for k, b in zip(kept_counts, best)]
        else:
            best, kept_counts = kept_counts, [k + c for k, c in zip(kept_counts, clusters)]
        choice = top(scores, view.visual, best)
        if not any(clusters):
            return choice
        merged = [max(c, int((left - b) * self.recycle)) for left, b, c in zip(view.counts, best, clusters)]
        second = top(scores, view.visual & ~choice.keep, merged).keep
        centres, into = find_density_peaks(view.hidden, second, clusters)
        return Choice(choice.keep | centres, kept_counts, into)

    def count_clusters(self, dropped: int) -> int:
        """How many clusters come of `dropped` tokens."""
        merged = int(dropped * self.recycle)
        return min(merged, int(merged * self.cluster) + 1) if merged else 0

    def count_kept_by_rank(self, view: View) -> list[int]:
        """What each row keeps by the rank of its raters' attention to its visual tokens."""
        if view.attention.is_meta:
            self.known_shares()
        seen = (view.attention * view.visual.unsqueeze(1)).float()
        ranks = torch.linalg.matrix_rank(seen).tolist()
        return [n - int(self.adaptive * max(n - rank, 0)) for n, rank in zip(view.counts, ranks)]


def find_relevant_text(embeds: Tensor, visual: Tensor, text: Tensor) -> Tensor:
    """(B, T): text tokens that visual ones are relevant to at least as much as to the mean of them."""
    products = (embeds.float() @ embeds.float().mT).masked_fill(~text.unsqueeze(1), -torch.inf)
    weights = (products.softmax(2) * visual.unsqueeze(2)).sum(1) / visual.sum(1, keepdim=True).clamp(min=1)
    mean = weights.sum(1, keepdim=True) / text.sum(1, keepdim=True).clamp(min=1)
    return text & (weights >= mean * (1 - 1e-5))  # rounding must not leave a single word below its own mean


def find_density_peaks(hidden: Tensor, chosen: Tensor, clusters: list[int]) -> tuple[Tensor, Tensor]:
    """The `chosen` (B, T) tokens of (B, T, D) as `clusters[b]` clusters each (DPC-kNN: centres are dense and
    far from what is denser). Returns the centres (B, T) and the token each token belongs to (B, T); tokens
    that are not chosen belong to themselves."""
    tokens = hidden.detach().float()
    pair = chosen.unsqueeze(1) & chosen.unsqueeze(2)
    # without the shortcut by a matrix product: two tokens must be equally far from each other, or rounding
    # decides which of two is the centre
    distance = torch.cdist(tokens, tokens, compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance / tokens.shape[-1] ** 0.5
    near = (
        distance.masked_fill(~pair, torch.inf)
        .topk(min(DENSITY_NEIGHBOURS, distance.shape[1]), largest=False)
        .values
    )
    members = chosen.sum(1) // torch.tensor(clusters, device=chosen.device).clamp(min=1)
    counted = torch.arange(near.shape[2], device=chosen.device) < members.clamp(min=2).view(-1, 1, 1)
    near = near.masked_fill(~counted | near.isinf(), 0)  # no neighbours beyond a cluster's usual size
    density = -near.square().mean(-1)  # its logarithm: far apart, exponentials would all be 0
    farthest = distance.masked_fill(~pair, 0).amax((1, 2)).view(-1, 1, 1)
    here, there = density.unsqueeze(2), density.unsqueeze(1)  # (B, T, 1), (B, 1, T)
    earlier = torch.ones_like(pair).tril(-1)  # of two that are equally dense one has to be the denser
    denser = pair & ((there > here) | (there == here) & earlier)
    gap = torch.where(denser, distance, farthest).amin(2)
    least = torch.finfo(gap.dtype).tiny  # a gap of 0 is none of -inf, the score of what is not chosen
    centres = top(gap.clamp(min=least).log() + density, chosen, clusters).keep
    places = torch.arange(chosen.shape[1], device=chosen.device).expand_as(chosen)
    home = distance.masked_fill(~centres.unsqueeze(1), torch.inf).argmin(2)
    return centres, torch.where(chosen & ~centres & centres.any(1, keepdim=True), home, places)
