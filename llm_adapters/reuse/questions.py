"""The question that each image stands with, for compressors that compare patches with it by a text encoder.

The ids of a prompt are all that comes through every collator, trainer and harness, so the words are read from
them: those between what the chat template has before and behind a question. Where a prompt has other words
around its questions, all of its text is taken.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from os.path import commonprefix
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from compressors.base import Compressor
from compressors.errors import UsageError
from connectors.towers.build_text import load_text_encoder
from connectors.towers.text import TextEncoder
from connectors.towers.text_tokenizer import TextTokenizer, load_text_tokenizer
from llm_adapters.reuse.families import ModelFamily
from llm_adapters.reuse.wrapping import bind_arguments, split_placeholders

FIRST, ANSWER, SECOND = "Firstquestion", "Firstanswer", "Secondquestion"
IMAGE_SIGN = "\0"  # which is in no text that a tokenizer takes


class TurnWords(NamedTuple):
    """What a chat template has before a question, and behind it; nothing where there is no template."""

    opening: str = ""
    closing: str = ""


def read_turn_words(processor: ProcessorMixin) -> TurnWords:
    """Those of a processor's chat template."""
    if not getattr(processor, "chat_template", None):
        return TurnWords()
    messages: list[Any] = []
    for role, text in (("user", FIRST), ("assistant", ANSWER), ("user", SECOND)):
        messages.append({"role": role, "content": [{"type": "text", "text": text}]})
    rendered = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    before, _, rest = str(rendered).partition(FIRST)
    closing, _, rest = rest.partition(ANSWER)
    between, _, _ = rest.partition(SECOND)
    backwards = commonprefix([before.rstrip()[::-1], between.rstrip()[::-1]])
    return TurnWords(backwards[::-1].strip(), closing.strip())


def cut_question(text: str, place: int, words: TurnWords) -> str | None:
    """The question of the turn in which the image at `place` of a text stands; None where there are not these
    words around it."""
    if not words.opening or not words.closing:
        return None
    start = text.rfind(words.opening, 0, place)
    end = text.find(words.closing, place)
    if start < 0 or end < 0:
        return None
    return text[start + len(words.opening) : end]


class QuestionReader:
    """Text encoder and tokenizers for the questions of a model; no part of its weights.

    tokenizer   the LLM's, of the processor
    words       around questions
    """

    def __init__(
        self,
        encoder: TextEncoder,
        text_tokenizer: TextTokenizer,
        processor: ProcessorMixin,
        config: Any,
    ):
        self.encoder = encoder
        self.text_tokenizer = text_tokenizer
        self.tokenizer: Any = getattr(processor, "tokenizer")  # noqa: B009  their base class has none
        self.words = read_turn_words(processor)
        self.config = config
        self._ids: Tensor | None = None  # of the prompt whose images are encoded
        self._told = False  # that a prompt has other words
        self._types: Tensor | None = None  # its `mm_token_type_ids`

    @contextmanager
    def note_prompt(self, ids: Tensor | None, types: Tensor | None) -> Iterator[None]:
        """While it is open, images that are encoded are those of this prompt (B, T)."""
        before = self._ids, self._types
        self._ids, self._types = ids, types
        try:
            yield
        finally:
            self._ids, self._types = before

    def encode_noting_prompt(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The method by which `generate` encodes images before its forward passes (transformers 5.18)."""
        arguments = bind_arguments(original, args, kwargs)
        model_kwargs = arguments["model_kwargs"]
        ids = model_kwargs.get("input_ids")
        if arguments.get("model_input_name") == "input_ids":
            ids = arguments["inputs_tensor"]
        with self.note_prompt(ids, model_kwargs.get("mm_token_type_ids")):
            return original(*args, **kwargs)

    def list_questions(self, counts: Sequence[int], of_videos: bool = False) -> list[str]:
        """Of images, or videos, that have so many placeholders each, in their order in the prompt. UsageError
        where the prompt is not there, or has other placeholders."""
        ids = self._ids
        if ids is None:
            raise UsageError(
                "the compressor compares patches with the question, and images came without its ids; give "
                "input_ids together with pixel_values"
            )
        is_image, is_video = split_placeholders(ids, self.config, self._types)
        is_visual = is_image | is_video
        word, is_placeholder = ("video", is_video) if of_videos else ("image", is_image)
        if int(is_placeholder.sum()) != sum(counts):
            raise UsageError(
                f"the text has {int(is_placeholder.sum())} {word} placeholders but its {word}s make "
                f"{sum(counts)} visual tokens; make inputs with the processor that was given to `attach`"
            )
        firsts = list(accumulate(counts[:-1], initial=0))
        places = is_placeholder.nonzero()[firsts].tolist()
        questions = []
        for row, column in places:
            text, place = self._write_row(ids[row], is_visual[row], column)
            question = cut_question(text, place, self.words)
            if question is None:
                self._warn_of_other_words()
                question = text
            questions.append(self._strip_signs(question))
        return questions

    def _warn_of_other_words(self) -> None:
        """A warning, once, where a prompt is not as the chat template makes it."""
        if self._told:
            return
        self._told = True
        warnings.warn(
            "a prompt does not have the words of its chat template around a question: all of its text is "
            "compared with the patches; make prompts with processor.apply_chat_template",
            stacklevel=2,
        )

    def _write_row(self, ids: Tensor, is_visual: Tensor, column: int) -> tuple[str, int]:
        """The text of a row (T,) without its placeholders, and where in it the image at `column` stands."""
        before = self.tokenizer.decode(ids[:column][~is_visual[:column]], skip_special_tokens=False)
        behind = self.tokenizer.decode(ids[column:][~is_visual[column:]], skip_special_tokens=False)
        return before + IMAGE_SIGN + behind, len(before)

    def _strip_signs(self, text: str) -> str:
        """A text without special tokens and the sign of its image."""
        for sign in (IMAGE_SIGN, *self.tokenizer.all_special_tokens):
            text = text.replace(sign, " ")
        return " ".join(text.split())

    def embed_questions(
        self, counts: Sequence[int], like: Tensor, of_videos: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The questions of images, or videos, with so many placeholders each, (n, 1, E), where and in the
        type that `like` is; and which of them have words, (n, 1)."""
        texts = self.list_questions(counts, of_videos)
        ids = self.text_tokenizer(texts).to(like.device)
        embedded = self.encoder.to(like.device, like.dtype).encode_text(ids)
        has_words = torch.tensor([bool(text) for text in texts], device=like.device)
        return embedded.unsqueeze(1), has_words.unsqueeze(1)

    def add_joint(self, features: Tensor, dim: int) -> Tensor:
        """Features (n, H, W, C...) with the patches in the space of the text behind them."""
        encoder = self.encoder.to(features.device, features.dtype)
        return torch.cat([features, encoder.project_patches(features[..., :dim]).to(features.dtype)], -1)


def make_question_reader(
    family: ModelFamily,
    base: PreTrainedModel,
    processor: ProcessorMixin,
    part: Compressor,
    name: str,
    source: str | Path | None,
) -> QuestionReader | None:
    """For the compressor `part` of that name; None for one that needs none. `source`: the checkpoint that the
    model's tower is from. UsageError where it is not given, has no text encoder or another width; and for a
    source that nothing reads."""
    if not part.needs_tower_text:
        if source is not None:
            raise UsageError(f"text_encoder={source}: compressor '{name}' reads none; leave it out")
        return None
    if source is None:
        raise UsageError(
            f"compressor '{name}' compares patches with the question by the text encoder that was trained "
            "with the tower, which this model does not have: give text_encoder=, a folder or hub id of the "
            "whole CLIP or SigLIP that its tower is from, such as openai/clip-vit-large-patch14-336"
        )
    where = f"text_encoder={source}"
    encoder = load_text_encoder(source, where)
    if encoder.patch_dim != family.dim(base):
        raise UsageError(
            f"{where}: trained with a tower of {encoder.patch_dim} channels, the model's has "
            f"{family.dim(base)}; give the checkpoint that its tower is from"
        )
    return QuestionReader(encoder, load_text_tokenizer(source, where), processor, base.config)
