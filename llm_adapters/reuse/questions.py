"""The question that each image stands with, for compressors that read it: by the LLM's own embeddings, or by
the text encoder that was trained with the tower.

The ids of a prompt are all that comes through every collator, trainer and harness, so the words are read from
them: those between what the chat template has before and behind a question. Where a prompt lacks one of the
two, its text goes up to that end.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel, ProcessorMixin

from compressors.base import Compressor
from compressors.errors import UsageError
from connectors.towers.build_text import load_text_encoder
from connectors.towers.text import TextEncoder
from connectors.towers.text_tokenizer import TextTokenizer, load_text_tokenizer
from llm_adapters.reuse.families import ModelFamily
from llm_adapters.reuse.question_words import (
    IMAGE_SIGN,
    cut_question,
    make_sign_pattern,
    read_turn_words,
)
from llm_adapters.reuse.wrapping import (
    bind_arguments,
    check_count,
    count_beams,
    find_device,
    hold_encoding,
    locate_units,
    split_placeholders,
)


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
        with hold_encoding(), self.note_prompt(ids, model_kwargs.get("mm_token_type_ids")):
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
