"""Small steps of the composed model: placeholders to tokens, prompts to lengths, images to sizes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from compressors.base import Compressor, MaybeTensor
from compressors.errors import UsageError
from llm_adapters.kept_positions import count_positions

COUNT_ADVICE = (
    "make inputs with the model's own processor; after set_compressor or pick set processor.image_tokens = "
    "model.num_image_tokens(*processor.crop_size)"
)
# CUDA's assertions take less than 256 characters
WRONG_COUNT = f"a row has other image placeholders than its images make visual tokens; {COUNT_ADVICE}"


class Mute(LogitsProcessor):
    """Tokens that are never generated; None and those that the logits do not have are left out."""

    def __init__(self, tokens: Sequence[int | None]):
        self.tokens = tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        muted = scores.clone()
        mute_tokens(muted, self.tokens)
        return muted


def mute_tokens(logits: Tensor, tokens: Sequence[int | None]) -> None:
    """Let tokens of (..., V) logits never be said, in place; None and those beyond V are left out."""
    known = {token for token in tokens if token is not None and token < logits.shape[-1]}
    if known and max(known) - min(known) == len(known) - 1:  # neighbours, as a processor adds them
        logits.narrow(-1, min(known), len(known)).fill_(-torch.inf)
        return
    for token in known:
        logits.select(-1, token).fill_(-torch.inf)  # an assignment would make a tensor of it first


def fit_turns(turns: Tensor, length: int, is_trained: bool = False) -> Tensor:
    """`turns` of a prompt for `length` tokens: while decoding without a cache the ids grow, and `turns` stay
    those of the prompt. UsageError for `turns` of more tokens, and of fewer while the model is trained."""
    if is_trained and turns.shape[1] < length:
        raise UsageError(
            f"`turns` has {turns.shape[1]} tokens and `input_ids` {length}: a question and its answer are "
            "made to inputs together; give whole conversations (TRL: `messages`, not `prompt`, `completion`)"
        )
    if turns.shape[1] > length:  # what a reused cache leaves, or a prefill in chunks
        raise UsageError(
            f"`turns` has {turns.shape[1]} tokens and `input_ids` {length}: images and "
            "questions need the whole prompt at once, without a cache"
        )
    return nn.functional.pad(turns, (0, length - turns.shape[1]))


def shrink_pixels(pixels: Tensor, rate: int) -> Tensor:
    """(B, 3, h, w) resized to (h // rate, w // rate) with anti-aliasing."""
    if rate == 1:
        return pixels
    size = (pixels.shape[-2] // rate, pixels.shape[-1] // rate)
    exact = pixels
    if pixels.device.type == "cpu":  # which cannot do it in half precision
        exact = pixels.float()
    shrunk = nn.functional.interpolate(exact, size, mode="bicubic", antialias=True)
    return shrunk.to(pixels.dtype)


def clear_fill(features: Tensor, image_turn: Tensor) -> Tensor:
    """Features (B, I, H, W, C) with zeros where `image_turn` (B, I) is 0: what fills rows with fewer images
    reaches nothing, not even as NaN * 0."""
    return features.masked_fill((image_turn == 0)[:, :, None, None, None], 0)


def place_visual_tokens(embeds: Tensor, where: Tensor, tokens: Tensor) -> Tensor:
    """`tokens` (Q, D) cyclically at the True positions of each row: slots are runs of exactly Q positions."""
    order = (where.cumsum(1) - 1).clamp(min=0) % len(tokens)
    # embedding(), not tokens[order]: its gradient adds up in the same order in every run
    return torch.where(where.unsqueeze(-1), nn.functional.embedding(order, tokens), embeds)


def hide_unused(attention_mask: Tensor | None, is_image: Tensor, count: int, visible: int) -> Tensor | None:
    """The attention mask (B, T) without the visual tokens that a compressor, trained at several counts, does
    not fill in this step: `visible` of `count` of each image."""
    if visible == count:
        return attention_mask
    unused = is_image & ((is_image.cumsum(1) - 1) % count >= visible)
    if attention_mask is None:
        attention_mask = torch.ones_like(unused, dtype=torch.long)
    return attention_mask.masked_fill(unused, 0)


def compress_with_presence(
    compressor: Compressor, features: Tensor, text: MaybeTensor, text_mask: MaybeTensor
) -> tuple[Tensor, Tensor]:
    """The tokens (B, N, C) of a compressor that varies, and which of them there are (B, N)."""
    tokens: Tensor
    if compressor.is_subset:  # whose forward takes a choice that is made
        kept = compressor.kept(features, text, text_mask)
        assert kept is not None  # all of these define it
        tokens = compressor(features, text, text_mask, kept=kept)
        return tokens, kept >= 0
    tokens = compressor(features, text, text_mask)
    is_there = compressor.present(features, text, text_mask)
    if is_there is None:
        raise UsageError(f"{type(compressor).__name__} varies, but does not tell which tokens are `present`")
    return tokens, is_there


def hide_absent(attention_mask: Tensor | None, is_absent: Tensor) -> Tensor | None:
    """The mask of tokens (B, T) without those that an image does not have. One that was made before, of pairs
    of tokens, stays: `generate` has hidden them."""
    if attention_mask is None:
        attention_mask = torch.ones_like(is_absent, dtype=torch.long)
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2:
        return attention_mask
    absent = nn.functional.pad(is_absent, (attention_mask.shape[1] - is_absent.shape[1], 0))
    return attention_mask.masked_fill(absent, 0)


def hide_visual_tokens(
    attention_mask: Tensor | None, position_ids: Tensor | None, is_image: Tensor, hidden_visual: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The mask (B, T) without the visual tokens at `is_image` of the rows (B,), or places (B, T), of
    `hidden_visual`, which no token behind them reads then, and the positions of all tokens."""
    if attention_mask is None:
        attention_mask = torch.ones_like(is_image, dtype=torch.long)
    if position_ids is None:
        # Counted before anything is hidden, as if the visual tokens were there: the text stands where it
        # will stand when they come back, so the LLM need not learn its distances twice.
        position_ids = count_positions(attention_mask)
    if hidden_visual.dim() == 1:
        hidden_visual = hidden_visual.unsqueeze(1)
    return attention_mask.masked_fill(is_image & hidden_visual, 0), position_ids


def check_count(
    is_image: Tensor, per_image: int, image_turn: Tensor | None, is_training: bool = False
) -> None:
    """UsageError for a row whose placeholders are not as many as its images' tokens. A step of training on a
    GPU, which is not to wait for the counts, has an assertion of the device in its place: a RuntimeError, as
    soon as anything is read."""
    if torch.compiler.is_compiling() or is_image.is_meta:
        return
    device = is_image.device
    is_decoding = image_turn is None and is_image.shape[1] == 1
    if is_decoding and device.type != "cpu":
        return  # it would take as long as several layers for a single word
    placeholders = is_image.sum(1)
    tokens = torch.zeros_like(placeholders)
    if image_turn is not None:
        tokens = (image_turn > 0).sum(1) * per_image
    if not can_wait(device, is_training):
        if device.type == "cuda":  # others may have no such assertion
            torch._assert_async((placeholders == tokens).all(), WRONG_COUNT)
        return
    if not torch.equal(placeholders, tokens):
        row = int((placeholders != tokens).nonzero()[0])
        raise UsageError(
            f"row {row} has {int(placeholders[row])} image placeholders but its images make "
            f"{int(tokens[row])} visual tokens; {COUNT_ADVICE}"
        )


def can_wait(device: torch.device, is_training: bool) -> bool:
    """Whether a value of a device may be waited for. Of a GPU: for an answer, as transformers waits for it
    too when it makes the mask, but not in a step of training, nor while a CUDA graph is recorded."""
    if device.type == "cpu":
        return True
    if is_training and torch.is_grad_enabled():
        return False
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def check_one_text(position_ids: Tensor) -> None:
    """UsageError for positions (B, T) that begin again in a row: an LLM that gets no mask keeps such texts
    apart, and what reads questions or images by their row would not. transformers waits for them as well."""
    if torch.compiler.is_compiling() or position_ids.is_meta:
        return
    if not can_wait(position_ids.device, is_training=False):
        return
    if (position_ids.diff() < 0).any():
        raise UsageError(
            "`position_ids` begin again within a row, as of packed texts: questions and images are read by "
            "rows; give one conversation a row (without packing or padding-free batches)"
        )


def check_image_turns(features: Tensor, image_turn: Tensor) -> None:
    """UsageError for features (B, I, H, W, C) of other images than `image_turn` (B, I) tells of."""
    if features.shape[:2] != image_turn.shape:
        raise UsageError(
            f"images of {tuple(features.shape[:2])} (rows, crops) but `image_turn` of "
            f"{tuple(image_turn.shape)}; make inputs with the model's own processor"
        )
