"""SparseVLM (arXiv 2410.04417): only words of the question that the image is relevant to rate visual tokens,
and part of what they rate low is merged instead of lost.

    raters    question tokens whose relevance, the mean over visual tokens of softmax(H_v H_q^T), is not below
              the question's mean; by the input embeddings, once. Only those behind the last visual token,
              which alone attend to all of them; where there are none, the last token of the prompt
    drop      at each layer the visual tokens that the raters attend to least
    recycle   the best share `recycle` of these becomes clusters (density peaks over nearest neighbours), one
              for `1 / cluster` of them; a cluster becomes one token, the mean, at the place of its centre

A stage's count includes its clusters, so that budgets can be compared.
"""

import torch
from torch import Tensor

from compressors.errors import UsageError
from compressors.selection import choose_in_float32
from llm_adapters.adapter import query_positions
from llm_adapters.pruning import schedule
from llm_adapters.pruning.base import Choice, Positions, Prompt, Pruner, View, keep_highest, register

# neighbours, itself among them, that a token's density is told by; fewer in small clusters
DENSITY_NEIGHBOURS = 5
ROUNDING = 1e-5  # relative: how far below the mean a word may be and still count as not below it


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
        if layers is None:
            layers = schedule.scale_layers(llm_layers, (3, 7, 16))
        shares: tuple[float, ...] | None = schedule.find_shares(llm_layers, layers, ratio, average)
        if adaptive is not None:  # the attention of each image and question settles the counts
            shares = None
        super().__init__(llm_layers, layers, shares, positions)
        self.adaptive = adaptive
        self.recycle = recycle
        self.cluster = cluster

    def select_raters(self, prompt: Prompt) -> Tensor:
        """(B, S): the relevant words of the question behind the last visual token, without any there what
        answers start from."""
        relevant = find_relevant_text(prompt.embeds, prompt.visual, prompt.mark_last_question())
        if relevant.is_meta:  # how many there are cannot be read: room for all
            return query_positions(relevant, relevant.shape[1])
        return query_positions(relevant)

    def choose_tokens(self, view: View) -> Choice:
        """The tokens that receive most attention, and the centres of clusters that some others become."""
        scores = view.average_attention()
        best, clusters = self.plan_counts(view)
        choice = keep_highest(scores, view.visual, best)
        if not any(clusters):
            return choice
        merged = []
        for count, best_count, cluster_count in zip(view.counts, best, clusters):
            dropped = count - best_count
            merged.append(max(cluster_count, int(dropped * self.recycle)))
        second_best = keep_highest(scores, view.visual & ~choice.keep, merged).keep
        centres, into = find_density_peaks(view.hidden, second_best, clusters)
        kept_counts = [best_count + cluster_count for best_count, cluster_count in zip(best, clusters)]
        return Choice(choice.keep | centres, kept_counts, into)

    def plan_counts(self, view: View) -> tuple[list[int], list[int]]:
        """How many of its best tokens each row keeps, and how many clusters it makes of others."""
        if self.adaptive is not None:
            # clusters come on top of the count: how many tokens matter is known, not how many there may be
            best = self.count_kept_by_rank(view, self.adaptive)
            clusters = []
            for count, best_count in zip(view.counts, best):
                clusters.append(self.count_clusters(count - best_count))
            return best, clusters
        best = []
        clusters = []
        for count, kept_count in zip(view.counts, self.count_kept_tokens(view)):
            # clusters are part of the count; a small one may be clusters only
            best_count = max(kept_count - self.count_clusters(count - kept_count), 0)
            best.append(best_count)
            clusters.append(kept_count - best_count)
        return best, clusters

    def count_clusters(self, dropped: int) -> int:
        """How many clusters come of `dropped` tokens."""
        merged = int(dropped * self.recycle)
        if not merged:
            return 0
        return min(merged, int(merged * self.cluster) + 1)

    def count_kept_by_rank(self, view: View, adaptive: float) -> list[int]:
        """What each row keeps by the rank of its raters' attention to its visual tokens. UsageError on the
        meta device, where there is no attention."""
        if view.attention.is_meta:
            self.known_shares()
        visual_attention = (view.attention * view.visual.unsqueeze(1)).float()  # (B, S, T)
        ranks = torch.linalg.matrix_rank(visual_attention).tolist()
        kept_counts = []
        for count, rank in zip(view.counts, ranks):
            redundant = max(count - rank, 0)
            kept_counts.append(count - int(adaptive * redundant))
        return kept_counts


@choose_in_float32
def find_relevant_text(embeds: Tensor, visual: Tensor, text: Tensor) -> Tensor:
    """(B, T): text tokens that visual ones are relevant to at least as much as to the mean of them.

    embeds (B, T, D); visual and text (B, T) say which tokens are which."""
    products = embeds @ embeds.mT  # (B, T, T)
    products = products.masked_fill(~text.unsqueeze(1), -torch.inf)
    relevance = products.softmax(2) * visual.unsqueeze(2)  # of each text token to each visual one
    visual_count = visual.sum(1, keepdim=True).clamp(min=1)
    text_count = text.sum(1, keepdim=True).clamp(min=1)
    weights = relevance.sum(1) / visual_count  # (B, T)
    mean = weights.sum(1, keepdim=True) / text_count
    return text & (weights >= mean * (1 - ROUNDING))  # a single word must not be below its own mean


def find_density_peaks(hidden: Tensor, chosen: Tensor, clusters: list[int]) -> tuple[Tensor, Tensor]:
    """The `chosen` (B, T) tokens of (B, T, D) as `clusters[b]` clusters each (DPC-kNN: centres are dense and
    far from what is denser). Returns the centres (B, T) and the token each token belongs to (B, T); tokens
    that are not chosen belong to themselves."""
    tokens = hidden.detach().float()
    is_pair = chosen.unsqueeze(1) & chosen.unsqueeze(2)  # (B, T, T)
    # without the shortcut by a matrix product: two tokens must be equally far from each other, or rounding
    # decides which of two is the centre
    distance = torch.cdist(tokens, tokens, compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance / tokens.shape[-1] ** 0.5
    density = estimate_density(distance, is_pair, chosen, clusters)
    farthest = distance.masked_fill(~is_pair, 0).amax((1, 2))
    farthest = farthest.view(-1, 1, 1)
    own_density = density.unsqueeze(2)  # (B, T, 1)
    pair_density = density.unsqueeze(1)  # (B, 1, T)
    # of two that are equally dense one has to be the denser: the earlier one
    is_earlier = torch.ones_like(is_pair).tril(-1)
    is_denser = pair_density > own_density
    is_denser = is_denser | ((pair_density == own_density) & is_earlier)
    is_denser = is_pair & is_denser
    gap = torch.where(is_denser, distance, farthest).amin(2)  # to the nearest denser one
    # a gap of 0 is none of -inf, the score of what is not chosen
    least = torch.finfo(gap.dtype).tiny
    peak_scores = gap.clamp(min=least).log() + density
    centres = keep_highest(peak_scores, chosen, clusters).keep
    to_centres = distance.masked_fill(~centres.unsqueeze(1), torch.inf)
    nearest_centre = to_centres.argmin(2)
    is_merged = chosen & ~centres & centres.any(1, keepdim=True)
    itself = torch.arange(chosen.shape[1], device=chosen.device)
    itself = itself.expand_as(chosen)
    return centres, torch.where(is_merged, nearest_centre, itself)


def estimate_density(distance: Tensor, is_pair: Tensor, chosen: Tensor, clusters: list[int]) -> Tensor:
    """(B, T): the logarithm of the density at each chosen token, by its nearest neighbours. The logarithm,
    because exponentials of tokens that are far apart would all be 0.

    distance (B, T, T); is_pair (B, T, T): both tokens are chosen; chosen (B, T)"""
    neighbours = min(DENSITY_NEIGHBOURS, distance.shape[1])
    pair_distance = distance.masked_fill(~is_pair, torch.inf)
    near = pair_distance.topk(neighbours, largest=False).values  # (B, T, k)
    cluster_counts = torch.tensor(clusters, device=chosen.device).clamp(min=1)
    cluster_sizes = chosen.sum(1) // cluster_counts
    cluster_sizes = cluster_sizes.clamp(min=2).view(-1, 1, 1)
    # no neighbours beyond a cluster's usual size
    rank = torch.arange(near.shape[2], device=chosen.device)
    is_counted = rank < cluster_sizes
    near = near.masked_fill(~is_counted | near.isinf(), 0)
    return -near.square().mean(-1)
