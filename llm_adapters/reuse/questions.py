"""The question that each image stands with, for compressors that read it: by the LLM's own embeddings, or by
the text encoder that was trained with the tower.

The ids of a prompt are all that comes through every collator, trainer and harness, so the words are read from
them: those between what the chat template has before and behind a question. Where a prompt lacks one of the
two, its text goes up to that end.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os.path import commonprefix
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jinja2.exceptions import TemplateError
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel, ProcessorMixin

from compressors.base import Compressor
from compressors.errors import UsageError
from connectors.towers.build_text import load_text_encoder
from connectors.towers.text import TextEncoder
from connectors.towers.text_tokenizer import TextTokenizer, load_text_tokenizer
from llm_adapters.reuse.families import ModelFamily
from llm_adapters.reuse.wrapping import (
    ENCODING,
    bind_arguments,
    check_count,
    count_beams,
    find_device,
    locate_units,
    split_placeholders,
)

FIRST, ANSWER, SECOND = "Firstquestion", "Firstanswer", "Secondquestion"
IMAGE_SIGN = "\0"  # which is in no text that a tokenizer takes
# how processors call what they write around an image's parts, beside `tile_token`, which has a number
IMAGE_SIGN_NAMES = ("image_token", "img_token", "patch_token", "break_token", "global_token", "image_tag")


class TurnWords(NamedTuple):
    """What a chat template has before a question, and behind it; nothing where there is no template."""

    opening: str = ""
    closing: str = ""


def read_turn_words(processor: ProcessorMixin) -> TurnWords:
    """Those of a processor's chat template, which takes parts or plain text; none where it takes neither."""
    if not getattr(processor, "chat_template", None):
        return TurnWords()
    for takes_parts in (True, False):
        pieces = re.split("|".join((FIRST, ANSWER, SECOND)), render_turns(processor, takes_parts))
        if len(pieces) == 4:
            before, closing, between, _ = pieces
            backwards = commonprefix([before.rstrip()[::-1], between.rstrip()[::-1]])
            return TurnWords(backwards[::-1].strip(), closing.strip())
    return TurnWords()


def render_turns(processor: ProcessorMixin, takes_parts: bool) -> str:
    """Two questions and an answer by a processor's chat template; empty where it fails."""
    messages: list[Any] = []
    for role, text in (("user", FIRST), ("assistant", ANSWER), ("user", SECOND)):
        content: Any = [{"type": "text", "text": text}] if takes_parts else text
        messages.append({"role": role, "content": content})
    try:
        return str(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (TemplateError, TypeError, ValueError):
        return ""


class Question(NamedTuple):
    """The text of a question, and whether the words of the chat template were around it."""

    text: str
    is_framed: bool


def cut_question(text: str, place: int, words: TurnWords) -> Question:
    """The question of the turn in which the image at `place` of a text stands: what is between the words of a
    chat template, or from where the text begins, or up to its end, where these are not there."""
    begin = 0
    stop = len(text)
    is_framed = False
    if words.opening and words.closing:
        opening = text.rfind(words.opening, 0, place)
        closing = text.find(words.closing, place)
        is_framed = opening >= 0 and closing >= 0
        if opening >= 0:
            begin = opening + len(words.opening)
        if closing >= 0:
            stop = closing
    return Question(text[begin:stop], is_framed)


def make_sign_pattern(processor: ProcessorMixin) -> re.Pattern[str]:
    """What is no word of a question: tokens that a processor's tokenizer was given as special ones, named
    (`all_special_tokens`) or not, such as roles, and what the processor writes around parts of an image."""
    tokenizer: Any = getattr(processor, "tokenizer")  # noqa: B009  their base class has none
    signs = {IMAGE_SIGN, *tokenizer.all_special_tokens}
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:
            signs.add(token.content)
    for name, value in vars(processor).items():
        if isinstance(value, str) and value and name.endswith(IMAGE_SIGN_NAMES):
            signs.add(value)
    # longest first: one may be another's beginning
    patterns = [re.escape(sign) for sign in sorted(signs, key=len, reverse=True)]
    tile_token = getattr(processor, "tile_token", None)
    if tile_token:  # Aya Vision's, with a number
        patterns.insert(0, rf"{re.escape(tile_token)}_\d+")
    return re.compile("|".join(patterns))


class QuestionReader:
    """Reads the questions of a model; no part of its weights. Subclasses say how they are embedded.

    tokenizer   the LLM's, of the processor
    words       around questions
    """

    def __init__(self, processor: ProcessorMixin, config: Any):
        self.tokenizer: Any = getattr(processor, "tokenizer")  # noqa: B009  their base class has none
        self.words = read_turn_words(processor)
        self.signs = make_sign_pattern(processor)
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
        with ENCODING, self.note_prompt(ids, model_kwargs.get("mm_token_type_ids")):
            return original(*args, **kwargs)

    def list_questions(self, counts: Sequence[int], of_videos: bool = False) -> list[str]:
        """Of images, or videos, that have so many placeholders each, in their order in the prompt. UsageError
        where the prompt is not there, or has other placeholders."""
        ids = self._ids
        if ids is None:
            raise UsageError(
                "the compressor reads the question, and images came without its ids; give input_ids together "
                "with pixel_values"
            )
        is_image, is_video = split_placeholders(ids, self.config, self._types)
        word, is_placeholder = ("video", is_video) if of_videos else ("image", is_image)
        beams = count_beams(is_placeholder, sum(counts))
        ids = ids[::beams]
        is_visual = (is_image | is_video)[::beams]
        is_placeholder = is_placeholder[::beams]
        check_count(word, int(is_placeholder.sum()), sum(counts))
        questions = []
        for row, column in locate_units(is_placeholder, counts):
            text, place = self._write_row(ids[row], is_visual[row], column)
            question = cut_question(text, place, self.words)
            if not question.is_framed:
                self._warn_of_other_words()
            questions.append(self._strip_signs(question.text))
        return questions

    def _warn_of_other_words(self) -> None:
        """A warning, once, where a prompt is not as the chat template makes it."""
        if self._told:
            return
        self._told = True
        warnings.warn(
            "a prompt does not have the words of its chat template around a question: its text up to its "
            "ends is taken for the question; make prompts with processor.apply_chat_template",
            stacklevel=2,
        )

    def _write_row(self, ids: Tensor, is_visual: Tensor, column: int) -> tuple[str, int]:
        """The text of a row (T,) without its placeholders, and where in it the image at `column` stands."""
        before = self.tokenizer.decode(ids[:column][~is_visual[:column]], skip_special_tokens=False)
        behind = self.tokenizer.decode(ids[column:][~is_visual[column:]], skip_special_tokens=False)
        return before + IMAGE_SIGN + behind, len(before)

    def _strip_signs(self, text: str) -> str:
        """A text without special tokens and what a processor writes for images."""
        return " ".join(self.signs.sub(" ", text).split())

    def embed_questions(
        self, counts: Sequence[int], like: Tensor, of_videos: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The questions of images, or videos, with so many placeholders each (n, M, E), where `like` is, and
        which of the M words or pieces of each there are, (n, M)."""
        embedded, is_there = self.embed_texts(self.list_questions(counts, of_videos), like.device)
        return embedded.to(like.device), is_there.to(like.device)

    def embed_texts(self, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Texts (n, M, E), and which of their words or pieces there are (n, M), for patches on a device."""
        raise NotImplementedError

    def add_joint(self, features: Tensor, dim: int) -> Tensor:  # noqa: ARG002
        """Features (n, H, W, C...) with the patches in the space of the text behind them, where the
        compressor asks for it."""
        return features


class WordReader(QuestionReader):
    """Questions by the LLM's own embeddings of their words."""

    def __init__(self, processor: ProcessorMixin, model: PreTrainedModel):
        super().__init__(processor, model.base_model.config)
        self.model = model

    def embed_texts(self, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        embeddings: Any = self.model.get_input_embeddings()
        place = find_device(embeddings)
        rows = []
        for text in texts:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            rows.append(torch.tensor(ids, dtype=torch.long, device=place))
        lengths = torch.tensor([len(row) for row in rows], device=place)
        most = max(1, int(lengths.max()))  # a place that is hidden where no question has words
        padded = torch.stack([pad(row, (0, most - len(row))) for row in rows])
        is_word = torch.arange(most, device=place) < lengths.unsqueeze(1)
        return embeddings(padded), is_word


class TowerTextReader(QuestionReader):
    """Questions by the text encoder that was trained with the tower. It stays in float32, whatever the model
    is cast to, and goes where the images are as soon as there are some."""

    def __init__(
        self,
        processor: ProcessorMixin,
        config: Any,
        encoder: TextEncoder,
        text_tokenizer: TextTokenizer,
    ):
        super().__init__(processor, config)
        self.encoder = encoder
        self.text_tokenizer = text_tokenizer

    def _place_encoder(self, device: torch.device) -> None:
        """The encoder on the device of the images."""
        if next(self.encoder.parameters()).device != device:
            self.encoder.to(device)

    def embed_texts(self, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        self._place_encoder(device)
        ids, is_there = self.text_tokenizer(texts)
        embedded = self.encoder.encode_text(ids.to(device).flatten(0, 1))
        return embedded.unflatten(0, is_there.shape), is_there

    def add_joint(self, features: Tensor, dim: int) -> Tensor:
        self._place_encoder(features.device)
        joint = self.encoder.project_patches(features[..., :dim])
        return torch.cat([features.to(joint.dtype), joint], -1)


def make_question_reader(
    family: ModelFamily,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    part: Compressor,
    name: str,
    source: str | Path | None,
) -> QuestionReader | None:
    """For the compressor `part` of that name; None for one that reads no question. `source`: the checkpoint
    that the model's tower is from. UsageError where the compressor needs it and it is not given, has no text
    encoder or another width; and for a source that nothing reads."""
    if not part.needs_tower_text:
        if source is not None:
            raise UsageError(f"text_encoder={source}: compressor '{name}' reads none; leave it out")
        if part.needs_text:
            return WordReader(processor, model)
        return None
    if source is None:
        raise UsageError(
            f"compressor '{name}' compares patches with the question by the text encoder that was trained "
            "with the tower, which this model does not have: give text_encoder=, a folder or hub id of the "
            "whole CLIP or SigLIP that its tower is from, such as openai/clip-vit-large-patch14-336"
        )
    where = f"text_encoder={source}"
    base = cast(PreTrainedModel, model.base_model)
    encoder = load_text_encoder(source, where)
    if encoder.patch_dim != family.dim(base):
        raise UsageError(
            f"{where}: trained with a tower of {encoder.patch_dim} channels, the model's has "
            f"{family.dim(base)}; give the checkpoint that its tower is from"
        )
    return TowerTextReader(processor, base.config, encoder, load_text_tokenizer(source, where))
