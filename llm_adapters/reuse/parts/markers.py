"""What the ids of a prompt say: turns, questions, and which images a query token may read."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from compressors.errors import UsageError
from llm_adapters.adapter import QueryContext, make_query_masks, mask_images, query_positions
from llm_adapters.reuse.wrapping import count_beams, locate_units
from llm_adapters.visual_prompt import place_visual_tokens


@dataclass
class EncodedImages:
    """Encoded images: of each unit its patches (P, C) and how many placeholders it fills. A unit is a crop,
    or an image whose crops are one picture."""

    patches: list[Tensor]
    counts: list[int]


class Markers(nn.Module):
    """Ids of `<question>` and `<query>`. The first has a learned embedding, (D,), which starts as a line
    break's: chats have one there anyway."""

    def __init__(self, question_id: int, query_id: int, embedding: Tensor):
        super().__init__()
        self.question_id = question_id
        self.query_id = query_id
        self.question = nn.Parameter(embedding.detach().clone())

    @property
    def last_id(self) -> int:
        """The larger one of the two."""
        return max(self.question_id, self.query_id)

    def find_markers(self, ids: Tensor) -> Tensor:
        """Where the markers are among ids of any shape."""
        return (ids == self.question_id) | (ids == self.query_id)

    def place_embeddings(self, ids: Tensor, embeds: Tensor, query_tokens: Tensor) -> Tensor:
        """Embeddings (B, T, D) of ids (B, T) with the learned ones at the markers: `query_tokens` (Q, D) at
        each run of Q `<query>`."""
        is_question = (ids == self.question_id).unsqueeze(-1)
        embeds = torch.where(is_question, self.question.to(embeds), embeds)
        return place_visual_tokens(embeds, ids == self.query_id, query_tokens.to(embeds))

    def find_turns(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) -> each token's turn, from 1, and whether it stands in that turn's question. What comes
        before a turn's `<question>`, such as an image, counts as that turn's."""
        begun_turns = (ids == self.question_id).cumsum(1)
        is_query = ids == self.query_id
        is_query_before = nn.functional.pad(is_query, (1, 0))[:, :-1]
        # a turn's question ends at the first of its query tokens
        ended_turns = (is_query & ~is_query_before).cumsum(1)
        is_asking = (begun_turns > ended_turns) & (ids != self.question_id)
        turns = torch.where(is_asking | is_query, begun_turns, begun_turns + 1)
        return turns, is_asking

    def build_context(
        self, ids: Tensor, is_image: Tensor, images: EncodedImages | None
    ) -> QueryContext | None:
        """What a query module reads; None where no query token is. UsageError for ids (B, T) without the
        images that belong to their placeholders `is_image` (B, T)."""
        index = query_positions(ids == self.query_id)
        if not index.shape[1] or not is_image.any():
            return None
        if images is None:  # generate has cut the tokens, but not the patches
            raise UsageError("a query module needs the whole prompt at once; leave out prefill_chunk_size")
        turns, is_asking = self.find_turns(ids)
        beams = count_beams(is_image, sum(images.counts))
        features, patch_turn = group_by_row(images, is_image[::beams], turns[::beams])
        features = features.repeat_interleave(beams, 0)
        patch_turn = patch_turn.repeat_interleave(beams, 0)
        query_turn = turns.gather(1, index.clamp(min=0))
        question_turn = turns * (is_asking & ~is_image)  # 0, no turn, outside of questions
        question_mask, patch_mask = make_query_masks(index, question_turn, query_turn, patch_turn)
        visual_mask = mask_images(index, turns * is_image, query_turn)
        return QueryContext(index, question_mask, features, patch_mask, visual_mask=visual_mask)


def group_by_row(images: EncodedImages, is_image: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    """Patches (B, P, C) and their turns (B, P), zeros where a row has fewer."""
    no_patches = images.patches[0][:0]  # a row without images still has a tensor of the right type
    features: list[list[Tensor]] = [[no_patches] for _ in turns]
    patch_turn: list[list[Tensor]] = [[turns[0, :0]] for _ in turns]
    for (row, column), patches in zip(locate_units(is_image, images.counts), images.patches):
        features[row].append(patches)
        patch_turn[row].append(turns[row, column].expand(len(patches)))
    row_features = [torch.cat(row) for row in features]
    row_turns = [torch.cat(row) for row in patch_turn]
    return pad_sequence(row_features, batch_first=True), pad_sequence(row_turns, batch_first=True)
